"""The embedded open body: SMPL-X's layout, derived from Anny; no account, no download (see data/open.md)."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files

import numpy as np

from fitkit.body.model import BodyData, BodyModel
from fitkit.keypoints import set_names


@cache
def open_body() -> BodyModel:
    """The body that comes with the library, in float32 on the CPU; use `.to(...)` for another dtype or device."""
    with as_file(files("fitkit.body.data").joinpath("open.npz")) as path, np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    vertices = len(arrays["v_template"])
    return BodyModel(
        BodyData(
            name=f"open-{arrays['version']}",
            parents=arrays["parents"],
            regressors=_regressors(arrays, vertices),
            readouts=dict(zip(arrays["readout_names"].tolist(), arrays["readout"], strict=True)),
            actions=dict(zip(arrays["action_names"].tolist(), arrays["actions"], strict=True)),
            **{name: arrays[name].astype(np.float32) for name in _FLOATS},
            **{name: arrays[name] for name in ("faces", "parts", "charts", "mirror", "subset431")},
            chart_uv=arrays["chart_uv"].astype(np.float32),
        )
    )


_FLOATS = ("v_template", "shapedirs", "exprdirs", "posedirs", "weights", "J_regressor")


def _regressors(arrays: dict[str, np.ndarray], vertices: int) -> dict[str, np.ndarray]:
    """`(K, V + J)`: a column from V on is a kinematic joint."""
    dense = {}
    for name in set_names():
        if f"kp_{name}_row" in arrays:
            count = len(arrays[f"kp_{name}_names"])
            dense[name] = np.zeros((count, vertices + len(arrays["parents"])), np.float32)
            dense[name][arrays[f"kp_{name}_row"], arrays[f"kp_{name}_col"]] = arrays[f"kp_{name}_val"]
    return dense

"""AMASS (Mahmood et al., ICCV 2019): motion capture fitted with SMPL+H or SMPL-X, from the user's own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fitkit.datasets.arrays import read_arrays
from fitkit.datasets.believable import believable
from fitkit.datasets.motion import BODY, Motion

WHERE = "https://amass.is.tue.mpg.de, after a registration and under its own licence"
_RATES = ("mocap_framerate", "mocap_frame_rate")
# Columns of the fingers in `poses`: SMPL-X has jaw and eyes before them.
_HANDS = {156: 66, 165: 75}
_MIDDLE = 3  # row of the middle finger's base among the 15 joints of a hand


def read_amass(path: str | Path, subject: str | None = None) -> Motion:
    """One clip of AMASS: SMPL+H (`poses (N, 156)`) or SMPL-X (`poses (N, 165)`, or `root_orient`, `pose_body` and
    `pose_hand`), turned from Z up to Y up.

    `root` is the file's `trans`, turned: the pelvis is the body's own rest pelvis further, the same 0.2 to 0.4 m in
    every frame, and how far exactly only the body file knows that the motion was fitted with. Rotations do not
    depend on it. Joints 22 and 23 are the bases of the middle fingers.

    Args:
        path: `.npz`.
        subject: who moves; None for the name of the folder, as in AMASS.

    Raises:
        FileNotFoundError: no such file; the message says where to get it.
        ValueError: not such a file, damaged, or with Python objects where numbers should be.
    """
    import roma  # brings torch's compiler with it

    path = Path(path)
    arrays = _read(path)
    layout, vectors = _vectors(path, arrays)
    trans = _numbers(path, arrays, "trans", 3)
    if len(trans) != len(vectors):
        raise ValueError(f"{path}: trans has {len(trans)} frames, expected the {len(vectors)} of the poses")
    fps = _rate(path, arrays)
    # (x, y, z) with z up is (x, z, -y) with y up.
    turn = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    turns = roma.rotvec_to_rotmat(vectors)
    hands = turns[:, BODY + 1 :]
    rotations = torch.cat([turns[:, : BODY + 1], hands[:, [_MIDDLE, 15 + _MIDDLE]]], 1)
    rotations[:, 0] = turn @ rotations[:, 0]
    return Motion.of_clip(
        name=path.stem.removesuffix("_poses").removesuffix("_stageii"),
        subject=subject or path.resolve().parent.name,
        fps=fps,
        skeleton=f"amass-{layout}",
        rotations=rotations,
        root=trans @ turn.T,
        usable=believable(rotations, fps),
        hands=hands,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays that matter: others (marker labels) may hold Python objects, which are never loaded."""
    try:
        return read_arrays(path, only=("poses", "root_orient", "pose_body", "pose_hand", "trans", *_RATES))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no AMASS file {path}. They come from {WHERE}") from error


def _vectors(path: Path, arrays: dict[str, np.ndarray]) -> tuple[str, Tensor]:
    """Axis-angle `(N, 52, 3)`: pelvis, 21 of the body, 30 of the hands."""
    if "poses" in arrays:
        shape = arrays["poses"].shape
        if len(shape) != 2 or shape[1] not in _HANDS:
            raise ValueError(
                f"{path}: poses has shape {shape}, expected (N, 156) of SMPL+H or (N, 165) of SMPL-X"
            )
        poses, start = _numbers(path, arrays, "poses", shape[1]), _HANDS[shape[1]]
        layout = "smplh" if shape[1] == 156 else "smplx"
        return layout, torch.cat([poses[:, :66], poses[:, start : start + 90]], 1).unflatten(1, (-1, 3))
    parts = [
        _numbers(path, arrays, name, width)
        for name, width in (("root_orient", 3), ("pose_body", 63), ("pose_hand", 90))
    ]
    if len({len(part) for part in parts}) > 1:
        raise ValueError(
            f"{path}: {[len(part) for part in parts]} frames of root, body and hands, expected one number"
        )
    return "smplx", torch.cat(parts, 1).unflatten(1, (-1, 3))


def _numbers(path: Path, arrays: dict[str, np.ndarray], name: str, width: int) -> Tensor:
    if name not in arrays:
        raise ValueError(f"{path}: no {name}, expected an AMASS file; found {sorted(arrays)}")
    array = arrays[name]
    if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] != width or not len(array):
        raise ValueError(
            f"{path}: {name} has shape {array.shape} of {array.dtype}, expected (N, {width}) numbers, N > 0"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} has {int((~np.isfinite(array)).sum())} entries that are not finite")
    return torch.from_numpy(array.astype(np.float64))


def _rate(path: Path, arrays: dict[str, np.ndarray]) -> float:
    for name in _RATES:
        if name in arrays:
            rate = arrays[name]
            if rate.dtype.kind not in "fiu" or rate.size != 1 or not 0.1 <= float(rate.reshape(())) <= 10000:
                raise ValueError(f"{path}: {name} is {rate!r}, expected frames per second")
            return float(rate.reshape(()))
    raise ValueError(f"{path}: no {' or '.join(_RATES)}, expected an AMASS file; found {sorted(arrays)}")

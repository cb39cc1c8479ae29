"""Body files that are cut short, damaged, wrong or something else: each is one clear ValueError."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitkit.body.smpl import read_smpl

Arrays = dict[str, Any]
TREE = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]
VERTICES = 72


def _smpl(correctives: int = 23) -> Arrays:
    """The right keys and shapes of SMPL, random numbers."""
    random = np.random.default_rng(0)
    return {
        "v_template": random.normal(size=(VERTICES, 3)),
        "shapedirs": random.normal(size=(VERTICES, 3, 10)),
        "posedirs": random.normal(size=(VERTICES, 3, 9 * correctives)),
        "weights": random.dirichlet(np.ones(24), VERTICES),
        "J_regressor": random.dirichlet(np.ones(VERTICES), 24),
        "kintree_table": np.array([TREE, range(24)]).astype(np.uint32),
        "f": random.integers(0, VERTICES, (300, 3)).astype(np.uint32),
    }


def _write(path: Path, body: Arrays, layout: str) -> None:
    with path.open("wb") as file:
        if layout == "npz":
            np.savez_compressed(file, **body)
        else:
            pickle.dump(body, file, int(layout[-1]))


def _changed(**changes: Any) -> Callable[[Arrays], None]:
    def change(body: Arrays) -> None:
        for name, value in changes.items():
            if value is None:
                del body[name]
            else:
                body[name] = value(body[name])

    return change


def _set_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[3] = np.nan
    return array


WRONG = {
    "no weights": (_changed(weights=None), r"\['weights'\] missing, .* found \['J_regressor'"),
    "joints": (_changed(kintree_table=lambda t: t[:, :16]), r"16 joints, expected 24 \(smpl\), 52"),
    "table": (
        _changed(kintree_table=lambda t: t[0]),
        r"kintree_table has shape \(24,\), expected \(2, joints\)",
    ),
    "tree": (_changed(kintree_table=lambda t: t[:, ::-1]), r"kintree_table\[0\] is .* expected smpl's"),
    "template": (
        _changed(v_template=lambda v: v[:, :2]),
        r"v_template has shape \(72, 2\), expected \(V, 3\)",
    ),
    "template scalar": (
        _changed(v_template=lambda v: v[0, 0]),
        r"v_template has shape \(\), expected \(V, 3\)",
    ),
    "shape": (
        _changed(shapedirs=lambda s: s[:60]),
        r"shapedirs has shape \(60, 3, 10\), expected \(72, 3, S\)",
    ),
    "betas": (_changed(shapedirs=lambda s: s[:, :, :6]), "num_betas is 10, expected at most the file's 6"),
    "correctives": (
        _changed(posedirs=lambda p: p[..., :10]),
        r"posedirs .* expected \(72, 3, a multiple of 9 up to 207\)",
    ),
    "regressor": (
        _changed(J_regressor=lambda j: j.T),
        r"J_regressor has shape \(72, 24\), expected \(24, 72\)",
    ),
    "weights": (_changed(weights=lambda w: w * 2), "weights of a vertex sum to 2, expected 1"),
    "faces": (_changed(f=lambda f: f + 72), r"f names vertices 7\d..14\d, expected 0..71"),
    "not finite": (_changed(v_template=_set_nan), "v_template has 1 entries that are not finite"),
    "complex": (
        _changed(v_template=lambda v: v + 1j),
        "v_template has dtype complex128, expected real numbers",
    ),
    "text": (_changed(weights=lambda w: np.array("no")), "weights .*dtype .*, expected"),
}


@pytest.mark.parametrize("layout", ["npz", "pickle2"])
@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_wrong_arrays_are_named(tmp_path: Path, wrong: str, layout: str) -> None:
    content, (change, message) = _smpl(), WRONG[wrong]
    change(content)
    path = tmp_path / f"body.{layout}"
    _write(path, content, layout)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{message}"):
        read_smpl(path)


@pytest.mark.parametrize("layout", ["npz", "pickle2", "pickle5"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_files_cut_short_are_refused(tmp_path: Path, layout: str, share: float) -> None:
    path = tmp_path / "body.bin"
    _write(path, _smpl(), layout)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: not an? .*, or cut short"):
        read_smpl(path)


@pytest.mark.parametrize("layout", ["npz", "pickle3", "pickle4", "pickle5"])
def test_damaged_bytes_never_surprise(tmp_path: Path, layout: str) -> None:
    """Whatever bytes around the numbers are changed, it is a body or a ValueError that names the file, and soon."""
    path, random, body = tmp_path / "body.bin", np.random.default_rng(0), _smpl(correctives=0)
    _write(path, body, layout)
    whole, messages = path.read_bytes(), []
    around = np.ones(len(whole), bool)
    for value in body.values():
        start = whole.find(value.tobytes())
        if start >= 0 and value.size:
            around[start : start + value.nbytes] = False
    for _ in range(300):
        broken = bytearray(whole)
        for place in random.choice(np.nonzero(around)[0], 3):
            broken[place] = random.integers(256)
        path.write_bytes(broken)
        try:
            read_smpl(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert all(message.startswith(str(path)) for message in messages)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    missing = tmp_path / "SMPL_NEUTRAL.pkl"
    with pytest.raises(
        FileNotFoundError, match=r"smpl\.is\.tue\.mpg\.de.*smpl-x\.is\.tue\.mpg\.de.*open body needs no file"
    ):
        read_smpl(missing)
    with pytest.raises(ValueError, match="is a folder, expected one"):
        read_smpl(tmp_path)
    missing.write_text("\n<!DOCTYPE html><html>Please log in</html>")
    with pytest.raises(ValueError, match="a web page, expected a body file"):
        read_smpl(missing)
    missing.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="holds a list, expected a dict of arrays"):
        read_smpl(missing)
    with zipfile.ZipFile(missing, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"missing, .* found \['readme.txt'\]"):
        read_smpl(missing)

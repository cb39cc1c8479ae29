"""The user's own SMPL, SMPL+H and SMPL-X files, as published: `.npz`, or `.pkl` with numpy, scipy or chumpy in it."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np

from fitkit.body.model import JOINT_SETS, LAYOUTS, BodyData
from fitkit.body.smpl_points import Landmarks, face_parts, keypoint_regressors
from fitkit.body.unpickle import as_array, load_pickle
from fitkit.keypoints import get_set

LARGEST = 2 << 30  # bytes of a file, and of one array in it: several times the largest published
KINDS = {24: "smpl", 52: "smplh", 55: "smplx"}
# Columns of SMPL-X's shapedirs: shape first, then expression.
_SMPLX_COLUMNS = {20: (10, 10), 400: (300, 100)}
_REQUIRED = ("kintree_table", "v_template", "shapedirs", "posedirs", "weights", "J_regressor", "f")
_OPTIONAL = ("lmk_faces_idx", "lmk_bary_coords")


def read_smpl(path: str | Path, num_betas: int = 10, num_expression: int = 10) -> BodyData:
    """A body from a file of SMPL (24 joints), SMPL+H (52) or SMPL-X (55); which one is told by its joints.

    Nothing in the file is executed, and neither chumpy nor smplx is needed. Hands at rest are flat (identity
    rotations), as with `flat_hand_mean=True` elsewhere. The body's name is its kind and a hash of the template and
    of the shape directions that were read, so what was made for one file (or one number of betas) is not
    mistaken for another's.

    Keypoints that are joints are the kinematic joints themselves, as the users of these bodies have them, and not
    what the joint regressor would take from the posed skin, which is centimetres away from them at a bent
    limb. Points of the face and feet are single vertices, known for the published meshes of 6,890 and 10,475
    vertices; the rows of other meshes are zero, which says that the body cannot give them.

    Args:
        path: `.npz` or `.pkl`; the content decides, not the suffix.
        num_betas: how many of the file's shape directions to keep.
        num_expression: how many of SMPL-X's expression directions to keep.

    Raises:
        FileNotFoundError: no such file; the message says where such files come from.
        ValueError: not such a file, damaged, or holding more than numbers; the message names the file, the key, what
            came and what was expected.
    """
    path = Path(path)
    arrays = _read_arrays(path)
    joints = _joint_count(path, arrays["kintree_table"])
    vertices = int(np.prod(arrays["v_template"].shape[:1]))
    _check_shapes(path, arrays, vertices, joints)
    kind = KINDS[joints]
    parents = _parents(path, arrays["kintree_table"], kind)
    shape, expression = _shape_columns(path, arrays["shapedirs"], kind, num_betas, num_expression)
    floats = {
        name: _finite(path, name, arrays[name])
        for name in ("v_template", "posedirs", "weights", "J_regressor")
    }
    sums = floats["weights"].sum(1)
    if vertices and np.abs(sums - 1).max() > 0.05:
        raise ValueError(
            f"{path}: weights of a vertex sum to {sums[np.abs(sums - 1).argmax()]:.3g}, expected 1"
        )
    digest = hashlib.sha256(floats["v_template"].tobytes() + shape.tobytes()).hexdigest()
    faces, names = _faces(path, arrays["f"], vertices), get_set(JOINT_SETS[joints]).names
    return BodyData(
        name=f"{kind}:{digest[:8]}",
        parents=parents,
        shapedirs=shape,
        exprdirs=expression,
        faces=faces,
        regressors=keypoint_regressors(names, floats, faces, _landmarks(path, arrays, len(faces))),
        parts=face_parts(names, floats["weights"], faces),
        v_template=floats["v_template"],
        posedirs=floats["posedirs"],
        weights=floats["weights"],
        J_regressor=floats["J_regressor"],
    )


# -- files ---------------------------------------------------------------------------------------------------


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise FileNotFoundError(
            f"no body file {path}. SMPL and SMPL+H files come from smpl.is.tue.mpg.de and mano.is.tue.mpg.de, SMPL-X "
            "files from smpl-x.is.tue.mpg.de, each after a free registration and under its own licence. The embedded "
            "open body needs no file"
        )
    if not path.is_file():
        raise ValueError(f"body {path} is a folder, expected one .npz or .pkl file in it")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, expected a body file of at most {LARGEST}")
    with path.open("rb") as file:
        start = file.read(64).lstrip()
        file.seek(0)
        if start[:1] == b"<":
            raise ValueError(f"{path}: a web page, expected a body file; the download needs a login")
        if start[:2] == b"PK":
            return _read_npz(path)
        content = load_pickle(file.read(), str(path))
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dict of arrays")
    return _required(path, [str(key) for key in content], lambda name: as_array(content[name]))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            return _required(path, names, lambda name: _member(archive, f"{name}.npy", f"{path}: {name}"))
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not an .npz, or cut short ({error})") from error


def _member(archive: zipfile.ZipFile, name: str, origin: str) -> np.ndarray:
    size = archive.getinfo(name).file_size
    if size > LARGEST:
        raise ValueError(f"{size} bytes, expected at most {LARGEST}")
    data = BytesIO(archive.read(name))
    try:
        old = np.lib.format.read_magic(data) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(data)
        if not dtype.hasobject:
            if math.prod(shape) * dtype.itemsize > size:
                raise ValueError(f"shape {shape} of {dtype} in {size} bytes")
            data.seek(0)
            array: np.ndarray = np.lib.format.read_array(data, allow_pickle=False)
            return array
    except Exception as error:  # a damaged header fails wherever Python's own parser fails
        raise ValueError(f"not an array, or cut short ({error})") from error
    return as_array(load_pickle(data.read(), origin))


def _required(path: Path, names: list[str], read: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise ValueError(
            f"{path}: {missing} missing, expected the keys of SMPL, SMPL+H or SMPL-X, found {sorted(names)}"
        )
    arrays = {}
    for name in (*_REQUIRED, *(name for name in _OPTIONAL if name in names)):
        try:
            arrays[name] = read(name)
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith(str(path)) else f"{path}: {name} is {text}") from error
        if arrays[name].dtype.kind not in "biuf":
            raise ValueError(f"{path}: {name} has dtype {arrays[name].dtype}, expected real numbers")
    return arrays


# -- checks --------------------------------------------------------------------------------------------------


def _joint_count(path: Path, table: np.ndarray) -> int:
    if table.ndim != 2 or table.shape[0] != 2:
        raise ValueError(f"{path}: kintree_table has shape {table.shape}, expected (2, joints)")
    if table.shape[1] not in LAYOUTS:
        expected = ", ".join(f"{count} ({KINDS[count]})" for count in LAYOUTS)
        raise ValueError(f"{path}: kintree_table has {table.shape[1]} joints, expected {expected}")
    return int(table.shape[1])


def _check_shapes(path: Path, arrays: Mapping[str, np.ndarray], vertices: int, joints: int) -> None:
    expected: dict[str, tuple[int | str, ...]] = {
        "v_template": ("V", 3),
        "shapedirs": (vertices, 3, "S"),
        "posedirs": (vertices, 3, "9P"),
        "weights": (vertices, joints),
        "J_regressor": (joints, vertices),
        "f": ("F", 3),
    }
    for name, sizes in expected.items():
        shape = arrays[name].shape
        fits = len(shape) == len(sizes) and all(
            isinstance(size, str) or size == came for size, came in zip(sizes, shape, strict=True)
        )
        if name == "posedirs" and fits:
            fits = shape[2] % 9 == 0 and shape[2] <= 9 * (joints - 1)
        if not fits:
            text = ", ".join(str(size) for size in sizes).replace(
                "9P", f"a multiple of 9 up to {9 * (joints - 1)}"
            )
            raise ValueError(f"{path}: {name} has shape {shape}, expected ({text})")


def _parents(path: Path, table: np.ndarray, kind: str) -> np.ndarray:
    # The root's parent is written as -1, or as the same in 32 bits without a sign.
    with np.errstate(invalid="ignore"):
        parents = table[0].astype(np.int64)
    parents[parents == 2**32 - 1] = -1
    expected = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19]
    if kind == "smpl":
        expected += [20, 21]
    else:
        expected += [15, 15, 15] if kind == "smplx" else []
        for wrist in (20, 21):
            for _ in range(5):
                first = len(expected)
                expected += [wrist, first, first + 1]
    if parents.tolist() != expected:
        raise ValueError(f"{path}: kintree_table[0] is {parents.tolist()}, expected {kind}'s {expected}")
    return parents


def _shape_columns(
    path: Path, dirs: np.ndarray, kind: str, num_betas: int, num_expression: int
) -> tuple[np.ndarray, np.ndarray]:
    columns = dirs.shape[2]
    betas, expressions = columns, 0
    if kind == "smplx":
        if columns not in _SMPLX_COLUMNS:
            raise ValueError(
                f"{path}: shapedirs has {columns} columns, expected 20 (10 shape, 10 expression) or 400 (300, 100)"
            )
        betas, expressions = _SMPLX_COLUMNS[columns]
    if not 0 <= num_betas <= betas:
        raise ValueError(f"{path}: num_betas is {num_betas}, expected at most the file's {betas}")
    if kind == "smplx" and not 0 <= num_expression <= expressions:
        raise ValueError(
            f"{path}: num_expression is {num_expression}, expected at most the file's {expressions}"
        )
    count = min(num_expression, expressions)
    return (
        _finite(path, "shapedirs", dirs[:, :, :num_betas]),
        _finite(path, "shapedirs", dirs[:, :, betas : betas + count]),
    )


def _finite(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is found next
        result = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(result).all():
        raise ValueError(
            f"{path}: {name} has {int((~np.isfinite(result)).sum())} entries that are not finite"
        )
    return result


def _faces(path: Path, faces: np.ndarray, vertices: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        result = faces.astype(np.int64)
    if result.size and (result.min() < 0 or result.max() >= vertices):
        raise ValueError(
            f"{path}: f names vertices {result.min()}..{result.max()}, expected 0..{vertices - 1}"
        )
    return result


def _landmarks(path: Path, arrays: Mapping[str, np.ndarray], faces: int) -> Landmarks | None:
    if not all(name in arrays for name in _OPTIONAL):
        return None
    face, weights = arrays["lmk_faces_idx"], arrays["lmk_bary_coords"]
    if face.shape != (51,) or weights.shape != (51, 3):
        raise ValueError(
            f"{path}: lmk_faces_idx and lmk_bary_coords have shapes {face.shape} and {weights.shape}, "
            "expected (51,) and (51, 3)"
        )
    if face.min() < 0 or face.max() >= faces:
        raise ValueError(f"{path}: lmk_faces_idx is {face.min()}..{face.max()}, expected 0..{faces - 1}")
    return face.astype(np.int64), _finite(path, "lmk_bary_coords", weights)

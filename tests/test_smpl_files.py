"""Body files as published, against the smplx package; and files that are damaged, wrong or hostile."""

from __future__ import annotations

import pickle
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from fitkit.body import BodyModel
from fitkit.body.smpl import read_smpl
from fitkit.geometry import exp
from fitkit.keypoints import get_set
from fitkit.state import State

SETS = {24: "smpl24", 52: "smplh52", 55: "smplx55"}
# Offsets from the parent of the joints of one side, centimetres; the midline has its own.
MIDDLE = {"pelvis": (0, 0, 0), "spine": (0, 12, 0), "neck": (0, 21, -3), "head": (0, 9, 5), "jaw": (0, -1, 4)}
SIDE = {
    "hip": (6, -9, 0),
    "knee": (4, -38, 0),
    "ankle": (-1, -40, -3),
    "foot": (3, -5, 12),
    "collar": (8, 11, -2),
    "shoulder": (9, 3, -1),
    "elbow": (26, -1, -2),
    "wrist": (25, 1, 0),
    "hand": (8, -1, -1),
    "eye": (3, 5, 6),
}
LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
Arrays = dict[str, Any]


def _tree(joints: int) -> np.ndarray:
    parents = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19]
    if joints == 24:
        return np.array([*parents, 20, 21])
    parents += [15, 15, 15] if joints == 55 else []
    for finger in range(10):
        first = len(parents)
        parents += [20 + finger // 5, first, first + 1]
    return np.array(parents)


def _offset(name: str) -> np.ndarray:
    side, _, rest = name.partition("_")
    if side not in ("left", "right"):
        return np.array(MIDDLE[name.rstrip("123")]) / 100.0
    finger = (
        ("index", "middle", "pinky", "ring", "thumb").index(rest[:-1])
        if rest[:-1] not in SIDE and rest[-1] in "123"
        else 0
    )
    offset = (
        np.array(SIDE.get(rest, (9 if rest[-1] == "1" else 2.5, 0, 2 - finger if rest[-1] == "1" else 0)))
        / 100.0
    )
    return offset * ([1, 1, 1] if side == "left" else [-1, 1, 1])


def _body(
    joints: int, columns: int, per_joint: int = 10, correctives: int | None = None, seed: int = 0
) -> Arrays:
    """A body of random skin around a sane skeleton, with the keys, types and layout of the published files."""
    random = np.random.default_rng(seed)
    names, parents = get_set(SETS[joints]).names, _tree(joints)
    places = np.zeros((joints, 3))
    for joint, name in enumerate(names):
        places[joint] = _offset(name) + (places[parents[joint]] if joint else 0)
    vertices = joints * per_joint
    owner = np.repeat(np.arange(joints), per_joint)
    spread = np.where(owner < 22, 0.04, 0.01)[:, None]
    template = places[owner] + spread * random.normal(size=(vertices, 3))
    # Skin passes from parent to child along the bone, over some centimetres around the joint.
    bone = np.stack([_offset(name) for name in names])
    along = np.einsum("vc,vc->v", template - places[owner], bone[owner]) / np.maximum(
        np.linalg.norm(bone[owner], axis=1), 1e-3
    )
    own = 1 / (1 + np.exp(-along / 0.02))
    weights = np.zeros((vertices, joints))
    weights[np.arange(vertices), owner] = own
    weights[np.arange(vertices), np.maximum(parents[owner], 0)] += 1 - own
    regressor = np.zeros((joints, vertices))
    regressor[owner, np.arange(vertices)] = random.dirichlet(np.ones(per_joint), joints).ravel()
    table = np.stack([parents, np.arange(joints)]).astype(np.int64)
    table[0, 0] = 2**32 - 1
    correctives = joints - 1 if correctives is None else correctives
    return {
        "v_template": template,
        "shapedirs": 0.01 * random.normal(size=(vertices, 3, columns)),
        "posedirs": 0.003 * random.normal(size=(vertices, 3, 9 * correctives)),
        "weights": weights,
        "J_regressor": regressor,
        "kintree_table": table.astype(np.uint32),
        "f": random.integers(0, vertices, (300, 3)).astype(np.uint32),
    }


def _with_hands(body: Arrays) -> Arrays:
    """The keys of SMPL+H and SMPL-X that smplx asks for and kinematics does without."""
    extra = {f"hands_components{side}": np.eye(45) for side in "lr"} | {
        f"hands_mean{side}": np.zeros(45) for side in "lr"
    }
    marks = {"lmk_faces_idx": np.arange(51), "lmk_bary_coords": np.full((51, 3), 1 / 3)}
    return body | extra | marks


@contextmanager
def _modules(**classes: type) -> Iterator[None]:
    """Puts classes where a pickle is to name them, for as long as it is written."""
    made = {}
    for path, kind in classes.items():
        module, kind.__module__ = path.replace("__", "."), path.replace("__", ".")
        made[module] = types.ModuleType(module)
        setattr(made[module], kind.__name__, kind)
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module_before in before.items():
            if module_before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module_before


def _write_pkl(
    path: Path, body: Arrays, chumpy: tuple[str, ...] = ("v_template", "shapedirs"), protocol: int = 2
) -> None:
    """As SMPL was published: chumpy objects, one of them a selection, and a sparse joint regressor."""
    Ch = type("Ch", (), {})
    Select = type("Select", (), {})
    content = dict(body)
    with _modules(chumpy=type("chumpy", (), {}), chumpy__ch=Ch, chumpy__reordering=Select):
        for name in chumpy:
            content[name] = Ch()
            content[name].x, content[name]._dirty_vars = np.asfortranarray(body[name]), {"x"}
        if "shapedirs" in chumpy:
            whole, chosen = Ch(), Select()
            whole.x = np.concatenate([body["shapedirs"], body["shapedirs"] + 7], 2)
            size = whole.x.shape
            chosen.a = whole
            chosen.idxs = np.arange(whole.x.size).reshape(size)[:, :, : size[2] // 2].ravel()
            chosen.preferred_shape = body["shapedirs"].shape
            content["shapedirs"] = chosen
        content["J_regressor"] = sparse.csc_matrix(body["J_regressor"])
        content["bs_type"], content["J"] = "lrotmin", np.zeros((4, 3))
        path.write_bytes(pickle.dumps(content, protocol))


def _write_python2(path: Path, body: Arrays) -> None:
    """A pickle with the opcodes and names of Python 2 and numpy 1: text for bytes, `numpy.core`, `copy_reg`."""
    out = bytearray(b"\x80\x02}")

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    def array(value: np.ndarray) -> bytes:
        kind = value.dtype.kind.encode() + str(value.dtype.itemsize).encode()
        dtype = (
            b"cnumpy\ndtype\n("
            + text(kind)
            + b"K\x00K\x01tR(K\x03"
            + text(b"<")
            + b"NNN"
            + integer(-1) * 2
            + b"K\x00tb"
        )
        shape = b"(" + b"".join(integer(size) for size in value.shape) + b"t"
        start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        return start + b"(K\x01" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"

    def sparse_matrix(value: sparse.csc_matrix) -> bytes:
        start = b"ccopy_reg\n_reconstructor\n(cscipy.sparse.csc\ncsc_matrix\nc__builtin__\nobject\nNtR}("
        state = text(b"_shape") + b"(" + b"".join(integer(size) for size in value.shape) + b"t"
        for name in ("data", "indices", "indptr"):
            state += text(name.encode()) + array(getattr(value, name))
        return start + state + b"ub"

    for name, value in body.items():
        content = sparse_matrix(sparse.csc_matrix(value)) if name == "J_regressor" else array(value)
        out += text(name.encode()) + content + b"s"
    path.write_bytes(bytes(out) + b".")


# -- the oracle ----------------------------------------------------------------------------------------------


@pytest.fixture
def smplx(monkeypatch: pytest.MonkeyPatch) -> Any:
    """smplx, told to take its extra vertices from meshes of any size."""
    package = pytest.importorskip("smplx", reason="the comparison with smplx needs the extra [smplx]")
    some = {name: place for place, name in enumerate(package.vertex_ids.vertex_ids["smplh"])}
    for kind in ("smplh", "smplx"):
        monkeypatch.setitem(package.body_models.VERTEX_IDS, kind, some)
    return package


def _random_state(body: BodyModel, people: int, seed: int = 0, extra: bool = True) -> State:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(people, *shape, generator=generator, dtype=torch.float64).to(body.dtype)

    parts = {
        name: exp(0.6 * normal(count, 3))
        for name, count in body.layout.items()
        if extra or name in ("global_orient", "body_pose")
    }
    if body.num_expression and extra:
        parts["expression"] = normal(body.num_expression)
    return State(betas=normal(body.num_betas), transl=normal(3), **parts)


def _theirs(
    package: Any, path: Path, body: Arrays, joints: int, state: State, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Joints and vertices of smplx, from rotation vectors as it wants them."""
    import roma

    people, dtype = len(state), state.transl.dtype
    given = {}
    for name, value in state.parts().items():
        matrix = value.ndim == 4
        given[name] = roma.rotmat_to_rotvec(value).flatten(1) if matrix else value
    settings = {"batch_size": people, "dtype": dtype, "num_betas": state.betas.shape[1]}
    flat = {"use_pca": False, "flat_hand_mean": True}
    if joints == 55:
        model = package.SMPLX(str(path), **settings, **flat, num_expression_coeffs=10)
    elif joints == 52:
        struct = package.utils.Struct(**_with_hands(body))
        model = package.SMPLH("", data_struct=struct, **settings, **flat)
    else:
        model = package.SMPL("", data_struct=package.utils.Struct(**body), **settings)
    with torch.no_grad():
        output = model(**given)
    return output.joints[:, :joints].numpy(), output.vertices.numpy()


FORMATS = [
    pytest.param(24, 10, "pkl", id="smpl-pkl"),
    pytest.param(24, 300, "pkl", id="smpl-pkl-300-betas"),
    pytest.param(24, 10, "python2", id="smpl-python2"),
    pytest.param(24, 10, "npz", id="smpl-npz"),
    pytest.param(52, 16, "npz", id="smplh-npz-16-betas"),
    pytest.param(55, 20, "npz", id="smplx-npz"),
    pytest.param(55, 400, "npz", id="smplx-npz-300-betas-100-expressions"),
    pytest.param(55, 20, "pkl", id="smplx-pkl"),
]


def _write(path: Path, body: Arrays, layout: str) -> None:
    if layout == "npz":
        np.savez(path, **body)
    elif layout == "python2":
        _write_python2(path, body)
    else:
        _write_pkl(path, body)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("joints", "columns", "layout"), FORMATS)
def test_bodies_are_those_of_smplx(
    tmp_path: Path, smplx: Any, joints: int, columns: int, layout: str, dtype: torch.dtype
) -> None:
    content = _body(joints, columns)
    path = tmp_path / f"BODY_NEUTRAL.{'npz' if layout == 'npz' else 'pkl'}"
    _write(path, _with_hands(content) if joints > 24 else content, layout)
    body = BodyModel(read_smpl(path), dtype)
    assert (body.num_betas, body.num_expression) == (10, 10 if joints == 55 else 0)
    plain = path.with_name("PLAIN_NEUTRAL.npz")
    np.savez(plain, **_with_hands(content))
    state = _random_state(body, 5)
    their_joints, their_vertices = _theirs(smplx, plain, content, joints, state, columns)
    np.testing.assert_allclose(body.joints(state).numpy(), their_joints, atol=1e-5)
    np.testing.assert_allclose(body.vertices(state).numpy(), their_vertices, atol=1e-5)


# -- what the reader gives -----------------------------------------------------------------------------------


@pytest.fixture
def smplx_file(tmp_path: Path) -> Path:
    path = tmp_path / "SMPLX_NEUTRAL.npz"
    np.savez(path, **_with_hands(_body(55, 20)))
    return path


@pytest.mark.parametrize("joints", [24, 52, 55])
def test_limbs_of_every_set_are_the_kinematic_joints(tmp_path: Path, joints: int) -> None:
    """Exactly, and near what the file's regressor takes from the posed skin of a body without random dents."""
    content = _body(joints, 20, per_joint=60)
    content["shapedirs"] *= 0.1
    np.savez(tmp_path / "body.npz", **content)
    body = BodyModel(read_smpl(tmp_path / "body.npz"), torch.float64)
    state = _random_state(body, 100, extra=False)
    kinematic = dict(zip(body.joint_set.names, body.joints(state).unbind(1), strict=True))
    limbs = {f"{side}_{limb}" for side in ("left", "right") for limb in LIMBS}
    for name in ("coco17", "coco23", "openpose25", "mediapipe33", "h36m17", "lsp14"):
        points = dict(zip(get_set(name).names, body.keypoints(state, name).unbind(1), strict=True))
        assert limbs <= set(points)
        for point in limbs:
            torch.testing.assert_close(points[point], kinematic[point], atol=1e-12, rtol=0)
    middle = (kinematic["left_hip"] + kinematic["right_hip"]) / 2
    hips = body.keypoints(state, "openpose25")[:, get_set("openpose25").index("mid_hip")]
    torch.testing.assert_close(hips, middle, atol=1e-12, rtol=0)
    skinned = body.regressed(body.data.J_regressor, state.body_pose.shape[1] + 1).positions(body.pose(state))
    assert (skinned - body.joints(state)).norm(dim=2)[:, :22].mean() < 0.02
    assert body.available("coco23").sum() == 12
    assert body.available("lsp14").all()
    assert body.available("mediapipe33").sum() == 12 + (6 if joints > 24 else 0)


@pytest.mark.parametrize(
    ("joints", "vertices", "nose", "toe"), [(24, 6890, 332, 3216), (55, 10475, 9120, 5770)]
)
def test_the_published_meshes_have_faces_and_feet(
    tmp_path: Path, joints: int, vertices: int, nose: int, toe: int
) -> None:
    content = _with_hands(_body(joints, 20, per_joint=1 + vertices // joints, correctives=1))
    for name in ("v_template", "shapedirs", "posedirs", "weights"):
        content[name] = content[name][:vertices]
    content["J_regressor"] = content["J_regressor"][:, :vertices]
    content["J_regressor"] /= content["J_regressor"].sum(1, keepdims=True)
    content["f"] = content["f"] % vertices
    np.savez(tmp_path / "body.npz", **content)
    body = BodyModel(read_smpl(tmp_path / "body.npz"))
    state = _random_state(body, 2)
    for name in ("coco17", "coco23", "openpose25", "h36m17", "lsp14"):
        assert body.available(name).all(), name
    missing = {
        n
        for n, there in zip(get_set("mediapipe33").names, body.available("mediapipe33"), strict=True)
        if not there
    }
    corners = {f"{side}_eye_{end}" for side in ("left", "right") for end in ("inner", "outer")} | {
        "mouth_left",
        "mouth_right",
    }
    hands = {f"{side}_{finger}" for side in ("left", "right") for finger in ("pinky", "index", "thumb")}
    assert missing == (set() if joints == 55 else corners | hands)
    # A single vertex without pose correctives is the keypoint.
    data = read_smpl(tmp_path / "body.npz")
    plain = BodyModel(type(data)(**{**vars(data), "posedirs": np.zeros((vertices, 3, 0), np.float32)}))
    there = plain.vertices(state, torch.tensor([nose, toe]))
    points = body.keypoints(state, "coco23")[:, [0, get_set("coco23").index("left_big_toe")]]
    torch.testing.assert_close(points, there, atol=1e-5, rtol=0)
    if joints == 55:  # triangle 42 - 17 of the landmarks is the inner corner of the left eye
        corner = plain.vertices(state)[:, torch.as_tensor(content["f"][25].astype(np.int64))].mean(1)
        torch.testing.assert_close(body.keypoints(state, "mediapipe33")[:, 1], corner, atol=1e-5, rtol=0)


def test_parts_follow_the_skinning(smplx_file: Path) -> None:
    data, names = read_smpl(smplx_file), get_set("smplx55").names
    expected = {
        "left_wrist": 3,
        "right_index2": 2,
        "left_foot": 4,
        "right_ankle": 5,
        "right_hip": 6,
        "left_knee": 9,
    }
    expected |= {
        "left_shoulder": 10,
        "right_elbow": 13,
        "jaw": 14,
        "spine2": 1,
        "left_collar": 1,
        "right_eye": 14,
    }
    assert data.parts is not None
    assert data.parts.shape == (300,)
    assert set(data.parts) <= set(range(1, 15))
    skinned = data.weights[data.faces].sum(1)
    for joint, part in expected.items():
        carried = skinned[:, names.index(joint)] > 1.6  # more than half of a triangle's three
        assert (data.parts[carried] == part).all(), joint


def test_names_tell_bodies_apart(tmp_path: Path) -> None:
    names = {}
    for seed, betas, layout in ((0, 10, "npz"), (0, 10, "pkl"), (0, 8, "npz"), (1, 10, "npz")):
        path = tmp_path / f"body.{layout}"
        _write(path, _body(24, 10, seed=seed), layout)
        names[seed, betas, layout] = read_smpl(path, num_betas=betas).name
    assert all(re.fullmatch(r"smpl:[0-9a-f]{8}", name) for name in names.values())
    assert names[0, 10, "npz"] == names[0, 10, "pkl"]
    assert len(set(names.values())) == 3


def test_columns_of_shape_and_expression(tmp_path: Path) -> None:
    content = _body(55, 400)
    path = tmp_path / "body.npz"
    np.savez(path, **content)
    data = read_smpl(path, num_betas=16, num_expression=50)
    np.testing.assert_allclose(data.shapedirs, content["shapedirs"][:, :, :16], atol=1e-8)
    np.testing.assert_allclose(data.exprdirs, content["shapedirs"][:, :, 300:350], atol=1e-8)
    assert data.parents[0] == -1
    with pytest.raises(ValueError, match="num_betas is 301, expected at most the file's 300"):
        read_smpl(path, num_betas=301)
    with pytest.raises(ValueError, match="num_expression is 101, expected at most the file's 100"):
        read_smpl(path, num_expression=101)


def test_npz_with_pickled_members(tmp_path: Path) -> None:
    """Some official archives hold a sparse matrix, and dicts that nobody needs, as objects."""
    content = _body(55, 20)
    expected = content["J_regressor"]
    np.savez(tmp_path / "plain.npz", **content)
    content["J_regressor"] = np.array(sparse.csr_matrix(expected), dtype=object)
    content["joint2num"] = np.array({"Pelvis": 0}, dtype=object)
    content["shapedirs"] = content["shapedirs"].astype(object)
    np.savez(tmp_path / "body.npz", **content)
    data, plain = read_smpl(tmp_path / "body.npz"), read_smpl(tmp_path / "plain.npz")
    np.testing.assert_array_equal(data.J_regressor, plain.J_regressor)
    np.testing.assert_array_equal(data.shapedirs, plain.shapedirs)


def test_an_unclear_split_of_columns_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "body.npz", **_body(55, 30, per_joint=2))
    with pytest.raises(ValueError, match=r"shapedirs has 30 columns, expected 20 .* or 400"):
        read_smpl(tmp_path / "body.npz")

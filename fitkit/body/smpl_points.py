"""Where keypoints and body parts are on a body in SMPL's layout that comes without either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fitkit.keypoints import get_set

Landmarks = tuple[np.ndarray, np.ndarray]

# Vertices at points that are no joints, by the number of vertices: the choice that the users of these bodies share.
_POINTS = (
    "nose right_eye left_eye right_ear left_ear left_big_toe left_small_toe left_heel right_big_toe right_small_toe "
    "right_heel"
).split()
_OF_SMPL = (332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787)
# By vertices and joints: another mesh may have as many vertices by chance.
_VERTICES = {
    (6890, 24): _OF_SMPL,
    (6890, 52): _OF_SMPL,
    (10475, 55): (9120, 9929, 9448, 616, 6, 5770, 5780, 8846, 8463, 8474, 8635),
}
# Positions in SMPL-X's 51 landmarks, which are the 68 of Multi-PIE without the 17 of the face's contour.
_LANDMARKS = {
    "right_eye_outer": 36 - 17,
    "right_eye_inner": 39 - 17,
    "left_eye_inner": 42 - 17,
    "left_eye_outer": 45 - 17,
    "mouth_right": 48 - 17,
    "mouth_left": 54 - 17,
}
# DensePose's parts by name of the joint that carries them.
_PARTS = {
    "hand": (3, 2),
    "foot": (4, 5),
    "upper_leg": (7, 6),
    "lower_leg": (9, 8),
    "upper_arm": (10, 11),
    "lower_arm": (12, 13),
}
_LIMBS = {
    "hip": "upper_leg",
    "knee": "lower_leg",
    "ankle": "foot",
    "foot": "foot",
    "shoulder": "upper_arm",
    "elbow": "lower_arm",
}
_TORSO, _HEAD = 1, 14


def keypoint_regressors(
    names: Sequence[str], body: Mapping[str, np.ndarray], faces: np.ndarray, landmarks: Landmarks | None
) -> dict[str, np.ndarray]:
    """Keypoint set -> `(K, V + J)` rows over vertices and joints; zeros are a point that this body cannot give.

    Joints are the kinematic ones; what the sets' other names mean agrees with the embedded body.

    Args:
        names: of the J joints.
        body: `v_template` (V, 3) and `weights` (V, J).
        faces: `(F, 3)`.
        landmarks: SMPL-X's 51, as faces `(51,)` and barycentric coordinates `(51, 3)`.
    """
    vertices = len(body["v_template"])
    width = vertices + len(names)
    joint = {name: _one(width, vertices + place) for place, name in enumerate(names)}
    at = _surface_points(names, body, faces, landmarks)
    absent = np.zeros(width, np.float32)
    # SMPL-X's eye joints lie inside the head, where no detector sees them.
    seen = {name: row for name, row in joint.items() if not name.endswith("_eye")} | at
    mid_hip = (joint["left_hip"] + joint["right_hip"]) / 2
    shoulders = (joint["left_shoulder"] + joint["right_shoulder"]) / 2
    collars = (joint["left_collar"] + joint["right_collar"]) / 2
    ends = {
        f"{side}_{end}": joint.get(f"{side}_{knuckle}", absent)
        for side in ("left", "right")
        for end, knuckle in (("pinky", "pinky1"), ("index", "index1"), ("thumb", "thumb2"))
    }
    toes = {f"{side}_foot_index": at.get(f"{side}_big_toe", absent) for side in ("left", "right")}
    h36m = {
        "pelvis": mid_hip,
        "spine": joint["spine2"],
        "thorax": (collars + joint["neck"]) / 2,
        "neck": (joint.get("jaw", joint["head"]) + at["nose"]) / 2 if "nose" in at else absent,
        "head": at.get("head_top", absent),
    }
    tables = {
        "coco17": seen,
        "coco23": seen,
        "openpose25": seen | {"neck": shoulders, "mid_hip": mid_hip},
        "mediapipe33": seen | ends | toes,
        "h36m17": joint | h36m,
        "lsp14": joint | at,
    }
    return {
        name: np.stack([table.get(point, absent) for point in get_set(name).names])
        for name, table in tables.items()
    }


def _surface_points(
    names: Sequence[str], body: Mapping[str, np.ndarray], faces: np.ndarray, landmarks: Landmarks | None
) -> dict[str, np.ndarray]:
    """Points that are no joints, where this mesh is known to have them."""
    template, count = body["v_template"], len(body["v_template"])
    width = count + len(names)
    rows = {}
    for name, vertex in zip(_POINTS, _VERTICES.get((count, len(names)), ()), strict=False):
        rows[name] = _one(width, vertex)
    # Other meshes in SMPL-X's layout may carry placeholders instead of landmarks.
    if landmarks is not None and count == 10475:
        for name, position in _LANDMARKS.items():
            rows[name] = np.zeros(width, np.float32)
            np.add.at(rows[name], faces[landmarks[0][position]], landmarks[1][position])
    on_head = body["weights"][:, list(names).index("head")] > 0.5
    if on_head.any():
        rows["head_top"] = _one(width, int(np.where(on_head, template[:, 1], -np.inf).argmax()))
    return rows


def _one(width: int, column: int) -> np.ndarray:
    row = np.zeros(width, np.float32)
    row[column] = 1
    return row


def face_parts(names: Sequence[str], weights: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """`(F,)` DensePose's part, 1..14, of each face: that of the joints that carry most of it."""
    carried = np.zeros((len(weights), _HEAD + 1), np.float32)
    for joint, name in enumerate(names):
        carried[:, _part_of(name)] += weights[:, joint]
    parts: np.ndarray = carried[faces].sum(1).argmax(1)
    return parts


def _part_of(name: str) -> int:
    side, _, rest = name.partition("_")
    if name in ("neck", "head", "jaw") or rest == "eye":
        return _HEAD
    if side not in ("left", "right") or rest == "collar":
        return _TORSO
    return _PARTS[_LIMBS.get(rest, "hand")][side == "right"]

"""Keypoint regressors: every named keypoint as nonnegative weights over the light vertices, summing to 1."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from fitkit.body.build.anny import People, Source
from fitkit.body.build.joints import fit_row
from fitkit.body.build.mesh import LightMesh
from fitkit.body.build.skeleton import FLIP, JOINT_NAMES, Array, mirrored_name

COCO17 = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
    "left_ankle", "right_ankle",
)  # fmt: skip
FEET = ("left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel")
OPENPOSE25 = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye",
    "left_eye", "right_ear", "left_ear", *FEET,
)  # fmt: skip
MEDIAPIPE33 = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_pinky", "right_pinky", "left_index", "right_index",
    "left_thumb", "right_thumb", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    "left_heel", "right_heel", "left_foot_index", "right_foot_index",
)  # fmt: skip
H36M17 = (
    "pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "spine", "thorax",
    "neck", "head", "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist",
)  # fmt: skip
LSP14 = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist",
    "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top",
)  # fmt: skip
REACH = 0.03  # metres around Anny's own regressor in which light vertices may stand in for it


def fit_coco(
    source: Source, mesh: LightMesh, mean_full: Array, people: Array, points: Array
) -> dict[str, Array]:
    """Rows over the light mesh that give the points of Anny's 23 COCO keypoints.

    mean_full (V,3) full mean body; people (N,v,3) light bodies and points (N,23,3) their keypoints.
    """
    light = mean_full[mesh.index]
    rows: dict[str, Array] = {}
    for k, name in enumerate(source.coco_names):
        if name.startswith("right_"):
            continue
        # Some of Anny's rows trail thousands of negligible weights.
        support = mean_full[source.coco[k] > 0.02 * source.coco[k].max()]
        candidates = np.nonzero(cKDTree(support).query(light)[0] < REACH)[0]
        middle = name == "nose"
        if middle:
            candidates = candidates[light[candidates, 0] >= 0]
        if len(candidates) > 600:
            distance = np.linalg.norm(light[candidates] - source.coco[k] @ mean_full, axis=1)
            candidates = candidates[np.argsort(distance, kind="stable")[:600]]
        rows[name] = fit_row(people, points[:, k], candidates, mesh.mirror if middle else None)
    return with_mirrored(rows, mesh.mirror)


def with_mirrored(rows: dict[str, Array], mirror: np.ndarray) -> dict[str, Array]:
    """Adds every right side row as the exact mirror of its left."""
    out = dict(rows)
    for name, row in rows.items():
        other = np.zeros_like(row)
        other[mirror] = row
        out.setdefault("mouth_right" if name == "mouth_left" else mirrored_name(name), other)
    return out


def landmarks(source: Source, mesh: LightMesh, mean_full: Array) -> dict[str, Array]:
    """Rows of single vertices: corners of the left eye and of the mouth, and the top of the head."""
    in_segment = {s: np.unique(source.faces[f]) for s, f in source.segments.items()}
    light = mean_full[mesh.index]
    tree = cKDTree(light)

    def at(vertex: int) -> Array:
        row = np.zeros(len(light))
        row[tree.query(mean_full[vertex])[1]] = 1.0
        return row

    eye = np.intersect1d(in_segment["eye_cavity.L"], in_segment["head"])
    mouth = np.intersect1d(in_segment["mouth_cavity"], in_segment["head"])
    middle = np.nonzero(mesh.mirror == np.arange(len(light)))[0]
    top = np.zeros(len(light))
    top[middle[light[middle, 1].argmax()]] = 1.0
    rows = {
        "left_eye_inner": at(eye[mean_full[eye, 0].argmin()]),
        "left_eye_outer": at(eye[mean_full[eye, 0].argmax()]),
        "mouth_left": at(mouth[mean_full[mouth, 0].argmax()]),
        "head_top": top,
    }
    return with_mirrored(rows, mesh.mirror)


def regressor_sets(coco: dict[str, Array], marks: dict[str, Array]) -> dict[str, tuple]:
    """{set: (names, (K,V+J) rows)}. COCO, OpenPose and MediaPipe sit where annotators click, the others at joints.

    The last J columns are the kinematic joints themselves: a joint's regressor reaches for vertices half a metre
    away, which is right at rest and centimetres wrong on a bent body.
    """
    vertices = len(coco["nose"])
    joint = dict(zip(JOINT_NAMES, np.eye(vertices + len(JOINT_NAMES))[vertices:], strict=True))
    coco, marks = (
        {name: np.pad(row, (0, len(JOINT_NAMES))) for name, row in rows.items()} for rows in (coco, marks)
    )

    def mean(a: Array, b: Array) -> Array:
        return (a + b) / 2

    openpose = coco | {
        "neck": mean(coco["left_shoulder"], coco["right_shoulder"]),
        "mid_hip": mean(coco["left_hip"], coco["right_hip"]),
    }
    mediapipe = coco | marks
    for side in ("left", "right"):
        mediapipe[f"{side}_pinky"] = joint[f"{side}_pinky1"]
        mediapipe[f"{side}_index"] = joint[f"{side}_index1"]
        mediapipe[f"{side}_thumb"] = joint[f"{side}_thumb2"]
        mediapipe[f"{side}_foot_index"] = coco[f"{side}_big_toe"]
    collars = mean(joint["left_collar"], joint["right_collar"])
    h36m = joint | {
        "pelvis": mean(joint["left_hip"], joint["right_hip"]),
        "spine": joint["spine2"],
        "thorax": mean(collars, joint["neck"]),
        "neck": mean(joint["jaw"], coco["nose"]),
        "head": marks["head_top"],
    }
    lsp = joint | {"head_top": marks["head_top"]}
    tables = {
        "coco17": (COCO17, coco), "coco23": (COCO17 + FEET, coco), "openpose25": (OPENPOSE25, openpose),
        "mediapipe33": (MEDIAPIPE33, mediapipe), "h36m17": (H36M17, h36m), "lsp14": (LSP14, lsp),
    }  # fmt: skip
    return {name: (names, np.stack([rows[n] for n in names])) for name, (names, rows) in tables.items()}


def coco_points(source: Source, people: People) -> Array:
    """(N,23,3) Anny's own keypoints of full bodies, left and right made exact mirror images."""
    points = np.einsum("kv,nvc->nkc", source.coco, people.vertices)
    other = [source.coco_names.index(mirrored_name(n)) for n in source.coco_names]
    return (points + points[:, other] * FLIP) / 2


def farthest_points(points: Array, count: int) -> np.ndarray:
    """(count,) farthest-point sampling, starting at the highest vertex; sorted and unique."""
    chosen = [int(points[:, 1].argmax())]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.sort(chosen)

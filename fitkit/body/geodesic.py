"""How far apart points of a body's surface are, along the surface.

A path along edges is straightened by flipping edges of an intrinsic triangulation until it is a geodesic (Sharp and
Crane, You Can Find Geodesic Paths in Triangle Meshes by Just Flipping Edges, SIGGRAPH Asia 2020), with potpourri3d. Its
length is exact for that path; another path around the body may be a little shorter. Against the exact algorithm of
Mitchell, Mount and Papadimitriou on the open body: half of the paths are the shortest, none of 160 was longer by more
than 1.1 %, none of 147 up to 15 cm long by more than 0.01 %. The heat method was off by up to 12 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.body.charts import SurfaceAddress
from fitkit.body.model import BodyData, BodyModel

# Nearer to an edge than this share of the triangle's height, a point is moved off it, and nearer to a corner onto it:
# micrometres, where a triangle without area would be no triangle.
_CLEAR = 1e-4


def geodesic_distances(
    body: BodyModel | BodyData,
    source: SurfaceAddress,
    target: SurfaceAddress,
    vertices: Float[Tensor, "V 3"] | None = None,
) -> Float[Tensor, "*batch"]:
    """The length of the shortest path along the surface, from each source to the target at the same place.

    Pieces of the body that touch nowhere (the eyes lie loose in the open body's head; no chart covers them) have no
    path between them: infinite. So is the distance to an address that is not valid. A few milliseconds a pair.

    Args:
        body: whose faces.
        source: `(...)` points of its surface.
        target: `(...)` points of its surface, as many.
        vertices: `(V, 3)` of the surface, metres; the body's template (mean shape, T-pose) by default, as everybody's
            distances are compared on one surface.

    Returns:
        `(...)` metres, in the dtype and on the device of `source.barycentric`.

    Raises:
        ValueError: shapes that do not belong together, faces that the body does not have, vertices that are not
            finite, or a surface on which three faces share an edge.
        ImportError: potpourri3d is not installed.
    """
    data = body.data if isinstance(body, BodyModel) else body
    faces = data.faces.astype(np.int64)
    if source.face.shape != target.face.shape:
        raise ValueError(
            f"{tuple(source.face.shape)} sources and {tuple(target.face.shape)} targets, expected pairs"
        )
    for name, one in (("source", source), ("target", target)):
        if one.face.numel() and not (0 <= int(one.face.min()) and int(one.face.max()) < len(faces)):
            raise ValueError(f"{name} has faces beyond the {len(faces)} of body {data.name}")
    points = data.v_template if vertices is None else vertices.detach().cpu().numpy()
    if points.shape != data.v_template.shape or not np.isfinite(points).all():
        raise ValueError(f"vertices {points.shape}, expected {data.v_template.shape} finite numbers, metres")
    valid = (source.valid & target.valid).reshape(-1).cpu().numpy()
    refined = _Refined(points.astype(np.float64), faces)
    a, b = (refined.add_all(one, valid) for one in (source, target))
    length = np.full(len(valid), np.inf)
    length[valid] = _lengths(refined, a, b)
    return torch.from_numpy(length).to(source.barycentric).view(source.face.shape)


class _Refined:
    """A triangle mesh to which points of its surface are added as vertices; the surface stays the same."""

    def __init__(self, vertices: npt.NDArray[np.float64], faces: npt.NDArray[np.int64]) -> None:
        self.vertices, self.faces = vertices, faces
        self.added: list[npt.NDArray[np.float64]] = []
        self.known: dict[tuple[int, bytes], int] = {}
        # Of each face that was cut: its pieces, as vertices and their weights in that face.
        self.pieces: dict[int, list[tuple[list[int], npt.NDArray[np.float64]]]] = {}

    def add_all(self, points: SurfaceAddress, valid: npt.NDArray[np.bool_]) -> list[int]:
        """The vertices that the valid ones of the points are."""
        face = points.face.reshape(-1).cpu().numpy()[valid]
        weights = points.barycentric.detach().reshape(-1, 3).cpu().numpy().astype(np.float64)[valid]
        for row, weight in zip(face.tolist(), weights, strict=True):
            if (row, weight.tobytes()) not in self.known:  # a point named twice is one
                self.known[row, weight.tobytes()] = self._add(row, weight)
        return [self.known[row, weight.tobytes()] for row, weight in zip(face.tolist(), weights, strict=True)]

    def _add(self, face: int, weights: npt.NDArray[np.float64]) -> int:
        pieces = self.pieces.setdefault(face, [(self.faces[face].tolist(), np.eye(3))])
        local = [np.linalg.solve(corners.T, weights) for _, corners in pieces]
        number = int(np.argmax([one.min() for one in local]))
        (names, corners), inside = pieces[number], local[number]
        if inside.max() > 1 - _CLEAR:
            return names[int(inside.argmax())]
        inside = inside.clip(_CLEAR)
        place = inside / inside.sum() @ corners
        new = len(self.vertices) + len(self.added)
        self.added.append(place @ self.vertices[self.faces[face]])
        pieces[number : number + 1] = [
            (
                [new if j == k else names[j] for j in range(3)],
                np.where(np.eye(3)[k][:, None] > 0, place, corners),
            )
            for k in range(3)
        ]
        return new

    def mesh(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Vertices and faces."""
        cut = [names for pieces in self.pieces.values() for names, _ in pieces]
        whole = np.delete(self.faces, list(self.pieces), axis=0)
        faces = np.concatenate([whole, np.array(cut, np.int64).reshape(-1, 3)])
        return np.concatenate([self.vertices, np.reshape(self.added, (-1, 3))]), faces


def _lengths(mesh: _Refined, sources: list[int], targets: list[int]) -> list[float]:
    """Between pairs of vertices."""
    vertices, faces = mesh.mesh()
    piece = _pieces(faces, len(vertices))
    solver = _solver(vertices, faces)
    lengths = []
    for a, b in zip(sources, targets, strict=True):
        if a == b:
            lengths.append(0.0)
        elif piece[a] != piece[b]:
            lengths.append(np.inf)
        else:
            path = np.asarray(solver.find_geodesic_path(a, b))
            lengths.append(float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum()))
    return lengths


def _pieces(faces: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """`(count,)` which connected piece each vertex belongs to."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_matrix((np.ones(len(edges), bool), edges.T), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _solver(vertices: npt.NDArray[np.float64], faces: npt.NDArray[np.int64]) -> Any:
    try:
        import potpourri3d
    except ImportError as error:
        raise ImportError(
            'distances along the surface take potpourri3d: pip install "fitkit-body[densepose]"'
        ) from error
    try:
        return potpourri3d.EdgeFlipGeodesicSolver(vertices, faces)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"this surface has no geodesics [{error}]; expected every vertex on a face, two faces at most on an edge"
        ) from error

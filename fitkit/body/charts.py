"""The surface in charts, as DensePose has it: a point of the surface <-> (chart, u, v).

A chart flattens a piece of the surface into the unit square; 24 of them cover the skin (Güler et al., DensePose: Dense
Human Pose Estimation In The Wild, CVPR 2018). Every body brings its own (u, v). Which part a chart belongs to is the
same on all of them, u and v are not: numbers made with the official charts say where on the body only on a body that
has these (`with_densepose_charts`), elsewhere no more than on which chart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from fitkit.body.model import BodyData, BodyModel
from fitkit.maps import PART_CHANNELS

CHART_NAMES = (
    *("torso_back", "torso_front", "right_hand", "left_hand", "left_foot", "right_foot"),
    *("right_upper_leg_back", "left_upper_leg_back", "right_upper_leg_front", "left_upper_leg_front"),
    *("right_lower_leg_back", "left_lower_leg_back", "right_lower_leg_front", "left_lower_leg_front"),
    *("left_upper_arm_back", "right_upper_arm_back", "left_upper_arm_front", "right_upper_arm_front"),
    *("left_lower_arm_back", "right_lower_arm_back", "left_lower_arm_front", "right_lower_arm_front"),
    *("right_head", "left_head"),
)
"""The 24 charts; chart number k is `CHART_NAMES[k - 1]`. Left and right are the person's own, back and front those of
the T-pose, palms down."""
CHART_PARTS = (1, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9, 8, 9, 10, 11, 10, 11, 12, 13, 12, 13, 14, 14)
"""Which of the 14 parts (`fitkit.maps.PART_NAMES`) each chart lies on, as DensePose numbers both."""

_CHARTS = len(CHART_NAMES) + 1
_PART_OF = np.array((0, *CHART_PARTS))
_CELLS = 64  # along each side of a chart; a power of two
# Pairs of a point and a triangle looked at together; at most 400 bytes each.
_AT_ONCE = 400_000
_WHERE = (
    "it comes with DensePose, under its own licence: https://dl.fbaipublicfiles.com/densepose/"
    "densepose_uv_data.tar.gz, fetched by DensePoseData/get_densepose_uv.sh of github.com/facebookresearch/DensePose"
)


@dataclass(frozen=True)
class SurfaceAddress:
    """Points of a body's surface, whatever its pose.

    Attributes:
        face: `(...)` row of the body's faces; 0 where there is no point.
        barycentric: `(..., 3)` weights of the face's corners; 0 where there is no point.
        distance: `(...)` in u and v, from what was asked for to this point: 0 inside the chart, more in a hole of it
            or beyond its border; infinite where there is no point.
        valid: `(...)` whether there is a point.
    """

    face: Int[Tensor, "*batch"]
    barycentric: Float[Tensor, "*batch 3"]
    distance: Float[Tensor, "*batch"]
    valid: Bool[Tensor, "*batch"]

    def on(self, vertices: Float[Tensor, "V 3"], faces: Integer[Tensor, "F 3"]) -> Float[Tensor, "*batch 3"]:
        """Where the points are on a posed body, metres; the origin where there is no point."""
        corners = vertices[faces.to(vertices.device, torch.int64)[self.face]]
        return (corners * self.barycentric.to(vertices)[..., None]).sum(-2)


class Charts:
    """The charts of one body, and the way there and back.

    Args:
        data: of a body with charts.

    Attributes:
        name: whose charts these are: "densepose" for the official ones, else the body's name.
        body: name of the body.
        faces: `(F, 3)` int64, of the body.
        charts: `(F,)` int64, 1..24; 0 where a face lies on no chart (inside of the mouth, eyes).
        uv: `(F, 3, 2)` float64 in [0, 1].
        chart_to_part: `(25,)` which of the 14 parts each chart belongs to, by the body itself; 0 for none.

    Raises:
        ValueError: a body without charts; the message says how to give SMPL its own.
    """

    def __init__(self, data: BodyData) -> None:
        if data.charts is None or data.chart_uv is None:
            raise ValueError(
                f"body {data.name} has no charts; for SMPL, read DensePose's own: with_densepose_charts(data, path)"
            )
        self.name, self.body = data.chart_set or data.name, data.name
        self.faces = torch.from_numpy(data.faces.astype(np.int64))
        self.charts = torch.from_numpy(data.charts.astype(np.int64))
        self.uv = torch.from_numpy(data.chart_uv.astype(np.float64))
        parts = _PART_OF[data.charts] if data.parts is None else data.parts
        votes = np.zeros((_CHARTS, PART_CHANNELS), np.int64)
        np.add.at(votes, (data.charts.astype(np.int64), parts.astype(np.int64)), 1)
        votes[0] = 0
        self.chart_to_part = torch.from_numpy(votes.argmax(1))
        self._finders: dict[torch.device, _Finder] = {}

    @staticmethod
    def of(body: BodyModel | BodyData) -> Charts:
        """The charts of a body; made once and kept with its numbers."""
        data = body.data if isinstance(body, BodyModel) else body
        kept = vars(data)  # not a field, so a copy with other charts makes its own
        if "_charts" not in kept:
            kept["_charts"] = Charts(data)
        made: Charts = kept["_charts"]
        return made

    def encode(
        self, face: Integer[Tensor, "*batch"], barycentric: Float[Tensor, "*batch 3"]
    ) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch 2"]]:
        """The chart and (u, v) of points of the surface.

        Args:
            face: `(...)` row of the body's faces; -1 for no point, as at the empty pixels of a raster.
            barycentric: `(..., 3)` weights of its corners.

        Returns:
            chart: `(...)` int64, 1..24; 0 off the charts.
            uv: `(..., 2)` in [0, 1]; 0 off the charts.

        Raises:
            ValueError: a face that the body does not have, or shapes that do not belong together.
        """
        if barycentric.shape != (*face.shape, 3):
            raise ValueError(
                f"face {tuple(face.shape)} with barycentric {tuple(barycentric.shape)}: expected (..., 3)"
            )
        if face.numel() and not (-1 <= int(face.min()) and int(face.max()) < len(self.faces)):
            raise ValueError(
                f"face {int(face.min())}..{int(face.max())}: expected rows 0..{len(self.faces) - 1} of body "
                f"{self.body}, or -1 for none"
            )
        row = face.to(torch.int64).clamp_min(0)
        chart = torch.where(face >= 0, self.charts.to(face.device)[row], 0)
        uv = (self.uv.to(face.device)[row] * barycentric.to(torch.float64)[..., None]).sum(-2)
        return chart, torch.where((chart > 0)[..., None], uv, 0).to(barycentric.dtype)

    def decode(self, chart: Integer[Tensor, "*batch"], uv: Float[Tensor, "*batch 2"]) -> SurfaceAddress:
        """The points of the surface with these (u, v).

        Where no triangle of the chart holds (u, v) - in a hole of it, or beyond its border - it is the nearest point
        of the chart, in u and v; `distance` says how far off. There is no point (`valid` is False) for a chart that
        is not one of 1..24 or that the body does not have, and for (u, v) that is not finite.

        Args:
            chart: `(...)` integers.
            uv: `(..., 2)`; in [0, 1] for what a network or an annotator says, outside works too and is slower.

        Returns:
            `(...)` points, in the dtype and on the device of `uv`.

        Raises:
            ValueError: shapes that do not belong together, or charts that are not integers.
        """
        if uv.shape != (*chart.shape, 2):
            raise ValueError(f"chart {tuple(chart.shape)} with uv {tuple(uv.shape)}: expected (..., 2)")
        if chart.is_floating_point() or chart.dtype == torch.bool:
            raise ValueError(f"chart of {chart.dtype}, expected integers")
        if uv.device not in self._finders:
            self._finders[uv.device] = _Finder.of(self.charts, self.uv).to(uv.device)
        with torch.no_grad():
            number, flat = (
                chart.to(uv.device, torch.int64).reshape(-1),
                uv.detach().to(torch.float64).reshape(-1, 2),
            )
            face, weights, distance = self._finders[uv.device].find(number, flat)
        shape, found = chart.shape, torch.isfinite(distance)
        return SurfaceAddress(
            face.view(shape),
            weights.to(uv.dtype).view(*shape, 3),
            distance.to(uv.dtype).view(shape),
            found.view(shape),
        )


@dataclass(frozen=True)
class _Finder:
    """Finds the nearest triangle of a chart: for every cell of a grid it knows all that can be nearest in there.

    Attributes:
        corners: `(n, 3, 2)` of the triangles on charts.
        face: `(n,)` their rows among the body's faces.
        inverse: `(n, 6)` see `_inverses`.
        start: `(25 * cells + 25 + 1,)` where the triangles of a cell begin; the last 25 "cells" are whole charts.
        item: `(m,)` the triangles, cell by cell.
    """

    corners: Tensor
    face: Tensor
    inverse: Tensor
    start: Tensor
    item: Tensor

    @staticmethod
    @torch.inference_mode(False)  # kept
    def of(charts: Tensor, uv: Tensor) -> _Finder:
        face = torch.nonzero(charts > 0)[:, 0]
        face = face[torch.argsort(charts[face], stable=True)]
        corners = uv[face]
        # Refined from whole charts on: only what can be nearest somewhere in a cell can be so in a quarter of it.
        cell, item, side = charts[face], torch.arange(len(face)), 1
        whole = item
        while side < _CELLS:
            cell, item, side = _quarters(cell, item, corners, side)
        counts = torch.bincount(
            torch.cat([cell, _CHARTS * side**2 + charts[face]]), minlength=_CHARTS * (side**2 + 1)
        )
        start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return _Finder(corners, face, _inverses(corners), start, torch.cat([item, whole]))

    def to(self, device: torch.device) -> _Finder:
        tables = self.corners, self.face, self.inverse, self.start, self.item
        return _Finder(*(one.to(device) for one in tables))

    def find(self, chart: Tensor, uv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(N,)` face, `(N, 3)` weights, `(N,)` distance; 0, 0, infinity where there is none."""
        face, weights = torch.zeros_like(chart), uv.new_zeros(len(uv), 3)
        distance = torch.full_like(uv[:, 0], torch.inf)
        known = (chart > 0) & (chart < _CHARTS) & torch.isfinite(uv).all(1)
        asked = torch.nonzero(known)[:, 0]
        square = uv[asked].clamp(0, 1)
        column, row = (square * _CELLS).long().clamp_max(_CELLS - 1).unbind(1)
        cell = (chart[asked] * _CELLS + row) * _CELLS + column
        cell = torch.where((square == uv[asked]).all(1), cell, _CHARTS * _CELLS**2 + chart[asked])
        counts = self.start[cell + 1] - self.start[cell]
        asked, cell, counts = asked[counts > 0], cell[counts > 0], counts[counts > 0]
        for some in _pieces(counts):
            triangle = self._pick(uv[asked[some]], cell[some], counts[some])
            w, away = _nearest(uv[asked[some]], self.corners[triangle])
            face[asked[some]], weights[asked[some]], distance[asked[some]] = self.face[triangle], w, away
        return face, weights, distance

    def _pick(self, uv: Tensor, cell: Tensor, counts: Tensor) -> Tensor:
        """`(N,)` the nearest triangle of those of each point's cell."""
        of, triangle = self._pairs(cell, counts)
        x, y, *turn = self.inverse[triangle].unbind(1)
        dx, dy = uv[:, 0][of] - x, uv[:, 1][of] - y
        b, c = turn[0] * dx + turn[1] * dy, turn[2] * dx + turn[3] * dy
        depth = torch.minimum(torch.minimum(b, c), 1 - b - c)
        depth = depth.nan_to_num(nan=-torch.inf)  # a triangle without area holds no point
        best = _highest(depth, of, len(uv))
        chosen, outside = triangle[best], torch.nonzero(~(depth[best] >= 0))[:, 0]
        if len(outside):
            of, triangle = self._pairs(cell[outside], counts[outside])
            away = _nearest(uv[outside[of]], self.corners[triangle])[1]
            chosen[outside] = triangle[_highest(-away, of, len(outside))]
        return chosen

    def _pairs(self, cell: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Each point with every triangle of its cell: the number of the point, and the triangle."""
        of = torch.repeat_interleave(counts)
        skip = self.start[cell] - (counts.cumsum(0) - counts)
        return of, self.item[skip[of] + torch.arange(len(of), device=of.device)]


def _quarters(cell: Tensor, item: Tensor, corners: Tensor, side: int) -> tuple[Tensor, Tensor, int]:
    """Cells half as large along each side, and the triangles that can be nearest to some point in each.

    A triangle can be only if it is no farther from the cell's middle than the nearest one and the cell's diameter.
    """
    chart, row, column = cell // side**2, cell // side % side, cell % side
    side *= 2
    quarter = torch.arange(4)
    rows, columns = (
        (2 * row[:, None] + quarter // 2).reshape(-1),
        (2 * column[:, None] + quarter % 2).reshape(-1),
    )
    cell, item = (chart.repeat_interleave(4) * side + rows) * side + columns, item.repeat_interleave(4)
    middle = (torch.stack([columns, rows], 1) + 0.5).to(corners.dtype) / side
    away = _nearest(middle, corners[item])[1]
    least = away.new_full((_CHARTS * side**2,), torch.inf).scatter_reduce(0, cell, away, "amin")
    near = away <= least[cell] + 2**0.5 / side + 1e-12
    cell, item = cell[near], item[near]
    order = torch.argsort(cell, stable=True)
    return cell[order], item[order], side


def _pieces(counts: Tensor) -> Iterator[slice]:
    """Slices of points that have at most `_AT_ONCE` triangles to look at among them (or are one point)."""
    ends = counts.cumsum(0).cpu()
    begin, done = 0, 0
    while begin < len(ends):
        end = max(int(torch.searchsorted(ends, done + _AT_ONCE, right=True)), begin + 1)
        yield slice(begin, end)
        begin, done = end, int(ends[end - 1])


def _highest(values: Tensor, of: Tensor, count: int) -> Tensor:
    """`(count,)` position of the highest value of each group, the first of equal ones."""
    best = values.new_full((count,), -torch.inf).scatter_reduce(0, of, values, "amax")
    hits = torch.nonzero(values == best[of])[:, 0]
    last = torch.full((count,), len(values) - 1, device=of.device)
    return last.scatter_reduce(0, of[hits], hits, "amin")


def _inverses(corners: Tensor) -> Tensor:
    """`(n, 6)` the first corner, and the matrix that takes an offset from it to the weights of the other two."""
    first, one, two = corners.unbind(1)
    (ax, ay), (bx, by) = (one - first).unbind(1), (two - first).unbind(1)
    area = ax * by - ay * bx
    turn = torch.stack([by, -bx, -ay, ax], 1) / torch.where(area == 0, torch.nan, area)[:, None]
    return torch.cat([first, turn], 1)


def _nearest(points: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """`(n, 3)` weights of the point of each triangle nearest to `points`, and `(n,)` its distance.

    Args:
        points: `(n, 2)`.
        corners: `(n, 3, 2)` of one triangle for each.
    """
    px, py = points.unbind(1)
    x, y = corners.unbind(2)
    sides, along, square = [], [], []
    for k in range(3):
        ax, ay = x[:, k], y[:, k]
        dx, dy = x[:, (k + 1) % 3] - ax, y[:, (k + 1) % 3] - ay
        ox, oy = px - ax, py - ay
        sides.append(dx * oy - dy * ox)
        t = ((ox * dx + oy * dy) / (dx * dx + dy * dy).clamp_min(1e-300)).clamp(0, 1)
        along.append(t)
        square.append((ox - t * dx) ** 2 + (oy - t * dy) ** 2)
    side = torch.stack(sides, 1)
    area = side.sum(1)
    inside = ((side >= 0).all(1) | (side <= 0).all(1)) & (area != 0)
    # Corner k lies opposite to edge k + 1.
    within = side[:, [1, 2, 0]] / torch.where(area != 0, area, 1)[:, None]
    least, edge = torch.stack(square, 1).min(1)
    t = torch.stack(along, 1).gather(1, edge[:, None])
    border = torch.zeros_like(within).scatter(1, edge[:, None], 1 - t).scatter(1, (edge[:, None] + 1) % 3, t)
    return torch.where(inside[:, None], within, border), torch.where(inside, 0, least.sqrt())


def densepose_charts(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The official charts of SMPL, from the user's own `UV_Processed.mat` of DensePose.

    Args:
        path: of the file (MATLAB 5), as published; read with SciPy.

    Returns:
        faces: `(F, 3)` int64, vertices of SMPL.
        charts: `(F,)` uint8, 1..24.
        chart_uv: `(F, 3, 2)` float32 in [0, 1].

    Raises:
        FileNotFoundError: no such file; the message says where it comes from.
        ImportError: SciPy is not installed.
        ValueError: not such a file; the message names the file, the field, what came and what was expected.
    """
    fields = _read_fields(Path(path))
    chart, triangles = fields["All_FaceIndices"].reshape(-1), fields["All_Faces"]
    u, v, vertex = (fields[name].reshape(-1) for name in ("All_U_norm", "All_V_norm", "All_vertices"))
    if triangles.ndim != 2 or triangles.shape[1] != 3 or len(chart) != len(triangles):
        raise ValueError(
            f"{path}: All_Faces {triangles.shape} with {len(chart)} All_FaceIndices, expected (F, 3) and one each"
        )
    if not len(u) == len(v) == len(vertex):
        raise ValueError(
            f"{path}: {len(u)} U, {len(v)} V and {len(vertex)} vertices, expected as many of each"
        )
    wanted = {"All_FaceIndices": (chart, 1, _CHARTS - 1), "All_Faces": (triangles, 1, len(u))}
    wanted |= {"All_vertices": (vertex, 1, 1 << 31), "All_U_norm": (u, 0, 1), "All_V_norm": (v, 0, 1)}
    for name, (values, low, high) in wanted.items():
        whole = name.endswith("norm") or np.array_equal(values, np.floor(values))
        if not values.size or not whole or not (values.min() >= low and values.max() <= high):
            kind = "numbers" if name.endswith("norm") else "integers"
            raise ValueError(f"{path}: {name} holds other values than {kind} from {low} to {high}")
    corner = triangles.astype(np.int64) - 1
    uv = np.stack([u, v], 1).astype(np.float32)
    return vertex.astype(np.int64)[corner] - 1, chart.astype(np.uint8), uv[corner]


def with_densepose_charts(data: BodyData, path: str | Path) -> BodyData:
    """SMPL with DensePose's official charts, from the user's own `UV_Processed.mat`.

    Args:
        data: of SMPL or SMPL+H (the file numbers their 6,890 vertices); see `read_smpl`.
        path: of the file.

    Returns:
        The same body with the file's order of faces, and charts, (u, v) and parts that belong to it.

    Raises:
        FileNotFoundError, ImportError: see `densepose_charts`.
        ValueError: see `densepose_charts`; or the file is of another mesh than the body.
    """
    faces, charts, uv = densepose_charts(path)
    vertices = len(data.v_template)
    if int(faces.max()) + 1 != vertices:
        raise ValueError(
            f"{path} is for {int(faces.max()) + 1} vertices, but body {data.name} has {vertices}"
        )
    known = _triangles(data.faces.astype(np.int64), vertices)
    if np.isin(_triangles(faces[:, ::-1], vertices), known).mean() > 0.5:  # seen from inside
        faces, uv = faces[:, ::-1].copy(), uv[:, ::-1].copy()
    elif np.isin(_triangles(faces, vertices), known).mean() <= 0.5:
        raise ValueError(f"{path}: most of its triangles are none of body {data.name}, expected SMPL's mesh")
    parts = _PART_OF[charts]
    return replace(
        data,
        faces=faces.astype(data.faces.dtype),
        charts=charts,
        chart_uv=uv,
        chart_set="densepose",
        parts=parts,
    )


def _triangles(faces: np.ndarray, vertices: int) -> np.ndarray:
    """`(F,)` a number for each triangle, the same from whichever corner on it is named; another if turned over."""
    first = (faces.argmin(1)[:, None] + np.arange(3)) % 3
    a, b, c = np.take_along_axis(faces, first, 1).T
    number: np.ndarray = (a * vertices + b) * vertices + c
    return number


def _read_fields(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} of DensePose's charts; {_WHERE}")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            f'{path} is a MATLAB file, which takes SciPy to read: pip install "fitkit-body[densepose]"'
        ) from error
    try:
        content: dict[str, Any] = loadmat(path)
    except Exception as error:  # a broken file, or one of a later MATLAB, makes SciPy raise almost anything
        raise ValueError(
            f"{path} is not a MATLAB 5 file [{type(error).__name__}: {error}]; {_WHERE}"
        ) from error
    fields = {}
    for name in ("All_FaceIndices", "All_Faces", "All_U_norm", "All_V_norm", "All_vertices"):
        values = content.get(name)
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
            got = "no such field" if values is None else f"{type(values).__name__}"
            raise ValueError(f"{path}: {name}: {got}, expected an array of numbers; {_WHERE}")
        fields[name] = values
    return fields

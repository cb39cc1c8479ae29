"""Exact z-buffer: for every pixel the nearest face, its person, its depth and where on the face the pixel lies.

Nothing here is differentiable; it answers questions of visibility and draws pictures.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fitkit.camera import Camera

Array: TypeAlias = npt.NDArray[Any] | Tensor

# Rows of triangles, and pixels of rows, handled at once; at most 300 bytes each, so below 160 MB.
_AT_ONCE = 500_000
# A pixel centre this far outside an edge (in barycentric units) still counts as inside, so that rounding can
# never open a crack between two faces which share the edge.
_EDGE_SLACK = 1e-9
# Twice the area, in square pixels, below which rounding decides which side of its edges a pixel lies on.
_NO_AREA = 1e-8
_EMPTY = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Raster:
    """What is seen at each pixel: of one picture (H, W), or of one picture per person (B, H, W).

    Attributes:
        depth: (..., H, W) float32, z of the visible surface at the pixel centre, metres; inf where nothing is seen.
        face: (..., H, W) int64, row of `faces` that is visible; -1 where nothing is seen.
        person: (..., H, W) int64, which of the people it belongs to; -1 where nothing is seen.
        barycentric: (..., H, W, 3) float32, weights of the face's three corners on the surface (corrected for
            perspective, they add up to one); 0 where nothing is seen.
    """

    depth: Tensor
    face: Tensor
    person: Tensor
    barycentric: Tensor

    @property
    def mask(self) -> Tensor:
        """(..., H, W) bool: True where some body is seen."""
        return self.face >= 0

    def interpolate(self, values: Array, faces: Array) -> Tensor:
        """Carry values at the vertices over to the pixels.

        Args:
            values: (N, V, C) or (V, C), one value per vertex of each person.
            faces: (F, 3), the faces that were rasterised.

        Returns:
            (..., H, W, C), 0 where nothing is seen.
        """
        table = torch.as_tensor(values, device=self.depth.device)
        table = table[None] if table.ndim == 2 else table
        corners = torch.as_tensor(faces, device=self.depth.device, dtype=torch.int64)
        seen = self.mask
        out = table.new_zeros((*self.depth.shape, table.shape[-1]))
        rows = corners[self.face[seen]]
        weights = self.barycentric[seen].to(table.dtype)
        out[seen] = (table[self.person[seen][:, None], rows] * weights[..., None]).sum(1)
        return out


@torch.no_grad()
def rasterize(
    vertices: Array,
    faces: Array,
    focal: Array | tuple[float, float],
    center: Array | tuple[float, float],
    width: int,
    height: int,
    near: float = 0.05,
) -> Raster:
    """Find the nearest face at every pixel, over all people together.

    The centre of the pixel in column `i` and row `j` is at `(i + 0.5, j + 0.5)`. Both sides of a face are seen.
    A face that reaches nearer than `near`, or whose corners are not all finite, is left out whole. Of two faces
    at the same depth (to float32) the one of the first person and the lower row is seen, on any device.

    Args:
        vertices: (N, V, 3) or (V, 3), metres, camera frame (x right, y down, z forward); array or tensor. The
            work is done on the tensor's device, in float64.
        faces: (F, 3) integers, shared by all people.
        focal: (2,) focal lengths in pixels.
        center: (2,) principal point in pixels.
        width: pixels.
        height: pixels.
        near: metres.

    Returns:
        The picture as a `Raster`, on the device of `vertices`.

    Raises:
        ValueError: a shape is wrong, a face names a vertex that does not exist, or the size is not positive.
    """
    points, corners = _checked_mesh(vertices, faces)
    _check_view(width, height, near)
    people = len(points)
    f, c = _pair(focal, "focal", points.device), _pair(center, "center", points.device)
    view = _View(f.expand(people, 2), c.expand(people, 2), width, height, near)
    # Importing Warp takes longer than one picture does without it.
    kernels = _kernels(points.device) if "warp" in sys.modules else None
    picture = torch.zeros(people, dtype=torch.int64, device=points.device)
    return _draw(points, corners, view, picture, (), kernels)


@torch.no_grad()
def rasterize_each(vertices: Array, faces: Array, camera: Camera, near: float = 0.05) -> Raster:
    """Find the nearest face at every pixel of each person's own picture; see `rasterize`.

    Args:
        vertices: (B, V, 3) metres, camera frame; array or tensor.
        faces: (F, 3) integers, shared by all people.
        camera: B rows; its width and height are those of the pictures.
        near: metres.

    Returns:
        B pictures as one `Raster`, with a leading batch axis; `person` is the row of the picture.

    Raises:
        ValueError: a shape is wrong, a face names a vertex that does not exist, or the camera has other rows.
    """
    points, corners = _checked_mesh(vertices, faces)
    if len(camera) != len(points):
        raise ValueError(f"camera of {len(camera)} rows for {len(points)} people: expected as many")
    _check_view(camera.width, camera.height, near)
    f, c = camera.focal.detach().to(points), camera.center.detach().to(points)
    if not bool(torch.isfinite(f).all() and torch.isfinite(c).all()):
        raise ValueError("camera: focal and center must be finite pixels")
    view = _View(f, c, camera.width, camera.height, near)
    pictures = torch.arange(len(points), device=points.device)
    return _draw(points, corners, view, pictures, (len(points),), _kernels(points.device))


@dataclass(frozen=True)
class _View:
    """What the people are seen with: focal length and centre (N, 2) of each, float64."""

    focal: Tensor
    center: Tensor
    width: int
    height: int
    near: float


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """The same z-buffer in Warp, where it is installed and has the device."""
    if device.type not in ("cpu", "cuda"):
        return None
    try:
        from fitkit.render import _warp_hard
    except Exception:  # a broken installation of something that is not needed
        return None
    return _warp_hard


def _draw(
    points: Tensor,
    corners: Tensor,
    view: _View,
    picture: Tensor,
    batch: tuple[int, ...],
    kernels: ModuleType | None,
) -> Raster:
    """People (N, V, 3), each in the `picture` (N,) it belongs to, as one picture or as a batch of them."""
    pixels, faces = view.width * view.height, max(len(corners), 1)
    keys = torch.full((math.prod(batch), pixels), _EMPTY, dtype=torch.int64, device=points.device)
    if kernels is not None:
        limits = (view.near, _NO_AREA, _EDGE_SLACK)
        kernels.nearest(points, corners, view.focal, view.center, picture, keys, view.width, limits)
    else:
        triangles = points[:, corners].reshape(-1, 3, 3)  # row = person * F + face
        usable = (torch.isfinite(triangles).all(-1) & (triangles[..., 2] >= view.near)).all(-1)
        kept = torch.nonzero(usable)[:, 0]
        screen = _project(triangles[kept], kept, view, kept // faces)
        _nearest(keys.view(-1), screen, picture[screen.row // faces] * pixels, view.width)
    return _resolve(keys.view(-1), points, corners, view, batch)


def _checked_mesh(vertices: Array, faces: Array) -> tuple[Tensor, Tensor]:
    """Vertices as (N, V, 3) float64 and faces as (F, 3) int64 on one device."""
    points = torch.as_tensor(vertices).detach().to(torch.float64)
    points = points[None] if points.ndim == 2 else points
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"vertices must have shape (N, V, 3) or (V, 3), got {tuple(points.shape)}")
    corners = torch.as_tensor(faces, device=points.device)
    if corners.ndim != 2 or corners.shape[-1] != 3 or corners.is_floating_point():
        raise ValueError(
            f"faces must be integers of shape (F, 3), got {tuple(corners.shape)} {corners.dtype}"
        )
    corners = corners.to(torch.int64)
    if corners.numel() and not (0 <= int(corners.min()) and int(corners.max()) < points.shape[1]):
        raise ValueError(
            f"faces must name vertices 0..{points.shape[1] - 1}, got {int(corners.min())}..{int(corners.max())}"
        )
    if points.shape[0] * len(corners) >= 2**31:
        raise ValueError(f"at most 2**31 faces in all, got {points.shape[0]} people of {len(corners)} faces")
    return points, corners


def _check_view(width: int, height: int, near: float) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"the picture must be at least 1 x 1 pixels, got width={width}, height={height}")
    if not near > 0:
        raise ValueError(f"near must be a positive distance in metres, got {near}")


def _pair(value: Array | tuple[float, float], name: str, device: torch.device) -> Tensor:
    pair = torch.as_tensor(value, dtype=torch.float64, device=device)
    if tuple(pair.shape) != (2,) or not bool(torch.isfinite(pair).all()):
        raise ValueError(f"{name} must be two finite numbers in pixels, got {value}")
    return pair


@dataclass(frozen=True)
class _Screen:
    """The T triangles that reach the picture, as planes over the pixels."""

    edges: Tensor  # (T, 3, 3): barycentric weight of each corner as a x + b y + d
    inverse_z: Tensor  # (T, 3): 1/z likewise, which is exactly a plane on the screen
    box: Tensor  # (T, 4) int64: first and last column, first and last row
    row: Tensor  # (T,) int64: person * F + face


def _project(triangles: Tensor, row: Tensor, view: _View, person: Tensor) -> _Screen:
    z = triangles[..., 2]
    xy = triangles[..., :2] / z[..., None] * view.focal[person][:, None] + view.center[person][:, None]
    size = torch.tensor([view.width, view.height], dtype=torch.float64, device=xy.device)
    first = (xy.amin(1) - 0.5).ceil().clamp_min(0)
    last = torch.minimum((xy.amax(1) - 0.5).floor(), size - 1)
    p0, p1, p2 = xy.unbind(1)
    area = (p1[:, 0] - p0[:, 0]) * (p2[:, 1] - p0[:, 1]) - (p1[:, 1] - p0[:, 1]) * (p2[:, 0] - p0[:, 0])
    # Far outside the picture a triangle is dropped before any integer is made of its (possibly huge) pixels.
    visible = (first <= last).all(-1) & (area.abs() > _NO_AREA)
    xy, z, area, first, last = xy[visible], z[visible], area[visible], first[visible], last[visible]

    begin, end = xy[:, [1, 2, 0]], xy[:, [2, 0, 1]]  # the edge opposite each corner
    a = (begin[..., 1] - end[..., 1]) / area[:, None]
    b = (end[..., 0] - begin[..., 0]) / area[:, None]
    edges = torch.stack([a, b, -(a * begin[..., 0] + b * begin[..., 1])], dim=-1)
    box = torch.stack([first[:, 0], last[:, 0], first[:, 1], last[:, 1]], dim=-1).to(torch.int64)
    return _Screen(edges, (edges / z[..., None]).sum(1), box, row[visible])


def _nearest(keys: Tensor, screen: _Screen, offset: Tensor, width: int) -> None:
    """Lower the keys (P * H * W,) of the pixels that the triangles cover, in place.

    A key has the float32 bits of the depth in the high word and the triangle's number in the low word. Positive
    floats sort like their bits, so one integer minimum finds the nearest depth and its triangle at once, the same on
    every device and in any order. Triangles are cut into runs of pixels along the rows.

    Args:
        keys: of P pictures.
        screen: T triangles.
        offset: (T,) of the key of the first pixel of each triangle's picture.
        width: pixels.
    """
    for of, nth in _expand(screen.box[:, 3] - screen.box[:, 2] + 1):
        y = screen.box[of, 2] + nth
        x, length = _spans(screen.edges[of], screen.box[of], y)
        plane = screen.inverse_z[of]
        slope, triangle = plane[:, 0], screen.row[of]
        start = slope * (x + 0.5) + plane[:, 1] * (y + 0.5) + plane[:, 2]
        pixel = offset[of] + y * width + x
        for run, step in _expand(length):
            depth = torch.addcmul(start[run], slope[run], step).reciprocal().to(torch.float32)
            key = (depth.view(torch.int32).to(torch.int64) << 32) | triangle[run]
            _lower(keys, pixel[run] + step, key)


def _spans(edges: Tensor, box: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """First column of each triangle in its row `y` of pixels, and how many columns from there (perhaps none)."""
    a = edges[..., 0]
    rest = edges[..., 1] * (y + 0.5)[:, None] + edges[..., 2] + _EDGE_SLACK
    crossing = -rest / a  # of a level edge: +-inf or NaN, not used
    low = torch.where(a > 0, crossing, -torch.inf).amax(1)
    high = torch.where(a < 0, crossing, torch.inf).amin(1)
    outside = ((a == 0) & (rest < 0)).any(1)
    first = torch.maximum((low - 0.5).ceil(), box[:, 0].to(low)).to(torch.int64)
    last = torch.minimum((high - 0.5).floor(), box[:, 1].to(low)).to(torch.int64)
    return first, torch.where(outside, 0, (last - first + 1).clamp_min(0))


def _expand(counts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Number things 0 .. counts[i] - 1 for every i: yields (i, number) in pieces of bounded length."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    for low in range(0, total, _AT_ONCE):
        high = min(low + _AT_ONCE, total)
        bounds = torch.tensor([low, high - 1], device=counts.device)
        begin, end = torch.searchsorted(ends, bounds, right=True).tolist()
        start = ends[begin : end + 1] - counts[begin : end + 1]
        here = ends[begin : end + 1].clamp_max(high) - start.clamp_min(low)
        of = torch.repeat_interleave(here, output_size=high - low)
        number = torch.arange(low, high, device=counts.device) - start[of]
        yield of + begin, number


def _lower(keys: Tensor, pixel: Tensor, key: Tensor) -> None:
    """keys[pixel] = min(keys[pixel], key), in place, for pixels named any number of times."""
    if keys.device.type == "cpu":
        np.minimum.at(keys.numpy(), pixel.numpy(), key.numpy())  # several times as fast as scatter_reduce_
    else:
        keys.scatter_reduce_(0, pixel, key, reduce="amin")


def _resolve(keys: Tensor, points: Tensor, corners: Tensor, view: _View, batch: tuple[int, ...]) -> Raster:
    """Unpack the keys and work out the surface point under each covered pixel."""
    device, total = keys.device, len(keys)
    depth = torch.full((total,), torch.inf, dtype=torch.float32, device=device)
    face = torch.full((total,), -1, dtype=torch.int64, device=device)
    person = face.clone()
    barycentric = torch.zeros((total, 3), dtype=torch.float32, device=device)
    for seen in torch.nonzero(keys != _EMPTY)[:, 0].split(_AT_ONCE):
        row = keys[seen] & 0xFFFFFFFF
        depth[seen] = (keys[seen] >> 32).to(torch.int32).view(torch.float32)
        face[seen] = row % len(corners)
        person[seen] = who = torch.div(row, len(corners), rounding_mode="floor")
        pixel = seen % (view.width * view.height)
        at = (
            torch.stack([pixel % view.width, torch.div(pixel, view.width, rounding_mode="floor")], dim=-1)
            + 0.5
        )
        ray = (at - view.center[who]) / view.focal[who]
        barycentric[seen] = _weights(points[who[:, None], corners[face[seen]]], ray).to(torch.float32)
    shape = (*batch, view.height, view.width)
    return Raster(depth.view(shape), face.view(shape), person.view(shape), barycentric.view(*shape, 3))


def _weights(corners: Tensor, ray: Tensor) -> Tensor:
    """(P, 3) barycentric weights of the point where the ray (P, 2: x/z, y/z) meets the triangle (P, 3, 3).

    They are in the ratio of the signed volumes which the ray spans with the opposite edges.
    """
    x, y, z = corners.unbind(-1)
    one, two = [1, 2, 0], [2, 0, 1]
    volumes = (
        ray[:, :1] * (y[:, one] * z[:, two] - z[:, one] * y[:, two])
        + ray[:, 1:] * (z[:, one] * x[:, two] - x[:, one] * z[:, two])
        + (x[:, one] * y[:, two] - y[:, one] * x[:, two])
    )
    weights = (volumes / volumes.sum(-1, keepdim=True)).clamp_min(0)
    return weights / weights.sum(-1, keepdim=True)

"""The z-buffer in Warp: one thread per triangle, with the arithmetic of `fitkit.render.hard`, in float64."""

from __future__ import annotations

import sys
from typing import no_type_check

import torch
import warp as wp
from torch import Tensor

from fitkit.render._warp_launch import Launcher, array

wp.set_module_options({"enable_backward": False})

# `no_type_check`: the annotations of kernels are Warp's own language.


@no_type_check
@wp.func
def _plane(begin: wp.vec3d, end: wp.vec3d, area: wp.float64):
    """Barycentric weight of the corner opposite an edge, as a x + b y + d."""
    a = (begin[1] - end[1]) / area
    b = (end[0] - begin[0]) / area
    return wp.vec3d(a, b, -(a * begin[0] + b * begin[1]))


@no_type_check
@wp.func
def _on_screen(p: wp.vec3d, f: wp.vec2d, c: wp.vec2d):
    return wp.vec3d(p[0] / p[2] * f[0] + c[0], p[1] / p[2] * f[1] + c[1], p[2])


@no_type_check
@wp.func
def _narrow(span: wp.vec2d, edge: wp.vec3d, y: wp.float64, slack: wp.float64):
    """The part of a row of pixels, from .. to, that lies inside an edge."""
    zero = wp.float64(0.0)
    rest = edge[1] * y + edge[2] + slack
    low = span[0]
    high = span[1]
    if edge[0] > zero:
        low = wp.max(low, -rest / edge[0])
    elif edge[0] < zero:
        high = wp.min(high, -rest / edge[0])
    elif rest < zero:
        high = low - wp.float64(2.0)
    return wp.vec2d(low, high)


@no_type_check
@wp.kernel
def lay(
    points: wp.array2d(dtype=wp.vec3d),
    faces: wp.array(dtype=wp.vec3i),
    focal: wp.array(dtype=wp.vec2d),
    center: wp.array(dtype=wp.vec2d),
    pictures: wp.array(dtype=int),
    size: wp.vec2i,
    limits: wp.vec3d,
    keys: wp.array2d(dtype=wp.int64),
    first_person: int,
):
    """Lower the keys of the pixels a triangle covers to its own. `limits`: least depth, least area, slack of edges."""
    n, f = wp.tid()
    n = n + first_person
    p0 = points[n, faces[f][0]]
    p1 = points[n, faces[f][1]]
    p2 = points[n, faces[f][2]]
    least = wp.min(wp.min(p0, p1), p2)
    if not (wp.isfinite(p0) and wp.isfinite(p1) and wp.isfinite(p2)):
        return
    if least[2] < limits[0]:
        return
    p0 = _on_screen(p0, focal[n], center[n])
    p1 = _on_screen(p1, focal[n], center[n])
    p2 = _on_screen(p2, focal[n], center[n])
    area = (p1[0] - p0[0]) * (p2[1] - p0[1]) - (p1[1] - p0[1]) * (p2[0] - p0[0])
    half = wp.float64(0.5)
    least = wp.min(wp.min(p0, p1), p2)
    most = wp.max(wp.max(p0, p1), p2)
    x0 = wp.max(wp.ceil(least[0] - half), wp.float64(0.0))
    x1 = wp.min(wp.floor(most[0] - half), wp.float64(size[0] - 1))
    y0 = wp.max(wp.ceil(least[1] - half), wp.float64(0.0))
    y1 = wp.min(wp.floor(most[1] - half), wp.float64(size[1] - 1))
    if x0 > x1 or y0 > y1 or not wp.abs(area) > limits[1]:
        return
    e0 = _plane(p1, p2, area)
    e1 = _plane(p2, p0, area)
    e2 = _plane(p0, p1, area)
    inverse = e0 / p0[2] + e1 / p1[2] + e2 / p2[2]
    triangle = wp.int64(n) * wp.int64(faces.shape[0]) + wp.int64(f)
    for row in range(int(y0), int(y1) + 1):
        y = wp.float64(row) + half
        span = wp.vec2d(x0 + half, x1 + half)
        span = _narrow(span, e0, y, limits[2])
        span = _narrow(span, e1, y, limits[2])
        span = _narrow(span, e2, y, limits[2])
        first = wp.ceil(span[0] - half)
        last = wp.floor(span[1] - half)
        start = inverse[0] * (first + half) + inverse[1] * y + inverse[2]
        if first <= last:
            for column in range(int(first), int(last) + 1):
                over = start + inverse[0] * (wp.float64(column) - first)
                bits = wp.int64(wp.cast(wp.float32(wp.float64(1.0) / over), wp.int32))
                key = (bits << wp.int64(32)) | triangle
                wp.atomic_min(keys, pictures[n], row * size[0] + column, key)


def nearest(
    points: Tensor,
    faces: Tensor,
    focal: Tensor,
    center: Tensor,
    pictures: Tensor,
    keys: Tensor,
    width: int,
    limits: tuple[float, float, float],
) -> None:
    """Lower `keys` in place.

    Args:
        points: (N, V, 3) float64, metres.
        faces: (F, 3).
        focal: (N, 2) float64.
        center: (N, 2) float64.
        pictures: (N,) the picture each person is drawn into.
        keys: (P, H * W) int64.
        width: pixels.
        limits: least depth, least area, slack of the edges.
    """
    launch = Launcher(sys.modules[__name__], points.device)
    people = len(points)
    inputs = [
        array(points, wp.vec3d),
        array(faces.to(torch.int32), wp.vec3i),
        array(focal, wp.vec2d),
        array(center, wp.vec2d),
        array(pictures.to(torch.int32)),
        wp.vec2i(width, keys.shape[1] // width),
        wp.vec3d(*limits),
        array(keys),
    ]
    # People in pictures of their own can be drawn side by side.
    apart = len(keys) == people
    pieces = [(n, 1) for n in range(people)] if apart and launch.threads > 1 else [(0, people)]
    launch.each(lay, [((count, len(faces)), [*inputs, first]) for first, count in pieces])

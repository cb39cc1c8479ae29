"""Shaded pictures of bodies: head light and a lamp from above, smooth normals, antialiased edges."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fitkit.render.hard import rasterize
from fitkit.show.inputs import FloatArray, IntArray, Picture, vertex_normals

# Towards the lamp, camera frame: above, left of and behind the camera.
_LAMP = np.array([-0.45, -0.75, -0.5]) / np.linalg.norm([-0.45, -0.75, -0.5])
_AMBIENT, _HEAD, _KEY, _GLOSS = 0.30, 0.42, 0.36, 0.12
# Rays per pixel along each side.
_SAMPLES = 2


def shade(
    bodies: FloatArray,
    faces: IntArray,
    colors: Picture,
    focal: FloatArray,
    center: FloatArray,
    width: int,
    height: int,
) -> npt.NDArray[np.float32]:
    """Draw bodies, nearest in front, on a transparent ground.

    Args:
        bodies: `(B, V, 3)` metres, camera frame.
        faces: `(F, 3)`.
        colors: `(B, 3)` RGB 0..255.
        focal: `(2,)` pixels.
        center: `(2,)` pixels.
        width: of the picture, pixels.
        height: of the picture, pixels.

    Returns:
        `(height, width, 4)` float32: colour 0..255 already multiplied by coverage, and coverage 0..1.
    """
    picture = np.zeros((height, width, 4), np.float32)
    left, top, right, bottom = window(bodies, focal, center, width, height)
    if left >= right or top >= bottom:
        return picture
    columns, rows = (right - left) * _SAMPLES, (bottom - top) * _SAMPLES
    f, c = focal * _SAMPLES, (center - [left, top]) * _SAMPLES
    raster = rasterize(bodies, faces, f, c, columns, rows)
    seen = raster.mask
    normals = raster.interpolate(vertex_normals(bodies, faces).astype(np.float32), faces)[seen].numpy()
    row, column = (index.numpy() for index in torch.nonzero(seen, as_tuple=True))
    toward = np.stack(
        [(c[0] - column - 0.5) / f[0], (c[1] - row - 0.5) / f[1], np.full(len(row), -1.0)], axis=-1
    )
    toward = (toward / np.linalg.norm(toward, axis=-1, keepdims=True)).astype(np.float32)
    paint = colors[raster.person[seen].numpy()].astype(np.float32)

    fine = np.zeros((rows, columns, 4), np.float32)
    fine[seen.numpy(), :3] = _light(paint, normals, toward)
    fine[seen.numpy(), 3] = 1.0
    blocks = fine.reshape(bottom - top, _SAMPLES, right - left, _SAMPLES, 4)
    picture[top:bottom, left:right] = blocks.mean(axis=(1, 3))
    return picture


def _light(
    paint: npt.NDArray[np.float32], normals: npt.NDArray[np.float32], toward: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(P, 3) colours 0..255 of surface points with normals and unit vectors towards the viewer."""
    facing = (normals * toward).sum(-1, keepdims=True)
    normals = normals * np.where(facing < 0, np.float32(-1), np.float32(1))  # a mesh may be wound either way
    facing = np.abs(facing)
    key = np.clip(normals @ _LAMP.astype(np.float32), 0, None)[:, None]
    gloss = np.clip(2 * facing * key - key * 0.2, 0, 1) ** 2
    gloss = (gloss * gloss * gloss) ** 2  # to the twelfth; NumPy's own power is slow
    lit: npt.NDArray[np.float32] = paint * (_AMBIENT + _HEAD * facing + _KEY * key) + 255.0 * _GLOSS * gloss
    return lit.clip(0, 255)


def window(
    bodies: FloatArray, focal: FloatArray, center: FloatArray, width: int, height: int
) -> tuple[int, int, int, int]:
    """The part of the picture that the bodies can reach: left, top, right, bottom (pixels, end exclusive)."""
    points = bodies[np.isfinite(bodies).all(-1) & (bodies[..., 2] > 1e-3)]
    if not len(points):
        return 0, 0, 0, 0
    xy = points[:, :2] / points[:, 2:] * focal + center
    low = np.clip(np.floor(xy.min(0)), 0, [width, height])
    high = np.clip(np.ceil(xy.max(0)), 0, [width, height])
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])

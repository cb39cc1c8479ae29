"""What the drawing functions take: plain arrays or tensors, checked once, and one colour per person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fitkit import render

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
Picture: TypeAlias = npt.NDArray[np.uint8]
ArrayLike: TypeAlias = npt.NDArray[Any] | Tensor | Sequence[Any]
BodiesLike: TypeAlias = ArrayLike

# Told apart by most colour-blind readers (after Okabe and Ito, lightened), and by none mistaken for skin or grass.
_PALETTE = (
    (104, 168, 226),
    (238, 164, 72),
    (92, 190, 160),
    (220, 120, 172),
    (232, 212, 92),
    (150, 134, 220),
    (226, 116, 92),
    (132, 200, 220),
)


def person_colors(count: int) -> Picture:
    """One colour per person, `(count, 3)` RGB 0..255; after eight people they come round again.

    >>> person_colors(2).tolist()
    [[104, 168, 226], [238, 164, 72]]
    """
    return np.array([_PALETTE[k % len(_PALETTE)] for k in range(count)], np.uint8).reshape(count, 3)


def as_array(value: ArrayLike) -> npt.NDArray[np.generic]:
    """The numbers of an array, a tensor on any device, or nested lists."""
    if isinstance(value, Tensor):
        return np.asarray(value.detach().cpu().numpy())
    return np.asarray(value)


def as_bodies(vertices: BodiesLike) -> FloatArray:
    """Vertices of all people as `(B, V, 3)` float64.

    Args:
        vertices: `(B, V, 3)`, `(V, 3)`, or a list of `(V, 3)`, metres, camera frame.

    Raises:
        ValueError: another shape, or people of different numbers of vertices.
    """
    if isinstance(vertices, (list, tuple)):
        each = [as_array(one) for one in vertices]
        if len({one.shape for one in each}) > 1:
            raise ValueError(f"vertices of all people must have one shape, got {[one.shape for one in each]}")
        bodies = np.stack(each) if each else np.zeros((0, 0, 3))
    else:
        bodies = as_array(vertices)
    bodies = bodies[None] if bodies.ndim == 2 else bodies
    if bodies.ndim != 3 or bodies.shape[-1] != 3:
        raise ValueError(f"vertices must have shape (B, V, 3) or (V, 3), got {bodies.shape}")
    return bodies.astype(np.float64)


def as_faces(faces: ArrayLike) -> IntArray:
    """Triangles as `(F, 3)` int64.

    Raises:
        ValueError: another shape, or not integers.
    """
    table = as_array(faces)
    if table.ndim != 2 or table.shape[-1] != 3 or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"faces must be integers of shape (F, 3), got {table.shape} {table.dtype}")
    return table.astype(np.int64)


def as_photo(photo: ArrayLike) -> Picture:
    """A photo as `(H, W, 3)` uint8.

    Raises:
        ValueError: another shape or type.
    """
    picture = as_array(photo)
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"photo must be (H, W, 3) uint8 RGB, got {picture.shape} {picture.dtype}")
    return np.ascontiguousarray(picture, dtype=np.uint8)


def as_pair(value: ArrayLike, name: str) -> FloatArray:
    """A focal length or a principal point as `(2,)` float64, pixels.

    Args:
        value: `(2,)`, or `(B, 2)` with one and the same row for all people of the photo.
        name: what to call it in the error.

    Raises:
        ValueError: another shape, rows that differ, or numbers that are not finite.
    """
    pair = as_array(value).astype(np.float64)
    if pair.ndim == 2 and len(pair) and pair.shape[1] == 2:
        if np.ptp(pair, axis=0).max() > 1e-3:
            raise ValueError(f"{name} must be the same for all people of one photo, got {pair.tolist()}")
        pair = pair[0]
    if pair.shape != (2,) or not np.isfinite(pair).all():
        raise ValueError(f"{name} must be two finite numbers in pixels, got {pair.tolist()}")
    return pair


def as_colors(colors: ArrayLike | None, count: int) -> Picture:
    """One RGB colour per person, 0..255 integers or 0..1 floats; the palette where none is given.

    Raises:
        ValueError: not `(count, 3)`, or out of range.
    """
    if colors is None:
        return person_colors(count)
    table = as_array(colors)
    table = np.broadcast_to(table, (count, 3)) if table.shape == (3,) else table
    if table.shape != (count, 3):
        raise ValueError(f"colors must have shape ({count}, 3), one per person, got {table.shape}")
    if np.issubdtype(table.dtype, np.floating):
        table = np.round(table.astype(np.float64) * 255.0)
    if table.size and not (0 <= table.min() and table.max() <= 255):
        raise ValueError("colors must be 0..255 integers or 0..1 floats")
    return table.astype(np.uint8)


def vertex_normals(bodies: FloatArray, faces: IntArray) -> FloatArray:
    """Smooth unit normals `(B, V, 3)`: the mean of the faces around each vertex, weighted by their area."""
    points = torch.from_numpy(np.ascontiguousarray(bodies))
    return np.asarray(render.vertex_normals(points, torch.from_numpy(faces)).numpy())

"""What every back end of the soft rasteriser is given, and the constants that define the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Cover of a face below which a pixel does not belong to it; pytorch3d's default blur radius is made from it too.
LEAST_COVER = 1e-4
# Weight of the black background beside the nearest face, whose weight is its cover: pytorch3d's floor.
BACKGROUND = 1e-10
# A face whose least height is below this (pixels) is seen from the side: what it covers would be rounding alone,
# and the derivatives of its barycentric weights, which are the inverse of the height, would drown all others.
THINNEST = 1e-4
# Corners farther out than this (pixels, and metres) are of no picture; squares of them still are numbers.
FARTHEST_PIXEL, FARTHEST = 1e7, 1e6


@dataclass(frozen=True)
class FaceLabels:
    """One attribute channel per label, 1 on the faces with this label and 0 on all others: the quick path.

    Attributes:
        labels: `(F,)` integers in 0..count-1; -1 for a face that hides others and has no channel of its own.
        count: of channels.

    Raises:
        ValueError: another shape or dtype, or (on the CPU; a check would make a GPU wait) a label out of range.
    """

    labels: Tensor
    count: int

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or self.labels.is_floating_point() or self.labels.dtype == torch.bool:
            shape, dtype = tuple(self.labels.shape), self.labels.dtype
            raise ValueError(f"labels must be integers of shape (F,), got {shape} {dtype}")
        if self.count < 0:
            raise ValueError(f"labels: count must not be negative, got {self.count}")
        if self.labels.numel() and self.labels.device.type == "cpu":
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < -1 or high >= self.count:
                raise ValueError(f"labels must be -1..{self.count - 1}, got {low}..{high}")


@dataclass(frozen=True)
class Scene:
    """Bodies on the screen, one per picture.

    Attributes:
        corners: `(B, V, 3)` float64, column and row in pixels, and z in metres, of every vertex; all finite. A vertex
            that cannot be drawn has z = 0.
        faces: `(F, 3)`.
        values: `(B, V, C)` attributes of the vertices, or None.
        labels: of the faces, or None.
        width, height: of the pictures, pixels.
        softness: pixels.
        depth_softness: metres.
        near: metres.
        dtype: of the vertices, and of the pictures.
    """

    corners: Float[Tensor, "B V 3"]
    faces: Int[Tensor, "F 3"]
    values: Float[Tensor, "B V C"] | None
    labels: FaceLabels | None
    width: int
    height: int
    softness: float
    depth_softness: float
    near: float
    dtype: torch.dtype

    @property
    def channels(self) -> int:
        """C, the number of attribute channels."""
        if self.labels is not None:
            return self.labels.count
        return 0 if self.values is None else int(self.values.shape[2])

    @property
    def blur2(self) -> float:
        """Square of the distance, in pixels, at which the cover of a face falls to `LEAST_COVER`."""
        return math.log(1 / LEAST_COVER - 1) * self.softness**2

    def usable(self) -> Tensor:
        """(B, F) bool: the faces that are drawn."""
        corners = self.corners.detach()[:, self.faces]
        xy, z = corners[..., :2], corners[..., 2]
        edges = xy.roll(-1, 2) - xy
        area = edges[:, :, 0, 0] * edges[:, :, 1, 1] - edges[:, :, 0, 1] * edges[:, :, 1, 0]
        longest = edges.square().sum(-1).amax(-1)
        inside = (z.amin(-1) >= self.near) & (xy.abs().amax((-1, -2)) <= FARTHEST_PIXEL)
        return inside & (area.square() > THINNEST**2 * longest)

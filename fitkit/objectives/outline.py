"""The person's mask as distances: the body lies inside, and reaches its outline everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fitkit._select import Rows
from fitkit.body.surface import Skin
from fitkit.maps import extent, spread_pixels
from fitkit.objectives.base import Objective, Residual
from fitkit.objectives.kernels import GMoF, Kernel
from fitkit.objectives.view import distance_to, mask_in_view, view_of
from fitkit.observation import Observation
from fitkit.prediction import Prediction

# All points of the surface together, and all points of the outline, weigh as much as this many keypoints.
EFFECTIVE_POINTS = 20.0


@dataclass(frozen=True)
class _Field(Rows):
    """A mask made ready.

    Attributes:
        distance: `(B, S, S)` from each pixel of the view to the mask, pixels of the photo; 0 where
            nothing is known, beyond the photo.
        box: `(B, 4)` x, y, w, h of the view, pixels of the photo.
        outline: `(B, Q, 2)` pixels of the photo.
        there: `(B, Q)` 1 for points of the outline, 0 for padding.
        extent: `(B, 1, 1)` longer side of the mask, pixels of the photo.
    """

    distance: Tensor
    box: Tensor
    outline: Tensor
    there: Tensor
    extent: Tensor

    def __len__(self) -> int:
        return len(self.box)


class Outline(Objective):
    """Distances between the body and the outline of the person's mask, which reach beyond a few pixels.

    Two families of rows, in pixels / (sigma * extent of the mask): how far each of some hundred points of the
    surface lies outside of the mask, and how far each point of the mask's outline is from the nearest projected
    vertex (both directions: Sminchisescu & Telea, "Human pose estimation from silhouettes", WSCG 2002). Unlike the
    soft silhouette (`Silhouette`) they pull as far as the robust kernel lets them, without it (`Stage(widen=None)`)
    from anywhere, and they are least squares with an analytic Jacobian.

    Args:
        sigma: noise of the outline, as a fraction of the extent of the mask.
        kernel: in units of sigma; what lies farther off than that is hair, a bag, a skirt.
        count: most points of the outline.
        size: of the window in which the mask is read, pixels; it is 1.4 times as large as the person.
    """

    name = "outline"
    requires = frozenset({"mask"})
    dense = True

    def __init__(
        self, sigma: float = 0.02, kernel: Kernel | None = GMoF(3.0), count: int = 128, size: int = 96
    ) -> None:
        if not 0 < sigma < float("inf"):
            raise ValueError(f"objective {self.name}: sigma is {sigma}, expected a positive number")
        for name, value in (("count", count), ("size", size)):
            if isinstance(value, bool) or not (isinstance(value, int) and value >= 8):
                raise ValueError(
                    f"objective {self.name}: {name} is {value}, expected a whole number from 8 on"
                )
        self.sigma, self.kernel, self.count, self.size = sigma, kernel, count, size

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        field, skin = self._field(obs), self._skin(pred, obs)
        pixels = obs.camera.project(pred.surface(skin))
        many = pixels.shape[1] - field.outline.shape[1]
        distance, _ = _sample(field, pixels[:, :many], obs)
        outside = torch.stack([distance, torch.zeros_like(distance)], -1)
        rows = torch.cat([outside, pixels[:, many:] - field.outline], 1) / (self.sigma * field.extent)
        inside = torch.full_like(distance, EFFECTIVE_POINTS / many) * field.there.amax(1, keepdim=True)
        reached = field.there * (EFFECTIVE_POINTS / field.there.sum(1, keepdim=True).clamp_min(1))
        return Residual(rows, torch.cat([inside, reached], 1))

    def jacobian(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B N 2 D"]:
        field, skin = self._field(obs), self._skin(pred, obs)
        points, jacobian = pred.surface_jacobian(skin)
        moved, pixels = obs.camera.project_jacobian(points, jacobian), obs.camera.project(points)
        many = pixels.shape[1] - field.outline.shape[1]
        _, slope = _sample(field, pixels[:, :many], obs)
        outside = (slope[..., None] * moved[:, :many]).sum(2, keepdim=True)
        outside = torch.cat([outside, torch.zeros_like(outside)], 2)
        return torch.cat([outside, moved[:, many:]], 1) / (self.sigma * field.extent)[..., None]

    def _skin(self, pred: Prediction, obs: Observation) -> Skin:
        """Of the points that must lie inside, then of the vertices nearest to the outline."""

        def find() -> Skin:
            field, even = self._field(obs), pred.body.anchors
            # Which vertex is nearest changes in jumps; where it is, is differentiated.
            nearest = _nearest(obs.camera.project(pred.vertices.detach()), field.outline)
            return pred.vertex_skin(torch.cat([even.expand(len(nearest), -1), nearest], 1))

        return pred.once(obs.once(("outline", self.size, self.count, "skin"), object), find)

    def _field(self, obs: Observation) -> _Field:
        return obs.once(("outline", self.size, self.count), lambda: _prepare(obs, self.size, self.count))


def _nearest(pixels: Float[Tensor, "B V 2"], outline: Float[Tensor, "B Q 2"]) -> Int[Tensor, "B Q"]:
    # Differences of float32 pixels are exact enough to choose by, at half the memory.
    return torch.cdist(outline.float(), pixels.float(), compute_mode="donot_use_mm_for_euclid_dist").argmin(2)


def _prepare(obs: Observation, size: int, count: int) -> _Field:
    view, inside = view_of(obs, "mask", size), mask_in_view(obs, size) > 0.5
    unit = view.box[:, 2, None, None] / size
    # Distances are between the centres of pixels; the mask ends half a pixel from the centre of its last one. Beyond
    # the photo nothing is known: being there costs nothing.
    distance = (distance_to(inside | (view.known <= 0.5)) - 0.5).clamp_min(0).to(unit.dtype) * unit
    # A pixel of the mask next to one that is surely not: where the photo ends, the person may go on.
    empty = torch.nn.functional.pad(((view.known > 0.5) & ~inside).to(unit.dtype), (1, 1, 1, 1))
    left, right, above, below = (
        empty[:, 1:-1, :-2],
        empty[:, 1:-1, 2:],
        empty[:, :-2, 1:-1],
        empty[:, 2:, 1:-1],
    )
    border = inside & (left + right + above + below > 0)
    outwards = 0.5 * torch.nn.functional.normalize(torch.stack([right - left, below - above], -1), dim=-1)
    first, outline, there = spread_pixels(border, view.box, count)
    outline = outline + outwards.flatten(1, 2).gather(1, first[..., None].expand(-1, -1, 2)) * unit
    size_of = extent(outline, there)[:, None, None]
    return _Field(distance, view.box, outline, there.to(unit.dtype), size_of)


def _sample(
    field: _Field, pixels: Float[Tensor, "B N 2"], obs: Observation
) -> tuple[Float[Tensor, "B N"], Tensor]:
    """Distance at pixels, bilinear, and its slope `(B, N, 2)`; it grows beyond the view, and ends with the photo."""
    size, wanted = field.distance.shape[-1], pixels
    x, y = pixels.unbind(-1)
    pixels = torch.stack([x.clamp(0, obs.camera.width), y.clamp(0, obs.camera.height)], -1)
    photo = (wanted == pixels).to(pixels.dtype)
    unit = field.box[:, None, 2:] / size
    place = (pixels - field.box[:, None, :2]) / unit - 0.5
    within = place.clamp(0, size - 1)
    corner = within.detach().nan_to_num(0.0).floor().clamp_max(size - 2).long()
    part = within - corner
    flat = field.distance.flatten(1)
    index = corner[..., 1] * size + corner[..., 0]
    a, b, c, d = (flat.gather(1, index + offset) for offset in (0, 1, size, size + 1))
    x, y = part.unbind(-1)
    top, bottom = a + (b - a) * x, c + (d - c) * x
    along = torch.stack([(b - a) * (1 - y) + (d - c) * y, bottom - top], -1) / unit
    beyond = (place - within) * unit
    inner = (beyond == 0).to(along.dtype)
    far = torch.sqrt((beyond * beyond).sum(-1) + 1e-12) - 1e-6
    slope = along * inner + beyond / (far + 1e-6)[..., None] * (1 - inner)
    return top + (bottom - top) * y + far, slope * photo

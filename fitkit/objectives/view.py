"""The window of the photo in which dense objectives compare a person with the maps of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.camera import Camera
from fitkit.maps import window
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.render import FaceLabels, SoftImages, soft_rasterize

# Side of the window in sizes of the person: room for limbs that stick out before they are fitted.
_ROOM = 1.4
# Faces within reach of a pixel at the edge of the silhouette.
_FACES = 30.0


@dataclass(frozen=True)
class View:
    """A square window around each person, at a small resolution.

    Attributes:
        box: `(B, 4)` x, y, w, h, pixels of the photo.
        camera: whose pictures are the windows, `size` x `size` pixels.
        known: `(B, S, S)` share of each pixel that lies in the photo.
    """

    box: Float[Tensor, "B 4"]
    camera: Camera
    known: Float[Tensor, "B S S"]


def view_of(obs: Observation, size: int) -> View:
    """The window around all that the maps of an observation show of each person; made once.

    Someone of whom no map shows anything gets the whole photo.
    """

    def make() -> View:
        box = _square(obs)
        whole = obs.camera.focal.new_ones(len(obs), 1, obs.camera.height, obs.camera.width)[..., :1, :1]
        known = window(whole, photo_box(obs), box, size)[:, 0]
        return View(box, obs.camera.crop(box, size, size), known)

    return obs.once(("view", size), make)


def photo_box(obs: Observation) -> Float[Tensor, "B 4"]:
    """x, y, w, h of the whole photo, one per person."""
    focal = obs.camera.focal
    box = torch.tensor([0, 0, obs.camera.width, obs.camera.height], dtype=focal.dtype, device=focal.device)
    return box.expand(len(obs), 4)


def mask_in_view(obs: Observation, size: int, beyond: bool = False) -> Float[Tensor, "B S S"]:
    """The person's mask in the view, share of each pixel; made once.

    Args:
        beyond: whether somebody whom the photo cuts off goes on outside of it, straight.
    """

    def make() -> Tensor:
        assert obs.mask is not None  # checked by Problem: `requires`
        mask = obs.mask[:, None].to(obs.camera.focal.dtype)
        return window(mask, photo_box(obs), view_of(obs, size).box, size, beyond)[:, 0]

    return obs.once(("mask", size, beyond), make)


def softened(
    shown: Float[Tensor, "B n n"], known: Float[Tensor, "B n n"], size: int, softness: float
) -> Float[Tensor, "B S S"]:
    """The silhouette that the soft rasteriser would draw of a body which covers exactly what is shown.

    A body of thousands of small faces is drawn too large: each face that reaches a pixel from outside adds to it, and
    the silhouette `1 - (1 - D)^N` of N faces with `D = sigmoid(-d^2 / softness^2)` crosses one half at a distance of
    d = 1.9 softness (N = 30, measured on the open body; it grows with the square root of log N only). Compared with
    the plain mask, the best body would be too thin by as much; compared with this, it is the right one.

    Args:
        shown: of the view at `n = 2 size` pixels, over a half where the person is.
        known: likewise, over a half where the map says anything.
        size: S.
        softness: pixels of the view.
    """
    inside, sure = shown > 0.5, known > 0.5
    # What is not known is no edge of the person.
    signed = distance_to(inside) - distance_to(sure & ~inside)
    signed = torch.nn.functional.avg_pool2d(signed[:, None], 2)[:, 0] * (size / shown.shape[-1])
    reach = signed / softness
    silent = torch.nn.functional.logsigmoid(reach * reach.abs())  # log(1 - D)
    return (-torch.expm1(_FACES * silent)).to(shown.dtype)


def distance_to(region: Tensor) -> Float[Tensor, "B h w"]:
    """Euclidean distance of each pixel's centre from the nearest pixel of a region, in pixels, exactly.

    Rows first, then columns: the squared distance is the lowest sum of the two (Felzenszwalb & Huttenlocher 2012,
    by brute force: the pictures are small).

    Args:
        region: `(B, h, w)` bool.

    Returns:
        0 inside; twice the longer side of the picture where the region is empty.
    """
    height, width = region.shape[1:]
    far = float(4 * max(height, width) ** 2)
    square = (~region).to(torch.float64) * far
    for axis, length in ((2, width), (1, height)):
        step = torch.arange(length, device=region.device, dtype=torch.float64)
        across = (step[:, None] - step) ** 2
        moved = square.movedim(axis, -1)
        square = (moved[..., None, :] + across).amin(-1).movedim(-1, axis)
    return square.clamp_max(far).sqrt()


def render_parts(pred: Prediction, obs: Observation, size: int, softness: float) -> SoftImages:
    """Silhouette and 14 parts of the prediction in the view; made once for all terms that read it.

    Args:
        softness: pixels of the view.

    Raises:
        ValueError: the body has no parts.
    """
    parts = pred.body.data.parts
    if parts is None:
        raise ValueError(f"body {pred.body.name} has no parts: they cannot be compared with a part map")

    def labels() -> FaceLabels:
        return FaceLabels(torch.as_tensor(parts.astype("int64") - 1, device=pred.body.device), 14)

    view = view_of(obs, size)
    wanted = obs.once(("soft parts", size, softness), object)
    return pred.once(
        wanted,
        lambda: soft_rasterize(
            pred.vertices,
            pred.body.faces,
            view.camera,
            obs.once(("labels", pred.body.name), labels),
            softness=softness,
        ),
    )


def _square(obs: Observation) -> Tensor:
    """The square around the foreground of all maps that there are, with some room."""
    seen: list[tuple[Tensor, Tensor]] = []
    if obs.mask is not None:
        seen.append((obs.mask > 0.5, photo_box(obs)))
    if obs.parts is not None:
        seen.append(((obs.parts.probability[:, -1] * obs.parts.confidence) > 0.5, obs.parts.box))
    if obs.normals is not None:
        seen.append((obs.normals.confidence > 0, obs.normals.box))
    corners = [_foreground(shown, box) for shown, box in seen]
    low = torch.stack([low for low, _ in corners]).amin(0)
    high = torch.stack([high for _, high in corners]).amax(0)
    whole = photo_box(obs)
    empty = ~torch.isfinite(low).all(1, keepdim=True)
    low = torch.where(empty, whole[:, :2], low)
    high = torch.where(empty, whole[:, :2] + whole[:, 2:], high)
    side = _ROOM * (high - low).amax(1, keepdim=True)
    return torch.cat([(low + high - side) / 2, side.expand(-1, 2)], 1)


def _foreground(shown: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest corner `(B, 2)` of what is shown, pixels of the photo; infinite where nothing is."""
    corners = []
    for axis, length in ((1, shown.shape[2]), (2, shown.shape[1])):
        step = torch.arange(length, device=box.device, dtype=box.dtype)
        line = shown.any(axis)
        first = torch.where(line, step, torch.inf).amin(1)
        last = torch.where(line, step + 1, -torch.inf).amax(1)
        origin, unit = box[:, axis - 1 : axis][:, 0], box[:, axis + 1] / length
        corners.append((origin + first * unit, origin + last * unit))
    (left, right), (top, bottom) = corners
    return torch.stack([left, top], 1), torch.stack([right, bottom], 1)

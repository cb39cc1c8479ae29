"""The window of the photo in which dense objectives compare a person with the maps of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows
from fitkit.camera import Camera
from fitkit.maps import foreground_box, window
from fitkit.observation import Observation

# Side of the window in sizes of the person: room for limbs that stick out before they are fitted.
_ROOM = 1.4
# Faces within reach of a pixel at the edge of the silhouette, over sqrt(faces) * softness / size.
_EDGE_FACES = 17.0


@dataclass(frozen=True)
class View(Rows):
    """A square window around each person, at a small resolution.

    Attributes:
        box: `(B, 4)` x, y, w, h, pixels of the photo.
        camera: whose pictures are the windows, `size` x `size` pixels.
        known: `(B, S, S)` share of each pixel that lies in the photo.
    """

    box: Float[Tensor, "B 4"]
    camera: Camera
    known: Float[Tensor, "B S S"]

    def __len__(self) -> int:
        return len(self.box)


def view_of(obs: Observation, part: str, size: int) -> View:
    """The window around all that a map of the observation shows of each person; made once.

    Someone of whom it shows nothing gets the whole photo.

    Args:
        part: of the observation: mask, parts or normals.
        size: pixels.
    """

    def make() -> View:
        box = _square(obs, part)
        known = window(box.new_ones(len(obs), 1, 1, 1), obs.camera.frame, box, size)[:, 0]
        return View(box, obs.camera.crop(box, size, size), known)

    return obs.once(("view", part, size), make)


def mask_in_view(obs: Observation, size: int) -> Float[Tensor, "B S S"]:
    """The person's mask in the view, share of each pixel; made once."""

    def make() -> Tensor:
        assert obs.mask is not None  # checked by Problem: `requires`
        mask = obs.mask[:, None].to(obs.camera.focal.dtype)
        return window(mask, obs.camera.frame, view_of(obs, "mask", size).box, size)[:, 0]

    return obs.once(("mask", size), make)


def softened(
    shown: Float[Tensor, "B n n"], known: Float[Tensor, "B n n"], size: int, softness: float, faces: int
) -> Float[Tensor, "B S S"]:
    """The silhouette that the soft rasteriser would draw of a body which covers exactly what is shown.

    A body of thousands of small faces is drawn too large: each face that reaches a pixel from outside adds to it, and
    the silhouette `1 - (1 - D)^N` of N faces with `D = sigmoid(-d^2 / softness^2)` crosses one half about two
    softnesses away. Compared with the plain mask, the best body would be too thin by as much, or too far away;
    compared with this, it is where it should be. N goes with the faces along the edge that are within reach; its factor
    is the one that puts the open body at the right depth, at 32 to 224 pixels and softnesses of 0.1 to 3.

    Args:
        shown: of the view at `n = 2 size` pixels, over a half where the person is.
        known: likewise, over a half where the map says anything.
        size: S.
        softness: pixels of the view.
        faces: of the body.
    """
    inside, sure = shown > 0.5, known > 0.5
    # At four times the softness a face is no longer seen. What is not known is no edge of the person. Distances are
    # between the centres of pixels, whose edge is half a pixel nearer.
    reach = math.ceil(4 * softness * shown.shape[-1] / size) + 1
    outside, within = distance_to(inside, reach) - 0.5, distance_to(sure & ~inside, reach) - 0.5
    signed = outside.clamp_min(0) - within.clamp_min(0)
    signed = torch.nn.functional.avg_pool2d(signed[:, None], 2)[:, 0] * (size / shown.shape[-1])
    apart = (signed / softness).to(known.dtype)
    silent = torch.nn.functional.logsigmoid(apart * apart.abs())  # log(1 - D)
    return (-torch.expm1(_EDGE_FACES * math.sqrt(faces) * softness / size * silent)).to(shown.dtype)


def distance_to(region: Tensor, reach: int | None = None) -> Float[Tensor, "B h w"]:
    """Euclidean distance of each pixel's centre from the nearest pixel of a region, in pixels, exactly.

    Rows first, then columns: the squared distance is the lowest sum of the two (Felzenszwalb & Huttenlocher 2012,
    by brute force: the pictures are small).

    Args:
        region: `(B, h, w)` bool.
        reach: pixels beyond which nobody looks; None for the longer side of the picture.

    Returns:
        0 inside; twice the reach where the region is farther away than that.
    """
    height, width = region.shape[1:]
    reach = max(height, width) if reach is None else reach
    far = float(4 * reach**2)
    square = (~region).to(torch.float32) * far
    for axis, length in ((2, width), (1, height)):
        nearest = square.clone()
        for step in range(1, min(reach, length - 1) + 1):
            rest = length - step
            low, high = square.narrow(axis, 0, rest), square.narrow(axis, step, rest)
            for target, source in ((0, high), (step, low)):
                there = nearest.narrow(axis, target, rest)
                torch.minimum(there, source + step**2, out=there)
        square = nearest
    return torch.where(square > reach**2, far, square).sqrt()


def _square(obs: Observation, part: str) -> Tensor:
    """The square around the foreground of a map, with some room."""
    whole = obs.camera.frame
    if part == "mask":
        assert obs.mask is not None  # checked by Problem: `requires`
        found = foreground_box(obs.mask > 0.5, whole)
    else:
        seen = obs.parts if part == "parts" else obs.normals
        assert seen is not None
        found = foreground_box(seen.shown(), seen.box)
    found = torch.where(found[:, 2:3] > 0, found, whole)
    side = _ROOM * found[:, 2:].amax(1, keepdim=True)
    return torch.cat([found[:, :2] + (found[:, 2:] - side) / 2, side.expand(-1, 2)], 1)

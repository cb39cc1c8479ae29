"""Context: what a person's observation says to the network, in fixed places, with what is missing marked so."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows
from fitkit.body.charts import CHART_PARTS
from fitkit.keypoints import KeypointSet, get_set
from fitkit.maps import PART_CHANNELS, IUVMap, PartMap, window
from fitkit.objectives.keypoints import bones
from fitkit.observation import Observation
from fitkit.solvers.hund.frame import Frame

POINTS = (
    *get_set("coco17").names,
    *("left_heel", "right_heel", "left_foot_index", "right_foot_index", "left_index", "right_index"),
)
"""Keypoints that the network reads, by name; of a set without some of them these are unseen."""
FEWEST = 8  # of POINTS that a keypoint set must have
_MEDIAPIPE = get_set("mediapipe33")
BONES = tuple((_MEDIAPIPE.names[a], _MEDIAPIPE.names[b]) for a, b in bones(_MEDIAPIPE))
"""Bones whose directions it reads, by name."""
PICTURE = 24  # pixels along the side of the square
CHANNELS = 16  # mask, 14 parts, whether anything is known
_PART_OF_CHART = torch.eye(PART_CHANNELS, dtype=torch.bool)[[0, *CHART_PARTS]]


@dataclass(frozen=True)
class Context(Rows):
    """What was observed of B people, in their frames.

    Attributes:
        points: `(B, 23, 3)` place in the frame and confidence of `POINTS`; zeros for one that was not seen.
        directions: `(B, M, 4)` unit directions of `BONES` along the ray, and their confidence.
        view: `(B, 7)` see `Frame.view`.
        picture: `(B, 16, 24, 24)` the mask, the parts, and where either is known.
    """

    points: Float[Tensor, "B K 3"]
    directions: Float[Tensor, "B M 4"]
    view: Float[Tensor, "B 7"]
    picture: Float[Tensor, "B C h w"]

    def __len__(self) -> int:
        return len(self.points)


def read_context(observation: Observation, frame: Frame) -> Context:
    """What an observation says, in float32.

    Args:
        observation: of B people; every part of it may be missing.
        frame: of the same people.
    """
    context = Context(
        _points(observation, frame),
        _directions(observation, frame),
        frame.view(),
        _picture(observation, frame),
    )
    return context.to(torch.float32)


@cache
def _columns(points: KeypointSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of `POINTS` that a set has, and where it has them."""
    shared = [(i, points.names.index(name)) for i, name in enumerate(POINTS) if name in points.names]
    here, there = zip(*shared, strict=True) if shared else ((), ())
    return torch.tensor(here, dtype=torch.long, device=device), torch.tensor(
        there, dtype=torch.long, device=device
    )


def in_place(values: Float[Tensor, "B K *d"], points: KeypointSet) -> Float[Tensor, "B N *d"]:
    """Values of the points of a set, moved to the places of `POINTS`; zeros for those that it lacks."""
    here, there = _columns(points, values.device)
    placed = values.new_zeros(len(values), len(POINTS), *values.shape[2:])
    placed[:, here] = values[:, there]
    return placed


def _points(observation: Observation, frame: Frame) -> Tensor:
    seen = observation.keypoints
    if seen is None:
        return frame.size.new_zeros(len(frame), len(POINTS), 3)
    there = seen.confidence[..., None]
    values = torch.cat([frame.inside(seen.xy).clamp(-2, 2) * (there > 0), there], 2)
    return in_place(values, seen.set)


def _directions(observation: Observation, frame: Frame) -> Tensor:
    placed = frame.size.new_zeros(len(frame), len(BONES), 4)
    seen = observation.world
    if seen is None:
        return placed
    pairs = bones(seen.set)
    names = [(seen.set.names[a], seen.set.names[b]) for a, b in pairs]
    here = [BONES.index(pair) for pair in names if pair in BONES]
    there = [number for number, pair in enumerate(names) if pair in BONES]
    unit, sure = seen.directions(pairs)
    along = unit @ frame.turn * (sure > 0)[..., None]
    placed[:, here] = torch.cat([along, sure[..., None]], 2)[:, there]
    return placed


def _picture(observation: Observation, frame: Frame) -> Tensor:
    """Parts say more than a mask, so they are the mask, too, where there are any; charts say which part they are on."""
    parts, iuv = observation.parts, observation.iuv
    if parts is None and isinstance(iuv, IUVMap):
        parts = PartMap.from_labels(iuv.chart, iuv.box, iuv.confidence, _PART_OF_CHART)
    if parts is not None:
        known = parts.confidence[:, None]
        values = torch.cat([parts.probability[:, -1:], parts.probability[:, :-1], torch.ones_like(known)], 1)
        return window(values * known, parts.box, frame.box, PICTURE)
    empty = frame.size.new_zeros(len(frame), CHANNELS, PICTURE, PICTURE)
    if observation.mask is not None:
        mask = observation.mask[:, None]
        whole = torch.cat([mask, torch.ones_like(mask)], 1)
        empty[:, [0, -1]] = window(whole, observation.camera.frame, frame.box, PICTURE)
    return empty

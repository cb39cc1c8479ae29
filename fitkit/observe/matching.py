"""Whose map is whose: people of a detector and rows of another program's maps."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from fitkit.maps import IUVMap, NormalMap, PartMap, foreground_box
from fitkit.metrics import box_iou, match_people
from fitkit.observation import Observation

M = TypeVar("M", PartMap, IUVMap, NormalMap)

# Boxes of one person by two programs overlap more than this, those of two people rarely do.
_SAME = 0.3


def maps_for(observation: Observation, maps: M) -> M:
    """Maps in the order of the people of an observation, to be put into it.

    A person's map is the one whose foreground has the box most like theirs (intersection over union over 0.3), one to
    one; somebody without one gets confidence 0, which means unknown.

    Args:
        observation: of B people, with boxes or keypoints.
        maps: of N people of the same photo, in any order.

    Raises:
        ValueError: the observation says nothing of where its people are; no map at all.

    >>> seen = replace(seen, iuv=maps_for(seen, densepose_from_png("IUV.png", instances="INDS.png")))  # doctest: +SKIP
    """
    box = observation.box
    if box is None and observation.keypoints is not None:
        box = observation.keypoints.box()
    if box is None:
        raise ValueError("maps_for: the observation has neither boxes nor keypoints to tell its people by")
    if len(maps) == 0:
        raise ValueError("maps_for: maps of 0 people")
    there = foreground_box(maps.shown(), maps.box)
    row = match_people(box_iou(there.to(box), box), _SAME).to(maps.box.device)
    chosen = maps.select(row.clamp_min(0))
    found = (row >= 0).to(chosen.confidence)
    return replace(chosen, confidence=chosen.confidence * found[:, None, None])

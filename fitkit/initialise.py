"""Starts of a fit: where the basins of a single view lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit._select import concatenate
from fitkit.body.model import BodyModel
from fitkit.camera import translation_from_keypoints
from fitkit.keypoints import Keypoints3D
from fitkit.observation import Observation
from fitkit.state import State

YAWS = (0.0, 90.0, 180.0, 270.0)


@dataclass(frozen=True)
class Starts:
    """Several starts per person, those of one person side by side.

    Attributes:
        count: per person.
        state: `(B * count)`.
        kinds: of a person's starts: those of one kind differ by where they look only, and often meet.
        hint: what each start sees in hinted stages: those that come from a 3D guess see it (or its mirror image in
            depth), the others only the photo.
    """

    count: int
    kinds: tuple[int, ...]
    state: State
    hint: Observation


def make_starts(body: BodyModel, observation: Observation, pose: Float[Tensor, "J 3 3"]) -> Starts:
    """Four yaws of a pose; with 3D landmarks also their torso's orientation and its mirror image in depth.

    Four globally rotated starts are those of Zanfir et al. (ECCV 2020). What 2D keypoints leave open is each
    limb's sign in depth, and the two guesses of the detector are the cheapest way to both answers.

    Args:
        body: of the states.
        observation: of B people, with keypoints.
        pose: `(J, 3, 3)` body pose of every start.
    """
    people = len(observation)
    yaw = geometry.yaw(torch.deg2rad(torch.tensor(YAWS, dtype=pose.dtype, device=pose.device)))
    # Cameras look along +z with y down: half a turn about x puts a body upright and facing them.
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=pose.dtype, device=pose.device))
    orient = [(upright @ turn).expand(people, 3, 3) for turn in yaw]
    blind = observation
    if observation.world is not None:
        blind = replace(
            observation, world=replace(observation.world, confidence=0 * observation.world.confidence)
        )
    hints = [blind] * len(YAWS)
    if observation.world is not None:
        depth = torch.tensor([1.0, 1.0, -1.0], dtype=pose.dtype, device=pose.device)
        mirrored = replace(observation.world, xyz=observation.world.xyz * depth)
        for world in (observation.world, mirrored):
            orient.append(torso_orientation(world, upright))
            hints.append(replace(observation, world=world))
    count = len(orient)
    order = torch.arange(count * people, device=pose.device).view(count, people).T.reshape(-1)
    neutral = body.neutral(people * count)
    state = replace(
        neutral,
        global_orient=torch.cat(orient)[order][:, None],
        body_pose=pose.expand(people * count, -1, -1, -1),
    )
    hint = concatenate(hints).select(order)
    kinds = (*[0] * len(YAWS), *range(1, count - len(YAWS) + 1))
    return Starts(count, kinds, place(body, state, hint), hint)


def place(body: BodyModel, state: State, observation: Observation) -> State:
    """The states moved to where their keypoints meet the observed ones (linear least squares)."""
    seen = observation.keypoints
    if seen is None:
        raise ValueError("a start needs observed keypoints to place the body in space, but there are none")
    points = body.keypoints(replace(state, transl=torch.zeros_like(state.transl)), seen.set.name)
    confidence = seen.confidence * body.available(seen.set.name)
    return replace(state, transl=translation_from_keypoints(points, seen.xy, confidence, observation.camera))


def torso_orientation(world: Keypoints3D, fallback: Float[Tensor, "3 3"]) -> Float[Tensor, "B 3 3"]:
    """Root orientation that the torso of 3D landmarks implies: x to the body's left, y up the spine.

    Args:
        world: landmarks with shoulders and hips.
        fallback: where the torso was not seen or has no extent.
    """
    names = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    columns = [world.set.index(name) for name in names]
    left_shoulder, right_shoulder, left_hip, right_hip = world.xyz[:, columns].unbind(1)
    across = (left_hip - right_hip) + (left_shoulder - right_shoulder)
    up = (left_shoulder + right_shoulder) - (left_hip + right_hip)
    rotation = geometry.from_6d(torch.cat([across, up], 1))
    seen = (world.confidence[:, columns] > 0).all(1)
    proper = torch.isfinite(rotation).flatten(1).all(1) & (torch.linalg.det(rotation) > 0.5)
    return torch.where((seen & proper)[:, None, None], rotation, fallback)

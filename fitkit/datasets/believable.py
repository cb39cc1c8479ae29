"""Which frames of a recording can be believed: joints within what bodies do, and no leaps between frames."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fitkit import geometry
from fitkit.datasets.motion import JOINTS

# Largest angle of a joint's rotation, degrees: beyond what any subject does, so that only solver flips are caught.
LIMITS = {
    "hip": 140.0,
    "knee": 170.0,
    "elbow": 175.0,
    "collar": 60.0,
    "spine2": 75.0,
    "spine3": 75.0,
    "ankle": 75.0,
    "foot": 75.0,
    "shoulder": 150.0,
    "wrist": 115.0,
    "spine1": 75.0,
    "neck": 75.0,
    "head": 80.0,
}
LEAP = 60.0 * 30.0  # degrees per second of any joint
OFF_HINGE = 60.0  # degrees that a knee or an elbow may turn about any other axis than its own
BACKWARDS = 15.0  # degrees that a knee or an elbow may bend the wrong way: rest limbs are not quite straight


def believable(rotations: Float[Tensor, "N 24 3 3"], fps: float) -> Bool[Tensor, " N"]:
    """False where a joint is further turned than `LIMITS`, a hinge bends backwards or aside, or a joint leaps.

    Motion capture is solved from markers; where they are lost or swapped, the solution flips by 100 degrees and more
    for some frames. A leap condemns the frames on both sides of it.

    Args:
        rotations: parent-relative, of one clip, in order.
        fps: frames per second.
    """
    limits = rotations.new_tensor(
        [
            math.radians(LIMITS.get(name.removeprefix("left_").removeprefix("right_"), 360.0))
            for name in JOINTS
        ]
    )
    limits[0] = math.inf
    result = (_angle(rotations) < limits).all(1)
    result &= (off_hinge(rotations) < math.radians(OFF_HINGE)).all(1)
    result &= (hinges(rotations) > -math.radians(BACKWARDS)).all(1)
    step = _angle(rotations[:-1, 1:].mT @ rotations[1:, 1:])
    leap = (step > math.radians(LEAP) / fps).any(1)
    result[1:] &= ~leap
    result[:-1] &= ~leap
    return result


def off_hinge(rotations: Float[Tensor, "N 24 3 3"]) -> Float[Tensor, "N 4"]:
    """Angle by which a knee's x axis and an elbow's y axis leave their place, radians: zero for a hinge."""
    knees, elbows = (
        [JOINTS.index(f"{side}_{name}") for side in ("left", "right")] for name in ("knee", "elbow")
    )
    cosine = torch.cat([rotations[:, knees, 0, 0], rotations[:, elbows, 1, 1]], 1)
    return torch.arccos(cosine.clamp(-1, 1))


def hinges(rotations: Float[Tensor, "N 24 3 3"]) -> Float[Tensor, "N 4"]:
    """Flexion of the left and right knee and the left and right elbow, radians; negative is backwards."""
    names = ("left_knee", "right_knee", "left_elbow", "right_elbow")
    turns = geometry.twist(rotations[:, [JOINTS.index(name) for name in names]])
    return torch.stack([turns[:, 0, 0], turns[:, 1, 0], -turns[:, 2, 1], turns[:, 3, 1]], 1)


def _angle(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    return geometry.geodesic(rotations, eye.expand_as(rotations))

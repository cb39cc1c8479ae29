"""Errors of joints and rotations in space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit.keypoints import get_set

# Rows of `body_pose` that a single photo can tell: hips, knees, shoulders, elbows. Wrists, ankles and collars are
# hardly observable in 17 keypoints, and would hide what a fit does to the rest.
LIMBS: tuple[int, ...] = tuple(
    get_set("smplx55").index(f"{side}_{joint}") - 1
    for joint in ("hip", "knee", "shoulder", "elbow")
    for side in ("left", "right")
)


def mpjpe(
    points: Float[Tensor, "B J 3"],
    target: Float[Tensor, "B J 3"],
    root: int | Sequence[int] | None = 0,
    joints: Sequence[int] | None = None,
) -> Float[Tensor, " B"]:
    """Mean per-joint position error after moving both roots together (Ionescu et al., Human3.6M; protocol 1).

    Args:
        points: `(B, J, 3)` predicted, any unit.
        target: `(B, J, 3)` true, the same unit and axes.
        root: position of the joint (0 = pelvis), or of the joints whose middle (the hips), that is moved to the
            origin; None compares absolute positions.
        joints: positions to average over; None for all, the root included.

    Returns:
        `(B,)` in the unit of the points: metres in, metres out.

    Raises:
        ValueError: shapes that differ or are not `(B, J, 3)`.

    >>> one = torch.zeros(1, 2, 3)
    >>> mpjpe(one, one + torch.tensor([0.0, 0.0, 1.0])), mpjpe(one, one + 1.0, root=None)
    (tensor([0.]), tensor([1.7321]))
    """
    _same_shape(points, target, "(B, J, 3)", 3)
    if root is not None:
        rows = [root] if isinstance(root, int) else list(root)
        points = points - points[:, rows].mean(1, keepdim=True)
        target = target - target[:, rows].mean(1, keepdim=True)
    distance = (points - target).norm(dim=-1)
    return (distance if joints is None else distance[:, list(joints)]).mean(1)


def pa_mpjpe(points: Float[Tensor, "B J 3"], target: Float[Tensor, "B J 3"]) -> Float[Tensor, " B"]:
    """Mean per-joint position error after the best similarity (Zhou et al.; protocol 2, "reconstruction error").

    Scale, rotation and translation are taken out over the same J joints that are averaged; a mirror image is not
    turned into its original.

    Args:
        points: `(B, J, 3)` predicted, any unit.
        target: `(B, J, 3)` true; the answer has its unit.

    Raises:
        ValueError: shapes that differ or are not `(B, J, 3)`.
    """
    scale, rotation, translation = procrustes(points, target)
    aligned = scale[:, None, None] * points @ rotation.mT + translation[:, None]
    return (aligned - target).norm(dim=-1).mean(1)


def procrustes(
    points: Float[Tensor, "B N 3"], target: Float[Tensor, "B N 3"], scaled: bool = True
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B 3 3"], Float[Tensor, "B 3"]]:
    """The similarity `s R x + t` that brings points nearest to their targets in the least-squares sense.

    Umeyama (PAMI 1991), eqs. 40-42: R is always a proper rotation, so reflections are never allowed.

    Args:
        points: `(B, N, 3)`.
        target: `(B, N, 3)`.
        scaled: False leaves the scale at 1.

    Returns:
        s `(B,)`, R `(B, 3, 3)`, t `(B, 3)`.

    Raises:
        ValueError: shapes that differ or are not `(B, N, 3)`.
    """
    _same_shape(points, target, "(B, N, 3)", 3)
    middle, goal = points.mean(1), target.mean(1)
    centred, wanted = points - middle[:, None], target - goal[:, None]
    u, strength, vh = torch.linalg.svd(wanted.mT @ centred)
    sign = torch.ones_like(strength)
    sign[:, 2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
    rotation = (u * sign[:, None]) @ vh
    spread = centred.square().sum((1, 2)).clamp_min(1e-30)
    scale = (strength * sign).sum(1) / spread if scaled else torch.ones_like(spread)
    return scale, rotation, goal - scale[:, None] * (rotation @ middle[..., None])[..., 0]


def joint_angle_error(
    rotations: Float[Tensor, "B J 3 3"],
    target: Float[Tensor, "B J 3 3"],
    joints: Sequence[int] | None = None,
) -> Float[Tensor, " B"]:
    """Mean angle between parent-relative rotations, degrees (MPJAE).

    Args:
        rotations: `(B, J, 3, 3)` predicted `body_pose`; the global orientation is another question.
        target: `(B, J, 3, 3)` true.
        joints: rows to average over, such as `LIMBS`; None for all.

    Returns:
        `(B,)` degrees, 0 to 180.

    Raises:
        ValueError: shapes that differ or are not `(B, J, 3, 3)`.
    """
    _same_shape(rotations, target, "(B, J, 3, 3)", 4)
    angle = torch.rad2deg(geometry.geodesic(rotations, target))
    return (angle if joints is None else angle[:, list(joints)]).mean(1)


def _same_shape(first: Tensor, second: Tensor, expected: str, dimensions: int) -> None:
    if first.shape != second.shape or first.ndim != dimensions or first.shape[-1] != 3:
        raise ValueError(
            f"metric of {tuple(first.shape)} against {tuple(second.shape)}: expected both of one shape {expected}"
        )

"""Rotations where `roma` has no closed form for what a solver needs: 6D, right perturbations, twist angles."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def hat(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix of the cross product: `hat(a) @ b = a x b`."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vectors.shape[:-1], 3, 3)


def exp(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation by an axis-angle vector in radians (Rodrigues), with finite derivatives of any order at zero.

    `roma.rotvec_to_rotmat` agrees to rounding; this one is four times cheaper on the small batches of a solver's
    inner loop, and `jacfwd` goes through it.
    """
    square = (vectors * vectors).sum(-1)[..., None, None]
    small = square < 1e-8
    safe = torch.where(small, torch.ones_like(square), square)
    angle = safe.sqrt()
    sine = torch.where(small, 1 - square / 6, torch.sin(angle) / angle)
    cosine = torch.where(small, 0.5 - square / 24, (1 - torch.cos(angle)) / safe)
    cross = hat(vectors)
    eye = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return eye + sine * cross + cosine * (cross @ cross)


def to_6d(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6"]:
    """The first two columns, one after the other (Zhou et al., CVPR 2019)."""
    return rotations[..., :2].transpose(-1, -2).flatten(-2)


def from_6d(numbers: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation whose first two columns are nearest to six numbers in the Gram-Schmidt sense."""
    first = torch.nn.functional.normalize(numbers[..., :3], dim=-1)
    second = numbers[..., 3:] - (first * numbers[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], -1)


def to_6d_jacobian(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6 3"]:
    """Derivative of `to_6d(R exp(w))` with respect to w at zero: column c of R moves by R (w x e_c)."""
    x, y, z = rotations.unbind(-1)
    zero = torch.zeros_like(x)
    first = torch.stack([zero, -z, y], -1)
    second = torch.stack([z, zero, -x], -1)
    return torch.cat([first, second], -2)


def twist(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Angle of the twist about each coordinate axis, radians in (-pi, pi].

    The swing-twist decomposition gives tan(angle) = (R_cb - R_bc) / (R_bb + R_cc) for axis a and (a, b, c) cyclic:
    for a hinge that bends about that axis alone it is the bend, and it never needs a logarithm.
    """
    return torch.atan2(*_twist_parts(rotations))


def twist_jacobian(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Derivative of `twist(R exp(w))` with respect to w at zero; rows are the axes."""
    sine, cosine = _twist_parts(rotations)
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    moved = rotations[..., None, :, :] @ hat(eye)
    moved_sine, moved_cosine = _twist_parts(moved)
    size = (sine**2 + cosine**2).clamp_min(1e-12)
    rate = cosine[..., None, :] * moved_sine - sine[..., None, :] * moved_cosine
    return (rate / size[..., None, :]).transpose(-1, -2)


def _twist_parts(matrices: Tensor) -> tuple[Tensor, Tensor]:
    m = matrices
    sine = torch.stack(
        [m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1
    )
    cosine = torch.stack(
        [m[..., 1, 1] + m[..., 2, 2], m[..., 2, 2] + m[..., 0, 0], m[..., 0, 0] + m[..., 1, 1]], -1
    )
    return sine, cosine


def geodesic(
    first: Float[Tensor, "*batch 3 3"], second: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch"]:
    """Angle between two rotations, radians, by the chord (accurate near zero, where the trace is not)."""
    chord = (first - second).flatten(-2).norm(dim=-1) / (2 * math.sqrt(2))
    return 2 * torch.asin(chord.clamp(max=1.0))


def yaw(angles: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation about the Y axis, radians."""
    zero, axis = torch.zeros_like(angles), angles
    return exp(torch.stack([zero, axis, zero], -1))

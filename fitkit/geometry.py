"""Rotations where `roma` has no closed form for what a solver needs: 6D, right perturbations, twist angles."""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor


def hat(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix of the cross product: `hat(a) @ b = a x b`."""
    return (vectors @ _like(_HAT, vectors)).unflatten(-1, (3, 3))


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


def from_6d_jacobian(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 6"]:
    """Derivative with respect to x of the w in `from_6d(x) = R exp(w)`, at the orthonormal x = `to_6d(R)`.

    The first column turns about y and z; what the second adds is the turn about x.
    """
    _, y, z = rotations.unbind(-1)
    zero = torch.zeros_like(y)
    first = torch.stack([zero, -z, y], -2)
    second = torch.stack([z, zero, zero], -2)
    return torch.cat([first, second], -1)


def gram_schmidt_jacobian(numbers: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 6"]:
    """Derivative of the w in `from_6d(x + dx) = from_6d(x) exp(w)`, also where x is not orthonormal."""
    rotations = from_6d(numbers)
    x, y, z = rotations.unbind(-1)
    first, second = numbers.split(3, -1)
    along = (x * second).sum(-1, keepdim=True)
    length = first.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    rest = (second - along * x).norm(dim=-1, keepdim=True).clamp_min(1e-12)
    zero = torch.zeros_like(z)
    by_first = torch.stack([-along / (length * rest) * z, -z / length, y / length], -2)
    return torch.cat([by_first, torch.stack([z / rest, zero, zero], -2)], -1)


def twist(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Angle of the twist about each coordinate axis, radians in (-pi, pi].

    The swing-twist decomposition gives tan(angle) = (R_cb - R_bc) / (R_bb + R_cc) for axis a and (a, b, c) cyclic:
    for a hinge that bends about that axis alone it is the bend, and it never needs a logarithm.
    """
    sine, cosine = (rotations.flatten(-2) @ _like(_TWIST, rotations)).chunk(2, -1)
    return torch.atan2(sine, cosine)


def twist_jacobian(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Derivative of `twist(R exp(w))` with respect to w at zero; rows are the axes."""
    flat = rotations.flatten(-2)
    sine, cosine = (flat @ _like(_TWIST, rotations))[..., None].chunk(2, -2)
    moved = (flat @ _like(_TWIST_MOVED, rotations)).unflatten(-1, (3, 6)).mT
    rate = cosine * moved[..., :3, :] - sine * moved[..., 3:, :]
    return rate / (sine * sine + cosine * cosine).clamp_min(1e-12)


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


def _constants() -> tuple[Tensor, Tensor, Tensor]:
    """Linear maps: a vector to its cross matrix `(3, 9)`; a rotation's nine numbers to the sine and cosine parts of
    its twists `(9, 6)`, and to those of `R hat(e_k)` for the three unit vectors `(9, 18)`."""
    cross = torch.zeros(3, 3, 3, dtype=torch.float64)
    parts = torch.zeros(3, 3, 6, dtype=torch.float64)
    for a in range(3):
        b, c = (a + 1) % 3, (a + 2) % 3
        cross[a, b, c], cross[a, c, b] = -1, 1
        parts[c, b, a], parts[b, c, a] = 1, -1
        parts[b, b, 3 + a] = parts[c, c, 3 + a] = 1
    # (R hat(e_k))_ij = sum_m R_im hat(e_k)_mj
    moved = torch.einsum("kmj,ijp->imkp", cross, parts)
    return cross.reshape(3, 9), parts.reshape(9, 6), moved.reshape(9, 18)


_HAT, _TWIST, _TWIST_MOVED = range(3)


@cache
@torch.inference_mode(False)
def _constant(which: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _constants()[which].to(device, dtype)


def _like(which: int, other: Tensor) -> Tensor:
    """A constant in the dtype and on the device of a tensor; made once."""
    return _constant(which, other.dtype, other.device)

"""Kinematic jumps: the other answers of a single view, each limb segment turned the other way in depth.

With one end of a bone known, its other end lies on the ray through its image and at the bone's length: at two points,
one nearer and one farther. Sminchisescu & Triggs (CVPR 2003; IJRR 22(6), 2003) jump between the minima of a fit by
taking the other point, and so does this file, for the two segments of each limb.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit.body.model import BodyModel
from fitkit.keypoints import get_set
from fitkit.problem import Problem
from fitkit.state import State

LIMBS = ("left_arm", "right_arm", "left_leg", "right_leg")
FLIPS = ("upper", "lower", "both")
JUMPS: tuple[str, ...] = ("unchanged", *(f"{limb}/{flip}" for limb in LIMBS for flip in FLIPS))
# Measured: what the lower segment's flip alone finds, the other two find as well; without it a search costs a third
# less and ends as near to the truth.
WORTHWHILE: tuple[str, ...] = tuple(jump for jump in JUMPS if not jump.endswith("/lower"))

_CHAINS = {"arm": ("shoulder", "elbow", "wrist"), "leg": ("hip", "knee", "ankle")}
# What a lower joint bends about, in the T-pose frame, such that its anatomical bend is positive (priors/limits.py).
_HINGES = {"left_arm": (0, -1, 0), "right_arm": (0, 1, 0), "left_leg": (1, 0, 0), "right_leg": (1, 0, 0)}
# Radians of bend: a limb straighter than the first says nothing of its own twist, and one bent more than the second
# says all; between them the twist fades in.
_STRAIGHT, _BENT = math.radians(10), math.radians(30)
# Metres from the camera's plane within which no joint is put: the other point of a ray may lie behind the camera.
_NEAREST = 0.1


def kinematic_jumps(body: BodyModel, state: State, jumps: tuple[str, ...] = JUMPS) -> State:
    """What else could have made the same picture: every limb with its segments the other way in depth.

    For each limb the upper segment alone, the lower alone, and both are mirrored about the foot of the
    perpendicular from their upper joint to the ray of their lower joint. That is exact in perspective, and the same
    for every camera: a ray starts at the origin of the camera frame, whatever the intrinsics. A segment that is
    not mirrored keeps the sign of its depth. Where the turned upper segment leaves the lower one too short for
    its ray, it takes the nearest direction, and the other point behind the camera is not taken at all.

    A limb is turned by its upper and its lower joint. The lower joint is a hinge: its own bend changes, in the
    direction in which it can bend, whatever else it is turned by stays, and the twist of the upper joint puts
    the plane of the bend where it must be. A limb that is nearly straight keeps its twist. What hangs on it keeps its
    rotation in its parent.

    Args:
        body: of the states.
        state: of B people, metres, camera frame.
        jumps: some of `JUMPS`, such as `WORTHWHILE`.

    Returns:
        `(B * len(jumps))` states, those of one person side by side and in the order of `jumps`; "unchanged" is the
        state itself.

    Raises:
        ValueError: a jump that is not one of `JUMPS`.

    Example:
        >>> from fitkit.body import open_body
        >>> body = open_body()
        >>> len(kinematic_jumps(body, body.neutral(2))) == 2 * len(JUMPS)
        True
    """
    table = _table(state.transl.device)
    unknown = [jump for jump in jumps if jump not in JUMPS]
    if unknown:
        raise ValueError(f"jumps {unknown}, expected some of {list(JUMPS)}")
    placed = body.pose(state).transforms[:, table.chains]  # (B, 4 limbs, 3 joints, 3, 4)
    limb = _Limbs.of(placed, state.body_pose[:, table.chains - 1], table.hinges.to(state.transl))
    upper, lower = limb.bend_to(*_mirrored(*placed[..., 3].unbind(2)))
    pose = state.body_pose[:, None].repeat(1, len(JUMPS), 1, 1, 1)
    pose[:, table.candidates, table.joints] = torch.stack([upper, lower], 3).flatten(1, 2)
    return replace(state.repeat(len(jumps)), body_pose=pose[:, _places(jumps, pose.device)].flatten(0, 1))


def evidence(problem: Problem, state: State) -> Float[Tensor, " B"]:
    """What a basin weighs, by Laplace's method: the energy at its bottom and half the log-determinant of its curvature.

    `exp(-E)` is the density of a pose given the picture, and a basin holds about `exp(-E) (2 pi)^(D/2) |H|^(-1/2)` of
    it, with H of Gauss-Newton in the tangent space of the rotations. Energies of the answers of a single view differ
    by less than their widths do, so the lowest one is often a narrow pocket; the heaviest one is nearer to the truth
    (MacKay, Neural Computation 4(3), 1992, on choosing between minima).

    Args:
        problem: of B people; its energy a negative log-density, so weights of its terms are what they claim to be.
        state: `(B,)` at or near the bottoms of basins. Only the states of one person can be compared.

    Returns:
        `(B,)`, less is more likely; infinite where the curvature is not positive.
    """
    with torch.no_grad():
        here = problem.linearize(state)
        # The floor is that of Levenberg-Marquardt: what nothing observes has no curvature, in any of the basins.
        floor = 1e-6 * torch.ones_like(here.gradient)
        factor, failed = torch.linalg.cholesky_ex(here.hessian + torch.diag_embed(floor))
        half = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return torch.where(failed == 0, here.energy + half, torch.full_like(half, math.inf))


def _mirrored(
    top: Float[Tensor, "B L 3"], middle: Float[Tensor, "B L 3"], end: Float[Tensor, "B L 3"]
) -> tuple[Float[Tensor, "B L F 3"], Float[Tensor, "B L F 3"]]:
    """Unit directions of the upper and the lower segments after each flip, camera frame.

    Args:
        top: shoulders and hips, metres, camera frame.
        middle: elbows and knees.
        end: wrists and ankles.
    """
    ray, end_ray = _unit(middle), _unit(end)
    other = 2 * _dot(top, ray) * ray - middle
    other = torch.where(other[..., 2:] > _NEAREST, other, middle)
    length = torch.linalg.vector_norm(end - middle, dim=-1, keepdim=True)
    far = torch.where(_dot(end - middle, end_ray) >= 0, 1.0, -1.0).to(length)
    middles = torch.stack([other, middle, other], 2)
    sides = torch.stack([far, -far, -far], 2)
    ends = _on_ray(middles, length[:, :, None], end_ray[:, :, None], sides)
    return _unit(middles - top[:, :, None]), _unit(ends - middles)


def _on_ray(centre: Tensor, radius: Tensor, ray: Tensor, side: Tensor) -> Tensor:
    """Where a ray meets a sphere on one side of the point nearest to its centre; that point where it misses."""
    foot = _dot(centre, ray) * ray
    half = (radius**2 - _dot(centre - foot, centre - foot)).clamp_min(0).sqrt() * side
    point = foot + half * ray
    return torch.where(point[..., 2:] > _NEAREST, point, foot - half * ray)


@dataclass(frozen=True)
class _Limbs:
    """The limbs of B people, with an axis of size 1 for the flips before the last axes.

    Attributes:
        turned: `(B, L, 1, 3, 3)` upper segment in the camera frame.
        local: `(B, L, 1, 3, 3)` upper joint in its parent.
        rest: `(B, L, 1, 3, 3)` lower joint in its parent without its bend.
        hinge: `(L, 1, 3)` axis of the bend.
        upper, lower: `(B, L, 1, 3)` unit directions of the segments in their own frames.
    """

    turned: Tensor
    local: Tensor
    rest: Tensor
    hinge: Tensor
    upper: Tensor
    lower: Tensor

    @staticmethod
    def of(
        placed: Float[Tensor, "B L 3 3 4"], pose: Float[Tensor, "B L 3 3 3"], hinges: Float[Tensor, "L 3"]
    ) -> _Limbs:
        turned, at = placed[..., :3], placed[..., 3]
        bones = _unit((turned[:, :, :2].mT @ (at[:, :, 1:] - at[:, :, :2])[..., None])[..., 0])
        bend = _dot(geometry.twist(pose[:, :, 1]), hinges)
        rest = geometry.exp(-bend * hinges) @ pose[:, :, 1]
        upper, lower = bones[:, :, None].unbind(3)
        return _Limbs(
            turned[:, :, None, 0], pose[:, :, None, 0], rest[:, :, None], hinges[:, None], upper, lower
        )

    def bend_to(
        self, upper: Float[Tensor, "B L F 3"], lower: Float[Tensor, "B L F 3"]
    ) -> tuple[Float[Tensor, "B L F 3 3"], Float[Tensor, "B L F 3 3"]]:
        """Rotations of the upper and the lower joints in their parents that give the segments these directions."""
        local = geometry.exp(self._bend(_dot(upper, lower)) * self.hinge) @ self.rest
        # The least turn of the upper segment leaves one angle open: the twist that brings the lower one into place.
        before = _apply(self.turned, self.upper).expand_as(upper)
        least = _between(before, upper) @ self.turned
        bent = _apply(least @ local, self.lower)
        across = torch.linalg.cross(upper, lower, dim=-1)
        twist = torch.atan2(
            _dot(upper, torch.linalg.cross(bent, lower, dim=-1)),
            _dot(bent, lower) - _dot(bent, upper) * _dot(lower, upper),
        )
        bend = torch.atan2(torch.linalg.vector_norm(across, dim=-1, keepdim=True), _dot(upper, lower))
        sure = ((bend - _STRAIGHT) / (_BENT - _STRAIGHT)).clamp(0, 1)
        turned = geometry.exp(sure * twist * upper) @ least
        # What twist and bend leave over, because the limb is nearly straight or no hinge: the lower joint takes it.
        beyond = _between(_apply(turned @ local, self.lower), lower)
        return self.local @ self.turned.mT @ turned, turned.mT @ beyond @ turned @ local

    def _bend(self, cosine: Float[Tensor, "B L F 1"]) -> Float[Tensor, "B L F 1"]:
        """Angle about the hinge at which the segments have this cosine, radians; of two the one that a joint can reach.

        With u the upper and v the lower direction, both in the frame of the upper segment and the joint not bent,
        u . exp(t h) v = (u.h)(v.h) + (u.v - (u.h)(v.h)) cos t + u.(h x v) sin t.
        """
        lower = _apply(self.rest, self.lower)
        along = _dot(self.upper, self.hinge) * _dot(lower, self.hinge)
        even = _dot(self.upper, lower) - along
        odd = _dot(self.upper, torch.linalg.cross(self.hinge.expand_as(lower), lower, dim=-1))
        reach = (cosine - along) / torch.hypot(even, odd).clamp_min(1e-9)
        return torch.atan2(odd, even) + torch.acos(reach.clamp(-1, 1))


def _between(
    source: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3 3"]:
    """The least rotation from one unit vector to another; about any axis that serves where they are opposite."""
    axis = torch.linalg.cross(source, target, dim=-1)
    sine = torch.linalg.vector_norm(axis, dim=-1, keepdim=True)
    eye = torch.eye(3, dtype=source.dtype, device=source.device)
    aside = torch.where(source[..., :1].abs() < 0.7, eye[0], eye[1])
    aside = _unit(torch.linalg.cross(source, aside, dim=-1))
    axis = torch.where(sine > 1e-7, axis / sine.clamp_min(1e-7), aside)
    return geometry.exp(torch.atan2(sine, _dot(source, target)) * axis)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(-1, keepdim=True)


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _apply(rotations: Tensor, vectors: Tensor) -> Tensor:
    return (rotations @ vectors[..., None])[..., 0]


@dataclass(frozen=True)
class _Table:
    """Constants of the jumps.

    Attributes:
        chains: `(4, 3)` upper, lower and end joint of each limb.
        hinges: `(4, 3)`.
        candidates: `(12, 2)` which of the candidates a pair of rotations belongs to.
        joints: `(12, 2)` rows of the body pose that it replaces.
    """

    chains: Tensor
    hinges: Tensor
    candidates: Tensor
    joints: Tensor


@cache
@torch.inference_mode(False)
def _table(device: torch.device) -> _Table:
    """Made once per device: a constant that is copied there in every call would wait for it in every call."""
    names, chains = get_set("smplx55"), []
    for limb in LIMBS:
        side, kind = limb.split("_")
        chains.append([names.index(f"{side}_{joint}") for joint in _CHAINS[kind]])
    joints = [[joint - 1 for joint in chain[:2]] for chain in chains for _ in FLIPS]
    return _Table(
        torch.tensor(chains, device=device),
        torch.tensor([_HINGES[limb] for limb in LIMBS], dtype=torch.float64, device=device),
        torch.arange(1, len(JUMPS), device=device)[:, None].expand(-1, 2),
        torch.tensor(joints, device=device),
    )


@cache
@torch.inference_mode(False)
def _places(jumps: tuple[str, ...], device: torch.device) -> Tensor:
    return torch.tensor([JUMPS.index(jump) for jump in jumps], device=device)

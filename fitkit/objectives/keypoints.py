"""Objectives on keypoints: in the image, in space, and the directions between them."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.keypoints import Keypoints3D as Observed3D
from fitkit.keypoints import KeypointSet
from fitkit.objectives.base import Objective, Residual
from fitkit.objectives.kernels import GMoF, Kernel
from fitkit.observation import Observation
from fitkit.prediction import Prediction

# Bones whose direction a 3D detector knows, first those that lie in most sets. Two diagonals hold the torso's
# orientation; ears and nose the head's.
_BONES = (
    "left_shoulder-left_elbow left_elbow-left_wrist right_shoulder-right_elbow right_elbow-right_wrist "
    "left_hip-left_knee left_knee-left_ankle right_hip-right_knee right_knee-right_ankle "
    "left_shoulder-right_shoulder left_hip-right_hip left_shoulder-left_hip right_shoulder-right_hip "
    "left_shoulder-right_hip right_shoulder-left_hip right_ear-left_ear nose-left_ear nose-right_ear "
    "left_heel-left_foot_index right_heel-right_foot_index left_heel-left_big_toe right_heel-right_big_toe"
).split()
# Detectors place the points of face, hands and feet less surely than those of the limbs.
_LESS_SURE = {"face": 0.6, "extremity": 0.5}
_FACE = ("nose", "eye", "ear", "mouth")
_EXTREMITY = ("heel", "toe", "foot_index", "pinky", "index", "thumb")


@cache
def bones(points: KeypointSet) -> tuple[tuple[int, int], ...]:
    """(from, to) positions of the bones that a set has both ends of."""
    pairs = [bone.split("-") for bone in _BONES]
    names = points.names
    return tuple((names.index(a), names.index(b)) for a, b in pairs if a in names and b in names)


@cache
def reliability(points: KeypointSet) -> tuple[float, ...]:
    """How much each point of a set weighs beside its confidence (measured with MediaPipe on annotated photos)."""
    weights = []
    for name in points.names:
        extremity = any(word in name for word in _EXTREMITY)
        face = any(word in name for word in _FACE)
        weights.append(_LESS_SURE["extremity"] if extremity else _LESS_SURE["face"] if face else 1.0)
    return tuple(weights)


class Keypoints2D(Objective):
    """Reprojection error of the observed keypoints (HUND, eq. 4), relative to the size of the person in the photo.

    Rows are pixels / (sigma * extent), where the extent is the longer side of the box of the seen keypoints, so
    that a person of 50 pixels and one of 2000 weigh the same and the weights of all terms hold for both.

    Args:
        sigma: noise of a detected keypoint as a fraction of the extent.
        kernel: in units of sigma; GMoF(5) lets go of points 10 % of the body away.
    """

    name = "keypoints_2d"
    requires = frozenset({"keypoints"})

    def __init__(self, sigma: float = 0.02, kernel: Kernel | None = GMoF(5.0)) -> None:
        self.sigma, self.kernel = sigma, kernel

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        seen = obs.keypoints
        assert seen is not None  # checked by Problem: `requires`
        scale = self._scale(obs)
        rows = (pred.keypoints_2d(seen.set.name) - seen.xy) / scale[:, None, None]
        return Residual(rows, seen.confidence * _certainty(pred, seen.set))

    def jacobian(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B K 2 D"]:
        seen = obs.keypoints
        assert seen is not None
        points = pred.keypoints(seen.set.name)
        pixels = obs.camera.project_jacobian(points, pred.keypoints_jacobian(seen.set.name))
        return pixels / self._scale(obs)[:, None, None, None]

    def _scale(self, obs: Observation) -> Tensor:
        assert obs.keypoints is not None
        return self.sigma * obs.keypoints.extent


class Keypoints3D(Objective):
    """Distance to 3D keypoints around the root, metres (users with triangulated or depth-sensed points).

    Both sides are taken relative to the middle of the hips (or the set's own pelvis).

    Args:
        sigma: noise in metres.
        kernel: in units of sigma.
    """

    name = "keypoints_3d"
    requires = frozenset({"world"})

    def __init__(self, sigma: float = 0.02, kernel: Kernel | None = GMoF(5.0)) -> None:
        self.sigma, self.kernel = sigma, kernel

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        seen = _world(obs)
        root = _root_of(seen)
        difference = pred.keypoints(seen.set.name) - seen.xyz
        rows = (difference - root @ difference) / self.sigma
        return Residual(rows, seen.confidence * _certainty(pred, seen.set))

    def jacobian(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B K 3 D"]:
        seen = _world(obs)
        jacobian = pred.keypoints_jacobian(seen.set.name)
        root = _root_of(seen)
        return (jacobian - torch.einsum("brk,bkcd->brcd", root, jacobian)) / self.sigma


class BoneDirections(Objective):
    """Directions of bones as a detector's 3D landmarks have them; their lengths are not read.

    Measured: directions turn limbs to the right side in depth, where 2D cannot tell; the lengths of MediaPipe's
    world landmarks are 10 to 30 % short, and using them hurts.

    Args:
        sigma: noise of a unit direction, about radians.
        kernel: in units of sigma.
    """

    name = "directions"
    requires = frozenset({"world"})

    def __init__(self, sigma: float = 0.35, kernel: Kernel | None = GMoF(3.0)) -> None:
        self.sigma, self.kernel = sigma, kernel

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        seen = _world(obs)
        wanted, weight = seen.directions(bones(seen.set))
        given, difference = _bone_matrices(pred, seen.set)
        bone = torch.nn.functional.normalize(difference @ pred.keypoints(seen.set.name), dim=-1)
        return Residual((bone - wanted) / self.sigma, weight * given)

    def jacobian(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B M 3 D"]:
        seen = _world(obs)
        _, difference = _bone_matrices(pred, seen.set)
        bone = difference @ pred.keypoints(seen.set.name)
        jacobian = pred.keypoints_jacobian(seen.set.name)
        moved = (difference @ jacobian.flatten(2)).unflatten(2, (3, -1))
        length = torch.linalg.vector_norm(bone, dim=-1).clamp_min(1e-12)[..., None]
        unit = (bone / length)[..., None]
        along = (unit * moved).sum(2, keepdim=True)
        return (moved - unit * along) / (length * self.sigma)[..., None]


def _world(obs: Observation) -> Observed3D:
    assert obs.world is not None  # checked by Problem: `requires`
    return obs.world


@cache
@torch.inference_mode(False)  # kept: no later gradient could go through an inference tensor
def _root(points: KeypointSet, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`(1, K)` weights of the root among the points."""
    names = [name for name in points.names if name in ("pelvis", "mid_hip")] or ["left_hip", "right_hip"]
    weights = torch.zeros(1, len(points), dtype=dtype)
    weights[0, [points.index(name) for name in names]] = 1 / len(names)
    return weights.to(device)


def _root_of(seen: Observed3D) -> Tensor:
    """`(B, 1, K)` weights of the root among the points that were seen; among all of its own where none was."""
    every = _root(seen.set, seen.xyz.dtype, seen.xyz.device)
    there = every * (seen.confidence > 0)[:, None]
    total = there.sum(-1, keepdim=True)
    return torch.where(total > 0, there / total.clamp_min(1e-9), every)


def _certainty(pred: Prediction, points: KeypointSet) -> Tensor:
    """`(K,)` reliability of the points, 0 for those that the body cannot give."""
    table = pred.body.__dict__.setdefault("_certainty", {})
    if points.name not in table:
        given = pred.body.available(points.name)
        table[points.name] = (
            torch.tensor(reliability(points), dtype=pred.body.dtype, device=given.device) * given
        )
    weights: Tensor = table[points.name]
    return weights


def _bone_matrices(pred: Prediction, points: KeypointSet) -> tuple[Tensor, Tensor]:
    """`(M,)` 1 for bones that the body can give both ends of, and `(M, K)` end minus start; kept."""
    table = pred.body.__dict__.setdefault("_bones", {})
    if points.name not in table:
        certain = _certainty(pred, points)
        pairs = torch.tensor(bones(points), device=certain.device)
        eye = torch.eye(len(points), dtype=certain.dtype, device=certain.device)
        given = (certain[pairs] > 0).all(1).to(certain.dtype)
        table[points.name] = given, eye[pairs[:, 1]] - eye[pairs[:, 0]]
    matrices: tuple[Tensor, Tensor] = table[points.name]
    return matrices

"""Rotations as the plain numbers that a density is about: 6D, axis-angle or the matrix itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit.prediction import Prediction


class Representation(ABC):
    """A way to write a rotation as `width` numbers, smooth near rotations.

    Attributes:
        name: in files of weights.
        width: numbers per rotation.
    """

    name: str
    width: int

    @abstractmethod
    def numbers(self, rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch width"]:
        """The numbers of rotations."""

    @abstractmethod
    def rotations(self, numbers: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 3 3"]:
        """The rotation of numbers, also of such that none has exactly."""

    @abstractmethod
    def jacobian(self, rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch width 3"]:
        """Derivative of `numbers(R exp(w))` with respect to w at zero."""

    @abstractmethod
    def inverse_jacobian(self, numbers: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 3 width"]:
        """Derivative of the w in `rotations(x) = R exp(w)` with respect to x, at the numbers of a rotation."""


class SixD(Representation):
    """The first two columns (Zhou et al., CVPR 2019); continuous everywhere."""

    name, width = "6d", 6

    def numbers(self, rotations: Tensor) -> Tensor:
        return geometry.to_6d(rotations)

    def rotations(self, numbers: Tensor) -> Tensor:
        return geometry.from_6d(numbers)

    def jacobian(self, rotations: Tensor) -> Tensor:
        return geometry.to_6d_jacobian(rotations)

    def inverse_jacobian(self, numbers: Tensor) -> Tensor:
        return geometry.gram_schmidt_jacobian(numbers)


class AxisAngle(Representation):
    """The rotation vector, radians; it jumps at half a turn, which no joint of a body reaches."""

    name, width = "axis-angle", 3

    def numbers(self, rotations: Tensor) -> Tensor:
        import roma  # brings torch's compiler with it

        vectors: Tensor = roma.rotmat_to_rotvec(rotations)
        return vectors

    def rotations(self, numbers: Tensor) -> Tensor:
        return geometry.exp(numbers)

    def jacobian(self, rotations: Tensor) -> Tensor:
        """Inverse of SO(3)'s right Jacobian: `1 + [v]/2 + (1/|v|^2 - (1 + cos|v|) / (2 |v| sin|v|)) [v]^2`."""
        vectors = self.numbers(rotations)
        square = (vectors * vectors).sum(-1)[..., None, None]
        near = square < 1e-4
        safe = torch.where(near, torch.ones_like(square), square)
        angle = safe.sqrt()
        half = angle / 2
        factor = torch.where(
            near, 1 / 12 + square / 720, (1 - half * torch.cos(half) / torch.sin(half)) / safe
        )
        cross = geometry.hat(vectors)
        return torch.eye(3, dtype=vectors.dtype, device=vectors.device) + cross / 2 + factor * (cross @ cross)

    def inverse_jacobian(self, numbers: Tensor) -> Tensor:
        return torch.linalg.inv(self.jacobian(geometry.exp(numbers)))


class Matrix(Representation):
    """The nine numbers of the matrix, row by row; others go to the nearest rotation."""

    name, width = "matrix", 9

    def numbers(self, rotations: Tensor) -> Tensor:
        return rotations.flatten(-2)

    def rotations(self, numbers: Tensor) -> Tensor:
        import roma  # brings torch's compiler with it

        nearest: Tensor = roma.special_procrustes(numbers.unflatten(-1, (3, 3)))
        return nearest

    def jacobian(self, rotations: Tensor) -> Tensor:
        eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
        return (rotations[..., None, :, :] @ geometry.hat(eye)).movedim(-3, -1).flatten(-3, -2)

    def inverse_jacobian(self, numbers: Tensor) -> Tensor:
        """At a rotation the nearest one moves by the skew part alone: half the transpose of `jacobian`."""
        return self.jacobian(self.rotations(numbers)).mT / 2


REPRESENTATIONS: dict[str, Representation] = {each.name: each for each in (SixD(), AxisAngle(), Matrix())}


def representation(name: str) -> Representation:
    """A representation by name.

    Raises:
        ValueError: an unknown name; the message lists those there are.
    """
    if name not in REPRESENTATIONS:
        raise ValueError(f"rotation representation {name!r}, expected one of {sorted(REPRESENTATIONS)}")
    return REPRESENTATIONS[name]


def numbers_of(pred: Prediction, block: str, joints: int, form: Representation) -> Float[Tensor, "B D"]:
    """Numbers of the first joints of a block, worked out once for all the priors that read them.

    Args:
        pred: whose state has the block.
        block: of the State.
        joints: as many as the block has, or fewer.
        form: of a rotation.
    """
    rotations: Tensor = getattr(pred.state, block)
    return pred.once(_asked(block, joints, form), lambda: form.numbers(rotations[:, :joints]).flatten(1))


@cache
def _asked(block: str, joints: int, form: Representation) -> object:
    """The one object under which a prediction keeps such numbers."""
    return object()

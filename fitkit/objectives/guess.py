"""The pull of an estimate of the body, such as a network's, on a fit: on its rotations, or on its depth alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit.objectives.base import Objective, Residual
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.state import State

# Rotations that it compares; hands and face stay free.
_PARTS = ("global_orient", "body_pose")
_BODY = 22  # joints of every body that are not those of hands and face


class Guess(Objective):
    """Stay near an estimate of the body, `Observation.guess`.

    The rows of joint j are the chordal distance `(R_j - G_j) / (sqrt(2) spread_j)`, nine numbers with half a square of
    `(1 - cos a) / spread_j^2` for an angle a between the two: `a^2 / (2 spread_j^2)` while it is small. The row of a
    shape coefficient is `(beta - beta_guess) / shape`. Where the body stands is left to what was seen.

    Args:
        spread: standard deviation of the estimate's rotations, radians: of all joints, or one for the root and each
            joint of the body; infinite for a joint that is left free.
        shape: the same of the betas, in their own unit (a standard deviation of the population); None or infinite
            leaves them free.

    Raises:
        ValueError: a spread that is not positive; later, an estimate of another kind of body or another number of
            spreads than joints.
    """

    name = "guess"
    requires = frozenset({"guess"})

    def __init__(self, spread: float | Sequence[float], shape: float | None = 1.0) -> None:
        spreads = (spread,) if isinstance(spread, int | float) else tuple(spread)
        if not spreads or not all(_positive(each) for each in spreads):
            raise ValueError(
                f"objective {self.name}: spread is {spread}, expected radians above zero, one number or one for "
                "each joint"
            )
        if shape is not None and not _positive(shape):
            raise ValueError(f"objective {self.name}: shape is {shape}, expected a positive number or None")
        self.spread = float(spreads[0]) if isinstance(spread, int | float) else tuple(map(float, spreads))
        self.shape = None if shape is None or math.isinf(shape) else float(shape)

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        guess = self._guess(pred, obs)
        apart = (_rotations(pred.state) - _rotations(guess)) * self._scale(pred, obs)[..., None, None]
        rows = [apart.flatten(2)]
        if self.shape is not None:
            off = (pred.betas - guess.betas) / self.shape
            # Nine numbers like those of a joint, so that a kernel sees every coefficient for itself.
            rows.append(torch.nn.functional.pad(off[..., None], (0, 8)))
        return Residual(torch.cat(rows, 1))

    def jacobian(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B N 9 D"]:
        rotations, scale = _rotations(pred.state), self._scale(pred, obs)
        people, joints = scale.shape
        axes = geometry.hat(torch.eye(3, dtype=scale.dtype, device=scale.device))
        # R (hat(e_k)) of every joint, the nine numbers of R before the axis.
        turned = (rotations[:, :, None] @ axes).flatten(3).mT * scale[..., None, None]
        shapes = 0 if self.shape is None else pred.betas.shape[1]
        whole = scale.new_zeros(people, joints + shapes, 9, _width(pred))
        for name, place in _places(pred).items():
            columns = whole[:, place, :, pred.blocks[name]].unflatten(3, (-1, 3))
            columns.diagonal(dim1=1, dim2=3).copy_(turned[:, place].permute(0, 2, 3, 1))
        if shapes and "betas" in pred.blocks:
            assert self.shape is not None
            columns = whole[:, joints:, 0, pred.blocks["betas"]]
            columns.diagonal(dim1=1, dim2=2).fill_(1 / self.shape)
        return whole

    def closed_normal(
        self, pred: Prediction, obs: Observation, residual: Residual
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D D"]] | None:
        """Joint by joint: the three rows `R hat(e_k)` of a turn are orthogonal and of length sqrt(2)."""
        if self.kernel is not None:
            return None
        guess, scale = self._guess(pred, obs), self._scale(pred, obs)
        weight = self.weight * scale * scale  # of the nine numbers: weight / (2 spread^2)
        apart = _rotations(pred.state).mT @ _rotations(guess)
        # <R - G, R hat(e_k)> = -<R'G, hat(e_k)>, because R'R is symmetric.
        pull = torch.stack([apart[..., b, c] - apart[..., c, b] for b, c in ((1, 2), (2, 0), (0, 1))], -1)
        gradient = scale.new_zeros(len(scale), _width(pred))
        diagonal = torch.zeros_like(gradient)
        for name, place in _places(pred).items():
            columns = pred.blocks[name]
            gradient[:, columns] = (weight[:, place, None] * pull[:, place]).flatten(1)
            diagonal[:, columns] = 2 * weight[:, place].repeat_interleave(3, 1)
        if self.shape is not None and "betas" in pred.blocks:
            gradient[:, pred.blocks["betas"]] = self.weight * (pred.betas - guess.betas) / self.shape**2
            diagonal[:, pred.blocks["betas"]] = self.weight / self.shape**2
        return gradient, torch.diag_embed(diagonal)

    def _guess(self, pred: Prediction, obs: Observation) -> State:
        guess = obs.guess
        assert guess is not None  # checked by Problem: `requires`
        parts = _PARTS if self.shape is None else (*_PARTS, "betas")
        got, expected = ({name: getattr(s, name).shape[1] for name in parts} for s in (guess, pred.state))
        if got != expected:
            raise ValueError(
                f"objective {self.name}: an estimate of {got}, expected that of the body, {expected}"
            )
        return guess

    def _scale(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B N"]:
        """`1 / (sqrt(2) spread)` of root and body joints, a row for each person."""
        joints, like = 1 + pred.state.body_pose.shape[1], pred.state.transl
        spreads = (self.spread,) * joints if isinstance(self.spread, float) else self.spread
        if len(spreads) != joints:
            raise ValueError(
                f"objective {self.name}: {len(spreads)} spreads, expected one, or one for each of {joints} joints (the "
                f"root and {joints - 1} of the body)"
            )

        def make() -> Tensor:
            scale = [1 / (math.sqrt(2) * each) for each in spreads]
            return torch.tensor(scale, dtype=like.dtype, device=like.device).expand(len(like), -1)

        return obs.once(("guess", spreads, like.dtype, like.device), make)


class GuessedDepth(Objective):
    """Keep every joint as far behind or in front of the root as an estimate, `Observation.guess`, has it.

    A photo says where joints are in the image plane and hardly anything of their depth; what an estimate knows beyond
    the photo is depth. So this term holds that, and leaves the plane to what was seen. The row of joint j is
    `((z_j - z_root) - (z_j - z_root)_guess) / spread`, z along the optical axis.

    Args:
        spread: standard deviation of the estimate's relative depths, metres.

    Raises:
        ValueError: a spread that is not positive.
    """

    name = "guessed_depth"
    requires = frozenset({"guess"})

    def __init__(self, spread: float = 0.05) -> None:
        if not _positive(spread) or math.isinf(spread):
            raise ValueError(f"objective {self.name}: spread is {spread}, expected metres above zero")
        self.spread = float(spread)

    def residual(self, pred: Prediction, obs: Observation) -> Tensor:
        guess = obs.guess
        assert guess is not None  # checked by Problem: `requires`
        wanted = obs.once((self.name, pred.body.name), lambda: _depths(pred.body.joints(guess)))
        return (_depths(pred.joints) - wanted.to(pred.state.transl)) / self.spread

    def jacobian(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B N 1 D"]:
        moved = pred.keypoints_jacobian(pred.body.joint_set.name)[:, :, 2:]
        return (moved[:, 1:_BODY] - moved[:, :1]) / self.spread


def _depths(joints: Float[Tensor, "B J 3"]) -> Float[Tensor, "B N"]:
    """Of the joints of the body, hands left out, behind the root."""
    return joints[:, 1:_BODY, 2] - joints[:, :1, 2]


def _positive(number: float) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and number > 0


def _rotations(state: State) -> Float[Tensor, "B N 3 3"]:
    return torch.cat([getattr(state, name) for name in _PARTS], 1)


def _width(pred: Prediction) -> int:
    return max(block.stop for block in pred.blocks.values())


def _places(pred: Prediction) -> dict[str, slice]:
    """Of the parts that may move, their joints in `_rotations`."""
    places = {"global_orient": slice(0, 1), "body_pose": slice(1, 1 + pred.state.body_pose.shape[1])}
    return {name: place for name, place in places.items() if name in pred.blocks}

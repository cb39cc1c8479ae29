"""Limited-memory BFGS, batched, with a history of their own for every person."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit.solvers.line_search import Curvature, QuasiNewton, curved


@dataclass(frozen=True)
class Pairs(Curvature):
    """The last m steps and gradient changes of each person.

    Attributes:
        steps, changes: `(B, m, D)`, oldest first.
        inverse: `(B, m)` one over their product, 0 for a pair that says nothing.
        scale: `(B,)` inverse curvature where no pair knows better.
    """

    steps: Tensor
    changes: Tensor
    inverse: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.scale)

    @property
    def fresh(self) -> Tensor:
        return (self.inverse == 0).all(1)

    def updated(self, step: Tensor, change: Tensor, where: Tensor) -> Pairs:
        product, useful = curved(step, change, where)
        inverse = torch.where(useful, 1 / product, 0.0)
        pushed = replace(
            self,
            steps=torch.cat([self.steps[:, 1:], step[:, None]], 1),
            changes=torch.cat([self.changes[:, 1:], change[:, None]], 1),
            inverse=torch.cat([self.inverse[:, 1:], inverse[:, None]], 1),
        )
        return Pairs(
            torch.where(useful[:, None, None], pushed.steps, self.steps),
            torch.where(useful[:, None, None], pushed.changes, self.changes),
            torch.where(useful[:, None], pushed.inverse, self.inverse),
            torch.where(useful, product / change.square().sum(1).clamp_min(1e-30), self.scale),
        )

    def forgotten(self, where: Tensor) -> Pairs:
        return replace(self, inverse=torch.where(where[:, None], 0.0, self.inverse))

    def newton(self, gradient: Tensor) -> Tensor:
        """The two-loop recursion; pairs with an inverse of zero drop out."""
        kept = []
        for pair in reversed(range(self.steps.shape[1])):
            factor = self.inverse[:, pair] * (self.steps[:, pair] * gradient).sum(1)
            gradient = gradient - factor[:, None] * self.changes[:, pair]
            kept.append(factor)
        gradient = gradient * self.scale[:, None]
        for pair, factor in zip(range(self.steps.shape[1]), reversed(kept), strict=True):
            other = self.inverse[:, pair] * (self.changes[:, pair] * gradient).sum(1)
            gradient = gradient + self.steps[:, pair] * (factor - other)[:, None]
        return gradient


class LBFGS(QuasiNewton):
    """Liu & Nocedal (1989): what `torch.optim.LBFGS` does for one problem, done for a batch.

    Every person has a direction, a step length and a history of their own, so a hard person never changes
    another's result. Any differentiable objective will do; gradients come from automatic differentiation in the
    problem's coordinates.

    Args:
        max_steps: evaluations of a run without a schedule.
        tolerance: relative fall of the energy below which a person is done.
        history: pairs kept.
        max_tries: evaluations on one line.
        gradient_tolerance: see `Iterative`.
        step_tolerance: see `Iterative`.
    """

    name = "lbfgs"

    def __init__(
        self,
        max_steps: int = 300,
        tolerance: float = 1e-6,
        history: int = 10,
        max_tries: int = 20,
        gradient_tolerance: float = 1e-7,
        step_tolerance: float = 1e-9,
    ) -> None:
        super().__init__(max_steps, tolerance, max_tries, gradient_tolerance, step_tolerance)
        self.history = history

    def _ignorance(self, x: Tensor) -> Pairs:
        pairs = x.new_zeros(len(x), self.history, x.shape[1])
        return Pairs(pairs, pairs, pairs[..., 0], torch.ones_like(x[:, 0]))

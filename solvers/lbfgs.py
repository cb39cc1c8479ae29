"""Limited-memory BFGS, batched, with a history of their own for every person."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit.solvers.line_search import Curvature, QuasiNewton, curved


@dataclass(frozen=True)
class Pairs(Curvature):
    """The last m steps and gradient changes of each person, rows of zeros before there were so many.

    Attributes:
        steps, changes: `(B, m, D)`, oldest first.
        guess: `(B, D)` inverse curvature of every unknown, as it was at the start.
        scale: `(B,)` what the guess is multiplied by since then.
    """

    steps: Tensor
    changes: Tensor
    guess: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.scale)

    @property
    def fresh(self) -> Tensor:
        return (self.steps[:, -1] == 0).all(1)

    def updated(self, step: Tensor, change: Tensor, where: Tensor) -> Pairs:
        product, useful = curved(step, change, where)
        rows = useful[:, None, None]
        return Pairs(
            torch.where(rows, torch.cat([self.steps[:, 1:], step[:, None]], 1), self.steps),
            torch.where(rows, torch.cat([self.changes[:, 1:], change[:, None]], 1), self.changes),
            self.guess,
            torch.where(useful, product / (change * self.guess * change).sum(1).clamp_min(1e-30), self.scale),
        )

    def forgotten(self, where: Tensor) -> Pairs:
        rows = where[:, None, None]
        steps, changes = self.steps.masked_fill(rows, 0), self.changes.masked_fill(rows, 0)
        return replace(self, steps=steps, changes=changes, scale=self.scale.masked_fill(where, 1))

    def newton(self, gradient: Tensor) -> Tensor:
        """The two-loop recursion in its compact form, of few products (Byrd, Nocedal & Schnabel 1994, eq. 3.1)."""
        steps, changes, scale = self.steps, self.changes, (self.scale[:, None] * self.guess)[..., None]
        products = steps @ changes.mT
        curvature = products.diagonal(dim1=1, dim2=2)
        # A row that is not there yet has a one in its corner, and drops out.
        upper = products.triu() + torch.diag_embed((curvature == 0).to(curvature.dtype))
        along = steps @ gradient[..., None]
        first = torch.linalg.solve_triangular(upper, along, upper=True)
        bent = changes @ (scale * (changes.mT @ first - gradient[..., None]))
        second = torch.linalg.solve_triangular(upper.mT, curvature[..., None] * first + bent, upper=False)
        moved = scale * (gradient[..., None] - changes.mT @ first) + steps.mT @ second
        return moved[..., 0]


class LBFGS(QuasiNewton):
    """Liu & Nocedal (1989): what `torch.optim.LBFGS` does for one problem, done for a batch.

    Every person has a direction, a step length and a history of their own, so a hard person never changes
    another's result. Any differentiable objective will do; gradients come from automatic differentiation in the
    problem's coordinates.

    Args:
        history: pairs kept; the other settings are those of `QuasiNewton`.
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
        scaled: bool = True,
    ) -> None:
        super().__init__(max_steps, tolerance, max_tries, gradient_tolerance, step_tolerance, scaled)
        if history < 1:
            raise ValueError(f"{self.name}: history is {history}, expected at least 1")
        self.history = history

    def _ignorance(self, guess: Tensor) -> Pairs:
        pairs = guess.new_zeros(len(guess), self.history, guess.shape[1])
        return Pairs(pairs, pairs, guess, torch.ones_like(guess[:, 0]))

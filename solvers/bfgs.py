"""BFGS with a dense inverse Hessian for every person."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.solvers.line_search import Curvature, QuasiNewton, curved


@dataclass(frozen=True)
class InverseHessian(Curvature):
    """What is believed of the inverse Hessian of each person.

    Attributes:
        matrix: `(B, D, D)`.
        guess: `(B, D)` its diagonal at the start.
        untouched: `(B,)` whether it is still that.
    """

    matrix: Tensor
    guess: Tensor
    untouched: Tensor

    def __len__(self) -> int:
        return len(self.untouched)

    @property
    def fresh(self) -> Tensor:
        return self.untouched

    def updated(self, step: Tensor, change: Tensor, where: Tensor) -> InverseHessian:
        product, useful = curved(step, change, where)
        # Before the first update the guess takes the size of the curvature seen (Nocedal & Wright, 6.20).
        size = product / (change * self.guess * change).sum(1).clamp_min(1e-30)
        matrix = self.matrix * torch.where(useful & self.untouched, size, 1.0)[:, None, None]
        moved = (matrix @ change[..., None])[..., 0]
        weight = torch.where(useful, 1 / product, 0.0)
        along = weight * (1 + weight * (change * moved).sum(1))
        cross = (weight[:, None] * step)[:, :, None] * moved[:, None]
        matrix = matrix + along[:, None, None] * step[:, :, None] * step[:, None] - cross - cross.mT
        return InverseHessian(matrix, self.guess, self.untouched & ~useful)

    def forgotten(self, where: Tensor) -> InverseHessian:
        matrix = torch.where(where[:, None, None], torch.diag_embed(self.guess), self.matrix)
        return InverseHessian(matrix, self.guess, self.untouched | where)

    def newton(self, gradient: Tensor) -> Tensor:
        return (self.matrix @ gradient[..., None])[..., 0]


class BFGS(QuasiNewton):
    """Broyden, Fletcher, Goldfarb, Shanno (1970), Nocedal & Wright (2006), algorithm 6.1.

    The baseline of HUND (figures 3 and 4), for a batch: every person has an inverse Hessian and a line search of
    their own.

    Args:
        max_steps: evaluations of a run without a schedule.
        tolerance: relative fall of the energy below which a person is done.
        max_tries: evaluations on one line.
        gradient_tolerance: see `Iterative`.
        step_tolerance: see `Iterative`.
        scaled: whether the first guess of the curvature is the Gauss-Newton diagonal, or none.
    """

    name = "bfgs"

    def __init__(
        self,
        max_steps: int = 300,
        tolerance: float = 1e-6,
        max_tries: int = 20,
        gradient_tolerance: float = 1e-7,
        step_tolerance: float = 1e-9,
        scaled: bool = True,
    ) -> None:
        super().__init__(max_steps, tolerance, max_tries, gradient_tolerance, step_tolerance, scaled)

    def _ignorance(self, guess: Tensor) -> InverseHessian:
        return InverseHessian(torch.diag_embed(guess), guess, torch.ones_like(guess[:, 0], dtype=torch.bool))

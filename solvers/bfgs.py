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
        # Both rank-one parts as one product of two columns, so that no more of these large matrices are made.
        left = torch.stack([step, -weight[:, None] * moved], 2)
        right = torch.stack([along[:, None] * step - weight[:, None] * moved, step], 2)
        matrix = torch.baddbmm(matrix, left, right.mT)
        return InverseHessian(matrix, self.guess, self.untouched & ~useful)

    def forgotten(self, where: Tensor) -> InverseHessian:
        matrix = self.matrix.masked_fill(where[:, None, None], 0)
        matrix.diagonal(dim1=1, dim2=2).add_(where[:, None] * self.guess)
        return InverseHessian(matrix, self.guess, self.untouched | where)

    def newton(self, gradient: Tensor) -> Tensor:
        return (self.matrix @ gradient[..., None])[..., 0]


class BFGS(QuasiNewton):
    """Broyden, Fletcher, Goldfarb, Shanno (1970), Nocedal & Wright (2006), algorithm 6.1.

    The baseline of HUND (figures 3 and 4), for a batch: every person has an inverse Hessian and a line search of
    their own. Settings are those of `QuasiNewton`.
    """

    name = "bfgs"

    def _ignorance(self, guess: Tensor) -> InverseHessian:
        return InverseHessian(torch.diag_embed(guess), guess, torch.ones_like(guess[:, 0], dtype=torch.bool))

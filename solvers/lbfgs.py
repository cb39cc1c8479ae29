"""Limited-memory BFGS, batched, with a strong-Wolfe line search of its own for every person."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit._select import Rows
from fitkit.problem import Problem
from fitkit.solve import Outcome, Solver, Status
from fitkit.state import State


@dataclass(frozen=True)
class LBFGSMemory(Rows):
    """Chart, position, gradient and the last pairs of steps and gradient changes, one row per person."""

    reference: State
    x: Tensor
    energy: Tensor
    gradient: Tensor
    steps: Tensor
    changes: Tensor
    inverse: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.x)


class LBFGS(Solver):
    """Liu & Nocedal (1989) with the line search of Nocedal & Wright (2006), algorithms 3.5 and 3.6.

    What `torch.optim.LBFGS` does for one problem, done for a batch: every person has a direction, a step length
    and a history of their own, so a hard person never changes another's result. Any differentiable objective will
    do; gradients come from automatic differentiation in the problem's coordinates.

    Args:
        max_steps: of a run without a schedule.
        tolerance: relative fall of the energy below which a person is done.
        history: pairs kept.
        max_evaluations: of the line search, per step.
    """

    name = "lbfgs"

    def __init__(
        self, max_steps: int = 300, tolerance: float = 1e-6, history: int = 10, max_evaluations: int = 20
    ) -> None:
        self.max_steps, self.tolerance = max_steps, tolerance
        self.history, self.max_evaluations = history, max_evaluations

    def init(self, problem: Problem, state: State) -> tuple[LBFGSMemory, Status]:
        chart = problem.chart(state)
        x = chart.encode(state)
        energy, gradient = problem.value_and_grad(x, chart)
        pairs = x.new_zeros(len(x), self.history, x.shape[1])
        inverse = x.new_zeros(len(x), self.history)
        # The first step has the length of a plain gradient step of size one at most.
        scale = 1 / gradient.norm(dim=1).clamp_min(1.0)
        memory = LBFGSMemory(state, x, energy, gradient, pairs, pairs, inverse, scale)
        outcome = torch.where(torch.isfinite(energy), Outcome.RUNNING, Outcome.NOT_FINITE)
        return memory, Status(outcome, energy, _values(problem, state))

    def step(self, problem: Problem, state: State, memory: LBFGSMemory) -> tuple[State, LBFGSMemory, Status]:
        direction = _direction(memory)
        slope = (direction * memory.gradient).sum(1)
        uphill = slope >= 0
        direction = torch.where(uphill[:, None], -memory.gradient, direction)
        slope = torch.where(uphill, -memory.gradient.square().sum(1), slope)
        search = _Search(problem, memory, direction, slope)
        x, energy, gradient = search.run(self.max_evaluations)
        fall = (memory.energy - energy) / memory.energy.abs().clamp_min(1e-12)
        step, change = x - memory.x, gradient - memory.gradient
        curvature = (step * change).sum(1)
        useful = curvature > 1e-10 * step.norm(dim=1) * change.norm(dim=1)
        inverse = torch.where(useful, 1 / curvature.clamp_min(1e-30), torch.zeros_like(curvature))
        scale = torch.where(useful, curvature / change.square().sum(1).clamp_min(1e-30), memory.scale)
        memory = replace(
            memory,
            x=x,
            energy=energy,
            gradient=gradient,
            steps=torch.cat([memory.steps[:, 1:], step[:, None]], 1),
            changes=torch.cat([memory.changes[:, 1:], change[:, None]], 1),
            inverse=torch.cat([memory.inverse[:, 1:], inverse[:, None]], 1),
            scale=scale,
        )
        moved = (step != 0).any(1)
        outcome = torch.where(moved & (fall < self.tolerance), Outcome.CONVERGED, Outcome.RUNNING)
        outcome = torch.where(~moved, Outcome.STALLED, outcome)
        state = problem.chart(memory.reference).decode(x)
        return state, memory, Status(outcome, energy, _values(problem, state))


def _values(problem: Problem, state: State) -> Tensor:
    return torch.stack(list(problem.values(state).values()), 1)


def _direction(memory: LBFGSMemory) -> Tensor:
    """The two-loop recursion; pairs without curvature have an inverse of zero and drop out."""
    gradient, kept = memory.gradient.clone(), []
    for pair in reversed(range(memory.steps.shape[1])):
        factor = memory.inverse[:, pair] * (memory.steps[:, pair] * gradient).sum(1)
        gradient = gradient - factor[:, None] * memory.changes[:, pair]
        kept.append(factor)
    gradient = gradient * memory.scale[:, None]
    for pair, factor in zip(range(memory.steps.shape[1]), reversed(kept), strict=True):
        other = memory.inverse[:, pair] * (memory.changes[:, pair] * gradient).sum(1)
        gradient = gradient + memory.steps[:, pair] * (factor - other)[:, None]
    return -gradient


class _Search:
    """Strong-Wolfe line search for all people at once; each leaves when its own conditions hold.

    Args:
        problem: of the people.
        memory: where they stand.
        direction: `(B, D)` of descent.
        slope: `(B,)` of the energy along it, negative.
    """

    SUFFICIENT, CURVATURE = 1e-4, 0.9

    def __init__(self, problem: Problem, memory: LBFGSMemory, direction: Tensor, slope: Tensor) -> None:
        self.problem, self.memory, self.direction, self.slope = problem, memory, direction, slope

    def run(self, evaluations: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, energies and gradients at the accepted steps; unchanged where no step lowers the energy."""
        memory = self.memory
        best_x, best_energy, best_gradient = memory.x.clone(), memory.energy.clone(), memory.gradient.clone()
        # (step, energy, slope) of the two ends; `high` is infinitely far until the minimum is bracketed.
        low = [torch.zeros_like(self.slope), memory.energy.clone(), self.slope.clone()]
        high = [
            torch.full_like(self.slope, float("inf")),
            *torch.zeros_like(self.slope).expand(2, -1).clone(),
        ]
        trial = torch.ones_like(self.slope)
        active = torch.isfinite(self.slope) & (self.slope < 0)
        for _ in range(evaluations):
            rows = active.nonzero()[:, 0]
            if len(rows) == 0:
                break
            x, energy, gradient = self._evaluate(rows, trial[rows])
            slope = (gradient * self.direction[rows]).sum(1)
            step, start, steep = trial[rows], memory.energy[rows], self.slope[rows]
            enough = torch.isfinite(energy) & (energy <= start + self.SUFFICIENT * step * steep)
            better = enough & (energy < best_energy[rows])
            taken = rows[better]
            best_x[taken], best_energy[taken], best_gradient[taken] = (
                x[better],
                energy[better],
                gradient[better],
            )
            flat = enough & (slope.abs() <= -self.CURVATURE * steep)
            over = ~enough | (energy >= low[1][rows])
            # The minimum lies between `low` and the trial (over), or the trial is the new `low`.
            self._move(high, rows[over], step[over], energy[over], slope[over])
            turned = ~over & (slope * (high[0][rows] - low[0][rows]).clamp(-1, 1) >= 0)
            behind = rows[turned]
            self._move(high, behind, low[0][behind], low[1][behind], low[2][behind])
            self._move(low, rows[~over], step[~over], energy[~over], slope[~over])
            trial[rows] = self._next(rows, low, high)
            active[rows] = ~flat & ((high[0][rows] - low[0][rows]).abs() > 1e-9)
        return best_x, best_energy, best_gradient

    def _evaluate(self, rows: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.memory.x[rows] + step[:, None] * self.direction[rows]
        problem = self.problem.select(rows)
        energy, gradient = problem.value_and_grad(x, problem.chart(self.memory.reference.select(rows)))
        return x, energy, gradient

    @staticmethod
    def _move(end: list[Tensor], rows: Tensor, step: Tensor, energy: Tensor, slope: Tensor) -> None:
        end[0][rows], end[1][rows], end[2][rows] = step, energy, slope

    @staticmethod
    def _next(rows: Tensor, low: list[Tensor], high: list[Tensor]) -> Tensor:
        """The minimum of the parabola through both ends, kept well inside; twice as far while unbracketed."""
        step, energy, slope = low[0][rows], low[1][rows], low[2][rows]
        bracketed = torch.isfinite(high[0][rows])
        width = torch.where(bracketed, high[0][rows] - step, torch.ones_like(step))
        # What is not finite there counts as infinitely high: the next trial is close to `low`.
        bend = torch.nan_to_num(high[1][rows] - energy - slope * width, nan=torch.inf, posinf=torch.inf)
        fraction = -0.5 * slope * width / torch.where(bend.abs() > 1e-30, bend, torch.full_like(bend, 1e-30))
        fraction = torch.where(torch.isfinite(fraction), fraction, torch.full_like(fraction, 0.5)).clamp(
            0.1, 0.9
        )
        return torch.where(bracketed, step + fraction * width, (2 * step).clamp_min(1.0))

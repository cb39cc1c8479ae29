"""Levenberg-Marquardt on the manifold of body states, batched, with damping of its own for every person."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit._select import Rows, choose
from fitkit.coordinates import Coordinates
from fitkit.problem import Problem
from fitkit.solver import Iterative, Outcome, Status, outcome_at_start
from fitkit.state import State


@dataclass(frozen=True)
class LMMemory(Rows):
    """Damping, what it scales, and the linearisation at the state in the chart there, one row per person."""

    damping: Tensor
    scale: Tensor
    hessian: Tensor
    gradient: Tensor
    energy: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.damping)


class LM(Iterative):
    """Levenberg (1944), Marquardt (1963): Gauss-Newton steps, damped until they lower the objective.

    Robust kernels enter by iteratively reweighted least squares, or with their curvature; a step is taken only
    where the true objective falls, so the energy never rises. Every step has a chart of its own, at the state
    where it starts; in the rotation tangent that is `R exp(w)`.

    Args:
        max_steps: of a run without a schedule.
        tolerance: relative fall of the energy below which a person is done.
        damping: at the start, relative to the diagonal.
        triggs: whether the curvature of robust kernels enters (see `Problem.linearize`). It sees an outlier where
            the start is far off, and so needs a schedule that begins wide, or a start near the data.
        gradient_tolerance: see `Iterative`.
        step_tolerance: see `Iterative`.
    """

    name = "lm"

    def __init__(
        self,
        max_steps: int = 30,
        tolerance: float = 1e-3,
        damping: float = 1e-3,
        triggs: bool = False,
        gradient_tolerance: float = 0.0,
        step_tolerance: float = 0.0,
    ) -> None:
        super().__init__(max_steps, tolerance, gradient_tolerance, step_tolerance)
        self.damping, self.triggs = damping, triggs

    def init(self, problem: Problem, state: State) -> tuple[LMMemory, Status]:
        memory = self._linearize(problem, state)
        free, _ = _held(problem, problem.chart(state), memory)
        return memory, Status(outcome_at_start(memory.energy, free.gradient), memory.energy, memory.values)

    def step(self, problem: Problem, state: State, memory: LMMemory) -> tuple[State, LMMemory, Status]:
        chart = problem.chart(state)
        free, x = _held(problem, chart, memory)
        newton, solved = _damped_step(free)
        delta = newton
        if x is not None:
            low, high = problem.limits(chart)
            delta = (x + newton).clamp(low, high) - x
        there = chart.moved(delta)
        tried = self._linearize(problem, there)
        # False where it is not finite; a state without a gradient would be the end of the road.
        finite = torch.isfinite(tried.energy + tried.gradient.sum(1))
        lower = (tried.energy < memory.energy) & finite
        damping = torch.where(lower, memory.damping * 0.3, memory.damping * 4).clamp(1e-9, 1e8)

        # What a refused step promised says whether there was anything to win, as long as damping has not made it small.
        promised = -0.5 * (free.gradient * newton).sum(1)
        flat = solved & (promised <= 0.1 * self.tolerance * memory.energy.abs())
        done = self._done(memory.energy - tried.energy, memory.energy, free.gradient, delta)
        if x is not None:  # a step that a bound cut short is no sign of an end
            done = done & (promised <= self.tolerance * memory.energy.abs())
        stuck = ~lower & ((flat & (damping >= 1)) | (damping > 1e6))
        outcome = torch.zeros_like(lower, dtype=torch.long)
        outcome.masked_fill_(torch.where(lower, done, flat), Outcome.CONVERGED)
        outcome.masked_fill_(stuck, Outcome.STALLED)
        outcome.masked_fill_((stuck | (flat & ~lower)) & ~finite, Outcome.NOT_FINITE_NEARBY)

        state = choose(lower, there, state)
        memory = choose(lower, replace(tried, damping=damping), replace(memory, damping=damping))
        return state, memory, Status(outcome, memory.energy, memory.values)

    def _linearize(self, problem: Problem, state: State) -> LMMemory:
        chart = problem.chart(state)
        here = problem.linearize_in(chart, self.triggs)
        # One of too many numbers that hardly turns anything would be damped hardly at all, and run away.
        scale = chart.evened(here.hessian.diagonal(dim1=1, dim2=2))
        values = torch.stack(list(here.values.values()), 1)
        damping = torch.full_like(here.energy, self.damping)
        return LMMemory(damping, scale, here.hessian, here.gradient, here.energy, values)


def _held(problem: Problem, chart: Coordinates, memory: LMMemory) -> tuple[LMMemory, Tensor | None]:
    """The linearisation without what a bound holds back, and the x that the bounds are about (None: no bounds)."""
    if not problem.bounds:
        return memory, None
    x = chart.encode(chart.reference)
    held = problem.held(chart, x, memory.gradient)
    apart = held[:, :, None] | held[:, None]
    hessian = memory.hessian.masked_fill(apart, 0) + torch.diag_embed(held.to(x.dtype))
    return replace(memory, gradient=memory.gradient.masked_fill(held, 0), hessian=hessian), x


def _damped_step(memory: LMMemory) -> tuple[Tensor, Tensor]:
    """The step `(B, D)`, zero where rounding left no factor, and `(B,)` whether there was one."""
    # The floor keeps columns that nothing observes (a hidden wrist without a prior) solvable and still.
    damped = memory.hessian.clone()
    damped.diagonal(dim1=1, dim2=2).add_(memory.damping[:, None] * memory.scale + 1e-6)
    factor, failed = torch.linalg.cholesky_ex(damped)
    delta = -torch.cholesky_solve(memory.gradient[..., None], factor)[..., 0]
    solved = failed == 0
    return delta.masked_fill(~solved[:, None], 0), solved

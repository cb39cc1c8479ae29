"""Levenberg-Marquardt on the manifold of body states, batched, with damping of its own for every person."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit._select import Rows, choose
from fitkit.coordinates import retract
from fitkit.problem import Linearization, Problem
from fitkit.solve import Outcome, Solver, Status
from fitkit.state import State


@dataclass(frozen=True)
class LMMemory(Rows):
    """Damping and the linearisation at the current state, one row per person."""

    damping: Tensor
    hessian: Tensor
    gradient: Tensor
    energy: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.damping)


class LM(Solver):
    """Levenberg (1944), Marquardt (1963): Gauss-Newton steps, damped until they lower the objective.

    Robust kernels enter by iteratively reweighted least squares; a step is taken only where the true objective
    falls, so the energy never rises. Rotations move by `R exp(w)`.

    Args:
        max_steps: of a run without a schedule.
        tolerance: relative fall of the energy below which a person is done.
        damping: at the start, relative to the diagonal.
    """

    name = "lm"

    def __init__(self, max_steps: int = 30, tolerance: float = 3e-4, damping: float = 1e-3) -> None:
        self.max_steps, self.tolerance, self.damping = max_steps, tolerance, damping

    def init(self, problem: Problem, state: State) -> tuple[LMMemory, Status]:
        here = problem.linearize(state)
        damping = torch.full_like(here.energy, self.damping)
        outcome = torch.where(torch.isfinite(here.energy), Outcome.RUNNING, Outcome.NOT_FINITE)
        memory = _memory(here, damping)
        return memory, Status(outcome, memory.energy, memory.values)

    def step(self, problem: Problem, state: State, memory: LMMemory) -> tuple[State, LMMemory, Status]:
        delta = _damped_step(memory)
        promised = -0.5 * (memory.gradient * delta).sum(1) / memory.energy.clamp_min(1e-12)
        there = retract(state, delta, problem.free_blocks(state))
        tried = problem.linearize(there)
        lower = tried.energy < memory.energy  # False where it is not finite
        fall = (memory.energy - tried.energy) / memory.energy.clamp_min(1e-12)
        damping = torch.where(lower, memory.damping * 0.3, memory.damping * 4).clamp(1e-9, 1e8)
        state = choose(lower, there, state)
        memory = choose(lower, _memory(tried, damping), replace(memory, damping=damping))
        done = torch.where(lower, fall < self.tolerance, promised < 0.1 * self.tolerance)
        outcome = torch.where(done, Outcome.CONVERGED, Outcome.RUNNING)
        outcome = torch.where(~lower & (damping > 1e6), Outcome.STALLED, outcome)
        return state, memory, Status(outcome, memory.energy, memory.values)


def _damped_step(memory: LMMemory) -> Tensor:
    diagonal = memory.hessian.diagonal(dim1=1, dim2=2)
    # The floor keeps columns that nothing observes (a hidden wrist without a prior) solvable and still.
    damped = memory.hessian + torch.diag_embed(memory.damping[:, None] * diagonal + 1e-6)
    factor, _ = torch.linalg.cholesky_ex(damped)
    delta = -torch.cholesky_solve(memory.gradient[..., None], factor)[..., 0]
    return torch.where(torch.isfinite(delta), delta, torch.zeros_like(delta))


def _memory(here: Linearization, damping: Tensor) -> LMMemory:
    values = torch.stack(list(here.values.values()), 1)
    return LMMemory(damping, here.hessian, here.gradient, here.energy, values)

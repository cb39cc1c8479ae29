"""Adam, batched, with the two-stage schedule that most published fitting code uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit._select import Rows
from fitkit.problem import Problem
from fitkit.solver import Iterative, Outcome, Stage, Status, outcome_at_start
from fitkit.state import State

_SEEN = ("keypoints_2d", "keypoints_3d", "directions")


@dataclass(frozen=True)
class AdamMemory(Rows):
    """Moments, the point to look at next, and the best so far, one row per person."""

    reference: State
    x: Tensor
    gradient: Tensor
    mean: Tensor
    square: Tensor
    time: Tensor
    best_x: Tensor
    best_energy: Tensor
    best_values: Tensor
    patience: Tensor

    def __len__(self) -> int:
        return len(self.x)


class Adam(Iterative):
    """Kingma & Ba (ICLR 2015); learning rate and stages of SMPLify as SPIN runs it (Kolotouros et al., ICCV 2019).

    100 steps place the body (root and translation only), 100 more move everything. Adam does not lower the energy
    at every step; the state of a person is the best that was seen.

    Args:
        max_steps: of a stage of the schedule.
        rate: learning rate.
        decay: of the two moments.
        tolerance: relative fall of the best energy over `patience` steps below which a person is done.
        patience: steps.
        gradient_tolerance: see `Iterative`.
        step_tolerance: see `Iterative`.
    """

    name = "adam"

    def __init__(
        self,
        max_steps: int = 100,
        rate: float = 0.01,
        decay: tuple[float, float] = (0.9, 0.999),
        tolerance: float = 1e-6,
        patience: int = 20,
        gradient_tolerance: float = 1e-7,
        step_tolerance: float = 0.0,
    ) -> None:
        super().__init__(max_steps, tolerance, gradient_tolerance, step_tolerance)
        if patience < 1 or not rate > 0:
            raise ValueError(
                f"adam: patience is {patience} and rate {rate}, expected at least 1 and more than 0"
            )
        self.rate, self.decay, self.patience = rate, decay, patience
        self.stages = (
            Stage(
                max_steps,
                ("global_orient", "transl"),
                widen=None,
                only=_SEEN,
                keep_of_each=2,
                hinted=True,
                name="camera",
            ),
            Stage(max_steps, name="body"),
        )

    def init(self, problem: Problem, state: State) -> tuple[AdamMemory, Status]:
        chart = problem.chart(state)
        x = chart.encode(state)
        values, gradient = problem.values_and_grad(x, chart)
        energy, none = values.sum(1), torch.zeros_like(x)
        time = torch.zeros_like(energy)
        memory = AdamMemory(state, x, gradient, none, none, time, x, energy, values, time)
        outcome = outcome_at_start(energy, problem.unheld(chart, x, gradient))
        return memory, Status(outcome, energy, values)

    def step(self, problem: Problem, state: State, memory: AdamMemory) -> tuple[State, AdamMemory, Status]:
        chart = problem.chart(memory.reference)
        first, second = self.decay
        mean = first * memory.mean + (1 - first) * memory.gradient
        square = second * memory.square + (1 - second) * memory.gradient.square()
        time = memory.time + 1
        size = mean / (1 - first**time)[:, None]
        spread = (square / (1 - second**time)[:, None]).sqrt()
        x = memory.x - self.rate * size / (spread + 1e-8)
        if problem.bounds:
            x = x.clamp(*problem.limits(chart))
        values, gradient = problem.values_and_grad(x, chart)
        energy = values.sum(1)
        fine = torch.isfinite(energy) & torch.isfinite(gradient).all(1)
        better = fine & (energy < memory.best_energy)
        much = fine & (
            energy < memory.best_energy - self.tolerance * memory.best_energy.abs() / self.patience
        )
        patience = torch.where(much, 0.0, memory.patience + 1)
        best_x = torch.where(better[:, None], x, memory.best_x)
        best_energy = torch.where(better, energy, memory.best_energy)
        best_values = torch.where(better[:, None], values, memory.best_values)
        quiet = patience >= self.patience
        done = quiet | ((gradient.abs().amax(1) <= self.gradient_tolerance) & (energy <= best_energy))
        # Strictly: without a tolerance, who is pushed into a corner of the bounds for a moment may come out of it.
        done = done | ((x - memory.x).abs().amax(1) < self.step_tolerance)
        outcome = torch.where(done, Outcome.CONVERGED, Outcome.RUNNING)
        # Who has found nothing better since the start has not come closer to anything: a jump, or too high a rate.
        outcome = torch.where(quiet & (patience == time), Outcome.STALLED, outcome)
        # Moments that have met a number that is not finite would never be rid of it.
        outcome = torch.where(fine, outcome, Outcome.NOT_FINITE_NEARBY)
        memory = AdamMemory(
            memory.reference, x, gradient, mean, square, time, best_x, best_energy, best_values, patience
        )
        return chart.decode(best_x), memory, Status(outcome, best_energy, best_values)

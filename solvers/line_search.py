"""What quasi-Newton solvers share: a strong-Wolfe line search that every person walks at a pace of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from fitkit._select import Rows, choose
from fitkit.coordinates import Coordinates
from fitkit.problem import Problem
from fitkit.solver import Iterative, Outcome, Status, outcome_at_start
from fitkit.state import State

C = TypeVar("C", bound="Curvature")

SUFFICIENT, FLAT = 1e-4, 0.9
NARROW = 1e-9


class Curvature(Rows, ABC):
    """What a solver has learned about the curvature of each person's energy: a frozen dataclass of rows."""

    @property
    @abstractmethod
    def fresh(self) -> Tensor:
        """`(B,)` bool: who has learned nothing yet."""

    @abstractmethod
    def updated(self: C, step: Tensor, change: Tensor, where: Tensor) -> C:
        """With one more pair.

        Args:
            step: `(B, D)` in x.
            change: `(B, D)` of the gradient along it.
            where: `(B,)` bool: who made a step; the others learn nothing.
        """

    @abstractmethod
    def forgotten(self: C, where: Tensor) -> C:
        """With everything forgotten of some people `(B,)`."""

    @abstractmethod
    def newton(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times a gradient, `(B, D)`."""


def curved(step: Tensor, change: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """`(B,)` product of a pair, and whether it is positive beyond rounding (and was made at all)."""
    product = (step * change).sum(1)
    norms = torch.linalg.vector_norm(step, dim=1) * torch.linalg.vector_norm(change, dim=1)
    useful = where & (product > 1e-10 * norms) & torch.isfinite(norms)
    return torch.where(useful, product, 1.0), useful


@dataclass(frozen=True)
class Point(Rows):
    """A place on a person's search line: how far along, the energy there, its slope, gradient and terms."""

    along: Tensor
    energy: Tensor
    slope: Tensor
    gradient: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.along)


@dataclass(frozen=True)
class SearchMemory(Rows):
    """Where each person stands and looks.

    Attributes:
        reference: centre of the chart.
        x: `(B, D)` last accepted point.
        start: it, on the present line: the energy and gradient there.
        direction: `(B, D)` of the present line.
        low: best point of the line so far; `start` at first.
        high: `(B, 3)` along, energy and slope at the other end of the bracket, infinitely far without one.
        trial: `(B,)` where to look next.
        tries: `(B,)` on this line.
        steepest: `(B,)` whether the line is that of the gradient, for want of a better one.
        curvature: learned so far.
    """

    reference: State
    x: Tensor
    start: Point
    direction: Tensor
    low: Point
    high: Tensor
    trial: Tensor
    tries: Tensor
    steepest: Tensor
    curvature: Curvature

    def __len__(self) -> int:
        return len(self.x)


class QuasiNewton(Iterative, ABC):
    """Descent along `-H g` with a line search after Nocedal & Wright (2006), algorithms 3.5 and 3.6.

    One step is one evaluation for everybody. A person whose point satisfies the strong Wolfe conditions takes it
    and turns to a new line; the others look further along theirs. So nobody waits for anybody, every evaluation is
    of the whole batch, and the host never asks how a search went. Bounds are met by projection: unknowns that a
    bound holds back leave the direction, and points of the line are moved into the bounds.

    Args:
        max_steps: evaluations of a run without a schedule.
        tolerance: relative fall of the energy below which a person is done.
        max_tries: evaluations on one line.
        gradient_tolerance: see `Iterative`.
        step_tolerance: see `Iterative`.
        scaled: whether the first guess of the curvature is the Gauss-Newton diagonal, or none.
    """

    def __init__(
        self,
        max_steps: int = 300,
        tolerance: float = 1e-6,
        max_tries: int = 20,
        gradient_tolerance: float = 1e-7,
        step_tolerance: float = 1e-9,
        scaled: bool = True,
    ) -> None:
        super().__init__(max_steps, tolerance, gradient_tolerance, step_tolerance)
        if max_tries < 1:
            raise ValueError(f"{self.name}: max_tries is {max_tries}, expected at least 1")
        self.max_tries, self.scaled = max_tries, scaled

    @abstractmethod
    def _ignorance(self, guess: Tensor) -> Curvature:
        """What is known before the first step: a guess of the inverse curvature of every unknown, `(B, D)`."""

    def _guess(self, problem: Problem, chart: Coordinates, gradient: Tensor) -> Tensor:
        """Inverse of the Gauss-Newton diagonal at the start: metres, radians and betas are of different sizes.

        Measured, it halves the steps of keypoint fits, and everybody converges. Unscaled: what makes the first step
        one of length one at most.
        """
        if not self.scaled:
            length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            return (1 / length.clamp_min(1.0)).expand_as(gradient)
        diagonal = chart.evened(problem.linearize_in(chart).hessian.diagonal(dim1=1, dim2=2))
        # What the start says little about is not what turns most.
        diagonal = torch.maximum(diagonal, 1e-3 * diagonal.amax(1, keepdim=True))
        return torch.where(torch.isfinite(diagonal) & (diagonal > 0), 1 / diagonal, 1.0)

    def init(self, problem: Problem, state: State) -> tuple[SearchMemory, Status]:
        chart = problem.chart(state)
        x = chart.encode(state)
        values, gradient = problem.values_and_grad(x, chart)
        energy, none = values.sum(1), torch.zeros_like(x[:, 0])
        start = Point(none, energy, none, gradient, values)
        curvature = self._ignorance(self._guess(problem, chart, gradient))
        lost = torch.zeros_like(none, dtype=torch.bool)
        memory = SearchMemory(state, x, start, x, start, x.new_zeros(len(x), 3), none, none, lost, curvature)
        memory = _turned(problem, chart, memory, ~lost)
        outcome = outcome_at_start(energy, problem.unheld(chart, x, gradient))
        return memory, Status(outcome, energy, values)

    def step(
        self, problem: Problem, state: State, memory: SearchMemory
    ) -> tuple[State, SearchMemory, Status]:
        chart = problem.chart(memory.reference)
        x, trial = self._look(problem, chart, memory)
        memory, wolfe, hopeless = self._narrowed(memory, trial)
        # The lowest point of a line that came to nothing better is a step too.
        taken = wolfe | (hopeless & (memory.low.along > 0))
        found = choose(wolfe, trial, memory.low)
        there = torch.where(wolfe[:, None], x, self._place(problem, chart, memory, memory.low.along))
        step = torch.where(taken[:, None], there - memory.x, 0.0)
        failed = hopeless & ~taken
        fall, slope = memory.start.energy - found.energy, problem.unheld(chart, there, found.gradient)
        done = taken & self._done(fall, memory.start.energy, slope, step)
        outcome = torch.where(done, Outcome.CONVERGED, Outcome.RUNNING)
        stuck = torch.where(torch.isfinite(trial.energy), Outcome.STALLED, Outcome.NOT_FINITE_NEARBY)
        outcome = torch.where(failed & memory.steepest, stuck, outcome)
        curvature = memory.curvature.updated(step, found.gradient - memory.start.gradient, taken)
        memory = replace(
            memory,
            x=torch.where(taken[:, None], there, memory.x),
            start=choose(taken, replace(found, along=torch.zeros_like(found.along)), memory.start),
            curvature=curvature.forgotten(failed),
            steepest=torch.where(taken, False, memory.steepest | failed),
        )
        memory = _turned(problem, chart, memory, taken | failed)
        return chart.decode(memory.x), memory, Status(outcome, memory.start.energy, memory.start.values)

    @staticmethod
    def _place(problem: Problem, chart: Coordinates, memory: SearchMemory, along: Tensor) -> Tensor:
        x = memory.x + along[:, None] * memory.direction
        return x.clamp(*problem.limits(chart)) if problem.bounds else x

    def _look(self, problem: Problem, chart: Coordinates, memory: SearchMemory) -> tuple[Tensor, Point]:
        """The trial points and what is there."""
        x = self._place(problem, chart, memory, memory.trial)
        values, gradient = problem.values_and_grad(x, chart)
        along = memory.direction
        if problem.bounds:  # on a bound the line goes on without what the bound holds
            low, high = problem.limits(chart)
            along = torch.where((x > low) & (x < high), along, 0.0)
        slope = (gradient * along).sum(1)
        finite = torch.isfinite(slope) & torch.isfinite(values).all(1)
        energy = torch.where(finite, values.sum(1), torch.inf)
        return x, Point(memory.trial, energy, slope, gradient, values)

    def _narrowed(self, memory: SearchMemory, trial: Point) -> tuple[SearchMemory, Tensor, Tensor]:
        """The bracket after a look; who met the Wolfe conditions, and who will not any more."""
        start, low, high = memory.start, memory.low, memory.high
        enough = trial.energy <= start.energy + SUFFICIENT * trial.along * start.slope
        wolfe = enough & (trial.slope.abs() <= -FLAT * start.slope)
        # The minimum lies between `low` and the trial (over), or the trial is the new `low`.
        over = ~enough | (trial.energy >= low.energy)
        turned = ~over & (trial.slope * (high[:, 0] - low.along).clamp(-1, 1) >= 0)
        here = torch.stack([trial.along, trial.energy, trial.slope], 1)
        was = torch.stack([low.along, low.energy, low.slope], 1)
        high = torch.where(over[:, None], here, torch.where(turned[:, None], was, high))
        low = choose(over, low, trial)
        tries = memory.tries + 1
        narrow = (high[:, 0] - low.along).abs() <= NARROW
        hopeless = ~wolfe & ((tries >= self.max_tries) | narrow)
        memory = replace(memory, low=low, high=high, trial=_next(low, high), tries=tries)
        return memory, wolfe, hopeless


def _turned(problem: Problem, chart: Coordinates, memory: SearchMemory, where: Tensor) -> SearchMemory:
    """New lines for some people, from where they stand."""
    gradient = problem.unheld(chart, memory.x, memory.start.gradient)
    direction = -memory.curvature.newton(gradient)
    if problem.bounds:
        direction = torch.where(gradient == 0, 0.0, direction)
    slope = (direction * gradient).sum(1)
    uphill = ~(slope < 0)
    # A plain gradient step has length one at most.
    plain = -gradient / torch.linalg.vector_norm(gradient, dim=1, keepdim=True).clamp_min(1.0)
    direction = torch.where(uphill[:, None], plain, direction)
    slope = torch.where(uphill, (plain * gradient).sum(1), slope)
    start = replace(memory.start, slope=torch.where(where, slope, memory.start.slope))
    far = torch.zeros_like(memory.high)
    far[:, 0] = torch.inf
    return replace(
        memory,
        start=start,
        direction=torch.where(where[:, None], direction, memory.direction),
        low=choose(where, start, memory.low),
        high=torch.where(where[:, None], far, memory.high),
        trial=torch.where(where, 1.0, memory.trial),
        tries=torch.where(where, 0.0, memory.tries),
        steepest=memory.steepest | (where & (uphill | memory.curvature.fresh)),
    )


def _next(low: Point, high: Tensor) -> Tensor:
    """The minimum of the parabola through both ends, kept well inside; further out while there is no bracket."""
    bracketed = torch.isfinite(high[:, 0])
    width = torch.where(bracketed, high[:, 0] - low.along, 1.0)
    # What is not finite there counts as infinitely high: the next trial is close to `low`.
    bend = torch.nan_to_num(high[:, 1] - low.energy - low.slope * width, nan=torch.inf, posinf=torch.inf)
    fraction = -0.5 * low.slope * width / torch.where(bend.abs() > 1e-30, bend, 1e-30)
    fraction = torch.where(torch.isfinite(fraction), fraction, 0.5).clamp(0.1, 0.9)
    return torch.where(bracketed, low.along + fraction * width, (2 * low.along).clamp_min(1.0))

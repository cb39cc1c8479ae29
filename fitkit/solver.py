"""Solver protocol: what a solver is, what it says of each person, and the schedules and chains it runs in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from fitkit._select import Rows
from fitkit.coordinates import Chart
from fitkit.problem import Problem
from fitkit.state import State


class Outcome(IntEnum):
    """Why a person's fit stopped."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    STALLED = 3
    NOT_FINITE = 4
    NOT_ENOUGH_SEEN = 5
    NO_GRADIENT = 6
    NOT_FINITE_NEARBY = 7
    MAX_SECONDS = 8
    FINISHED = 9

    @property
    def failed(self) -> bool:
        """Whether the state should not be used."""
        return self in (Outcome.NOT_FINITE, Outcome.NOT_ENOUGH_SEEN)

    @property
    def message(self) -> str:
        """In words."""
        return _MESSAGES[self]


_MESSAGES = {
    Outcome.RUNNING: "still running",
    Outcome.CONVERGED: "converged: the last step changed less than the tolerance",
    Outcome.MAX_STEPS: "stopped at the step limit; the state is the best so far",
    Outcome.STALLED: "stopped: no step lowers the objective any more (a minimum to rounding, or a jump or a wrong "
    "gradient of the objective)",
    Outcome.NOT_FINITE: "failed: the objective or its gradient is not finite, or an energy is negative",
    Outcome.NOT_ENOUGH_SEEN: "failed: fewer than 4 keypoints were seen",
    Outcome.NO_GRADIENT: "stopped at the start: the gradient is zero, so nothing that may move changes the objective "
    "there",
    Outcome.NOT_FINITE_NEARBY: "stopped: the objective is not finite wherever a step would lead; the state is the best "
    "so far",
    Outcome.MAX_SECONDS: "stopped at the time limit; the state is the best so far",
    Outcome.FINISHED: "done: the network has made all its stages",
}


@dataclass(frozen=True)
class Status(Rows):
    """Where a solver stands with each person after a step.

    Attributes:
        outcome: `(B,)` values of `Outcome`.
        energy: `(B,)` of the current state.
        values: `(B, T)` of each term, in the objective's order.
    """

    outcome: Tensor
    energy: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.outcome)


class Solver(ABC):
    """Lowers an objective from a start. A solver object holds settings (or network weights) only.

    Attributes:
        name: under which it is registered and reported.
        requires: parts of the Observation that it cannot do without.
        reads: parts that it reads as well, beside those of the objective, where they were observed.
        max_steps: steps of a run without a schedule.
        stages: schedule of a run where the caller gives none.
        coordinates: chart that it moves in where neither problem nor stage says; None for the rotation tangent.
        keeps_bounds: whether it keeps `Problem.bounds`; one that does not is refused where there are any.
        network: name of the network that it runs, for reports; "" for none.
    """

    name: str
    requires: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    max_steps: int = 100
    stages: tuple[Stage, ...] = ()
    coordinates: Chart | None = None
    keeps_bounds: bool = True
    network: str = ""

    def start(self, problem: Problem) -> State | None:
        """A start of its own for every person, instead of the several that `fit` would make.

        Asked without autograd, of the first solver only, and only where the caller gives no start.

        Args:
            problem: of B people, with all that was observed of them.

        Returns:
            B states, or None, which leaves it to `fit`.
        """
        return None

    @abstractmethod
    def init(self, problem: Problem, state: State) -> tuple[Rows | None, Status]:
        """Memory (one row per person, or None for a solver that remembers nothing) and status at the start."""

    @abstractmethod
    def step(self, problem: Problem, state: State, memory: Any) -> tuple[State, Rows | None, Status]:
        """One step for every person. A person's step never depends on who else is in the batch."""

    def hand_over(self, problem: Problem, state: State) -> Problem:
        """The problem that the solvers after it in a chain lower, such as one that stays near its answer.

        Choices between states and all that is reported go by the problem that `solve` was given, whatever is lowered.

        Args:
            problem: the full problem of B people, as the solvers before left it.
            state: the B states where the solvers after it start.

        Returns:
            A problem of the same people and body. People leave the batch as they finish: what differs from person to
            person belongs into its observation (such as `Observation.guess`), never into its objective.
        """
        return problem


@dataclass(frozen=True)
class Chain:
    """Solvers one after another, `"hund+lm"`: each starts where the last one stopped.

    What counts in the end is the full objective: a solver that leaves a person worse than it found them has not
    been there.

    Attributes:
        solvers: in order.
    """

    solvers: tuple[Solver, ...]

    def __post_init__(self) -> None:
        wrong = [each for each in self.solvers if not isinstance(each, Solver)]
        if wrong or not self.solvers:
            raise ValueError(f"a chain of {wrong or 'no solvers'}, expected one or more solvers")

    @property
    def name(self) -> str:
        """The names, joined by +."""
        return "+".join(solver.name for solver in self.solvers)


def outcome_at_start(energy: Tensor, gradient: Tensor) -> Tensor:
    """`(B,)` outcomes before the first step, of energies and the gradients of what may move."""
    finite = torch.isfinite(energy) & torch.isfinite(gradient).all(1)
    outcome = torch.where(finite, Outcome.RUNNING, Outcome.NOT_FINITE)
    return torch.where(finite & (gradient == 0).all(1), Outcome.NO_GRADIENT, outcome)


class Iterative(Solver):
    """A solver of many small steps, each person of which stops on their own.

    Args:
        max_steps: of a run without a schedule.
        tolerance: relative fall of the energy in a step below which a person is done.
        gradient_tolerance: largest component of the gradient below which a person is done; 0 does not look.
        step_tolerance: the same of the change of an unknown (radians, metres, units of shape).
    """

    def __init__(
        self, max_steps: int, tolerance: float, gradient_tolerance: float, step_tolerance: float
    ) -> None:
        limits = {"tolerance": tolerance, "gradient_tolerance": gradient_tolerance}
        for name, value in {**limits, "step_tolerance": step_tolerance, "max_steps": max_steps}.items():
            if not value >= 0 or (name == "max_steps" and not isinstance(value, int)):
                raise ValueError(
                    f"{self.name}: {name} is {value}, expected no negative number (of steps: whole)"
                )
        self.max_steps, self.tolerance = max_steps, tolerance
        self.gradient_tolerance, self.step_tolerance = gradient_tolerance, step_tolerance

    def _done(self, fall: Tensor, energy: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """Whether a step that lowered the energy by `fall`, from `energy`, was the last one."""
        done = fall <= self.tolerance * energy.abs()
        if self.gradient_tolerance:
            done = done | (gradient.abs().amax(1) <= self.gradient_tolerance)
        if self.step_tolerance:
            done = done | (step.abs().amax(1) <= self.step_tolerance)
        return done


@dataclass(frozen=True)
class Stage:
    """One stage of a schedule that any iterative solver takes.

    Attributes:
        max_steps: of this stage.
        free: blocks of the State that may move; None for those of the problem.
        weights: factors on terms by name.
        coordinates: chart to move in; None for the problem's or the solver's own.
        widen: factor on the reach of every term (robust kernels, softness of renderings); None for plain least
            squares.
        only: names of the terms that count; None for all.
        dense: whether terms count that need the whole surface (masks, rendered pictures).
        branch: makes K starts of every start before the stage, those of one start side by side (such as
            `fitkit.jumps.kinematic_jumps`): `(problem, state (B)) -> state (B * K)`.
        keep: how many of a person's starts go on to the next stage, best first; None for all.
        keep_of_each: the same among starts of one kind, which often end in one place; only where there are several
            kinds (see `solve`).
        rank: what the choice at the end goes by, `(problem, state) -> (B,)`, lowest first (such as
            `fitkit.jumps.evidence`); None for the energy. With `keep=1` in the last stage it names the winner.
        hinted: whether each start sees its own hint instead of the observation (see `solve`).
        name: in the trace.
    """

    max_steps: int
    free: tuple[str, ...] | None = None
    weights: Mapping[str, float] | None = None
    coordinates: Chart | None = None
    widen: float | None = 1.0
    only: tuple[str, ...] | None = None
    dense: bool = True
    branch: Callable[[Problem, State], State] | None = None
    keep: int | None = None
    keep_of_each: int | None = None
    rank: Callable[[Problem, State], Tensor] | None = None
    hinted: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        least = {"max_steps": 0, "keep": 1, "keep_of_each": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= low):
                raise ValueError(
                    f"stage {self.name!r}: {name} is {value}, expected a whole number from {low} on"
                )
        if self.widen is not None and not 0 < self.widen < float("inf"):
            raise ValueError(
                f"stage {self.name!r}: widen is {self.widen}, expected a positive number or None"
            )

"""Solver protocol, schedules of stages, and the loop that runs any solver on a batch of people."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from fitkit._select import Rows, concatenate
from fitkit.observation import Observation
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
    Outcome.CONVERGED: "converged: the last step lowered the objective by less than the tolerance",
    Outcome.MAX_STEPS: "stopped at the step limit; the state is the best so far",
    Outcome.STALLED: "stopped: no step lowers the objective any more",
    Outcome.NOT_FINITE: "failed: the objective is not finite",
    Outcome.NOT_ENOUGH_SEEN: "failed: fewer than 4 keypoints were seen",
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
        requires: parts of the Observation that it reads.
        max_steps: steps of a run without a schedule.
        stages: schedule of a run where the caller gives none.
    """

    name: str
    requires: frozenset[str] = frozenset()
    max_steps: int = 100
    stages: tuple[Stage, ...] = ()

    @abstractmethod
    def init(self, problem: Problem, state: State) -> tuple[Rows | None, Status]:
        """Memory (one row per person, or None for a solver that remembers nothing) and status at the start."""

    @abstractmethod
    def step(self, problem: Problem, state: State, memory: Any) -> tuple[State, Rows | None, Status]:
        """One step for every person. A person's step never depends on who else is in the batch."""


@dataclass(frozen=True)
class Stage:
    """One stage of a schedule that any iterative solver takes.

    Attributes:
        max_steps: of this stage.
        free: blocks of the State that may move; None for all.
        weights: factors on terms by name.
        widen: factor on the width of robust kernels; None for plain least squares.
        only: names of the terms that count; None for all.
        keep: how many of a person's starts go on to the next stage, best first; None for all.
        keep_of_each: the same among starts of one kind, which often end in one place; only where there are several
            kinds (see `solve`).
        hinted: whether each start sees its own hint instead of the observation (see `solve`).
        name: in the trace.
    """

    max_steps: int
    free: tuple[str, ...] | None = None
    weights: Mapping[str, float] | None = None
    widen: float | None = 1.0
    only: tuple[str, ...] | None = None
    keep: int | None = None
    keep_of_each: int | None = None
    hinted: bool = False
    name: str = ""


@dataclass(frozen=True)
class Trace:
    """What happened, step by step, of the start that won for each person.

    Attributes:
        step: of each record, 0 = the start.
        seconds: since the start, wall clock of the whole batch.
        stage: name of the stage of each record.
        terms: names of the terms.
        values: `(T, B, terms)` of the objective as the stage weighed it.
        energy: `(T, B)`.
    """

    step: list[int]
    seconds: list[float]
    stage: list[str]
    terms: tuple[str, ...]
    values: Tensor
    energy: Tensor

    def select(self, rows: Tensor) -> Trace:
        """The trace of some of the people."""
        rows = rows.to(self.energy.device)
        return replace(self, values=self.values[:, rows], energy=self.energy[:, rows])


@dataclass(frozen=True)
class Solution:
    """What `solve` returns: the best state of each person and how it was reached."""

    state: State
    outcome: Tensor
    values: dict[str, Tensor]
    energy: Tensor
    trace: Trace
    seconds: float


class _Recorder:
    """Collects status rows of the whole batch, whoever is still running."""

    def __init__(self, terms: tuple[str, ...], people: int) -> None:
        self.terms, self.people, self.began = terms, people, time.perf_counter()
        self.columns: dict[tuple[str, ...], Tensor] = {}
        self.records: list[tuple[int, float, str, Tensor, Tensor]] = []
        self.energy: Tensor | None = None
        self.values: Tensor | None = None

    def add(self, stage: str, names: tuple[str, ...], rows: Tensor, status: Status) -> None:
        if self.energy is None or self.values is None:
            self.energy = status.energy.new_full((self.people,), float("nan"))
            self.values = status.energy.new_full((self.people, len(self.terms)), float("nan"))
        self.energy, self.values = self.energy.clone(), self.values.clone()
        self.energy[rows] = status.energy
        if names not in self.columns:
            self.columns[names] = torch.tensor([self.terms.index(name) for name in names], device=rows.device)
        self.values[rows[:, None], self.columns[names]] = status.values
        seconds = time.perf_counter() - self.began
        self.records.append((len(self.records), seconds, stage, self.values, self.energy))

    def trace(self, rows: Tensor) -> Trace:
        step, seconds, stage, values, energy = map(list, zip(*self.records, strict=True))
        history = Trace(step, seconds, stage, self.terms, torch.stack(values), torch.stack(energy))
        return history.select(rows)


def solve(
    problem: Problem,
    solver: Solver,
    state: State,
    stages: Sequence[Stage] | None = None,
    starts: int = 1,
    hint: Observation | None = None,
    kinds: Sequence[int] | None = None,
    on_step: Callable[[int, str], None] | None = None,
) -> Solution:
    """Run a solver from one or several starts per person, and keep the best by the full objective.

    Args:
        problem: of B people.
        solver: to run.
        state: `(B * starts)` starts, those of one person side by side.
        stages: schedule; None for the solver's own, or all blocks and terms at once.
        starts: per person.
        hint: observation of every start for the stages that are hinted: what leads a start to a basin of its own
            (a mirrored guess of depth). The best start is chosen by the real observation.
        kinds: of a person's starts, for stages that keep some of each; None for one kind.
        on_step: called with (step, stage name) after every step: progress, or an exception to stop.

    Returns:
        Best state and outcome per person; a person's answer does not depend on who else is in the batch.

    Raises:
        ValueError: the observation lacks what the solver reads, or the number of starts does not fit.
    """
    missing = sorted(part for part in solver.requires if not problem.observation.has(part))
    if missing:
        raise ValueError(f"solver {solver.name} needs {missing}, which the observation does not have")
    if len(state) != len(problem) * starts:
        raise ValueError(f"solve: {len(state)} starts, expected {starts} for each of {len(problem)} people")
    problem.body.check(state)
    problem = problem.trimmed(solver.requires)
    if hint is not None:
        hint = replace(problem, observation=hint).trimmed(solver.requires).observation
    schedule = tuple(stages or solver.stages) or (Stage(solver.max_steps),)
    people, device = len(problem), state.transl.device
    owner = torch.arange(people, device=device).repeat_interleave(starts)
    terms = tuple(term.name for term in problem.objective.terms())
    recorder = _Recorder(terms, len(state))
    origin = torch.arange(len(state), device=device)
    outcome = torch.zeros(len(state), dtype=torch.long, device=device)
    left = list(kinds) if kinds is not None else [0] * starts
    # Derivatives are taken inside, also for a caller who has switched them off.
    with torch.inference_mode(False), torch.no_grad():
        for stage in schedule:
            seen = problem.select(owner)
            if stage.hinted and hint is not None:
                seen = replace(seen, observation=hint.select(origin))
            part = seen.staged(stage.free, stage.weights, stage.widen, stage.only)
            state, outcome = _run(part, solver, state, stage, recorder, origin, on_step)
            kept, left = _keep(stage, problem, state, owner, left)
            if kept is not None:
                state, outcome, owner, origin = state.select(kept), outcome[kept], owner[kept], origin[kept]
        values = problem.select(owner).values(state)
        energy = torch.stack(list(values.values())).sum(0)
        best = _best(energy, people, 1, [0] * (len(energy) // max(people, 1)))[0]
        outcome = torch.where(torch.isfinite(energy), outcome, torch.full_like(outcome, Outcome.NOT_FINITE))
    return Solution(
        state.select(best),
        outcome[best],
        {name: value[best] for name, value in values.items()},
        energy[best],
        recorder.trace(origin[best]),
        time.perf_counter() - recorder.began,
    )


def _run(
    problem: Problem,
    solver: Solver,
    state: State,
    stage: Stage,
    recorder: _Recorder,
    origin: Tensor,
    on_step: Callable[[int, str], None] | None,
) -> tuple[State, Tensor]:
    """One stage: steps until everybody is done, rows that are done leaving the batch as they go."""
    names = tuple(term.name for term in problem.objective.terms())
    memory, status = solver.init(problem, state)
    recorder.add(stage.name, names, origin, status)
    rows = torch.arange(len(state), device=origin.device)
    finished: list[tuple[Tensor, State, Tensor]] = []
    for step in range(stage.max_steps):
        running = status.outcome == Outcome.RUNNING
        left = int(running.sum())
        if left == 0:
            break
        if left < len(rows):
            done = (~running).nonzero()[:, 0]
            finished.append((rows[done], state.select(done), status.outcome[done]))
            going = running.nonzero()[:, 0]
            problem, state, rows = problem.select(going), state.select(going), rows[going]
            memory = None if memory is None else memory.select(going)
        state, memory, status = solver.step(problem, state, memory)
        recorder.add(stage.name, names, origin[rows], status)
        if on_step is not None:
            on_step(step + 1, stage.name)
    stopped = torch.where(
        status.outcome == Outcome.RUNNING, torch.full_like(status.outcome, Outcome.MAX_STEPS), status.outcome
    )
    finished.append((rows, state, stopped))
    order = torch.cat([part[0] for part in finished]).argsort()
    whole = concatenate([part[1] for part in finished]).select(order)
    return whole, torch.cat([part[2] for part in finished])[order]


def _keep(
    stage: Stage, problem: Problem, state: State, owner: Tensor, kinds: list[int]
) -> tuple[Tensor | None, list[int]]:
    """Rows that go on after a stage (None for all) and their kinds, judged by the whole objective."""
    several = len(set(kinds)) > 1
    if stage.keep_of_each is not None and several and max(map(kinds.count, kinds)) > stage.keep_of_each:
        energy = problem.select(owner).energy(state)
        return _best(energy, len(problem), stage.keep_of_each, kinds)
    if stage.keep is not None and len(kinds) > stage.keep:
        kept, _ = _best(problem.select(owner).energy(state), len(problem), stage.keep, [0] * len(kinds))
        return kept, [0] * stage.keep
    return None, kinds


def _best(energy: Tensor, people: int, keep: int, kinds: list[int]) -> tuple[Tensor, list[int]]:
    """Rows of the `keep` lowest energies of each kind of each person, and their kinds; what is not finite is last."""
    finite = torch.where(torch.isfinite(energy), energy, torch.full_like(energy, float("inf")))
    table = finite.view(people, len(kinds))
    chosen, left = [], []
    for kind in dict.fromkeys(kinds):
        columns = torch.tensor(
            [place for place, other in enumerate(kinds) if other == kind], device=energy.device
        )
        ranked = columns[table[:, columns].argsort(dim=1, stable=True)[:, :keep]]
        chosen.append(ranked)
        left += [kind] * ranked.shape[1]
    first = torch.arange(people, device=energy.device)[:, None] * len(kinds)
    return (first + torch.cat(chosen, 1)).reshape(-1), left

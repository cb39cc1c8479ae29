"""Solver protocol, chains, schedules of stages, and the loop that runs any solver on a batch of people."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from fitkit._select import Rows, choose, concatenate
from fitkit.alternatives import Alternatives
from fitkit.coordinates import Chart
from fitkit.observation import Observation
from fitkit.problem import Problem
from fitkit.state import State
from fitkit.trace import Recorder, Trace


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
        coordinates: chart that it moves in where neither problem nor stage says; None for the rotation tangent.
    """

    name: str
    requires: frozenset[str] = frozenset()
    max_steps: int = 100
    stages: tuple[Stage, ...] = ()
    coordinates: Chart | None = None

    @abstractmethod
    def init(self, problem: Problem, state: State) -> tuple[Rows | None, Status]:
        """Memory (one row per person, or None for a solver that remembers nothing) and status at the start."""

    @abstractmethod
    def step(self, problem: Problem, state: State, memory: Any) -> tuple[State, Rows | None, Status]:
        """One step for every person. A person's step never depends on who else is in the batch."""


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
        if not self.solvers:
            raise ValueError("a chain of no solvers, expected one or more")

    @property
    def name(self) -> str:
        """The names, joined by +."""
        return "+".join(solver.name for solver in self.solvers)


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
            if not value >= 0:
                raise ValueError(f"{self.name}: {name} is {value}, expected no negative number")
        self.max_steps, self.tolerance = max_steps, tolerance
        self.gradient_tolerance, self.step_tolerance = gradient_tolerance, step_tolerance

    def _outcome_at_start(self, energy: Tensor, gradient: Tensor) -> Tensor:
        finite = torch.isfinite(energy) & torch.isfinite(gradient).all(1)
        outcome = torch.where(finite, Outcome.RUNNING, Outcome.NOT_FINITE)
        return torch.where(finite & (gradient == 0).all(1), Outcome.NO_GRADIENT, outcome)

    def _done(self, fall: Tensor, energy: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """Whether a step that lowered the energy by `fall` to `energy` was the last one."""
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
        widen: factor on the width of robust kernels; None for plain least squares.
        only: names of the terms that count; None for all.
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
    branch: Callable[[Problem, State], State] | None = None
    keep: int | None = None
    keep_of_each: int | None = None
    rank: Callable[[Problem, State], Tensor] | None = None
    hinted: bool = False
    name: str = ""


@dataclass(frozen=True)
class Solution:
    """What `solve` returns: the best state of each person and how it was reached.

    Attributes:
        state: best of each person.
        outcome: `(B,)` values of `Outcome`, of the last stage.
        values: `(B,)` of each term of the full objective.
        energy: `(B,)` their sum.
        trace: of the starts that won.
        alternatives: where the other starts of each person ended.
        seconds: wall clock of the batch.
    """

    state: State
    outcome: Tensor
    values: dict[str, Tensor]
    energy: Tensor
    trace: Trace
    alternatives: Alternatives
    seconds: float


# Steps between two looks at who is done, on devices where a look waits for all that was queued before.
CHECK_EVERY = {"cuda": 5}


def solve(
    problem: Problem,
    solver: Solver | Chain,
    state: State,
    stages: Sequence[Stage] | None = None,
    starts: int = 1,
    hint: Observation | None = None,
    kinds: Sequence[int] | None = None,
    on_step: Callable[[int, str], None] | None = None,
    max_seconds: float | None = None,
) -> Solution:
    """Run a solver from one or several starts per person, and keep the best by the full objective.

    Args:
        problem: of B people.
        solver: to run; of a chain, all but the first solver start from the best that the one before found.
        state: `(B * starts)` starts, those of one person side by side.
        stages: schedule of the solver (of a chain: of its first one); None for the solver's own, or all blocks and
            terms at once.
        starts: per person.
        hint: observation of every start for the stages that are hinted: what leads a start to a basin of its own
            (a mirrored guess of depth). The best start is chosen by the real observation.
        kinds: of a person's starts, for stages that keep some of each; None for one kind.
        on_step: called with (step, stage name) after every step: progress, or an exception to stop.
        max_seconds: wall clock after which whoever is still running stops where they are; None for no limit.

    Returns:
        Best state and outcome per person; a person's answer does not depend on who else is in the batch.

    Raises:
        ValueError: the observation lacks what the solver reads, or the number of starts does not fit.
    """
    solvers = solver.solvers if isinstance(solver, Chain) else (solver,)
    reads = frozenset().union(*(each.requires for each in solvers))
    missing = sorted(part for part in reads if not problem.observation.has(part))
    if missing:
        raise ValueError(f"solver {solver.name} needs {missing}, which the observation does not have")
    if len(state) != len(problem) * starts:
        raise ValueError(f"solve: {len(state)} starts, expected {starts} for each of {len(problem)} people")
    problem.body.check(state)
    problem = problem.trimmed(reads)
    if hint is not None:
        hint = replace(problem, observation=hint).trimmed(reads).observation
    # Derivatives are taken inside, also for a caller who has switched them off.
    with torch.inference_mode(False), torch.no_grad():
        crowd = _Crowd(problem, problem.within_bounds(state), starts, hint, kinds)
        limit = None if max_seconds is None else crowd.recorder.began + max_seconds
        for number, each in enumerate(solvers):
            # Schedules are about starts; what comes later in a chain refines.
            own = (stages or each.stages) if number == 0 else ()
            own = own or (Stage(each.max_steps),)
            for stage in own:
                label = stage.name
                if isinstance(solver, Chain):
                    label = f"{each.name}/{stage.name}".removesuffix("/")
                crowd.run(each, replace(stage, name=label), on_step, limit)
            if len(solvers) > 1:
                crowd.settle(1 if number < len(solvers) - 1 else None)
        return crowd.solution()


class _Crowd:
    """All starts of all people on their way through a schedule.

    Args:
        problem: of B people, the full objective.
        state: `(B * starts)`.
        starts: per person.
        hint: observation of every start, for hinted stages.
        kinds: of a person's starts.
    """

    def __init__(
        self,
        problem: Problem,
        state: State,
        starts: int,
        hint: Observation | None,
        kinds: Sequence[int] | None,
    ) -> None:
        self.problem, self.state, self.hint = problem, state, hint
        rows = torch.arange(len(state), device=state.transl.device)
        self.owner, self.lanes = rows // max(starts, 1), rows
        self.kinds = list(kinds) if kinds is not None else [0] * starts
        self.outcome = torch.zeros_like(rows)
        self.recorder = Recorder(tuple(term.name for term in problem.objective.terms()), len(state))
        self.best: tuple[State, Tensor] | None = None
        self.dropped: list[tuple[State, Tensor]] = []

    def run(
        self,
        solver: Solver,
        stage: Stage,
        on_step: Callable[[int, str], None] | None,
        limit: float | None,
    ) -> None:
        """One stage, and the choice at its end."""
        if stage.branch is not None:
            self._branch(stage.branch)
        seen = self.problem.select(self.owner)
        if stage.hinted and self.hint is not None:
            seen = replace(seen, observation=self.hint.select(self.lanes))
        coordinates = stage.coordinates or self.problem.coordinates or solver.coordinates
        part = seen.staged(stage.free, stage.weights, stage.widen, stage.only, coordinates)
        self.state, self.outcome = _run(
            part, solver, self.state, stage, self.recorder, self.lanes, on_step, limit
        )
        several = len(set(self.kinds)) > 1
        whole = stage.free is None and stage.only is None
        most = max(map(self.kinds.count, self.kinds), default=0)
        if stage.keep_of_each is not None and several and most > stage.keep_of_each:
            self._keep(stage.keep_of_each, self.kinds, whole, stage.rank)
        elif stage.keep is not None and len(self.kinds) > stage.keep:
            self._keep(stage.keep, [0] * len(self.kinds), whole, stage.rank)

    def settle(self, keep: int | None) -> None:
        """At the end of a solver of a chain: go back to the best by the full objective, and keep the best starts."""
        energy = self._energy()
        if self.best is not None:
            state, before = self.best
            worse = (before < energy) | ~torch.isfinite(energy)
            self.state, energy = choose(worse, state, self.state), torch.where(worse, before, energy)
        if keep is not None and len(self.kinds) > keep:
            self.best = self.state, energy
            self._keep(keep, [0] * len(self.kinds), True, None)
        else:
            self.best = self.state, energy

    def solution(self) -> Solution:
        """The best of every person by the full objective."""
        people, count = len(self.problem), len(self.kinds)
        values = self.problem.select(self.owner).values(self.state)
        energy = torch.stack(list(values.values())).sum(0)
        finalists, _ = _ranked(energy, people, count, [0] * count)
        best = finalists.view(people, count)[:, 0]
        for place in range(1, count):
            other = finalists.view(people, count)[:, place]
            self.dropped.append((self.state.select(other), energy[other]))
        outcome = torch.where(
            torch.isfinite(energy), self.outcome, torch.full_like(self.outcome, Outcome.NOT_FINITE)
        )
        others = (
            torch.stack([part for _, part in self.dropped], 1)
            if self.dropped
            else energy.new_zeros(people, 0)
        )
        return Solution(
            self.state.select(best),
            outcome[best],
            {name: value[best] for name, value in values.items()},
            energy[best],
            Trace(self.recorder, self.lanes[best]),
            Alternatives(tuple(state for state, _ in self.dropped), others),
            time.perf_counter() - self.recorder.began,
        )

    def _energy(self) -> Tensor:
        return self.problem.select(self.owner).energy(self.state)

    def _branch(self, branch: Callable[[Problem, State], State]) -> None:
        people = len(self.owner)
        state = self.problem.within_bounds(branch(self.problem.select(self.owner), self.state))
        times, rest = divmod(len(state), max(people, 1))
        if rest or (people and times < 1):
            raise ValueError(f"a stage's branch made {len(state)} starts of {people}, expected a multiple")
        lanes = self.lanes.repeat_interleave(times)
        self.recorder.branch(lanes)
        if self.hint is not None:
            self.hint = self.hint.select(lanes)
        if self.best is not None:
            self.best = self.best[0].repeat(times), self.best[1].repeat_interleave(times)
        self.state, self.owner = state, self.owner.repeat_interleave(times)
        self.lanes = torch.arange(len(state), device=lanes.device)
        self.kinds = [kind for kind in self.kinds for _ in range(times)]

    def _keep(
        self,
        keep: int,
        kinds: list[int],
        whole: bool,
        rank: Callable[[Problem, State], Tensor] | None,
    ) -> None:
        """Only the best starts of each kind go on; the best of the others is remembered if it was fitted whole."""
        people, count = len(self.problem), len(kinds)
        energy = self._energy()
        score = energy if rank is None else rank(self.problem.select(self.owner), self.state)
        kept, left = _ranked(score, people, keep, kinds)
        if whole:
            out = _finite(energy).index_fill(0, kept, torch.inf).view(people, count)
            each = out.argmin(1) + count * torch.arange(people, device=out.device)
            self.dropped.append((self.state.select(each), out.amin(1)))
        self.state, self.outcome = self.state.select(kept), self.outcome[kept]
        self.owner, self.lanes = self.owner[kept], self.lanes[kept]
        if self.best is not None:
            self.best = self.best[0].select(kept), self.best[1][kept]
        self.kinds = left


def _run(
    problem: Problem,
    solver: Solver,
    state: State,
    stage: Stage,
    recorder: Recorder,
    lanes: Tensor,
    on_step: Callable[[int, str], None] | None,
    limit: float | None,
) -> tuple[State, Tensor]:
    """One stage: steps until everybody is done, rows that are done leaving the batch as they go."""
    names = tuple(term.name for term in problem.objective.terms())
    memory, status = solver.init(problem, state)
    recorder.add(stage.name, names, lanes, status.values, status.energy, begins=True)
    rows = torch.arange(len(state), device=lanes.device)
    finished: list[tuple[Tensor, State, Tensor]] = []
    end, every = Outcome.MAX_STEPS, CHECK_EVERY.get(lanes.device.type, 1)
    for step in range(stage.max_steps):
        if step % every == 0:
            running = status.outcome == Outcome.RUNNING
            left = int(running.sum())
            if left == 0:
                break
            if left < len(rows):
                done, going = (~running).nonzero()[:, 0], running.nonzero()[:, 0]
                finished.append((rows[done], state.select(done), status.outcome[done]))
                problem, state, rows = problem.select(going), state.select(going), rows[going]
                memory, status = None if memory is None else memory.select(going), status.select(going)
            if limit is not None and time.perf_counter() > limit:
                end = Outcome.MAX_SECONDS
                break
        moved, memory, after = solver.step(problem, state, memory)
        if every > 1:  # who is done stays where they are until somebody looks
            going = status.outcome == Outcome.RUNNING
            moved, after = choose(going, moved, state), choose(going, after, status)
        state, status = moved, after
        recorder.add(stage.name, names, lanes[rows], status.values, status.energy)
        if on_step is not None:
            on_step(step + 1, stage.name)
    stopped = torch.where(
        status.outcome == Outcome.RUNNING, torch.full_like(status.outcome, end), status.outcome
    )
    finished.append((rows, state, stopped))
    order = torch.cat([part[0] for part in finished]).argsort()
    whole = concatenate([part[1] for part in finished]).select(order)
    return whole, torch.cat([part[2] for part in finished])[order]


def _ranked(energy: Tensor, people: int, keep: int, kinds: list[int]) -> tuple[Tensor, list[int]]:
    """Rows of the `keep` lowest energies of each kind of each person, best first, and their kinds."""
    table = _finite(energy).view(people, len(kinds))
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


def _finite(energy: Tensor) -> Tensor:
    return torch.where(torch.isfinite(energy), energy, torch.inf)

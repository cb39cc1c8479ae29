"""solve(): runs any solver, or a chain of them, on a batch of people, from one or several starts each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit._select import choose, concatenate
from fitkit.alternatives import Alternatives
from fitkit.observation import Observation
from fitkit.problem import Problem
from fitkit.solver import Chain, Outcome, Solver, Stage
from fitkit.state import State
from fitkit.trace import Recorder, Trace


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
    states: bool = False,
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
        states: whether the trace keeps the state of every step, `Trace.states`.

    Returns:
        Best state and outcome per person; a person's answer does not depend on who else is in the batch.

    Raises:
        ValueError: the observation lacks what the solver reads, or the number of starts does not fit.
    """
    solvers = solver.solvers if isinstance(solver, Chain) else (solver,)
    reads = needed(problem, solver)
    if len(state) != len(problem) * starts:
        raise ValueError(f"solve: {len(state)} starts, expected {starts} for each of {len(problem)} people")
    for each in solvers:
        bounded = [name for name in problem.bounds if name in problem.chart(state).blocks]
        if bounded and not each.keeps_bounds:
            raise ValueError(
                f"solver {each.name} cannot keep the bounds on {bounded}: expected none, or a solver that can "
                "(such as lm, lbfgs, scipy-lbfgsb)"
            )
    if state.transl.dtype != problem.body.dtype:
        raise ValueError(f"solve: a state of {state.transl.dtype} for a body of {problem.body.dtype}")
    if max_seconds is not None and not max_seconds >= 0:
        raise ValueError(f"solve: max_seconds is {max_seconds}, expected no negative number")
    if kinds is not None and len(kinds) != starts:
        raise ValueError(f"solve: {len(kinds)} kinds for {starts} starts per person, expected one for each")
    if hint is not None and len(hint) != len(state):
        raise ValueError(f"solve: a hint of {len(hint)} rows for {len(state)} starts, expected one for each")
    problem.body.check(state)
    problem = problem.trimmed(reads)
    if hint is not None:
        hint = replace(problem, observation=hint).trimmed(reads).observation
    # Derivatives are taken inside, also for a caller who has switched them off.
    with torch.inference_mode(False), torch.no_grad():
        crowd = _Crowd(problem, problem.within_bounds(state), starts, hint, kinds, states)
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
            last = number == len(solvers) - 1
            if len(solvers) > 1:
                crowd.settle(None if last else 1)
            if not last:
                crowd.hand_over(each)
        return crowd.solution()


def needed(problem: Problem, solver: Solver | Chain) -> frozenset[str]:
    """Parts of the observation that a solver, or any of a chain, reads.

    Raises:
        ValueError: the observation lacks one of them.
    """
    solvers = solver.solvers if isinstance(solver, Chain) else (solver,)
    requires = frozenset[str]().union(*(each.requires for each in solvers))
    missing = sorted(part for part in requires if not problem.observation.has(part))
    if missing:
        raise ValueError(f"solver {solver.name} needs {missing}, which the observation does not have")
    return requires.union(*(each.reads for each in solvers))


class _Crowd:
    """All starts of all people on their way through a schedule.

    Args:
        problem: of B people, the full objective.
        state: `(B * starts)`.
        starts: per person.
        hint: observation of every start, for hinted stages.
        kinds: of a person's starts.
        states: whether the trace keeps states.
    """

    def __init__(
        self,
        problem: Problem,
        state: State,
        starts: int,
        hint: Observation | None,
        kinds: Sequence[int] | None,
        states: bool,
    ) -> None:
        self.problem, self.state, self.hint = problem, state, hint
        # What is lowered; choices and answers go by the problem itself.
        self.lowered = problem
        rows = torch.arange(len(state), device=state.transl.device)
        self.owner, self.lanes = rows // max(starts, 1), rows
        self.kinds = list(kinds) if kinds is not None else [0] * starts
        self.outcome = torch.zeros_like(rows)
        names = tuple(term.name for term in problem.objective.terms())
        self.recorder = Recorder(names, len(state), states)
        self.best: tuple[State, Tensor, Tensor] | None = None
        self.dropped: list[tuple[State, Tensor]] = []
        self.rank: Callable[[Problem, State], Tensor] | None = None
        self.chosen: Tensor | None = None

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
        seen = self._of_starts(self.lowered)
        if stage.hinted and self.hint is not None:
            seen = replace(seen, observation=self.hint.select(self.lanes))
        coordinates = stage.coordinates or seen.coordinates or solver.coordinates
        part = seen.staged(stage.free, stage.weights, stage.widen, stage.only, coordinates, stage.dense)
        self.state, self.outcome = _run(
            part, solver, self.state, stage, self.recorder, self.lanes, on_step, limit
        )
        several = len(set(self.kinds)) > 1
        whole = stage.free is None and stage.only is None
        most = max(map(self.kinds.count, self.kinds), default=0)
        if stage.keep_of_each is not None and several and most > stage.keep_of_each:
            self._keep(stage.keep_of_each, self.kinds, whole, stage.rank, stage.dense)
        elif stage.keep is not None and len(self.kinds) > stage.keep:
            self._keep(stage.keep, [0] * len(self.kinds), whole, stage.rank, stage.dense)

    def settle(self, keep: int | None) -> None:
        """At the end of a solver of a chain: go back to the best by the full objective, and keep the best starts."""
        energy = self._energy()
        if self.best is not None:
            state, before, outcome = self.best
            better = energy < before  # False where it is not finite
            self.state, self.outcome = (
                choose(better, self.state, state),
                torch.where(better, self.outcome, outcome),
            )
            energy = torch.where(better, energy, before)
        self.best = self.state, energy, self.outcome
        if keep is not None and len(self.kinds) > keep:
            self._keep(keep, [0] * len(self.kinds), True, None)

    def hand_over(self, solver: Solver) -> None:
        """From here on the problem is lowered that a solver leaves to those after it."""
        left = solver.hand_over(self.lowered, self.state)
        if (
            not isinstance(left, Problem)
            or len(left) != len(self.problem)
            or left.body is not self.problem.body
        ):
            got = f"one of {len(left)} people" if isinstance(left, Problem) else type(left).__name__
            raise ValueError(
                f"solver {solver.name} handed over {got}, expected a Problem of the same "
                f"{len(self.problem)} people and body"
            )
        self.lowered = left
        self.recorder.expect(tuple(term.name for term in left.objective.terms()))

    def solution(self) -> Solution:
        """The best of every person by the full objective (or the one that the last stage kept)."""
        people, count = len(self.problem), len(self.kinds)
        whole = self._of_starts()
        values = whole.values(self.state)
        energy = torch.stack(list(values.values())).sum(0)
        score = energy if self.rank is None else self._score(whole, self.state)
        finalists, _ = _ranked(score, people, count, [0] * count)
        best = finalists.view(people, count)[:, 0]
        self._remember(finalists.view(people, count)[:, 1:], score)
        outcome = torch.where(
            torch.isfinite(energy), self.outcome, torch.full_like(self.outcome, Outcome.NOT_FINITE)
        )
        others = [part for _, part in self.dropped]
        return Solution(
            self.state.select(best),
            outcome[best],
            {name: value[best] for name, value in values.items()},
            energy[best],
            Trace(self.recorder, self.lanes[best]),
            Alternatives(
                tuple(state for state, _ in self.dropped),
                torch.stack(others, 1) if others else energy.new_zeros(people, 0),
                score[best] if self.chosen is None else self.chosen,
            ),
            time.perf_counter() - self.recorder.began,
        )

    def _of_starts(self, problem: Problem | None = None) -> Problem:
        """The problem of every start; with one start each the very same, and what is prepared of it stays."""
        problem = self.problem if problem is None else problem
        return problem if len(self.kinds) == 1 else problem.select(self.owner)

    def _remember(self, rows: Tensor, score: Tensor) -> None:
        """Starts that lost, `(B, k)` rows, and the scores of all rows."""
        self.dropped += [(self.state.select(each), score[each]) for each in rows.unbind(1)]

    def _score(self, problem: Problem, state: State) -> Tensor:
        """`(B,)` what choices go by at present, lowest first."""
        return problem.energy(state) if self.rank is None else self.rank(problem, state)

    def _energy(self) -> Tensor:
        return self._of_starts().energy(self.state)

    def _branch(self, branch: Callable[[Problem, State], State]) -> None:
        people = len(self.owner)
        state = self.problem.within_bounds(branch(self._of_starts(), self.state))
        times, rest = divmod(len(state), people) if people else (1, 0)
        if rest or times < 1:
            raise ValueError(f"a stage's branch made {len(state)} starts of {people}, expected a multiple")
        lanes = self.lanes.repeat_interleave(times)
        self.recorder.branch(lanes)
        if self.hint is not None:
            self.hint = self.hint.select(lanes)
        self.state, self.owner = state, self.owner.repeat_interleave(times)
        self.lanes = torch.arange(len(state), device=lanes.device)
        self.kinds = [kind for kind in self.kinds for _ in range(times)]

    def _keep(
        self,
        keep: int,
        kinds: list[int],
        whole: bool,
        rank: Callable[[Problem, State], Tensor] | None,
        dense: bool = True,
    ) -> None:
        """Only the best starts of each kind go on; the others are remembered if they were fitted whole."""
        people = len(self.problem)
        if rank is not self.rank:  # scores of two kinds do not compare
            self.rank = rank
            self.dropped = [(state, self._score(self.problem, state)) for state, _ in self.dropped]
        score = self._score(self._of_starts(), self.state)
        kept, left = _ranked(score, people, keep, kinds)
        if whole:
            rest = torch.ones_like(self.owner, dtype=torch.bool).index_fill(0, kept, False)
            self._remember(rest.nonzero().view(people, len(kinds) - len(left)), score)
        # Where terms are still to come, losers never meet them: they stand against the winner as it was when chosen.
        waiting = not dense and self.problem.starts_without_dense
        self.chosen = score[kept] if waiting and len(left) == 1 else None
        self.state, self.outcome = self.state.select(kept), self.outcome[kept]
        self.owner, self.lanes = self.owner[kept], self.lanes[kept]
        if self.best is not None:
            best, before, outcome = self.best
            self.best = best.select(kept), before[kept], outcome[kept]
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
    recorder.add(stage.name, names, lanes, status.values, status.energy, torch.zeros_like(lanes), state)
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
        going = status.outcome == Outcome.RUNNING
        moved, memory, after = solver.step(problem, state, memory)
        if every > 1:  # who is done stays where they are until somebody looks
            moved, after = choose(going, moved, state), choose(going, after, status)
        state, status = moved, after
        recorder.add(stage.name, names, lanes[rows], status.values, status.energy, going, state)
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

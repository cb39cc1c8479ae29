"""What HUND is compared with, and how each is measured: errors of every person, and time alone and in batches."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import TypeVar

import torch
from _common import Report, sync
from _entries import SETTINGS, Answer, Entry, mean_pose
from _peers import peer_start
from _problems import UNITS, Problems, errors_of, objective
from torch import Tensor

import fitkit
from fitkit._select import concatenate
from fitkit.api import default_stages
from fitkit.body import BodyModel
from fitkit.initialise import make_starts
from fitkit.keypoints import Keypoints
from fitkit.objectives import Objective
from fitkit.problem import Problem
from fitkit.solve import solve
from fitkit.solver import Chain, Solver
from fitkit.solvers import BFGS, LM
from fitkit.solvers.hund import HUND

T = TypeVar("T")

BATCHES = (64, 200)
SCIPY = "scipy-bfgs, mean pose"
OURS_BFGS = "bfgs, mean pose"
PAIRED = ("angle, limbs", "angle, 21 joints", "MPJPE", "PA-MPJPE")


@cache
def the_objective() -> Objective:
    """One for all runs: loading its prior takes as long as half of HUND's stages."""
    return objective()


def problem_of(body: BodyModel, problems: Problems) -> Problem:
    """The problem that everybody lowers."""
    return Problem(body, problems.observation, the_objective())


@dataclass(frozen=True)
class Run(Entry):
    """A solver, or a chain, from a start.

    Attributes:
        solver: what runs.
        start: HUND, whose network says where to begin; "four" starts with the schedule of `fitkit.fit`, "one" of
            them, which faces the camera, with the same schedule; "mean pose" is the same start without a schedule, all
            parts free at once, as in the paper.
    """

    solver: Solver | Chain = field(default_factory=LM)
    start: HUND | str = "four"

    def __call__(self, body: BodyModel, problems: Problems) -> Answer:
        problem = problem_of(body, problems)
        if isinstance(self.start, HUND):
            solution = solve(problem, self.solver, self.start.start(problem))
        elif self.start == "mean pose":
            solution = solve(problem, self.solver, peer_start(body, problems.observation))
        else:
            assert isinstance(self.solver, Solver)
            starts = make_starts(body, problems.observation, mean_pose(body))
            stages = self.solver.stages or default_stages(self.solver.max_steps)
            state, kinds = starts.state, starts.kinds
            if self.start == "one":
                state, kinds = state.select(slice(0, None, starts.count)), (0,)
            solution = solve(problem, self.solver, state, stages, len(kinds), kinds=kinds)
        return Answer(solution.state, solution.outcome, solution.trace)


@dataclass(frozen=True)
class Measured:
    """What came of one entry.

    Attributes:
        name: of the entry.
        errors: `(B,)` each, see `UNITS`.
        times: milliseconds per person by batch size.
        alone: milliseconds of each of the first problems by itself.
        over: times over those of HUND, by batch size.
    """

    name: str
    errors: dict[str, Tensor]
    times: dict[int, float] = field(default_factory=dict)
    alone: list[float] = field(default_factory=list)
    over: dict[int, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.errors["energy"])


def compared(weights: Path | None, few: int) -> list[Run]:
    """The rows of the table of solvers; HUND is first.

    Args:
        weights: of the network; None for the one that ships.
        few: problems that SciPy is given.
    """
    hund, unheld = HUND(weights), HUND(weights, hold=0)
    table = [
        Run("hund", solver=hund, start=hund),
        Run("hund+lm", solver=fitkit.chain(hund, "lm"), start=hund),
        Run("hund+lbfgs", solver=fitkit.chain(hund, "lbfgs"), start=hund, slow=True),
        Run("hund, unheld + lm", solver=fitkit.chain(unheld, "lm"), start=unheld),
        Run("lm"),
        Run("lm, one start", start="one"),
        Run(OURS_BFGS, solver=BFGS(), start="mean pose", slow=True),
    ]
    if importlib.util.find_spec("scipy") is not None:
        from fitkit.solvers.scipy import ScipyBFGS

        steps, tolerance = (SETTINGS["scipy-bfgs"][name] for name in ("max_iterations", "tolerance"))
        scipy = ScipyBFGS(int(steps), tolerance)
        table.append(Run(SCIPY, solver=scipy, start="mean pose", limit=1, slow=True, most=few))
    return table


def hybrids(weights: Path | None, counts: Sequence[int]) -> list[Run]:
    """Some stages of HUND, then a descent of the plain objective, as in the paper: nothing holds it back."""
    first, table = HUND(weights), []
    for label, solver in (("LM", LM()), ("BFGS", BFGS())):
        for count in counts:
            chain: Solver | Chain = solver
            if count:
                chain = fitkit.chain(HUND(weights, stages=count, hold=0), solver)
            table.append(Run(f"HUND({count})+{label}", solver=chain, start=first, slow=label == "BFGS"))
    return table


# -- errors ------------------------------------------------------------------------------------------------------


def add_errors(report: Report, section: str, name: str, errors: dict[str, Tensor]) -> None:
    """Means, and the median of the energy, whose mean a few lost people make."""
    for what, values in errors.items():
        report.add(section, name, what, float(values.mean()), UNITS[what])
        if what == "energy":
            report.add(section, name, "energy, median", float(values.median()), "")


# -- measuring ---------------------------------------------------------------------------------------------------


def measure(entry: Run, hund: Run, body: BodyModel, problems: Problems, singles: int) -> Measured:
    """All problems at once (or one by one, where an entry takes no more), some alone, and in batches.

    Right after every time HUND's is taken on the same problems: the clock of a busy machine runs fast and slow.

    Args:
        entry: what is measured.
        hund: what it is compared with.
        body: in float64.
        problems: all of them.
        singles: how many of them are run alone.
    """
    sizes = sorted({min(size, len(problems)) for size in BATCHES})
    singly, repeats = entry.limit == 1, 1 if entry.slow else 3
    mine, times, beside = problems.select(slice(0, entry.most)), dict[int, float](), dict[int, float]()
    first = problems.select(slice(0, min(2, len(problems))))
    for each in (hund, entry) if not singly else (hund,):  # what is made once
        each(body, first)
        each(body, first.select(0))
    answer: Answer | None = None
    for size in sizes:
        part = problems.select(slice(0, size))
        if not singly:
            times[size], answer = _clocked(entry, body, part, repeats)
        beside[size], _ = _clocked(hund, body, part, 3)
    alone, near, states = [], [], []
    for row in range(len(mine) if singly else min(singles, len(mine))):
        one = problems.select(row)
        spent, found = _clocked(entry, body, one, repeats)
        alone.append(spent)
        near.append(_clocked(hund, body, one, 3)[0])
        states.append(found.state)
    if singly:
        times = {size: size * mean(alone) for size in sizes}
        state = concatenate(states)
    else:
        assert answer is not None
        state = (answer if len(answer.state) == len(mine) else entry(body, mine)).state
    over = {size: times[size] / beside[size] for size in sizes} | {1: median(alone) / median(near)}
    if entry is hund:  # against itself it would only measure the machine
        over = dict.fromkeys(over, 1.0)
    spent_each = {size: times[size] / size for size in sizes} | {1: median(alone)}
    return Measured(entry.name, errors_of(body, mine, state), spent_each, alone, over)


def anew(problems: Problems) -> Problems:
    """The same problems without what was worked out about them, such as HUND's context code."""
    return replace(problems, observation=replace(problems.observation))


def _clocked(
    entry: Callable[[BodyModel, Problems], T], body: BodyModel, problems: Problems, repeats: int
) -> tuple[float, T]:
    """Median milliseconds, and what came of it. On the CPU those of this process alone, not of other work."""
    clock = time.process_time if body.device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats):
        fresh = anew(problems)
        sync(body.device)
        began = clock()
        answer = entry(body, fresh)
        sync(body.device)
        times.append(1e3 * (clock() - began))
    return median(times), answer


def stages_of(
    weights: Path | None, body: BodyModel, problems: Problems, most: int, singles: int
) -> list[Measured]:
    """After every stage, from the initial state to `most`: errors, and the time that some alone take to there."""
    network = HUND(weights, stages=most)
    problem = problem_of(body, problems)
    states = solve(problem, network, network.start(problem), states=True).trace.states
    counts = range(1, most + 1)
    runs = [Run("", solver=HUND(weights, stages=count), start=network) for count in counts]
    alone: list[list[float]] = []
    for row in range(min(singles, len(problems))):
        one = problems.select(row)
        begun = _clocked(lambda body, one: network.start(problem_of(body, one)), body, one, 3)[0]
        alone.append([begun, *(_clocked(run, body, one, 3)[0] for run in runs)])
    return [
        Measured(
            f"HUND({stage})",
            errors_of(body, problems, state),
            {1: median(times[stage] for times in alone)},
            [times[stage] for times in alone],
        )
        for stage, state in enumerate(states)
    ]


# -- robustness --------------------------------------------------------------------------------------------------

# Share of points moved by up to half a box; share of the box's height below which nothing is seen.
_OUTLIERS, _CUT = 0.1, 0.6
_LEGS = ("left_knee", "right_knee", "left_ankle", "right_ankle")


def corrupted(make: Callable[..., Problems]) -> dict[str, Problems]:
    """The same people, seen worse.

    Args:
        make: problems, with `missing` and `noise` to be given or left alone.
    """
    plain = make()
    seen = plain.observation.keypoints
    assert seen is not None
    draw = torch.Generator().manual_seed(7)
    extent = plain.clean.amax(1) - plain.clean.amin(1)
    thrown = torch.rand(seen.xy.shape, generator=draw, dtype=torch.float64) - 0.5
    who = torch.rand(seen.xy.shape[:2], generator=draw, dtype=torch.float64) < _OUTLIERS
    wild = seen.xy + thrown.to(seen.xy) * extent[:, None] * who.to(seen.xy.device)[..., None]
    legs = torch.zeros_like(seen.confidence, dtype=torch.bool)
    legs[:, [seen.set.index(name) for name in _LEGS]] = True
    below = plain.clean[..., 1] > plain.clean[..., 1].amin(1, keepdim=True) + _CUT * extent[:, 1:]

    def without(points: Tensor) -> Problems:
        return _seen_as(plain, replace(seen, confidence=seen.confidence * ~points))

    return {
        "clean": plain,
        f"{100 * _OUTLIERS:.0f} % outliers": _seen_as(plain, replace(seen, xy=wild)),
        "30 % missing": make(missing=0.3),
        "knees and ankles missing": without(legs),
        f"below {100 * _CUT:.0f} % of the box missing": without(below),
        "2 % noise": make(noise=0.02),
    }


def _seen_as(problems: Problems, seen: Keypoints) -> Problems:
    return replace(problems, observation=replace(problems.observation, keypoints=seen))

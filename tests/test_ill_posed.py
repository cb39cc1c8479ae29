"""Objectives that something is wrong with for one person: the outcome says so, and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import fitkit
from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.objectives import Objective
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.problem import Problem
from fitkit.solve import solve
from fitkit.solver import Outcome, Solver, Stage
from fitkit.solvers import BFGS, LBFGS, LM, Adam
from fitkit.state import State

MakePeople = Callable[..., tuple[State, Observation]]

# One line per solver.
SOLVERS: dict[str, Solver] = {
    "lm": LM(100, tolerance=1e-12),
    "lm-triggs": LM(100, tolerance=1e-12, triggs=True),
    "lbfgs": LBFGS(200, tolerance=1e-12),
    "bfgs": BFGS(200, tolerance=1e-12),
    "adam": Adam(600, rate=0.05, tolerance=1e-6),
}
INF, NAN = float("inf"), float("nan")


def is_sick(obs: Observation) -> Tensor:
    assert obs.score is not None
    return obs.score < 0


@fitkit.objective(requires=("score",))
def well(pred: Prediction, obs: Observation) -> Tensor:
    """A least-squares problem of everybody whose score is positive; it costs 0.25 in the end."""
    assert obs.score is not None
    rows = (pred.betas - obs.score[:, None]) * torch.tensor([1.0, 3.0]).to(pred.betas)
    rows = torch.cat([rows, torch.full_like(rows[:, :1], 0.5**0.5)], 1)
    return torch.where(is_sick(obs)[:, None], 0.0, rows)


@dataclass(frozen=True)
class Case:
    """What is wrong, and what may be said about it.

    Attributes:
        energy: of the person, from betas that start at (0, 0).
        outcomes: that say so.
        moves: whether the person may leave the start, downhill.
    """

    energy: Callable[[Tensor], Tensor]
    outcomes: tuple[Outcome, ...]
    moves: bool = False


def only_at_zero(value: float) -> Callable[[Tensor], Tensor]:
    """Finite, with a slope, at the start; something else wherever a step may lead."""
    return lambda x: torch.where((x == 0).all(1), 2 + x.sum(1), value)


# Numbers beyond what squares of them can hold: an end of any kind, but an end.
NUMBERS = tuple(set(Outcome) - {Outcome.RUNNING, Outcome.NOT_ENOUGH_SEEN, Outcome.MAX_SECONDS})

CASES = {
    "constant": Case(lambda x: 3 + 0 * x.sum(1), (Outcome.NO_GRADIENT,)),
    "nan": Case(lambda x: x.sum(1) * NAN, (Outcome.NOT_FINITE,)),
    "infinite": Case(lambda x: x.sum(1) + INF, (Outcome.NOT_FINITE,)),
    "negative": Case(lambda x: x.sum(1) - 1, (Outcome.NOT_FINITE,)),
    "gradient of nan": Case(lambda x: 1 + 0 * x.square().sum(1).sqrt(), (Outcome.NOT_FINITE,)),
    "nan nearby": Case(only_at_zero(NAN), (Outcome.NOT_FINITE_NEARBY,)),
    "infinite nearby": Case(only_at_zero(INF), (Outcome.NOT_FINITE_NEARBY,)),
    "jumps up": Case(only_at_zero(9.0), (Outcome.STALLED,)),
    "steps": Case(lambda x: 5 + torch.floor(3 * x).sum(1), (Outcome.NO_GRADIENT,)),
    # Down the slope and up the stairs: the steps are higher than what the slope gives between them.
    "stairs against the slope": Case(
        lambda x: 5 + x[:, 0] - 3 * torch.floor(4 * x[:, 0]), (Outcome.STALLED, Outcome.CONVERGED), moves=True
    ),
    "huge offset": Case(
        lambda x: 1e12 + (x - 2).square().sum(1), (Outcome.CONVERGED, Outcome.STALLED), moves=True
    ),
    "huge": Case(lambda x: 1e200 * (1 + (x - 2).square().sum(1)), NUMBERS, moves=True),
    "tiny": Case(lambda x: 1e-30 * (x - 2).square().sum(1), NUMBERS, moves=True),
}


class Ill(Objective):
    """An energy of each person who is not well: the case whose number is minus their score."""

    name = "ill"
    requires = frozenset({"score"})

    def residual(self, pred: Prediction, obs: Observation) -> Tensor:
        assert obs.score is not None
        energy = torch.zeros_like(obs.score)
        for number, case in enumerate(CASES.values(), 1):
            theirs = obs.score == -number
            # Everybody else is far from where this goes wrong, so that not even its derivatives reach them.
            there = torch.where(theirs[:, None], pred.betas, 7.5)
            energy = torch.where(theirs, case.energy(there), energy)
        return energy


# Those who are well stand among the others.
SCORES = torch.tensor([0.5, *(-float(number) for number in range(1, 8)), 0.7])
SCORES = torch.cat([SCORES, torch.tensor([-float(number) for number in range(8, len(CASES) + 1)] + [1.5])])
SCORES = SCORES.double()
WELL = (SCORES > 0).nonzero()[:, 0]


def problem_of(body: BodyModel) -> tuple[Problem, State]:
    people = len(SCORES)
    observation = Observation(Camera.from_size(640, 480).expand(people).to(torch.float64), score=SCORES)
    state = replace(body.neutral(people), betas=torch.zeros(people, 2, dtype=torch.float64))
    return Problem(body, observation, well() + Ill(), free=("betas",)), state


def finite(state: State) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in state.parts().values())


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
class TestEverySolver:
    def test_each_outcome_says_what_is_wrong_and_who_is_well_does_not_notice(
        self, body: BodyModel, solver: Solver
    ) -> None:
        problem, state = problem_of(body)
        stages = [Stage(solver.max_steps)]
        solution = solve(problem, solver, state, stages)
        before = problem.energy(state)
        assert finite(solution.state)
        for number, (name, case) in enumerate(CASES.items(), 1):
            person = int((SCORES == -number).nonzero())
            assert Outcome(int(solution.outcome[person])) in case.outcomes, name
            assert not solution.energy[person] > before[person], name
            stayed = torch.equal(solution.state.betas[person], state.betas[person])
            assert case.moves or stayed, name
        healthy = solve(problem.select(WELL), solver, state.select(WELL), stages)
        assert (healthy.outcome == Outcome.CONVERGED).all()
        assert torch.equal(solution.outcome[WELL], healthy.outcome)
        torch.testing.assert_close(solution.state.betas[WELL], healthy.state.betas, atol=1e-9, rtol=1e-9)
        cost = torch.full_like(healthy.energy, 0.25)
        torch.testing.assert_close(solution.energy[WELL], cost, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("name", ["constant", "nan", "nan nearby", "jumps up"])
    def test_alone_it_is_the_same(self, body: BodyModel, solver: Solver, name: str) -> None:
        """A batch in which nobody is well: nothing raises, and the answer is a state."""
        problem, state = problem_of(body)
        person = (SCORES == -1.0 - list(CASES).index(name)).nonzero()[:, 0]
        alone = solve(problem.select(person), solver, state.select(person), [Stage(solver.max_steps)])
        assert Outcome(int(alone.outcome[0])) in CASES[name].outcomes
        assert torch.equal(alone.state.betas, state.betas[person])


@fitkit.objective(requires=("score",))
def ill_for_one(pred: Prediction, obs: Observation, value: float) -> Tensor:
    """Nothing for the others."""
    return torch.where(is_sick(obs), value + 0 * pred.betas[:, 0], 0.0)


@pytest.mark.parametrize(
    ("solver", "value"),
    [("lm", NAN), ("lm", -1.0), ("lbfgs", INF), ("bfgs", NAN), ("adam", -1.0), ("lm+lbfgs", INF)],
)
def test_a_fit_fails_for_that_person_alone(people: MakePeople, solver: str, value: float) -> None:
    _, observation = people(3)
    observation = replace(observation, score=torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
    objective = fitkit.default_objective(observation) + ill_for_one(value=value)
    stages = [Stage(8)]
    result = fitkit.fit(observation, objective=objective, solver=solver, stages=stages)
    assert [status.failed for status in result.status] == [False, True, False]
    assert result.status[1] == Outcome.NOT_FINITE
    assert finite(result.state)
    with pytest.raises(fitkit.FitError, match=r"person 1.*\(ill_for_one\)"):
        result.raise_if_failed()
    others = fitkit.fit(observation.select([0, 2]), objective=objective, solver=solver, stages=stages)
    torch.testing.assert_close(result.energy[[0, 2]], others.energy, atol=1e-9, rtol=1e-6)
    assert result.status[0::2] == others.status


@pytest.mark.parametrize("solver", ["lm", "lbfgs", "bfgs", "adam"])
def test_an_objective_that_nothing_changes_leaves_the_start(people: MakePeople, solver: str) -> None:
    @fitkit.objective
    def flat(pred: Prediction, obs: Observation) -> Tensor:
        return 1 + 0 * pred.betas

    start, observation = people(2)
    result = fitkit.fit(observation, objective=flat(), solver=solver, start=start)
    assert result.status == (Outcome.NO_GRADIENT,) * 2
    assert not any(status.failed for status in result.status)
    assert torch.equal(result.state.betas, start.betas)

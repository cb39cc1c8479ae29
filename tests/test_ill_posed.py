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
from fitkit.solve import Outcome, Solution, Solver, Stage, solve
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
PEOPLE, SICK = 4, 1
OTHERS = [0, 2, 3]
INF, NAN = float("inf"), float("nan")


def is_sick(obs: Observation) -> Tensor:
    assert obs.score is not None
    return obs.score == 0


@fitkit.objective(requires=("score",))
def well(pred: Prediction, obs: Observation) -> Tensor:
    """A least-squares problem of everybody but the person whose score is 0; it costs 0.25 in the end."""
    assert obs.score is not None
    rows = (pred.betas - obs.score[:, None]) * torch.tensor([1.0, 3.0]).to(pred.betas)
    rows = torch.cat([rows, torch.full_like(rows[:, :1], 0.5**0.5)], 1)
    return torch.where(is_sick(obs)[:, None], 0.0, rows)


class Ill(Objective):
    """An energy of the person whose score is 0.

    Args:
        illness: betas `(B, S)` to an energy `(B,)`.
    """

    name = "ill"
    requires = frozenset({"score"})

    def __init__(self, illness: Callable[[Tensor], Tensor]) -> None:
        self.illness = illness

    def residual(self, pred: Prediction, obs: Observation) -> Tensor:
        sick = is_sick(obs)
        # Whoever is well is far from where the illness is, so that not even its derivatives reach them.
        there = torch.where(sick[:, None], pred.betas, 7.5)
        return torch.where(sick, self.illness(there), 0.0)


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
    "huge": Case(lambda x: 1e200 * (1 + (x - 2).square().sum(1)), tuple(Outcome), moves=True),
    "tiny": Case(lambda x: 1e-30 * (x - 2).square().sum(1), tuple(Outcome), moves=True),
}


def problem_of(body: BodyModel, case: Case) -> tuple[Problem, State]:
    score = torch.tensor([0.5, 0.0, -0.7, 1.5], dtype=torch.float64)
    camera = Camera.from_size(640, 480).expand(PEOPLE).to(torch.float64)
    observation = Observation(camera, score=score)
    state = replace(body.neutral(PEOPLE), betas=torch.zeros(PEOPLE, 2, dtype=torch.float64))
    return Problem(body, observation, well() + Ill(case.energy), free=("betas",)), state


def finite(state: State) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in state.parts().values())


_healthy: dict[int, Solution] = {}


def without(body: BodyModel, solver: Solver) -> Solution:
    """What a solver makes of the others alone: the same for every illness."""
    if id(solver) not in _healthy:
        problem, state = problem_of(body, CASES["nan"])
        stages = [Stage(solver.max_steps)]
        _healthy[id(solver)] = solve(problem.select(OTHERS), solver, state.select(OTHERS), stages)
    return _healthy[id(solver)]


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
class TestOnePersonIsIll:
    def test_the_outcome_says_so_and_the_others_do_not_notice(
        self, body: BodyModel, case: Case, solver: Solver
    ) -> None:
        problem, state = problem_of(body, case)
        solution = solve(problem, solver, state, [Stage(solver.max_steps)])
        assert Outcome(int(solution.outcome[SICK])) in case.outcomes
        assert finite(solution.state)
        before, after = problem.energy(state)[SICK], solution.energy[SICK]
        assert not after > before
        assert case.moves or torch.equal(solution.state.betas[SICK], state.betas[SICK])
        healthy = without(body, solver)
        assert (healthy.outcome == Outcome.CONVERGED).all()
        assert torch.equal(solution.outcome[OTHERS], healthy.outcome)
        torch.testing.assert_close(solution.state.betas[OTHERS], healthy.state.betas, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(
            solution.energy[OTHERS], torch.full((3,), 0.25).double(), atol=1e-4, rtol=0
        )

    def test_alone_it_is_the_same(self, body: BodyModel, case: Case, solver: Solver) -> None:
        """A batch in which nobody is well: nothing raises, and the answer is a state."""
        problem, state = problem_of(body, case)
        solution = solve(problem.select(SICK), solver, state.select(SICK), [Stage(solver.max_steps)])
        assert Outcome(int(solution.outcome[0])) in case.outcomes
        assert finite(solution.state)


@fitkit.objective(requires=("score",))
def ill_for_one(pred: Prediction, obs: Observation, value: float) -> Tensor:
    """Nothing for the others."""
    return torch.where(is_sick(obs), value + 0 * pred.betas[:, 0], 0.0)


@pytest.mark.parametrize("solver", ["lm", "lbfgs", "bfgs", "adam", "lm+lbfgs"])
@pytest.mark.parametrize("value", [NAN, INF, -1.0])
def test_a_fit_fails_for_that_person_alone(people: MakePeople, solver: str, value: float) -> None:
    _, observation = people(3)
    observation = replace(observation, score=torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
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

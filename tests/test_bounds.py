"""Bounds: minima that lie on them, starts outside them, and bounds that cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import fitkit
from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.coordinates import Chart, Latent, SixD
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import ShapePrior, gaussian_prior
from fitkit.problem import Problem
from fitkit.solve import Solution, solve
from fitkit.solver import Outcome, Solver, Stage
from fitkit.solvers import BFGS, LBFGS, LM, Adam
from fitkit.state import State

# One line per solver.
SOLVERS: dict[str, Solver] = {
    "lm": LM(100, tolerance=1e-14),
    "lbfgs": LBFGS(300, tolerance=1e-14),
    "bfgs": BFGS(300, tolerance=1e-14),
    "adam": Adam(1000, rate=0.1, tolerance=1e-9, patience=100),
}
PEOPLE = 4
# Strongly coupled: with one number held at a bound, the best of the others is elsewhere.
COUPLING = torch.tensor([[1.0, 0.9, 0.2], [0.0, 0.5, -0.4], [0.3, 0.0, 0.6]], dtype=torch.float64)
# Of each person; the last one's minimum lies inside, the third's in a corner.
WANTED = torch.tensor([[0.0, 3.0, 0.5], [0.5, -2.0, 0.0], [5.0, 5.0, 5.0], [0.3, -0.2, 0.1]]).double()


@fitkit.objective(requires=("score",))
def coupled(pred: Prediction, obs: Observation) -> Tensor:
    assert obs.score is not None
    unbounded = WANTED.to(pred.betas)[obs.score.long()]
    return (pred.betas - unbounded) @ COUPLING.to(pred.betas).mT


def problem_of(body: BodyModel, **others: object) -> tuple[Problem, State]:
    camera = Camera.from_size(640, 480).expand(PEOPLE).to(torch.float64)
    observation = Observation(camera, score=torch.arange(PEOPLE).double())
    start = replace(body.neutral(PEOPLE), betas=torch.zeros(PEOPLE, 3).double())
    problem = Problem(body, observation, coupled(), free=("betas",), bounds={"betas": (-1.0, 1.0)})
    return replace(problem, **others), start  # type: ignore[arg-type]


def by_scipy() -> Tensor:
    """Minima within the bounds, each a solution of the KKT conditions."""
    rows = [
        scipy.optimize.lsq_linear(COUPLING, COUPLING @ wanted, (-1, 1), method="bvls", tol=1e-14).x
        for wanted in WANTED
    ]
    return torch.tensor(np.stack(rows))


def run(problem: Problem, solver: Solver, start: State) -> Solution:
    return solve(problem, solver, start, [Stage(solver.max_steps)])


def test_the_problem_is_a_hard_one(body: BodyModel) -> None:
    """Moving the unbounded minimum into the bounds is not the answer."""
    problem, start = problem_of(body)
    expected = by_scipy()
    naive = problem.energy(replace(start, betas=WANTED.clamp(-1, 1)))
    best = problem.energy(replace(start, betas=expected))
    assert (naive[:2] > 1.2 * best[:2]).all()
    assert (expected[:2].abs() < 0.999).any(1).all()
    assert (expected[:2].abs() == 1).any(1).all()
    torch.testing.assert_close(expected[3], WANTED[3])


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
class TestEverySolver:
    def test_the_minimum_within_the_bounds_is_found(self, body: BodyModel, solver: Solver) -> None:
        problem, start = problem_of(body)
        expected = by_scipy()
        solution = run(problem, solver, start)
        torch.testing.assert_close(solution.state.betas, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            solution.energy, problem.energy(replace(start, betas=expected)), rtol=1e-4, atol=1e-8
        )
        assert ((solution.outcome == Outcome.CONVERGED) | (solution.outcome == Outcome.STALLED)).all()
        alone = run(problem.select(1), solver, start.select(1))
        torch.testing.assert_close(alone.energy[0], solution.energy[1], rtol=1e-4, atol=1e-8)

    @pytest.mark.parametrize("value", [-7.0, 1.0])
    def test_a_start_outside_is_moved_in(self, body: BodyModel, solver: Solver, value: float) -> None:
        """All numbers at once, and from a bound that has to be left again."""
        problem, start = problem_of(body)
        outside = replace(start, betas=torch.full_like(start.betas, value))
        solution = run(problem, solver, outside)
        inside = replace(start, betas=outside.betas.clamp(-1, 1))
        torch.testing.assert_close(solution.trace.energy[0], problem.energy(inside))
        torch.testing.assert_close(solution.state.betas, by_scipy(), atol=1e-4, rtol=0)

    def test_a_minimum_in_a_corner_is_seen_at_the_start(self, body: BodyModel, solver: Solver) -> None:
        """Whoever starts at the constrained minimum has no gradient that leads anywhere."""
        problem, start = problem_of(body)
        corner = replace(start.select(2), betas=torch.ones(1, 3).double())
        solution = run(problem.select(2), solver, corner)
        assert torch.equal(solution.state.betas, corner.betas)
        ends = (Outcome.NO_GRADIENT, Outcome.CONVERGED, Outcome.STALLED)
        assert Outcome(int(solution.outcome[0])) in ends

    @pytest.mark.parametrize("chart", [SixD, Latent.of(gaussian_prior())], ids=["6d", "latent"])
    def test_bounds_hold_in_other_coordinates(self, body: BodyModel, solver: Solver, chart: Chart) -> None:
        """With rotations and the place free as well, which the bounds are not about."""
        objective = coupled() + 0.5 * gaussian_prior()
        problem, start = problem_of(body, free=None, coordinates=chart, objective=objective)
        problem = replace(problem, bounds={"betas": (-1.0, 1.0), "transl": (-2.0, 2.0)})
        solution = solve(problem, solver, start, [Stage(30)])
        assert solution.state.betas.abs().max() <= 1
        assert (solution.energy < problem.energy(start)).all()
        eye = torch.eye(3, dtype=torch.float64).expand(PEOPLE, 21, 3, 3)
        assert not torch.equal(solution.state.body_pose, eye)


def test_bounds_that_cannot_be_are_refused(body: BodyModel) -> None:
    for bounds, said in (
        ({"body_pose": (-1.0, 1.0)}, "bounds on body_pose"),
        ({"global_orient": (-1.0, 1.0)}, "bounds on global_orient"),
        ({"beta": (-1.0, 1.0)}, "bounds on beta"),
        ({"betas": (1.0, 1.0)}, "a pair of numbers, the low one first"),
        ({"betas": (1.0, -1.0)}, "a pair of numbers, the low one first"),
        ({"transl": (float("nan"), 1.0)}, "bounds on transl"),
    ):
        with pytest.raises(ValueError, match=said):
            problem_of(body, bounds=bounds)


def test_a_bound_on_one_side_is_a_bound(body: BodyModel) -> None:
    problem, start = problem_of(body, objective=ShapePrior(), bounds={"betas": (0.5, float("inf"))})
    for solver in SOLVERS.values():
        solution = run(problem, solver, replace(start, betas=start.betas + 2))
        torch.testing.assert_close(solution.state.betas, torch.full((PEOPLE, 3), 0.5).double())


def test_a_frozen_block_outside_its_bounds_stays(body: BodyModel) -> None:
    problem, start = problem_of(body, free=("transl",))
    start = replace(start, betas=start.betas + 5)
    assert torch.equal(solve(problem, LM(2), start).state.betas, start.betas)


@pytest.mark.parametrize("name", ["lm", "lbfgs", "bfgs"])
def test_random_bounded_least_squares_against_scipy(body: BodyModel, name: str) -> None:
    draw = torch.Generator().manual_seed(5)
    people, size = 30, 6
    matrix = torch.randn(people, 8, size, generator=draw, dtype=torch.float64)
    wanted = torch.randn(people, 8, generator=draw, dtype=torch.float64) * 3

    @fitkit.objective(requires=("score",))
    def linear(pred: Prediction, obs: Observation) -> Tensor:
        assert obs.score is not None
        rows = obs.score.long()
        return (matrix[rows] @ pred.betas[..., None])[..., 0] - wanted[rows]

    best = [
        scipy.optimize.lsq_linear(matrix[i], wanted[i], (-1, 1), method="bvls", tol=1e-14).cost
        for i in range(people)
    ]
    camera = Camera.from_size(640, 480).expand(people).to(torch.float64)
    observation = Observation(camera, score=torch.arange(people).double())
    problem = Problem(body, observation, linear(), free=("betas",), bounds={"betas": (-1.0, 1.0)})
    start = replace(body.neutral(people), betas=torch.zeros(people, size).double())
    solution = run(problem, SOLVERS[name], start)
    torch.testing.assert_close(solution.energy, torch.tensor(best), rtol=1e-5, atol=1e-9)

"""Solvers of SciPy and Theseus: references that reach the minima that ours reach, under the same protocol."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fitkit
from fitkit import geometry
from fitkit.body.model import BodyModel
from fitkit.objectives import Keypoints2D, Keypoints3D, Objective
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import gaussian_prior
from fitkit.problem import Problem
from fitkit.solve import solve
from fitkit.solver import Outcome, Solver
from fitkit.solvers import LM
from fitkit.solvers.scipy import ScipyBFGS, ScipyLBFGSB, ScipyLeastSquares
from fitkit.solvers.theseus import TheseusLM
from fitkit.state import State

MakePeople = Callable[..., tuple[State, Observation]]
PACKAGES: dict[type[Solver], str] = {
    ScipyBFGS: "scipy.optimize",
    ScipyLBFGSB: "scipy.optimize",
    ScipyLeastSquares: "scipy.optimize",
    TheseusLM: "theseus",
}


@pytest.fixture(params=list(PACKAGES), ids=lambda kind: kind.name)
def solver(request: pytest.FixtureRequest) -> Solver:
    """Each back end that is installed."""
    package = PACKAGES[request.param]
    try:
        made: Solver = request.param()
    except ImportError:
        pytest.skip(f"{package.split('.')[0]} is not installed")
    return made


@fitkit.objective
def bowl(pred: Prediction, obs: Observation) -> Tensor:
    """Least at betas = 0.1, 0.2, ..., with curvatures of 1, 4, 9, ..."""
    count = torch.arange(1, pred.betas.shape[1] + 1, dtype=pred.betas.dtype)
    return count * (pred.betas - 0.1 * count)


@fitkit.objective
def rosenbrock(pred: Prediction, obs: Observation) -> Tensor:
    """Rosenbrock (1960) in two betas, least at (1, 1); the others are drawn to zero."""
    x, y = pred.betas[:, :1], pred.betas[:, 1:2]
    return torch.cat([10 * (y - x**2), 1 - x, pred.betas[:, 2:]], 1)


@fitkit.objective
def quartic(pred: Prediction, obs: Observation) -> Tensor:
    """An energy, not rows."""
    return ((pred.betas - 1) ** 2).sum(1) + ((pred.betas - 1) ** 4).sum(1)


@fitkit.objective
def wall(pred: Prediction, obs: Observation) -> Tensor:
    """Not finite from betas = 1 on, and least shortly before."""
    return torch.cat([0.3 * torch.log(1 - pred.betas), 2 * (pred.betas - 1.5)], 1)


@fitkit.objective
def cusp(pred: Prediction, obs: Observation) -> Tensor:
    """Finite, but without a finite gradient at the first beta = 0."""
    return torch.cat([pred.betas[:, :1].abs().sqrt() - 1, pred.betas[:, 1:]], 1)


def shape_problem(
    body: BodyModel, observation: Observation, objective: Objective, **settings: Any
) -> Problem:
    return Problem(body, observation, objective, free=("betas",), **settings)


@pytest.fixture(scope="module")
def fitted(body: BodyModel, people: MakePeople) -> tuple[Problem, State, State, Tensor]:
    """A whole fit of two people: the problem, a start near its minimum, the minimum by our LM and its energy."""
    state, observation = people(2)
    problem = Problem(body, observation, fitkit.default_objective(observation))
    near = solve(problem, LM(15), state).state
    found = solve(problem, LM(300, tolerance=1e-12), near)
    return problem, near, found.state, found.energy


class TestEveryBackEnd:
    def test_a_quadratic(self, body: BodyModel, people: MakePeople, solver: Solver) -> None:
        state, observation = people()
        found = solve(shape_problem(body, observation, bowl()), solver, state)
        assert (found.outcome == Outcome.CONVERGED).all()
        wanted = 0.1 * torch.arange(1, body.num_betas + 1, dtype=torch.float64)
        torch.testing.assert_close(found.state.betas, wanted.expand(3, -1), atol=1e-5, rtol=0)

    def test_rosenbrock(self, body: BodyModel, people: MakePeople, solver: Solver) -> None:
        state, observation = people()
        start = replace(state, betas=torch.zeros_like(state.betas) + torch.tensor([-1.2, 1.0] + [0.5] * 14))
        found = solve(shape_problem(body, observation, rosenbrock()), solver, start)
        wanted = torch.tensor([1.0, 1.0] + [0.0] * 14, dtype=torch.float64)
        torch.testing.assert_close(found.state.betas, wanted.expand(3, -1), atol=1e-4, rtol=0)

    def test_an_energy(self, body: BodyModel, people: MakePeople, solver: Solver) -> None:
        if isinstance(solver, ScipyLeastSquares):
            solver = ScipyLeastSquares(max_iterations=30)
        state, observation = people(2)
        problem = shape_problem(body, observation, quartic())
        found = solve(problem, solver, state)
        # As one row of least squares it has a curvature of rank one, and the way is long.
        assert (found.energy < problem.energy(state)).all()
        if isinstance(solver, ScipyBFGS | ScipyLBFGSB):
            torch.testing.assert_close(found.state.betas, torch.ones_like(state.betas), atol=1e-3, rtol=0)

    def test_a_step_to_where_nothing_is_finite_is_taken_back(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        state, observation = people(2)
        problem = shape_problem(body, observation, wall())
        start = replace(state, betas=torch.zeros_like(state.betas))
        ours = solve(problem, LM(200, tolerance=1e-12), start)
        found = solve(problem, solver, start)
        torch.testing.assert_close(found.energy, ours.energy, rtol=1e-5, atol=1e-5)

    def test_inverse_kinematics(self, body: BodyModel, people: MakePeople, solver: Solver) -> None:
        """Exact points of a pose are met again from a pose nearby."""
        if isinstance(solver, ScipyLBFGSB):
            solver = ScipyLBFGSB(max_iterations=200)  # near enough; what no point sees takes it thousands
        truth, observation = people(1)
        assert observation.world is not None
        exact = body.keypoints(truth, "mediapipe33")
        seen = replace(observation.world, xyz=exact, confidence=torch.ones_like(exact[..., 0]))
        objective = Keypoints3D(sigma=0.01, kernel=None) + 1e-3 * gaussian_prior()
        problem = Problem(body, replace(observation, world=seen), objective, free=("body_pose",))
        turned = truth.body_pose @ geometry.exp(truth.body_pose.new_full((1, 21, 3), 0.1))
        start = replace(truth, body_pose=turned)
        found = solve(problem, solver, start)
        apart = body.keypoints(found.state, "mediapipe33") - exact
        assert apart.norm(dim=-1).max() < 3e-3
        assert found.energy < 0.02 * problem.energy(start)

    def test_a_whole_fit_ends_where_ours_ends(
        self, fitted: tuple[Problem, State, State, Tensor], solver: Solver
    ) -> None:
        problem, near, state, energy = fitted
        found = solve(problem, solver, near)
        assert (found.outcome == Outcome.CONVERGED).all()
        torch.testing.assert_close(found.energy, energy, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(problem.energy(found.state), found.energy)
        apart = problem.body.joints(found.state) - problem.body.joints(state)
        assert apart.norm(dim=-1).max() < 2e-3
        assert set(found.values) == {term.name for term in problem.objective.terms()}

    def test_frozen_blocks_do_not_move(
        self, fitted: tuple[Problem, State, State, Tensor], solver: Solver
    ) -> None:
        problem, near, _, _ = fitted
        part = replace(problem, free=("global_orient", "transl"))
        start = replace(near, transl=near.transl + 0.05)
        found = solve(part, solver, start)
        assert torch.equal(found.state.body_pose, start.body_pose)
        assert torch.equal(found.state.betas, start.betas)
        ours = solve(part, LM(200, tolerance=1e-12), start)
        torch.testing.assert_close(found.energy, ours.energy, rtol=1e-6, atol=1e-6)

    def test_a_person_is_alone_in_any_batch(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        start, observation = people()
        part = Problem(body, observation, Keypoints2D(kernel=None), free=("transl",))
        whole = solve(part, solver, start)
        order = [2, 0, 1]
        shuffled = solve(part.select(order), solver, start.select(order))
        torch.testing.assert_close(shuffled.energy, whole.energy[order], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(shuffled.state.transl, whole.state.transl[order], rtol=0, atol=1e-5)
        for person in range(3):
            alone = solve(part.select(person), solver, start.select(person))
            torch.testing.assert_close(alone.energy[0], whole.energy[person], rtol=1e-7, atol=1e-7)
            assert alone.outcome[0] == whole.outcome[person]

    def test_a_person_without_a_finite_objective_fails_alone(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        state, observation = people()
        broken = state.betas.clone()
        broken[1] = float("nan")
        flat = state.betas.clone()
        flat[1, 0] = 0
        for objective, betas in ((bowl(), broken), (cusp(), flat)):
            problem, start = shape_problem(body, observation, objective), replace(state, betas=betas)
            found = solve(problem, solver, start)
            assert found.outcome[1] == Outcome.NOT_FINITE
            assert (found.energy[[0, 2]] < problem.energy(start)[[0, 2]]).all()
            # As on CUDA, where who has failed stays in the batch for some steps.
            memory, _ = solver.init(problem, start)
            moved, _, status = solver.step(problem, start, memory)
            assert torch.isfinite(moved.betas[[0, 2]]).all()
            assert (status.energy[[0, 2]] < problem.energy(start)[[0, 2]]).all()

    def test_what_the_objective_raises_is_the_callers(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        @fitkit.objective
        def fragile(pred: Prediction, obs: Observation) -> Tensor:
            calls.append(1)
            if len(calls) > 3:
                raise KeyError("lost")
            return pred.betas

        calls: list[int] = []
        state, observation = people(1)
        with pytest.raises(KeyError, match="lost"):
            solve(shape_problem(body, observation, fragile()), solver, state)

    def test_bounds_are_kept_or_refused(self, body: BodyModel, people: MakePeople, solver: Solver) -> None:
        state, observation = people()
        problem = shape_problem(body, observation, bowl(), bounds={"betas": (-0.5, 0.55)})
        if not isinstance(solver, ScipyLBFGSB | ScipyLeastSquares):
            with pytest.raises(ValueError, match=rf"{solver.name} cannot keep the bounds on \['betas'\]"):
                solve(problem, solver, state)
            return
        found = solve(problem, solver, replace(state, betas=3 * state.betas))
        wanted = (0.1 * torch.arange(1, body.num_betas + 1, dtype=torch.float64)).clamp_max(0.55)
        torch.testing.assert_close(found.state.betas, wanted.expand(3, -1), atol=1e-4, rtol=0)
        assert found.state.betas.max() <= 0.55

    def test_a_missing_package_is_named(self, solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
        kind = type(solver)
        monkeypatch.setitem(sys.modules, PACKAGES[kind], None)  # what `import` takes for not there
        with pytest.raises(ImportError, match=rf"{kind.name} needs .*pip install"):
            kind()


def test_theseus_says_what_does_not_work_under_vmap(body: BodyModel, people: MakePeople) -> None:
    @fitkit.objective
    def branches(pred: Prediction, obs: Observation) -> Tensor:
        return pred.betas if pred.betas.sum() > 0 else 2 * pred.betas

    pytest.importorskip("theseus", reason="theseus is not installed")
    state, observation = people(1)
    with pytest.raises(RuntimeError, match=r"does not work under torch.func.vmap .* solver lm"):
        solve(shape_problem(body, observation, branches()), TheseusLM(), state)

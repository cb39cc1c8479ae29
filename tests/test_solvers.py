"""Every solver: lowers every objective, honours frozen blocks, reports status, treats each person alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import fitkit
from fitkit.body.model import BodyModel
from fitkit.initialise import make_starts, torso_orientation
from fitkit.objectives import Keypoints2D
from fitkit.observation import Observation
from fitkit.priors import GaussianPosePrior, JointLimits, ShapePrior
from fitkit.problem import Problem
from fitkit.registry import get_solver, register_solver, solver_names
from fitkit.solve import Outcome, Solution, Solver, Stage, solve
from fitkit.solvers import LBFGS, LM
from fitkit.state import State

MakePeople = Callable[..., tuple[State, Observation]]
SOLVERS = [LM(), LBFGS(max_steps=60)]


def start(body: BodyModel, observation: Observation) -> State:
    starts = make_starts(body, observation, GaussianPosePrior().mean_pose())
    return starts.state.select(slice(0, None, starts.count))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
class TestEverySolver:
    def test_lowers_the_energy_at_every_step(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        _, observation = people()
        problem = Problem(body, observation, fitkit.default_objective(observation))
        state = start(body, observation)
        solution = solve(problem, solver, state)
        assert (solution.energy < 0.5 * problem.energy(state)).all()
        energy = solution.trace.energy
        assert (energy[1:] <= energy[:-1] + 1e-9).all()
        torch.testing.assert_close(problem.energy(solution.state), solution.energy)
        assert set(solution.values) == {term.name for term in problem.objective.terms()}

    def test_frozen_blocks_do_not_move(self, body: BodyModel, people: MakePeople, solver: Solver) -> None:
        _, observation = people()
        objective = fitkit.default_objective(observation)
        problem = Problem(body, observation, objective, free=("global_orient", "transl"))
        state = start(body, observation)
        solution = solve(problem, solver, state)
        assert torch.equal(solution.state.body_pose, state.body_pose)
        assert torch.equal(solution.state.betas, state.betas)
        assert (solution.energy < problem.energy(state)).all()

    def test_a_person_is_alone_in_any_batch(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        _, observation = people(4)
        problem = Problem(body, observation, fitkit.default_objective(observation))
        state = start(body, observation)
        whole = solve(problem, solver, state)
        order = [2, 0, 3, 1]
        shuffled = solve(problem.select(order), solver, state.select(order))
        torch.testing.assert_close(shuffled.energy, whole.energy[order], rtol=1e-4, atol=1e-6)
        alone = solve(problem.select(1), solver, state.select(1))
        torch.testing.assert_close(alone.energy, whole.energy[1:2], rtol=1e-4, atol=1e-6)
        joints = body.joints(alone.state) - body.joints(whole.state.select(1))
        assert joints.norm(dim=-1).max() < 2e-3

    def test_reports_the_step_limit_and_convergence(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        _, observation = people()
        problem = Problem(body, observation, fitkit.default_objective(observation))
        state = start(body, observation)
        short = solve(problem, solver, state, [Stage(2)])
        assert (short.outcome == Outcome.MAX_STEPS).all()
        done = solve(problem, solver, state, [Stage(500)])
        assert ((done.outcome == Outcome.CONVERGED) | (done.outcome == Outcome.STALLED)).all()

    def test_a_person_without_a_finite_objective_fails_alone(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        state, observation = people()
        broken = state.transl.clone()
        broken[1] = float("nan")
        problem = Problem(body, observation, Keypoints2D() + ShapePrior() + GaussianPosePrior())
        solution = solve(problem, solver, replace(state, transl=broken), [Stage(5)])
        assert solution.outcome[1] == Outcome.NOT_FINITE
        assert torch.isfinite(solution.energy[[0, 2]]).all()


def test_both_solvers_find_the_same_minimum(body: BodyModel, people: MakePeople) -> None:
    """Two algorithms and two kinds of derivatives: from one start, energies agree to a per cent."""
    _, observation = people()
    problem = Problem(body, observation, fitkit.default_objective(observation))
    state = start(body, observation)
    tight = solve(problem, LM(200, tolerance=1e-9), state)
    other = solve(problem, LBFGS(600, tolerance=1e-9), tight.state)
    torch.testing.assert_close(other.energy, tight.energy, rtol=1e-4, atol=1e-4)


def test_exact_keypoints_are_met(body: BodyModel, people: MakePeople) -> None:
    """Without noise and with hardly a prior the keypoints are reproduced."""
    truth, observation = people()
    assert observation.keypoints is not None
    exact = observation.camera.project(body.keypoints(truth, "mediapipe33"))
    seen = replace(observation.keypoints, xy=exact, confidence=torch.ones_like(exact[..., 0]))
    observation = replace(observation, keypoints=seen)
    problem = Problem(body, observation, Keypoints2D() + 1e-3 * ShapePrior() + 1e-3 * GaussianPosePrior())
    solution = solve(problem, LM(200, tolerance=1e-8), truth.select([0, 1, 2]))
    found = observation.camera.project(body.keypoints(solution.state, "mediapipe33"))
    assert (found - exact).norm(dim=-1).mean() < 0.5


def test_more_starts_are_never_worse(body: BodyModel, people: MakePeople) -> None:
    _, observation = people()
    problem = Problem(body, observation, fitkit.default_objective(observation))
    starts = make_starts(body, observation, GaussianPosePrior().mean_pose())
    assert starts.count == 6
    several = solve(problem, LM(), starts.state, starts=starts.count)
    single = solve(problem, LM(), starts.state.select(slice(0, None, starts.count)))
    assert (several.energy <= single.energy + 1e-9).all()
    with pytest.raises(ValueError, match=r"18 starts, expected 1 for each of 3"):
        solve(problem, LM(), starts.state)


def test_the_torso_of_landmarks_gives_the_orientation(body: BodyModel, people: MakePeople) -> None:
    state, observation = people()
    assert observation.world is not None
    straight = replace(state, body_pose=body.neutral(3).body_pose, betas=0 * state.betas)
    xyz = body.keypoints(straight, "mediapipe33")
    world = replace(observation.world, xyz=xyz, confidence=torch.ones_like(xyz[..., 0]))
    found = torso_orientation(world, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found, straight.global_orient[:, 0], atol=0.15, rtol=0)
    unseen = replace(world, confidence=torch.zeros_like(xyz[..., 0]))
    fallback = torso_orientation(unseen, torch.eye(3, dtype=torch.float64))
    assert torch.equal(fallback, torch.eye(3, dtype=torch.float64).expand(3, 3, 3))


def test_a_solver_of_ones_own_is_at_home(body: BodyModel, people: MakePeople) -> None:
    @register_solver("halves")
    class Halves(LM):
        name = "halves"

    assert "halves" in solver_names()
    assert isinstance(get_solver("halves"), Halves)
    with pytest.raises(ValueError, match="exists"):
        register_solver("lm")
    with pytest.raises(ValueError, match=r"bfsg.*lbfgs"):
        get_solver("bfsg")


def test_progress_is_reported_and_can_stop_a_run(body: BodyModel, people: MakePeople) -> None:
    _, observation = people()
    problem = Problem(body, observation, JointLimits() + Keypoints2D() + GaussianPosePrior() + ShapePrior())
    seen: list[tuple[int, str]] = []
    solution: Solution = solve(
        problem,
        LM(),
        start(body, observation),
        [Stage(3, name="only")],
        on_step=lambda *step: seen.append(step),
    )
    assert seen == [(1, "only"), (2, "only"), (3, "only")]
    assert solution.trace.step == [0, 1, 2, 3]
    assert solution.trace.energy.shape == (4, 3)

"""The pull of an estimate of the body: against autodiff, closed forms and rows alone; what it refuses."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

import fitkit
from fitkit import geometry
from fitkit.body.model import BodyModel
from fitkit.coordinates import SixD, retract
from fitkit.objectives import GMoF, Guess, GuessedDepth, Huber, Keypoints2D, Objective
from fitkit.objectives.base import as_residual
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import ShapePrior
from fitkit.problem import Problem
from fitkit.solve import solve
from fitkit.solvers import LBFGS, LM
from fitkit.state import State

MakePeople = Callable[..., tuple[State, Observation]]
PEOPLE = 3
SPREADS = [0.05 + 0.02 * joint for joint in range(22)]
TERMS: list[Objective] = [
    Guess(0.2),
    Guess(SPREADS, shape=0.4),
    Guess(0.3, shape=None),
    Guess([0.1] * 21 + [float("inf")], shape=float("inf")),
    Guess(0.2).robust(GMoF(2.0)),
    Guess(SPREADS).robust(Huber(1.0)),
    GuessedDepth(0.07),
    GuessedDepth().robust(GMoF(2.0)),
]


def guessed(people: MakePeople, count: int = PEOPLE) -> tuple[State, Observation]:
    """Bodies, and an observation with an estimate of others."""
    state, observation = people(count)
    return state, replace(observation, guess=people(count, seed=5)[0])


@pytest.mark.parametrize("term", TERMS, ids=str)
@pytest.mark.parametrize("free", [None, ("body_pose", "transl"), ("betas", "global_orient"), ("transl",)])
def test_closed_forms_are_the_automatic_ones(
    body: BodyModel, people: MakePeople, term: Objective, free: tuple[str, ...] | None
) -> None:
    state, observation = guessed(people)
    problem = Problem(body, observation, 3.0 * term, free=free)
    here = problem.linearize(state)
    residual, jacobian = problem.automatic(term, state)
    gradient, hessian = (3.0 * term).normal(residual, jacobian)
    torch.testing.assert_close(here.gradient, gradient, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(here.hessian, hessian, atol=1e-9, rtol=1e-9)
    pred = Prediction(body, state, observation.camera, problem.free_blocks(state))
    torch.testing.assert_close(term.jacobian(pred, observation), jacobian, atol=1e-9, rtol=1e-9)
    chart = problem.chart(state)
    value, slope = problem.value_and_grad(chart.encode(state), chart)
    torch.testing.assert_close(here.energy, value)
    torch.testing.assert_close(here.gradient, slope, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_gradient_is_that_of_the_value(body: BodyModel, people: MakePeople, term: Objective) -> None:
    state, observation = guessed(people)
    problem = Problem(body, observation, term)
    here, blocks = problem.linearize(state), problem.free_blocks(state)
    direction = torch.randn_like(here.gradient)
    ahead, behind = (problem.energy(retract(state, step * direction, blocks)) for step in (1e-5, -1e-5))
    slope = (here.gradient * direction).sum(1)
    torch.testing.assert_close((ahead - behind) / 2e-5, slope, atol=1e-5, rtol=1e-5)


def test_one_turn_has_a_closed_form(body: BodyModel, people: MakePeople) -> None:
    """One joint turned by a: `(1 - cos a) / spread^2`, near `a^2 / (2 spread^2)`; betas are half squares."""
    state, observation = people(4)
    angle = torch.tensor([0.0, 1e-3, 0.3, 2.5], dtype=torch.float64)
    turn = geometry.exp(angle[:, None] * torch.nn.functional.normalize(torch.randn(4, 3).double()))
    pose = state.body_pose.clone()
    pose[:, 7] = pose[:, 7] @ turn
    shift = torch.linspace(0, 1, state.betas.shape[1]).double()
    moved = replace(state, body_pose=pose, betas=state.betas + shift, transl=state.transl + 1)
    problem = Problem(body, replace(observation, guess=state), Guess(SPREADS, shape=0.5))
    pose_part = (1 - angle.cos()) / SPREADS[8] ** 2
    torch.testing.assert_close(problem.energy(moved), pose_part + 2 * (shift**2).sum())
    torch.testing.assert_close(float(pose_part[1]), 0.5 * (1e-3 / SPREADS[8]) ** 2, rtol=1e-5, atol=0)


def test_depth_is_that_of_the_joints_behind_the_root(body: BodyModel, people: MakePeople) -> None:
    """A body turned half about the optical axis or moved keeps its relative depths; in a mirror they change sign."""
    state, observation = people(2)
    problem = Problem(body, replace(observation, guess=state), GuessedDepth(0.1))
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    moved = replace(state, global_orient=half @ state.global_orient, transl=state.transl + 1)
    assert float(problem.energy(moved).max()) < 1e-20
    about = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    other = replace(state, global_orient=about @ state.global_orient)
    joints = body.joints(state)[:, 1:22] - body.joints(state)[:, :1]
    torch.testing.assert_close(problem.energy(other), 0.5 * ((2 * joints[..., 2] / 0.1) ** 2).sum(1))


@pytest.mark.parametrize("spread", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spread_of_depth_is_a_length(spread: float) -> None:
    with pytest.raises(ValueError, match="metres above zero"):
        GuessedDepth(spread)


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_nothing_pulls_at_the_guess(body: BodyModel, people: MakePeople, term: Objective) -> None:
    _, observation = guessed(people)
    guess = observation.guess
    assert guess is not None
    elsewhere = replace(guess, transl=guess.transl + 3)
    here = Problem(body, observation, term).linearize(elsewhere)
    assert float(here.energy.abs().max()) < 1e-20
    assert float(here.gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_rows_alone_are_rows_of_the_batch(body: BodyModel, people: MakePeople, term: Objective) -> None:
    state, observation = guessed(people)
    problem = Problem(body, observation, term)
    whole = problem.linearize(state)
    for order in ([2], [1, 0], [0, 2, 1]):
        part = problem.select(order).linearize(state.select(order))
        torch.testing.assert_close(part.energy, whole.energy[order])
        torch.testing.assert_close(part.gradient, whole.gradient[order])
        torch.testing.assert_close(part.hessian, whole.hessian[order])
    again = pickle.loads(pickle.dumps(term))
    torch.testing.assert_close(Problem(body, observation, again).energy(state), whole.energy)
    rough = Problem(body.to(torch.float32), observation.to(torch.float32), term)
    torch.testing.assert_close(
        rough.energy(state.to(torch.float32)).double(), whole.energy, rtol=1e-4, atol=0
    )


def test_a_free_joint_and_free_betas_do_not_count(body: BodyModel, people: MakePeople) -> None:
    state, observation = guessed(people)
    term = Guess([0.1] * 21 + [float("inf")], shape=None)
    problem = Problem(body, observation, term)
    pose = state.body_pose.clone()
    pose[:, -1] = pose[:, 0]
    other = replace(state, body_pose=pose, betas=state.betas + 1)
    torch.testing.assert_close(problem.energy(other), problem.energy(state))


@pytest.mark.parametrize("solver", [LM(20), LBFGS(60)], ids=lambda s: s.name)
def test_a_fit_is_pulled_to_the_guess(body: BodyModel, people: MakePeople, solver: LM) -> None:
    """Alone, all the way; beside keypoints, the nearer the smaller the spread."""
    state, observation = guessed(people)
    guess = observation.guess
    assert guess is not None
    alone = solve(Problem(body, observation, Guess(0.2)), solver, state)
    assert float(geometry.geodesic(alone.state.body_pose, guess.body_pose).max()) < 0.02
    assert torch.equal(alone.state.transl, state.transl)
    away = []
    for spread in (1e-3, 0.1, 10.0):
        objective = Keypoints2D() + 0.01 * ShapePrior() + Guess(spread)
        fitted = solve(Problem(body, observation, objective), solver, guess).state
        away.append(float(geometry.geodesic(fitted.body_pose, guess.body_pose).mean()))
    assert away[0] < 0.01
    assert away[0] < away[1] < away[2]


def test_it_moves_in_any_coordinates(body: BodyModel, people: MakePeople) -> None:
    state, observation = guessed(people)
    guess = observation.guess
    assert guess is not None
    solution = solve(Problem(body, observation, Guess(0.2), coordinates=SixD), LM(20), state)
    torch.testing.assert_close(solution.state.global_orient, guess.global_orient, atol=0.02, rtol=0)


def test_a_body_of_23_joints(people: MakePeople) -> None:
    """SMPL's body pose has two more joints; the term needs no more of a body than its states."""
    eye = torch.eye(3, dtype=torch.float64)
    draw = torch.Generator().manual_seed(3)

    def state() -> State:
        turns = geometry.exp(0.4 * torch.randn(2, 24, 3, generator=draw, dtype=torch.float64))
        return State(
            turns[:, :1] @ eye, turns[:, 1:], torch.zeros(2, 10).double(), torch.zeros(2, 3).double()
        )

    here, guess = state(), state()
    _, observation = people(2)
    observation = replace(observation, guess=guess)
    blocks = {"global_orient": slice(0, 3), "body_pose": slice(3, 72), "betas": slice(72, 82)}
    pred = Prediction(fitkit.open_body(), here, observation.camera, blocks)
    for term in (Guess(0.2), Guess([0.1] * 12 + [0.3] * 12)):
        residual = as_residual(term.name, term.residual(pred, observation), here.transl)
        closed, jacobian = term.closed_normal(pred, observation, residual), term.jacobian(pred, observation)
        assert closed is not None
        for mine, longhand in zip(closed, term.normal(residual, jacobian), strict=True):
            torch.testing.assert_close(mine, longhand)
    with pytest.raises(ValueError, match=r"22 spreads.*each of 24 joints"):
        Guess(SPREADS).residual(pred, observation)
    with pytest.raises(ValueError, match=r"'body_pose': 21.*'body_pose': 23"):
        Guess(0.2).residual(pred, replace(observation, guess=people(2)[0]))


def test_what_cannot_be_meant_is_refused(body: BodyModel, people: MakePeople) -> None:
    state, observation = guessed(people)
    for spread in (0.0, -1.0, float("nan"), [], [0.1, 0.0], [0.1, float("nan")]):
        with pytest.raises(ValueError, match="objective guess: spread is"):
            Guess(spread)
    for shape in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="objective guess: shape is"):
            Guess(0.1, shape=shape)
    with pytest.raises(ValueError, match=r"3 spreads, expected one, or one for each of 22 joints"):
        Problem(body, observation, Guess([0.1, 0.2, 0.3])).energy(state)
    short = replace(state, betas=state.betas[:, :4])
    with pytest.raises(ValueError, match=r"'betas': 4.*'betas': 16"):
        Problem(body, replace(observation, guess=short), Guess(0.1)).energy(state)
    with pytest.raises(ValueError, match=r"guess needs \['guess'\]"):
        Problem(body, replace(observation, guess=None), Guess(0.1))


def test_an_observation_checks_its_guess(people: MakePeople) -> None:
    state, observation = guessed(people)
    observation.check()
    with pytest.raises(ValueError, match="guess is of 2 people, the camera of 3"):
        replace(observation, guess=state.select([0, 1]))
    with pytest.raises(Exception, match=r"guess is ndarray, expected State|'guess': f64"):
        replace(observation, guess=np.zeros(3))  # type: ignore[arg-type]
    lost = replace(state, betas=state.betas * float("nan"))
    with pytest.raises(ValueError, match="guess has betas"):
        replace(observation, guess=lost).check()
    both = fitkit.concatenate([observation.select([2]), observation.select([0])])
    assert both.guess is not None
    torch.testing.assert_close(both.guess.betas, observation.select([2, 0]).guess.betas)  # type: ignore[union-attr]
    assert observation.to(torch.float32).guess.betas.dtype == torch.float32  # type: ignore[union-attr]

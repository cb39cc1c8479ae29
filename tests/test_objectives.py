"""Every objective: shape, finite differences, one person == batch; sums, kernels, custom terms; the three readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

import fitkit
from fitkit import geometry
from fitkit.body.model import BodyModel
from fitkit.coordinates import SixD, retract
from fitkit.keypoints import get_set
from fitkit.objectives import L1, BoneDirections, GMoF, Huber, Kernel, Keypoints2D, Objective
from fitkit.objectives import Keypoints3D as Points3D
from fitkit.objectives.base import cost
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import (
    JointLimits,
    PooledPrior,
    ShapePrior,
    UprightPrior,
    default_pose_prior,
    flow_prior,
    gaussian_prior,
    mixture_prior,
)
from fitkit.problem import Problem
from fitkit.state import State

PEOPLE = 3
MakePeople = Callable[..., tuple[State, Observation]]


@fitkit.objective
def hips_at(pred: Prediction, obs: Observation, height: float) -> Tensor:
    return pred.joint("pelvis")[:, 1:2] - height


@fitkit.objective(name="curl")
def elbow_energy(pred: Prediction, obs: Observation) -> Tensor:
    return (1 - pred.body_pose[:, 17, 0, 0]) + 0.1


@fitkit.objective
def nose_tip_depth(pred: Prediction, obs: Observation) -> Tensor:
    return pred.vertices[:, ::500, 2] - 4.0


OBJECTIVES: list[Objective] = [
    Keypoints2D(),
    Keypoints2D(kernel=None).named("plain"),
    Keypoints2D(sigma=0.01, kernel=Huber(3.0)),
    Points3D(kernel=L1(2.0)),
    BoneDirections(),
    gaussian_prior(),
    PooledPrior(0.3 * gaussian_prior(), 0.7 * mixture_prior()),
    ShapePrior(),
    UprightPrior(),
    JointLimits(),
    hips_at(height=0.3),
    elbow_energy(),
    nose_tip_depth().robust(GMoF(1.0)),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.name}-{type(o.kernel).__name__}")
class TestEveryObjective:
    def test_gradient_is_that_of_the_value(
        self, body: BodyModel, people: MakePeople, objective: Objective
    ) -> None:
        """The linearisation's gradient against central differences of the value along random directions."""
        state, observation = people()
        problem = Problem(body, observation, 3.0 * objective)
        here = problem.linearize(state)
        chart = problem.chart(state)
        value, gradient = problem.value_and_grad(chart.encode(state), chart)
        torch.testing.assert_close(here.energy, value)
        torch.testing.assert_close(here.gradient, gradient, atol=1e-6, rtol=1e-6)
        direction = torch.randn(chart.size, dtype=torch.float64).expand(PEOPLE, -1)
        step = 1e-5
        ahead = problem.energy(retract(state, step * direction, chart.blocks))
        behind = problem.energy(retract(state, -step * direction, chart.blocks))
        slope = (gradient * direction).sum(1)
        torch.testing.assert_close((ahead - behind) / (2 * step), slope, atol=2e-5, rtol=2e-5)

    def test_closed_forms_are_the_automatic_ones(
        self, body: BodyModel, people: MakePeople, objective: Objective
    ) -> None:
        """Gradient and Gauss-Newton matrix, however a term gets there, against automatic differentiation."""
        state, observation = people()
        problem = Problem(body, observation, 3.0 * objective)
        here = problem.linearize(state)
        gradient, hessian = (3.0 * objective).normal(*problem.automatic(objective, state))
        torch.testing.assert_close(here.gradient, gradient, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(here.hessian, hessian, atol=1e-6, rtol=1e-6)

    def test_one_person_is_a_batch_of_one(
        self, body: BodyModel, people: MakePeople, objective: Objective
    ) -> None:
        state, observation = people()
        problem = Problem(body, observation, objective)
        whole = problem.linearize(state)
        for person in range(PEOPLE):
            alone = problem.select(person).linearize(state.select(person))
            torch.testing.assert_close(alone.energy[0], whole.energy[person])
            torch.testing.assert_close(alone.hessian[0], whole.hessian[person])

    def test_float32_agrees(self, body: BodyModel, people: MakePeople, objective: Objective) -> None:
        state, observation = people()
        exact = Problem(body, observation, objective).energy(state)
        single = Problem(body.to(torch.float32), observation.to(torch.float32), objective)
        rough = single.energy(state.to(torch.float32))
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kernel", [GMoF(2.0), Huber(2.0), L1(2.0)])
def test_kernels_start_as_squares_and_their_slope_is_their_derivative(kernel: Kernel) -> None:
    small = torch.tensor([1e-8], dtype=torch.float64)
    torch.testing.assert_close(kernel.cost(small), small)
    square = torch.linspace(0.01, 50, 200, dtype=torch.float64).requires_grad_(True)
    (slope,) = torch.autograd.grad(kernel.cost(square).sum(), square)
    torch.testing.assert_close(kernel.slope(square.detach()), slope)
    assert (kernel.cost(square.detach()) <= square.detach() + 1e-12).all()
    with pytest.raises(ValueError, match="width"):
        type(kernel)(0.0)


def test_outliers_cost_at_most_the_squared_width() -> None:
    far = torch.tensor([1e12], dtype=torch.float64)
    torch.testing.assert_close(GMoF(3.0).cost(far), torch.full_like(far, 9.0))


def test_sums_scale_and_refuse_two_of_a_name(body: BodyModel, people: MakePeople) -> None:
    state, observation = people()
    objective = fitkit.default_objective(observation)
    values = Problem(body, observation, objective).values(state)
    half = Problem(body, observation, 0.5 * objective).values(state)
    for name, value in values.items():
        torch.testing.assert_close(half[name], 0.5 * value)
    with pytest.raises(ValueError, match=r"shape_prior.*twice"):
        objective + ShapePrior()
    both = objective + ShapePrior().named("another")
    assert [term.name for term in both.terms()][-1] == "another"
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="weight"):
            wrong * ShapePrior()


def test_custom_objective_takes_its_settings_and_nothing_else() -> None:
    assert repr(2.0 * hips_at(height=0.1)) == "2 * hips_at"
    with pytest.raises(TypeError, match="hieght"):
        hips_at(height=0.1, hieght=0.1)
    with pytest.raises(TypeError, match="height"):
        hips_at()


def test_a_wrong_result_of_a_custom_objective_is_named(body: BodyModel, people: MakePeople) -> None:
    @fitkit.objective
    def scalar(pred: Prediction, obs: Observation) -> Tensor:
        return pred.betas.sum()

    state, observation = people()
    with pytest.raises(ValueError, match=r"scalar returned \(\)"):
        Problem(body, observation, scalar()).energy(state)


def test_missing_parts_are_told_before_anything_runs(body: BodyModel, people: MakePeople) -> None:
    _, observation = people()
    with pytest.raises(ValueError, match=r"directions needs \['world'\]"):
        Problem(body, replace(observation, world=None), BoneDirections())


def test_unseen_keypoints_do_not_count(body: BodyModel, people: MakePeople) -> None:
    state, observation = people()
    assert observation.keypoints is not None
    moved = observation.keypoints.xy.clone()
    moved[:, 5] += 500
    other = replace(observation, keypoints=replace(observation.keypoints, xy=moved))
    term = Keypoints2D()
    pred = Prediction(body, state, observation.camera)
    torch.testing.assert_close(
        cost(term, term.residual(pred, observation)), cost(term, term.residual(pred, other))
    )


def test_frozen_blocks_have_no_columns(body: BodyModel, people: MakePeople) -> None:
    state, observation = people()
    problem = Problem(body, observation, fitkit.default_objective(observation))
    whole, part = (
        problem.linearize(state),
        replace(problem, free=("transl", "global_orient")).linearize(state),
    )
    assert part.gradient.shape == (PEOPLE, 6)
    blocks = problem.free_blocks(state)
    torch.testing.assert_close(part.gradient[:, :3], whole.gradient[:, blocks["global_orient"]])
    torch.testing.assert_close(part.gradient[:, 3:], whole.gradient[:, blocks["transl"]])


def test_other_coordinates_have_the_same_value(body: BodyModel, people: MakePeople) -> None:
    state, observation = people()
    problem = Problem(body, observation, fitkit.default_objective(observation), coordinates=SixD)
    chart = problem.chart(state)
    value, gradient = problem.value_and_grad(chart.encode(state), chart)
    torch.testing.assert_close(value, problem.energy(state))
    assert gradient.shape == (PEOPLE, 6 * 22 + 16 + 3)


def test_expression_and_hands_are_columns_too(body: BodyModel, people: MakePeople) -> None:
    state, observation = people()
    eye = torch.eye(3, dtype=torch.float64)
    state = replace(
        state,
        expression=torch.randn(PEOPLE, body.num_expression, dtype=torch.float64),
        left_hand_pose=eye.expand(PEOPLE, 15, 3, 3),
        betas=state.betas[:, :10],
    )
    problem = Problem(body, observation, Keypoints2D())
    chart = problem.chart(state)
    _, gradient = problem.value_and_grad(chart.encode(state), chart)
    torch.testing.assert_close(problem.linearize(state).gradient, gradient, atol=1e-6, rtol=1e-6)


def test_a_pool_is_the_sum_of_its_priors(body: BodyModel, people: MakePeople) -> None:
    state, observation = people()
    pool = Problem(body, observation, 3.0 * default_pose_prior()).linearize(state)
    parts = 1.5 * flow_prior() + 1.5 * gaussian_prior().named("other")
    apart = Problem(body, observation, parts).linearize(state)
    torch.testing.assert_close(pool.energy, apart.energy)
    torch.testing.assert_close(pool.gradient, apart.gradient)
    torch.testing.assert_close(pool.hessian, apart.hessian)
    with pytest.raises(ValueError, match="one block"):
        PooledPrior()


def test_what_is_made_once_is_its_owners(body: BodyModel, people: MakePeople) -> None:
    """Also of owners that are gone: their place in memory is used again."""
    state, observation = people()
    pred = Prediction(body, state, observation.camera, {"body_pose": slice(0, 63)})
    for number in range(50):
        assert pred.once(object(), partial(int, number)) == number


def test_pose_prior_and_limits_know_no_side(body: BodyModel, people: MakePeople) -> None:
    state, observation = people()
    swapped = state.body_pose[:, [joint - 1 for joint in get_set("smplx55").flip[1:22]]]
    reflect = torch.diag(swapped.new_tensor([-1.0, 1.0, 1.0]))
    other = replace(state, body_pose=reflect @ swapped @ reflect)
    for term in (gaussian_prior(), JointLimits()):
        problem = Problem(body, observation, term)
        torch.testing.assert_close(problem.energy(state), problem.energy(other), rtol=1e-3, atol=1e-3)


def test_knees_and_elbows_bend_one_way(body: BodyModel, people: MakePeople) -> None:
    _, observation = people(1)
    problem = Problem(body, observation, JointLimits())
    names = get_set("smplx55").names[1:22]
    for joint, axis, fine in (
        ("left_knee", 0, 1),
        ("right_knee", 0, 1),
        ("left_elbow", 1, -1),
        ("right_elbow", 1, 1),
    ):
        for sign in (1, -1):
            vector = torch.zeros(1, 21, 3, dtype=torch.float64)
            vector[0, names.index(joint), axis] = sign * 1.0
            bent = replace(body.neutral(), body_pose=geometry.exp(vector))
            assert (float(problem.energy(bent)) < 1e-9) == (sign == fine), (joint, sign)

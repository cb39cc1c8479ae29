"""Charts: there and back, their derivatives, what they leave alone; and an objective's rows and curvature in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import roma
import torch
from torch import Tensor

import fitkit
from fitkit import geometry
from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.coordinates import Chart, Coordinates, Latent, SixD, Tangent, retract
from fitkit.objectives import L1, BoneDirections, GMoF, Huber, Kernel, Keypoints2D
from fitkit.objectives import Keypoints3D as Points3D
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import JointLimits, PosePrior, ShapePrior, flow_prior, gaussian_prior
from fitkit.problem import Problem
from fitkit.state import ROTATIONS, State

MakePeople = Callable[..., tuple[State, Observation]]
CHARTS: dict[str, Chart] = {
    "tangent": Tangent,
    "6d": SixD,
    "latent": Latent.of(gaussian_prior()),
}
LATENT = gaussian_prior().latent_size


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turns(people: int, joints: int, seed: int, size: float = 0.6) -> Tensor:
    return geometry.exp(size * draw(people, joints, 3, seed=seed))


def smplx(people: int = 3, seed: int = 0) -> State:
    """A state with everything that SMPL-X has."""
    names = {"jaw_pose": 1, "leye_pose": 1, "reye_pose": 1, "left_hand_pose": 15, "right_hand_pose": 15}
    parts = {name: turns(people, joints, seed + 10 + joints) for name, joints in names.items()}
    return State(
        turns(people, 1, seed),
        turns(people, 21, seed + 1),
        draw(people, 10, seed=seed + 2),
        draw(people, 3, seed=seed + 3),
        expression=draw(people, 5, seed=seed + 4),
        **parts,
    )


def smpl(people: int = 3, seed: int = 0) -> State:
    """One of SMPL: 23 joints of the body, two more than the prior knows."""
    return State(
        turns(people, 1, seed),
        turns(people, 23, seed + 1),
        draw(people, 10, seed=seed + 2),
        draw(people, 3, seed=seed + 3),
    )


STATES = {"smplx": smplx, "smpl": smpl}


def same(first: State, second: State, atol: float = 1e-9) -> None:
    assert set(first.parts()) == set(second.parts())
    for name, value in first.parts().items():
        torch.testing.assert_close(value, second.parts()[name], atol=atol, rtol=0)


def in_tangent(reference: State, states: State, free: Sequence[str] | None = None) -> Tensor:
    """Tangent columns of states around a reference."""
    return Tangent(reference, free).encode(states)


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
@pytest.mark.parametrize("make", STATES.values(), ids=STATES)
class TestEveryChart:
    def test_there_and_back(self, chart: Chart, make: Callable[..., State]) -> None:
        """Around one state, another one is found again; and numbers near the reference are, too."""
        reference, other = make(seed=0), make(seed=50)
        coordinates = chart(reference, None)
        x = coordinates.encode(other)
        assert x.shape == (3, coordinates.size)
        same(coordinates.decode(x), other)
        same(coordinates.decode(coordinates.encode(reference)), reference)
        assert list(coordinates.blocks) == [
            *(name for name in ROTATIONS if name in reference.parts()),
            *(name for name in ("betas", "expression", "transl") if name in reference.parts()),
        ]
        ends = [0, *(block.stop for block in coordinates.blocks.values())]
        assert [block.start for block in coordinates.blocks.values()] == ends[:-1]

    def test_what_is_frozen_is_that_of_the_reference(self, chart: Chart, make: Callable[..., State]) -> None:
        reference, other = make(seed=0), make(seed=50)
        for free in (("transl",), ("betas", "global_orient"), ("body_pose",), ("transl", "body_pose")):
            coordinates = chart(reference, free)
            assert set(coordinates.free) == set(free)
            found = coordinates.decode(coordinates.encode(other))
            same(found, replace(reference, **{name: getattr(other, name) for name in free}))
            for name in set(reference.parts()) - set(free):
                assert torch.equal(getattr(found, name), getattr(reference, name))

    @pytest.mark.parametrize("free", [None, ("body_pose", "betas")])
    def test_differential_is_that_of_decode(
        self, chart: Chart, make: Callable[..., State], free: Sequence[str] | None
    ) -> None:
        """Every column at once, by central differences: one person per column."""
        reference = make(people=1, seed=7)
        coordinates = chart(reference, free)
        width = coordinates.size
        many = chart(reference.repeat(width), free)
        x = many.encode(many.reference)
        step = 1e-5 * torch.eye(width, dtype=torch.float64)
        ahead, behind = (in_tangent(many.reference, many.decode(x + side * step), free) for side in (1, -1))
        slopes = ((ahead - behind) / 2e-5).mT
        given = coordinates.differential()
        expected = torch.eye(width, dtype=torch.float64) if given is None else given[0]
        torch.testing.assert_close(slopes, expected, atol=1e-6, rtol=1e-6)

    def test_a_step_is_taken_from_the_reference(self, chart: Chart, make: Callable[..., State]) -> None:
        reference = make(seed=3)
        coordinates = chart(reference, None)
        delta = 0.05 * draw(3, coordinates.size, seed=4)
        same(coordinates.moved(delta), coordinates.decode(coordinates.encode(reference) + delta))
        same(coordinates.moved(0 * delta), reference)
        for name in ROTATIONS:
            turned = getattr(coordinates.moved(delta), name)
            if turned is not None:
                eye = torch.eye(3, dtype=torch.float64).expand_as(turned)
                torch.testing.assert_close(turned.mT @ turned, eye)


def test_a_step_in_the_tangent_turns_no_joint_too_far() -> None:
    reference = smplx()
    chart = Tangent(reference)
    delta = 5 * draw(3, chart.size, seed=5)
    moved = chart.moved(delta)
    angles = geometry.geodesic(moved.body_pose, reference.body_pose)
    assert angles.max() <= 1 + 1e-9
    torch.testing.assert_close(moved.betas, reference.betas + delta[:, chart.blocks["betas"]])
    half = retract(reference, delta, chart.blocks, trust=0.5)
    assert geometry.geodesic(half.body_pose, reference.body_pose).max() <= 0.5 + 1e-9


def test_a_latent_knows_only_the_first_joints() -> None:
    coordinates = CHARTS["latent"](smpl(), None)
    block = coordinates.blocks["body_pose"]
    assert block.stop - block.start == LATENT + 2 * 3
    mean = gaussian_prior().mean_pose()
    likely = replace(smpl(), body_pose=torch.cat([mean.expand(3, 21, 3, 3), smpl().body_pose[:, 21:]], 1))
    # The mean pose is near the origin: the mean of 6D numbers is no rotation, but not far from one.
    assert (
        coordinates.encode(likely)[:, block].norm(dim=1).max()
        < coordinates.encode(smpl())[:, block].norm(dim=1).min()
    )
    few = replace(smpl(), body_pose=smpl().body_pose[:, :20])
    with pytest.raises(ValueError, match="20 joints has no latent of a prior of 21"):
        CHARTS["latent"](few, None)


def test_a_block_that_is_not_there_is_named() -> None:
    for chart in CHARTS.values():
        with pytest.raises(ValueError, match=r"cannot free \['left_hand_pose'\]"):
            chart(smpl(), ("left_hand_pose", "betas"))


# -- an objective in a chart ---------------------------------------------------------------------------------

OBJECTIVE = (
    Keypoints2D(kernel=GMoF(2.0))
    + 0.5 * Points3D(kernel=L1(1.0))
    + 3.0 * BoneDirections(kernel=Huber(0.5))
    + gaussian_prior()
    + ShapePrior()
    + 2.0 * JointLimits()
)


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_rows_are_another_way_to_write_the_energy(body: BodyModel, people: MakePeople, chart: Chart) -> None:
    """Half their squares, and the gradient of that; unseen points, weights and kernels are in them."""

    @fitkit.objective
    def energy(pred: Prediction, obs: Observation) -> Tensor:
        return 0.3 * pred.joint("head").square().sum(1)

    state, observation = people()
    problem = Problem(body, observation, OBJECTIVE + 0.7 * energy(), coordinates=chart)
    coordinates: Coordinates = problem.chart(state)
    x = coordinates.encode(state).requires_grad_(True)
    rows = problem.rows(x, coordinates)
    assert rows.shape[0] == 3
    half = 0.5 * rows.square().sum(1)
    torch.testing.assert_close(half.detach(), problem.energy(state))
    (gradient,) = torch.autograd.grad(half.sum(), x)
    value, expected = problem.value_and_grad(x, coordinates)
    torch.testing.assert_close(half.detach(), value)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-6)


def test_rows_of_a_residual_of_zero_have_a_derivative(body: BodyModel, people: MakePeople) -> None:
    """Where a robust kernel's weight is a quotient of two zeros."""
    _, observation = people()
    for kernel in (None, GMoF(2.0), Huber(2.0), L1(2.0)):
        problem = Problem(body, observation, ShapePrior().robust(kernel), free=("betas",))
        chart = problem.chart(body.neutral(3))
        x = chart.encode(body.neutral(3)).requires_grad_(True)
        rows = problem.rows(x, chart)
        assert (rows == 0).all()
        (slope,) = torch.autograd.grad(rows.sum(), x)
        torch.testing.assert_close(slope, torch.ones_like(slope), atol=1e-6, rtol=0)


KERNELS = [GMoF(0.8), Huber(0.8), L1(0.8)]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
def test_the_bend_of_a_kernel_is_the_derivative_of_its_slope(kernel: Kernel) -> None:
    square = torch.cat([torch.linspace(1e-6, 0.6, 50), torch.linspace(0.68, 30, 200)]).double()
    step = 1e-6
    bend = (kernel.slope(square + step) - kernel.slope(square - step)) / (2 * step)
    torch.testing.assert_close(kernel.bend(square), bend, atol=1e-7, rtol=1e-6)


@fitkit.objective(requires=("camera",))
def single(pred: Prediction, obs: Observation, numbers: int) -> Tensor:
    """One residual of some numbers, linear in the betas: all curvature is the kernel's."""
    return pred.betas[:, None, :numbers] * torch.tensor([2.0, -0.7, 1.3][:numbers]).to(pred.betas)


@pytest.mark.parametrize("numbers", [1, 3])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
def test_triggs_is_the_true_second_derivative_where_that_is_positive(
    body: BodyModel, kernel: Kernel, numbers: int
) -> None:
    count = 60
    observation = Observation(Camera.from_size(100, 100).expand(count).to(torch.float64))
    sizes = torch.linspace(0.01, 1.5, count, dtype=torch.float64)[:, None]
    betas = sizes * torch.tensor([[0.6, 0.9, -0.5]], dtype=torch.float64)[:, :numbers]
    state = replace(body.neutral(count), betas=betas)
    problem = Problem(body, observation, 1.7 * single(numbers=numbers).robust(kernel), free=("betas",))
    chart = problem.chart(state)
    x = chart.encode(state).requires_grad_(True)
    with torch.enable_grad():
        total = problem.energy(chart.decode(x)).sum()
        (gradient,) = torch.autograd.grad(total, x, create_graph=True)
        columns = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in gradient.unbind(1)]
    true = torch.stack(columns, 1)
    here, plain = problem.linearize(state, triggs=True), problem.linearize(state)
    torch.testing.assert_close(here.gradient, gradient.detach())
    torch.testing.assert_close(plain.gradient, gradient.detach())
    # Reweighting knows nothing of the bend: it is never below the truth.
    assert (torch.linalg.eigvalsh(plain.hessian - true).amin(1) > -1e-9).all()
    # Along the residual the true curvature is rho' + 2 s rho''; the clamp sets in at a tenth of rho'.
    square = (betas * torch.tensor([2.0, -0.7, 1.3])[:numbers].double()).square().sum(1)
    left = 1 + 2 * square * kernel.bend(square) / kernel.slope(square)
    clear = left > 0.11
    assert clear.any()
    torch.testing.assert_close(here.hessian[clear], true[clear], atol=1e-8, rtol=1e-8)
    assert (torch.linalg.eigvalsh(here.hessian).amin(1) > 0).all()
    if isinstance(kernel, GMoF):
        assert (torch.linalg.eigvalsh(true).amin(1) < 0).any()  # there was something to keep positive


@pytest.mark.parametrize("prior", [gaussian_prior(), flow_prior()], ids=["gaussian", "flow"])
def test_a_latent_that_is_no_rotations_has_its_derivative(prior: PosePrior) -> None:
    """Against central differences, where the decoded 6D numbers are far from orthonormal."""
    draw = torch.Generator().manual_seed(2)
    latent, along = torch.randn(2, 3, LATENT, generator=draw, dtype=torch.float64)
    step = 1e-5
    ahead, behind = prior.decode(latent + step * along), prior.decode(latent - step * along)
    turn = roma.rotmat_to_rotvec(behind.mT @ ahead) / (2 * step)
    found = (prior.decode_jacobian(latent) @ along[:, None, :, None])[..., 0]
    torch.testing.assert_close(found, turn, atol=1e-6, rtol=1e-6)

"""Every density and every pose prior: likelihood, inverse, derivatives; as a term, as a coordinate, and to gravity."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor
from torch import distributions as D

from fitkit import geometry
from fitkit.body.model import BodyModel
from fitkit.coordinates import Latent, SixD, Tangent
from fitkit.objectives import GMoF
from fitkit.objectives import Keypoints3D as Points3D
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import PosePrior, ShapePrior, UprightPrior, load_prior
from fitkit.priors.density import Density, Flow, Gaussian
from fitkit.priors.flow import JointFlow, PReLUFlow, RealNVP
from fitkit.priors.mixture import GaussianMixture
from fitkit.priors.representation import REPRESENTATIONS, representation
from fitkit.problem import Problem
from fitkit.solve import solve
from fitkit.solver import Solver, Stage
from fitkit.solvers import LBFGS, LM
from fitkit.state import State

MakePeople = Callable[..., tuple[State, Observation]]
KINDS = ("gaussian", "mixture", "joint-flow", "prelu-flow", "real-nvp")
FLOWS = tuple(kind for kind in KINDS if kind != "mixture")
FORMS = tuple(REPRESENTATIONS)
JOINTS, PARTS, NOISE = 3, 3, 0.2


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def poses(joints: int = JOINTS, count: int = 500) -> Tensor:
    """Rotations that go together: a few causes move all joints."""
    causes = draws(count, 4, seed=1)
    turns = causes @ draws(4, 3 * joints, seed=2) / 4 + 0.1 * draws(count, 3 * joints, seed=3)
    return geometry.exp(turns.unflatten(1, (joints, 3)) + 0.2)


def numbers(form: str, joints: int = JOINTS) -> Tensor:
    x = representation(form).numbers(poses(joints)).flatten(1)
    return x + NOISE * draws(*x.shape, seed=4)


def parts_of(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shares, means and covariances of three parts of some vectors."""
    parts = x.tensor_split([100, 250])
    return (
        torch.tensor([0.2, 0.3, 0.5], dtype=x.dtype),
        torch.stack([part.mean(0) + 0.3 * number for number, part in enumerate(parts)]),
        torch.stack([torch.cov(part.mT) + 0.01 * torch.eye(x.shape[1], dtype=x.dtype) for part in parts]),
    )


def begun(kind: str, x: Tensor, width: int) -> Density:
    """Of some vectors; nothing in it is an identity."""
    torch.manual_seed(0)
    if kind == "mixture":
        return GaussianMixture.of(*parts_of(x))
    size = x.shape[1]
    makes: dict[str, Callable[[], Flow]] = {
        "gaussian": lambda: Gaussian(size),
        "joint-flow": lambda: JointFlow(size // width, width),
        "prelu-flow": lambda: PReLUFlow(size),
        "real-nvp": lambda: RealNVP(size),
    }
    density = makes[kind]().double()
    density.start_from(x)
    with torch.no_grad():
        for values in density.parameters():
            size_of = float(values.abs().mean()) or 1.0
            values.add_(0.1 * size_of * torch.randn_like(values))
        density.eval()
        density.ceiling.fill_(density.encode(x)[1].max() + 2)
    return density


@cache
def made(kind: str, form: str = "6d", joints: int = JOINTS) -> Density:
    return begun(kind, numbers(form, joints), representation(form).width)


def flow(kind: str, form: str) -> Flow:
    density = made(kind, form)
    assert isinstance(density, Flow)
    return density


def slopes(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Derivative of a batched function, one output at a time: `(B, R, D)`."""
    x = x.detach().requires_grad_(True)
    out = function(x)
    return torch.stack(
        [torch.autograd.grad(out[:, i].sum(), x, retain_graph=True)[0] for i in range(out.shape[1])], 1
    )


def far(x: Tensor) -> Tensor:
    """Ten standard deviations away, in random directions."""
    return x.mean(0) + 10 * x.std(0) * torch.sign(draws(20, x.shape[1], seed=8))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
class TestEveryDensity:
    def test_log_prob_is_that_of_a_density(self, kind: str, form: str) -> None:
        """Gaussians against PyTorch's, flows against the change of variables with a determinant of their own."""
        density, x = made(kind, form), numbers(form)[:8]
        got = density.log_prob(x)
        assert got.shape == (8,)
        if kind == "gaussian":
            every = numbers(form)
            expected = D.MultivariateNormal(every.mean(0), torch.cov(every.mT)).log_prob(x)
        elif kind == "mixture":
            shares, means, covariances = parts_of(numbers(form))
            whole = D.MixtureSameFamily(D.Categorical(shares), D.MultivariateNormal(means, covariances))
            expected = whole.log_prob(x)
        else:
            z, volume = flow(kind, form).encode(x)
            determinant = torch.linalg.slogdet(slopes(lambda x: flow(kind, form).encode(x)[0], x))[1]
            torch.testing.assert_close(volume, determinant)
            expected = D.Normal(0.0, 1.0).log_prob(z).sum(1) + determinant
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(density.loss(x), -expected.mean() / x.shape[1])

    def test_rows_and_their_quadratic(self, kind: str, form: str) -> None:
        density, x = copy.deepcopy(made(kind, form)), numbers(form)[:8]
        if kind == "mixture":
            x = 0.3 * (x - x.mean(0)) + parts_of(numbers(form))[1][[0, 1, 2, 0, 1, 2, 0, 1]]
        size, half = x.shape[1], 0.5 * density.rows(x).square().sum(1)
        expected = -density.log_prob(x)
        if kind == "mixture":  # the best part alone
            shares, means, covariances = parts_of(numbers(form))
            each = shares.log() + D.MultivariateNormal(means, covariances).log_prob(x[:, None])
            assert len(each.argmax(1).unique()) == PARTS
            expected = -each.amax(1)
        elif kind == "prelu-flow":
            expected = 0.5 * flow(kind, form).encode(x)[0].square().sum(1)
        torch.testing.assert_close(half - half[0], expected - expected[0])
        if isinstance(density, Flow):  # some of these are above the ceiling
            density.ceiling.fill_(density.encode(x)[1].median() + 1e-3)
        for at in (x, far(numbers(form))[:8]):
            here, derivative, rows = density.quadratic(at), slopes(density.rows, at), density.rows(at)
            gradient = (derivative.mT @ rows[..., None])[..., 0]
            torch.testing.assert_close(here.rows, rows)
            torch.testing.assert_close(here.gradient, gradient, rtol=1e-6, atol=1e-6)
            curvature = here.precision.expand(8, -1, -1)
            assert torch.linalg.eigvalsh(curvature).min() > -1e-9 * curvature.abs().max()
            torch.testing.assert_close(curvature, curvature.mT)
            if here.blocks is not None:
                blocks = torch.stack([torch.block_diag(*each) for each in here.blocks])
                curvature = blocks.mT @ curvature @ blocks
            if kind in ("prelu-flow", "real-nvp"):  # that of the Gaussian of the same vectors
                behind = torch.linalg.inv(torch.cov(numbers(form).mT))
                torch.testing.assert_close(curvature, behind.expand(8, -1, -1))
            else:
                known = derivative[:, :size]
                torch.testing.assert_close(curvature, known.mT @ known)

    def test_one_is_a_batch_of_one(self, kind: str, form: str) -> None:
        density, x = made(kind, form), numbers(form)[:4]
        whole = density.quadratic(x)
        for index, one in enumerate(x.split(1)):
            torch.testing.assert_close(density.log_prob(one)[0], density.log_prob(x)[index])
            torch.testing.assert_close(density.rows(one)[0], density.rows(x)[index])
            torch.testing.assert_close(density.quadratic(one).gradient[0], whole.gradient[index])

    def test_training_reaches_every_parameter_and_says_the_same(self, kind: str, form: str) -> None:
        """What evaluation keeps (inverses, determinants) training makes anew."""
        density, x = copy.deepcopy(made(kind, form)), numbers(form)[:64]
        kept = density.log_prob(x)
        density.train()
        torch.testing.assert_close(density.log_prob(x), kept)
        if isinstance(density, Flow):
            z = density.encode(x)[0]
            torch.testing.assert_close(density.decode(z), x, atol=1e-9, rtol=0)
        loss = density.loss(x)
        for name, values in density.named_parameters():
            (slope,) = torch.autograd.grad(loss, values, retain_graph=True)
            assert torch.isfinite(slope).all(), name
            assert (slope != 0).any(), name

    def test_state_dict_is_the_density(self, kind: str, form: str) -> None:
        density, x = made(kind, form), numbers(form)[:8]
        for mode in (False, True):
            other = type(density)(**density.settings()).double().train(mode)
            other.load_state_dict(density.state_dict())
            assert torch.equal(copy.deepcopy(other).eval().log_prob(x), density.log_prob(x))
            torch.testing.assert_close(other.log_prob(x), density.log_prob(x))

    def test_samples(self, kind: str, form: str) -> None:
        """Seeded; and their moments are those of the vectors behind a Gaussian or a mixture."""
        density, x = made(kind, form), numbers(form)
        first, same, other = (density.sample(5, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
        assert first.shape == (5, x.shape[1])
        assert torch.equal(first, same) > torch.equal(first, other)
        assert torch.isfinite(density.log_prob(first)).all()
        assert density.log_prob(density.centre()[None]) > density.log_prob(far(x)).max()
        if kind in ("gaussian", "mixture"):
            many = density.sample(20_000, torch.Generator().manual_seed(5))
            mean, covariance = x.mean(0), torch.cov(x.mT)
            if kind == "mixture":
                shares, means, inner = parts_of(x)
                mean = shares @ means
                covariance = torch.einsum("k,kde->de", shares, inner)
                covariance += torch.einsum("k,kd,ke->de", shares, means - mean, means - mean)
            spread = covariance.diagonal().sqrt()
            assert ((many.mean(0) - mean) / spread).abs().max() < 0.04
            assert ((torch.cov(many.mT) - covariance) / torch.outer(spread, spread)).abs().max() < 0.06

    def test_extreme_vectors(self, kind: str, form: str) -> None:
        """Zero and far from everything: finite, less and less likely; NaN stays one."""
        density, x = copy.deepcopy(made(kind, form)).float(), numbers(form).float()
        away = far(numbers(form)).float()
        for extreme in (torch.zeros_like(x[:1]), away, 10 * away):
            assert torch.isfinite(density.log_prob(extreme)).all()
            assert torch.isfinite(density.quadratic(extreme).gradient).all()
        likely, odd, absurd = (density.log_prob(each).mean() for each in (x, away, 10 * away))
        assert likely > odd > absurd
        nan = torch.where(torch.arange(x.shape[1]) == 1, torch.nan, x[:2])
        assert density.log_prob(nan).isnan().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", FLOWS)
class TestEveryFlow:
    def test_there_and_back(self, kind: str, form: str) -> None:
        x = numbers(form)
        for dtype, atol in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            density = copy.deepcopy(flow(kind, form)).to(dtype)
            for vectors in (x, far(x), density.decode(3 * draws(50, x.shape[1]).to(dtype))):
                there = vectors.to(dtype)
                back = density.decode(density.encode(there)[0])
                torch.testing.assert_close(back, there, atol=atol, rtol=atol)

    def test_jacobians(self, kind: str, form: str) -> None:
        density, x = flow(kind, form), numbers(form)[:6]
        torch.testing.assert_close(density.jacobian(x), slopes(lambda x: density.encode(x)[0], x))
        z = density.encode(x)[0].detach()
        torch.testing.assert_close(density.decode_jacobian(z), slopes(density.decode, z))


@pytest.mark.parametrize("kind", KINDS)
def test_densities_integrate_to_one(kind: str) -> None:
    """Over a fine grid in the plane."""
    x = draws(300, 2, seed=5) @ torch.tensor([[1.0, 0.5], [0.0, 0.4]], dtype=torch.float64)
    density = begun(kind, x, 2)
    line = torch.linspace(-6, 6, 161, dtype=torch.float64)
    with torch.no_grad():
        mass = density.log_prob(torch.cartesian_prod(line, line)).exp().sum() * (line[1] - line[0]) ** 2
    assert mass == pytest.approx(1, abs=2e-3)


def test_the_light_flow_is_as_light_as_in_the_paper() -> None:
    """Zanfir et al., ECCV 2020, supplement: 23 joints in 6D."""
    assert sum(values.numel() for values in PReLUFlow(23 * 6).parameters()) == 95_914


def test_a_density_that_was_started_needs_no_mode() -> None:
    """What is made of the parameters is there at once, in either mode."""
    x = numbers("6d")
    expected = made("gaussian").log_prob(x[:3])
    for mode in (True, False):
        density = Gaussian(x.shape[1]).double().train(mode)
        density.start_from(x)
        torch.testing.assert_close(density.log_prob(x[:3]), expected)


# -- as a term ---------------------------------------------------------------------------------------------------


@cache
def prior_of(kind: str, form: str, joints: int = JOINTS, block: str = "body_pose") -> PosePrior:
    table = torch.linspace(-30, 200, 512, dtype=torch.float64)
    return PosePrior(made(kind, form, joints), joints, form, block, NOISE, table)


CASES = [
    *((kind, form, JOINTS, "body_pose") for kind in KINDS for form in FORMS),
    *((kind, "6d", 15, "left_hand_pose") for kind in KINDS),
]


def with_hands(state: State) -> State:
    return replace(state, left_hand_pose=poses(15)[10 : 10 + len(state)])


@pytest.mark.parametrize(("kind", "form", "joints", "block"), CASES, ids=lambda value: str(value))
class TestEveryPosePrior:
    def test_is_a_term(
        self, body: BodyModel, people: MakePeople, kind: str, form: str, joints: int, block: str
    ) -> None:
        """Value, gradient and curvature; joints that it does not know have no part in them."""
        state, observation = people()
        state, prior = with_hands(state), prior_of(kind, form, joints, block)
        problem = Problem(body, observation, 3.0 * prior)
        known = getattr(state, block)[:, :joints]
        x = representation(form).numbers(known).flatten(1)
        rows = prior.density.rows(x)
        torch.testing.assert_close(problem.energy(state), 1.5 * rows.square().sum(1))
        for chart in (Tangent, SixD):
            coordinates = chart(state, None)
            value, gradient = problem.value_and_grad(coordinates.encode(state), coordinates)
            here = problem.linearize_in(coordinates)
            torch.testing.assert_close(here.energy, value)
            torch.testing.assert_close(here.gradient, gradient, rtol=1e-6, atol=1e-6)
            assert torch.linalg.eigvalsh(here.hessian).min() > -1e-9 * here.hessian.abs().max()
        here, blocks = problem.linearize(state), problem.free_blocks(state)
        start = blocks[block].start
        used = here.hessian[:, start : start + 3 * joints, start : start + 3 * joints]
        assert (used.diagonal(dim1=1, dim2=2) > 0).all()
        torch.testing.assert_close(used.abs().sum(), here.hessian.abs().sum())
        # However the closed form gets there: `J^T precision J` of the numbers.
        quadratic = prior.density.quadratic(x)
        each = torch.stack([torch.block_diag(*one) for one in representation(form).jacobian(known)])
        if quadratic.blocks is not None:
            each = torch.stack([torch.block_diag(*one) for one in quadratic.blocks]) @ each
        torch.testing.assert_close(used, 3 * each.mT @ quadratic.precision @ each)
        if kind in ("gaussian", "mixture"):
            gradient, hessian = (3.0 * prior).normal(*problem.automatic(3.0 * prior, state))
            torch.testing.assert_close(here.gradient, gradient, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(here.hessian, hessian, rtol=1e-6, atol=1e-6)

    def test_under_a_kernel_and_in_float32(
        self, body: BodyModel, people: MakePeople, kind: str, form: str, joints: int, block: str
    ) -> None:
        state, observation = people()
        state, prior = with_hands(state), prior_of(kind, form, joints, block)
        for term in (prior, prior.robust(GMoF(2.0))):
            exact = Problem(body, observation, term).linearize(state)
            single = Problem(body.to(torch.float32), observation.to(torch.float32), term)
            rough = single.linearize(state.to(torch.float32))
            assert rough.hessian.dtype == torch.float32
            for got, expected in ((rough.energy, exact.energy), (rough.gradient, exact.gradient)):
                torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)
        problem = Problem(body, observation, prior.robust(GMoF(2.0)))
        pred = Prediction(body, state, observation.camera)
        assert problem.objective.closed_normal(pred, observation, prior.residual(pred, observation)) is None
        chart = problem.chart(state)
        value, gradient = problem.value_and_grad(chart.encode(state), chart)
        torch.testing.assert_close(problem.linearize(state).gradient, gradient, rtol=1e-6, atol=1e-6)
        assert (value < Problem(body, observation, prior).energy(state)).all()

    def test_tells_what_it_cannot_do(
        self, people: MakePeople, body: BodyModel, kind: str, form: str, joints: int, block: str
    ) -> None:
        prior, observation = prior_of(kind, form, joints, block), people()[1]
        several = poses(joints)[:3].repeat(1, 2, 1, 1)
        alone = poses(joints)[:3]
        torch.testing.assert_close(prior.log_prob(several), prior.log_prob(alone))
        assert torch.isfinite(prior.log_prob(torch.eye(3).expand(2, joints, 3, 3))).all()
        score = prior.plausibility(poses(joints))[prior.log_prob(poses(joints)).argsort()]
        assert 0 <= score[0] < score[-1] <= 1
        assert (score.diff() >= 0).all()
        broken = alone.clone()
        broken[1, 0, 0, 0] = torch.nan
        for ask in (prior.log_prob, prior.plausibility):
            with pytest.raises(ValueError, match="not finite"):
                ask(broken)
            with pytest.raises(ValueError, match=f"expected .B, {joints} or more, 3, 3"):
                ask(alone[:, 1:])
        small, problem = body.neutral(3), Problem(body, observation, prior)
        if block == "body_pose":
            small = replace(small, body_pose=alone[:, 1:])
        got = joints - 1 if block == "body_pose" else "none"
        with pytest.raises(ValueError, match=f"{block} of {got} joints, expected {joints}"):
            problem.energy(small)
        with pytest.raises(ValueError, match="not calibrated"):
            PosePrior(prior.density, joints, form).plausibility(alone)
        with pytest.raises(ValueError, match="expected"):
            PosePrior(prior.density, joints + 1, form)

    def test_is_a_coordinate(
        self, people: MakePeople, kind: str, form: str, body: BodyModel, joints: int, block: str
    ) -> None:
        prior, real = prior_of(kind, form, joints, block), poses(joints)[:5]
        if kind == "mixture":
            with pytest.raises(ValueError, match="mixture has no latent numbers"):
                prior.encode(real)
            return
        latent = prior.encode(real)
        assert latent.shape == (5, prior.latent_size)
        torch.testing.assert_close(prior.decode(latent), real, atol=1e-9, rtol=0)
        turns = prior.decode_jacobian(latent)
        still = prior.decode(latent).detach()

        def turned(z: Tensor) -> Tensor:
            """The vector of a small turn is its skew part, to first order."""
            return 0.5 * (still.mT @ prior.decode(z) - (still.mT @ prior.decode(z)).mT).flatten(1)

        skew = slopes(turned, latent).unflatten(1, (joints, 3, 3))
        expected = torch.stack([skew[:, :, 2, 1], skew[:, :, 0, 2], skew[:, :, 1, 0]], 2)
        torch.testing.assert_close(turns, expected, atol=1e-7, rtol=1e-7)
        if kind in ("gaussian", "prelu-flow") and block == "body_pose":
            # At a real pose the term is half the square of the latent numbers.
            state, observation = people(5)
            state = replace(state, body_pose=torch.cat([real, state.body_pose[:, joints:]], 1))
            value = Problem(body, observation, prior).energy(state)
            torch.testing.assert_close(value, 0.5 * latent.square().sum(1))


def test_smpl_has_two_joints_that_the_prior_does_not_know(body: BodyModel, people: MakePeople) -> None:
    """Its 23 joints with a prior over 21: the same value, and no columns for the hands."""
    state, observation = people()
    longer = replace(state, body_pose=torch.cat([state.body_pose, poses(2)[:3]], 1))
    problem = Problem(body, observation, load_prior("gaussian-21"))
    torch.testing.assert_close(problem.energy(longer), problem.energy(state))
    here, known = problem.linearize(longer), problem.linearize(state)
    block = problem.free_blocks(longer)["body_pose"]
    assert (here.gradient[:, block][:, 63:] == 0).all()
    torch.testing.assert_close(here.gradient[:, block][:, :63], known.gradient[:, block.start :][:, :63])


SOLVERS = [*((kind, LM(60)) for kind in FLOWS), ("joint-flow", LBFGS(100))]


@pytest.mark.parametrize(("kind", "solver"), SOLVERS, ids=lambda value: getattr(value, "name", value))
def test_a_solver_moves_in_the_latent(body: BodyModel, people: MakePeople, kind: str, solver: Solver) -> None:
    """To about the energy that it reaches in the tangent."""
    state, observation = people()
    prior, rest = prior_of(kind, "6d"), load_prior("gaussian-21").named("rest")
    problem = Problem(body, observation, Points3D(kernel=None) + prior + rest + ShapePrior())
    in_latent = replace(problem, coordinates=Latent.of(prior))
    reached = solve(in_latent, solver, state, [Stage(solver.max_steps)]).energy
    assert (reached < 0.7 * problem.energy(state)).all()
    known = solve(problem, LM(60), state, [Stage(60)]).energy
    torch.testing.assert_close(reached, known, rtol=0.05, atol=0.1)


# -- to gravity ----------------------------------------------------------------------------------------------------


class TestUpright:
    def test_derivatives(self, body: BodyModel, people: MakePeople) -> None:
        """Automatic ones; frozen blocks have no columns."""
        state, observation = people()
        whole = Tangent(state).blocks
        for free in (
            None,
            ("body_pose",),
            ("global_orient", "betas"),
            ("transl", "body_pose", "global_orient"),
        ):
            term = UprightPrior(up=(0.2, -1.0, 0.3))
            problem = Problem(body, observation, 2.0 * term, free=free)
            residual, jacobian = problem.automatic(term, state)
            assert residual.rows.shape == (3, 3, 1)
            pred = Prediction(body, state, observation.camera, problem.free_blocks(state))
            torch.testing.assert_close(term.jacobian(pred, observation), jacobian)
            chart = problem.chart(state)
            value, gradient = problem.value_and_grad(chart.encode(state), chart)
            torch.testing.assert_close(value, residual.rows.square().sum((1, 2)))
            torch.testing.assert_close(problem.linearize(state).gradient, gradient)
            every = Problem(body, observation, 2.0 * term).linearize(state).gradient
            expected = torch.cat([every[:, whole[name]] for name in chart.blocks], 1)
            torch.testing.assert_close(gradient, expected)

    def test_a_turned_camera_and_a_turned_up_are_the_same(self, body: BodyModel, people: MakePeople) -> None:
        state, observation = people()
        turn = geometry.exp(torch.tensor([0.4, -0.9, 0.7], dtype=torch.float64))
        up = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
        here = Problem(body, observation, UprightPrior()).energy(state)
        turned = replace(state, global_orient=turn @ state.global_orient)
        x, y, z = (5 * turn @ up).tolist()  # of any length
        torch.testing.assert_close(Problem(body, observation, UprightPrior((x, y, z))).energy(turned), here)
        heading = geometry.yaw(torch.tensor(1.3, dtype=torch.float64))  # which does not matter
        headed = replace(state, global_orient=heading @ state.global_orient)
        torch.testing.assert_close(Problem(body, observation, UprightPrior()).energy(headed), here)

    def test_who_stands_does_so_upright(self, body: BodyModel, people: MakePeople) -> None:
        _, observation = people(4)
        pose, back = load_prior("gaussian-21").mean_pose().expand(4, -1, -1, -1), -math.pi / 2
        tilts = torch.tensor([[[0, 0, 0]], [[0.5, 0, 0]], [[0, 0, -back]], [[back, 0, 0]]]).double()
        upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
        state = replace(body.neutral(4), body_pose=pose, global_orient=upright @ geometry.exp(tilts))
        standing, leaning, *lying = Problem(body, observation, UprightPrior()).energy(state).tolist()
        assert standing < 0.5
        assert standing < leaning < min(lying)
        assert Problem(body, observation, UprightPrior(tilt=60.0)).energy(state)[2] < lying[0]

    def test_refuses_what_is_no_direction_and_no_tilt(self) -> None:
        for up in ((0.0, 0.0, 0.0), (math.nan, 1.0, 0.0), (math.inf, 0.0, 0.0)):
            with pytest.raises(ValueError, match="three numbers of a direction"):
                UprightPrior(up)
        for tilt in (0.0, -3.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="degrees above 0"):
                UprightPrior(tilt=tilt)

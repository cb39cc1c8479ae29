"""Every solver finds minima that are known: by construction, by a closed form, or by a dense grid and SciPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import roma
import scipy.optimize
import torch
from torch import Tensor

import fitkit
from fitkit import geometry
from fitkit import problem as problem_module
from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.coordinates import Chart, Latent, SixD
from fitkit.keypoints import Keypoints, Keypoints3D, get_set
from fitkit.objectives import GMoF, Objective
from fitkit.objectives import Keypoints3D as Points3D
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import gaussian_prior
from fitkit.problem import Problem
from fitkit.solve import Solution, solve
from fitkit.solver import Outcome, Solver, Stage
from fitkit.solvers import BFGS, LBFGS, LM, Adam
from fitkit.state import State

PEOPLE = 4
ORDER = [2, 0, 3, 1]

# One line per solver: settings that go all the way to a minimum.
SOLVERS: dict[str, Solver] = {
    "lm": LM(200, tolerance=1e-14),
    "lm-triggs": LM(200, tolerance=1e-14, triggs=True),
    "lbfgs": LBFGS(600, tolerance=1e-14, gradient_tolerance=1e-6),
    "bfgs": BFGS(600, tolerance=1e-14, gradient_tolerance=1e-6),
    "adam": Adam(2500, 0.1, decay=(0.95, 0.999), tolerance=1e-9, patience=100, gradient_tolerance=1e-5),
}


# -- problems ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told(Observation):
    """An observation with more in it: whatever a test's objective wants to know of each person."""

    numbers: Tensor | None = None


@dataclass(frozen=True)
class Known:
    """A problem of `PEOPLE` people, where to start, and the energy of its minimum.

    Attributes:
        check: is given the state that was found.
    """

    problem: Problem
    start: State
    energy: Tensor
    check: Callable[[State], None]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cameras(people: int = PEOPLE) -> Camera:
    return Camera.from_size(1000, 800).expand(people).to(torch.float64)


def numbers_of(obs: Observation) -> Tensor:
    assert isinstance(obs, Told)
    assert obs.numbers is not None
    return obs.numbers


@cache
def mixing() -> Tensor:
    """`(20, 16)` with singular values from 1 to 10: the Hessian's condition number is 100."""
    left, _ = torch.linalg.qr(draw(20, 16, seed=1))
    right, _ = torch.linalg.qr(draw(16, 16, seed=2))
    return left * torch.logspace(0, 1, 16, dtype=torch.float64) @ right


@fitkit.objective(requires=("numbers",))
def bowl(pred: Prediction, obs: Observation) -> Tensor:
    return pred.betas @ mixing().mT.to(pred.betas) - numbers_of(obs)


def quadratic(body: BodyModel) -> Known:
    wanted = draw(PEOPLE, 20, seed=0)
    found = torch.linalg.lstsq(mixing(), wanted.mT).solution.mT
    energy = 0.5 * (found @ mixing().mT - wanted).square().sum(1)

    def check(state: State) -> None:
        torch.testing.assert_close(state.betas.double(), found, atol=2e-3, rtol=1e-3)

    problem = Problem(body, Told(cameras(), numbers=wanted), bowl(), free=("betas",))
    return Known(problem, body.neutral(PEOPLE), energy, check)


class Rosenbrock(Objective):
    """Rows 10 (y - x^2) and a - x; every person has an a of their own."""

    name = "rosenbrock"
    requires = frozenset({"numbers"})

    def residual(self, pred: Prediction, obs: Observation) -> Tensor:
        x, y = pred.betas.unbind(1)
        return torch.stack([10 * (y - x.square()), numbers_of(obs)[:, 0] - x], 1)


def banana(body: BodyModel) -> Known:
    corners = torch.tensor([[1.0], [0.8], [1.2], [0.5]], dtype=torch.float64)
    betas = torch.tensor([-1.2, 1.0], dtype=torch.float64).repeat(PEOPLE, 1)

    def check(state: State) -> None:
        there = torch.cat([corners, corners**2], 1)
        torch.testing.assert_close(state.betas.double(), there, atol=3e-3, rtol=1e-3)

    problem = Problem(body, Told(cameras(), numbers=corners), Rosenbrock(), free=("betas",))
    return Known(problem, replace(body.neutral(PEOPLE), betas=betas), torch.zeros(PEOPLE).double(), check)


@fitkit.objective(requires=("keypoints",))
def line(pred: Prediction, obs: Observation) -> Tensor:
    assert obs.keypoints is not None
    x, y = ((obs.keypoints.xy - 500) / 100).unbind(-1)
    return (y - pred.betas[:, :1] * x - pred.betas[:, 1:])[..., None]


def robust_line(body: BodyModel) -> Known:
    """17 points near a line, one of them far off; the minimum is looked for on a grid, then refined by SciPy."""
    lines = torch.tensor([[0.5, 0.2], [-0.3, 0.4], [0.8, -0.3], [0.1, 0.0]], dtype=torch.float64)
    x = torch.linspace(-1, 1, 17, dtype=torch.float64).expand(PEOPLE, -1)
    y = lines[:, :1] * x + lines[:, 1:] + 0.02 * draw(PEOPLE, 17, seed=3)
    y[:, 14] += 4.0
    width = 0.5

    def energy(candidates: np.ndarray, person: int) -> np.ndarray:
        off = (y[person].numpy() - candidates[..., :1] * x[person].numpy() - candidates[..., 1:]) ** 2
        cost: np.ndarray = 0.5 * (width**2 * off / (width**2 + off)).sum(-1)
        return cost

    axis = np.linspace(-1.5, 1.5, 121)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    refined = [
        scipy.optimize.minimize(
            energy,
            grid[energy(grid, person).argmin()],
            args=(person,),
            method="Nelder-Mead",
            options={"xatol": 1e-10, "fatol": 1e-14},
        )
        for person in range(PEOPLE)
    ]
    found = torch.tensor(np.stack([each.x for each in refined]))
    assert (found - lines).abs().max() < 0.05  # the outlier hardly pulls

    def check(state: State) -> None:
        torch.testing.assert_close(state.betas.double(), found, atol=2e-3, rtol=0)

    xy = 100 * torch.stack([x, y], -1) + 500
    seen = Observation(cameras(), Keypoints(get_set("coco17"), xy, torch.ones_like(x)))
    start = replace(body.neutral(PEOPLE), betas=torch.zeros(PEOPLE, 2).double())
    problem = Problem(body, seen, line().robust(GMoF(width)), free=("betas",))
    return Known(problem, start, torch.tensor([each.fun for each in refined], dtype=torch.float64), check)


@fitkit.objective(requires=("numbers",))
def pull(pred: Prediction, obs: Observation) -> Tensor:
    """To the pose that reaches the points: without it the twist of a limb is anybody's."""
    return pred.body_pose.flatten(1) - numbers_of(obs)


PRIOR = gaussian_prior()


@fitkit.objective(requires=("numbers",))
def whitened_pull(pred: Prediction, obs: Observation) -> Tensor:
    """The same in the numbers of the prior's latent, where `pull` is steep in some directions and flat in others."""
    wanted = numbers_of(obs).view(len(pred), 21, 3, 3)
    return PRIOR.encode(pred.body_pose) - PRIOR.encode(wanted)


def reachable(body: BodyModel, coordinates: Chart | None = None, latent: bool = False) -> Known:
    """Inverse kinematics: points of a body that can stand so, around its hips."""
    start = body.neutral(PEOPLE)
    truth = replace(
        start,
        global_orient=geometry.exp(0.3 * draw(PEOPLE, 1, 3, seed=4)),
        body_pose=geometry.exp(0.25 * draw(PEOPLE, 21, 3, seed=5)),
    )
    points = get_set("coco17")
    hips = [points.index("left_hip"), points.index("right_hip")]

    def around(state: State) -> Tensor:
        xyz = body.to(torch.float64).keypoints(state.to(torch.float64), points.name)
        return xyz - xyz[:, hips].mean(1, keepdim=True)

    wanted = around(truth)

    def check(state: State) -> None:
        assert (around(state) - wanted).norm(dim=-1).max() < 1e-3  # a millimetre

    world = Keypoints3D(points, wanted, torch.ones_like(wanted[..., 0]))
    seen = Told(cameras(), world=world, numbers=truth.body_pose.flatten(1))
    objective = Points3D(sigma=0.1, kernel=None) + (0.3 * whitened_pull() if latent else 1.0 * pull())
    free = ("global_orient", "body_pose")
    problem = Problem(body, seen, objective, free, coordinates)
    return Known(problem, start, torch.zeros(PEOPLE).double(), check)


@fitkit.objective(requires=("world",))
def landmarks(pred: Prediction, obs: Observation) -> Tensor:
    assert obs.world is not None
    return pred.joints[:, :22] - obs.world.xyz[:, :22]


def rigid(body: BodyModel) -> Known:
    """Only root and translation move: the minimum is the closed form of Kabsch (1976)."""
    start = replace(
        body.neutral(PEOPLE),
        body_pose=geometry.exp(0.2 * draw(PEOPLE, 21, 3, seed=6)),
        betas=0.5 * draw(PEOPLE, 16, seed=7),
    )
    turned = replace(
        start,
        global_orient=geometry.exp(0.5 * draw(PEOPLE, 1, 3, seed=8)),
        transl=0.5 * draw(PEOPLE, 3, seed=9),
    )
    xyz = body.joints(turned) + 0.05 * draw(PEOPLE, 55, 3, seed=10)
    seen = Observation(cameras(), world=Keypoints3D(body.joint_set, xyz, torch.ones_like(xyz[..., 0])))
    mine, theirs = body.joints(start)[:, :22], xyz[:, :22]
    rotation, shift = roma.rigid_points_registration(mine, theirs)
    aligned = mine @ rotation.mT + shift[:, None]

    def check(state: State) -> None:
        torch.testing.assert_close(state.global_orient[:, 0].double(), rotation, atol=2e-3, rtol=0)
        for name in ("body_pose", "betas"):
            kept: Tensor = getattr(start, name)
            assert torch.equal(getattr(state, name), kept.to(state.betas.dtype))

    problem = Problem(body, seen, landmarks(), free=("global_orient", "transl"))
    return Known(problem, start, 0.5 * (aligned - theirs).square().sum((1, 2)), check)


PROBLEMS: dict[str, Callable[[BodyModel], Known]] = {
    "quadratic": quadratic,
    "rosenbrock": banana,
    "robust-line": robust_line,
    "inverse-kinematics": reachable,
    "frozen": rigid,
}


# Without a robust kernel, the curvature of kernels changes nothing.
PAIRS = [
    pytest.param(make, solver, id=f"{problem}-{name}")
    for problem, make in PROBLEMS.items()
    for name, solver in SOLVERS.items()
    if name != "lm-triggs" or problem == "robust-line"
]


# -- minima --------------------------------------------------------------------------------------------------


def run(problem: Problem, solver: Solver, start: State, most: int | None = None) -> Solution:
    """Everything at once: a solver's own schedule is about photos."""
    return solve(problem, solver, start, [Stage(most or solver.max_steps)])


def same(energy: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(energy, expected, rtol=1e-4, atol=1e-8)


def stopped(solution: Solution) -> bool:
    """Whether everybody came to an end: where the energy falls to 0, rounding may be what ends it."""
    ends = (solution.outcome == Outcome.CONVERGED) | (solution.outcome == Outcome.STALLED)
    return bool(ends.all())


@pytest.mark.parametrize(("make", "solver"), PAIRS)
def test_the_minimum_is_found_alone_in_a_batch_and_in_any_order(
    body: BodyModel, make: Callable[[BodyModel], Known], solver: Solver
) -> None:
    known = make(body)
    whole = run(known.problem, solver, known.start)
    known.check(whole.state)
    same(whole.energy, known.energy)
    same(whole.energy, known.problem.energy(whole.state))
    assert stopped(whole)
    # Some solvers need thousands of steps; what they make of the first ones tells as much.
    most = min(40, len(whole.trace.step) - 1)
    there = whole.trace.energy[most]
    shuffled = run(known.problem.select(ORDER), solver, known.start.select(ORDER), most)
    same(shuffled.energy, there[ORDER])
    alone = run(known.problem.select(1), solver, known.start.select(1), most)
    same(alone.energy, there[1:2])


@pytest.mark.parametrize("solver", [SOLVERS[name] for name in ("lm", "lbfgs", "bfgs")], ids=lambda s: s.name)
@pytest.mark.parametrize("chart", [SixD, Latent.of(PRIOR)], ids=["6d", "latent"])
def test_a_reachable_pose_is_reached_in_other_coordinates(
    body: BodyModel, chart: Chart, solver: Solver
) -> None:
    latent = isinstance(chart(body.neutral(), None), Latent)
    known = reachable(body, chart, latent)
    solution = run(known.problem, solver, known.start)
    known.check(solution.state)
    same(solution.energy, known.energy)
    assert stopped(solution)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("name", ["quadratic", "robust-line"])
def test_single_precision_comes_as_far_as_it_can(body: BodyModel, name: str, solver: Solver) -> None:
    known = PROBLEMS[name](body)
    narrow = body.to(torch.float32)
    observation = known.problem.observation.to(torch.float32)
    problem = replace(known.problem, body=narrow, observation=observation)
    solution = run(problem, solver, known.start.to(torch.float32), 1000)
    assert solution.energy.dtype == torch.float32
    torch.testing.assert_close(solution.energy.double(), known.energy, rtol=1e-3, atol=1e-5)
    assert stopped(solution)


# -- derivatives of one's own objective ----------------------------------------------------------------------


SPREAD = draw(16, problem_module.MOST_ROWS + 10, seed=11) / 16


@fitkit.objective
def many_rows(pred: Prediction, obs: Observation) -> Tensor:
    """More rows than unknowns."""
    return torch.sin(pred.betas) @ SPREAD[:, :40] - 0.05


class Backwards(torch.autograd.Function):
    """A sine that can be differentiated backwards only, and that leaves torch on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_tensor(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x.new_tensor(np.cos(x.detach().numpy()))


class Foreign(Objective):
    """`rows` rows of an operation of somebody else's."""

    name = "foreign"
    requires = frozenset({"camera"})

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def residual(self, pred: Prediction, obs: Observation) -> Tensor:
        sine: Tensor = Backwards.apply(pred.betas)
        return sine @ SPREAD[:, : self.rows] - 0.05


WAYS: dict[str, tuple[Objective, str]] = {
    "forwards": (many_rows(), "_push"),
    "backwards": (bowl(), "_pull"),
    "backwards only": (Foreign(60), "_pull"),
    "as an energy": (Foreign(problem_module.MOST_ROWS + 10), "_as_energy"),
}


@pytest.mark.parametrize(("objective", "way"), WAYS.values(), ids=WAYS)
def test_every_way_to_a_derivative_is_right_and_leads_down(
    body: BodyModel, monkeypatch: pytest.MonkeyPatch, objective: Objective, way: str
) -> None:
    succeeded = []

    def watch(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def seen(*given: Any) -> Any:
            result = real(*given)
            if result is not None:
                succeeded.append(name)
            return result

        monkeypatch.setattr(owner, name, seen)

    watch(problem_module, "_push")
    watch(problem_module, "_pull")
    watch(Problem, "_as_energy")
    # With the whole pose free, twenty rows are fewer than the unknowns.
    free = None if way == "_pull" else ("betas",)
    seen = Told(cameras(2), numbers=draw(2, 20, seed=13))
    state = replace(body.neutral(2), betas=0.3 * draw(2, 16, seed=14))
    problem = Problem(body, seen, 2.0 * objective, free=free)
    here = problem.linearize(state)
    assert succeeded == [way]
    column = problem.free_blocks(state)["betas"]
    for number in range(16):
        step = torch.zeros_like(state.betas)
        step[:, number] = 1e-5
        ahead, behind = (problem.energy(replace(state, betas=state.betas + side * step)) for side in (1, -1))
        torch.testing.assert_close(
            here.gradient[:, column][:, number], (ahead - behind) / 2e-5, atol=1e-7, rtol=1e-6
        )
    solution = solve(problem, LM(60), state)
    assert (solution.energy < 0.97 * here.energy).all()
    assert (solution.trace.energy.diff(dim=0) <= 0).all()


def test_a_jacobian_of_too_many_rows_is_refused_where_somebody_insists(body: BodyModel) -> None:
    objective = Foreign(problem_module.MOST_ROWS + 10)
    problem = Problem(body, Observation(cameras(2)), objective, free=("betas",))
    with pytest.raises(RuntimeError, match="foreign: too many rows"):
        problem.automatic(objective, body.neutral(2))

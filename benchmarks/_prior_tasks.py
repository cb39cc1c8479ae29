"""What a pose prior is asked: which poses are odd, what a pose was before noise, what hidden joints do, whole fits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median

import torch
from _common import sync
from _problems import MISSING, NOISE, Problems
from torch import Tensor

from fitkit import geometry
from fitkit._select import concatenate
from fitkit.api import default_stages
from fitkit.body import BodyModel
from fitkit.camera import Camera
from fitkit.initialise import make_starts
from fitkit.keypoints import get_set
from fitkit.objectives import GMoF, Keypoints2D, Objective
from fitkit.objectives.base import Residual
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import JointLimits, ShapePrior, UprightPrior
from fitkit.priors.representation import Matrix
from fitkit.problem import Problem
from fitkit.solve import solve
from fitkit.solver import Outcome
from fitkit.solvers import LM
from fitkit.state import State

JOINTS = get_set("smplx55").names[:22]
ARM, LEG = ("collar", "shoulder", "elbow", "wrist"), ("hip", "knee", "ankle", "foot")
BEND = 60.0  # degrees of what a knee or an elbow bends the wrong way
TURN = 10.0  # degrees per axis, standard deviation of the noise that is taken off
SURE = 1.0  # degrees, of joints that are known


def rows_of(*names: str) -> list[int]:
    """Rows of `body_pose`."""
    return [JOINTS.index(name) - 1 for name in names]


# -- odd poses ---------------------------------------------------------------------------------------------------


def implausible(poses: Tensor, subject: Tensor, seed: int) -> dict[str, Tensor]:
    """Versions of poses that nobody takes, by kind; left in even rows and right in odd ones where there is a side.

    Args:
        poses: `(B, 21, 3, 3)`, x to the body's left, y up and z forward at rest.
        subject: `(B,)` whose they are.
        seed: of whose limbs are mixed.
    """
    left = torch.arange(len(poses), device=poses.device) % 2 == 0
    # A knee flexes about +x on both sides, a left elbow about -y and a right one about +y.
    kinds = {
        "knee forward 60": _sided(poses, "knee", (-BEND, 0.0, 0.0), left),
        "elbow reversed": _sided(poses, "elbow", (0.0, BEND, 0.0), left),
    }
    turned = poses.clone()
    head = rows_of("head")[0]
    turned[:, head] = poses[:, head] @ _turn((0.0, 180.0, 0.0), poses)
    draw = torch.Generator().manual_seed(seed)
    others = subject.cpu()[:, None] != subject.cpu()
    donor = torch.multinomial(others.double(), 1, generator=draw)[:, 0].to(poses.device)
    mixed = poses.clone()
    for side, mine in (("left", left), ("right", ~left)):
        limbs = rows_of(*(f"{side}_{name}" for name in (*ARM, *LEG)))
        mixed[:, limbs] = torch.where(mine[:, None, None, None], poses[donor][:, limbs], mixed[:, limbs])
    return {**kinds, "head turned 180": turned, "limbs of two people": mixed}


def _sided(poses: Tensor, joint: str, degrees: tuple[float, float, float], left: Tensor) -> Tensor:
    """Poses with a joint of one side as told for the left; the right one is its mirror image."""
    changed = poses.clone()
    mirrored = (degrees[0], -degrees[1], -degrees[2])
    for side, mine, turn in (("left", left, degrees), ("right", ~left, mirrored)):
        changed[mine, rows_of(f"{side}_{joint}")[0]] = _turn(turn, poses)
    return changed


def _turn(degrees: tuple[float, float, float], like: Tensor) -> Tensor:
    return geometry.exp(torch.deg2rad(torch.tensor(degrees, dtype=like.dtype, device=like.device)))


def ranked_wrongly(plausible: Tensor, odd: Tensor) -> tuple[float, float]:
    """Share of pairs in which the odd pose is not the worse one, ties by half: of other poses, of the same pose.

    Args:
        plausible: `(B,)` the higher the odder.
        odd: `(B,)` of a version of each.
    """
    wrong = (odd[:, None] < plausible).double() + 0.5 * (odd[:, None] == plausible).double()
    count, own = len(wrong), wrong.diagonal()
    return float((wrong.sum() - own.sum()) / (count * (count - 1))), float(own.mean())


def excess(poses: Tensor) -> Tensor:
    """`(B,)` energy of the joint limits, 1/2 at 5 degrees beyond them."""
    people = len(poses)
    eye = torch.eye(3, dtype=poses.dtype, device=poses.device).expand(people, 1, 3, 3)
    zero = poses.new_zeros(people, 3)
    observation, state = _nothing(poses), State(eye, poses, poses.new_zeros(people, 1), zero)
    # Joint limits read the pose alone, and no body.
    pred = Prediction(None, state, observation.camera)  # type: ignore[arg-type]
    return 0.5 * JointLimits().residual(pred, observation).rows.square().sum((1, 2))


def _nothing(poses: Tensor) -> Observation:
    camera = Camera.from_size(100, 100).expand(len(poses)).to(poses.dtype)
    return Observation(camera).to(str(poses.device))


# -- poses of which something is known --------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured(Observation):
    """Rotations of joints as somebody measured them.

    Attributes:
        turns: `(B, 21, 3, 3)`.
        precision: `(B, 21)` inverse variance, per square radian; 0 for joints that are hidden.
    """

    turns: Tensor | None = None
    precision: Tensor | None = None


class Turns(Objective):
    """Distance of the body's rotations from measured ones: their angle over its deviation, as a chord."""

    name = "turns"
    block = "body_pose"
    requires = frozenset({"turns", "precision"})

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        assert isinstance(obs, Measured)
        assert obs.turns is not None  # checked by Problem: `requires`
        return Residual((pred.body_pose - obs.turns).flatten(2) / math.sqrt(2), obs.precision)

    def closed_normal(
        self, pred: Prediction, obs: Observation, residual: Residual
    ) -> tuple[Tensor, Tensor] | None:
        """Joint by joint; the curvature of a chord is that of its angle, the same about every axis."""
        if self.kernel is not None or residual.weight is None:
            return None
        weight = self.weight * residual.weight[..., None]
        turned = Matrix().jacobian(pred.body_pose) / math.sqrt(2)
        gradient = (turned.mT @ (weight * residual.rows)[..., None])[..., 0]
        return gradient.flatten(1), torch.diag_embed(weight.expand(-1, -1, 3).flatten(1))


def likeliest(body: BodyModel, prior: Objective, seen: Tensor, precision: Tensor, start: Tensor) -> Tensor:
    """`(B, 21, 3, 3)` poses at the minimum of what was measured and the prior, by Levenberg-Marquardt.

    Args:
        body: for the solver; nothing of it is read.
        prior: at its weight.
        seen: `(B, 21, 3, 3)` measured rotations.
        precision: `(B, 21)` see `Measured`.
        start: `(B, 21, 3, 3)`.
    """
    camera = _nothing(seen).camera
    problem = Problem(
        body, Measured(camera, turns=seen, precision=precision), Turns() + prior, ("body_pose",)
    )
    neutral = body.neutral(len(seen))
    state = State(neutral.global_orient, start, neutral.betas, neutral.transl)
    return solve(problem, LM(60, tolerance=1e-5), state).state.body_pose


def noisy(poses: Tensor, seed: int) -> Tensor:
    """Every joint turned at random by `TURN` degrees per axis."""
    draw = torch.Generator().manual_seed(seed)
    turns = torch.randn(*poses.shape[:2], 3, generator=draw, dtype=torch.float64).to(poses)
    return poses @ geometry.exp(math.radians(TURN) * turns)


def hidden_sets(count: int, seed: int) -> dict[str, Tensor]:
    """`(count, 21)` joints that are hidden, by kind; half of them: 10 of 21 drawn for every pose."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(count, 21, generator=draw).argsort(1)
    sets = {"half of the joints": order < 10}
    for name, joints in (("both arms", ARM), ("both legs", LEG)):
        mask = torch.zeros(count, 21, dtype=torch.bool)
        mask[:, rows_of(*(f"{side}_{joint}" for side in ("left", "right") for joint in joints))] = True
        sets[name] = mask
    return sets


def angle_over(poses: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """`(B,)` mean angle over some joints of each pose, degrees."""
    angle = torch.rad2deg(geometry.geodesic(poses, truth)) * mask
    return angle.sum(1) / mask.sum(1)


# -- whole fits --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """How much of a person the keypoints show.

    Attributes:
        missing: share of the points, or names; see `make_problems`.
        noise: standard deviation of the points, sizes of the person; the objective knows it.
        hidden: joints that the missing points leave to the prior.
    """

    missing: float | tuple[str, ...] = MISSING
    noise: float = NOISE
    hidden: tuple[str, ...] = ()


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{side}_{name}" for name in names for side in ("left", "right"))


_SIDE = ("left_elbow", "left_wrist", "left_knee", "left_ankle")
VIEWS = {
    "full": View(),
    "upper": View(_both("knee", "ankle"), hidden=_both("knee", "ankle", "foot")),
    "one side": View(_SIDE, hidden=(*_SIDE, "left_foot")),
    "noisy": View(0.3, 0.03),
}


@dataclass(frozen=True)
class Fits:
    """What came of a batch of fits.

    Attributes:
        state: `(B)`.
        steps: `(B,)` of the start that won.
        at_limit: `(B,)` whether it was still going down.
        milliseconds: per person, median over batches.
    """

    state: State
    steps: Tensor
    at_limit: Tensor
    milliseconds: float


def fit_poses(
    body: BodyModel,
    problems: Problems,
    prior: Objective | None,
    mean_pose: Tensor,
    weight: float,
    noise: float,
    upright: bool = True,
    batch: int = 50,
) -> Fits:
    """Levenberg-Marquardt from four starts, as `fitkit.fit` runs it.

    Args:
        body: of the states.
        problems: to fit.
        prior: over poses; None for joint limits only.
        mean_pose: `(21, 3, 3)` of every start.
        weight: of the prior.
        noise: of the points, sizes of the person.
        upright: whether the body's stand to gravity counts.
        batch: people that are fitted at once.
    """
    total = Keypoints2D(sigma=noise, kernel=GMoF(10)) + ShapePrior() + JointLimits()
    total = total + UprightPrior() if upright else total
    total = total if prior is None else total + weight * prior
    solver = LM()
    states, steps, limits, times = [], [], [], []
    for first in range(0, len(problems), batch):
        part = problems.select(slice(first, first + batch))
        sync(body.device)
        began = time.perf_counter()
        starts = make_starts(body, part.observation, mean_pose)
        problem = Problem(body, part.observation, total)
        stages = default_stages(solver.max_steps)
        solution = solve(problem, solver, starts.state, stages, starts.count, kinds=starts.kinds)
        sync(body.device)
        times.append(1e3 * (time.perf_counter() - began) / len(part))
        states.append(solution.state)
        steps.append(solution.trace.steps_made)
        limits.append(solution.outcome == Outcome.MAX_STEPS)
    return Fits(concatenate(states), torch.cat(steps), torch.cat(limits), median(times))


def vertex_error(body: BodyModel, state: State, truth: State) -> Tensor:
    """`(B,)` MPVPE, metres: mean distance of the vertices with the pelvises together."""
    each = []
    for first in range(0, len(state), 25):
        pair = [part.select(slice(first, first + 25)) for part in (state, truth)]
        mine, true = (body.vertices(part) - body.joints(part)[:, :1] for part in pair)
        each.append((mine - true).norm(dim=-1).mean(1))
    return torch.cat(each)

"""The two recipes that published code runs, written anew from what they do, on our body and our objective.

Both evaluate the whole surface at every step, take the keypoints from it, and go back through all of it by automatic
differentiation. What is lowered in the last stage is the objective given, so that energies compare with those of our
solvers. Both start from one state: the prior's mean pose, facing the camera (`peer_start`); SPIN's own code starts
from its network's guess, SMPLify-X from its prior's mean. They run in the dtype of the body; theirs is float32.

Every recipe returns the states and how many times it evaluated the objective and its gradient (of the whole batch).

Not theirs: body, priors and limits (ours, in place of SMPL, mixture or VPoser, and the exponential on knees and
elbows), the photo's own focal length (theirs: 5000 pixels), and points that were not seen, which are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np
import roma
import torch
from torch import Tensor

from fitkit import geometry
from fitkit.body import BodyModel
from fitkit.initialise import place
from fitkit.keypoints import Keypoints
from fitkit.objectives import Keypoints2D, Objective, Residual
from fitkit.objectives.base import Sum
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import gaussian_prior
from fitkit.problem import Problem
from fitkit.state import ROTATIONS, State

Parameters = dict[str, Tensor]

TORSO = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
# Pull of the depth towards the first estimate while the camera is fitted, pixels per metre (both recipes).
DEPTH_WEIGHT = 100.0

# SPIN, smplify/smplify.py and losses.py: Adam, twice; its crops are 1.2 times the keypoints' box, resized to 224.
ADAM_STEPS, ADAM_RATE, ADAM_BETAS = 100, 1e-2, (0.9, 0.999)
CROP, CROP_MARGIN = 224.0, 1.2

# SMPLify-X, cfg_files/fit_smplx.yaml and optimizers/lbfgs_ls.py.
LBFGS_STEPS, LBFGS_ITERATIONS, LBFGS_GRADIENT, FTOL, GTOL = 30, 30, 1e-5, 1e-9, 1e-9
POSE_WEIGHTS = (404.0, 404.0, 57.4, 4.78, 4.78)
SHAPE_WEIGHTS = (100.0, 50.0, 10.0, 5.0, 5.0)
# The jaw's weights (nod, turn, tilt) over those of the pose; the same ratio in all five stages.
JAW = (10.0, 100.0, 100.0)
SIDE_VIEW = 25.0  # pixels between the shoulders below which both orientations are tried


@lru_cache(maxsize=16)
def without_correctives(body: BodyModel) -> BodyModel:
    """The body with pose correctives that are zero but are computed all the same.

    Ours move the surface under a keypoint by up to 4 mm, which `Keypoints2D` does without: only so is the value from
    the mesh the same, at the same cost.
    """
    data = replace(body.data, posedirs=np.zeros_like(body.data.posedirs))
    return BodyModel(data, body.dtype, body.device)


@lru_cache(maxsize=16)
def _regressor(body: BodyModel, name: str) -> tuple[Tensor, Tensor | None]:
    """`(K, V)` from the surface, and `(K, J)` from the joints where there is any of it."""
    both = torch.as_tensor(body.data.regressors[name], dtype=body.dtype, device=body.device)
    surface, joints = both.tensor_split([len(body.data.v_template)], 1)
    return surface.contiguous(), joints if bool(joints.any()) else None


class OnMesh(Prediction):
    """A prediction whose keypoints are regressed from all vertices."""

    def keypoints(self, name: str) -> Tensor:
        if name == self.body.joint_set.name:
            return super().keypoints(name)
        surface, joints = _regressor(self.body, name)
        points = torch.einsum("bvc,kv->bkc", self.vertices, surface)
        return points if joints is None else points + joints @ self.joints


class OnSmplx(OnMesh):
    """The same with the vertices of `smplx.lbs`, which is what both recipes call: 24 joints of SMPL (here 22, hands at
    rest) or all 55 of SMPL-X. Its rotations come as matrices, ours of one exponential."""

    @cached_property
    def vertices(self) -> Tensor:
        from smplx.lbs import lbs

        rotations, shape = self.posed.rotations, self.posed.shape
        table = _smplx_table(self.body, rotations.shape[1], shape.shape[1])
        vertices, _ = lbs(shape, rotations, *table, pose2rot=False)
        return vertices + self.state.transl[:, None]


@lru_cache(maxsize=16)
def _smplx_table(body: BodyModel, joints: int, size: int) -> tuple[Tensor, ...]:
    """Template, directions, correctives, joint regressor, parents and weights as `smplx.lbs` takes them."""

    def like(array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), dtype=body.dtype, device=body.device)

    data, count = body.data, 9 * (joints - 1)
    correctives = data.posedirs.reshape(-1, data.posedirs.shape[2]).T[:count]
    correctives = np.pad(correctives, ((0, count - len(correctives)), (0, 0)))
    dirs = np.concatenate([data.shapedirs, data.exprdirs], 2)[..., :size]
    parents = torch.tensor([int(parent) for parent in data.parents[:joints]], device=body.device)
    weights = body._tensor_weights(joints == len(data.parents))
    regressor = like(data.J_regressor[:joints])
    return like(data.v_template), like(dirs), like(correctives), regressor, parents, weights


class MeshKeypoints2D(Objective):
    """`Keypoints2D` with points of the mesh and no closed-form Jacobian.

    Its value is that of the term to rounding, for bodies whose pose correctives are zero.
    """

    def __init__(self, term: Keypoints2D, mesh: type[OnMesh] = OnMesh) -> None:
        self.term, self.name, self.weight, self.mesh = term, term.name, term.weight, mesh
        self.kernel, self.requires = term.kernel, term.requires

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        return self.term.residual(self.mesh(pred.body, pred.state, pred.camera), obs)


def on_mesh(objective: Objective, mesh: type[OnMesh] = OnMesh) -> Sum:
    """The same sum with keypoints by way of the mesh."""
    terms = objective.terms()
    return Sum(
        tuple(MeshKeypoints2D(term, mesh) if isinstance(term, Keypoints2D) else term for term in terms)
    )


def peer_start(body: BodyModel, observation: Observation) -> State:
    """The prior's mean pose, upright and facing the camera, where its keypoints meet those seen."""
    people, observation = len(observation), observation.to(body.dtype).to(str(body.device))
    pose = gaussian_prior().mean_pose().to(body.device, body.dtype)
    upright = torch.diag(pose.new_tensor([1.0, -1.0, -1.0]))
    orient, poses = upright.expand(people, 1, 3, 3), pose.expand(people, -1, -1, -1)
    state = replace(body.neutral(people), global_orient=orient, body_pose=poses)
    return place(body, state, observation)


def _parameters(state: State, names: tuple[str, ...]) -> Parameters:
    """Leaves to be moved: rotations as axis-angle, as both recipes have them."""
    values = {name: getattr(state, name).detach() for name in names}
    for name in set(names).intersection(ROTATIONS):
        values[name] = roma.rotmat_to_rotvec(values[name])
    return {name: value.clone().requires_grad_(True) for name, value in values.items()}


def _moved(state: State, parameters: Parameters) -> State:
    """The state with these parts; one exponential for all rotations."""
    turning = [name for name in parameters if name in ROTATIONS]
    turned = geometry.exp(torch.cat([parameters[name] for name in turning], 1))
    counts = [parameters[name].shape[1] for name in turning]
    return replace(state, **{**parameters, **dict(zip(turning, turned.split(counts, 1), strict=True))})


def _camera_loss(
    problem: Problem, seen: Keypoints, start: State, scale: Tensor | float, mesh: type[OnMesh]
) -> Callable[[State], Tensor]:
    """Squared pixels (times `scale`) of shoulders and hips, and the pull to the depth of the start; `(B,)`."""
    torso = [seen.set.index(name) for name in TORSO]
    there = seen.confidence[:, torso] > 0

    def loss(state: State) -> Tensor:
        pixels = mesh(problem.body, state, problem.observation.camera).keypoints_2d(seen.set.name)
        off = ((pixels - seen.xy)[:, torso] * scale).square().sum(-1) * there
        return off.sum(1) + (DEPTH_WEIGHT * (state.transl[:, 2] - start.transl[:, 2])).square()

    return loss


def _set_up(
    body: BodyModel, observation: Observation, objective: Objective, state: State, mesh: type[OnMesh]
) -> tuple[Problem, Keypoints, State]:
    """Everything in the body's dtype and on its device, with keypoints by way of the mesh."""
    device = str(body.device)
    observation, state = observation.to(body.dtype).to(device), state.to(body.dtype).to(device)
    if observation.keypoints is None:
        raise ValueError("published recipes fit keypoints, but the observation has none")
    problem = Problem(without_correctives(body), observation, on_mesh(objective, mesh))
    return problem, observation.keypoints, state


@torch.enable_grad()
def smplify_spin(
    body: BodyModel,
    observation: Observation,
    objective: Objective,
    state: State,
    mesh: type[OnMesh] = OnMesh,
) -> tuple[State, int]:
    """SMPLify (Bogo et al., ECCV 2016) as SPIN runs it (Kolotouros et al., ICCV 2019; `smplify/smplify.py`).

    Adam in two stages of 100 steps for the whole batch, losses of people summed: orientation and translation on
    the torso, in pixels of SPIN's crop; then pose, shape and orientation on the full objective, the translation
    frozen as theirs is. Theirs leaves out OpenPose's neck and hips in the second stage; here
    the objective says which points count. The depth's pull is theirs in metres, though people stand ten times
    farther from their camera.
    """
    problem, seen, state = _set_up(body, observation, objective, state, mesh)
    scale = CROP / (CROP_MARGIN * seen.extent)
    camera = _camera_loss(problem, seen, state, scale[:, None, None], mesh)
    moving = ("body_pose", "betas", "global_orient")
    for names, loss in ((("global_orient", "transl"), camera), (moving, problem.energy)):
        parameters = _parameters(state, names)
        optimizer = torch.optim.Adam(list(parameters.values()), lr=ADAM_RATE, betas=ADAM_BETAS)
        for _ in range(ADAM_STEPS):
            optimizer.zero_grad()
            loss(_moved(state, parameters)).sum().backward()
            optimizer.step()
        state = _moved(state, {name: value.detach() for name, value in parameters.items()})
    return state, 2 * ADAM_STEPS


@torch.enable_grad()
def smplify_x(
    body: BodyModel,
    observation: Observation,
    objective: Objective,
    state: State,
    mesh: type[OnMesh] = OnMesh,
) -> tuple[State, int]:
    """SMPLify-X (Pavlakos et al., CVPR 2019; `smplifyx/fit_single_frame.py`, `cfg_files/fit_smplx.yaml`).

    L-BFGS with a strong Wolfe line search, up to 30 iterations in each of up to 30 calls, in a camera stage
    (orientation and translation on the torso) and five stages of everything but the translation, whose pose and
    shape weights fall to those of the objective. Where the shoulders are within 25 pixels of each other, the body
    stages are run a second time with the body turned by half a turn, and the lower loss wins.

    Hands, jaw and expression are free, as theirs are, under their L2 pulls with the weights of the configuration
    (half-squares, as our terms are; hands by 45 angles each, not 12 principal components); the eyes, which theirs
    moves too, are at rest. Left out: VPoser, whose place our pose prior takes, and the interpenetration term, which
    needs CUDA; both would make theirs slower. `torch.optim.LBFGS` takes the place of their copy of it, with its
    tolerances. With the translation frozen, as
    theirs is, the energy stays above what it could be.

    Raises:
        ValueError: more than one person: an L-BFGS of a batch would tie them together.
    """
    if len(observation) != 1:
        raise ValueError(f"SMPLify-X fits one person at a time, got {len(observation)}")
    problem, seen, start = _set_up(body, observation, objective, state, mesh)
    camera = _camera_loss(problem, seen, start, 1000 / observation.camera.height, mesh)
    state, _, evaluations = _lower(start, ("global_orient", "transl"), lambda here, _: camera(here))
    begin = replace(_at_rest(problem.body, start), global_orient=state.global_orient, transl=state.transl)
    names = tuple(name for name in begin.parts() if name != "transl")
    turns = [begin]
    if _from_the_side(seen):
        half = geometry.yaw(torch.full_like(begin.transl[:, :1], math.pi))
        turns.append(replace(begin, global_orient=begin.global_orient @ half))
    found: list[tuple[float, State]] = []
    for here in turns:
        value = math.inf
        for pose, shape in zip(POSE_WEIGHTS, SHAPE_WEIGHTS, strict=True):
            loss = _body_loss(problem, pose / POSE_WEIGHTS[-1], shape / SHAPE_WEIGHTS[-1])
            here, value, count = _lower(here, names, loss)
            evaluations += count
        found.append((value, here))
    return min(found, key=lambda one: one[0])[1], evaluations


def _at_rest(body: BodyModel, state: State) -> State:
    """With the parts that SMPLify-X moves, where the body has them."""
    eye = torch.eye(3, dtype=body.dtype, device=body.device)
    names = [name for name in ("jaw_pose", "left_hand_pose", "right_hand_pose") if name in body.layout]
    parts: dict[str, Tensor] = {name: eye.expand(len(state), body.layout[name], 3, 3) for name in names}
    if body.num_expression:
        parts["expression"] = state.betas.new_zeros(len(state), body.num_expression)
    return replace(state, **parts)


def _from_the_side(seen: Keypoints) -> bool:
    """Whether the shoulders are close; as in OpenPose's files, a point that was not seen is at the origin."""
    points = seen.xy[0] * (seen.confidence[0] > 0)[:, None]
    left, right = points[seen.set.index("left_shoulder")], points[seen.set.index("right_shoulder")]
    return float((left - right).norm()) < SIDE_VIEW


def _body_loss(problem: Problem, pose: float, shape: float) -> Callable[[State, Parameters], Tensor]:
    """The objective with heavier priors; their weights enter squared, but that of the limits does not."""
    staged = problem.staged(weights={"pose_prior": pose**2, "shape_prior": shape**2, "joint_limits": pose})
    hand, jaw = [pose], [weight * pose for weight in JAW]
    pulls = {"left_hand_pose": hand, "right_hand_pose": hand, "jaw_pose": jaw, "expression": [shape]}

    def loss(state: State, parameters: Parameters) -> Tensor:
        value = staged.energy(state)
        for name, factor in pulls.items():
            if name in parameters:
                pulled = parameters[name] * parameters[name].new_tensor(factor)
                value = value + 0.5 * pulled.square().flatten(1).sum(1)
        return value

    return loss


def _lower(
    state: State, names: tuple[str, ...], loss: Callable[[State, Parameters], Tensor]
) -> tuple[State, float, int]:
    """One stage: state, its value (as theirs reports it: at the start of the last call), evaluations."""
    parameters = _parameters(state, names)
    leaves = list(parameters.values())
    optimizer = torch.optim.LBFGS(
        leaves, 1.0, LBFGS_ITERATIONS, tolerance_grad=LBFGS_GRADIENT, line_search_fn="strong_wolfe"
    )
    evaluations, value = 0, math.inf

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        energy = loss(_moved(state, parameters), parameters).sum()
        energy.backward()
        return energy

    for _ in range(LBFGS_STEPS):
        value, before = float(optimizer.step(closure).detach()), value
        fall = (before - value) / max(abs(before), abs(value), 1.0)  # NaN at first
        steep = any(float(leaf.grad.abs().max()) >= GTOL for leaf in leaves if leaf.grad is not None)
        if not math.isfinite(value) or fall <= FTOL or not steep:
            break
    return _moved(state, {name: value.detach() for name, value in parameters.items()}), value, evaluations

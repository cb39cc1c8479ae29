"""What HUND is trained on: unit losses of a stage, with and without 3D labels, and meta-losses over the stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.body import BodyModel
from fitkit.body.kinematics import PointSet
from fitkit.keypoints import get_set
from fitkit.objectives import Parts
from fitkit.problem import Problem
from fitkit.simulate.people import Scene
from fitkit.solvers.hund.context import POINTS
from fitkit.state import State

META = ("sum", "last", "min", "max", "improvement")
_ANCHOR_STEP = 6  # every so many of the body's evenly spread vertices
# Weights of eq. 3 beside 10 on the keypoints. Few people are rendered and stand for all: with more weight their parts
# drown everybody's keypoints.
_PARTS, _PRIORS = 0.004, 0.007
_FARTHEST = 2.0  # sizes of the person: a keypoint behind the camera is no farther off


def meta_loss(kind: str, units: Float[Tensor, "M1 B"]) -> Float[Tensor, ""]:
    """One number from the losses of the initial state and of M stages (HUND, eq. 7 and 8).

    The initial state always counts a little, which the paper does not say: `last` and the others leave it undefined.

    Args:
        kind: `sum`, `last`, `min`, `max`, or `improvement` (eq. 8: what each stage wins over the best before it).
        units: of the initial state (row 0) and of every stage, per person.

    Raises:
        ValueError: another kind.
    """
    first, stages = units[0], units[1:]
    if kind == "sum":
        chosen = stages.sum(0)
    elif kind == "last":
        chosen = stages[-1]
    elif kind == "min":
        chosen = stages.amin(0)
    elif kind == "max":
        chosen = stages.amax(0)
    elif kind == "improvement":
        # What is won over a poor start is no reason to start poorly.
        known = torch.cat([first.detach()[None], stages])
        best = torch.stack([known[: i + 1].amin(0) for i in range(len(stages))])
        chosen = (stages - best).clamp_max(0).sum(0)
    else:
        raise ValueError(f"meta-loss {kind!r}, expected one of {META}")
    return (chosen + 0.5 * first).mean()


class BodyPoints:
    """Joints, keypoints and some vertices of a body in one set of points, which training evaluates at every stage.

    The vertices are without pose correctives (half a millimetre on average), so that they cost no mesh.

    Args:
        body: with MediaPipe's keypoints.
    """

    def __init__(self, body: BodyModel) -> None:
        joints = 1 + body.layout["body_pose"]
        vertices, every = len(body.data.v_template), len(body.data.parents)
        anchors = body.anchors[::_ANCHOR_STEP].cpu().numpy()
        regressor = np.zeros((joints + len(POINTS) + len(anchors), vertices + every), np.float32)
        regressor[np.arange(joints), vertices + np.arange(joints)] = 1
        for row, source in enumerate(self._keypoints(body)):
            regressor[joints + row, : len(source)] = source
        regressor[joints + len(POINTS) + np.arange(len(anchors)), anchors] = 1
        self.body, self.joints = body, joints
        self.points: PointSet = body.regressed(regressor, joints)

    @staticmethod
    def _keypoints(body: BodyModel) -> list[np.ndarray]:
        names, rows = get_set("mediapipe33").names, body.data.regressors["mediapipe33"]
        return [rows[names.index(name)] for name in POINTS]

    def __call__(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Joints `(B, J, 3)`, keypoints `(B, 23, 3)` and vertices `(B, V, 3)`, metres, camera frame."""
        every = self.points.positions(self.body.pose(state))
        joints, keypoints = self.joints, len(POINTS)
        return every[:, :joints], every[:, joints : joints + keypoints], every[:, joints + keypoints :]


@dataclass(frozen=True)
class Target:
    """What a fully supervised loss compares with: a scene and its points."""

    scene: Scene
    size: Tensor
    joints: Tensor
    keypoints: Tensor
    vertices: Tensor

    @staticmethod
    def of(points: BodyPoints, scene: Scene, size: Float[Tensor, " B"]) -> Target:
        """Of a scene.

        Args:
            points: of the body.
            scene: of B people.
            size: of each in the photo, pixels.
        """
        joints, keypoints, vertices = points(scene.state)
        return Target(scene, size, joints, scene.camera.project(keypoints), vertices)


def supervised(points: BodyPoints, state: State, target: Target) -> Float[Tensor, " B"]:
    """L_f of HUND, section 2.2: vertices and joints in space, and rotations, keypoints, place and shape beside them.

    Args:
        points: of the body.
        state: of B people.
        target: of the same people.
    """
    joints, keypoints, vertices = points(state)
    truth, camera = target.scene.state, target.scene.camera
    own, true = joints[:, :1], target.joints[:, :1]
    in_space = ((joints - own) - (target.joints - true)).norm(dim=-1).mean(1)
    surface = ((vertices - own) - (target.vertices - true)).norm(dim=-1).mean(1)
    away = (camera.project(keypoints) - target.keypoints).norm(dim=-1) / target.size[:, None]
    in_photo = away.clamp_max(_FARTHEST).mean(1)
    pose = _chord(state.body_pose, truth.body_pose).mean(1)
    orient = _chord(state.global_orient, truth.global_orient)[:, 0]
    place = (state.transl - truth.transl).norm(dim=1) / truth.transl[:, 2]
    shape = (state.betas - truth.betas).abs().mean(1)
    turned = pose + 0.5 * orient
    return 3 * in_space + 3 * surface + 5 * in_photo + turned + 0.5 * place + 0.05 * shape


def self_supervised(problem: Problem, state: State, pictured: Tensor) -> Float[Tensor, " B"]:
    """L_u of HUND, eq. 3: keypoints (eq. 4), rendered parts (eq. 5) and priors; nothing that is not observed.

    Args:
        problem: of B people; its pose, shape, upright and limit terms are the priors.
        state: of the same people.
        pictured: `(P,)` rows whose parts are rendered and compared: all of those that have any would cost too much, and
            the mean over some drawn at random is that over all.
    """
    seen = problem.observation.keypoints
    assert seen is not None
    away = (problem.observation.camera.project(problem.body.keypoints(state, seen.set.name)) - seen.xy).norm(
        dim=-1
    )
    away = (away / seen.extent[:, None]).clamp_max(_FARTHEST)
    total = 10 * (away * seen.confidence).sum(1) / seen.confidence.sum(1).clamp_min(1)
    values = problem.staged(dense=False).values(state)
    priors = [
        value for name, value in values.items() if name not in ("keypoints_2d", "directions", "stranger")
    ]
    total = total + _PRIORS * torch.stack(priors).sum(0)
    if len(pictured):
        some = Problem(problem.body, problem.observation.select(pictured), Parts(size=32))
        parts = some.energy(state.select(pictured))
        share = len(total) / len(pictured)
        total = total.index_add(0, pictured, share * _PARTS * parts)
    return total


def _chord(first: Tensor, second: Tensor) -> Tensor:
    """`(B, J)` chordal distances; smooth where they are zero."""
    return ((first - second).square().sum((-1, -2)) + 1e-6).sqrt()

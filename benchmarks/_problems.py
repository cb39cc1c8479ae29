"""Problems whose answer is known: real poses of unseen subjects, random bodies, cameras and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fitkit import geometry
from fitkit._select import Rows
from fitkit.body import BodyModel
from fitkit.camera import Camera
from fitkit.datasets import Motion, read_folders
from fitkit.keypoints import Keypoints, get_set
from fitkit.metrics import LIMBS, joint_angle_error, mpjpe, pa_mpjpe
from fitkit.objectives import GMoF, Keypoints2D, Objective
from fitkit.observation import Observation
from fitkit.priors import JointLimits, ShapePrior, UprightPrior, default_pose_prior
from fitkit.problem import Problem
from fitkit.state import State

# Motion capture of people whom no prior here was trained on.
MOTION = "mocap/bvh/val"
LAYOUT = {MOTION: "folder of SSS_TT.bvh, motion capture of subjects SSS that no prior has seen"}
NOISE, MISSING, TILT, SEED = 0.01, 0.1, 8.0, 123
SIDE, FOCAL = 1000, 1000.0
# What is counted of every person, and its unit.
UNITS = {
    "energy": "",
    "2D error, noisy points": "sigma",
    "2D error, clean points": "sigma",
    "MPJPE": "mm",
    "PA-MPJPE": "mm",
    "angle, 21 joints": "deg",
    "angle, limbs": "deg",
}


@dataclass(frozen=True)
class Problems(Rows):
    """Problems with their answers, one row each.

    Attributes:
        observation: noisy keypoints with some missing, and the camera.
        truth: what made them.
        clean: `(B, 17, 2)` pixels before noise.
        sigma: `(B,)` pixels of the noise.
    """

    observation: Observation
    truth: State
    clean: Tensor
    sigma: Tensor

    def __len__(self) -> int:
        return len(self.sigma)


def make_problems(
    body: BodyModel,
    poses: Tensor,
    seed: int = SEED,
    noise: float = NOISE,
    missing: float | tuple[str, ...] = MISSING,
    tilt: float = TILT,
) -> Problems:
    """Random bodies in these poses, anywhere in front of a camera, turned any way, and what is seen of them.

    Args:
        body: in float64, on the CPU.
        poses: `(B, 22, 3, 3)`, joint 0 in a world with Y up and facing +Z.
        seed: of everything random.
        noise: standard deviation of the points, in sizes of the person.
        missing: share of the points that nobody saw; or names of points that are missing for everybody.
        tilt: standard deviation of the camera's pitch, degrees; a third of it rolls.
    """
    draw, count = torch.Generator().manual_seed(seed), len(poses)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    heading = torch.atan2(poses[:, 0, 0, 2], poses[:, 0, 2, 2])
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    orient = upright @ geometry.yaw(2 * math.pi * uniform(count) - heading) @ poses[:, 0]
    depth = 2.5 + 3.5 * uniform(count)
    aside = (uniform(count, 2) - 0.5) * torch.tensor([0.2, 0.1]) * depth[:, None]
    transl = torch.cat([aside, depth[:, None]], 1)
    shape, thrown = normal(count, body.num_betas), normal(count, 17, 2)
    dropped, turns = uniform(count, 17), math.radians(tilt) * normal(count, 3)
    orient = geometry.exp(turns * torch.tensor([1.0, 0.0, 1 / 3])) @ orient
    truth = State(orient[:, None], poses[:, 1:], shape, transl)

    camera = Camera.from_size(SIDE, SIDE, FOCAL).expand(count).to(torch.float64)
    clean = camera.project(body.keypoints(truth, "coco17"))
    width, height = (clean.amax(1) - clean.amin(1)).unbind(1)
    sigma = noise * torch.maximum(height, width / 2)
    noisy = clean + sigma[:, None, None] * thrown
    points = get_set("coco17")
    if isinstance(missing, float):
        confidence = (dropped > missing).double()
    else:
        confidence = torch.ones_like(dropped)
        confidence[:, [points.index(name) for name in missing]] = 0
    observation = Observation(camera, Keypoints(points, noisy, confidence))
    return Problems(observation, truth, clean, sigma)


def load_poses(folder: Path, count: int) -> Tensor:
    """`(count, 22, 3, 3)` usable frames, as many of every subject, drawn without replacement."""
    motion = read_folders([folder]).motion.usable_only()
    return motion.rotations[in_turn(subjects_of(motion))[:count], :22].double()


def subjects_of(motion: Motion) -> Tensor:
    """`(N,)` row of each frame's subject among the sorted names."""
    names = sorted(set(motion.subjects))
    return torch.tensor([names.index(name) for name in motion.subjects])[motion.clip]


def in_turn(subject: Tensor) -> Tensor:
    """A random order in which one frame of each subject follows the other, while they last."""
    drawn = torch.randperm(len(subject), generator=torch.Generator().manual_seed(SEED))
    rank = torch.empty_like(subject)
    for each in subject.unique():
        own = drawn[subject[drawn] == each]
        rank[own] = torch.arange(len(own))
    return (rank * (int(subject.max()) + 1) + subject).argsort()


def objective(prior: Objective | None = None, upright: bool = True) -> Objective:
    """The sum that `fitkit.fit` lowers where there are only keypoints, at the noise that the problems have.

    Args:
        prior: pose prior; None for the default one.
        upright: whether the body's stand to gravity counts.
    """
    total = (
        Keypoints2D(sigma=NOISE, kernel=GMoF(10))
        + (prior or default_pose_prior())
        + ShapePrior()
        + JointLimits()
    )
    return total + UprightPrior() if upright else total


def errors_of(body: BodyModel, problems: Problems, state: State) -> dict[str, Tensor]:
    """`(B,)` of everything in `UNITS`."""
    truth = problems.truth
    mine, true = body.joints(state)[:, :22], body.joints(truth)[:, :22]
    seen, camera = problems.observation.keypoints, problems.observation.camera
    assert seen is not None
    pixels = camera.project(body.keypoints(state, "coco17"))
    off = (pixels - seen.xy).norm(dim=-1) * seen.confidence
    turned = state.body_pose[:, :21], truth.body_pose
    return {
        "energy": Problem(body, problems.observation, objective()).energy(state),
        "2D error, noisy points": off.sum(1) / seen.confidence.sum(1).clamp_min(1e-9) / problems.sigma,
        "2D error, clean points": (pixels - problems.clean).norm(dim=-1).mean(1) / problems.sigma,
        "MPJPE": 1e3 * mpjpe(mine, true),
        "PA-MPJPE": 1e3 * pa_mpjpe(mine, true),
        "angle, 21 joints": joint_angle_error(*turned),
        "angle, limbs": joint_angle_error(*turned, LIMBS),
    }

"""Problems whose answer is known: real poses of unseen subjects, random bodies, cameras and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch
from torch import Tensor

from fitkit import geometry
from fitkit._select import Rows
from fitkit.body import BodyModel
from fitkit.camera import Camera
from fitkit.keypoints import Keypoints, get_set
from fitkit.objectives import GMoF, Keypoints2D, Objective
from fitkit.observation import Observation
from fitkit.priors import GaussianPosePrior, JointLimits, ShapePrior
from fitkit.state import State

MOTION = "mocap/rotations_val.npz"
LAYOUT = {MOTION: "axis_angle (N, 22, 3) radians, joint 0 in a world with Y up; ok (N,) bool"}
NOISE, MISSING, SEED = 0.01, 0.1, 123
SIDE, FOCAL = 1000, 1000.0


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


def make_problems(body: BodyModel, poses: Tensor, seed: int = SEED) -> Problems:
    """Random bodies in these poses, anywhere in front of a camera, turned any way, and what is seen of them.

    Args:
        body: in float64, on the CPU.
        poses: `(B, 22, 3, 3)`, joint 0 in a world with Y up and facing +Z.
        seed: of everything random.
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
    truth = State(orient[:, None], poses[:, 1:], normal(count, body.num_betas), transl)

    camera = Camera.from_size(SIDE, SIDE, FOCAL).expand(count).to(torch.float64)
    clean = camera.project(body.keypoints(truth, "coco17"))
    width, height = (clean.amax(1) - clean.amin(1)).unbind(1)
    sigma = NOISE * torch.maximum(height, width / 2)
    noisy = clean + sigma[:, None, None] * normal(count, 17, 2)
    confidence = (uniform(count, 17) > MISSING).double()
    observation = Observation(camera, Keypoints(get_set("coco17"), noisy, confidence))
    return Problems(observation, truth, clean, sigma)


def load_poses(file: Path, count: int) -> Tensor:
    """`(count, 22, 3, 3)` of the frames marked ok, drawn without replacement."""
    with np.load(file) as archive:
        frames = torch.from_numpy(archive["axis_angle"][archive["ok"]]).double()
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(SEED))
    rotations: Tensor = roma.rotvec_to_rotmat(frames[order[:count]])
    return rotations


def objective() -> Objective:
    """The calibrated sum: keypoints at the noise that the problems have, pose and shape priors, joint limits."""
    return Keypoints2D(sigma=NOISE, kernel=GMoF(10)) + GaussianPosePrior() + ShapePrior() + JointLimits()

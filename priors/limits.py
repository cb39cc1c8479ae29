"""Joint limits: how far each joint of a healthy adult turns about each of its axes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fitkit import geometry
from fitkit.keypoints import get_set
from fitkit.objectives.base import Objective, Residual
from fitkit.observation import Observation
from fitkit.prediction import Prediction

# Degrees of twist about x, y, z in the T-pose frame of the left side (x to the body's left, y up, z front);
# the right side is its mirror image. After the American Academy of Orthopaedic Surgeons' joint motion tables,
# widened by what the motion capture behind the pose prior reaches.
_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "hip": ((-130, 40), (-60, 60), (-45, 70)),
    "knee": ((-8, 155), (-25, 25), (-15, 15)),
    "ankle": ((-50, 60), (-35, 35), (-40, 40)),
    "foot": ((-60, 45), (-15, 15), (-15, 15)),
    "spine1": ((-30, 50), (-25, 25), (-30, 30)),
    "spine2": ((-25, 45), (-25, 25), (-25, 25)),
    "spine3": ((-20, 30), (-25, 25), (-20, 20)),
    "neck": ((-40, 45), (-50, 50), (-35, 35)),
    "head": ((-35, 35), (-50, 50), (-30, 30)),
    "collar": ((-20, 20), (-25, 30), (-20, 35)),
    "shoulder": ((-90, 100), (-125, 60), (-100, 100)),
    "elbow": ((-100, 100), (-160, 5), (-25, 25)),
    "wrist": ((-90, 90), (-40, 45), (-90, 85)),
}


class JointLimits(Objective):
    """What a pose exceeds the range of its joints by, as a half-square: zero inside, steep outside.

    The angle about an axis is the twist of the swing-twist decomposition, which for a hinge is its bend: a knee
    that bends forwards or an elbow that bends backwards costs at once.

    Args:
        sigma: degrees of excess that cost 1/2.
    """

    name = "joint_limits"
    block = "body_pose"

    def __init__(self, sigma: float = 5.0) -> None:
        self.sigma = math.radians(sigma)
        names = [name for name in get_set("smplx55").names[1:22]]
        lower, upper = [], []
        for name in names:
            ranges = _RANGES[name.removeprefix("left_").removeprefix("right_")]
            mirrored = name.startswith("right_")
            flipped = [ranges[0], *((-high, -low) for low, high in ranges[1:])] if mirrored else ranges
            lower.append([low for low, _ in flipped])
            upper.append([high for _, high in flipped])
        self.lower = torch.deg2rad(torch.tensor(lower, dtype=torch.float64))
        self.upper = torch.deg2rad(torch.tensor(upper, dtype=torch.float64))
        self._moved: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        return Residual((self._excess(pred) / self.sigma).flatten(1)[..., None])

    def closed_normal(
        self, pred: Prediction, obs: Observation, residual: Residual
    ) -> tuple[Tensor, Tensor] | None:
        """One 3 x 3 block per joint; the rows of a joint read no other."""
        if self.kernel is not None:
            return None
        pose = pred.body_pose
        rows = residual.rows.view(len(pose), 21, 3)
        turned = geometry.twist_jacobian(pose[:, :21]) * ((rows != 0) / self.sigma)[..., None]
        size = 3 * pose.shape[1]
        gradient, hessian = pose.new_zeros(len(pose), size), pose.new_zeros(len(pose), size, size)
        gradient[:, :63] = self.weight * (turned.mT @ rows[..., None]).flatten(1)
        blocks = hessian.view(len(pose), size // 3, 3, size // 3, 3).diagonal(dim1=1, dim2=3)
        blocks[..., :21] = self.weight * (turned.mT @ turned).permute(0, 2, 3, 1)
        return gradient, hessian

    def _excess(self, pred: Prediction) -> Tensor:
        pose = pred.body_pose[:, :21]
        angle = geometry.twist(pose)
        key = (pose.dtype, pose.device)
        if key not in self._moved:
            self._moved[key] = self.lower.to(pose), self.upper.to(pose)
        lower, upper = self._moved[key]
        return angle - torch.clamp(angle, lower, upper)

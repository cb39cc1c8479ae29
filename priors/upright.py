"""UprightPrior: how a body in some pose stands to gravity."""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fitkit import geometry
from fitkit.objectives.base import Objective, Residual
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors.representation import numbers_of, representation

JOINTS = 21
SIX_D = representation("6d")
# Cameras are held level only so far: standard deviation of the angle between "up" in the photo and up, degrees.
TILT = 12.0


class UprightPrior(Objective):
    """Where up is, given the pose: people who stand do so upright, those who bend forward lean forward.

    A joint prior of pose and orientation to gravity, `p(pose) p(up | pose)`, of which this is the second factor: the
    world's up in the pelvis' frame is normal around a linear function of the pose. It knows nothing of the heading. In
    a photo it settles which of two mirrored leans is meant, which 2D keypoints leave open.

    Args:
        up: direction of up in the camera's frame; the default is a camera that is held level.
        tilt: standard deviation of what `up` is wrong by, degrees.
        weights: `.safetensors` of `fitkit.priors.moments.fit_upright`; None for those that ship.

    Raises:
        ValueError: an `up` of no direction, or a tilt that is not positive.
    """

    name = "upright"

    def __init__(
        self,
        up: tuple[float, float, float] = (0.0, -1.0, 0.0),
        tilt: float = TILT,
        weights: str | Path | None = None,
    ) -> None:
        length = math.sqrt(sum(value * value for value in up))
        if len(up) != 3 or not 0 < length < math.inf:
            raise ValueError(f"up {up}, expected the three numbers of a direction")
        if not 0 < tilt < math.inf:
            raise ValueError(f"tilt {tilt}, expected degrees above 0")
        tables = _load(None if weights is None else str(weights))
        self.up = torch.tensor([value / length for value in up], dtype=torch.float64)
        spread = tables["covariance"] + math.radians(tilt) ** 2 * torch.eye(3, dtype=torch.float64)
        white = torch.linalg.inv(torch.linalg.cholesky(spread))
        slope = white @ tables["slope"]
        # The rows are linear in the nine numbers of the root's rotation and the 6D ones of the pose.
        here = torch.einsum("i,rj->ijr", self.up, white).flatten(0, 1)
        rows = torch.cat([here, -slope.mT])
        self._tables = -(white @ tables["offset"]), rows, self.up, slope, white
        self._moved: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        offset, rows = self._like(pred.body_pose)[:2]
        pose = numbers_of(pred, "body_pose", JOINTS, SIX_D)
        both = torch.cat([pred.global_orient.flatten(1), pose], 1)
        return Residual(torch.addmm(offset, both, rows)[..., None])

    def jacobian(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B 3 1 D"]:
        pose, blocks = pred.body_pose, pred.blocks
        _, _, up, slope, white = self._like(pose)
        rows = pose.new_zeros(len(pose), 3, max(block.stop for block in blocks.values()))
        if "global_orient" in blocks:
            # (R exp(w))^T up = exp(-w) R^T up, which moves by (R^T up) x w.
            rows[:, :, blocks["global_orient"]] = white @ geometry.hat(pred.global_orient[:, 0].mT @ up)
        if "body_pose" in blocks:
            each = slope.view(3, JOINTS, 6).transpose(0, 1)
            turned = each @ geometry.to_6d_jacobian(pose[:, :JOINTS])
            start = blocks["body_pose"].start
            rows[:, :, start : start + 3 * JOINTS] = -turned.transpose(1, 2).flatten(2)
        return rows[:, :, None]

    def _like(self, other: Tensor) -> tuple[Tensor, ...]:
        key = (other.dtype, other.device)
        if key not in self._moved:
            with torch.inference_mode(False):  # kept: no later gradient could go through an inference tensor
                self._moved[key] = tuple(table.to(other.device, other.dtype) for table in self._tables)
        return self._moved[key]


@cache
def _load(path: str | None) -> dict[str, Tensor]:
    if path is None:
        raw = files("fitkit.priors.data").joinpath("upright.safetensors").read_bytes()
    else:
        raw = Path(path).read_bytes()
    try:
        tensors = {name: tensor.double() for name, tensor in load(raw).items()}
    except SafetensorError as error:
        raise ValueError(f"upright prior {path or '(shipped)'}: no safetensors file ({error})") from error
    expected = {"slope": (3, 6 * JOINTS), "offset": (3,), "covariance": (3, 3)}
    for name, shape in expected.items():
        got = tuple(tensors[name].shape) if name in tensors else None
        if got != shape:
            raise ValueError(f"upright prior {path or '(shipped)'}: {name} has shape {got}, expected {shape}")
    return tensors

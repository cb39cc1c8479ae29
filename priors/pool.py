"""PooledPrior: several pose priors as one term."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.objectives.base import Objective, Residual
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors.pose import PosePrior


class PooledPrior(Objective):
    """The weighted sum of what several pose priors say of one block: a logarithmic opinion pool.

    It is one term, so that it takes the place of a single prior wherever one is named.

    Args:
        priors: at their weights, over the same block.

    Raises:
        ValueError: no priors, or priors of different blocks.

    Example:
        >>> from fitkit.priors import flow_prior, gaussian_prior
        >>> PooledPrior(0.5 * flow_prior(), 0.5 * gaussian_prior())
        1 * pose_prior
    """

    def __init__(self, *priors: PosePrior) -> None:
        blocks = {prior.block for prior in priors}
        if len(blocks) != 1:
            raise ValueError(f"a pool of priors over {sorted(blocks)}, expected one or more over one block")
        self.priors = priors
        self.name, self.block = priors[0].name, priors[0].block

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        rows = [math.sqrt(prior.weight) * prior.residual(pred, obs).rows for prior in self.priors]
        return Residual(torch.cat(rows, 1))

    def closed_normal(
        self, pred: Prediction, obs: Observation, residual: Residual
    ) -> tuple[Tensor, Tensor] | None:
        if self.kernel is not None:
            return None
        each = [prior.closed_normal(pred, obs, residual) for prior in self.priors]
        parts = [part for part in each if part is not None]
        if len(parts) < len(each):
            return None
        gradient, hessian = parts[0]
        for slope, curvature in parts[1:]:
            gradient.add_(slope)
            hessian.add_(curvature)
        return gradient.mul_(self.weight), hessian.mul_(self.weight)

    def mean_pose(self) -> Float[Tensor, "J 3 3"]:
        """Where a fit starts: that of the last prior."""
        return self.priors[-1].mean_pose()

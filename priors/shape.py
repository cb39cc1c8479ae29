"""Shape prior: the population's own distribution of betas."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.objectives.base import Objective, Residual
from fitkit.observation import Observation
from fitkit.prediction import Prediction


class ShapePrior(Objective):
    """Negative log-likelihood of unit-normal betas, `|beta|^2 / 2` (SMPLify, Bogo et al., ECCV 2016, eq. 8)."""

    name = "shape_prior"
    block = "betas"

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        return Residual(pred.betas[..., None])

    def jacobian(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B S 1 S"]:
        people, count = pred.betas.shape
        eye = torch.eye(count, dtype=pred.betas.dtype, device=pred.betas.device)
        return eye[:, None].expand(people, -1, -1, -1)

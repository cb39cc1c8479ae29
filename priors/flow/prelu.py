"""PReLUFlow: the low-capacity flow of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fitkit.priors.density import Flow

LAYERS = 5


class PReLUFlow(Flow):
    """FC-PReLU x 4 + FC (Zanfir et al., ECCV 2020, supplement, section 1): 95,914 parameters for 138 numbers.

    As there, the layers act from latent to pose, so that generating a pose inverts nothing; a likelihood inverts
    them. The slopes of the PReLUs, one per layer, stay positive as exponentials. The log-determinant is piecewise
    constant: a fit lowers `|z|^2 / 2`.

    Args:
        size: D.
    """

    kind = "prelu-flow"
    constant: Tensor
    inverse: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size)
        noise = 0.01 * torch.randn(LAYERS, size, size)
        self.weight = nn.Parameter(torch.eye(size) + noise)
        self.bias = nn.Parameter(torch.zeros(LAYERS, size))
        self.log_slope = nn.Parameter(torch.zeros(LAYERS - 1))
        self.register_buffer("constant", torch.zeros(()), persistent=False)
        self.register_buffer("inverse", torch.eye(size).repeat(LAYERS, 1, 1), persistent=False)

    def settings(self) -> dict[str, int]:
        return {"size": self.size}

    def derive(self) -> None:
        self.inverse.copy_(torch.linalg.inv(self.weight.double()))
        self.constant.copy_(-torch.linalg.slogdet(self.weight.double())[1].sum())

    @torch.no_grad()
    def _start(self, mean: Tensor, factor: Tensor, x: Tensor) -> None:
        self.weight[-1].copy_(factor)
        self.bias[-1].copy_(mean)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            inverse, constant = torch.linalg.inv(self.weight), -torch.linalg.slogdet(self.weight)[1].sum()
        else:
            inverse, constant = self.inverse, self.constant
        volume = constant.expand(len(x))
        for layer in reversed(range(LAYERS)):
            if layer < LAYERS - 1:
                below = x < 0
                x = torch.where(below, x * (-self.log_slope[layer]).exp(), x)
                volume = volume - below.sum(1) * self.log_slope[layer]
            x = (x - self.bias[layer]) @ inverse[layer].mT
        return x, volume

    def decode(self, z: Tensor) -> Tensor:
        for layer in range(LAYERS):
            z = z @ self.weight[layer].mT + self.bias[layer]
            if layer < LAYERS - 1:
                z = torch.where(z < 0, z * self.log_slope[layer].exp(), z)
        return z

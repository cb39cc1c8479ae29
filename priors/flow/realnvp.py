"""RealNVP: the larger flow of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from zuko.flows.coupling import GeneralCouplingTransform

from fitkit.priors.density import Flow

COUPLINGS = 4
HIDDEN = (128, 128)


class RealNVP(Flow):
    """Real-NVP steps between full linear layers (Zanfir et al., ECCV 2020, supplement, section 1).

    The paper prints the larger version as "FC138-RNVP-FC128-Tanh-FC128-Tanh-FC69", in which "the PReLU activation
    unit [is replaced] with a Real-NVP step". A chain that really narrows from 138 to 69 could not be inverted, so
    it is read as: the low-capacity chain of five FC138 with a Real-NVP step (Dinh et al., ICLR 2017) in place of
    each of its four PReLUs, and FC128-Tanh-FC128-Tanh-FC69 the network inside a step, whose 69 outputs are half of
    the 138 numbers: 69 stretches and 69 shifts from one trunk here. Steps are zuko's; the layers act from pose to
    latent, since a Real-NVP step is as cheap either way and a likelihood then inverts nothing.

    Args:
        size: D.
    """

    kind = "real-nvp"
    smooth = True
    constant: Tensor
    inverse: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.weight = nn.Parameter(torch.eye(size).repeat(COUPLINGS + 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(COUPLINGS + 1, size))
        self.steps = nn.ModuleList(
            GeneralCouplingTransform(
                size,
                mask=(torch.arange(size) < size // 2) == (step % 2 == 0),
                hidden_features=HIDDEN,
                activation=nn.Tanh,
            )
            for step in range(COUPLINGS)
        )
        self.register_buffer("constant", torch.zeros(()), persistent=False)
        self.register_buffer("inverse", torch.eye(size).repeat(COUPLINGS + 1, 1, 1), persistent=False)

    def settings(self) -> dict[str, int]:
        return {"size": self.size}

    def derive(self) -> None:
        self.inverse.copy_(torch.linalg.inv(self.weight.double()))
        self.constant.copy_(torch.linalg.slogdet(self.weight.double())[1].sum())

    @torch.no_grad()
    def _start(self, mean: Tensor, factor: Tensor, x: Tensor) -> None:
        """The Gaussian of the vectors, its numbers mixed at random between the steps, which begin as identities."""
        turns = torch.linalg.qr(torch.randn(COUPLINGS + 1, self.size, self.size, dtype=factor.dtype))[0]
        whitening = torch.linalg.inv(factor)
        turns[0] = turns[0] @ whitening
        self.weight.copy_(turns)
        self.bias[0].copy_(-turns[0] @ mean)
        for step in self.steps:
            for parameter in step.hyper[-1].parameters():  # type: ignore[index, union-attr]
                parameter.zero_()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        constant = torch.linalg.slogdet(self.weight)[1].sum() if self.training else self.constant
        volume = constant.expand(len(x))
        for layer, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = x @ weight.mT + bias
            if layer < COUPLINGS:
                x, stretched = self.steps[layer]().call_and_ladj(x)
                volume = volume + stretched
        return x, volume

    def decode(self, z: Tensor) -> Tensor:
        inverse = torch.linalg.inv(self.weight) if self.training else self.inverse
        for layer in reversed(range(COUPLINGS + 1)):
            if layer < COUPLINGS:
                z = self.steps[layer]().inv(z)
            z = (z - self.bias[layer]) @ inverse[layer].mT
        return z

"""JointFlow: every joint warped by a small Real-NVP of its own, then one linear layer over all of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fitkit.priors.density import FLOOR, Flow, Quadratic

# Bound on how much one coupling may stretch a number (as a logarithm): nothing explodes far from the data.
STRETCH = 1.5


class JointFlow(Flow):
    """Real-NVP steps within each joint, and a full linear layer that ties the joints together.

    A step is a learned linear mix of a joint's numbers and an affine coupling (Dinh et al., ICLR 2017, eq. 7, 8): one
    part moves the other by a network of one hidden layer. What a joint can do (a hinge, its stop) is the same for
    all people and is learned from few of them; what goes together is left to a covariance. Measured on subjects
    that training never saw, couplings across joints only overfit.

    Args:
        joints: J.
        width: numbers per joint.
        couplings: steps per joint.
        hidden: units of each network.
    """

    kind = "joint-flow"
    smooth = True
    origin: Tensor
    constant: Tensor
    unmix: Tensor
    inverse: Tensor
    gram: Tensor
    paths: Tensor

    def __init__(self, joints: int, width: int, couplings: int = 4, hidden: int = 16) -> None:
        super().__init__(joints * width)
        self.joints, self.width, self.hidden = joints, width, hidden
        self.held = width // 2
        moved = width - self.held
        self.register_buffer("origin", torch.zeros(joints, 1, width))
        self.mix = nn.Parameter(torch.eye(width).repeat(couplings, joints, 1, 1))
        self.first = nn.Parameter(torch.randn(couplings, joints, self.held, hidden) / self.held**0.5)
        self.first_bias = nn.Parameter(torch.zeros(couplings, joints, 1, hidden))
        self.second = nn.Parameter(torch.zeros(couplings, joints, hidden, 2 * moved))
        self.second_bias = nn.Parameter(torch.zeros(couplings, joints, 1, 2 * moved))
        self.weight = nn.Parameter(torch.eye(self.size))
        self.bias = nn.Parameter(torch.zeros(self.size))
        self.register_buffer("constant", torch.zeros(()), persistent=False)
        self.register_buffer("unmix", self.mix.detach().clone(), persistent=False)
        self.register_buffer("inverse", torch.eye(self.size), persistent=False)
        self.register_buffer("gram", torch.eye(self.size), persistent=False)
        self.register_buffer("paths", self._paths(), persistent=False)

    def settings(self) -> dict[str, int]:
        return {
            "joints": self.joints,
            "width": self.width,
            "couplings": len(self.mix),
            "hidden": self.hidden,
        }

    def derive(self) -> None:
        self.constant.copy_(self._constant())
        self.unmix.copy_(torch.linalg.inv(self.mix.double()))
        self.inverse.copy_(torch.linalg.inv(self.weight.double()))
        self.gram.copy_(self.weight.mT @ self.weight)
        self.paths.copy_(self._paths())

    @torch.no_grad()
    def _start(self, mean: Tensor, factor: Tensor, x: Tensor) -> None:
        """Every joint white and its numbers mixed at random, and all of them white together."""
        covariance = (factor @ factor.mT).view(self.joints, self.width, self.joints, self.width)
        own = torch.linalg.cholesky(covariance.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        turns = torch.linalg.qr(torch.randn(self.mix.shape, dtype=own.dtype))[0]
        turns[0] = turns[0] @ torch.linalg.inv(own)
        self.mix.copy_(turns)
        self.origin.copy_(mean.view(self.joints, 1, self.width))
        self.weight.copy_(torch.eye(self.size))
        warped = self._warp(x.to(self.mix.dtype))[0].transpose(0, 1).flatten(1)
        self.weight.copy_(torch.linalg.inv(torch.linalg.cholesky(torch.cov(warped.double().mT))))

    def _paths(self) -> Tensor:
        """`(couplings, J, hidden, held * outputs)`: weight of every way through the network, by hidden unit."""
        return (self.first.detach().mT[..., None] * self.second.detach()[..., None, :]).flatten(-2)

    def _constant(self) -> Tensor:
        """The part of the log-determinant that does not depend on x."""
        return torch.linalg.slogdet(self.mix)[1].sum() + torch.linalg.slogdet(self.weight)[1]

    def _warp(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Warped numbers `(J, B, w)` and the log-determinant of the warp without its constant part."""
        numbers = x.view(len(x), self.joints, self.width).transpose(0, 1) - self.origin
        volume = x.new_zeros(len(x))
        for step, mix in enumerate(self.mix):
            held, moved = (numbers @ mix.mT).tensor_split([self.held], -1)
            stretch, shift = self._coupling(step, held)[1:]
            numbers = torch.cat([held, moved * stretch.exp() + shift], -1)
            volume = volume + stretch.sum((0, 2))
        return numbers, volume

    def _coupling(self, step: int, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden units, logarithm of the stretch and shift that one part of the numbers gives the other."""
        units = torch.tanh(torch.baddbmm(self.first_bias[step], held, self.first[step]))
        stretch, shift = torch.baddbmm(self.second_bias[step], units, self.second[step]).chunk(2, -1)
        return units, STRETCH * torch.tanh(stretch / STRETCH), shift

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        numbers, volume = self._warp(x)
        constant = self._constant() if self.training else self.constant
        return numbers.transpose(0, 1).flatten(1) @ self.weight.mT + self.bias, volume + constant

    def decode(self, z: Tensor) -> Tensor:
        shifted = z - self.bias
        mixed = torch.linalg.solve(self.weight, shifted.mT).mT if self.training else shifted @ self.inverse.mT
        numbers = mixed.view(len(z), self.joints, self.width).transpose(0, 1)
        unmix = torch.linalg.inv(self.mix) if self.training else self.unmix
        for step in reversed(range(len(unmix))):
            held, moved = numbers.tensor_split([self.held], -1)
            _, stretch, shift = self._coupling(step, held)
            numbers = torch.cat([held, (moved - shift) * (-stretch).exp()], -1) @ unmix[step].mT
        return (numbers + self.origin).transpose(0, 1).flatten(1)

    def warp_jacobian(
        self, x: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B J w"], Float[Tensor, "B J w w"], Float[Tensor, "B J w"], Float[Tensor, " B"]]:
        """Warped numbers, their derivative joint by joint, the log-determinant's gradient and the log-determinant."""
        joints, people, width, held = self.joints, len(x), self.width, self.held
        # The numbers of a joint and one tangent direction for each of them go through the linear layers together.
        both = x.new_zeros(joints, people, 1 + width, width)
        both[:, :, 0] = x.view(people, joints, width).transpose(0, 1) - self.origin
        both[:, :, 1:].diagonal(dim1=2, dim2=3).fill_(1.0)
        stretches, slopes = [], []
        for step, mix in enumerate(self.mix):
            both = torch.bmm(both.view(joints, -1, width), mix.mT).view(joints, people, 1 + width, width)
            here, moved = both[..., :held], both[..., held:]
            units, stretch, shift = self._coupling(step, here[:, :, 0])
            # How the network's outputs move with its inputs: one product, since only the units' slopes differ.
            rate = torch.bmm(1 - units * units, self.paths[step]).view(joints * people, held, -1)
            along = torch.bmm(here[:, :, 1:].reshape(joints * people, width, held), rate)
            stretch_along, shift_along = along.view(joints, people, width, -1).chunk(2, -1)
            stretch_along = stretch_along * (1 - (stretch / STRETCH) ** 2)[:, :, None]
            moved = moved * stretch.exp()[:, :, None]
            moved[:, :, 1:].addcmul_(moved[:, :, :1], stretch_along).add_(shift_along)
            moved[:, :, 0] += shift
            both = torch.cat([here, moved], -1)
            stretches.append(stretch)
            slopes.append(stretch_along)
        numbers, blocks = both[:, :, 0].transpose(0, 1), both[:, :, 1:].transpose(0, 1).mT
        slope = torch.cat(slopes, -1).sum(-1).transpose(0, 1)
        return numbers, blocks, slope, torch.cat(stretches, -1).sum((0, 2)) + self.constant

    def quadratic(self, x: Tensor) -> Quadratic:
        """In closed form: Gauss-Newton of the latent numbers, exact gradient of them and of the log-determinant."""
        numbers, blocks, slope, volume = self.warp_jacobian(x)
        z = numbers.flatten(1) @ self.weight.mT + self.bias
        pulled = (blocks.mT @ (z @ self.weight).view(*numbers.shape, 1))[..., 0]
        gradient = pulled - slope * (self.ceiling - volume > FLOOR / 2)[:, None, None]
        return Quadratic(self._rows(z, volume), gradient.flatten(1), self.gram, blocks)

    def jacobian(self, x: Tensor) -> Tensor:
        blocks = self.warp_jacobian(x)[1]
        weight = self.weight.view(self.size, self.joints, self.width)
        return torch.einsum("djw,bjwv->bdjv", weight, blocks).flatten(2)

    def decode_jacobian(self, z: Tensor) -> Tensor:
        blocks = torch.linalg.inv(self.warp_jacobian(self.decode(z))[1])
        inverse = self.inverse.view(self.joints, self.width, self.size)
        return torch.einsum("bjvw,jwd->bjvd", blocks, inverse).flatten(1, 2)

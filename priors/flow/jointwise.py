"""JointFlow: every joint warped by a small Real-NVP of its own, then one linear layer over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from fitkit.priors.density import FLOOR, Flow, Quadratic

F = TypeVar("F", bound="JointFlow")
# Bound on how much one coupling may stretch a number (as a logarithm): nothing explodes far from the data.
STRETCH = 1.5


class _Step(NamedTuple):
    """A step's layers, `(J, outputs, inputs)`, and biases `(J, outputs, 1)`; the stretch in units of its bound."""

    mix: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor

    def coupling(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden units, logarithm of the stretch and shift; both are zero for the numbers that are held."""
        units = torch.baddbmm(self.first_bias, self.first, numbers).tanh_()
        stretch, shift = torch.baddbmm(self.second_bias, self.second, units).chunk(2, 1)
        return units, STRETCH * stretch.tanh(), shift


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
        self.parts = [self.held, moved]
        self._kept: list[_Step] | None = None
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
        self._kept = None
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
        self._kept = None
        warped = self._warp(x.to(self.mix.dtype))[0].flatten(0, 1)
        self.weight.copy_(torch.linalg.inv(torch.linalg.cholesky(torch.cov(warped.double()))))

    def _paths(self) -> Tensor:
        """`(couplings, J, held * outputs, hidden)`: weight of every way through the network, by hidden unit."""
        first, second = self.first.detach(), self.second.detach().mT
        return (first[:, :, :, None] * second[:, :, None]).flatten(2, 3)

    def _constant(self) -> Tensor:
        """The part of the log-determinant that does not depend on x."""
        return torch.linalg.slogdet(self.mix)[1].sum() + torch.linalg.slogdet(self.weight)[1]

    def _steps(self) -> list[_Step]:
        """The couplings; kept as soon as nothing is trained any more."""
        if self.training or self.mix.requires_grad:
            return self._take_steps()
        if self._kept is None:
            with torch.inference_mode(False):  # kept: no later gradient could go through an inference tensor
                self._kept = self._take_steps()
        return self._kept

    def _take_steps(self) -> list[_Step]:
        """Networks of all numbers of a joint: they read nothing of the part that moves, and leave the other alone."""
        held, moved = self.parts
        stretch, shift = (pad(part, (held, 0)) for part in self.second.chunk(2, -1))
        stretch_bias, shift_bias = (pad(part, (held, 0)) for part in self.second_bias.chunk(2, -1))
        layers = (
            self.mix,
            pad(self.first.mT, (0, moved)),
            self.first_bias.mT,
            torch.cat([stretch / STRETCH, shift], -1).mT.contiguous(),
            torch.cat([stretch_bias / STRETCH, shift_bias], -1).mT,
        )
        return [_Step(*each) for each in zip(*(layer.unbind() for layer in layers), strict=True)]

    def _apply(self: F, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> F:
        """Every move to another dtype or device comes through here, and takes the tensors from under what is kept."""
        self._kept = None
        moved: F = super()._apply(fn, recurse)
        return moved

    def _split(self, x: Tensor) -> Tensor:
        """`(J, w, B)`: the people last, so that parts of a joint's numbers lie in one piece."""
        return x.view(len(x), self.joints, self.width).permute(1, 2, 0)

    def _warp(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Warped numbers `(J, w, B)` and the log-determinant of the warp without its constant part."""
        numbers, stretches = self._split(x) - self.origin.mT, []
        for step in self._steps():
            numbers = torch.bmm(step.mix, numbers)
            _, stretch, shift = step.coupling(numbers)
            numbers = torch.addcmul(shift, numbers, stretch.exp())
            stretches.append(stretch)
        return numbers, torch.cat(stretches).sum((0, 1))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        numbers, volume = self._warp(x)
        constant = self._constant() if self.training else self.constant
        return torch.addmm(self.bias, numbers.flatten(0, 1).mT, self.weight.mT), volume + constant

    def decode(self, z: Tensor) -> Tensor:
        shifted = z - self.bias
        mixed = torch.linalg.solve(self.weight, shifted.mT).mT if self.training else shifted @ self.inverse.mT
        numbers = self._split(mixed)
        unmix = torch.linalg.inv(self.mix) if self.training else self.unmix
        for step, back in zip(reversed(self._steps()), unmix.flip(0), strict=True):
            _, stretch, shift = step.coupling(numbers)
            numbers = torch.bmm(back, (numbers - shift) * (-stretch).exp())
        return (numbers + self.origin.mT).flatten(0, 1).mT

    def warp_jacobian(
        self, x: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B J w"], Float[Tensor, "B J w w"], Float[Tensor, "B J w"], Float[Tensor, " B"]]:
        """Warped numbers, their derivative joint by joint, the log-determinant's gradient and the log-determinant."""
        joints, people, width = self.joints, len(x), self.width
        # The numbers of a joint and one tangent direction for each of them go through the linear layers together.
        both = x.new_zeros(joints, width, 1 + width, people)
        both[:, :, 0] = self._split(x) - self.origin.mT
        both[:, :, 1:].diagonal(dim1=1, dim2=2).fill_(1.0)
        stretches, slopes = [], []
        for step, paths in zip(self._steps(), self.paths, strict=True):
            both = torch.bmm(step.mix, both.flatten(2)).view_as(both)
            here, moved = both.split_with_sizes(self.parts, 1)
            units, stretch, shift = step.coupling(both[:, :, 0])
            stretch, shift = stretch[:, self.held :], shift[:, self.held :]
            # How the network's outputs move with its inputs: one product, since only the units' slopes differ.
            rate = torch.bmm(paths, 1 - units * units).view(joints, self.held, -1, 1, people)
            along = (rate * here[:, :, None, 1:]).sum(1)
            stretch_along, shift_along = along.chunk(2, 1)
            stretch_along = stretch_along * (1 - (stretch / STRETCH) ** 2)[:, :, None]
            moved = moved * stretch.exp()[:, :, None]
            moved[:, :, 1:].addcmul_(moved[:, :, :1], stretch_along).add_(shift_along)
            moved[:, :, 0] += shift
            both = torch.cat([here, moved], 1)
            stretches.append(stretch)
            slopes.append(stretch_along)
        numbers, blocks = both[:, :, 0].permute(2, 0, 1), both[:, :, 1:].permute(3, 0, 1, 2)
        slope = torch.cat(slopes, 1).sum(1).permute(2, 0, 1)
        return numbers, blocks, slope, torch.cat(stretches).sum((0, 1)) + self.constant

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

"""Densities over plain vectors: what every pose prior stands on, whatever the vector means."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

D = TypeVar("D", bound="Density")
FLOOR = 1e-12  # under the root of the row of the volume
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Quadratic:
    """What a second-order solver needs of half the squares of a density's rows, at x.

    Attributes:
        rows: `(B, R)` at x.
        gradient: `(B, D)`, exact.
        precision: `(D, D)` or `(B, D, D)`: positive semidefinite curvature, before `blocks`.
        blocks: `(B, J, w, w)`: derivative of each joint's warped numbers, where the density warps joint by joint; the
            curvature is then `blocks^T precision blocks`.
    """

    rows: Float[Tensor, "B R"]
    gradient: Float[Tensor, "B D"]
    precision: Tensor
    blocks: Float[Tensor, "B J w w"] | None = None


@torch.no_grad()
def _derive_after_load(density: nn.Module, _: object) -> None:
    assert isinstance(density, Density)
    density.derive()


class Density(nn.Module, ABC):
    """A probability density over vectors of `size` numbers.

    Attributes:
        kind: name of the architecture, in files of weights.
        size: D.
    """

    kind: str
    size: int

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_load_state_dict_post_hook(_derive_after_load)

    def derive(self) -> None:
        """Recompute what is made of the parameters (inverses, determinants) and kept outside training."""

    def train(self: D, mode: bool = True) -> D:
        """Training mode; leaving it derives what does not change any more."""
        super().train(mode)
        if not mode:
            with torch.no_grad():
                self.derive()
        return self

    @abstractmethod
    def log_prob(self, x: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Natural logarithm of the density."""

    def loss(self, x: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """What training lowers: nats per number."""
        return -self.log_prob(x).mean() / self.size

    @abstractmethod
    def rows(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B R"]:
        """Residuals, half of whose squares a fit lowers: `-log_prob` up to a constant, where that is smooth."""

    @abstractmethod
    def quadratic(self, x: Float[Tensor, "B D"]) -> Quadratic:
        """`rows`, and gradient and curvature of half their squares."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count D"]:
        """Draws from the density."""

    @abstractmethod
    def centre(self) -> Float[Tensor, " D"]:
        """A likely vector, where a fit may start."""

    @abstractmethod
    def settings(self) -> dict[str, int]:
        """Arguments of the constructor that are not in the tensors: with `state_dict` they are the density."""

    def _normal(self, count: int, size: int, generator: torch.Generator | None) -> Tensor:
        """Unit normal numbers, in the dtype and on the device of the density."""
        like = next(self.buffers())
        where = like.device if generator is None else generator.device
        return torch.randn(count, size, generator=generator, dtype=like.dtype, device=where).to(like.device)


class Flow(Density):
    """An invertible, differentiable map from vectors to unit normal ones: `z = f(x)`.

    `log p(x) = log N(f(x)) + log |det df/dx|` (Rezende and Mohamed, ICML 2015, eq. 5).

    Attributes:
        smooth: whether the log-determinant has a useful gradient. Then it counts in a fit; where it is piecewise
            constant (PReLU) or constant (linear) it cannot, and a fit lowers `|z|^2 / 2` alone.
        ceiling: of the log-determinant over the motion behind the density; the row of the volume is zero there.
        mean: `(D,)` of the motion behind the density.
        precision: `(D, D)` of the same, inverse of its covariance: the curvature that a fit assumes.
    """

    smooth: bool = False
    mean: Tensor
    ceiling: Tensor
    precision: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("ceiling", torch.zeros(()))
        self.register_buffer("precision", torch.eye(size))

    @abstractmethod
    def encode(self, x: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        """Latent numbers and the log-determinant of their derivative."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The inverse of `encode`."""

    def log_prob(self, x: Tensor) -> Tensor:
        z, volume = self.encode(x)
        return volume - 0.5 * (z * z).sum(-1) - self.size * HALF_LOG_TAU

    def rows(self, x: Tensor) -> Tensor:
        """Latent numbers, and where the flow is smooth `sqrt(2 (ceiling - log-determinant))` as one row more."""
        return self._rows(*self.encode(x))

    def _rows(self, z: Tensor, volume: Tensor) -> Tensor:
        if not self.smooth:
            return z
        return torch.cat([z, (2 * (self.ceiling - volume)).clamp_min(FLOOR).sqrt()[:, None]], 1)

    def quadratic(self, x: Tensor) -> Quadratic:
        """The gradient is exact; the curvature that of the Gaussian of the same motion, near enough and far cheaper."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_(True)
            rows = self.rows(x)
            (gradient,) = torch.autograd.grad(0.5 * (rows * rows).sum(), x)
        return Quadratic(rows.detach(), gradient, self.precision)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return self.decode(self._normal(count, self.size, generator))

    def centre(self) -> Tensor:
        """The mean of the motion: measured, a better start than the pose of latent zero."""
        return self.mean

    def jacobian(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
        """Derivative of the latent numbers: row by latent number, column by x."""
        return batched_jacobian(lambda x: self.encode(x)[0], x)

    def decode_jacobian(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
        """Derivative of `decode`."""
        return batched_jacobian(self.decode, z)

    def start_from(self, x: Float[Tensor, "N D"]) -> None:
        """Begin as the Gaussian of these vectors, from where training goes on.

        Raises:
            ValueError: too few vectors, or too much alike, for a covariance.
        """
        if len(x) <= self.size:
            raise ValueError(f"{len(x)} vectors of {self.size} numbers, expected more vectors than numbers")
        mean, covariance = x.double().mean(0), torch.cov(x.double().mT)
        self.mean.copy_(mean)
        self.precision.copy_(torch.linalg.inv(covariance))
        self._start(mean, torch.linalg.cholesky(covariance), x)
        with torch.no_grad():
            self.derive()

    @abstractmethod
    def _start(self, mean: Tensor, factor: Tensor, x: Tensor) -> None: ...


class Gaussian(Flow):
    """Normal distribution with full covariance: the linear flow `z = L^-1 (x - mean)` of its Cholesky factor L."""

    kind = "gaussian"
    factor: Tensor
    whitening: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("factor", torch.eye(size))
        self.register_buffer("whitening", torch.eye(size), persistent=False)

    @classmethod
    def of(cls, mean: Float[Tensor, " D"], covariance: Float[Tensor, "D D"]) -> Gaussian:
        """Of moments; the covariance must be positive definite."""
        density = cls(len(mean)).double()
        density.mean.copy_(mean)
        density._start(mean, torch.linalg.cholesky(covariance.double()), mean)
        return density.eval()

    def _start(self, mean: Tensor, factor: Tensor, x: Tensor) -> None:
        self.factor.copy_(factor)

    def derive(self) -> None:
        eye = torch.eye(self.size, dtype=torch.float64, device=self.factor.device)
        whitening = torch.linalg.solve_triangular(self.factor.double(), eye, upper=False)
        self.whitening.copy_(whitening)
        self.precision.copy_(whitening.mT @ whitening)

    def settings(self) -> dict[str, int]:
        return {"size": self.size}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = self.whitening.diagonal().log().sum()
        return self.rows(x), volume.expand(len(x))

    def rows(self, x: Tensor) -> Tensor:
        return torch.mm(x - self.mean, self.whitening.mT)

    def decode(self, z: Tensor) -> Tensor:
        return self.mean + z @ self.factor.mT

    def jacobian(self, x: Tensor) -> Tensor:
        return self.whitening.expand(len(x), -1, -1)

    def decode_jacobian(self, z: Tensor) -> Tensor:
        return self.factor.expand(len(z), -1, -1)

    def quadratic(self, x: Tensor) -> Quadratic:
        return Quadratic(self.rows(x), (x - self.mean) @ self.precision, self.precision)


def batched_jacobian(function: Callable[[Tensor], Tensor], x: Float[Tensor, "B D"]) -> Float[Tensor, "B R D"]:
    """Of a batched function that treats every row alike, by automatic differentiation."""
    derivative: Tensor = torch.func.vmap(torch.func.jacrev(lambda row: function(row[None])[0]))(x)
    return derivative

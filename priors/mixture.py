"""Mixture of Gaussians, with SMPLify's way of lowering it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.priors.density import HALF_LOG_TAU, Density, Quadratic


class GaussianMixture(Density):
    """`p(x) = sum_k w_k N(x; mu_k, S_k)`, full covariances.

    A fit lowers the best part's `-log(w_k N_k)` (SMPLify, Bogo et al., ECCV 2016, eq. 7), an upper bound of
    `-log p` that has rows.

    Args:
        parts: K.
        size: D.
    """

    kind = "mixture"
    log_share: Tensor
    mean: Tensor
    factor: Tensor
    whitening: Tensor
    height: Tensor

    def __init__(self, parts: int, size: int) -> None:
        super().__init__(size)
        self.register_buffer("log_share", torch.zeros(parts))
        self.register_buffer("mean", torch.zeros(parts, size))
        self.register_buffer("factor", torch.eye(size).repeat(parts, 1, 1))
        self.register_buffer("whitening", torch.eye(size).repeat(parts, 1, 1), persistent=False)
        self.register_buffer("height", torch.zeros(parts), persistent=False)

    @classmethod
    def of(
        cls, shares: Float[Tensor, " K"], means: Float[Tensor, "K D"], covariances: Float[Tensor, "K D D"]
    ) -> GaussianMixture:
        """Of its parts."""
        density = cls(*means.shape).double()
        density.log_share.copy_(shares.log())
        density.mean.copy_(means)
        density.factor.copy_(torch.linalg.cholesky(covariances.double()))
        return density.eval()

    def derive(self) -> None:
        """What is made of the factors: their inverses, and each part's log-density at its mean."""
        factor = self.factor.double()
        eye = torch.eye(self.size, dtype=factor.dtype, device=factor.device).expand_as(factor)
        self.whitening.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))
        volume = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        self.height.copy_(self.log_share.double() - volume - self.size * HALF_LOG_TAU)

    def settings(self) -> dict[str, int]:
        return {"parts": len(self.mean), "size": self.size}

    def _white(self, x: Tensor) -> Tensor:
        return torch.einsum("kde,bke->bkd", self.whitening, x[:, None] - self.mean)

    def heights(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Logarithm of each part's share in the density."""
        return self.height - 0.5 * self._white(x).square().sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.logsumexp(self.heights(x), 1)

    def _best(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened numbers in the best part, and which it is."""
        white = self._white(x)
        best = (self.height - 0.5 * (white * white).sum(-1)).argmax(1)
        return white[torch.arange(len(x), device=x.device), best], best

    def rows(self, x: Tensor) -> Tensor:
        """Whitened numbers in the best part, and its distance in height from the highest one."""
        return self._rows(*self._best(x))

    def _rows(self, white: Tensor, best: Tensor) -> Tensor:
        lower = self.height.amax() - self.height
        return torch.cat([white, (2 * lower[best]).sqrt()[:, None]], 1)

    def quadratic(self, x: Tensor) -> Quadratic:
        white, best = self._best(x)
        whitening = self.whitening[best]
        gradient = (white[:, None] @ whitening)[:, 0]
        return Quadratic(self._rows(white, best), gradient, whitening.mT @ whitening)

    def centre(self) -> Tensor:
        return self.mean[self.log_share.argmax()]

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        part = torch.multinomial(
            self.log_share.exp().to("cpu" if generator is None else generator.device),
            count,
            replacement=True,
            generator=generator,
        )
        part = part.to(self.mean.device)
        normal = self._normal(count, self.size, generator)
        return self.mean[part] + torch.einsum("bde,be->bd", self.factor[part], normal)

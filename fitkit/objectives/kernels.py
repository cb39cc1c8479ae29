"""Robust kernels: what a squared residual costs, and how much it still pulls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

K = TypeVar("K", bound="Kernel")


@dataclass(frozen=True)
class Kernel(ABC):
    """rho(s) of a squared residual s, with rho(s) ~ s near zero; the cost of a row is `rho(s) / 2`.

    Attributes:
        width: residual (in the residual's unit) at which the kernel begins to give way.
    """

    width: float

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(
                f"robust kernel {type(self).__name__}: width {self.width}, expected a positive number"
            )

    def widened(self: K, factor: float) -> K:
        """The same kernel at `factor` times the width: graduated non-convexity starts wide."""
        return replace(self, width=self.width * factor)

    @abstractmethod
    def cost(self, square: Tensor) -> Tensor:
        """rho(s)."""

    @abstractmethod
    def slope(self, square: Tensor) -> Tensor:
        """rho'(s): the weight of the row in iteratively reweighted least squares."""

    @abstractmethod
    def bend(self, square: Tensor) -> Tensor:
        """rho''(s)."""


@dataclass(frozen=True)
class GMoF(Kernel):
    """Geman-McClure, `w^2 s / (w^2 + s)`: an outlier costs at most w^2 (Geman & McClure 1987; SMPLify)."""

    def cost(self, square: Tensor) -> Tensor:
        scale = self.width**2
        return scale * square / (scale + square)

    def slope(self, square: Tensor) -> Tensor:
        scale = self.width**2
        return (scale / (scale + square)) ** 2

    def bend(self, square: Tensor) -> Tensor:
        scale = self.width**2
        return -2 * scale**2 / (scale + square) ** 3


@dataclass(frozen=True)
class Huber(Kernel):
    """Quadratic up to the width, linear beyond it."""

    def cost(self, square: Tensor) -> Tensor:
        size = square.clamp_min(self.width**2).sqrt()
        return square.clamp_max(self.width**2) + 2 * self.width * (size - self.width)

    def slope(self, square: Tensor) -> Tensor:
        return self.width / square.clamp_min(self.width**2).sqrt()

    def bend(self, square: Tensor) -> Tensor:
        return -0.5 * self.width * square.clamp_min(self.width**2) ** -1.5 * (square > self.width**2)


@dataclass(frozen=True)
class L1(Kernel):
    """The absolute residual, smooth within the width: `2 w (sqrt(w^2 + s) - w)` (pseudo-Huber)."""

    def cost(self, square: Tensor) -> Tensor:
        # The difference of the roots, without their cancellation near zero.
        return 2 * self.width * square / ((square + self.width**2).sqrt() + self.width)

    def slope(self, square: Tensor) -> Tensor:
        return self.width / (square + self.width**2).sqrt()

    def bend(self, square: Tensor) -> Tensor:
        return -0.5 * self.width * (square + self.width**2) ** -1.5

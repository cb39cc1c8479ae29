"""Objective: a weighted, robust sum of residuals; sums and multiples of objectives; `@objective` for one's own."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, overload

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.objectives.kernels import Kernel
from fitkit.observation import Observation
from fitkit.prediction import Prediction

O = TypeVar("O", bound="Objective")  # noqa: E741 - the letter of the field


@dataclass(frozen=True)
class Residual:
    """Rows of a least-squares term.

    Attributes:
        rows: `(B, N, d)`: N residuals of d numbers each; the robust kernel sees the norm of the d.
        weight: `(B, N)` confidence of each, outside the kernel; None for 1.
    """

    rows: Float[Tensor, "B N d"]
    weight: Float[Tensor, "B N"] | None = None


class Objective(ABC):
    """A term of what a fit lowers: `weight * sum_n w_n rho(|r_n|^2) / 2` per person.

    Attributes:
        name: under which its value is reported.
        weight: multiplies the value, always.
        kernel: robust kernel, None for least squares.
        requires: parts of the Observation that it reads.
        reads_all: whether it may read parts of the Observation that `requires` does not name.
        block: the one block of the State that it reads, where there is only one: derivatives are in its columns.
        dense: whether it needs the whole surface: schedules leave such a term to their last stage.
    """

    name: str
    weight: float = 1.0
    kernel: Kernel | None = None
    requires: frozenset[str] = frozenset()
    reads_all: bool = False
    block: str | None = None
    dense: bool = False

    @abstractmethod
    def residual(self, pred: Prediction, obs: Observation) -> Residual | Tensor:
        """Residual rows: a `Residual`, `(B, N, d)`, `(B, R)`; or an energy `(B,)` that is never negative."""

    def jacobian(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B N d D"] | None:
        """Derivative of the rows in the columns of `pred.blocks` (of `block` alone, where the term has one).

        None leaves it to automatic differentiation.
        """
        return None

    def normal(
        self, residual: Residual, jacobian: Float[Tensor, "B N d D"], triggs: bool = False
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D D"]]:
        """Gradient and Gauss-Newton matrix of the value, from rows and their derivatives.

        Args:
            residual: rows.
            jacobian: of the rows.
            triggs: whether the kernel's own curvature enters (see `Problem.linearize`).
        """
        weight = row_weights(self, residual)
        people, count, size, unknowns = jacobian.shape
        flat = jacobian.reshape(people, count * size, unknowns)
        weighted = (jacobian * weight[..., None, None]).view_as(flat).mT
        gradient = torch.bmm(weighted, residual.rows.reshape(people, count * size, 1))[..., 0]
        hessian = torch.bmm(weighted, flat)
        if triggs and self.kernel is not None:
            along = (residual.rows[..., None] * jacobian).sum(2)
            hessian = hessian + (along * _bend(self.kernel, residual, weight)[..., None]).mT @ along
        return gradient, hessian

    def closed_normal(
        self, pred: Prediction, obs: Observation, residual: Residual
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D D"]] | None:
        """What `normal` gives, where a term knows a shorter way to it than through its Jacobian."""
        return None

    # -- arithmetic ------------------------------------------------------------------------------------------

    def terms(self) -> tuple[Objective, ...]:
        """The terms of a sum; a single objective is its own only term."""
        return (self,)

    def named(self: O, name: str) -> O:
        """The same objective under another name (a sum refuses two of one name)."""
        return self._with(name=name)

    def robust(self: O, kernel: Kernel | None) -> O:
        """The same objective with another robust kernel."""
        return self._with(kernel=kernel)

    def widened(self: O, factor: float | None) -> O:
        """The same objective with a farther reach, for the coarse stages of a schedule.

        Args:
            factor: on the width of the robust kernel; None for plain least squares.
        """
        if self.kernel is None or factor == 1.0:
            return self
        return self.robust(None if factor is None else self.kernel.widened(factor))

    def _with(self: O, **changes: Any) -> O:
        changed = copy.copy(self)
        changed.__dict__.update(changes)
        return changed

    def __mul__(self: O, factor: float) -> O:
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < float("inf"):
            raise ValueError(
                f"objective {self.name}: weight {factor!r}, expected a finite number, not negative"
            )
        return self._with(weight=self.weight * float(factor))

    __rmul__ = __mul__

    def __add__(self, other: Objective) -> Sum:
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum(self.terms() + other.terms())

    def __iter__(self) -> Iterator[Objective]:
        return iter(self.terms())

    def __repr__(self) -> str:
        robust = f", {self.kernel}" if self.kernel else ""
        return f"{self.weight:g} * {self.name}{robust}"


class Sum(Objective):
    """The sum of objectives with different names."""

    name = "sum"

    def __init__(self, terms: tuple[Objective, ...]) -> None:
        names = [term.name for term in terms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"objectives named {twice} appear twice in a sum: give one another name with .named(...)"
            )
        self._terms = terms
        self.requires = frozenset().union(*(term.requires for term in terms))

    def terms(self) -> tuple[Objective, ...]:
        return self._terms

    def residual(self, pred: Prediction, obs: Observation) -> Residual | Tensor:
        raise TypeError("a sum of objectives has no rows of its own: read those of its terms()")

    def __mul__(self, factor: float) -> Sum:
        return Sum(tuple(term * factor for term in self._terms))

    __rmul__ = __mul__

    def robust(self, kernel: Kernel | None) -> Sum:
        """The sum with this kernel on every term."""
        return Sum(tuple(term.robust(kernel) for term in self._terms))

    def named(self, name: str) -> Sum:
        raise TypeError("a sum has no name of its own: name its terms")

    def __getitem__(self, name: str) -> Objective:
        for term in self._terms:
            if term.name == name:
                return term
        raise KeyError(f"no objective {name!r} in {[term.name for term in self._terms]}")

    def without(self, *names: str) -> Sum:
        """The sum with some terms left out; an unknown name is a KeyError."""
        for name in names:
            self[name]
        return Sum(tuple(term for term in self._terms if term.name not in names))

    def __repr__(self) -> str:
        return " + ".join(map(repr, self._terms))


class FunctionObjective(Objective):
    """An objective made from a function by `@objective`."""

    def __init__(
        self, function: Callable[..., Any], arguments: dict[str, Any], name: str, requires: frozenset[str]
    ) -> None:
        self.function, self.arguments, self.name, self.requires = function, arguments, name, requires
        self.reads_all = not requires

    def residual(self, pred: Prediction, obs: Observation) -> Residual | Tensor:
        rows: Residual | Tensor = self.function(pred, obs, **self.arguments)
        return rows


@overload
def objective(function: Callable[..., Any]) -> Callable[..., FunctionObjective]: ...
@overload
def objective(
    *, name: str | None = None, requires: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., FunctionObjective]]: ...
def objective(
    function: Callable[..., Any] | None = None, *, name: str | None = None, requires: tuple[str, ...] = ()
) -> Any:
    """Make an objective of a function `(pred, obs, settings...) -> residual rows`.

    The function returns rows `(B, R)` or `(B, N, d)`, whose squares are summed, or an energy `(B,)` that is never
    negative; it is differentiated automatically. The decorated name takes the settings and gives an `Objective`.

    Args:
        function: to decorate.
        name: of the term; the function's own by default.
        requires: parts of the Observation that the function reads; checked before a solver starts. Where none is
            named, the function sees everything; naming them spares the solver to carry the rest along.

    >>> @objective
    ... def hips_at(pred, obs, height: float):
    ...     return pred.joint("pelvis")[:, 1:2] - height
    >>> 100.0 * hips_at(height=0.95)
    100 * hips_at
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., FunctionObjective]:
        parameters = list(inspect.signature(function).parameters.values())
        if len(parameters) < 2:
            raise ValueError(
                f"objective {function.__name__}: expected a function of (pred, obs, settings...)"
            )
        settings = inspect.Signature(parameters[2:])

        @wraps(function)
        def make(*args: Any, **kwargs: Any) -> FunctionObjective:
            bound = settings.bind(*args, **kwargs)
            bound.apply_defaults()
            return FunctionObjective(
                function, dict(bound.arguments), name or function.__name__, frozenset(requires)
            )

        make.__signature__ = settings  # type: ignore[attr-defined]
        return make

    return decorate if function is None else decorate(function)


def as_residual(name: str, value: Any, like: Tensor) -> Residual:
    """Rows in canonical shape, in the dtype of `like`, which has one row per person.

    An energy E becomes the one row sqrt(2 E): half its square is E again, and Gauss-Newton on it keeps the
    exact gradient.

    Raises:
        ValueError: a result of another shape.
    """
    rows, people = value.rows if isinstance(value, Residual) else value, len(like)
    dimensions = (3,) if isinstance(value, Residual) else (1, 2, 3)
    if not isinstance(rows, Tensor) or rows.ndim not in dimensions or len(rows) != people:
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(
            f"objective {name} returned {got}, expected rows ({people}, R) or ({people}, N, d), "
            f"or an energy ({people},)"
        )
    if rows.dtype != like.dtype:
        rows = rows.to(like.dtype)
    if isinstance(value, Residual):
        if value.weight is not None and value.weight.shape != rows.shape[:2]:
            got, expected = tuple(value.weight.shape), tuple(rows.shape[:2])
            raise ValueError(f"objective {name}: weights of shape {got} for rows that need {expected}")
        return Residual(rows, None if value.weight is None else value.weight.to(like.dtype))
    if rows.ndim == 1:
        # An energy below zero has no root: that person's objective counts as not finite, the others go on.
        energy = torch.where(rows < 0, torch.full_like(rows, torch.nan), rows)
        return Residual((2 * energy.clamp_min(1e-24)).sqrt()[:, None, None])
    return Residual(rows if rows.ndim == 3 else rows[..., None])


def cost(term: Objective, residual: Residual) -> Float[Tensor, " B"]:
    """Value of a term per person: `weight * sum_n w_n rho(|r_n|^2) / 2`."""
    square = (residual.rows * residual.rows).sum(-1)
    each = square if term.kernel is None else term.kernel.cost(square)
    if residual.weight is not None:
        each = each * residual.weight
    return 0.5 * term.weight * each.sum(-1)


def row_weights(term: Objective, residual: Residual) -> Float[Tensor, "B N"]:
    """What each row weighs in the normal equations: `weight * w_n * rho'(|r_n|^2)`."""
    square = (residual.rows * residual.rows).sum(-1)
    slope = torch.ones_like(square) if term.kernel is None else term.kernel.slope(square)
    if residual.weight is not None:
        slope = slope * residual.weight
    return term.weight * slope


def folded(term: Objective, residual: Residual) -> Float[Tensor, "B N d"]:
    """Rows scaled so that half of their squares sum to the value: `r * sqrt(weight * w_n * rho(|r|^2) / |r|^2)`."""
    square = (residual.rows * residual.rows).sum(-1)
    scale = torch.full_like(square, term.weight)
    if term.kernel is not None:
        # rho(s) ~ s at zero, where the quotient and its derivative are taken as they are nearby.
        safe = square.clamp_min(1e-12)
        scale = scale * term.kernel.cost(safe) / safe
    if residual.weight is not None:
        scale = scale * residual.weight
    positive = scale > 0
    root = torch.where(positive, scale, torch.ones_like(scale)).sqrt() * positive
    return residual.rows * root[..., None]


def _bend(kernel: Kernel, residual: Residual, weight: Tensor) -> Tensor:
    """`(B, N)` what the kernel's curvature adds along each row, `2 w rho''`.

    Along the row it would make the matrix negative as soon as rho' + 2 s rho'' < 0, so it stops just above zero.
    """
    square = (residual.rows * residual.rows).sum(-1)
    slope = kernel.slope(square)
    bend = 2 * kernel.bend(square) / slope.clamp_min(1e-12)
    return weight * torch.maximum(bend, -0.9 / square.clamp_min(1e-12))

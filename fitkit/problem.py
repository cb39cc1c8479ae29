"""Problem: all that a solver sees, read in three ways from one definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fitkit._select import Index
from fitkit.body.model import BodyModel
from fitkit.coordinates import VECTORS, Chart, Coordinates, Tangent
from fitkit.objectives.base import Objective, Residual, as_residual, cost, folded
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.state import ROTATIONS, State


@dataclass(frozen=True)
class Linearization:
    """A least-squares problem around a state: `E(x + d) ~ E + g.d + d.H.d / 2` in free columns of a chart.

    Attributes:
        values: `(B,)` per term.
        energy: `(B,)` their sum.
        gradient: `(B, D)`.
        hessian: `(B, D, D)` Gauss-Newton, with the kernels' reweighting.
    """

    values: dict[str, Tensor]
    energy: Float[Tensor, " B"]
    gradient: Float[Tensor, "B D"]
    hessian: Float[Tensor, "B D D"]


@dataclass(frozen=True)
class Problem:
    """A body, what was seen, what is to be lowered, and what may move.

    Attributes:
        body: of the states.
        observation: of B people.
        objective: a term or a sum of terms.
        free: blocks of the State that may move; None for all that a state has.
        coordinates: chart that solvers move in: `Tangent`, `SixD`, `Latent.of(prior)`; None for the solver's own.
        bounds: lowest and highest value of every number of a block, in its own unit: `{"betas": (-3, 3)}`. Only
            blocks that are no rotations; joints have limits of their own (`JointLimits`).

    Raises:
        ValueError: the observation lacks a part that a term requires, or a block cannot be freed or bounded so.
    """

    body: BodyModel
    observation: Observation
    objective: Objective
    free: tuple[str, ...] | None = None
    coordinates: Chart | None = None
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, ends in self.bounds.items():
            pair = (
                isinstance(ends, Sequence)
                and len(ends) == 2
                and all(isinstance(e, int | float) for e in ends)
            )
            if name not in VECTORS or not pair or not ends[0] < ends[1]:
                raise ValueError(
                    f"bounds on {name}: {ends}, expected a pair of numbers, the low one first, on one of {VECTORS}"
                )
        names = (*ROTATIONS, *VECTORS)
        unknown = [name for name in self.free or () if name not in names]
        if unknown or self.free == ():
            raise ValueError(f"cannot free {unknown or 'nothing'}: expected some of {sorted(names)}")
        for term in self.objective.terms():
            missing = sorted(part for part in term.requires if not self.observation.has(part))
            if missing:
                raise ValueError(
                    f"objective {term.name} needs {missing}, which the observation does not have: "
                    "observe it, or leave the term out"
                )

    def __len__(self) -> int:
        return len(self.observation)

    def select(self, index: Index) -> Problem:
        """The problem of some of the people."""
        return replace(self, observation=self.observation.select(index))

    def staged(
        self,
        free: Sequence[str] | None = None,
        weights: Mapping[str, float] | None = None,
        widen: float | None = 1.0,
        only: Sequence[str] | None = None,
        coordinates: Chart | None = None,
        dense: bool = True,
    ) -> Problem:
        """The same problem in one stage of a schedule.

        Args:
            free: blocks that may move; None keeps those of the problem.
            weights: factors on terms by name; names that are not there are passed over, so that one schedule
                serves many objectives.
            widen: factor on the reach of every term (robust kernels, softness of renderings); None for plain least
                squares.
            only: names of the terms that count, where there are any of them; None for all.
            coordinates: None keeps those of the problem.
            dense: whether terms count that need the whole surface, where others read the observation.
        """
        terms = self.objective.terms()
        if not dense and self.starts_without_dense:
            terms = tuple(term for term in terms if not term.dense)
        chosen = [term for term in terms if only is None or term.name in only] or list(terms)
        result: Objective | None = None
        for term in chosen:
            factor = (weights or {}).get(term.name, 1.0)
            changed = (term if factor == 1.0 else factor * term).widened(widen)
            result = changed if result is None else result + changed
        assert result is not None
        return replace(
            self,
            objective=result,
            free=self.free if free is None else tuple(free),
            coordinates=coordinates or self.coordinates,
        )

    def trimmed(self, keep: frozenset[str] = frozenset()) -> Problem:
        """Without the parts of the observation that no term reads: masks are large, and starts multiply them.

        Args:
            keep: parts that somebody else reads.
        """
        terms = self.objective.terms()
        if any(term.reads_all for term in terms):
            return self
        # A box is small, and says how large a person is of whom a term sees little.
        read = keep.union({"camera", "box"}, *(term.requires for term in terms))
        names = [part.name for part in fields(self.observation)]
        unread = [name for name in names if name not in read and self.observation.has(name)]
        return replace(self, observation=self.observation.without(unread)) if unread else self

    @property
    def starts_without_dense(self) -> bool:
        """Whether a fit gets anywhere without the terms that need the whole surface: others read the observation."""
        terms = self.objective.terms()
        others = any(not term.dense and (term.requires or term.reads_all) for term in terms)
        return others and any(term.dense for term in terms)

    # -- three readers ---------------------------------------------------------------------------------------

    def values(self, state: State) -> dict[str, Float[Tensor, " B"]]:
        """Value of each term, weights included."""
        pred = Prediction(self.body, state, self.observation.camera)
        return self.values_at(pred)

    def energy(self, state: State) -> Float[Tensor, " B"]:
        """Sum of the terms."""
        return _total(self.values(state))

    def value_and_grad(
        self, x: Float[Tensor, "B D"], chart: Coordinates
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"]]:
        """Energy and its gradient in a chart, one row per person, by automatic differentiation."""
        values, gradient = self.values_and_grad(x, chart)
        return values.sum(1), gradient

    def values_and_grad(
        self, x: Float[Tensor, "B D"], chart: Coordinates
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B D"]]:
        """Value of each term and the gradient of their sum."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            values = torch.stack(list(self.values(chart.decode(x)).values()), 1)
            if not values.requires_grad:  # no term reads what may move
                return values, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(values.sum(), x)
        return values.detach(), gradient

    def rows(self, x: Float[Tensor, "B D"], chart: Coordinates) -> Float[Tensor, "B R"]:
        """Residuals in a chart, half of whose squares sum to the energy: weights and kernels are folded in.

        This is the form of SciPy, Theseus and other least-squares programs, differentiable.
        """
        state = chart.decode(x)
        pred = Prediction(self.body, state, self.observation.camera)
        rows = []
        for term in self.objective.terms():
            if term.weight == 0:
                continue
            residual = as_residual(term.name, term.residual(pred, self.observation), state.transl)
            rows.append(folded(term, residual).flatten(1))
        return torch.cat([x.new_zeros(len(x), 0), *rows], 1)

    def rows_jacobian(
        self, x: Float[Tensor, "B D"], chart: Coordinates
    ) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R D"]]:
        """`rows` and their derivative, forwards where every operation allows it."""
        x = x.detach()
        rows = self.rows(x, chart)
        if rows.shape[1] > x.shape[1]:
            jacobian = _push(lambda x: self.rows(x, chart), x)
            if jacobian is not None:
                return rows, jacobian
        x.requires_grad_(True)
        with torch.enable_grad():
            rows = self.rows(x, chart)
            return rows.detach(), _pull(rows, x)

    def linearize(self, state: State, triggs: bool = False) -> Linearization:
        """Energy, gradient and Gauss-Newton matrix in the free tangent columns at a state.

        Terms with a closed-form Jacobian use it; the rows of others are differentiated automatically, forwards
        where there are more rows than unknowns and backwards otherwise. A term of so many rows that neither will
        do counts as an energy: its gradient is exact, its curvature that of one row.

        Args:
            state: of the people.
            triggs: whether the curvature of robust kernels enters, after Triggs et al., "Bundle adjustment - a
                modern synthesis" (1999), section 4.3; otherwise they only reweight.
        """
        blocks = self.free_blocks(state)
        size = max(block.stop for block in blocks.values())
        pred = Prediction(self.body, state, self.observation.camera, blocks)
        values: dict[str, Tensor] = {}
        hessian = state.transl.new_zeros(len(state), size, size)
        gradient = state.transl.new_zeros(len(state), size)
        for term in self.objective.terms():
            if term.weight == 0:
                values[term.name] = torch.zeros_like(state.transl[:, 0])
                continue
            residual = as_residual(term.name, term.residual(pred, self.observation), state.transl)
            values[term.name] = cost(term, residual)
            if term.block is not None and term.block not in blocks:
                continue
            columns = slice(None) if term.block is None else blocks[term.block]
            slope, curvature = self._normal(term, pred, residual, triggs)
            gradient[:, columns].add_(slope)
            hessian[:, columns, columns].add_(curvature)
        return Linearization(values, _total(values), gradient, hessian)

    def linearize_in(self, chart: Coordinates, triggs: bool = False) -> Linearization:
        """The same in the numbers of a chart, at its reference."""
        here, turn = self.linearize(chart.reference, triggs), chart.differential()
        if turn is None:
            return here
        gradient = (turn.mT @ here.gradient[..., None])[..., 0]
        return replace(here, gradient=gradient, hessian=turn.mT @ here.hessian @ turn)

    def _normal(
        self, term: Objective, pred: Prediction, residual: Residual, triggs: bool
    ) -> tuple[Tensor, Tensor]:
        closed = term.closed_normal(pred, self.observation, residual)
        if closed is not None:
            return closed
        jacobian = term.jacobian(pred, self.observation)
        if jacobian is None:
            columns = slice(None) if term.block is None else pred.blocks[term.block]
            derivative = self._derivative(term, pred.state)
            if derivative is None:
                return self._as_energy(term, pred.state, columns)
            residual, jacobian = derivative
            jacobian = jacobian[..., columns]
        return term.normal(residual, jacobian, triggs)

    # -- columns ---------------------------------------------------------------------------------------------

    def chart(self, reference: State) -> Coordinates:
        """Coordinates around a state, frozen blocks left out."""
        return (self.coordinates or Tangent)(reference, self._free(reference))

    def limits(self, chart: Coordinates) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
        """Lowest and highest x in a chart, infinite where nothing bounds it."""
        low = torch.full((chart.size,), -torch.inf, dtype=self.body.dtype, device=self.body.device)
        high = -low
        for name, (lowest, highest) in self.bounds.items():
            if name in chart.blocks:
                low[chart.blocks[name]], high[chart.blocks[name]] = lowest, highest
        return low, high

    def held(
        self, chart: Coordinates, x: Float[Tensor, "B D"], gradient: Float[Tensor, "B D"]
    ) -> Bool[Tensor, "B D"]:
        """Which numbers stand at a bound that the energy would push them over."""
        low, high = self.limits(chart)
        return ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))

    def unheld(
        self, chart: Coordinates, x: Float[Tensor, "B D"], gradient: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B D"]:
        """The gradient without what a bound holds back."""
        return gradient.masked_fill(self.held(chart, x, gradient), 0) if self.bounds else gradient

    def within_bounds(self, state: State) -> State:
        """The state with what may move and lies outside the bounds moved onto them."""
        parts = {name: part for name, part in state.parts().items() if self.free is None or name in self.free}
        inside = {name: parts[name].clamp(*ends) for name, ends in self.bounds.items() if name in parts}
        return replace(state, **inside)

    def free_blocks(self, state: State) -> dict[str, slice]:
        """Tangent columns of the parts of a state that may move."""
        return Tangent(state, self._free(state)).blocks

    def _free(self, state: State) -> tuple[str, ...] | None:
        if self.free is None:
            return None
        free = tuple(name for name in self.free if name in state.parts())
        if not free:
            raise ValueError(f"of the free blocks {self.free} the state has none: {sorted(state.parts())}")
        return free

    def values_at(self, pred: Prediction) -> dict[str, Tensor]:
        values = {}
        for term in self.objective.terms():
            if term.weight == 0:  # switched off, whatever it would say
                values[term.name] = torch.zeros_like(pred.state.transl[:, 0])
                continue
            residual = as_residual(term.name, term.residual(pred, self.observation), pred.state.transl)
            values[term.name] = cost(term, residual)
        return values

    def automatic(self, term: Objective, state: State) -> tuple[Residual, Float[Tensor, "B N d D"]]:
        """Rows of a term and their Jacobian in the free tangent columns, by automatic differentiation.

        Raises:
            RuntimeError: there are too many rows to differentiate backwards, and forwards does not work.
        """
        derivative = self._derivative(term, state)
        if derivative is None:
            raise RuntimeError(f"objective {term.name}: too many rows for a Jacobian")
        return derivative

    def _derivative(self, term: Objective, state: State) -> tuple[Residual, Tensor] | None:
        """Forwards where that takes fewer passes and the operations allow it, else backwards; None: too many rows."""
        chart = Tangent(state, self._free(state))
        x = chart.encode(state).detach()

        def residual(x: Tensor) -> Residual:
            pred = Prediction(self.body, chart.decode(x), self.observation.camera)
            return as_residual(term.name, term.residual(pred, self.observation), state.transl)

        here = residual(x)
        count = here.rows[0].numel() if len(state) else 0
        jacobian = None
        if x.shape[1] < count <= MOST_ROWS_FORWARD:
            jacobian = _push(lambda x: residual(x).rows.flatten(1), x)
        if jacobian is None and count > MOST_ROWS:
            return None
        if jacobian is None:
            x.requires_grad_(True)
            with torch.enable_grad():
                here = residual(x)
                jacobian = _pull(here.rows.flatten(1), x)
            weight = None if here.weight is None else here.weight.detach()
            here = Residual(here.rows.detach(), weight)
        return here, jacobian.view(*here.rows.shape, x.shape[1])

    def _as_energy(self, term: Objective, state: State, columns: slice) -> tuple[Tensor, Tensor]:
        """Gradient and curvature of a term read as the one row sqrt(2 E)."""
        chart = Tangent(state, self._free(state))
        single = replace(self, objective=term)
        energy, gradient = single.value_and_grad(chart.encode(state), chart)
        gradient = gradient[:, columns]
        outer = gradient[:, :, None] * gradient[:, None]
        return gradient, outer / (2 * energy.clamp_min(1e-24))[:, None, None]


# Backwards, a Jacobian takes one pass per row, all of them at once in memory; forwards one per unknown.
MOST_ROWS = 4096
MOST_ROWS_FORWARD = 100_000


def _push(rows: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    """Jacobian `(B, R, D)` forwards, one direction per unknown; None where an operation has no forward mode."""
    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
    try:
        columns: Tensor = torch.func.vmap(lambda along: torch.func.jvp(rows, (x,), (along,))[1])(basis)
    except RuntimeError:  # functorch's word for all that it cannot do
        return None
    return columns.permute(1, 2, 0)


def _pull(rows: Tensor, x: Tensor) -> Tensor:
    """Jacobian `(B, R, D)` backwards, batched where the operations of the user's objective allow it."""
    if not rows.requires_grad or rows.shape[1] == 0:  # reads nothing that may move
        return x.new_zeros(*rows.shape, x.shape[1])
    picks = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    picks = picks[:, None].expand(-1, len(rows), -1)
    if rows.shape[1] == 1:  # one pass needs no batching, which not every operation allows
        return torch.autograd.grad(rows, x, picks[0])[0][:, None]
    try:
        (jacobian,) = torch.autograd.grad(rows, x, picks, is_grads_batched=True, retain_graph=True)
    except RuntimeError:
        passes = [torch.autograd.grad(rows, x, pick, retain_graph=True)[0] for pick in picks]
        jacobian = torch.stack(passes)
    return jacobian.transpose(0, 1)


def _total(values: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(values.values())).sum(0)

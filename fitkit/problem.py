"""Problem: all that a solver sees, read in three ways from one definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Index
from fitkit.body.model import BodyModel
from fitkit.coordinates import VECTORS, Coordinates, Tangent
from fitkit.objectives.base import Objective, Residual, as_residual, cost
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.state import ROTATIONS, State


@dataclass(frozen=True)
class Linearization:
    """A least-squares problem around a state: `E(x + d) ~ E + g.d + d.H.d / 2` in the free tangent columns.

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
        coordinates: chart that `value_and_grad` moves in.

    Raises:
        ValueError: the observation lacks a part that a term requires.
    """

    body: BodyModel
    observation: Observation
    objective: Objective
    free: tuple[str, ...] | None = None
    coordinates: type[Coordinates] = field(default=Tangent)

    def __post_init__(self) -> None:
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
    ) -> Problem:
        """The same problem in one stage of a schedule.

        Args:
            free: blocks that may move; None keeps those of the problem.
            weights: factors on terms by name; names that are not there are passed over, so that one schedule
                serves many objectives.
            widen: factor on the width of every robust kernel; None for plain least squares.
            only: names of the terms that count, where there are any of them; None for all.
        """
        terms = self.objective.terms()
        chosen = [term for term in terms if only is None or term.name in only] or list(terms)
        result: Objective | None = None
        for term in chosen:
            factor = (weights or {}).get(term.name, 1.0)
            changed = term if factor == 1.0 else factor * term
            if changed.kernel is not None and widen != 1.0:
                changed = changed.robust(None if widen is None else changed.kernel.widened(widen))
            result = changed if result is None else result + changed
        assert result is not None
        return replace(self, objective=result, free=self.free if free is None else tuple(free))

    def trimmed(self, keep: frozenset[str] = frozenset()) -> Problem:
        """Without the parts of the observation that no term reads: masks are large, and starts multiply them.

        Args:
            keep: parts that somebody else reads.
        """
        terms = self.objective.terms()
        if any(term.reads_all for term in terms):
            return self
        read = keep.union({"camera"}, *(term.requires for term in terms))
        unread = {part.name: None for part in fields(self.observation) if part.name not in read}
        return replace(self, observation=replace(self.observation, **unread))  # type: ignore[arg-type]

    # -- three readers ---------------------------------------------------------------------------------------

    def values(self, state: State) -> dict[str, Float[Tensor, " B"]]:
        """Value of each term, weights included."""
        pred = Prediction(self.body, state, self.observation.camera)
        return self._values(pred)

    def energy(self, state: State) -> Float[Tensor, " B"]:
        """Sum of the terms."""
        return _total(self.values(state))

    def value_and_grad(
        self, x: Float[Tensor, "B D"], chart: Coordinates
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"]]:
        """Energy and its gradient in a chart, one row per person, by automatic differentiation."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            energy = self.energy(chart.decode(x))
            if not energy.requires_grad:  # no term reads what may move
                return energy, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), gradient

    def chart(self, reference: State) -> Coordinates:
        """Coordinates around a state, frozen blocks left out."""
        return self.coordinates(reference, self._free(reference))

    def linearize(self, state: State) -> Linearization:
        """Energy, gradient and Gauss-Newton matrix in the free tangent columns at a state.

        Terms with a closed-form Jacobian use it; the rows of others are differentiated automatically.
        """
        blocks = self.free_blocks(state)
        size = max(block.stop for block in blocks.values())
        pred = Prediction(self.body, state, self.observation.camera, blocks)
        values: dict[str, Tensor] = {}
        hessian = state.transl.new_zeros(len(state), size, size)
        gradient = state.transl.new_zeros(len(state), size)
        for term in self.objective.terms():
            residual = as_residual(term.name, term.residual(pred, self.observation), len(state))
            values[term.name] = cost(term, residual)
            if term.weight == 0 or (term.block is not None and term.block not in blocks):
                continue
            columns = slice(None) if term.block is None else blocks[term.block]
            slope, curvature = self._normal(term, pred, residual)
            gradient[:, columns] += slope
            hessian[:, columns, columns] += curvature
        return Linearization(values, _total(values), gradient, hessian)

    def _normal(self, term: Objective, pred: Prediction, residual: Residual) -> tuple[Tensor, Tensor]:
        closed = term.closed_normal(pred, residual)
        if closed is not None:
            return closed
        jacobian = term.jacobian(pred, self.observation)
        if jacobian is None:
            residual, jacobian = self.automatic(term, pred.state)
            jacobian = jacobian if term.block is None else jacobian[..., pred.blocks[term.block]]
        return term.normal(residual, jacobian)

    # -- columns ---------------------------------------------------------------------------------------------

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

    def _values(self, pred: Prediction) -> dict[str, Tensor]:
        values = {}
        for term in self.objective.terms():
            residual = as_residual(term.name, term.residual(pred, self.observation), len(pred))
            values[term.name] = cost(term, residual)
        return values

    def automatic(self, term: Objective, state: State) -> tuple[Residual, Float[Tensor, "B N d D"]]:
        """Rows of a term and their Jacobian in the free tangent columns, one backward pass for all rows."""
        chart = Tangent(state, self._free(state))
        x = chart.encode(state).detach().requires_grad_(True)
        with torch.enable_grad():
            pred = Prediction(self.body, chart.decode(x), self.observation.camera)
            residual = as_residual(term.name, term.residual(pred, self.observation), len(state))
            rows = residual.rows.flatten(1)
            if not rows.requires_grad:
                return residual, x.new_zeros(*residual.rows.shape, x.shape[1])
            picks = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
            picks = picks[:, None].expand(-1, len(rows), -1)
            jacobian = _pull(rows, x, picks)
        rows = residual.rows.detach()
        weight = None if residual.weight is None else residual.weight.detach()
        return replace(residual, rows=rows, weight=weight), jacobian.transpose(0, 1).view(
            *rows.shape, x.shape[1]
        )


def _pull(rows: Tensor, x: Tensor, picks: Tensor) -> Tensor:
    """Vector-Jacobian products `(R, B, D)`, batched where the operations of the user's objective allow it."""
    try:
        (jacobian,) = torch.autograd.grad(rows, x, picks, is_grads_batched=True, retain_graph=True)
        return jacobian
    except RuntimeError:
        return torch.stack([torch.autograd.grad(rows, x, pick, retain_graph=True)[0] for pick in picks])


def _total(values: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(values.values())).sum(0)

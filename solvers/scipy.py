"""SciPy's minimisers under the solver protocol: references to check other solvers against, one person at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit._select import concatenate
from fitkit.coordinates import Coordinates
from fitkit.problem import Problem
from fitkit.solver import Outcome, Solver, Status, outcome_at_start
from fitkit.state import State


class _Scipy(Solver, ABC):
    """What SciPy's minimisers share: each person is minimised alone, and one step is the whole minimisation.

    The chart stays where a person starts. SciPy may end above the lowest energy that it saw; the lowest is kept. It
    computes in float64 whatever the problem's dtype; a float32 objective is too rough for its tolerances, and most
    often ends as stalled.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: settings that cannot be meant; bounds, where a solver cannot keep them.
    """

    max_steps = 1

    def __init__(self, max_iterations: int, tolerance: float) -> None:
        if max_iterations < 1 or not tolerance >= 0:
            raise ValueError(
                f"{self.name}: max_iterations is {max_iterations} and tolerance {tolerance}, expected at least 1 "
                "and no negative number"
            )
        self.max_iterations, self.tolerance = max_iterations, tolerance
        _optimize(self.name)

    def init(self, problem: Problem, state: State) -> tuple[None, Status]:
        chart = problem.chart(state)
        values, gradient = problem.values_and_grad(chart.encode(state), chart)
        energy = values.sum(1)
        return None, Status(outcome_at_start(energy, gradient), energy, values)

    def step(self, problem: Problem, state: State, memory: None) -> tuple[State, None, Status]:
        people = range(len(state))
        ends = [self._person(problem.select(person), state.select(person)) for person in people]
        state = concatenate([end for end, _ in ends]) if ends else state
        values = torch.stack(list(problem.values(state).values()), 1)
        outcome = torch.tensor([end for _, end in ends], dtype=torch.long, device=values.device)
        return state, None, Status(outcome, values.sum(1), values)

    @abstractmethod
    def _minimise(self, function: _Function, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> Outcome:
        """SciPy's own minimisation from x; the function remembers the best x."""

    def _person(self, problem: Problem, state: State) -> tuple[State, Outcome]:
        chart = problem.chart(state)
        low, high = (end.double().cpu().numpy() for end in problem.limits(chart))
        function = _Function(problem, chart)
        start = chart.encode(state)[0].double().cpu().numpy().clip(low, high)
        try:
            outcome = self._minimise(function, start, low, high)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            # What the objective raises is the caller's; what SciPy raises is this person's alone.
            if error is function.raised:
                raise
            outcome = Outcome.STALLED
        if function.best is None:
            return state, Outcome.NOT_FINITE
        if function.strange and function.lowest >= function.first:
            outcome = Outcome.NOT_FINITE_NEARBY
        return chart.decode(function.best), outcome


class ScipyBFGS(_Scipy):
    """BFGS with the full matrix (Nocedal & Wright 2006, algorithm 6.1), as `scipy.optimize.minimize` has it.

    Args:
        max_iterations: of one minimisation.
        tolerance: largest component of the gradient at which a person is done.
    """

    name = "scipy-bfgs"
    keeps_bounds = False

    def __init__(self, max_iterations: int = 2000, tolerance: float = 1e-5) -> None:
        super().__init__(max_iterations, tolerance)

    def _minimise(self, function: _Function, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> Outcome:
        options = {"maxiter": self.max_iterations, "gtol": self.tolerance}
        found = _optimize(self.name).minimize(function.energy, x, jac=True, method="BFGS", options=options)
        return {0: Outcome.CONVERGED, 1: Outcome.MAX_STEPS}.get(found.status, Outcome.STALLED)


class ScipyLBFGSB(_Scipy):
    """L-BFGS-B (Byrd, Lu, Nocedal & Zhu 1995; Zhu et al. 1997, algorithm 778): limited memory, within bounds.

    Args:
        max_iterations: of one minimisation.
        tolerance: relative fall of the energy below which a person is done.
        history: pairs kept.
    """

    name = "scipy-lbfgsb"

    def __init__(self, max_iterations: int = 2000, tolerance: float = 1e-10, history: int = 20) -> None:
        super().__init__(max_iterations, tolerance)
        self.history = history

    def _minimise(self, function: _Function, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> Outcome:
        optimize = _optimize(self.name)
        options = {
            "maxiter": self.max_iterations,
            "maxfun": 20 * self.max_iterations,
            "maxcor": self.history,
            "ftol": self.tolerance,
            "gtol": 1e-8,
        }
        bounds = optimize.Bounds(low, high)
        found = optimize.minimize(
            function.energy, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        return {0: Outcome.CONVERGED, 1: Outcome.MAX_STEPS}.get(found.status, Outcome.STALLED)


class ScipyLeastSquares(_Scipy):
    """Trust region reflective least squares (Branch, Coleman & Li 1999), within bounds.

    Robust kernels are folded into the rows (`Problem.rows`), so that their squares are the energy exactly.

    Args:
        max_iterations: evaluations of one minimisation.
        tolerance: relative change of the energy, or of x, below which a person is done.
    """

    name = "scipy-least-squares"

    def __init__(self, max_iterations: int = 500, tolerance: float = 1e-10) -> None:
        super().__init__(max_iterations, tolerance)

    def _minimise(self, function: _Function, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> Outcome:
        found = _optimize(self.name).least_squares(
            function.rows,
            x,
            function.jacobian,
            bounds=(low, high),
            method="trf",
            ftol=self.tolerance,
            xtol=self.tolerance,
            gtol=1e-8,
            x_scale="jac",  # metres, radians and betas side by side
            max_nfev=self.max_iterations,
        )
        return Outcome.CONVERGED if found.status > 0 else Outcome.MAX_STEPS


class _Function:
    """The objective of one person as SciPy calls it, NumPy in and out; remembers the best x, and what was raised."""

    def __init__(self, problem: Problem, chart: Coordinates) -> None:
        self.problem, self.chart = problem, chart
        self.best: Tensor | None = None
        self.lowest = self.first = float("inf")
        self.strange = False
        self.raised: Exception | None = None

    def energy(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy and gradient; where they are not finite, those of a hill that leads a line search back."""
        there = self._tensor(x)
        energy, gradient = self._call(self.problem.value_and_grad, there, self.chart)
        value, slope = float(energy), gradient[0].double().cpu().numpy()
        if np.isfinite(value) and np.isfinite(slope).all():
            self._remember(value, there)
            return value, slope
        self.strange = True
        if self.best is None:
            return float("inf"), np.zeros_like(x)
        # A parabola with its foot at the best x: L-BFGS-B does not come back from infinity.
        away, height = x - self.best[0].double().cpu().numpy(), 1 + abs(self.lowest)
        return self.lowest + height, 2 * height * away / max(float(away @ away), 1e-30)

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Least-squares rows `(R,)`."""
        there = self._tensor(x)
        rows = self._call(self.problem.rows, there, self.chart)[0].detach().double()
        self._remember(float(rows.square().sum() / 2), there)
        return np.asarray(rows.cpu().numpy())

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """Their derivative `(R, D)`."""
        _, jacobian = self._call(self.problem.rows_jacobian, self._tensor(x), self.chart)
        return np.asarray(jacobian[0].double().cpu().numpy())

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(x, dtype=np.float64))[None].to(self.chart.reference.transl)

    def _remember(self, energy: float, x: Tensor) -> None:
        if self.best is None:
            self.first = energy
        if energy < self.lowest:  # False where it is not finite
            self.lowest, self.best = energy, x
        self.strange |= not np.isfinite(energy)

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            self.raised = error
            raise


def _optimize(name: str) -> Any:
    """`scipy.optimize`; loaded when a solver is made, because nothing else needs it."""
    try:
        import scipy.optimize
    except ImportError as error:
        raise ImportError(f'solver {name} needs SciPy: pip install "fitkit-body[scipy]"') from error
    return scipy.optimize

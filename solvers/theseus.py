"""Levenberg-Marquardt of Theseus under the solver protocol: a reference to check our own against."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from fitkit._select import Rows, choose, concatenate
from fitkit.coordinates import Coordinates
from fitkit.problem import Problem
from fitkit.solver import Iterative, Outcome, Status, outcome_at_start
from fitkit.state import State

T = TypeVar("T", bound=Rows)
# What `make theseus` runs. A plain `pip install theseus-ai` builds scikit-sparse, which nothing here needs.
INSTALL = (
    "pip install --no-build-isolation --no-deps theseus-ai==0.2.3 torchlie==0.1.0 torchkin==0.1.1 "
    "urdf-parser-py==0.0.4 && pip install scipy pyyaml"
)
_LARGEST_DAMPING = 1e6


@dataclass(frozen=True)
class TheseusMemory(Rows):
    """Damping, energy and values at the current state, one row per person."""

    damping: Tensor
    energy: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.damping)


class TheseusLM(Iterative):
    """Theseus' Levenberg-Marquardt (Pineda et al., NeurIPS 2022): dense Cholesky, adaptive damping, vmap mode.

    Rows and their derivatives are taken by `torch.func.vmap` over the people, so everything in the objective has to
    work under it. One step is one trial of Theseus' optimiser, in the chart at the state where it starts, with the
    damping carried over: in a longer run of its own Theseus stops a person whose step is rejected as soon as
    somebody else's is accepted.

    Args:
        max_steps: of a run without a schedule.
        tolerance: relative fall of the energy below which a person is done.
        damping: at the start, relative to the diagonal.
        gradient_tolerance: see `Iterative`.
        step_tolerance: see `Iterative`.

    Raises:
        ImportError: Theseus is not installed.
        ValueError: the problem has bounds.
        RuntimeError: the objective does not work under vmap.
    """

    name = "theseus-lm"
    keeps_bounds = False

    def __init__(
        self,
        max_steps: int = 100,
        tolerance: float = 1e-8,
        damping: float = 1e-3,
        gradient_tolerance: float = 1e-9,
        step_tolerance: float = 1e-9,
    ) -> None:
        super().__init__(max_steps, tolerance, gradient_tolerance, step_tolerance)
        self.damping = damping
        _theseus()

    def init(self, problem: Problem, state: State) -> tuple[TheseusMemory, Status]:
        chart = problem.chart(state)
        values, gradient = problem.values_and_grad(chart.encode(state), chart)
        energy = values.sum(1)
        memory = TheseusMemory(torch.full_like(energy, self.damping), energy, values)
        return memory, Status(outcome_at_start(energy, gradient), energy, values)

    def step(
        self, problem: Problem, state: State, memory: TheseusMemory
    ) -> tuple[State, TheseusMemory, Status]:
        chart = problem.chart(state)
        x = chart.encode(state)
        trial = _trial(problem, chart, x, memory.damping)
        there = chart.decode(trial.x)
        values = torch.stack(list(problem.values(there).values()), 1)
        energy = values.sum(1)
        lower = energy < memory.energy  # False where it is not finite
        small = lower & self._done(memory.energy - energy, memory.energy, trial.gradient, trial.x - x)
        outcome = torch.where(small, Outcome.CONVERGED, Outcome.RUNNING)
        outcome = torch.where(~lower & (trial.damping > _LARGEST_DAMPING), Outcome.STALLED, outcome)
        outcome = torch.where(torch.isfinite(memory.energy), outcome, Outcome.NOT_FINITE)
        state = choose(lower, there, state)
        memory = choose(lower, TheseusMemory(trial.damping, energy, values), memory)
        memory = replace(memory, damping=trial.damping)
        return state, memory, Status(outcome, memory.energy, memory.values)


@dataclass(frozen=True)
class _Trial(Rows):
    """Where a trial step of Theseus led (nowhere, if it was rejected), the next damping, and the gradient before."""

    x: Tensor
    damping: Tensor
    gradient: Tensor

    def __len__(self) -> int:
        return len(self.x)


@torch.no_grad()  # with gradients, Theseus raises where a factorisation fails
def _trial(problem: Problem, chart: Coordinates, x: Tensor, damping: Tensor) -> _Trial:
    th = _theseus()
    reference, people = chart.reference, len(x)

    def rows(optim_vars: tuple[Any, ...], aux_vars: tuple[Any, ...]) -> Tensor:
        # Theseus hands over everybody, or one person of a vmap. The number in the batch says who it is: picking
        # by it works in both, and spares every tensor of the observation a variable of its own.
        who = aux_vars[0].tensor[:, 0].long()
        one = replace(problem, observation=_pick(problem.observation, who))
        here = one.rows(optim_vars[0].tensor, one.chart(_pick(reference, who)))
        # Theseus accepts a step to NaN, and rejects one to infinity.
        return here.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)

    unknown = th.Vector(tensor=x, name="x")
    number = th.Variable(torch.arange(people, dtype=x.dtype, device=x.device)[:, None], name="person")
    width = problem.rows(x, chart).shape[1]
    weight = th.ScaleCostWeight(x.new_ones(1, 1))
    objective = th.Objective(dtype=x.dtype)
    objective.add(
        th.AutoDiffCostFunction([unknown], rows, width, weight, aux_vars=[number], autograd_mode="vmap")
    )
    objective.to(x.device)
    objective.update()
    optimizer = _optimizer_class()(objective, linear_solver_cls=th.CholeskyDenseSolver, max_iterations=1)
    # A tolerance below zero: who is done is judged by `TheseusLM`, one by one.
    optimizer.set_params(abs_err_tolerance=-1.0, rel_err_tolerance=-1.0)
    with warnings.catch_warnings():
        # Of a factorisation that failed, which is looked at below, and of settings that are meant so.
        warnings.filterwarnings("ignore", module=r"theseus\.")
        try:
            info = optimizer.optimize(
                damping=damping, adaptive_damping=True, ellipsoidal_damping=True, damping_eps=1e-6
            )
        except RuntimeError as error:
            raise RuntimeError(
                "theseus-lm: the objective does not work under torch.func.vmap (no branch on values, no mask as an "
                f"index, no writing into new tensors); the solver lm has no such limits. {error}"
            ) from error
    if (info.status == th.NonlinearOptimizerStatus.FAIL).any():
        if people > 1:  # one matrix without a factorisation fails the whole batch
            return concatenate([_alone(problem, chart, x, damping, person) for person in range(people)])
        return _Trial(x, damping * 10, torch.full_like(x, torch.inf))
    gradient = -optimizer.linear_solver.linearization.Atb[..., 0]
    return _Trial(unknown.tensor, optimizer._damping, gradient)


def _alone(problem: Problem, chart: Coordinates, x: Tensor, damping: Tensor, person: int) -> _Trial:
    one = slice(person, person + 1)
    return _trial(problem.select(one), problem.chart(chart.reference.select(one)), x[one], damping[one])


def _pick(batch: T, rows: Tensor) -> T:
    """`select` without its checks, which look at values and so do not work under vmap."""
    return batch._map(lambda tensor: tensor[rows])


def _theseus() -> Any:
    """The package; loaded when a solver is made, because nothing else needs it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse solvers that are not there
            import theseus
    except ImportError as error:
        raise ImportError(f"solver theseus-lm needs Theseus ({error}): {INSTALL}") from error
    return theseus


@cache
def _optimizer_class() -> Any:
    class OneTrial(_theseus().LevenbergMarquardt):  # type: ignore[misc]
        def _step(self, *args: Any, **kwargs: Any) -> Any:
            # Where everybody's step is rejected, Theseus tries again at once: a person alone would get more trials.
            error, _ = super()._step(*args, **kwargs)
            return error, False

    return OneTrial

"""What is compared: our solvers, back ends of other packages, and the recipes that published code runs."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from _peers import OnMesh, OnSmplx, peer_start, smplify_spin, smplify_x
from _problems import Problems, objective
from torch import Tensor

from fitkit.api import default_stages
from fitkit.body import BodyModel
from fitkit.coordinates import Chart, Latent, SixD, Tangent
from fitkit.initialise import make_starts
from fitkit.priors import gaussian_prior
from fitkit.problem import Problem
from fitkit.registry import get_solver, solver_names
from fitkit.solve import solve
from fitkit.solver import Chain, Outcome, Solver
from fitkit.solvers import LBFGS, LM
from fitkit.state import State
from fitkit.trace import Trace


@dataclass(frozen=True)
class Answer:
    """What an entry made of a batch.

    Attributes:
        state: `(B)`.
        outcome: `(B,)`.
        trace: of a solver.
        evaluations: of a recipe.
    """

    state: State
    outcome: Tensor
    trace: Trace | None = None
    evaluations: int = 0

    @property
    def steps(self) -> Tensor:
        """`(B,)` of the start that won; a back end's step may be a whole run."""
        many = torch.full_like(self.outcome, self.evaluations)
        return many if self.trace is None else self.trace.steps_made


@dataclass(frozen=True)
class Entry(ABC):
    """Something that fits bodies to the problems.

    Attributes:
        name: its column.
        limit: people that it fits at a time; None for any number.
        slow: seconds per person: few of them are enough for the clock.
        most: problems that it is given; None for all. What takes ten seconds per person gets the first of them.
    """

    name: str
    limit: int | None = None
    slow: bool = False
    most: int | None = None

    @abstractmethod
    def __call__(self, body: BodyModel, problems: Problems) -> Answer: ...


@dataclass(frozen=True)
class Ours(Entry):
    """A solver as `fitkit.fit` runs it: four starts, losers dropped early.

    Attributes:
        solver: with its settings.
        coordinates: chart; None for the solver's own.
        jumps: whether every limb is tried the other way in depth.
        starts: the four, or only the one that faces the camera.
        single: whether the whole solve runs in float32.
    """

    solver: Solver | Chain | None = None
    coordinates: Chart | None = None
    starts: int = 4
    jumps: bool = False
    single: bool = False

    def __call__(self, body: BodyModel, problems: Problems) -> Answer:
        assert self.solver is not None
        if self.single:
            body, problems = body.to(torch.float32), problems.to(torch.float32)
        first = self.solver.solvers[0] if isinstance(self.solver, Chain) else self.solver
        starts = make_starts(body, problems.observation, mean_pose(body))
        stages = first.stages or default_stages(first.max_steps, self.jumps)
        problem = Problem(body, problems.observation, objective(), coordinates=self.coordinates)
        state, kinds = starts.state, starts.kinds
        if self.starts == 1:
            state, kinds = state.select(slice(0, None, starts.count)), (0,)
        solution = solve(problem, self.solver, state, stages, len(kinds), kinds=kinds)
        return Answer(solution.state, solution.outcome, solution.trace)


@dataclass(frozen=True)
class Peer(Entry):
    """A published recipe, from its one start, in float32 as it runs."""

    recipe: Callable[..., tuple[State, int]] | None = None
    mesh: type[OnMesh] = OnMesh

    def __call__(self, body: BodyModel, problems: Problems) -> Answer:
        assert self.recipe is not None
        body, problems = body.to(torch.float32), problems.to(torch.float32)
        start = peer_start(body, problems.observation)
        state, count = self.recipe(body, problems.observation, objective(), start, self.mesh)
        finite = torch.isfinite(state.transl).all(1)
        outcome = torch.where(finite, Outcome.MAX_STEPS, Outcome.NOT_FINITE)
        # Back to the parts that are measured: hands and face of the recipe stay with it.
        plain = {name: getattr(state, name).double() for name in problems.truth.parts()}
        return Answer(State(**plain), outcome, evaluations=count)


def mean_pose(body: BodyModel) -> Tensor:
    """Of the prior: where every start begins."""
    return gaussian_prior().mean_pose().to(body.device, body.dtype)


CHARTS: dict[str, Chart] = {
    "tangent": Tangent,
    "6D": SixD,
    "latent": Latent.of(gaussian_prior()),
}
# Back ends are oracles, and precise ones; here they stop where ours do.
SETTINGS: dict[str, dict[str, float]] = {
    "scipy-bfgs": {"max_iterations": 300, "tolerance": 1e-2},
    "scipy-lbfgsb": {"max_iterations": 300, "tolerance": 1e-6},
    "scipy-least-squares": {"max_iterations": 60, "tolerance": 1e-4},
    "theseus-lm": {"max_steps": 30, "tolerance": 1e-3},
}
FEW = 16
OURS = ("lm", "lbfgs", "bfgs", "adam")
BACK_ENDS = {
    "scipy-bfgs": "scipy",
    "scipy-lbfgsb": "scipy",
    "scipy-least-squares": "scipy",
    "theseus-lm": "theseus",
}


def entries() -> dict[str, Entry]:
    """Everything that can run here, by name."""
    table: list[Entry] = [Ours(name, solver=get_solver(name)) for name in OURS]
    table += [
        Ours("lm, one start", solver=LM(), starts=1),
        Ours("lm, jumps", solver=LM(), jumps=True),
        Ours("lm, triggs", solver=LM(triggs=True)),
        Ours("lm, float32", solver=LM(), single=True),
        Ours("lbfgs, unscaled", solver=LBFGS(scaled=False)),
        Ours("lm+lbfgs", solver=get_solver("lm+lbfgs")),
    ]
    known = set(solver_names())
    there = [
        name for name in BACK_ENDS if name in known and importlib.util.find_spec(BACK_ENDS[name]) is not None
    ]
    for name in there:
        plain = get_solver(name)
        assert isinstance(plain, Solver)
        table.append(Ours(name, solver=type(plain)(**SETTINGS[name]), slow=True))
    table += [
        Peer("SMPLify (SPIN), our mesh", recipe=smplify_spin),
        Peer("SMPLify-X, our mesh", recipe=smplify_x, limit=1, slow=True, most=FEW),
    ]
    if importlib.util.find_spec("smplx") is not None:
        table += [
            Peer("SMPLify (SPIN)", recipe=smplify_spin, mesh=OnSmplx),
            Peer("SMPLify-X", recipe=smplify_x, limit=1, slow=True, most=FEW, mesh=OnSmplx),
        ]
    return {entry.name: entry for entry in table}


def in_charts(names: tuple[str, ...] = OURS) -> list[Entry]:
    """Our solvers in every kind of coordinates."""
    table = entries()
    return [
        replace(entry, name=f"{name}, {chart}", coordinates=CHARTS[chart])
        for name in names
        for chart in CHARTS
        if isinstance(entry := table[name], Ours)
    ]

"""Every solver: lowers every objective, honours frozen blocks, reports status, treats each person alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fitkit
from fitkit import solve as solve_module
from fitkit.body.model import BodyModel
from fitkit.coordinates import Chart, Latent, SixD, Tangent
from fitkit.initialise import make_starts, torso_orientation
from fitkit.objectives import Keypoints2D
from fitkit.observation import Observation
from fitkit.priors import JointLimits, ShapePrior, gaussian_prior
from fitkit.problem import Problem
from fitkit.registry import get_solver, register_solver, solver_names
from fitkit.solve import Solution, solve
from fitkit.solver import Outcome, Solver, Stage
from fitkit.solvers import BFGS, LBFGS, LM, Adam
from fitkit.state import State

MakePeople = Callable[..., tuple[State, Observation]]
# One line per solver.
SOLVERS: list[Solver] = [LM(), LBFGS(60), BFGS(60), Adam(80, rate=0.03, tolerance=1e-2)]


def run(problem: Problem, solver: Solver, state: State, steps: int | None = None) -> Solution:
    """Everything at once: stages that lower something else in between are another matter."""
    return solve(problem, solver, state, [Stage(steps or solver.max_steps)])


def start(body: BodyModel, observation: Observation) -> State:
    starts = make_starts(body, observation, gaussian_prior().mean_pose())
    return starts.state.select(slice(0, None, starts.count))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
class TestEverySolver:
    def test_lowers_the_energy_at_every_step(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        _, observation = people()
        problem = Problem(body, observation, fitkit.default_objective(observation))
        state = start(body, observation)
        solution = run(problem, solver, state)
        assert (solution.energy < 0.5 * problem.energy(state)).all()
        energy = solution.trace.energy
        assert (energy[1:] <= energy[:-1] + 1e-9).all()
        torch.testing.assert_close(problem.energy(solution.state), solution.energy)
        assert set(solution.values) == {term.name for term in problem.objective.terms()}

    def test_frozen_blocks_do_not_move(self, body: BodyModel, people: MakePeople, solver: Solver) -> None:
        _, observation = people()
        objective = fitkit.default_objective(observation)
        problem = Problem(body, observation, objective, free=("global_orient", "transl"))
        state = start(body, observation)
        solution = run(problem, solver, state)
        assert torch.equal(solution.state.body_pose, state.body_pose)
        assert torch.equal(solution.state.betas, state.betas)
        assert (solution.energy < problem.energy(state)).all()

    def test_a_person_is_alone_in_any_batch(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        _, observation = people(4)
        problem = Problem(body, observation, fitkit.default_objective(observation))
        state = start(body, observation)
        whole = run(problem, solver, state)
        order = [2, 0, 3, 1]
        shuffled = run(problem.select(order), solver, state.select(order))
        torch.testing.assert_close(shuffled.energy, whole.energy[order], rtol=1e-4, atol=1e-6)
        alone = run(problem.select(1), solver, state.select(1))
        torch.testing.assert_close(alone.energy, whole.energy[1:2], rtol=1e-4, atol=1e-6)
        joints = body.joints(alone.state) - body.joints(whole.state.select(1))
        assert joints.norm(dim=-1).max() < 2e-3

    def test_reports_the_step_limit_and_convergence(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        _, observation = people()
        problem = Problem(body, observation, fitkit.default_objective(observation))
        state = start(body, observation)
        short = run(problem, solver, state, 2)
        assert (short.outcome == Outcome.MAX_STEPS).all()
        done = run(problem, solver, state, 500)
        assert ((done.outcome == Outcome.CONVERGED) | (done.outcome == Outcome.STALLED)).all()

    def test_a_person_without_a_finite_objective_fails_alone(
        self, body: BodyModel, people: MakePeople, solver: Solver
    ) -> None:
        state, observation = people()
        broken = state.transl.clone()
        broken[1] = float("nan")
        problem = Problem(body, observation, Keypoints2D() + ShapePrior() + gaussian_prior())
        solution = run(problem, solver, replace(state, transl=broken), 5)
        assert solution.outcome[1] == Outcome.NOT_FINITE
        assert torch.isfinite(solution.energy[[0, 2]]).all()


@pytest.mark.parametrize(
    "solver", [LBFGS(600, tolerance=1e-9), BFGS(600, tolerance=1e-9)], ids=lambda s: s.name
)
def test_all_find_the_same_minimum(body: BodyModel, people: MakePeople, solver: Solver) -> None:
    """Several algorithms and two kinds of derivatives: from one start, energies agree."""
    _, observation = people()
    problem = Problem(body, observation, fitkit.default_objective(observation))
    state = start(body, observation)
    tight = solve(problem, LM(200, tolerance=1e-9), state)
    other = solve(problem, solver, tight.state)
    torch.testing.assert_close(other.energy, tight.energy, rtol=1e-4, atol=1e-4)


def test_exact_keypoints_are_met(body: BodyModel, people: MakePeople) -> None:
    """Without noise and with hardly a prior the keypoints are reproduced."""
    truth, observation = people()
    assert observation.keypoints is not None
    exact = observation.camera.project(body.keypoints(truth, "mediapipe33"))
    seen = replace(observation.keypoints, xy=exact, confidence=torch.ones_like(exact[..., 0]))
    observation = replace(observation, keypoints=seen)
    problem = Problem(body, observation, Keypoints2D() + 1e-3 * ShapePrior() + 1e-3 * gaussian_prior())
    solution = solve(problem, LM(200, tolerance=1e-8), truth.select([0, 1, 2]))
    found = observation.camera.project(body.keypoints(solution.state, "mediapipe33"))
    assert (found - exact).norm(dim=-1).mean() < 0.5


def test_more_starts_are_never_worse(body: BodyModel, people: MakePeople) -> None:
    _, observation = people()
    problem = Problem(body, observation, fitkit.default_objective(observation))
    starts = make_starts(body, observation, gaussian_prior().mean_pose())
    assert starts.count == 6
    several = solve(problem, LM(), starts.state, starts=starts.count)
    single = solve(problem, LM(), starts.state.select(slice(0, None, starts.count)))
    assert (several.energy <= single.energy + 1e-9).all()
    with pytest.raises(ValueError, match=r"18 starts, expected 1 for each of 3"):
        solve(problem, LM(), starts.state)


def test_the_torso_of_landmarks_gives_the_orientation(body: BodyModel, people: MakePeople) -> None:
    state, observation = people()
    assert observation.world is not None
    straight = replace(state, body_pose=body.neutral(3).body_pose, betas=0 * state.betas)
    xyz = body.keypoints(straight, "mediapipe33")
    world = replace(observation.world, xyz=xyz, confidence=torch.ones_like(xyz[..., 0]))
    found = torso_orientation(world, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found, straight.global_orient[:, 0], atol=0.15, rtol=0)
    unseen = replace(world, confidence=torch.zeros_like(xyz[..., 0]))
    fallback = torso_orientation(unseen, torch.eye(3, dtype=torch.float64))
    assert torch.equal(fallback, torch.eye(3, dtype=torch.float64).expand(3, 3, 3))


def test_a_solver_of_ones_own_is_at_home(body: BodyModel, people: MakePeople) -> None:
    @register_solver("halves")
    class Halves(LM):
        name = "halves"

    assert "halves" in solver_names()
    assert isinstance(get_solver("halves"), Halves)
    with pytest.raises(ValueError, match="exists"):
        register_solver("lm")
    with pytest.raises(ValueError, match=r"bfsg.*lbfgs"):
        get_solver("bfsg")


def test_progress_is_reported_and_can_stop_a_run(body: BodyModel, people: MakePeople) -> None:
    _, observation = people()
    problem = Problem(body, observation, JointLimits() + Keypoints2D() + gaussian_prior() + ShapePrior())
    seen: list[tuple[int, str]] = []
    solution: Solution = solve(
        problem,
        LM(),
        start(body, observation),
        [Stage(3, name="only")],
        on_step=lambda *step: seen.append(step),
    )
    assert seen == [(1, "only"), (2, "only"), (3, "only")]
    assert solution.trace.step == [0, 1, 2, 3]
    assert solution.trace.energy.shape == (4, 3)


# -- the host waits for nothing ------------------------------------------------------------------------------

_aten = torch.ops.aten
# On CUDA each of these makes the host wait for the device, or the device for the host.
_WAITS = {
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten.equal,
    _aten.is_nonzero,
    _aten.unique_dim,
    _aten._unique,
    _aten._unique2,
    _aten.unique_consecutive,
    _aten.bincount,
    _aten._linalg_check_errors,
}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


class Waits(TorchDispatchMode):
    """Notes every operation that would make a CUDA host wait, and after how many steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.seen = 0, list[tuple[int, str]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        masks = (torch.bool, torch.uint8)
        masked = packet in _INDEXING and any(i is not None and i.dtype in masks for i in args[1])
        # A tensor made of a list is copied over; a single number travels with the operation that reads it.
        copied = packet is _aten.lift_fresh and args[0].ndim > 0
        if packet in _WAITS or masked or copied:
            self.seen.append((self.steps, str(func)))
        return func(*args, **(kwargs or {}))

    def count(self, step: int, stage: str) -> None:
        self.steps = step


CHARTS: dict[str, Chart] = {"tangent": Tangent, "6d": SixD, "latent": Latent.of(gaussian_prior())}
STEPPING: list[Solver] = [LM(), LM(triggs=True), LBFGS(), BFGS(), Adam()]


def test_what_waits_is_seen() -> None:
    """The check itself."""
    some = torch.tensor([1.0, 2.0])
    for wait in (
        lambda: float(some[0]),
        lambda: some[some > 1],
        lambda: torch.tensor([3.0]),
        lambda: some.nonzero(),
        lambda: bool((some > 0).all()),
        lambda: some.clone().__setitem__(some > 1, 0.0),
        lambda: torch.linalg.inv(torch.eye(2)),
    ):
        with Waits() as waits:
            wait()
        assert waits.seen
    with Waits() as waits:
        torch.where(some > 1, some, 0.0) + some[torch.arange(2)]
    assert not waits.seen


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
@pytest.mark.parametrize("solver", STEPPING, ids=["lm", "lm-triggs", "lbfgs", "bfgs", "adam"])
def test_no_step_waits(body: BodyModel, people: MakePeople, solver: Solver, chart: Chart) -> None:
    _, observation = people()
    objective = fitkit.default_objective(observation)
    problem = Problem(body, observation, objective, coordinates=chart, bounds={"betas": (-1.0, 1.0)})
    state = problem.within_bounds(start(body, observation))
    memory, _ = solver.init(problem, state)
    state, memory, _ = solver.step(problem, state, memory)  # tables are made when they are first read
    with Waits() as waits, torch.no_grad():
        memory, _ = solver.init(problem, state)
        for _ in range(3):
            state, memory, _ = solver.step(problem, state, memory)
    assert not waits.seen


@pytest.mark.parametrize(
    "solver", [LM(18, tolerance=1e-3), LBFGS(18), Adam(18, rate=0.03)], ids=lambda s: s.name
)
def test_who_is_done_is_looked_up_every_few_steps(
    body: BodyModel, people: MakePeople, monkeypatch: pytest.MonkeyPatch, solver: Solver
) -> None:
    """As on CUDA, with the same answer as when it is looked up at every step."""
    _, observation = people(4)
    problem = Problem(body, observation, fitkit.default_objective(observation))
    state = start(body, observation)
    often = run(problem, solver, state)
    monkeypatch.setitem(solve_module.CHECK_EVERY, "cpu", 5)
    waits = Waits()
    with waits:
        seldom = solve(problem, solver, state, [Stage(solver.max_steps, name="only")], on_step=waits.count)
    looks = {step for step, _ in waits.seen}
    assert looks <= {0, 5, 10, 15, waits.steps}
    torch.testing.assert_close(seldom.energy, often.energy, atol=1e-9, rtol=1e-6)
    assert torch.equal(seldom.outcome, often.outcome)
    torch.testing.assert_close(seldom.state.body_pose, often.state.body_pose, atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
@pytest.mark.parametrize("solver", STEPPING, ids=["lm", "lm-triggs", "lbfgs", "bfgs", "adam"])
def test_no_step_waits_on_a_gpu(body: BodyModel, people: MakePeople, solver: Solver, chart: Chart) -> None:
    _, observation = people()
    state = start(body, observation).to("cuda")
    observation = observation.to("cuda")
    objective = fitkit.default_objective(observation)
    problem = Problem(body.to(device="cuda"), observation, objective, coordinates=chart)
    memory, _ = solver.init(problem, state)
    state, memory, _ = solver.step(problem, state, memory)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            state, memory, _ = solver.step(problem, state, memory)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("solver", ["lm", "lbfgs", "bfgs", "adam", "lm+lbfgs"])
def test_the_gpu_finds_what_the_cpu_finds(people: MakePeople, solver: str) -> None:
    _, observation = people(4)
    stages = [Stage(40)]
    there = fitkit.fit(observation, solver=solver, stages=stages, device="cuda")
    here = fitkit.fit(observation, solver=solver, stages=stages)
    assert there.state.transl.is_cuda
    torch.testing.assert_close(there.energy.cpu(), here.energy, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there.margin.cpu(), here.margin, rtol=1e-2, atol=1e-2)

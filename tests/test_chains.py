"""Chains of solvers, stages of a schedule, limits of time, and how clear a decision between several starts was."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fitkit
from fitkit import geometry
from fitkit.api import default_stages
from fitkit.body.model import BodyModel
from fitkit.coordinates import SixD, Tangent
from fitkit.objectives import Keypoints2D
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import JointLimits, ShapePrior, gaussian_prior
from fitkit.problem import Problem
from fitkit.registry import chain, get_solver, register_solver
from fitkit.solve import Solution, solve
from fitkit.solver import Chain, Outcome, Solver, Stage, Status
from fitkit.solvers import LBFGS, LM
from fitkit.state import State
from fitkit.trace import Trace

MakePeople = Callable[..., tuple[State, Observation]]
INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Scene:
    """Three people, an objective without surprises, and a start."""

    problem: Problem
    start: State


@pytest.fixture(scope="module")
def scene(body: BodyModel, people: MakePeople) -> Scene:
    start, observation = people(3)
    objective = Keypoints2D() + gaussian_prior() + ShapePrior() + JointLimits()
    return Scene(Problem(body, observation, objective), start)


# -- chains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [lambda: chain("lm", "lbfgs"), lambda: get_solver("lm+lbfgs"), lambda: Chain((LM(), LBFGS()))],
    ids=["names", "one name", "instances"],
)
def test_each_starts_where_the_last_one_stopped(scene: Scene, make: Callable[[], Chain]) -> None:
    both = make()
    assert isinstance(both, Chain)
    assert both.name == "lm+lbfgs"
    for solver, steps in zip(both.solvers, (6, 8), strict=True):
        solver.max_steps = steps
    stages = [Stage(3, name="rough"), Stage(3)]
    solution = solve(scene.problem, both, scene.start, stages)
    first = solve(scene.problem, both.solvers[0], scene.start, stages)
    trace = solution.trace
    assert trace.stage == ["lm/rough"] * 4 + ["lm"] * 4 + ["lbfgs"] * 9
    assert trace.step == list(range(17))
    torch.testing.assert_close(trace.energy[7], first.energy)  # where the first stopped ...
    torch.testing.assert_close(trace.energy[8], first.energy)  # ... the second one starts
    assert (trace.energy.diff(dim=0) <= 0).all()
    alone = solve(scene.problem, both.solvers[1], first.state)
    torch.testing.assert_close(solution.energy, alone.energy)


class Astray(Solver):
    """Walks away from where it is put, and reports that all is well."""

    name = "astray"
    max_steps = 3

    def __init__(self, step: float, person: int | None = None) -> None:
        self.length, self.person = step, person

    def init(self, problem: Problem, state: State) -> tuple[None, Status]:
        values = torch.stack(list(problem.values(state).values()), 1)
        outcome = torch.where(torch.isfinite(values.sum(1)), Outcome.RUNNING, Outcome.NOT_FINITE)
        return None, Status(outcome, values.sum(1), values)

    def step(self, problem: Problem, state: State, memory: None) -> tuple[State, None, Status]:
        away = torch.full_like(state.transl, self.length)
        if self.person is not None:
            away[torch.arange(len(state)) != self.person] = 0
        state = replace(state, transl=state.transl + away)
        return state, *self.init(problem, state)


@pytest.mark.parametrize("step", [0.5, NAN], ids=["uphill", "into nothing"])
@pytest.mark.parametrize("person", [None, 1])
def test_a_solver_that_goes_astray_has_not_been_there(scene: Scene, step: float, person: int | None) -> None:
    good = solve(scene.problem, LM(8), scene.start)
    worse = solve(scene.problem, chain(LM(8), Astray(step, person)), scene.start)
    assert torch.equal(worse.energy, good.energy)
    assert torch.equal(worse.state.transl, good.state.transl)
    assert not any(Outcome(code).failed for code in worse.outcome.tolist())
    torch.testing.assert_close(scene.problem.energy(worse.state), worse.energy)
    # In the middle of a chain it is no start for those behind it.
    between = solve(scene.problem, chain(LM(8), Astray(step, person), LM(4)), scene.start)
    further = solve(scene.problem, chain(LM(8), LM(4)), scene.start)
    torch.testing.assert_close(between.energy, further.energy)
    assert "astray" in between.trace.stage


def test_a_chain_takes_the_best_start_of_what_came_before(scene: Scene) -> None:
    """Of two starts per person, one of them far off, only the better one is refined."""
    far = replace(scene.start, transl=scene.start.transl + 2)
    order = torch.tensor([0, 3, 4, 1, 2, 5])  # the better one is not always the first
    both = fitkit.concatenate([scene.start, far]).select(order)
    solution = solve(scene.problem, chain(LM(6), LBFGS(6)), both, starts=2)
    single = solve(scene.problem, chain(LM(6), LBFGS(6)), scene.start)
    assert (solution.energy <= single.energy + 1e-9).all()
    assert solution.alternatives.score.shape == (3, 1)
    assert (solution.alternatives.score[:, 0] >= solution.energy).all()
    assert solution.trace.energy.shape == (7 + 7, 3)


def test_what_any_member_reads_is_checked_first(scene: Scene) -> None:
    class Looks(LM):
        name = "looks"
        requires = frozenset({"mask"})

    with pytest.raises(ValueError, match=r"lm\+looks needs \['mask'\]"):
        solve(scene.problem, chain("lm", Looks()), scene.start)


def test_chains_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown solver 'lmm'.*'lbfgs', 'lm'"):
        get_solver("lbfgs+lmm")
    with pytest.raises(ValueError, match=r"unknown solver ''"):
        get_solver("lm+")
    with pytest.raises(ValueError, match="no solvers"):
        chain()
    with pytest.raises(ValueError, match=r"\+ joins"):
        register_solver("a+b")


# -- stages --------------------------------------------------------------------------------------------------


def test_a_stage_moves_only_what_it_frees(scene: Scene) -> None:
    stages = [Stage(3, ("transl",)), Stage(3, ("betas",))]
    solution = solve(scene.problem, LM(), scene.start, stages)
    assert torch.equal(solution.state.body_pose, scene.start.body_pose)
    assert torch.equal(solution.state.global_orient, scene.start.global_orient)
    assert not torch.equal(solution.state.transl, scene.start.transl)
    assert not torch.equal(solution.state.betas, scene.start.betas)
    with pytest.raises(ValueError, match="none"):
        solve(scene.problem, LM(), scene.start, [Stage(3, ("left_hand_pose",))])


def test_a_stage_weighs_terms_as_it_says(scene: Scene) -> None:
    """The trace is of what was lowered; the answer is judged by the full objective."""
    weights = {"pose_prior": 7.0, "shape_prior": 0.0, "of another objective": 3.0}
    solution = solve(scene.problem, LM(), scene.start, [Stage(4, weights=weights)])
    staged = scene.problem.staged(weights=weights)
    torch.testing.assert_close(solution.trace.energy[0], staged.energy(scene.start))
    torch.testing.assert_close(solution.trace.energy[-1], staged.energy(solution.state))
    torch.testing.assert_close(solution.energy, scene.problem.energy(solution.state))
    whole, terms = scene.problem.values(scene.start), solution.trace.terms
    torch.testing.assert_close(
        solution.trace.values[0][:, terms.index("pose_prior")], 7 * whole["pose_prior"]
    )
    assert (solution.trace.values[0][:, terms.index("shape_prior")] == 0).all()


def test_a_stage_counts_only_some_terms_and_widens_kernels(scene: Scene) -> None:
    only = solve(scene.problem, LM(), scene.start, [Stage(2, only=("keypoints_2d",), widen=None)])
    term = Problem(scene.problem.body, scene.problem.observation, Keypoints2D(kernel=None))
    torch.testing.assert_close(only.trace.energy[-1], term.energy(only.state))
    wide = solve(scene.problem, LM(), scene.start, [Stage(2, widen=3.0)])
    torch.testing.assert_close(wide.trace.energy[0], scene.problem.staged(widen=3.0).energy(scene.start))


class Recording(SixD):
    """A chart that remembers what was asked of it."""

    calls: list[str] = []  # noqa: RUF012 - shared on purpose

    def __init__(self, reference: State, free: Sequence[str] | None = None) -> None:
        self.calls.append("made")
        super().__init__(reference, free)

    def decode(self, x: Tensor) -> State:
        self.calls.append("decode")
        return super().decode(x)


@pytest.mark.parametrize("solver", [LM(), LBFGS()], ids=lambda s: s.name)
def test_a_stage_moves_in_its_own_coordinates(scene: Scene, solver: Solver) -> None:
    Recording.calls.clear()
    solve(scene.problem, solver, scene.start, [Stage(2)])
    assert not Recording.calls
    solution = solve(scene.problem, solver, scene.start, [Stage(2, coordinates=Recording), Stage(1)])
    assert {"made", "decode"} == set(Recording.calls)
    assert (solution.energy < scene.problem.energy(scene.start)).all()

    class Prefers(type(solver)):  # type: ignore[misc]
        coordinates = Recording

    for stage, problem, used in (
        (Stage(1), scene.problem, True),  # a solver's own, where nobody says anything else
        (Stage(1), replace(scene.problem, coordinates=Tangent), False),
        (Stage(1, coordinates=Tangent), scene.problem, False),
    ):
        Recording.calls.clear()
        solve(problem, Prefers(), scene.start, [stage])
        assert bool(Recording.calls) == used


def turned(by: Sequence[float]) -> Callable[[Problem, State], State]:
    """Starts beside each start: the same, turned about the camera's y axis."""

    def branch(problem: Problem, state: State) -> State:
        angle = torch.tensor(by, dtype=state.transl.dtype).repeat(len(state))
        many = state.repeat(len(by))
        return replace(many, global_orient=geometry.yaw(angle)[:, None] @ many.global_orient)

    return branch


def test_a_branch_multiplies_starts_and_keeps_their_history(scene: Scene) -> None:
    seen = []

    def branch(problem: Problem, state: State) -> State:
        seen.append((len(problem), len(state)))
        return turned([1.0, 0.0, 2.0])(problem, state)

    stages = [Stage(2, name="before"), Stage(6, branch=branch, name="after")]
    solution = solve(scene.problem, LM(), scene.start, stages)
    assert seen == [(3, 3)]
    before = solve(scene.problem, LM(), scene.start, stages[:1])
    trace = solution.trace
    assert trace.stage == ["before"] * 3 + ["after"] * 7
    assert trace.energy.shape == (10, 3)
    assert trace.values.shape == (10, 3, 4)
    torch.testing.assert_close(trace.energy[:3], before.trace.energy)
    torch.testing.assert_close(trace.energy[-1], solution.energy)
    assert solution.alternatives.score.shape == (3, 2)
    # The branch that was not turned goes on as if there had been no others.
    plain = solve(scene.problem, LM(), before.state, [Stage(6)])
    assert (solution.energy <= plain.energy + 1e-9).all()
    with pytest.raises(ValueError, match=r"made 2 starts of 3, expected a multiple"):
        solve(scene.problem, LM(), scene.start, [Stage(1, branch=lambda _, state: state.select([0, 1]))])


def test_only_the_best_starts_are_kept(scene: Scene) -> None:
    sizes = []

    class Counts(LM):
        def init(self, problem: Problem, state: State) -> Any:
            sizes.append(len(state))
            return super().init(problem, state)

    stages = [Stage(2, branch=turned([0.0, 3.0, 1.0, -1.0]), keep=2), Stage(2, keep=1), Stage(1)]
    solution = solve(scene.problem, Counts(), scene.start, stages)
    assert sizes == [12, 6, 3]
    unturned = solve(scene.problem, LM(), scene.start, [Stage(2), Stage(2), Stage(1)])
    assert (solution.energy <= unturned.energy + 1e-9).all()
    # Everything that was left behind by the two choices.
    assert solution.alternatives.score.shape == (3, 3)
    for place, state in enumerate(solution.alternatives.states):
        torch.testing.assert_close(scene.problem.energy(state), solution.alternatives.score[:, place])
    # Stages that moved only a part leave nothing that would count as an answer.
    part = [Stage(2, ("transl",), branch=turned([0.0, 3.0]), keep=1), Stage(1)]
    assert solve(scene.problem, LM(), scene.start, part).alternatives.score.shape == (3, 0)


# -- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["lm", "lbfgs", "bfgs", "adam", "lm+lbfgs"])
def test_the_time_limit_stops_everybody_where_they_are(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    """A clock that runs a second per look: no test waits for it."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    solution = solve(
        scene.problem, get_solver(solver), scene.start, [Stage(500, name="only")], max_seconds=9.0
    )
    assert (solution.outcome == Outcome.MAX_SECONDS).all()
    assert 2 <= len(solution.trace.step) <= 12
    assert (solution.energy <= scene.problem.energy(scene.start)).all()
    torch.testing.assert_close(scene.problem.energy(solution.state), solution.energy)
    at_once = solve(scene.problem, get_solver(solver), scene.start, [Stage(500)], max_seconds=0.0)
    assert torch.equal(at_once.state.transl, scene.start.transl)


def test_fit_takes_start_stages_bounds_and_seconds(scene: Scene, body: BodyModel) -> None:
    observation, objective = scene.problem.observation, scene.problem.objective
    result = fitkit.fit(
        observation,
        objective=objective,
        start=scene.start.to(torch.float32),
        stages=[Stage(4, name="mine")],
        bounds={"betas": (-0.05, 0.05)},
    )
    assert result.trace is not None
    assert result.trace.stage == ["mine"] * 5
    assert result.state.betas.abs().max() <= 0.05
    assert result.state.betas.abs().max() > 0.049
    assert len(result.trace.energy[0]) == 3
    inside = replace(scene.start, betas=scene.start.betas.clamp(-0.05, 0.05))
    torch.testing.assert_close(result.trace.energy[0], scene.problem.energy(inside), rtol=1e-3, atol=1e-3)
    hurried = fitkit.fit(observation, objective=objective, start=scene.start, max_seconds=0.0)
    assert hurried.status == (Outcome.MAX_SECONDS,) * 3
    assert not any(status.failed for status in hurried.status)
    assert torch.equal(hurried.state.body_pose, scene.start.body_pose)
    with pytest.raises(ValueError, match="start has 2 people, but 3 were observed"):
        fitkit.fit(observation, start=scene.start.select([0, 1]))
    with pytest.raises(ValueError, match="bounds on body_pose"):
        fitkit.fit(observation, bounds={"body_pose": (-1.0, 1.0)})


# -- how clear it was ----------------------------------------------------------------------------------------


@fitkit.objective(requires=("score",))
def two_ways(pred: Prediction, obs: Observation, ridge: float) -> Tensor:
    """An upright body looks at the camera (energy 0) or away from it (energy `score`).

    With R33 the cosine to the camera's axis: `ridge (1 - R33^2) + score (1 + R33) / 2`, and head up.
    """
    assert obs.score is not None
    _, up, forward = pred.global_orient[:, 0].unbind(2)
    axes = torch.eye(3).to(forward)
    sideways = (2 * ridge) ** 0.5 * forward[:, :2]
    toward = (obs.score / 2).sqrt()[:, None] * (forward + axes[2])
    return torch.cat([sideways, toward, 3 * (up + axes[1])], 1)


HIGHER = torch.tensor([1.0, 3.0, 0.25], dtype=torch.float64)
EXACT = LM(80, tolerance=1e-12)


def scored(people: MakePeople) -> Observation:
    _, observation = people(3)
    return replace(observation, score=HIGHER)


def test_the_margin_is_the_energy_of_the_other_way(people: MakePeople) -> None:
    result = fitkit.fit(scored(people), objective=two_ways(ridge=20.0), stages=[Stage(80)], solver=EXACT)
    torch.testing.assert_close(result.energy, torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.margin, HIGHER, atol=1e-4, rtol=0)
    other, margin = result.runner_up
    assert (result.state.global_orient[:, 0, 2, 2] < -0.99).all()
    assert (other.global_orient[:, 0, 2, 2] > 0.99).all()
    problem = Problem(result.body, result.observation, two_ways(ridge=20.0))
    torch.testing.assert_close(problem.energy(other), result.energy + margin)
    # Slices stay with their person.
    for order in ([2, 0], [1], [2, 1, 0]):
        part = result[order]
        torch.testing.assert_close(part.margin, result.margin[order])
        energy = problem.select(order).energy(part.runner_up[0])
        torch.testing.assert_close(energy, part.energy + part.margin)


def facing(body: BodyModel, *yaws: float) -> State:
    """Starts of three people, upright, turned from the camera by these angles."""
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    yaw = geometry.yaw(torch.tensor(yaws, dtype=torch.float64)).repeat(3, 1, 1)
    return replace(body.neutral(len(yaw)), global_orient=(upright @ yaw)[:, None])


def test_a_start_that_was_dropped_is_still_an_alternative(body: BodyModel, people: MakePeople) -> None:
    """Finished, it gives the margin; dropped early, one that is too large."""
    problem = Problem(body, scored(people), two_ways(ridge=20.0))
    margins = []
    for stages in ([Stage(80)], [Stage(79, keep=1), Stage(1)], [Stage(1, keep=1), Stage(79)]):
        solution = solve(problem, EXACT, facing(body, 2.7, 0.4), stages, starts=2)
        torch.testing.assert_close(solution.energy, torch.zeros(3).double(), atol=1e-6, rtol=0)
        _, margin = solution.alternatives.runner_up(body, solution.state)
        margins.append(margin)
    torch.testing.assert_close(margins[0], HIGHER, atol=1e-4, rtol=0)
    torch.testing.assert_close(margins[1], HIGHER, atol=1e-4, rtol=0)
    assert (margins[2] >= margins[0]).all()
    assert torch.isfinite(margins[2]).all()


def test_ends_in_one_place_leave_no_doubt(body: BodyModel, people: MakePeople) -> None:
    problem = Problem(body, scored(people), two_ways(ridge=20.0))
    solution = solve(problem, EXACT, facing(body, 0.5, -0.6, 0.9), starts=3)
    assert solution.alternatives.score.shape == (3, 2)
    assert (solution.alternatives.score < 1e-6).all()
    other, margin = solution.alternatives.runner_up(body, solution.state)
    assert torch.equal(margin, torch.full_like(margin, INF))
    assert torch.equal(other.global_orient, solution.state.global_orient)


def test_no_other_start_is_no_runner_up(scene: Scene) -> None:
    result = fitkit.fit(
        scene.problem.observation, objective=scene.problem.objective, start=scene.start, stages=[Stage(2)]
    )
    assert torch.isinf(result.margin).all()
    assert (result.runner_up[0].transl == result.state.transl).all()


def test_what_is_not_finite_is_no_alternative(scene: Scene) -> None:
    lost = replace(scene.start, transl=scene.start.transl * NAN)
    order = torch.tensor([0, 3, 4, 1, 2, 5])
    both = fitkit.concatenate([scene.start, lost]).select(order)
    solution: Solution = solve(scene.problem, LM(5), both, starts=2)
    assert torch.isfinite(solution.energy).all()
    other, margin = solution.alternatives.runner_up(scene.problem.body, solution.state)
    assert torch.isinf(margin).all()
    assert torch.isfinite(other.transl).all()


def test_one_person_in_a_pickle_leaves_the_others_behind(scene: Scene) -> None:
    trace = solve(scene.problem, LM(6), scene.start, [Stage(6, name="mine")]).trace
    again: Trace = pickle.loads(pickle.dumps(trace.select(torch.tensor([1]))))
    assert again.energy.shape == (len(trace), 1)
    torch.testing.assert_close(again.energy[:, 0], trace.energy[:, 1])
    torch.testing.assert_close(again.values[:, 0], trace.values[:, 1])
    assert (again.stage, again.seconds, again.terms) == (trace.stage, trace.seconds, trace.terms)
    assert again.steps_made.tolist() == trace.steps_made[1:2].tolist()
    assert len(pickle.dumps(again)) < len(pickle.dumps(trace))


def test_nobody_goes_through_every_stage(body: BodyModel, scene: Scene) -> None:
    nobody = scene.problem.select([])
    for stages in (default_stages(4), default_stages(4, jumps=True)):
        start = scene.start.select([])
        solution = solve(nobody, LM(), start, stages, 2, kinds=(0, 0))
        assert len(solution.energy) == len(solution.alternatives.score) == 0


def test_what_does_not_go_together_is_refused(scene: Scene) -> None:
    observation = scene.problem.observation
    with pytest.raises(ValueError, match="jumps and stages given together"):
        fitkit.fit(observation, stages=[Stage(1)], jumps=True)
    with pytest.raises(ValueError, match="2 kinds for 1 starts"):
        solve(scene.problem, LM(), scene.start, kinds=(0, 1))
    with pytest.raises(ValueError, match="a hint of 1 rows for 3 starts"):
        solve(scene.problem, LM(), scene.start, hint=observation.select([0]))


def test_chains_are_joined_and_stages_are_checked() -> None:
    joined = chain(chain("lm", LBFGS(5)), "bfgs+adam")
    assert joined.name == "lm+lbfgs+bfgs+adam"
    with pytest.raises(ValueError, match="keep is 0"):
        Stage(2, keep=0)
    with pytest.raises(ValueError, match="max_steps is -1"):
        Stage(-1)


def test_margins_of_jumps_are_in_what_they_were_chosen_by(people: MakePeople) -> None:
    _, observation = people(6, seed=11)
    result = fitkit.fit(replace(observation, world=None), jumps=True)
    assert (result.margin >= 0).all()
    assert torch.isfinite(result.margin).any()

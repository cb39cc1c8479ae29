"""What a learned solver may ask of `fit` and `solve`: its own start, a problem handed over, states in the trace."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import fitkit
from fitkit import geometry
from fitkit._select import Rows, choose
from fitkit._summary import summarise
from fitkit.body.model import BodyModel
from fitkit.coordinates import retract
from fitkit.objectives import Guess, Keypoints2D
from fitkit.observation import Observation
from fitkit.priors import JointLimits, ShapePrior, gaussian_prior
from fitkit.problem import Problem
from fitkit.registry import chain
from fitkit.solve import CHECK_EVERY, Solution, solve
from fitkit.solver import Outcome, Solver, Stage, Status
from fitkit.solvers import LBFGS, LM
from fitkit.state import State

MakePeople = Callable[..., tuple[State, Observation]]
OBJECTIVE = Keypoints2D() + gaussian_prior() + ShapePrior() + JointLimits()


@dataclass(frozen=True)
class Count(Rows):
    """Steps that each person made."""

    count: Tensor

    def __len__(self) -> int:
        return len(self.count)


class Toy(Solver):
    """Stands in for a network: a start of its own, three fixed steps, and an estimate for those after it.

    Args:
        spread: of its estimate; None hands over nothing.
        uneven: whether people finish at different steps, by their distance from the camera.
    """

    name = "toy"
    network = "toy-1"
    max_steps = 3

    def __init__(self, spread: float | None = None, uneven: bool = False) -> None:
        self.spread, self.uneven = spread, uneven

    def start(self, problem: Problem) -> State | None:
        assert not torch.is_grad_enabled()
        keypoints = problem.observation.keypoints
        assert keypoints is not None
        offset = (keypoints.xy.mean(1) - problem.observation.camera.center) / 1000
        depth = torch.full_like(offset[:, :1], 4.0)
        upright = torch.diag(torch.tensor([1.0, -1.0, -1.0])).to(offset).expand(len(problem), 1, 3, 3)
        return replace(
            problem.body.neutral(len(problem)),
            global_orient=upright,
            transl=torch.cat([4 * offset, depth], 1),
        )

    def init(self, problem: Problem, state: State) -> tuple[Count, Status]:
        memory = Count(torch.zeros(len(state), dtype=torch.long))
        return memory, self._status(problem, state, memory.count)

    def step(self, problem: Problem, state: State, memory: Count) -> tuple[State, Count, Status]:
        blocks = problem.free_blocks(state)
        turn = 0.1 * torch.linspace(-1, 1, max(block.stop for block in blocks.values())).to(state.transl)
        state = retract(state, turn.expand(len(state), -1), blocks)
        memory = Count(memory.count + 1)
        return state, memory, self._status(problem, state, memory.count)

    def hand_over(self, problem: Problem, state: State) -> Problem:
        if self.spread is None:
            return problem
        seen = replace(problem.observation, guess=state)
        return replace(problem, observation=seen, objective=problem.objective + Guess(self.spread))

    def _status(self, problem: Problem, state: State, count: Tensor) -> Status:
        values = torch.stack(list(problem.values(state).values()), 1)
        last = 1 + (state.betas[:, 0] > 0) if self.uneven else self.max_steps
        done = torch.where(count >= last, Outcome.FINISHED, Outcome.RUNNING)
        return Status(done, values.sum(1), values)


def away(state: State, other: State) -> float:
    """Mean angle between the joints of two batches, radians."""
    return float(geometry.geodesic(state.body_pose, other.body_pose).mean())


# -- through fit ---------------------------------------------------------------------------------------------


def test_a_start_of_its_own_is_the_only_one(people: MakePeople) -> None:
    _, observation = people(3)
    result = fitkit.fit(observation, solver=Toy(), objective=OBJECTIVE)
    assert result.status == (Outcome.FINISHED,) * 3
    assert "network" in result.status[0].message
    assert result.raise_if_failed().ok.all()
    trace = result.trace
    assert trace is not None
    assert trace.stage == [""] * 4  # its own steps, no schedule
    assert trace.steps_made.tolist() == [3, 3, 3]
    assert result.alternatives is not None
    assert result.alternatives.score.shape == (3, 0)
    problem = Problem(result.body, observation, OBJECTIVE)
    torch.testing.assert_close(result.energy, problem.energy(result.state))


def test_schedules_are_the_callers_or_its_own(body: BodyModel, people: MakePeople) -> None:
    start, observation = people(2)

    class Staged(Toy):
        stages = (Stage(1, name="first"), Stage(1, name="second"))

    def stages(solver: Solver, given: list[Stage] | None = None, start: State | None = None) -> list[str]:
        result = fitkit.fit(observation, solver=solver, objective=OBJECTIVE, stages=given, start=start)
        assert result.trace is not None
        return result.trace.stage

    assert stages(Staged()) == ["first"] * 2 + ["second"] * 2
    assert stages(Staged(), [Stage(2, name="mine")]) == ["mine"] * 3
    assert stages(Staged(), start=start) == ["first"] * 2 + ["second"] * 2
    assert stages(Toy(), start=start) == [""] * 4
    assert set(stages(LM(2), start=start)) == {"fine"}


def test_a_start_left_to_fit_is_made_by_it(people: MakePeople) -> None:
    _, observation = people(2)

    class Shy(Toy):
        def start(self, problem: Problem) -> State | None:
            return None

    result = fitkit.fit(observation, solver=Shy(), objective=OBJECTIVE)
    assert result.alternatives is not None
    assert result.alternatives.score.shape[1] > 0
    assert result.trace is not None
    assert {"place", "coarse"} < set(result.trace.stage)


def test_what_does_not_go_with_a_start_of_its_own_is_refused(people: MakePeople) -> None:
    start, observation = people(2)
    for given in (None, start):
        for solver in (Toy(), chain(Toy(), LM())):
            with pytest.raises(ValueError, match=r"jumps with solver toy"):
                fitkit.fit(observation, solver=solver, jumps=True, start=given)

    class Fewer(Toy):
        def start(self, problem: Problem) -> State | None:
            return start.select([0])

    with pytest.raises(ValueError, match="the start of solver toy has 1 people, but 2 were observed"):
        fitkit.fit(observation, solver=Fewer())

    class Looks(Toy):
        requires = frozenset({"mask"})

    with pytest.raises(ValueError, match=r"toy needs \['mask'\]"):
        fitkit.fit(observation, solver=Looks())


def test_networks_are_reported(people: MakePeople, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    _, observation = people(2)
    assert fitkit.fit(observation, solver=LM(2)).networks == ()
    result = fitkit.fit(observation, solver=chain(Toy(), LM(2), Toy()), objective=OBJECTIVE)
    assert result.networks == ("toy-1",)
    assert result[1].networks == ("toy-1",)
    assert pickle.loads(pickle.dumps(result[[0]])).networks == ("toy-1",)
    summarise("a.jpg", result, tmp_path, 1.0)
    assert "solver toy+lm+toy (toy-1), body" in capsys.readouterr().out
    result.save(tmp_path)
    written = json.loads((tmp_path / "result.json").read_text())
    assert [person["networks"] for person in written["people"]] == [["toy-1"]] * 2
    assert "toy-1" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("solver", [Toy(0.1), chain(Toy(0.1), LM(5)), chain(Toy(0.1, uneven=True), LM(5))])
def test_permuted_people_get_permuted_answers(people: MakePeople, solver: Solver) -> None:
    _, observation = people(4)
    order = [2, 0, 3, 1]
    whole = fitkit.fit(observation, solver=solver, objective=OBJECTIVE)
    other = fitkit.fit(observation.select(order), solver=solver, objective=OBJECTIVE)
    torch.testing.assert_close(other.energy, whole.energy[order])
    torch.testing.assert_close(other.state.body_pose, whole.state.body_pose[order])
    assert other.status == tuple(whole.status[row] for row in order)


def test_nobody_is_no_trouble(people: MakePeople) -> None:
    _, observation = people(2)
    assert len(fitkit.fit(observation.select([]), solver=chain(Toy(0.1), LM()))) == 0
    problem = Problem(fitkit.open_body().to(torch.float64), observation, OBJECTIVE).select([])
    solution = solve(problem, chain(Toy(0.1), LM(2)), people(2)[0].select([]), states=True)
    assert len(solution.energy) == 0
    assert [len(state) for state in solution.trace.states] == [0] * len(solution.trace)


# -- handing over --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem(body: BodyModel, people: MakePeople) -> Problem:
    return Problem(body, people(4)[1], OBJECTIVE)


def run(problem: Problem, solver: object, **more: object) -> Solution:
    start = Toy().start
    with torch.no_grad():
        state = start(problem)
    assert state is not None
    return solve(problem, solver, state, **more)  # type: ignore[arg-type]


def test_the_tighter_the_spread_the_nearer_the_answer_stays(problem: Problem) -> None:
    toy = run(problem, Toy())
    refined = [run(problem, chain(Toy(spread), LM(15))) for spread in (1e-3, 0.1, None)]
    far = [away(one.state, toy.state) for one in refined]
    assert far[0] < 0.01 < far[1] < far[2]
    for one in refined:
        torch.testing.assert_close(one.energy, problem.energy(one.state))  # of the original objective
        assert (one.energy <= toy.energy).all()
        assert set(one.values) == {term.name for term in OBJECTIVE.terms()}
    free = run(problem, chain(Toy(), LM(15)))
    torch.testing.assert_close(free.energy, refined[2].energy)


def test_the_trace_shows_what_was_lowered(problem: Problem) -> None:
    solution = run(problem, chain(Toy(0.1), LM(6)), states=True)
    trace = solution.trace
    assert trace.terms == (*(term.name for term in OBJECTIVE.terms()), "guess")
    pull = trace.values[..., -1]
    assert torch.isnan(pull[:4]).all()
    assert (pull[4] == 0).all()
    assert (pull[5:] > 0).any()
    seen = replace(problem.observation, guess=trace.states[3])
    whole = Problem(problem.body, seen, OBJECTIVE + Guess(0.1))
    for moment in (4, 6, len(trace) - 1):
        torch.testing.assert_close(trace.energy[moment], whole.energy(trace.states[moment]))
    again = pickle.loads(pickle.dumps(trace.select(torch.tensor([2]))))
    torch.testing.assert_close(again.values[:, 0], trace.values[:, 2], equal_nan=True)


def test_everybody_after_it_gets_what_was_handed_over(problem: Problem) -> None:
    """A solver that leaves the problem alone passes it on."""
    toy = run(problem, Toy())
    for solver in (chain(Toy(1e-3), LM(5), LBFGS(5)), chain(Toy(1e-3), LM(5), LM(5))):
        assert away(run(problem, solver).state, toy.state) < 0.01
    with pytest.raises(ValueError, match=r"guess.*twice"):
        run(problem, chain(Toy(0.1), Toy(0.1), LM()))


def test_the_last_solver_hands_over_nothing(problem: Problem) -> None:
    class Never(Toy):
        def hand_over(self, problem: Problem, state: State) -> Problem:
            raise AssertionError("nobody comes after it")

    run(problem, Never())
    run(problem, chain(LM(2), Never()))


def test_what_is_handed_over_must_be_of_the_same_people(problem: Problem) -> None:
    class Loses(Toy):
        def hand_over(self, problem: Problem, state: State) -> Problem:
            return problem.select([0])

    class Says(Toy):
        def hand_over(self, problem: Problem, state: State) -> Problem:
            return None  # type: ignore[return-value]

    with pytest.raises(ValueError, match="toy handed over one of 1 people, expected a Problem of the same 4"):
        run(problem, chain(Loses(), LM()))
    with pytest.raises(Exception, match=r"(?i)NoneType|Problem"):
        run(problem, chain(Says(), LM()))


def test_a_chain_chooses_one_start_before_it_hands_over(problem: Problem) -> None:
    """Of two starts per person, the better one's end is the estimate."""
    with torch.no_grad():
        good = Toy().start(problem)
    assert good is not None
    bad = replace(good, transl=good.transl + 1)
    order = torch.tensor([0, 4, 5, 1, 2, 6, 7, 3])
    both = fitkit.concatenate([good, bad]).select(order)
    solution = solve(problem, chain(Toy(0.1), LM(6)), both, starts=2, states=True)
    single = solve(problem, chain(Toy(0.1), LM(6)), good, states=True)
    torch.testing.assert_close(solution.energy, single.energy)
    for mine, its in zip(solution.trace.states, single.trace.states, strict=True):
        torch.testing.assert_close(mine.transl, its.transl)


# -- states of the trace -------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [LM(8), LBFGS(8), Toy(), Toy(uneven=True)], ids=lambda s: s.name)
def test_states_are_those_of_the_energies(problem: Problem, solver: Solver) -> None:
    plain = run(problem, solver)
    assert plain.trace.states == ()
    solution = run(problem, solver, states=True)
    trace = solution.trace
    torch.testing.assert_close(solution.energy, plain.energy)
    assert len(trace.states) == len(trace.step)
    for energy, state in zip(trace.energy, trace.states, strict=True):
        torch.testing.assert_close(problem.energy(state), energy)
    torch.testing.assert_close(trace.states[-1].body_pose, solution.state.body_pose)


@pytest.mark.parametrize("every", [1, 4])
def test_states_follow_whoever_leaves_early(
    problem: Problem, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody looks at every step who is done, as on a GPU."""
    monkeypatch.setitem(CHECK_EVERY, "cpu", every)
    solution = run(problem, chain(Toy(0.2, uneven=True), LM(30, tolerance=1e-2)), states=True)
    steps = solution.trace.steps_made
    assert len(set(steps.tolist())) > 1
    alone = [
        solve(problem.select([row]), chain(Toy(0.2, uneven=True), LM(30, tolerance=1e-2)), start, states=True)
        for row in range(4)
        for start in [solution.trace.states[0].select([row])]
    ]
    for row, one in enumerate(alone):
        mine = torch.stack([state.transl[row] for state in solution.trace.states]).unique_consecutive(dim=0)
        its = torch.stack([state.transl[0] for state in one.trace.states]).unique_consecutive(dim=0)
        torch.testing.assert_close(mine, its, atol=1e-7, rtol=1e-6)


def test_states_follow_branches_and_starts_that_are_dropped(problem: Problem) -> None:
    def branch(problem: Problem, state: State) -> State:
        angle = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64).repeat(len(state))
        many = state.repeat(3)
        return replace(many, global_orient=geometry.yaw(angle)[:, None] @ many.global_orient)

    with torch.no_grad():
        good = Toy().start(problem)
    assert good is not None
    other = replace(good, betas=good.betas + 1)
    both = choose(torch.arange(8) % 2 == 0, good.repeat(2), other.repeat(2))
    stages = [Stage(2, keep=1), Stage(4, branch=branch, keep=2), Stage(2)]
    solution = solve(problem, LM(), both, stages, starts=2, states=True)
    trace = solution.trace
    assert len(trace.states) == len(trace) == 3 + 5 + 3
    for energy, state in zip(trace.energy, trace.states, strict=True):
        torch.testing.assert_close(problem.energy(state), energy)
    torch.testing.assert_close(trace.states[-1].transl, solution.state.transl)


def test_states_survive_choosing_people_pickles_and_copies(people: MakePeople) -> None:
    _, observation = people(3)
    result = fitkit.fit(observation, solver=chain(Toy(0.1), LM(4)), objective=OBJECTIVE, states=True)
    assert result.trace is not None
    states = result.trace.states
    assert len(states) == len(result.trace.step)
    for other in (
        result[1],
        pickle.loads(pickle.dumps(result[1])),
        pickle.loads(pickle.dumps(result))[1],
        copy.deepcopy(result)[1],
        pickle.loads(pickle.dumps(result[[2, 1]]))[1],
    ):
        assert other.trace is not None
        mine = other.trace.states
        assert len(mine) == len(states)
        for one, whole in zip(mine, states, strict=True):
            assert torch.equal(one.body_pose, whole.body_pose[1:2])
    small, large = (len(pickle.dumps(part.trace)) for part in (result[1], result))
    assert small < large


def test_fit_keeps_no_states_unless_asked(people: MakePeople) -> None:
    _, observation = people(2)
    result = fitkit.fit(observation, solver=LM(4))
    assert result.trace is not None
    assert result.trace.states == ()
    assert pickle.loads(pickle.dumps(result.trace)).states == ()
    kept = fitkit.fit(observation, solver=LM(4), states=True)
    assert kept.trace is not None
    assert len(kept.trace.states) == len(kept.trace)
    torch.testing.assert_close(kept.trace.states[-1].body_pose, kept.state.body_pose)


def test_time_may_run_out(problem: Problem) -> None:
    solution = run(problem, chain(Toy(0.1), LM(5)), max_seconds=0.0, states=True)
    assert solution.outcome.tolist() == [int(Outcome.MAX_SECONDS)] * 4
    assert len(solution.trace) == 2
    assert len(solution.trace.states) == 2
    torch.testing.assert_close(solution.energy, problem.energy(solution.state))
    assert torch.equal(solution.state.body_pose, solution.trace.states[0].body_pose)

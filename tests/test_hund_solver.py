"""HUND as a solver: through `fit` and `solve`, in chains, what it was not trained with, and its files."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fitkit
from fitkit import geometry
from fitkit.api import default_objective
from fitkit.body import open_body
from fitkit.body.model import BodyModel
from fitkit.keypoints import Keypoints
from fitkit.metrics import mpjpe
from fitkit.objectives import Guess, GuessedDepth, Keypoints2D, Outline
from fitkit.observation import Observation
from fitkit.priors import ShapePrior, flow_prior
from fitkit.problem import Problem
from fitkit.registry import get_solver
from fitkit.simulate import ANNOTATED, Crowd, Variety, detect
from fitkit.solve import solve
from fitkit.solver import Outcome
from fitkit.solvers import LM
from fitkit.solvers.hund import HUND, load_network, save_network
from fitkit.solvers.hund.context import POINTS
from fitkit.state import State
from tests.hund_cases import TERMS, MakePeople, network, problem_of, same, small

SHIPPED = Path(fitkit.solvers.__file__).parent / "hund" / "data" / "hund.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(network(), tmp_path_factory.mktemp("hund") / "tiny.safetensors")


@pytest.fixture
def hund(weights: Path) -> HUND:
    return HUND(weights)


@pytest.fixture
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- solver ------------------------------------------------------------------------------------------------------


def test_the_shipped_network() -> None:
    first, second = HUND(), get_solver("hund")
    assert isinstance(second, HUND)
    assert first.model is second.model is load_network()[0]
    assert first.network.startswith("hund (open-1, ")
    assert not any(parameter.requires_grad for parameter in first.model.parameters())
    assert not first.model.training
    assert first.model.settings.terms == TERMS
    assert set(first.model.settings.sets) == {"mediapipe33", "coco17"}
    assert (first.model.spread > 0).all()


def test_the_shipped_network_was_trained() -> None:
    """On people whose poses a prior makes up: every stage lowers the objective, and bodies come near the true ones."""
    body, draw = open_body(), torch.Generator().manual_seed(3)
    eye = torch.eye(3).expand(96, 3, 3, 3)
    sampled = flow_prior().sample(96, torch.Generator().manual_seed(4)).float()
    poses = torch.cat([eye[:, :1], sampled, eye[:, 1:]], 1)
    scene = Crowd(
        body, poses, variety=Variety(seated=0.0, tumbled=0.0, children=0.0, shaken=0.0, largest=0.8)
    )(96, draw)
    observation = detect(body, scene, draw, ANNOTATED)
    problem = Problem(body, observation, default_objective(observation))
    solver = HUND()
    with torch.no_grad():
        states = solve(problem, solver, solver.start(problem), states=True).trace.states
    truth = body.joints(scene.state)[:, :22]
    errors = [float(mpjpe(body.joints(state)[:, :22], truth).median()) for state in states]
    energies = [float(problem.energy(state).median()) for state in states]
    assert energies == sorted(energies, reverse=True)
    assert errors[1] < errors[0]
    assert errors[-1] < 0.11


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("solver", ["hund", "hund+lm"])
def test_the_gpu_finds_what_the_cpu_finds(people: MakePeople, solver: str) -> None:
    _, observation = people(4)
    there = fitkit.fit(observation, solver=solver, device="cuda")
    here = fitkit.fit(observation, solver=solver)
    assert there.state.transl.is_cuda
    torch.testing.assert_close(there.energy.cpu(), here.energy, rtol=1e-3, atol=1e-3)


def test_through_fit(hund: HUND, people: MakePeople) -> None:
    _, observation = people(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fitkit.fit(observation, solver=hund, states=True)
    assert result.status == (Outcome.FINISHED,) * 3
    assert result.solver == "hund"
    assert result.networks == (hund.network,)
    assert hund.network.startswith("tiny (open-1, ")
    trace = result.trace
    assert trace is not None
    assert len(trace) == 6
    problem = Problem(result.body, observation, default_objective(observation))
    for energy, state in zip(trace.energy, trace.states, strict=True):
        torch.testing.assert_close(problem.energy(state), energy)
    with torch.no_grad():
        same(hund.start(problem), trace.states[0])
    torch.testing.assert_close(result.energy, problem.energy(result.state))


def test_a_persons_answer_is_theirs_alone(hund: HUND, people: MakePeople) -> None:
    _, observation = people(5)
    whole = fitkit.fit(observation, solver=hund)
    order = [3, 1, 4, 0, 2]
    mixed = fitkit.fit(observation.select(order), solver=hund)
    same(whole.state.select(order), mixed.state, 1e-5)
    for row in (0, 3):
        alone = fitkit.fit(observation.select(row), solver=hund)
        same(whole.state.select(row), alone.state, 1e-5)


@pytest.mark.parametrize("stages", [1, 8, 10])
def test_more_or_fewer_stages(weights: Path, people: MakePeople, stages: int) -> None:
    _, observation = people(2)
    result = fitkit.fit(observation, solver=HUND(weights, stages=stages))
    assert result.trace is not None
    assert result.trace.steps_made.tolist() == [stages] * 2
    assert result.status == (Outcome.FINISHED,) * 2
    assert torch.isfinite(result.energy).all()
    usual = fitkit.fit(observation, solver=HUND(weights)).trace
    assert usual is not None
    shared = min(stages, 5) + 1
    torch.testing.assert_close(result.trace.energy[:shared], usual.energy[:shared])


@pytest.mark.parametrize("betas", [16, 10])
def test_a_given_start_is_where_it_begins(
    hund: HUND, body: BodyModel, people: MakePeople, betas: int
) -> None:
    start, observation = people(3)
    start = replace(start, betas=start.betas[:, :betas])
    result = fitkit.fit(observation, solver=hund, start=start)
    problem = Problem(body, observation, default_objective())
    assert result.trace is not None
    torch.testing.assert_close(result.trace.energy[0], problem.energy(start))
    own = fitkit.fit(observation, solver=hund)
    assert (result.state.body_pose - own.state.body_pose).abs().max() > 1e-6
    assert result.state.betas.shape == (3, 16)


def test_what_a_start_has_beside_is_kept(hund: HUND, body: BodyModel, people: MakePeople) -> None:
    start, observation = people(2)
    expression = torch.full((2, body.num_expression), 0.3).double()
    assert expression.numel() > 0
    result = fitkit.fit(observation, solver=hund, start=replace(start, expression=expression))
    torch.testing.assert_close(result.state.expression, expression)


def test_refinement_never_ends_above_it(weights: Path, people: MakePeople) -> None:
    _, observation = people(4)
    alone = fitkit.fit(observation, solver=HUND(weights))
    away = []
    for hold in (1e6, 1.0, 0.0):
        chain = fitkit.solver.Chain((HUND(weights, hold=hold), LM(4)))
        refined = fitkit.fit(observation, solver=chain)
        assert (refined.energy <= alone.energy * (1 + 1e-9)).all()
        assert refined.solver == "hund+lm"
        assert refined.networks == alone.networks
        assert set(refined.values) == set(TERMS)
        away.append(float(geometry.geodesic(refined.state.body_pose, alone.state.body_pose).mean()))
    assert away[0] < 0.01 < away[2]
    assert away[0] < away[1] <= away[2] * 1.05


def test_the_guess_is_as_wide_as_the_network_errs(weights: Path, body: BodyModel, people: MakePeople) -> None:
    solver = HUND(weights, hold=4.0)
    problem = problem_of(body, people, 2)
    state, _ = people(2)
    left = solver.hand_over(problem, state)
    term, depth = left.objective.terms()[-2:]
    assert isinstance(term, Guess)
    assert isinstance(depth, GuessedDepth)
    assert depth.spread == pytest.approx(0.035)
    spread = 2 * solver.model.spread / 2
    assert term.spread == tuple(spread[:-1].tolist())
    assert term.shape == pytest.approx(float(spread[-1]))
    assert left.observation.guess is not None
    same(left.observation.guess, state)
    assert HUND(weights, hold=0.0).hand_over(problem, state) is problem


def spoilt(observation: Observation, row: int, how: str) -> Observation:
    seen, world = observation.keypoints, observation.world
    assert seen is not None
    assert world is not None
    xy, confidence = seen.xy.clone(), seen.confidence.clone()
    if how == "nan":
        xy[row] = math.nan
    elif how == "unseen":
        confidence[row] = 0
    elif how == "far":
        xy[row] = 1e12
    else:
        xy[row] = 300.0
    return replace(observation, keypoints=Keypoints(seen.set, xy, confidence))


@pytest.mark.parametrize("solver", ["hund", "hund+lm"])
@pytest.mark.parametrize("how", ["nan", "unseen", "far", "one place"])
def test_one_spoilt_person_does_not_hurt_the_others(
    weights: Path, people: MakePeople, how: str, solver: str
) -> None:
    _, observation = people(3)
    made = fitkit.solver.Chain((HUND(weights), *([LM(2)] if "lm" in solver else [])))
    others = fitkit.fit(observation.select([0, 2]), solver=made)
    result = fitkit.fit(spoilt(observation, 1, how), solver=made)
    same(others.state, result.state.select([0, 2]), 1e-4)
    assert all(torch.isfinite(part).all() for part in result.state.parts().values())
    if how in ("nan", "unseen"):
        assert result.status[1] == Outcome.NOT_ENOUGH_SEEN


def test_a_mask_is_seen_at_the_start_and_in_the_stages(hund: HUND, people: MakePeople) -> None:
    """Also where no term reads it: what is trimmed away for solvers is not what the network reads."""
    _, observation = people(2)
    mask = torch.zeros(2, 80, 100).double()
    mask[:, :40] = 1
    masked = replace(observation, mask=mask)
    plain, other = (fitkit.fit(each, solver=hund) for each in (observation, masked))
    assert (plain.state.body_pose - other.state.body_pose).abs().max() > 1e-6
    start = people(2)[0]
    plain, other = (fitkit.fit(each, solver=hund, start=start) for each in (observation, masked))
    assert plain.trace is not None
    assert other.trace is not None
    torch.testing.assert_close(plain.trace.energy[0], other.trace.energy[0])
    assert (plain.state.body_pose - other.state.body_pose).abs().max() > 1e-6


@pytest.mark.usefixtures("silent")
def test_a_box_and_a_mask_are_enough(hund: HUND, people: MakePeople) -> None:
    _, observation = people(2)
    box = observation.keypoints.box()  # type: ignore[union-attr]
    mask = torch.zeros(2, 80, 100).double()
    mask[:, 20:60, 30:60] = 1
    bare = Observation(observation.camera, mask=mask, box=box)
    result = fitkit.fit(bare, solver=hund, objective=Outline() + ShapePrior())
    assert torch.isfinite(result.energy).all()
    assert result.status == (Outcome.FINISHED,) * 2
    with pytest.raises(ValueError, match="keypoints and boxes"):
        fitkit.fit(replace(bare, box=None), solver=hund, objective=Outline() + ShapePrior())


def with_points(observation: Observation, names: tuple[str, ...]) -> Observation:
    seen = observation.keypoints
    assert seen is not None
    points = replace(seen.set, name="mine", names=names, edges=())
    rows = [seen.set.names.index(name) for name in names]
    return Observation(observation.camera, Keypoints(points, seen.xy[:, rows], seen.confidence[:, rows]))


@pytest.mark.parametrize("given", [False, True], ids=["own start", "given start"])
class TestUntrained:
    """What a network has not seen is refused or flagged, whether it makes the start or not."""

    def start(self, people: MakePeople, given: bool) -> State | None:
        return people(2)[0] if given else None

    def test_body(self, people: MakePeople, tmp_path: Path, given: bool) -> None:
        other = HUND(save_network(network(small("somebody")), tmp_path / "other.safetensors"))
        with pytest.raises(ValueError, match=r"for the body somebody, got open-1"):
            fitkit.fit(people(2)[1], solver=other, start=self.start(people, given))

    def test_points(self, hund: HUND, people: MakePeople, given: bool) -> None:
        few = with_points(people(2)[1], POINTS[:7])
        with pytest.raises(ValueError, match=r"mine.*7 points.*mediapipe33"):
            fitkit.fit(few, solver=hund, objective=ShapePrior(), start=self.start(people, given))

    def test_sets(self, hund: HUND, people: MakePeople, given: bool) -> None:
        _, observation = people(2)
        assert observation.keypoints is not None
        other = replace(observation, keypoints=observation.keypoints.convert("openpose25"), world=None)
        with pytest.warns(UserWarning, match="openpose25"):
            fitkit.fit(other, solver=hund, start=self.start(people, given))
        known = replace(observation, keypoints=observation.keypoints.convert("coco17"), world=None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitkit.fit(known, solver=hund, start=self.start(people, given))

    def test_terms(self, hund: HUND, people: MakePeople, given: bool) -> None:
        _, observation = people(2)
        strange = default_objective() + (2.0 * ShapePrior()).named("mine")
        with pytest.warns(UserWarning, match=r"without \['mine'\]"):
            fitkit.fit(observation, solver=hund, objective=strange, start=self.start(people, given))
        fewer = Keypoints2D() + ShapePrior()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitkit.fit(observation, solver=hund, objective=fewer, start=self.start(people, given))

    def test_blocks(self, hund: HUND, body: BodyModel, people: MakePeople, given: bool) -> None:
        start, observation = people(2)
        problem = Problem(body, observation, default_objective(), free=("betas",))
        with pytest.raises(ValueError, match="free blocks"):
            solve(problem, hund, start) if given else hund.start(problem)

    def test_bounds(self, hund: HUND, people: MakePeople, given: bool) -> None:
        """Kept, or refused by name."""
        _, observation = people(2)
        bounds, start = {"betas": (-0.01, 0.01)}, self.start(people, given)
        try:
            result = fitkit.fit(observation, solver=hund, bounds=bounds, start=start)
        except ValueError as error:
            assert "hund" in str(error)  # noqa: PT017 - either will do
            return
        assert result.state.betas.abs().max() <= 0.01 + 1e-9

    def test_jumps(self, hund: HUND, people: MakePeople, given: bool) -> None:
        with pytest.raises(ValueError, match="jumps with solver hund"):
            fitkit.fit(people(2)[1], solver=hund, jumps=True, start=self.start(people, given))


def test_a_guess_of_the_callers_own(weights: Path, people: MakePeople) -> None:
    """A caller who has an estimate keeps it: refinement goes by theirs."""
    start, observation = people(2)
    chain = fitkit.solver.Chain((HUND(weights), LM(2)))
    mine = replace(observation, guess=start)
    with pytest.warns(UserWarning, match="guess"):
        result = fitkit.fit(mine, solver=chain, objective=default_objective() + Guess(0.1))
    assert torch.isfinite(result.energy).all()
    problem = Problem(result.body, mine, default_objective() + Guess(0.1))
    torch.testing.assert_close(result.energy, problem.energy(result.state))


def test_single_precision(hund: HUND, people: MakePeople) -> None:
    _, observation = people(2)
    single, double = (fitkit.fit(observation, solver=hund, dtype=dt) for dt in (torch.float32, torch.float64))
    assert single.state.transl.dtype == torch.float32
    same(double.state.to(torch.float32), single.state, 2e-3)


def test_nobody(hund: HUND, body: BodyModel, people: MakePeople) -> None:
    start, observation = people(2)
    assert len(fitkit.fit(observation.select([]), solver=hund)) == 0
    problem = Problem(body, observation, default_objective()).select([])
    with torch.no_grad():
        assert len(hund.start(problem)) == 0
    assert len(solve(problem, hund, start.select([])).energy) == 0


def test_no_autograd_and_no_inference_mode_is_left(hund: HUND, people: MakePeople) -> None:
    _, observation = people(2)
    plain = fitkit.fit(observation, solver=hund)
    with torch.inference_mode():
        other = fitkit.fit(observation, solver=hund)
    same(plain.state, other.state)
    assert not plain.state.transl.requires_grad


@pytest.mark.parametrize("settings", [{"stages": 0}, {"hold": -1.0}, {"hold": math.inf}, {"hold": math.nan}])
def test_settings_of_the_solver(weights: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="hund"):
        HUND(weights, **settings)


# -- files -------------------------------------------------------------------------------------------------------


def test_files_are_the_network(weights: Path, tmp_path: Path) -> None:
    made, name = load_network(weights)
    assert load_network(weights)[0] is made
    assert load_network(str(weights))[0] is made
    again = save_network(made, tmp_path / weights.name)
    other, its_name = load_network(again)
    assert its_name == name
    assert other is not made
    assert other.settings == made.settings
    for key, value in made.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


def damaged(weights: Path, path: Path, how: str) -> None:
    raw, tensors = weights.read_bytes(), load_file(weights)
    settings = asdict(load_network(weights)[0].settings)
    header = {"kind": "fitkit-hund", "settings": json.dumps(settings)}
    if how == "kind":
        header["kind"] = "fitkit-prior"
    elif how == "no header":
        header = {}
    elif how == "no settings":
        del header["settings"]
    elif how == "json":
        header["settings"] = "{"
    elif how == "a list":
        header["settings"] = "[1, 2]"
    elif how == "unknown setting":
        header["settings"] = json.dumps({**settings, "colour": "red"})
    elif how == "text":
        header["settings"] = json.dumps({**settings, "units": "many"})
    elif how == "another size":
        header["settings"] = json.dumps({**settings, "units": 25})
    elif how == "too few":
        tensors.pop("mean")
    elif how == "too many":
        tensors["more"] = torch.zeros(3)
    elif how == "not finite":
        tensors["update.weight"] = torch.full_like(tensors["update.weight"], math.nan)
    if how in ("empty", "truncated", "words"):
        path.write_bytes({"empty": b"", "truncated": raw[: len(raw) // 2], "words": b"weights"}[how])
    else:
        save_file(tensors, path, metadata=header)


KINDS = ("kind", "no header", "no settings", "json", "a list", "unknown setting", "text", "another size")


@pytest.mark.parametrize("how", [*KINDS, "too few", "too many", "not finite", "empty", "truncated", "words"])
def test_other_files_are_refused(weights: Path, tmp_path: Path, how: str) -> None:
    path = tmp_path / "broken.safetensors"
    damaged(weights, path, how)
    with pytest.raises(ValueError, match=r"broken\.safetensors: not a HUND network"):
        HUND(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        HUND(tmp_path / "missing.safetensors")
    with pytest.raises((OSError, ValueError)):
        HUND(tmp_path)

"""fit() as a user calls it: what it takes, what it refuses, and what is plugged into it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fitkit
from fitkit import Observation, Problem, Rows, Solver, State, Status
from fitkit.body.model import BodyModel
from fitkit.coordinates import Tangent, retract
from fitkit.initialise import place
from fitkit.keypoints import Keypoints, get_set
from fitkit.objectives import GMoF, Keypoints2D
from fitkit.observe import observation_from_keypoints
from fitkit.prediction import Prediction
from fitkit.priors import ShapePrior

MakePeople = Callable[..., tuple[State, Observation]]
ROOT = Path(__file__).resolve().parents[1]


def seen_by(body: BodyModel, state: State, name: str = "coco17") -> Observation:
    camera = fitkit.Camera.from_size(800, 600).expand(len(state)).to(torch.float64)
    pixels = camera.project(body.keypoints(state, name))
    return Observation(camera, Keypoints(get_set(name), pixels, torch.ones(pixels.shape[:2]).double()))


def test_the_readme_runs(people: MakePeople) -> None:
    """Its custom loss, on the default objective, from an observation and from keypoints alone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "@fitkit.objective" in block
    )
    names: dict[str, object] = {"fitkit": fitkit}
    exec(code.split("fitkit.fit(")[0], names)
    hips_at = names["hips_at"]
    assert callable(hips_at)
    _, observation = people(2)
    free = fitkit.fit(observation)
    pulled = fitkit.fit(observation, objective=fitkit.default_objective() + 100.0 * hips_at(height=0.3))
    off = [(r.body.joints(r.state)[:, 0, 1] - 0.3).abs().mean() for r in (free, pulled)]
    assert off[1] < off[0]
    assert "hips_at" in pulled.values
    alone = replace(observation, world=None)
    fitkit.fit(alone, objective=fitkit.default_objective(alone) + hips_at(height=0.3)).raise_if_failed()


@pytest.mark.parametrize("solver", ["lm", "lbfgs"])
def test_one_call_fits_a_batch_and_says_how_it_went(people: MakePeople, solver: str, tmp_path: Path) -> None:
    _, observation = people(3)
    result = fitkit.fit(observation, solver=solver).raise_if_failed()
    assert len(result) == 3
    assert result.keypoints_2d("coco17").shape == (3, 17, 2)
    assert [len(person) for person in result] == [1, 1, 1]
    torch.testing.assert_close(result[1:].energy, result.energy[1:])
    torch.testing.assert_close(result[-1].state.transl, result.state.transl[2:])
    reversed_ = result[::-1]
    torch.testing.assert_close(reversed_.energy, result.energy.flip(0))
    folder = result.save(tmp_path / "out")
    again = State.load(folder / "params.npz")
    torch.testing.assert_close(result.body.joints(again), result.body.joints(result.state))
    written = json.loads((folder / "result.json").read_text())
    assert [person["status"] for person in written["people"]] == [s.name.lower() for s in result.status]
    assert set(written["people"][0]["joints_3d"]) == set(get_set("h36m17").names)


def test_people_are_chosen_alike_on_every_route(people: MakePeople) -> None:
    _, observation = people(3)
    assert observation.keypoints is not None
    largest = int(observation.keypoints.box()[:, 2:].prod(1).argmax())
    whole = fitkit.fit(observation)
    one = fitkit.fit(observation, people="largest")
    torch.testing.assert_close(one.energy[0], whole.energy[largest], rtol=1e-3, atol=1e-3)
    second = fitkit.fit(observation, people=1)
    torch.testing.assert_close(second.energy[0], whole.energy[1], rtol=1e-3, atol=1e-3)
    for wrong in (3, -1):
        with pytest.raises(ValueError, match="people="):
            fitkit.fit(observation, people=wrong)


def test_what_cannot_be_meant_is_refused(people: MakePeople) -> None:
    _, observation = people(1)

    @fitkit.objective
    def forgotten(pred: Prediction, obs: Observation) -> Tensor:
        return pred.betas

    with pytest.raises(Exception, match=r"(?i)call it|objective"):
        fitkit.fit(observation, objective=forgotten)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot free"):
        Problem(fitkit.open_body(), observation, ShapePrior(), free=("betaz",))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA"):
            fitkit.fit(observation, device="cuda")
    with pytest.raises(ValueError, match="float16"):
        fitkit.fit(observation, dtype=torch.float16)


def test_keypoints_that_are_not_pixels_of_the_photo_are_refused() -> None:
    camera = fitkit.Camera.from_size(640, 480)
    points = torch.rand(1, 17, 2)
    ones = torch.ones(1, 17)
    with pytest.raises(ValueError, match="fractions"):
        observation_from_keypoints(Keypoints(get_set("coco17"), points, ones), camera=camera)
    with pytest.raises(ValueError, match="another photo"):
        observation_from_keypoints(Keypoints(get_set("coco17"), 100 * points + 3000, ones), camera=camera)


@dataclass(frozen=True)
class Rate(Rows):
    """Step length of each person."""

    rate: Tensor

    def __len__(self) -> int:
        return len(self.rate)


class Descent(Solver):
    """Gradient descent with a step that halves when it fails: the two methods that a solver needs, and no more."""

    name = "descent"
    max_steps = 60

    def __init__(self, remembers: bool) -> None:
        self.remembers = remembers

    def init(self, problem: Problem, state: State) -> tuple[Rows | None, Status]:
        energy = problem.energy(state)
        memory = Rate(torch.full_like(energy, 1e-4)) if self.remembers else None
        return memory, self._status(problem, state)

    def step(self, problem: Problem, state: State, memory: Rate | None) -> tuple[State, Rows | None, Status]:
        chart = Tangent(state)
        energy, gradient = problem.value_and_grad(chart.encode(state), chart)
        rate = memory.rate if memory is not None else torch.full_like(energy, 1e-6)
        there = retract(state, -rate[:, None] * gradient, chart.blocks)
        lower = problem.energy(there) < energy
        kept = replace(state, **{k: torch.where(lower.view(-1, *[1] * (v.ndim - 1)), v, getattr(state, k))
                                 for k, v in there.parts().items()})  # fmt: skip
        memory = None if memory is None else Rate(torch.where(lower, rate * 1.2, rate * 0.5))
        return kept, memory, self._status(problem, kept)

    def _status(self, problem: Problem, state: State) -> Status:
        values = torch.stack(list(problem.values(state).values()), 1)
        done = torch.arange(len(state)) % 2 * (values.sum(1) < 0)
        return Status(done.long(), values.sum(1), values)


@pytest.mark.parametrize("remembers", [True, False])
def test_a_solver_of_two_methods_is_enough(people: MakePeople, remembers: bool) -> None:
    _, observation = people(2)
    result = fitkit.fit(observation, solver=Descent(remembers))
    assert result.solver == "descent"
    assert result.trace is not None
    fine = [k for k, stage in enumerate(result.trace.stage) if stage == "fine"]
    assert (result.trace.energy[fine[-1]] < result.trace.energy[fine[0]]).all()


def test_a_solver_sees_what_it_requires(people: MakePeople) -> None:
    _, observation = people(2)
    observation = replace(observation, mask=torch.ones(2, 8, 8, dtype=torch.float64))
    seen = []

    class Looks(fitkit.get_solver("lm").__class__):  # type: ignore[misc]
        requires = frozenset({"mask"})

        def init(self, problem: Problem, state: State) -> tuple[Rows, Status]:
            seen.append(problem.observation.mask is not None)
            return super().init(problem, state)

    fitkit.fit(observation, solver=Looks())
    assert seen
    assert all(seen)


def test_negative_energies_are_named_not_swallowed(people: MakePeople) -> None:
    @fitkit.objective
    def sinks(pred: Prediction, obs: Observation) -> Tensor:
        return -pred.joint("head")[:, 2]

    _, observation = people(1)
    result = fitkit.fit(observation, objective=Keypoints2D() + sinks())
    assert result.status == (fitkit.Outcome.NOT_FINITE,)
    with pytest.raises(fitkit.FitError, match=r"negative \(sinks\)"):
        result.raise_if_failed()


def test_a_term_that_reads_nothing_free_leaves_everything_where_it_is(people: MakePeople) -> None:
    _, observation = people(1)
    for solver in ("lm", "lbfgs"):
        result = fitkit.fit(observation, objective=ShapePrior(), solver=solver)
        assert float(result.energy) == 0.0


def test_inference_mode_changes_nothing(people: MakePeople) -> None:
    _, observation = people(1)

    @fitkit.objective
    def low(pred: Prediction, obs: Observation) -> Tensor:
        return 10 * (pred.joint("pelvis")[:, 1:2] - 0.3)

    objective = fitkit.default_objective() + low()
    with torch.inference_mode():
        inside = fitkit.fit(observation, objective=objective, dtype=torch.float32)
    outside = fitkit.fit(observation, objective=objective, dtype=torch.float32)
    torch.testing.assert_close(inside.energy, outside.energy)


def test_hardly_seen_people_fail_alone(people: MakePeople) -> None:
    _, observation = people(3)
    assert observation.keypoints is not None
    confidence = observation.keypoints.confidence.clone()
    confidence[1, 1:] = 0
    confidence[2] = 0
    poor = replace(observation, keypoints=replace(observation.keypoints, confidence=confidence))
    for dtype in (torch.float32, torch.float64):
        result = fitkit.fit(poor, dtype=dtype)
        assert [status.failed for status in result.status] == [False, True, True]
        assert torch.isfinite(result.state.transl).all()
        with pytest.raises(fitkit.FitError, match="person 1"):
            result.raise_if_failed()
        alone = fitkit.fit(observation.select(0), dtype=dtype)
        torch.testing.assert_close(alone.energy[0], result.energy[0], rtol=1e-2, atol=1e-2)


def test_nobody_can_be_saved_and_read_again(people: MakePeople, tmp_path: Path) -> None:
    _, observation = people(1)
    result = fitkit.fit(observation.select([]))
    assert len(result) == 0
    result.save(tmp_path)
    assert len(State.load(tmp_path / "params.npz")) == 0
    assert json.loads((tmp_path / "result.json").read_text())["people"] == []


def test_a_second_save_leaves_nobody_of_the_first(people: MakePeople, tmp_path: Path) -> None:
    _, observation = people(2)
    result = fitkit.fit(observation)
    result.save(tmp_path)
    result[0].save(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("body_*.glb")) == ["body_0.glb"]


def test_people_of_different_photos_do_not_join(people: MakePeople) -> None:
    _, observation = people(1)
    other = replace(observation, image=np.zeros((800, 1000, 3), np.uint8))
    with pytest.raises(ValueError, match="image"):
        fitkit.concatenate([observation, other])
    mask = replace(observation, mask=torch.zeros(1, 4, 4).double())
    with pytest.raises(ValueError, match="mask"):
        fitkit.concatenate([mask, replace(mask, mask=torch.zeros(1, 5, 4).double())])
    assert len(fitkit.concatenate([observation, observation])) == 2


def test_a_kernel_on_a_sum_reaches_every_term() -> None:
    both = (Keypoints2D(kernel=None) + ShapePrior()).robust(GMoF(1.0))
    assert [term.kernel for term in both.terms()] == [GMoF(1.0), GMoF(1.0)]
    with pytest.raises(TypeError, match="name"):
        both.named("x")


def test_3d_keypoints_need_no_hips(body: BodyModel, people: MakePeople) -> None:
    """Exact 3D points, one hip unseen: nothing pulls."""
    from fitkit.keypoints import Keypoints3D
    from fitkit.objectives import Keypoints3D as Points3D

    state, observation = people(1)
    xyz = body.keypoints(state, "coco17")
    hips = [get_set("coco17").index(name) for name in ("left_hip", "right_hip")]
    confidence = torch.ones(1, 17, dtype=torch.float64)
    confidence[:, hips[0]] = 0
    world = Keypoints3D(get_set("coco17"), xyz - xyz[:, hips[1:]], confidence)
    problem = Problem(body, replace(observation, world=world), Points3D())
    assert float(problem.energy(state)) < 1e-12


def test_a_users_body_file_from_end_to_end(body: BodyModel, people: MakePeople, tmp_path: Path) -> None:
    """The open body written as an SMPL-X file: same joints, its own regressors, points it lacks left out."""
    data = body.data
    shapedirs = np.concatenate([data.shapedirs[..., :10], data.exprdirs[..., :10]], 2)
    posedirs = np.zeros((*data.v_template.shape, 486), np.float32)
    posedirs[..., : data.posedirs.shape[2]] = data.posedirs
    tree = np.stack([data.parents.astype(np.int64), np.arange(55)])
    tree[0, 0] = 4294967295
    file = tmp_path / "BODY.npz"
    np.savez(
        file,
        v_template=data.v_template,
        shapedirs=shapedirs,
        posedirs=posedirs,
        J_regressor=data.J_regressor,
        weights=data.weights,
        kintree_table=tree,
        f=data.faces.astype(np.uint32),
    )
    state, _ = people(1)
    seen = seen_by(body, place(body, state, seen_by(body, state)))
    result = fitkit.fit(seen, body=file).raise_if_failed()
    limbs = [
        k
        for k, name in enumerate(get_set("coco17").names)
        if "_" in name and "eye" not in name and "ear" not in name
    ]
    assert seen.keypoints is not None
    off = (result.keypoints_2d("coco17") - seen.keypoints.xy)[:, limbs].norm(dim=-1).mean()
    assert off < 0.05 * float(seen.keypoints.extent)
    assert torch.isnan(result.keypoints_2d("coco17")[0, 0]).all()
    folder = result.save(tmp_path / "out")
    written = json.loads((folder / "result.json").read_text())["people"][0]
    assert written["keypoints_2d"][0] == [None, None]
    assert written["body"].startswith("smplx")


def test_a_start_needs_no_keypoints(body: BodyModel, people: MakePeople) -> None:
    state, observation = people(2)
    unseen = replace(observation, keypoints=None, world=None)
    result = fitkit.fit(unseen, start=state, objective=ShapePrior())
    assert result.raise_if_failed().energy.max() < 1e-12


@pytest.mark.parametrize("solver", ["lm", "lbfgs", "adam"])
def test_rows_of_another_kind_are_taken(people: MakePeople, solver: str) -> None:
    """A network in float32, a count, and nothing at all."""

    @fitkit.objective
    def single(pred: Prediction, obs: Observation) -> Tensor:
        return pred.betas.float() - 1

    @fitkit.objective
    def counted(pred: Prediction, obs: Observation) -> Tensor:
        return (pred.betas > 0).sum(1, keepdim=True)

    @fitkit.objective
    def nothing(pred: Prediction, obs: Observation) -> Tensor:
        return pred.betas[:, :0]

    state, observation = people(2)
    objective = single() + counted() + nothing() + ShapePrior()
    result = fitkit.fit(observation, start=state, objective=objective, solver=solver)
    assert result.raise_if_failed().values["nothing"].tolist() == [0.0, 0.0]


def test_a_weight_of_zero_switches_a_term_off(people: MakePeople) -> None:
    @fitkit.objective
    def broken(pred: Prediction, obs: Observation) -> Tensor:
        return pred.betas * float("nan")

    _, observation = people(2)
    result = fitkit.fit(observation, objective=fitkit.default_objective(observation) + 0.0 * broken())
    assert result.raise_if_failed().values["broken"].tolist() == [0.0, 0.0]

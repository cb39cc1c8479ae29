"""What HUND learns from: batches of people, and training that goes on where it stopped."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fitkit.api import default_objective
from fitkit.body import BodyModel, open_body
from fitkit.problem import Problem
from fitkit.solve import solve
from fitkit.solvers.hund import HUND, load_network, save_network
from fitkit.solvers.hund.network import HundNetwork
from fitkit.train import hund as training_of
from fitkit.train.hund import Batch, Recipe, Source, Training, main, unroll
from fitkit.train.hund_losses import META, Target, meta_loss, supervised
from tests.hund_cases import HELD, batch_of, motion, moved, parts, quiet, short, train


@pytest.fixture(scope="module")
def single() -> BodyModel:
    return open_body()


@pytest.fixture(autouse=True)
def few_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_of, "WATCHED", 12)
    whole = Source.batch
    # The mean over a few people will do.
    monkeypatch.setattr(Source, "batch", lambda self, count, *rest: whole(self, min(count, 400), *rest))


# -- batches -----------------------------------------------------------------------------------------------------


def test_batches_say_what_they_are(single: BodyModel) -> None:
    for kind, points in enumerate(("mediapipe33", "coco17")):
        batch = batch_of(single, 6, kind, pictured=2)
        keypoints = batch.problem.observation.keypoints
        assert keypoints is not None
        assert keypoints.set.name == points
        assert batch.problem.observation.parts is None
        known = batch.context.picture[:, -1].flatten(1).any(1)
        assert known.tolist() == [True] * 2 + [False] * 4
        names = [term.name for term in batch.problem.objective.terms()]
        assert ("directions" in names) == (kind == 0)
        assert len(names) == len(set(names))
    pictured = batch_of(single, 6, supervision="SS", pictured=2).problem.observation.parts
    assert pictured is not None
    assert pictured.confidence.flatten(1).any(1).tolist() == [True] * 2 + [False] * 4
    same = [batch_of(single, 6, None, 3).context.points for _ in range(2)]
    assert torch.equal(*same)


def test_objectives_vary(single: BodyModel) -> None:
    """Terms are left out and strangers join, but the network knows all other names."""
    source = Source(single, parts()[0], Recipe(steps=1, batch=8, pictured=0))
    draw = torch.Generator().manual_seed(0)
    found = [source.batch(1, draw).problem.objective.terms() for _ in range(60)]
    terms = set(short(single).terms)
    names = [{term.name for term in each} for each in found]
    strangers = sum("stranger" in each for each in names)
    fewer = sum(len(each & (terms - {"directions"})) < 5 for each in names)
    assert 4 <= strangers <= 24
    assert 2 <= fewer <= 20
    assert all(each <= terms | {"stranger"} for each in names)
    assert all("keypoints_2d" in each for each in names)
    assert len({round(each[0].weight, 6) for each in found}) > 50


def test_held_out_people_are_never_learned_from(single: BodyModel, tmp_path: Path) -> None:
    training = train(single, tmp_path / "a.pt")
    learn, watch = parts()
    assert learn.subjects == ("07", "35")
    assert watch.subjects == (HELD,)
    drawn = training.source.crowd.poses[:, 1:].flatten(1)
    apart = torch.cdist(drawn, watch.rotations()[:, 1:22].flatten(1))
    assert apart.min() > 0.1
    assert len(drawn) == 2 * len(learn)  # and their mirror images


def test_training_runs_the_stages_that_the_solver_runs(single: BodyModel, tmp_path: Path) -> None:
    made = train(single, tmp_path / "a.pt", steps=2).run(quiet)
    file = save_network(made, tmp_path / "net.safetensors")
    batch = batch_of(single, 5)
    problem = Problem(single, batch.problem.observation, default_objective())
    bare = replace(batch, problem=problem)
    with torch.no_grad():
        states = unroll(made, bare)
        solver = HUND(file)
        solution = solve(problem, solver, solver.start(problem), states=True)
    assert len(states) == len(solution.trace.states) == 4
    for mine, its in zip(states, solution.trace.states, strict=True):
        for name in ("global_orient", "body_pose", "betas", "transl"):
            torch.testing.assert_close(getattr(mine, name), getattr(its, name), atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter_and_not_the_objective(single: BodyModel) -> None:
    network = HundNetwork(short(single))
    batch = batch_of(single, 4, pictured=2)
    states = unroll(network, batch)
    assert len(states) == 4
    torch.stack([state.body_pose.sum() + state.transl.sum() for state in states]).sum().backward()
    idle = [name for name, each in network.named_parameters() if each.grad is None]
    assert idle == []
    given = torch.full((4, network.settings.size), torch.nan)
    given[1] = batch.frame.encode(batch.scene.state)[1]
    first = unroll(network, batch, given, stages=1)[0]
    torch.testing.assert_close(first.transl[1], batch.scene.state.transl[1])
    torch.testing.assert_close(first.transl[[0, 2, 3]], states[0].transl[[0, 2, 3]])


# -- training ----------------------------------------------------------------------------------------------------


def loss_on(training: Training, batch: Batch, network: HundNetwork) -> float:
    target = Target.of(training.points, batch.scene, batch.frame.size[:, 0])
    with torch.no_grad():
        units = [supervised(training.points, state, target) for state in unroll(network, batch)]
    return float(meta_loss("sum", torch.stack(units)))


def test_it_learns(single: BodyModel, tmp_path: Path) -> None:
    training = train(single, tmp_path / "a.pt", pictured=0, rate=2e-2)
    batch = batch_of(single, 32, 1, pictured=0)
    before = loss_on(training, batch, training.network)
    said: list[str] = []
    training.run(said.append)
    assert loss_on(training, batch, training.network) < 0.97 * before
    assert [row["step"] for row in training.curve] == [0, 4, 8, 12]
    assert len(said) == 4
    assert "step     12" in said[-1]
    assert all(math.isfinite(value) for row in training.curve for value in row.values())
    assert (training.average.spread > 0).all()
    assert (training.average.spread != 0.3).all()


@pytest.mark.parametrize("supervision", ["SS", "FS+SS"])
def test_other_supervision_runs(single: BodyModel, tmp_path: Path, supervision: str) -> None:
    training = train(single, tmp_path / "a.pt", supervision=supervision, steps=2, pictured=2)
    before = [parameter.clone() for parameter in training.network.parameters()]
    training.run(quiet)
    assert any(not torch.equal(a, b) for a, b in zip(before, training.network.parameters(), strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in training.network.parameters())


@pytest.mark.parametrize("meta", META)
def test_every_meta_loss_trains(single: BodyModel, tmp_path: Path, meta: str) -> None:
    training = train(single, tmp_path / "a.pt", meta=meta, steps=1, pictured=0)
    before = training.network.update.weight.clone()
    training._step()
    assert not torch.equal(before, training.network.update.weight)


class Stop(Exception):
    pass


def interrupted(body: BodyModel, file: Path, after: int, **changes: Any) -> None:
    training, step = train(body, file, **changes), Training._step

    def stop() -> None:
        if training.step >= after:
            raise Stop
        step(training)

    training._step = stop  # type: ignore[method-assign]
    with pytest.raises(Stop):
        training.run(quiet)


def test_interrupted_training_is_the_same(single: BodyModel, tmp_path: Path) -> None:
    whole = train(single, tmp_path / "whole.pt")
    whole.run(quiet)
    for after in (6, 9):  # on the way, twice
        interrupted(single, tmp_path / "parts.pt", after)
    rest = train(single, tmp_path / "parts.pt")
    assert rest.step == 8
    rest.run(quiet)
    assert rest.curve == whole.curve
    for one, other in ((whole.network, rest.network), (whole.average, rest.average)):
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
    again = train(single, tmp_path / "whole.pt")  # nothing is left to do
    assert again.step == 12
    for name, value in again.run(quiet).state_dict().items():
        assert torch.equal(whole.average.state_dict()[name], value), name


def test_seeds(single: BodyModel, tmp_path: Path) -> None:
    """The same seed gives the same network, whatever was drawn before; another one does not."""
    names = []
    for number, seed in enumerate((0, 0, 1)):
        torch.rand(number + 1)
        made = train(single, tmp_path / f"{number}.pt", steps=2, seed=seed).run(quiet)
        (tmp_path / f"{number}").mkdir()
        names.append(load_network(save_network(made, tmp_path / f"{number}" / "net.safetensors"))[1])
    assert names[0] == names[1]
    assert names[0] != names[2]


def test_checkpoints_of_other_settings_are_not_gone_on_from(single: BodyModel, tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    train(single, file, steps=2, look=1).run(quiet)
    assert train(single, file, steps=2, look=1).step == 2
    for changes in ({"seed": 1}, {"meta": "last"}, {"rate": 1e-4}):
        assert train(single, file, steps=2, look=1, **changes).step == 0
    assert train(single, file, short(single, units=25), steps=2, look=1).step == 0


@pytest.mark.parametrize("content", [b"", b"checkpoint", "half", "a tensor"])
def test_damaged_checkpoints_are_refused(single: BodyModel, tmp_path: Path, content: bytes | str) -> None:
    file = tmp_path / "a.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "half":
        torch.save({"origin": "x", "network": torch.zeros(1000)}, file)
        file.write_bytes(file.read_bytes()[:2000])
    else:
        torch.save(torch.zeros(3), file)
    with pytest.raises(ValueError, match=r"a\.pt.*damaged"):
        train(single, file)


def test_self_supervised_training_sees_no_truth(single: BodyModel, tmp_path: Path) -> None:
    """The starts that some people are given are made without it."""
    training = train(single, tmp_path / "a.pt", supervision="SS", given=1.0)
    batch = batch_of(single, 8, supervision="SS")
    elsewhere = replace(batch, scene=replace(batch.scene, state=moved(batch.scene.state, 1.0)))
    state, starts = training.draw.get_state(), []
    for each in (batch, elsewhere):
        training.draw.set_state(state)
        starts.append(training._starts(each))
    torch.testing.assert_close(starts[0], starts[1], equal_nan=True)


def test_self_supervised_training_has_no_guess_of_depth(single: BodyModel) -> None:
    """A detector's 3D guess comes from 3D labels."""
    for supervision in ("SS", "FS+SS"):
        batch = batch_of(single, supervision=supervision)
        world = batch.problem.observation.world
        assert world is None or not (world.confidence > 0).any()
        assert (batch.context.directions == 0).all()


def test_starts_are_given_to_some(single: BodyModel, tmp_path: Path) -> None:
    training = train(single, tmp_path / "a.pt", given=0.5)
    batch = batch_of(single, 400, 1, pictured=0)
    starts = training._starts(batch)
    own = torch.isnan(starts).all(1)
    assert torch.equal(own, torch.isnan(starts).any(1))
    assert abs(float(own.double().mean()) - 0.5) < 0.1
    states = batch.frame.decode(torch.where(own[:, None], training.network.mean, starts), 16)
    plain = (starts[:, 6:] == training.network.mean[6:]).all(1)
    assert abs(float(plain.double().mean()) - 0.25) < 0.09
    seen = batch.frame.turn.mT @ states.global_orient[:, 0]
    up = seen[plain] @ torch.tensor([0.0, 1, 0])
    torch.testing.assert_close(up, torch.tensor([0.0, -1, 0]).expand_as(up), atol=1e-5, rtol=0)
    front = seen[plain] @ torch.tensor([0.0, 0, 1])
    assert front[:, [0, 2]].mean(0).norm() < 0.35  # any heading


def test_rates_and_recipes() -> None:
    recipe = Recipe(steps=1000)
    assert recipe.rate_at(0) == pytest.approx(recipe.rate / 300)
    assert recipe.rate_at(299) > recipe.rate_at(150)
    assert recipe.rate_at(1000) == pytest.approx(0.01 * recipe.rate)
    for wrong in ({"supervision": "none"}, {"meta": "mean"}, {"steps": 0}, {"look": 0}, {"pictured": 500}):
        with pytest.raises(ValueError, match="expected"):
            Recipe(**wrong)


# -- command -----------------------------------------------------------------------------------------------------


def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Path:
    if not (tmp_path / "motion.npz").is_file():
        motion().save(tmp_path / "motion.npz")
    given: dict[str, object] = {
        "motion": tmp_path / "motion.npz",
        "out": tmp_path / "net.safetensors",
        "held-out": HELD,
        "steps": 4,
        "batch": 8,
        "look": 2,
        "stages": 2,
        "work": tmp_path / "work",
        **changes,
    }
    line = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["hund", *line])
    main()
    return tmp_path / "net.safetensors"


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = command(tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "parameters" in said
    assert str(out) in said
    assert said.count("step ") == 3
    made, name = load_network(out)
    assert made.settings.stages == 2
    assert name.startswith("net (open-1, ")
    assert HUND(out).max_steps == 2
    assert (tmp_path / "work" / "net.pt").is_file()


BAD: dict[str, tuple[dict[str, object], str]] = {
    "no motion": ({"motion": "missing.npz"}, "missing.npz"),
    "unknown subject": ({"held-out": "99"}, "99"),
    "no steps": ({"steps": 0}, "expected"),
    "no people": ({"batch": 0}, "expected"),
    "no stages": ({"stages": 0}, "expected"),
    "ending": ({"out": "net.pt"}, "safetensors"),
    "folder": ({"out": "nowhere/net.safetensors"}, "folder"),
    "body": ({"body": "missing.npz"}, "missing.npz"),
    "device": ({"device": "banana"}, "banana"),
    "supervision": ({"supervision": "XS"}, "XS"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_give_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    changes, word = BAD[what]
    with pytest.raises(SystemExit) as error:
        command(tmp_path, monkeypatch, **changes)
    said = str(error.value.code) + capsys.readouterr().err
    assert word in said
    assert error.value.code not in (0, None)
    if isinstance(error.value.code, str):
        assert "\n" not in error.value.code
    assert not (tmp_path / "net.safetensors").exists()


def test_no_cuda_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        command(tmp_path, monkeypatch, device="cuda")
    assert "cuda" in str(error.value.code) + capsys.readouterr().err

"""Poses as training sees them, training that goes on where it stopped, its files, and every prior that ships."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from fitkit import geometry
from fitkit.datasets import Motion
from fitkit.keypoints import get_set
from fitkit.priors import PosePrior, UprightPrior, gaussian_prior, load_prior, save_prior, shipped
from fitkit.priors.density import Flow
from fitkit.priors.moments import fit_gaussian
from fitkit.priors.poses import Poses
from fitkit.priors.representation import representation
from fitkit.priors.train import RECIPES, Recipe, Training, Watch, main, train_prior

JOINTS, NOISE, FRAMES, STEPS = 3, 0.1, 60, 16
SUBJECTS = ("060", "061", "07", "12", "35")  # the first two dance together
UNRECORDED = 10  # left foot, which the skeleton of one of them lacks
LEARNED = ("joint-flow", "prelu-flow", "real-nvp")
KINDS = (*LEARNED, "gaussian", "diagonal", "mixture")


def clip(number: int, subject: str) -> Motion:
    draw = torch.Generator().manual_seed(number)
    cause = torch.randn(FRAMES, 3, generator=draw)
    turns = cause @ torch.randn(3, 72, generator=torch.Generator().manual_seed(99)) / 8
    turns = turns + 0.1 * torch.randn(72, generator=draw) + 0.02 * torch.randn(FRAMES, 72, generator=draw)
    rotations = geometry.exp(turns.view(FRAMES, 24, 3))
    lacking = subject == "12"
    if lacking:
        rotations[:, UNRECORDED] = torch.eye(3)
    usable = torch.arange(FRAMES) != 5
    skeleton = "small" if lacking else "large"
    return Motion.of_clip(f"{subject}_01", subject, 30.0, skeleton, rotations, cause, usable)


@cache
def motion() -> Motion:
    return Motion.join([clip(number, subject) for number, subject in enumerate(SUBJECTS)])


@cache
def poses() -> Poses:
    return Poses.of(motion())


def quiet(text: str) -> None:
    pass


def recipe(kind: str, **changes: Any) -> Recipe | None:
    short: dict[str, Any] = {"steps": STEPS, "look": STEPS // 2, "batch": 64}
    return replace(RECIPES[kind], **{**short, **changes}) if kind in RECIPES else None


def train(kind: str, work: Path, say: Callable[[str], None] = quiet, **changes: Any) -> PosePrior:
    return train_prior(kind, poses(), JOINTS, "6d", NOISE, 2, 0, recipe(kind, **changes), work, say)


def same(first: PosePrior, second: PosePrior) -> bool:
    one, other = first.density.state_dict(), second.density.state_dict()
    assert first.calibration is not None
    assert second.calibration is not None
    tables = torch.equal(first.calibration, second.calibration)
    return tables and all(torch.equal(one[name], other[name]) for name in {*one, *other})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PosePrior]:
    """Priors of a few steps each, made once."""
    return cache(lambda kind: train(kind, tmp_path_factory.mktemp(kind)))


# -- poses -------------------------------------------------------------------------------------------------------


def test_poses_are_frames_and_their_mirror_images() -> None:
    kept = motion().usable_only()
    half = len(kept)
    assert len(poses()) == half == len(SUBJECTS) * (FRAMES - 1)
    assert poses().subjects == SUBJECTS
    others = [joint for joint in range(24) if joint != UNRECORDED]
    assert torch.equal(poses().rotations()[:half, others], kept.rotations[:, others])
    images = replace(kept, rotations=poses().rotations()[:half]).mirrored()
    assert torch.equal(poses().rotations()[half:], images.rotations)
    whose = torch.tensor([SUBJECTS.index(name) for name in kept.subjects])[kept.clip]
    assert torch.equal(poses().subject, whose)
    numbers = poses().numbers(JOINTS, representation("axis-angle"))
    torch.testing.assert_close(
        geometry.exp(numbers.unflatten(1, (JOINTS, 3))), poses().rotations()[:, 1 : JOINTS + 1]
    )


def test_a_weight_copies_no_density_and_a_pickle_no_copies() -> None:
    prior = gaussian_prior()
    prior.log_prob(prior.mean_pose()[None])
    heavy = 2.0 * prior
    assert heavy.weight == 2
    assert heavy.density is prior.density
    assert heavy._moved is prior._moved
    assert len(prior._moved) == 1
    assert copy.deepcopy(prior)._moved == {}


def test_what_is_held_out_is_nowhere_in_training() -> None:
    who = poses()
    for held in who.folds(2):
        unseen, seen = who.rotations(held)[:, 1:], who.rotations(~held)[:, 1:]
        assert len(unseen) + len(seen) == 2 * len(who)
        still = torch.eye(3)
        for joint in range(23):
            moved = unseen[(unseen[:, joint] - still).abs().amax((1, 2)) > 1e-3, joint].flatten(1)
            near = torch.cdist(moved, seen[:, joint].flatten(1))
            assert near.numel() == 0 or near.min() > 0


def test_hands_of_both_sides_teach_one_hand(tmp_path: Path) -> None:
    bare = motion()
    with pytest.raises(ValueError, match="has no hands"):
        Poses.of(bare, block="left_hand_pose")
    turns = 0.3 * torch.randn(len(bare), 30, 3, generator=torch.Generator().manual_seed(5))
    both = replace(bare, hands=geometry.exp(turns))
    left, right = (Poses.of(both, block=f"{side}_hand_pose") for side in ("left", "right"))
    form = representation("6d")
    assert left.numbers(15, form).shape == (2 * len(left), 90)
    mirrored = Poses.of(both.mirrored(), block="right_hand_pose").numbers(15, form)
    torch.testing.assert_close(right.numbers(15, form), mirrored.roll(len(right), 0))
    prior = train_prior("gaussian", left, 15, folds=2, work=tmp_path, say=quiet)
    assert (prior.block, prior.name, prior.joints) == ("left_hand_pose", "left_hand_prior", 15)


def test_what_a_skeleton_lacks_is_that_of_others() -> None:
    kept = motion().usable_only()
    lacking = poses().subject[: len(kept)] == SUBJECTS.index("12")
    filled = poses().rotations()[: len(kept), UNRECORDED]
    assert torch.equal(filled[~lacking], kept.rotations[~lacking, UNRECORDED])
    away = (filled[lacking][:, None] - kept.rotations[~lacking, UNRECORDED]).abs().amax((2, 3))
    assert (away.amin(1) == 0).all()
    assert len(filled[lacking].unique(dim=0)) > FRAMES / 2
    assert torch.equal(Poses.of(motion()).rotations(), poses().rotations())
    assert not torch.equal(Poses.of(motion(), seed=1).rotations(), poses().rotations())


@pytest.mark.parametrize("count", [2, 3, 4])
def test_folds_part_no_subject_and_no_couple(count: int) -> None:
    folds = torch.stack(list(poses().folds(count)))
    assert folds.shape == (count, len(poses()))
    assert (folds.sum(0) == 1).all()
    assert folds.any(1).all()
    for group in ((0, 1), (2,), (3,), (4,)):
        own = folds[:, torch.isin(poses().subject, torch.tensor(group))]
        assert (own.all(1) | ~own.any(1)).all()


def numbers() -> Tensor:
    """All poses in 6D, with noise."""
    x = poses().numbers(JOINTS, representation("6d"))
    return (x + NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))).double()


# -- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_learns_and_says_the_same_again(
        self, trained: Callable[[str], PosePrior], kind: str, tmp_path: Path
    ) -> None:
        """No worse than a Gaussian of the same numbers, where it is not less than one."""
        prior = trained(kind)
        said: list[str] = []
        assert same(train(kind, tmp_path, said.append), prior)
        assert len(said) >= 3
        x = poses().numbers(JOINTS, representation("6d")).double()
        noisy = numbers()
        gaussian = -fit_gaussian(x, NOISE).log_prob(noisy).mean() / x.shape[1]
        if kind != "diagonal":
            # The light flow begins a little beside the Gaussian, and some of its few steps go into that.
            assert prior.density.loss(noisy) < gaussian + (0.1 if kind == "prelu-flow" else 0.01)
        if isinstance(prior.density, Flow):
            assert (prior.density.encode(x)[1] < prior.density.ceiling + 1).all()
        assert prior.calibration is not None
        assert (prior.calibration.diff() >= 0).all()
        # People whom nobody saw, of the same kind: their scores are spread out, not all at one end.
        strangers = torch.cat([clip(number, "35").rotations for number in range(50, 58)])[:, 1 : JOINTS + 1]
        score = prior.plausibility(strangers)
        assert 0.25 < float(score.mean()) < 0.75
        wild = geometry.exp(1.5 * torch.randn(50, JOINTS, 3, generator=torch.Generator().manual_seed(8)))
        assert (prior.plausibility(wild) < 0.05).float().mean() > 0.9

    def test_files(self, trained: Callable[[str], PosePrior], kind: str, tmp_path: Path) -> None:
        prior = replace_block(trained(kind), "left_hand_pose")
        path = save_prior(prior, tmp_path / "one.safetensors")
        for name in (path, str(path)):
            back = load_prior(name)
            for what in ("joints", "block", "noise", "latent_size"):
                assert getattr(back, what) == getattr(prior, what)
            assert back.representation is prior.representation
            assert back.calibration is not None
            torch.testing.assert_close(back.calibration, prior.calibration, rtol=1e-6, atol=1e-5)
            mine, kept = prior.density.state_dict(), back.density.state_dict()
            assert set(mine) == set(kept)
            for each in mine.keys() - {"precision"}:  # a Gaussian's is made of its factor
                assert torch.equal(kept[each].float(), mine[each].float())
            assert not any(
                values.requires_grad for values in back.density.state_dict(keep_vars=True).values()
            )
            near = poses().rotations()[:20, 1 : JOINTS + 1].double()
            torch.testing.assert_close(back.log_prob(near), prior.log_prob(near), rtol=1e-3, atol=1e-3)
        again = save_prior(back, tmp_path / "two.safetensors")
        thrice = save_prior(load_prior(again), tmp_path / "three.safetensors")
        assert thrice.read_bytes() == again.read_bytes()


def replace_block(prior: PosePrior, block: str) -> PosePrior:
    form = prior.representation.name
    return PosePrior(prior.density, prior.joints, form, block, prior.noise, prior.calibration)


@pytest.mark.parametrize("kind", LEARNED)
class TestEveryTraining:
    def test_goes_down_and_on_where_it_stopped(self, kind: str, tmp_path: Path) -> None:
        """Stopped between or at looks: weights and curve are those of one that was not."""
        x = poses().numbers(JOINTS, representation("6d"))
        watch = Watch(x[::3], torch.zeros(len(x[::3]), dtype=torch.long), NOISE)

        def begin(name: str) -> Training:
            settings = recipe(kind)
            assert settings is not None
            return Training(settings, x, (JOINTS, 6), NOISE, 3, tmp_path / name)

        whole = begin("whole")
        before = whole.density.eval().loss(numbers().float())
        assert whole.run(STEPS, watch).loss(numbers().float()) < before
        assert len(whole.curve) == 3
        half = STEPS // 2
        stopped = {
            "look": (half, STEPS),
            "again": (half, half, STEPS),
            "between": (5, half + 3, STEPS),
            "done": (STEPS, STEPS),
        }
        for name, stops in stopped.items():
            for stop in stops:
                run = begin(name)
                run.run(stop, watch)
            assert run.step == STEPS
            assert run.curve == whole.curve, name
            for one, other in zip(run.density.parameters(), whole.density.parameters(), strict=True):
                assert torch.equal(one, other), name

    def test_survives_interruptions(
        self, trained: Callable[[str], PosePrior], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At looks and between folds: the same weights, and the same is said of every fold."""
        looked, calls = Watch.__call__, 0
        said: dict[str, list[str]] = {"whole": [], "parts": []}

        def look(watch: Watch, density: Flow) -> float:
            nonlocal calls
            calls += 1
            if calls in (2, 4):
                raise KeyboardInterrupt
            return looked(watch, density)

        def say(text: str) -> None:
            said["parts"].append(without_time(text))
            if len(said["parts"]) == 1:
                raise KeyboardInterrupt

        train(kind, tmp_path / "whole", lambda text: said["whole"].append(without_time(text)))
        monkeypatch.setattr(Watch, "__call__", look)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                train(kind, tmp_path / "parts", say)
        assert same(train(kind, tmp_path / "parts", say), trained(kind))
        assert said["parts"][1:] == said["whole"]


def without_time(said: str) -> str:
    return re.sub(r", \d+ s$", "", said)


@pytest.mark.parametrize("changes", [{"rate": 5e-3}, {"steps": 24}, {"batch": 32}, {"steps": 8}])
def test_checkpoints_of_other_settings_are_not_gone_on_from(
    trained: Callable[[str], PosePrior], tmp_path: Path, changes: dict[str, Any]
) -> None:
    train("prelu-flow", tmp_path, **changes)
    assert same(train("prelu-flow", tmp_path), trained("prelu-flow"))


def test_stops_where_unseen_people_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not where another number of folds did, whose last training is still there."""

    def stop(looks: list[float], folds: int, work: str) -> PosePrior:
        curve = iter(looks * folds)
        monkeypatch.setattr(Watch, "__call__", lambda *_: next(curve))
        settings = recipe("prelu-flow")
        return train_prior(
            "prelu-flow", poses(), JOINTS, "6d", NOISE, folds, 0, settings, tmp_path / work, quiet
        )

    late, early = stop([3.0, 2.0, 1.0], 2, "both"), stop([3.0, 1.0, 2.0], 3, "both")
    fresh, start = stop([3.0, 1.0, 2.0], 3, "fresh"), stop([1.0, 3.0, 2.0], 3, "start")
    assert same(early, fresh)
    likely = [float(prior.density.loss(numbers())) for prior in (start, fresh, late)]
    assert likely == sorted(likely, reverse=True)
    assert len(set(likely)) == 3


def test_checkpoints_of_other_people_are_not_gone_on_from(
    trained: Callable[[str], PosePrior], tmp_path: Path
) -> None:
    here = poses()
    others = replace(here, motion=replace(here.motion, rotations=here.motion.rotations.mT.contiguous()))
    settings = recipe("prelu-flow")
    train_prior("prelu-flow", others, JOINTS, "6d", NOISE, 2, 0, settings, tmp_path, quiet)
    assert same(train("prelu-flow", tmp_path), trained("prelu-flow"))


def test_training_refuses(tmp_path: Path) -> None:
    pair = Poses.of(motion().of_subjects(["060", "061"]))
    for wrong, who, folds, match in (
        ("gauss", poses(), 2, "kind 'gauss', expected one of .*gaussian"),
        ("gaussian", poses(), 6, "6 folds of 5 subjects"),
        ("gaussian", poses(), 5, "5 folds"),  # the couple counts as one
        ("gaussian", pair, 2, "2 folds"),
        ("gaussian", poses(), 1, "1 fold"),
        ("gaussian", poses(), 0, "0 folds"),
    ):
        with pytest.raises(ValueError, match=match):
            train_prior(wrong, who, JOINTS, folds=folds, work=tmp_path, say=quiet)
    with pytest.raises(ValueError, match="representation 'quaternion', expected one of"):
        train_prior("gaussian", poses(), JOINTS, "quaternion", folds=2, work=tmp_path)


@pytest.mark.parametrize("kind", ["gaussian", "real-nvp", "upright"])
def test_command_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    motion().save(tmp_path / "f.npz")
    out = tmp_path / "g.safetensors"
    given = f"{kind} --motion {tmp_path / 'f.npz'} --out {out} --folds 2 --work {tmp_path / 'work'} --steps 4"
    monkeypatch.setattr(sys, "argv", ["train", *given.split()])
    main()
    said = capsys.readouterr().out
    assert said.startswith(f"{len(poses())} poses of 5 subjects")
    assert str(out) in said
    if kind == "upright":
        UprightPrior(weights=out)
        return
    prior = load_prior(out)
    assert (prior.joints, prior.representation.name, prior.density.kind) == (21, "6d", kind)
    assert torch.isfinite(prior.log_prob(poses().rotations()[:9, 1:22])).all()


# -- files of others ---------------------------------------------------------------------------------------------


def test_a_name_that_does_not_ship(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gaussian-22.*gaussian-21"):
        load_prior("gaussian-22")
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        load_prior(tmp_path / "missing.safetensors")


def test_a_file_that_was_written_anew_is_read_anew(
    trained: Callable[[str], PosePrior], tmp_path: Path
) -> None:
    path = tmp_path / "prior.safetensors"
    for kind in ("gaussian", "diagonal", "mixture"):
        save_prior(trained(kind), path)
        os.utime(path, ns=(1, KINDS.index(kind)))
        back, near = load_prior(path), poses().rotations()[:5, 1 : JOINTS + 1].double()
        torch.testing.assert_close(back.log_prob(near), trained(kind).log_prob(near), rtol=1e-3, atol=1e-3)


def header_with(**changes: object) -> Callable[[dict, dict[str, Tensor]], tuple[object, dict[str, Tensor]]]:
    return lambda header, tensors: ({**header, **changes}, tensors)


DAMAGES: dict[str, Callable[[dict, dict[str, Tensor]], tuple[object, dict[str, Tensor]]]] = {
    "kind": header_with(kind="gan"),
    "settings": header_with(settings={"sizes": 18}),
    "size": header_with(settings={"size": 12}),
    "settings of text": header_with(settings={"size": "eighteen"}),
    "representation": header_with(representation="quaternion"),
    "joints": header_with(joints=4),
    "a list": lambda header, tensors: ([1, 2], tensors),
    "no joints": lambda header, tensors: (
        {name: value for name, value in header.items() if name != "joints"},
        tensors,
    ),
    "no mean": lambda header, tensors: (
        header,
        {name: value for name, value in tensors.items() if name != "density.mean"},
    ),
    "not finite": lambda header, tensors: (
        header,
        {name: torch.full_like(value, torch.nan) for name, value in tensors.items()},
    ),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "no header", "no json", "empty", "text", "truncated", "torch"])
def test_files_of_another_layout(trained: Callable[[str], PosePrior], tmp_path: Path, damage: str) -> None:
    raw = save_prior(trained("gaussian"), tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "prior.safetensors"
    with safe_open(tmp_path / "whole.safetensors", framework="pt") as archive:
        header, tensors = json.loads(archive.metadata()["fitkit_prior"]), load(raw)
    if damage in DAMAGES:
        changed, tensors = DAMAGES[damage](header, tensors)
        save_file(tensors, path, metadata={"fitkit_prior": json.dumps(changed)})
    elif damage == "no header":
        save_file(tensors, path)
    elif damage == "no json":
        save_file(tensors, path, metadata={"fitkit_prior": "{"})
    elif damage == "torch":
        torch.save(tensors, path)
    else:
        path.write_bytes({"empty": b"", "text": b"weights", "truncated": raw[: len(raw) // 2]}[damage])
    with pytest.raises(ValueError, match=r"prior\.safetensors"):
        load_prior(path)


# -- what ships --------------------------------------------------------------------------------------------------


def mirrored(pose: Tensor) -> Tensor:
    count = len(pose)
    whole = torch.eye(3).repeat(count, 24, 1, 1)
    whole[:, 1:22] = pose.float()
    usable = torch.ones(count, dtype=torch.bool)
    return (
        Motion.of_clip("", "", 30.0, "", whole, torch.zeros(count, 3), usable).mirrored().body_pose.to(pose)
    )


@pytest.mark.parametrize("name", shipped())
def test_every_prior_that_ships(name: str) -> None:
    prior = load_prior(name)
    assert (prior.block, prior.density.size) == ("body_pose", prior.joints * prior.representation.width)
    mean, drawn = prior.mean_pose(), prior.sample(200, torch.Generator().manual_seed(0))
    for rotations in (mean, drawn):
        eye = torch.eye(3, dtype=rotations.dtype).expand_as(rotations)
        torch.testing.assert_close(rotations @ rotations.mT, eye)
        torch.testing.assert_close(torch.linalg.det(rotations), eye[..., 0, 0])
    likely = prior.log_prob(drawn)
    assert torch.isfinite(likely).all()
    if prior.joints == 21:  # it saw everybody in a mirror, too
        change = (prior.log_prob(mirrored(drawn)) - likely) / prior.density.size
        assert change.mean().abs() < (0.1 if "-flow" in name or name.startswith(("real", "vae")) else 0.02)
    knees = [get_set("smplx55").names.index(f"{side}_knee") - 1 for side in ("left", "right")]
    turns = torch.zeros(2, 1, 3, dtype=mean.dtype)
    turns[:, 0, 0] = -torch.tensor([60.0, 90.0]).deg2rad()  # forward, as no knee goes
    bent = mean.repeat(2, 1, 1, 1)
    bent[:, knees] = geometry.exp(turns)
    best, slightly, badly = prior.log_prob(torch.cat([mean[None], bent])).tolist()
    assert best - 10 > slightly > badly
    if name != "diagonal-21":  # which adds up joints: of 21, two odd ones are not many
        assert prior.plausibility(bent)[1] < 0.05
    score = prior.plausibility(drawn)
    assert ((score >= 0) & (score <= 1)).all()
    assert (score[likely.argsort()].diff() >= 0).all()
    assert prior.plausibility(mean[None]) > 0.5

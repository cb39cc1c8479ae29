"""Small HUND networks with weights that answer to everything, problems for them, and short trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitkit import geometry
from fitkit.api import default_objective
from fitkit.body.model import BodyModel
from fitkit.coordinates import retract
from fitkit.datasets import Motion, split_by_subject
from fitkit.observation import Observation
from fitkit.priors.poses import Poses
from fitkit.problem import Problem
from fitkit.solvers.hund.network import HundNetwork, Settings
from fitkit.state import State
from fitkit.train.hund import Batch, Recipe, Source, Training, settings_for

MakePeople = Callable[..., tuple[State, Observation]]
TERMS = tuple(term.name for term in default_objective().terms())


def small(body: str = "open-1", **changes: object) -> Settings:
    plain = Settings(body, 21, 16, ("mediapipe33", "coco17"), TERMS, units=24, context=16)
    return replace(plain, **changes)  # type: ignore[arg-type]


def network(settings: Settings | None = None, seed: int = 0) -> HundNetwork:
    """With weights that answer to everything: a new network's last layers are nearly zero."""
    settings = settings or small()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rest = geometry.to_6d(torch.eye(3)).repeat(1 + settings.joints)
        flat = torch.cat([rest, torch.zeros(settings.betas + 3)])
        made = HundNetwork(settings, flat)
        for parameter in made.parameters():
            parameter.data.add_(0.03 * torch.randn_like(parameter))
    return made.eval()


def same(first: State, second: State, tolerance: float | None = None) -> None:
    for name, part in first.parts().items():
        torch.testing.assert_close(getattr(second, name), part, atol=tolerance, rtol=tolerance)


def problem_of(body: BodyModel, people: MakePeople, count: int = 3, mask: Tensor | None = None) -> Problem:
    _, observation = people(count)
    return Problem(body, replace(observation, mask=mask), default_objective())


SUBJECTS = ("07", "12", "35")
HELD = "12"
SHORT: dict[str, Any] = {"steps": 12, "batch": 8, "pictured": 0, "rendered": 1, "look": 4, "average": 5}


def clip(number: int, subject: str) -> Motion:
    draw = torch.Generator().manual_seed(number)
    rotations = geometry.exp(0.2 * torch.randn(40, 24, 3, generator=draw))
    return Motion.of_clip(
        f"{subject}_01",
        subject,
        30.0,
        "made",
        rotations,
        torch.zeros(40, 3),
        torch.ones(40, dtype=torch.bool),
    )


@cache
def motion() -> Motion:
    return Motion.join([clip(number, subject) for number, subject in enumerate(SUBJECTS)])


@cache
def parts() -> tuple[Poses, Poses]:
    learn, watch = split_by_subject(motion(), [HELD])
    return Poses.of(learn), Poses.of(watch)


def quiet(text: str) -> None:
    pass


def short(body: BodyModel, **changes: object) -> Settings:
    return settings_for(body, **{"units": 24, "context": 16, "stages": 3, **changes})


def train(body: BodyModel, file: Path, settings: Settings | None = None, **changes: Any) -> Training:
    return Training(settings or short(body), Recipe(**{**SHORT, **changes}), body, *parts(), file)


def batch_of(body: BodyModel, count: int = 6, kind: int | None = 0, seed: int = 0, **changes: Any) -> Batch:
    source = Source(body, parts()[0], Recipe(**{**SHORT, **changes}))
    return source.batch(count, torch.Generator().manual_seed(seed), kind)


def moved(state: State, size: float, seed: int = 0) -> State:
    """A state that many radians, metres and betas away."""
    blocks = {"global_orient": slice(0, 3), "body_pose": slice(3, 66), "betas": slice(66, 82)}
    blocks["transl"] = slice(82, 85)
    step = torch.randn(len(state), 85, generator=torch.Generator().manual_seed(seed))
    return retract(state, size * step.to(state.transl), blocks)

"""What HUND is trained on, step by step: people, what a detector sees of them, and the objective to be lowered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fitkit._select import concatenate
from fitkit.api import default_objective
from fitkit.body import BodyModel
from fitkit.coordinates import PoseLatent
from fitkit.objectives import GMoF, Keypoints2D, Objective
from fitkit.observation import Observation
from fitkit.priors.poses import Poses
from fitkit.problem import Problem
from fitkit.simulate import ANNOTATED, Crowd, Errors, Scene, detect, simulate_parts
from fitkit.solvers.hund.context import PICTURE, Context, read_context
from fitkit.solvers.hund.frame import Frame
from fitkit.train.hund_losses import META

SUPERVISION = ("FS", "SS", "FS+SS")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        steps: of Adam.
        batch: people per step.
        rate: of Adam at the start; it falls as a cosine to a hundredth.
        supervision: `FS` (3D labels), `SS` (keypoints, parts and priors alone), or `FS+SS`, by turns.
        meta: see `meta_loss`.
        pictured: people per step with a mask or part map; the others have none.
        rendered: people per step, of those, whose rendered parts are compared (`SS`).
        given: share of people who begin at a start that is not the network's own.
        world: whether detectors have 3D guesses; never without 3D labels.
        average: of the weights over so many steps, which is what is saved.
        look: steps between two looks at unseen people.
        seed: of everything random.
    """

    steps: int = 12_500
    batch: int = 160
    rate: float = 1e-3
    supervision: str = "FS"
    meta: str = "sum"
    pictured: int = 12
    rendered: int = 4
    given: float = 0.25
    world: bool = True
    average: int = 1000
    look: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.supervision not in SUPERVISION or self.meta not in META:
            raise ValueError(
                f"supervision {self.supervision!r} and meta-loss {self.meta!r}, expected one of {SUPERVISION} and "
                f"one of {META}"
            )
        if min(self.steps, self.batch, self.look) < 1 or not 0 <= self.pictured <= self.batch:
            raise ValueError(f"{self}: expected steps, people and looks, and no more pictures than people")

    def rate_at(self, step: int) -> float:
        """Learning rate: 300 steps of warming up, then a cosine."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(1.0, (step + 1) / 300) * (0.01 + 0.99 * cosine)


@dataclass(frozen=True)
class Batch:
    """People of one step.

    Attributes:
        problem: what is lowered.
        scene: the truth.
        frame: of each.
        context: what the network is told.
        pictured: rows with part maps in the problem's observation.
    """

    problem: Problem
    scene: Scene
    frame: Frame
    context: Context
    pictured: Tensor


class Source:
    """Makes batches.

    Args:
        body: of the people.
        poses: to draw from.
        recipe: of the training.
        pose: whose latent numbers stand for poses; None for 6D.
    """

    def __init__(self, body: BodyModel, poses: Poses, recipe: Recipe, pose: PoseLatent | None = None) -> None:
        self.body, self.recipe, self.pose = body, recipe, pose
        rotations = poses.rotations()
        # A subject of a hundred times the frames is seen ten times as often, not a hundred times.
        count = torch.bincount(poses.subject).clamp_min(1)
        self.crowd = Crowd(body, rotations, count.rsqrt()[poses.subject].repeat(2))
        network = Errors() if recipe.world and recipe.supervision == "FS" else replace(Errors(), world=0.0)
        self.errors = (network, ANNOTATED)
        self.objective = default_objective().without("keypoints_2d", "directions")
        self.directions = default_objective()["directions"]

    def batch(self, count: int, draw: torch.Generator, kind: int | None = None) -> Batch:
        """New people.

        Args:
            count: of people.
            draw: of everything random.
            kind: 0 for a network's points, 1 for an annotator's; None for either.
        """
        scene = self.crowd(count, draw)
        toss = torch.rand(8, generator=draw, device=draw.device).tolist()
        kind = int(toss[0] < 0.5) if kind is None else kind
        seen = detect(self.body, scene, draw, self.errors[kind])
        frame = Frame.of(seen, self.pose)
        rows = torch.arange(min(self.recipe.pictured, count), device=self.body.device)
        context = read_context(seen, frame)
        if len(rows):
            with_parts = self._with_parts(seen, scene, frame, rows)
            context = self._picture(context, with_parts, frame, draw)
            if "SS" in self.recipe.supervision:
                rest = seen.select(torch.arange(len(rows), count, device=self.body.device))
                seen = concatenate([with_parts, _without_parts(rest, with_parts)])
        return Batch(self._problem(seen, kind, toss), scene, frame, context, rows[: self.recipe.rendered])

    def _with_parts(self, seen: Observation, scene: Scene, frame: Frame, rows: Tensor) -> Observation:
        some, box = scene.select(rows), frame.select(rows).box
        parts = simulate_parts(self.body, some.state, some.camera, box, 2 * PICTURE)
        return replace(seen.select(rows), parts=parts)

    def _picture(self, context: Context, seen: Observation, frame: Frame, draw: torch.Generator) -> Context:
        """Half of the pictures are masks only, half of those as wide as clothes make them."""
        count = len(seen)
        picture = read_context(seen, frame.select(torch.arange(count, device=self.body.device))).picture
        toss = torch.rand(2, count, 1, 1, 1, generator=draw, device=draw.device)
        wide = nn.functional.max_pool2d(picture[:, :1], 3, 1, 1) * (picture[:, -1:] > 0)
        mask = torch.where(toss[1] < 0.5, wide, picture[:, :1])
        masks = torch.cat([mask, 0 * picture[:, 1:-1], picture[:, -1:]], 1)
        context.picture[:count] = torch.where(toss[0] < 0.5, masks, picture)
        return context

    def _problem(self, seen: Observation, kind: int, toss: Sequence[float]) -> Problem:
        """The objective of `fit`, or of a test problem; weights vary, terms are left out, strangers join."""
        points = Keypoints2D(0.01, GMoF(10.0)) if kind == 1 else Keypoints2D()
        objective: Objective = points * (0.5 + toss[1])
        names = [term.name for term in self.objective.terms()]
        for number, term in enumerate(self.objective.terms()):
            if toss[2] > 0.15 or number != int(toss[3] * len(names)):
                objective = objective + term * (0.7 + 0.6 * toss[4])
        if seen.world is not None:
            objective = objective + self.directions
        if toss[5] < 0.2:
            stranger = self.objective.terms()[int(toss[6] * len(names))]
            objective = objective + (10 * toss[7] * stranger).named("stranger")
        return Problem(self.body, seen, objective)


def _without_parts(seen: Observation, like: Observation) -> Observation:
    """People without a part map, as rows of a batch in which others have one: nothing is known anywhere."""
    parts = like.parts
    assert parts is not None
    first = torch.zeros(len(seen), dtype=torch.long, device=parts.box.device)
    empty = parts.select(first)
    return replace(seen, parts=replace(empty, confidence=torch.zeros_like(empty.confidence)))

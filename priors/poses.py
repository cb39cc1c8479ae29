"""Motion as the numbers that priors are trained on, and folds of it by subject."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fitkit import geometry
from fitkit.datasets import Motion
from fitkit.priors.numbers import Representation

# CMU's salsa couples: two subjects of one dance, which no split may part.
COUPLES = {"061": "060"}
STILL = 1e-4  # radians: a joint that never turns further than this was not recorded


@dataclass(frozen=True)
class Poses:
    """Poses of people, half of them in a mirror, and whose they are.

    Attributes:
        rotations: `(N, 24, 3, 3)` of SMPL's joints, float32; joint 0 in a world with Y up.
        subject: `(N,)` row in `subjects`.
        subjects: names.
    """

    rotations: Float[Tensor, "N 24 3 3"]
    subject: Int[Tensor, " N"]
    subjects: tuple[str, ...]

    @classmethod
    def of(cls, motion: Motion, seed: int = 0) -> Poses:
        """The usable frames and their mirror images; joints that a skeleton does not record are drawn from the others.

        Args:
            motion: of several subjects.
            seed: of the drawing.
        """
        motion = motion.usable_only()
        names = tuple(sorted(set(motion.subjects)))
        whose = torch.tensor([names.index(name) for name in motion.subjects])[motion.clip]
        whole = replace(motion, rotations=_filled(motion, torch.Generator().manual_seed(seed)))
        return cls(torch.cat([whole.rotations, whole.mirrored().rotations]), whose.repeat(2), names)

    def __len__(self) -> int:
        return len(self.subject)

    def numbers(self, joints: int, representation: Representation) -> Float[Tensor, "N D"]:
        """The first joints after the pelvis, side by side."""
        return representation.numbers(self.rotations[:, 1 : joints + 1]).flatten(1)

    def folds(self, count: int) -> Iterator[Bool[Tensor, " N"]]:
        """Which poses are held out, for each of some folds: whole subjects, frames shared out evenly."""
        names = [COUPLES.get(name, name) for name in self.subjects]
        group = torch.tensor([names.index(name) for name in names])[self.subject]
        sizes = torch.bincount(group, minlength=len(names))
        load, member = [0] * count, torch.zeros(len(names), dtype=torch.long)
        for first in sizes.argsort(descending=True, stable=True).tolist():
            member[first] = load.index(min(load))
            load[int(member[first])] += int(sizes[first])
        fold = member[group]
        for number in range(count):
            yield fold == number


def _filled(motion: Motion, draw: torch.Generator) -> Float[Tensor, "N 24 3 3"]:
    """Rotations in which joints that a skeleton lacks are those of random frames of the skeletons that have them.

    Left at rest they would teach that such joints stand still in many poses.
    """
    names = sorted(set(motion.skeletons))
    skeleton = torch.tensor([names.index(name) for name in motion.skeletons])[motion.clip]
    rotations = motion.rotations.clone()
    turned = geometry.geodesic(rotations, torch.eye(3).expand_as(rotations)) > STILL
    recorded = torch.stack([turned[skeleton == each].any(0) for each in range(len(names))])
    for joint in recorded.any(0).logical_and(~recorded.all(0)).nonzero()[:, 0].tolist():
        have = recorded[skeleton, joint]
        source = have.nonzero()[:, 0]
        drawn = torch.randint(len(source), (int((~have).sum()),), generator=draw)
        rotations[~have, joint] = motion.rotations[source[drawn], joint]
    return rotations

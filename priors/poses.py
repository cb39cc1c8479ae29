"""Motion as the numbers that priors are trained on, and folds of it by subject."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fitkit import geometry
from fitkit.datasets import COUPLES, Motion
from fitkit.priors.representation import Representation

BLOCKS = ("body_pose", "left_hand_pose", "right_hand_pose")
HAND = 15  # joints of a hand
STILL = 1e-4  # radians: a joint that never turns further than this was not recorded


@dataclass(frozen=True)
class Poses:
    """Poses to train on, and whose they are.

    Attributes:
        motion: usable frames of several subjects.
        subject: `(N,)` row of each frame in `subjects`.
        subjects: names.
        seed: of what is drawn at random.
        block: of the State that is learned: `body_pose`, or a hand's.
    """

    motion: Motion
    subject: Int[Tensor, " N"]
    subjects: tuple[str, ...]
    seed: int = 0
    block: str = "body_pose"

    @classmethod
    def of(cls, motion: Motion, seed: int = 0, block: str = "body_pose") -> Poses:
        """The usable frames of a motion.

        Args:
            motion: of several subjects.
            seed: of what is drawn at random.
            block: `body_pose`, `left_hand_pose` or `right_hand_pose`.

        Raises:
            ValueError: another block, or hands of a motion that has none.
        """
        if block not in BLOCKS:
            raise ValueError(f"poses of {block!r}, expected one of {BLOCKS}")
        if block != "body_pose" and motion.hands is None:
            raise ValueError(
                f"poses of {block}: the motion has no hands (AMASS' files of SMPL+H and SMPL-X do)"
            )
        motion = motion.usable_only()
        names = tuple(sorted({motion.subjects[clip] for clip in motion.clip.unique().tolist()}))
        whose = torch.tensor([names.index(name) if name in names else -1 for name in motion.subjects])
        return cls(motion, whose[motion.clip], names, seed, block)

    def __len__(self) -> int:
        return len(self.subject)

    def rotations(self, rows: Bool[Tensor, " N"] | None = None) -> Float[Tensor, "M 24 3 3"]:
        """Poses of SMPL's joints and their mirror images, M twice the rows; joint 0 in a world with Y up.

        Joints that a skeleton does not record are drawn from frames of the others, all of the same rows: what is held
        out stays so.

        Args:
            rows: frames; None for all.
        """
        motion = self.motion if rows is None else self.motion.select(rows)
        draw = torch.Generator().manual_seed(self.seed)
        whole = replace(motion, rotations=_filled(motion, draw))
        return torch.cat([whole.rotations, whole.mirrored().rotations])

    def numbers(
        self, joints: int, representation: Representation, rows: Bool[Tensor, " N"] | None = None
    ) -> Float[Tensor, "M D"]:
        """The first joints of the block, side by side, of poses and their mirror images; see `rotations`."""
        if self.block == "body_pose":
            return representation.numbers(self.rotations(rows)[:, 1 : joints + 1]).flatten(1)
        motion = self.motion if rows is None else self.motion.select(rows)
        first = 0 if self.block == "left_hand_pose" else HAND
        # The other hand in the mirror is a hand of this side.
        hands = [
            one.hands[:, first : first + joints]
            for one in (motion, motion.mirrored())
            if one.hands is not None
        ]
        return representation.numbers(torch.cat(hands)).flatten(1)

    def groups(self) -> Int[Tensor, " N"]:
        """Subjects who may not be parted have one number."""
        names = [COUPLES.get(name, name) for name in self.subjects]
        return torch.tensor([names.index(name) for name in names])[self.subject]

    def folds(self, count: int) -> Iterator[Bool[Tensor, " N"]]:
        """Which poses are held out, for each of some folds: whole subjects, frames shared out evenly.

        Raises:
            ValueError: fewer than two folds, or more than there are subjects (couples count once).
        """
        group = self.groups()
        most = len(group.unique())
        if not 2 <= count <= most:
            raise ValueError(
                f"{count} folds of {len(self.subjects)} subjects, expected 2 to {most}: couples stay together"
            )
        sizes = torch.bincount(group)
        load, member = [0] * count, torch.zeros(len(sizes), dtype=torch.long)
        for first in sizes.argsort(descending=True, stable=True).tolist():
            member[first] = load.index(min(load))
            load[int(member[first])] += int(sizes[first])
        for number in range(count):
            yield member[group] == number


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

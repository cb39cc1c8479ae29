"""Motion: poses of people over time, as rotations of the 24 joints of SMPL, and who moved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fitkit._select import Rows
from fitkit.datasets.arrays import read_arrays
from fitkit.files import atomic_write
from fitkit.keypoints import get_set

JOINTS = get_set("smpl24").names
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
BODY = 21  # joints 1..21 are the body pose of SMPL-X
# CMU's salsa couples: two subjects of one dance, whom no split may part.
COUPLES = {"061": "060"}
SAME_RATE = 0.02  # frame rates this near (relative) are the same: 119.88 is 120
_MIRRORED = tuple(
    JOINTS.index(
        name.replace("left_", "right_") if name.startswith("left_") else name.replace("right_", "left_")
    )
    for name in JOINTS
)
_LABELS = ("clips", "subjects", "skeletons", "notes")


@dataclass(frozen=True)
class Motion(Rows):
    """N frames of C clips. Indexed by frame: `motion.select(...)` keeps the table of clips.

    Attributes:
        rotations: `(N, 24, 3, 3)` parent-relative, SMPL's joints (`fitkit.keypoints.get_set("smpl24")`; the first 22
            are the body joints of SMPL-X). Joint 0 is the pelvis in a world with Y up; identity faces +Z, with
            the left side at +X.
        root: `(N, 3)` position of the pelvis in that world, metres.
        usable: `(N,)` False where the recording is not believable (`fitkit.datasets.believable`).
        clip: `(N,)` row of the frame's clip in the tuples below.
        clips: names of the C clips, such as `005_01`.
        subjects: who moves in each clip.
        fps: frames per second of each clip.
        skeletons: where each clip's rotations come from, such as `cmu-mb` or `amass-smplh`.
        notes: what was repaired or is not to be trusted in each clip, "" for nothing.
        hands: `(N, 30, 3, 3)` fingers, left then right, in SMPL-X's order; None where they were not recorded.
    """

    rotations: Float[Tensor, "N 24 3 3"]
    root: Float[Tensor, "N 3"]
    usable: Bool[Tensor, " N"]
    clip: Int[Tensor, " N"]
    clips: tuple[str, ...]
    subjects: tuple[str, ...]
    fps: tuple[float, ...]
    skeletons: tuple[str, ...]
    notes: tuple[str, ...]
    hands: Float[Tensor, "N 30 3 3"] | None = None

    def __post_init__(self) -> None:
        counts = {name: len(getattr(self, name)) for name in (*_LABELS, "fps")}
        if len(set(counts.values())) > 1:
            raise ValueError(f"motion has {counts}, expected the same number of each")
        if len(self.clip) and not 0 <= int(self.clip.min()) <= int(self.clip.max()) < len(self.clips):
            raise ValueError(
                f"motion's clip is {int(self.clip.min())}..{int(self.clip.max())}, "
                f"expected 0..{len(self.clips) - 1}"
            )

    def __len__(self) -> int:
        return len(self.root)

    @property
    def body_pose(self) -> Float[Tensor, "N 21 3 3"]:
        """The 21 body joints of SMPL-X, without the pelvis."""
        return self.rotations[:, 1 : BODY + 1]

    @staticmethod
    def of_clip(
        name: str,
        subject: str,
        fps: float,
        skeleton: str,
        rotations: Float[Tensor, "N 24 3 3"],
        root: Float[Tensor, "N 3"],
        usable: Bool[Tensor, " N"],
        note: str = "",
        hands: Float[Tensor, "N 30 3 3"] | None = None,
    ) -> Motion:
        """One clip, in float32.

        Raises:
            ValueError: a rotation or a position that is no number in float32.
        """
        rotations, root = rotations.float(), root.float()
        if not bool(rotations.isfinite().all() and root.isfinite().all()):
            raise ValueError(
                f"{name}: rotations or positions beyond what numbers hold, expected a moving body"
            )
        return Motion(
            rotations=rotations,
            root=root,
            usable=usable,
            clip=torch.zeros(len(root), dtype=torch.long),
            clips=(name,),
            subjects=(subject,),
            fps=(float(fps),),
            skeletons=(skeleton,),
            notes=(note,),
            hands=None if hands is None else hands.float(),
        )

    @staticmethod
    def join(motions: Sequence[Motion]) -> Motion:
        """One motion of several, clips in their order; fingers are kept only where all of them have them.

        Raises:
            ValueError: nothing to join.
        """
        if not motions:
            raise ValueError("nothing to join: expected at least one motion")
        starts = np.cumsum([0, *(len(motion.clips) for motion in motions)])
        hands = [motion.hands for motion in motions]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(motion, name) for motion in motions])
            for name in ("rotations", "root", "usable")
        }
        for name in (*_LABELS, "fps"):
            joined[name] = tuple(value for motion in motions for value in getattr(motion, name))
        return Motion(
            clip=torch.cat(
                [motion.clip + int(start) for motion, start in zip(motions, starts, strict=False)]
            ),
            hands=torch.cat([hand for hand in hands if hand is not None])
            if all(hand is not None for hand in hands)
            else None,
            **joined,
        )

    def of_subjects(self, names: Iterable[str]) -> Motion:
        """The clips of these subjects.

        Raises:
            ValueError: a subject that is not there.
        """
        asked = self._known(names)
        return self.of_clips(row for row, subject in enumerate(self.subjects) if subject in asked)

    def without_subjects(self, names: Iterable[str]) -> Motion:
        """The clips of everybody else.

        Raises:
            ValueError: a subject that is not there.
        """
        others = set(self.subjects) - self._known(names)
        return self.of_clips(row for row, subject in enumerate(self.subjects) if subject in others)

    def _known(self, names: Iterable[str]) -> set[str]:
        asked = {names} if isinstance(names, str) else set(names)
        if asked - set(self.subjects):
            raise ValueError(
                f"no subject {sorted(asked - set(self.subjects))} in the motion, expected some of "
                f"{sorted(set(self.subjects))}"
            )
        return asked

    def of_clips(self, rows: Iterable[int]) -> Motion:
        """Some of the clips, by their rows in `clips`."""
        kept = sorted(set(rows))
        position = torch.full((len(self.clips),), -1)
        position[kept] = torch.arange(len(kept))
        chosen = self.select(position[self.clip] >= 0)
        table: dict[str, Any] = {
            name: tuple(getattr(self, name)[index] for index in kept) for name in (*_LABELS, "fps")
        }
        return replace(chosen, clip=position[chosen.clip], **table)

    def usable_only(self) -> Motion:
        """The frames that are believable."""
        return self.select(self.usable)

    def mirrored(self) -> Motion:
        """The motion in a mirror: sides swapped, rotations and root reflected in the plane x = 0."""
        reflect = torch.diag(self.root.new_tensor([-1.0, 1.0, 1.0]))
        hands = self.hands
        return replace(
            self,
            rotations=reflect @ self.rotations[:, _MIRRORED] @ reflect,
            root=self.root @ reflect,
            hands=None if hands is None else reflect @ hands.roll(15, 1) @ reflect,
        )

    def every(self, fps: float) -> Motion:
        """Resampled by dropping frames: of each clip the frames nearest to the instants of a lower rate.

        Raises:
            ValueError: a clip is slower than that: frames are not made up.
        """
        rows, rates = [], []
        for index, (name, rate) in enumerate(zip(self.clips, self.fps, strict=True)):
            if not 0 < fps <= rate * (1 + SAME_RATE):
                raise ValueError(
                    f"{name} has {rate:g} frames per second, expected at least the {fps:g} asked"
                )
            own = (self.clip == index).nonzero()[:, 0]
            if rate > fps * (1 + SAME_RATE):
                steps = torch.arange(len(own), dtype=torch.float64) * (rate / fps)
                own, rate = own[steps[steps < len(own) - 0.5].round().long()], fps
            rows.append(own)
            rates.append(rate)
        return replace(self.select(torch.cat(rows)), fps=tuple(rates))

    def save(self, path: str | Path) -> None:
        """Write plain arrays: `axis_angle (N, 24, 3)` radians float32, and the other fields by their names."""
        import roma  # brings torch's compiler with it

        arrays: dict[str, Any] = {
            "axis_angle": roma.rotmat_to_rotvec(self.rotations).numpy(),
            "root": self.root.numpy(),
            "usable": self.usable.numpy(),
            "clip": self.clip.numpy().astype(np.int32),
            "fps": np.array(self.fps, np.float64),
            **{name: np.array(getattr(self, name), dtype=np.str_) for name in _LABELS},
        }
        if self.hands is not None:
            arrays["hands_axis_angle"] = roma.rotmat_to_rotvec(self.hands).numpy()
        atomic_write(path, lambda file: np.savez_compressed(file, **arrays))

    @staticmethod
    def load(path: str | Path) -> Motion:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, damaged, or with arrays that do not fit; the message names the file.
        """
        import roma

        arrays = read_arrays(path, ("axis_angle", "root", "usable", "clip", "fps", *_LABELS))
        _check(path, arrays)
        hands = arrays.get("hands_axis_angle")
        try:
            return Motion(
                rotations=roma.rotvec_to_rotmat(torch.from_numpy(arrays["axis_angle"])),
                root=torch.from_numpy(arrays["root"]),
                usable=torch.from_numpy(arrays["usable"]),
                clip=torch.from_numpy(arrays["clip"].astype(np.int64)),
                fps=tuple(arrays["fps"].tolist()),
                **{name: tuple(arrays[name].tolist()) for name in _LABELS},
                hands=None if hands is None else roma.rotvec_to_rotmat(torch.from_numpy(hands)),
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def split_by_subject(motion: Motion, held_out: Iterable[str]) -> tuple[Motion, Motion]:
    """Motion to learn from, and motion of people it has never seen.

    Args:
        motion: of several subjects.
        held_out: the subjects of the second part.

    Raises:
        ValueError: a subject that is not there, half of a couple (`COUPLES`), or nobody is left to learn from.
    """
    names = (held_out,) if isinstance(held_out, str) else tuple(held_out)
    parted = [
        pair for pair in COUPLES.items() if len({*pair} & {*names}) == 1 and {*pair} <= {*motion.subjects}
    ]
    if parted:
        raise ValueError(f"{parted[0]} danced together, expected both or neither to be held out")
    if set(motion.subjects) <= set(names):
        raise ValueError(f"all subjects are held out ({sorted(set(names))}), expected some to be left")
    return motion.without_subjects(names), motion.of_subjects(names)


def _check(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    frames = len(arrays["root"]) if arrays["root"].ndim else 0
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "axis_angle": ((frames, len(JOINTS), 3), "f"),
        "root": ((frames, 3), "f"),
        "usable": ((frames,), "b"),
        "clip": ((frames,), "iu"),
        "fps": ((len(arrays["clips"]) if arrays["clips"].ndim else 0,), "f"),
        "hands_axis_angle": ((frames, 30, 3), "f"),
        **{name: (arrays["fps"].shape[:1], "U") for name in _LABELS},
    }
    for name, (shape, kinds) in expected.items():
        if name not in arrays:
            continue
        array = arrays[name]
        if array.shape != shape or array.dtype.kind not in kinds:
            raise ValueError(
                f"{path}: {name} has shape {array.shape} of {array.dtype}, expected {shape} of kind {kinds!r}"
            )
        if array.dtype.kind == "f":
            if not np.isfinite(array).all():
                raise ValueError(f"{path}: {name} has entries that are not finite")
            if name != "fps":
                arrays[name] = array.astype(np.float32)

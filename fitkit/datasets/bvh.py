"""BVH files: a skeleton, and rotations of its joints over time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry

DEEPEST = 100  # joints between the root and a fingertip: several times a hand with all its bones
LARGEST = 1 << 30  # bytes of a file
_CHANNEL = re.compile(r"^([XYZ])(position|rotation)$", re.IGNORECASE)
_AXES = {"X": 0, "Y": 1, "Z": 2}


@dataclass(frozen=True)
class BvhClip:
    """A BVH file's skeleton and its N frames, in the file's own units and zero pose, float64.

    Attributes:
        name: of the file, without its ending.
        names: of the J joints, parents before children; the first is the root.
        parents: row of each joint's parent, -1 for the root.
        offsets: `(J, 3)` position of each joint in its parent's frame, in the file's units.
        ends: end sites by the name of the joint that they end: its offset, three numbers.
        rotations: `(N, J, 3, 3)` parent-relative.
        root: `(N, 3)` position of the root, in the file's units.
        fps: frames per second.
        repairs: what `fitkit.datasets.repair_cmu` changed, in words.
    """

    name: str
    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: Float[Tensor, "J 3"]
    ends: dict[str, tuple[float, float, float]]
    rotations: Float[Tensor, "N J 3 3"]
    root: Float[Tensor, "N 3"]
    fps: float
    repairs: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.root)

    def pose(self) -> tuple[Float[Tensor, "N J 3 3"], Float[Tensor, "N J 3"]]:
        """Rotations of the joints in the world, and their positions in the file's units."""
        turns, places = [self.rotations[:, 0]], [self.root]
        for joint, parent in enumerate(self.parents[1:], 1):
            turns.append(turns[parent] @ self.rotations[:, joint])
            places.append(places[parent] + turns[parent] @ self.offsets[joint])
        return torch.stack(turns, 1), torch.stack(places, 1)

    def zero_pose(self) -> Float[Tensor, "J 3"]:
        """Positions of the joints where all rotations are zero, the root at the origin."""
        places = [torch.zeros_like(self.offsets[0])]
        for joint, parent in enumerate(self.parents[1:], 1):
            places.append(places[parent] + self.offsets[joint])
        return torch.stack(places)


def read_bvh(path: str | Path) -> BvhClip:
    """Read a BVH file; each joint's rotation in the order of its own channels (intrinsic, degrees in the file).

    Positions of joints other than the root, which some exporters repeat in every frame, are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not BVH, or damaged; the message names the file, the line, what came and what was expected.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, expected a BVH file of at most {LARGEST}")
    reader = _Reader(path, path.read_bytes().decode("utf-8-sig", "replace").splitlines())
    skeleton = reader.hierarchy()
    numbers, fps = reader.motion(sum(len(channels) for channels in skeleton.channels))
    rotations = torch.eye(3, dtype=torch.float64).repeat(len(numbers), len(skeleton.names), 1, 1)
    root, column = torch.zeros(len(numbers), 3, dtype=torch.float64), 0
    for joint, channels in enumerate(skeleton.channels):
        for axis, rotates in channels:
            if rotates:
                vectors = torch.zeros(len(numbers), 3, dtype=torch.float64)
                vectors[:, axis] = torch.deg2rad(numbers[:, column])
                rotations[:, joint] = rotations[:, joint] @ geometry.exp(vectors)
            elif joint == 0:
                root[:, axis] = numbers[:, column]
            column += 1
    return BvhClip(
        name=path.stem,
        names=tuple(skeleton.names),
        parents=tuple(skeleton.parents),
        offsets=torch.tensor(skeleton.offsets, dtype=torch.float64),
        ends=skeleton.ends,
        rotations=rotations,
        root=root,
        fps=fps,
    )


@dataclass
class _Skeleton:
    names: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    offsets: list[tuple[float, float, float]] = field(default_factory=list)
    channels: list[list[tuple[int, bool]]] = field(default_factory=list)
    ends: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def add(self, name: str, parent: int) -> int:
        self.names.append(name)
        self.parents.append(parent)
        self.offsets.append((0.0, 0.0, 0.0))
        self.channels.append([])
        return len(self.names) - 1


class _Reader:
    """Lines of a file, one after the other, and errors that say where."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self.path, self.lines, self.at = path, lines, 0

    def error(self, came: str, expected: str) -> ValueError:
        return ValueError(f"{self.path}, line {self.at}: {came}, expected {expected}")

    def next(self, expected: str) -> list[str]:
        """The words of the next line that has any."""
        while self.at < len(self.lines):
            self.at += 1
            if words := self.lines[self.at - 1].split():
                return words
        raise self.error("the file ends", expected)

    def numbers(self, words: list[str], count: int, what: str) -> list[float]:
        try:
            values = [float(word) for word in words]
        except ValueError as error:
            raise self.error(f"{what} {' '.join(words)[:60]!r}", f"{count} numbers") from error
        if len(values) != count or not all(math.isfinite(value) for value in values):
            raise self.error(f"{what} of {len(values)} numbers {values[:6]}", f"{count} finite numbers")
        return values

    def hierarchy(self) -> _Skeleton:
        """Everything up to MOTION."""
        words = self.next("HIERARCHY")
        if words[0].upper() != "HIERARCHY":
            raise self.error(repr(" ".join(words)[:60]), "HIERARCHY, as BVH files begin")
        skeleton, open_joints, pending = _Skeleton(), list[int](), None
        # An end site is open as -1 - joint, so that its OFFSET is not taken for the joint's own.
        while (words := self.next("ROOT, JOINT, End Site, OFFSET, CHANNELS, a brace or MOTION"))[
            0
        ] != "MOTION":
            word = words[0].upper()
            if word == "{":
                if pending is None or len(open_joints) >= DEEPEST:
                    raise self.error("{", f"a joint before it, and at most {DEEPEST} of them in each other")
                open_joints.append(pending)
                pending = None
            elif pending is not None:
                raise self.error(repr(" ".join(words)[:60]), "{ after the joint's name")
            elif word in ("ROOT", "JOINT", "END"):
                pending = self._joint(word, words, open_joints, skeleton)
            elif not open_joints:
                raise self.error(repr(" ".join(words)[:60]), "ROOT or MOTION")
            elif word == "}":
                open_joints.pop()
            elif word == "OFFSET":
                x, y, z = self.numbers(words[1:], 3, "OFFSET")
                if open_joints[-1] < 0:
                    skeleton.ends[skeleton.names[-1 - open_joints[-1]]] = (x, y, z)
                else:
                    skeleton.offsets[open_joints[-1]] = (x, y, z)
            elif word == "CHANNELS" and open_joints[-1] >= 0:
                skeleton.channels[open_joints[-1]] = self._channels(words)
            else:
                raise self.error(repr(" ".join(words)[:60]), "JOINT, End Site, OFFSET, CHANNELS or }")
        if open_joints or pending is not None or not skeleton.names:
            raise self.error("MOTION", "a ROOT, and all its braces closed, before it")
        return skeleton

    def _joint(self, word: str, words: list[str], open_joints: list[int], skeleton: _Skeleton) -> int:
        if (word == "ROOT") != (not open_joints) or (open_joints and open_joints[-1] < 0):
            raise self.error(
                repr(" ".join(words)[:60]), "one ROOT, and every JOINT and End Site inside a joint"
            )
        if word == "END":
            return -1 - open_joints[-1]
        name = " ".join(words[1:])
        if not name or name in skeleton.names or (word == "ROOT" and skeleton.names):
            raise self.error(repr(" ".join(words)[:60]), "one ROOT, and joints with names of their own")
        return skeleton.add(name, open_joints[-1] if open_joints else -1)

    def _channels(self, words: list[str]) -> list[tuple[int, bool]]:
        matches = [_CHANNEL.match(word) for word in words[2:]]
        if not words[1:] or words[1] != str(len(matches)) or len(matches) > 6 or not all(matches):
            raise self.error(
                repr(" ".join(words)[:60]), "CHANNELS, their number, and names such as Xposition, Zrotation"
            )
        channels = [(_AXES[m[1].upper()], m[2].lower() == "rotation") for m in matches if m]
        if len(set(channels)) < len(channels):
            raise self.error(repr(" ".join(words)[:60]), "every channel once")
        return channels

    def motion(self, columns: int) -> tuple[Float[Tensor, "N C"], float]:
        """Everything after MOTION: the numbers and the frames per second."""
        words = self.next("Frames:")
        if words[0] != "Frames:" or len(words) != 2 or not words[1].isdecimal():
            raise self.error(repr(" ".join(words)[:60]), "Frames: and their number")
        frames, words = int(words[1]), self.next("Frame Time:")
        if words[:2] != ["Frame", "Time:"]:
            raise self.error(repr(" ".join(words)[:60]), "Frame Time: and seconds")
        (seconds,) = self.numbers(words[2:], 1, "Frame Time")
        if not 1e-4 < seconds < 10:
            raise self.error(f"Frame Time {seconds:g}", "seconds between 0.0001 and 10")
        rows = []
        for frame in range(frames):
            words = self.next(f"{frames} frames as the file says, but {frame} are there")
            rows.append(np.array(self.numbers(words, columns, f"frame {frame + 1}")))
        while self.at < len(self.lines):
            self.at += 1
            if self.lines[self.at - 1].strip():
                raise self.error("another line", f"the end after the {frames} frames that the file says")
        if not rows:
            raise self.error("no frames", "at least one")
        # Written with few digits: 0.0333333 is 30 frames per second.
        fps = 1 / seconds
        return torch.from_numpy(np.stack(rows)), float(round(fps)) if abs(fps - round(fps)) < 0.02 else fps

"""Recordings that tests make: small BVH files of every skeleton, and where their bones then point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import roma
import torch
from torch import Tensor

from fitkit.datasets import Motion
from fitkit.datasets.motion import JOINTS, PARENTS
from fitkit.datasets.retarget import FAMILIES, rest_joints

# The left half of each skeleton as the real files have it: name, parent, offset; the right is its mirror image.
SIDES = {"L": "R", "Left": "Right", "l": "r"}
MIDDLE = {
    "cmu-mb": "Hips - 0 0 0;LowerBack Hips 0 0 0;Spine LowerBack 0 2.1 -.11;Spine1 Spine 0 2.1 -.07;Neck Spine1 0 "
    "2.1183 0;Neck1 Neck 0 1.7 0;Head Neck1 0 1.5 -.6",
    "cmu-max": "Hips - 0 0 0;lowerback Hips 0 0 0;Chest lowerback 0 2 0;Chest2 Chest 0 2 0;lowerneck Chest2 0 2.016 0;"
    "Neck lowerneck 0 1.6 .1;Head Neck 0 1.6 0",
    "daz-generic": "hip - 0 0 0;abdomen hip 0 20.7 -.7;chest abdomen 0 11.7 -.5;neck chest 0 22.2 -2.2;head neck 0 7 1",
}
LEFT = {
    "cmu-mb": "LHipJoint Hips 0 0 0;LeftUpLeg LHipJoint 1.6 -1.7 .8;LeftLeg LeftUpLeg 2.2496 -6.1808 0;LeftFoot "
    "LeftLeg 2.7178 -7.467 0;LeftToeBase LeftFoot .1877 -.5156 2.2474;LeftShoulder Spine1 0 2.1183 0;LeftArm "
    "LeftShoulder 3.4 .5 .2;LeftForeArm LeftArm 5.4 0 0;LeftHand LeftForeArm 2.4 0 0;LeftFingerBase LeftHand 1.2 0 0;"
    "LThumb LeftHand 1.2 0 0;LeftHandIndex1 LeftFingerBase .7 0 0",
    "cmu-max": "LHipJoint Hips 0 0 0;LeftHip LHipJoint 1.2 -1.6 .7;LeftKnee LeftHip 2.4933 -6.8503 0;LeftAnkle "
    "LeftKnee 2.3677 -6.5052 0;LeftToe LeftAnkle .1482 -.4072 2.214;LeftCollar Chest2 0 2.016 0;LeftShoulder "
    "LeftCollar 3 1.5 0;LeftElbow LeftShoulder 0 -4.3 0;LeftWrist LeftElbow 0 -3.2 0;lhand LeftWrist 0 -1.6 0;LThumb "
    "LeftWrist 0 -1.6 0;LFingers lhand 0 -.66 0",
    "daz-generic": "lButtock hip 8.8 4.4 1.2;lThigh lButtock 0 -1.7 -2.2;lShin lThigh 0 -36.8 .7;lFoot lShin -.7 -45.1 "
    "-5.1;lCollar chest 2.7 19.3 -4.9;lShldr lCollar 8.8 -2 1.5;lForeArm lShldr 28.1742 -1.7115 .48768;lHand lForeArm "
    "22.6 .8 7.1;lMid1 lHand 8.2 1.2 3.4",
}
BENT = {
    "cmu-mb": ("LeftLeg", "LeftForeArm"),
    "cmu-max": ("LeftKnee", "LeftElbow"),
    "daz-generic": ("lShin", "lForeArm"),
}
NAMES = tuple(LEFT)


def skeleton(family: str) -> list[tuple[str, str, list[float]]]:
    joints = [(n, p, [float(v) for v in o]) for n, p, *o in map(str.split, MIDDLE[family].split(";"))]
    for name, parent, *offset in map(str.split, LEFT[family].split(";")):
        x, y, z = map(float, offset)
        joints.append((name, parent, [x, y, z]))
        joints.append((other_side(name), other_side(parent), [-x, y, z]))
    return joints


def other_side(name: str) -> str:
    if name in {n for spec in MIDDLE.values() for n, *_ in map(str.split, spec.split(";"))}:
        return name
    return next(
        right + name[len(left) :]
        for left, right in sorted(SIDES.items(), reverse=True)
        if name.startswith(left)
    )


def write_bvh(
    path: Path,
    family: str,
    turns: dict[str, Tensor] | None = None,
    frames: int = 3,
    order: str = "ZYX",
    seconds: float = 1 / 30,
    root: tuple[float, float, float] = (1.0, 17.0, -3.0),
) -> Path:
    """A file of a family; `turns` are `(frames, 3)` rotation vectors in degrees by joint, the others do not move."""
    joints, turns = skeleton(family), turns or {}
    rows: list[np.ndarray] = [np.tile(root, (frames, 1))]
    lines = ["HIERARCHY"]

    def add(name: str, depth: int) -> None:
        _, parent, offset = next(joint for joint in joints if joint[0] == name)
        lines.append(f"{'ROOT' if parent == '-' else 'JOINT'} {name}")
        position = "6 Xposition Yposition Zposition" if parent == "-" else "3"
        channels = " ".join(f"{axis}rotation" for axis in order)
        lines.extend(["{", f"OFFSET {offset[0]} {offset[1]} {offset[2]}", f"CHANNELS {position} {channels}"])
        vectors = torch.deg2rad(turns.get(name, torch.zeros(3)).double()).expand(frames, 3)
        rows.append(roma.rotmat_to_euler(order, roma.rotvec_to_rotmat(vectors), degrees=True).numpy())
        children = [child for child, above, _ in joints if above == name]
        for child in children:
            add(child, depth + 1)
        if not children:
            lines.extend(["End Site", "{", "OFFSET 0 0 12", "}"])
        lines.append("}")

    add(joints[0][0], 0)
    lines += ["MOTION", f"Frames: {frames}", f"Frame Time: {seconds:.7f}"]
    lines += [" ".join(f"{value:.6f}" for value in row) for row in np.concatenate(rows, 1)]
    path.write_text("\n".join(lines) + "\n")
    return path


def world(motion: Motion) -> dict[str, Tensor]:
    turns = [motion.rotations[:, 0]]
    for joint, parent in enumerate(PARENTS[1:], 1):
        turns.append(turns[parent] @ motion.rotations[:, joint])
    return dict(zip(JOINTS, turns, strict=True))


def bone(motion: Motion, start: str, end: str) -> Tensor:
    """Unit vector of one of our bones in the world."""
    rest = rest_joints()
    direction = torch.nn.functional.normalize(rest[end] - rest[start], dim=0).float()
    return world(motion)[start] @ direction


def degrees_between(first: Tensor, second: Tensor) -> Tensor:
    first, second = (torch.nn.functional.normalize(vector.double(), dim=-1) for vector in (first, second))
    first, second = torch.broadcast_tensors(first, second)
    return torch.atan2(torch.linalg.cross(first, second).norm(dim=-1), (first * second).sum(-1)).rad2deg()


def vector_of(motion: Motion, name: str) -> Tensor:
    """Rotation vector of one of our joints, degrees."""
    return roma.rotmat_to_rotvec(motion.rotations[:, JOINTS.index(name)]).rad2deg()


def axis(name: str, family: str) -> Tensor:
    found = next(entry for entry in FAMILIES if entry.name == family)
    return torch.tensor(getattr(found, name), dtype=torch.float64)

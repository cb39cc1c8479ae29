"""Motion of DeepMimic's humanoid (Peng et al., SIGGRAPH 2018): 43 numbers a frame."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit.datasets.arrays import read_arrays
from fitkit.datasets.believable import believable
from fitkit.datasets.cmu import TRIAL
from fitkit.datasets.motion import JOINTS, Motion
from fitkit.datasets.retarget import BONES, bone_and_hinge, hinge, parent_relative, rest_joints, share

COLUMNS = 43
NOTE = "wrists, feet and collars are not in DeepMimic's humanoid; one spine joint and one of the neck, shared out"
CMU_NOTE = "copied from single joints of CMU's skeleton: axis of the elbows and neutral neck put right"
# Numbers of each joint in a row: quaternions (w, x, y, z) or one angle about the joint's Z.
_QUATERNIONS = {
    "pelvis": 3,
    "chest": 7,
    "neck": 11,
    "right_hip": 15,
    "right_ankle": 20,
    "right_shoulder": 24,
    "left_hip": 29,
    "left_ankle": 34,
    "left_shoulder": 38,
}
_ANGLES = {"right_knee": 19, "right_elbow": 28, "left_knee": 33, "left_elbow": 42}
CMU_ELBOW = 30.0  # degrees between CMU's axis of the elbow and the humanoid's, about the upper arm
CMU_NECK = 21.0  # degrees that CMU's Neck1 is pitched in a neutral pose (the T-pose of its BVH exports)
# The humanoid faces +X with its right at +Z, arms and legs hanging: to facing +Z with the left at +X.
_TURN = ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def read_deepmimic(path: str | Path, subject: str | None = None) -> Motion:
    """One clip from DeepMimic's JSON: `{"Loop": ..., "Frames": [[seconds, 43 numbers], ...]}`.

    Args:
        path: `.json` (DeepMimic's own are named `.txt`).
        subject: who moves; None for the name of the folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or damaged; the message names the file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON, or cut short ({error})") from error
    frames = content.get("Frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"{path}: expected a list 'Frames' with at least one frame, as DeepMimic has it")
    for index, frame in enumerate(frames):
        numbers = isinstance(frame, list) and all(type(value) in (int, float) for value in frame)
        if not numbers or len(frame) != COLUMNS + 1:
            count = len(frame) if isinstance(frame, list) else type(frame).__name__
            raise ValueError(f"{path}: frame {index} has {count} entries, expected {COLUMNS + 1} numbers")
    try:
        rows = np.array(frames, np.float64)
    except OverflowError as error:
        raise ValueError(f"{path}: a number beyond any body ({error})") from error
    seconds = float(np.median(rows[:, 0]))
    if not 1e-4 < seconds < 10:
        raise ValueError(f"{path}: frames of {seconds:g} seconds, expected 0.0001 to 10")
    fps = 1 / seconds
    fps = float(round(fps)) if abs(fps - round(fps)) < 0.02 else fps
    return _named(path, path.stem, rows[:, 1:], subject or path.resolve().parent.name, fps)


def read_deepmimic_arrays(path: str | Path, fps: float = 30.0) -> Motion:
    """All clips of an `.npz` of `(N, 43)` arrays by the clip's name, such as `007_03`: subject 007.

    Args:
        path: `.npz`.
        fps: of all clips, which such files do not say.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or damaged; the message names the file and the array.
    """
    arrays = read_arrays(path)
    if not arrays:
        raise ValueError(f"{path}: no arrays in it, expected (N, {COLUMNS}) each")
    parts = []
    for name, rows in arrays.items():
        if rows.dtype.kind != "f":
            raise ValueError(f"{path}: {name} has dtype {rows.dtype}, expected floating point numbers")
        parts.append(_named(Path(path), name, rows, name.partition("_")[0], fps))
    return Motion.join(parts)


def _named(path: Path, name: str, rows: np.ndarray, subject: str, fps: float) -> Motion:
    if rows.ndim != 2 or rows.shape[1] != COLUMNS or not len(rows):
        raise ValueError(f"{path}: {name} has shape {rows.shape}, expected (N, {COLUMNS}) with N > 0")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows)).any(1).argmax())
        raise ValueError(f"{path}: {name} has numbers that are not finite in frame {bad}")
    cmu = TRIAL.match(name) is not None
    try:
        rotations, root = from_rows(torch.from_numpy(rows.astype(np.float64)), cmu)
    except ValueError as error:
        raise ValueError(f"{path}: {name}: {error}") from error
    return Motion.of_clip(
        name,
        subject,
        fps,
        "deepmimic",
        rotations,
        root,
        believable(rotations, fps),
        f"{NOTE}; {CMU_NOTE}" if cmu else NOTE,
    )


def from_rows(
    rows: Float[Tensor, "N 43"], copied_from_cmu: bool = False
) -> tuple[Float[Tensor, "N 24 3 3"], Float[Tensor, "N 3"]]:
    """Rotations of our joints, and the root in metres, of DeepMimic's rows (float64).

    As in `fitkit.datasets.retarget`: limbs turn in the world as theirs times a constant. The rotation of the chest is
    shared equally by the three joints of the spine, that of the neck by neck and head.

    Args:
        rows: of one clip.
        copied_from_cmu: the clip was made by giving the humanoid the rotations of single joints of CMU's skeleton
            (measured on eight trials that exist in both forms: the chest is CMU's LowerBack alone and the neck its
            Neck1, to 0.5 degrees; shoulders and the angles of the elbows are CMU's). Then the elbow bends about
            CMU's axis and the neck is neutral where CMU's is, or forearms would point 30 degrees off and faces down.

    Raises:
        ValueError: a quaternion far from length 1.
    """
    elbow = CMU_ELBOW if copied_from_cmu else 0.0
    theirs = _joint_rotations(rows, elbow)
    if copied_from_cmu:
        theirs["neck"] = theirs["neck"] @ geometry.exp(rows.new_tensor([-math.radians(CMU_NECK), 0, 0]))
    world: dict[str, Tensor] = {"pelvis": theirs["pelvis"]}
    third, half = share(theirs["chest"], 1 / 3), share(theirs["neck"], 1 / 2)
    for name, parent, turn in (
        ("spine1", "pelvis", third),
        ("spine2", "spine1", third),
        ("spine3", "spine2", third),
        ("neck", "spine3", half),
        ("head", "neck", half),
    ):
        world[name] = world[parent] @ turn
    for side in ("left", "right"):
        world[f"{side}_collar"] = world["spine3"]
        for limb, chain in (("pelvis", ("hip", "knee", "ankle")), ("spine3", ("shoulder", "elbow"))):
            turn = world[limb]
            for part in chain:
                turn = turn @ theirs[f"{side}_{part}"]
                world[f"{side}_{part}"] = turn @ _correction(f"{side}_{part}", elbow)
        for name, parent in (("foot", "ankle"), ("wrist", "elbow"), ("hand", "elbow")):
            world[f"{side}_{name}"] = world[f"{side}_{parent}"]
    return parent_relative(torch.stack([world[name] for name in JOINTS], 1)), rows[:, :3] @ rows.new_tensor(
        _TURN
    ).T


def _joint_rotations(rows: Tensor, elbow: float) -> dict[str, Tensor]:
    """Parent-relative, in axes with the front at +Z."""
    import roma  # brings torch's compiler with it

    turn, result = rows.new_tensor(_TURN), {}
    for name, start in _QUATERNIONS.items():
        numbers = rows[:, start : start + 4]
        length = numbers.norm(dim=1)
        if bool(((length - 1).abs() > 0.05).any()):
            worst = int((length - 1).abs().argmax())
            raise ValueError(
                f"{name}'s quaternion has length {float(length[worst]):.3g} in frame {worst}, expected 1"
            )
        result[name] = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(numbers / length[:, None]))
    result = {name: turn @ value @ turn.T for name, value in result.items()}
    for name, column in _ANGLES.items():
        angle = rows[:, column]
        if bool((angle.abs() > 2 * math.pi).any()):
            raise ValueError(
                f"{name} bends by {float(angle.abs().max()):.3g} radians, expected at most a turn"
            )
        # About their Z, which is our -x: elbows flex forwards, knees have negative angles.
        axis = _elbow(name, elbow) if name.endswith("elbow") else rows.new_tensor([-1.0, 0, 0])
        result[name] = geometry.exp(angle[:, None] * axis)
    return result


def _elbow(name: str, degrees: float) -> Float[Tensor, 3]:
    """Axis of flexion with the arm hanging, turned inwards from -x."""
    turn = math.radians(degrees if name.startswith("left") else -degrees)
    return torch.tensor([-math.cos(turn), 0, math.sin(turn)], dtype=torch.float64)


def _correction(name: str, elbow: float) -> Float[Tensor, "3 3"]:
    """Our rest pose to theirs: limbs hang, feet stand."""
    side, _, part = name.partition("_")
    eye = torch.eye(3, dtype=torch.float64)
    if part == "ankle":
        return eye
    ours = rest_joints()
    axis = eye[0] if part in ("hip", "knee") else _elbow(name, elbow)
    return bone_and_hinge(ours[f"{side}_{BONES[part]}"] - ours[name], hinge(name), -eye[1], axis)

"""BVH read, repaired and retargeted, against poses whose answer is known."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch

from fitkit import geometry
from fitkit.datasets import (
    BvhClip,
    Motion,
    believable,
    family_of,
    read_bvh,
    repair_cmu,
    retarget,
)
from fitkit.datasets.believable import hinges
from fitkit.datasets.motion import JOINTS
from tests.recordings import (
    BENT,
    NAMES,
    axis,
    bone,
    degrees_between,
    skeleton,
    vector_of,
    world,
    write_bvh,
)

# -- retargeting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", NAMES)
def test_each_family_is_recognised_and_hinges_are_hinges(tmp_path: Path, family: str) -> None:
    knee, elbow = BENT[family]
    bend = torch.tensor([[0.0], [40.0], [80.0], [120.0]])
    turns = {knee: bend * axis("knee", family), elbow: bend * axis("elbow", family)}
    clip = read_bvh(write_bvh(tmp_path / "05_01.bvh", family, turns, frames=4, order="ZXY"))
    motion = retarget(clip, "005")
    assert motion.skeletons == (family,) == (family_of(clip).name,)
    bent_knee, bent_elbow = vector_of(motion, "left_knee"), vector_of(motion, "left_elbow")
    # Straight legs of CMU's skeletons are ours bent back by what our joint centres bend at rest.
    offset = 0.0 if family == "daz-generic" else -7.8
    assert (bent_knee[:, 0] - bend[:, 0] - offset).abs().max() < 0.3
    assert bent_knee[:, 1:].std(0).max() < 2.5
    assert (bent_elbow[:, 1] + bend[:, 0]).abs().max() < 0.5
    assert bent_elbow[:, [0, 2]].std(0).max() < (4.6 if family == "daz-generic" else 0.6)
    assert torch.allclose(vector_of(motion, "right_knee"), vector_of(motion, "right_knee")[:1])
    units = 0.01 if family == "daz-generic" else 0.0564444
    assert torch.allclose(motion.root, torch.tensor([1.0, 17.0, -3.0]) * units, atol=1e-5)


@pytest.mark.parametrize("family", NAMES[:2])
def test_limbs_point_where_the_recorded_ones_point(tmp_path: Path, family: str) -> None:
    draw = torch.Generator().manual_seed(0)
    turns = {
        name: 60 * torch.randn(5, 3, generator=draw) for name, *_ in skeleton(family) if "Thumb" not in name
    }
    clip = read_bvh(write_bvh(tmp_path / "a.bvh", family, turns, frames=5))
    motion, (_, places) = retarget(clip, "a"), clip.pose()
    theirs = family_of(clip).joints
    for side in ("left", "right"):
        for start, end in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow")):
            start, end = f"{side}_{start}", f"{side}_{end}"
            recorded = places[:, clip.names.index(theirs[end])] - places[:, clip.names.index(theirs[start])]
            assert degrees_between(bone(motion, start, end), recorded).max() < 0.05, (start, end)
    # The neutral head is pitched from the zero pose; the pelvis is copied.
    turns_of_theirs, _ = clip.pose()
    assert torch.allclose(world(motion)["pelvis"].double(), turns_of_theirs[:, 0], atol=1e-6)
    pitch = geometry.exp(torch.tensor([-math.radians(16), 0, 0], dtype=torch.float64))
    head = turns_of_theirs[:, clip.names.index("Head")] @ pitch
    assert torch.allclose(world(motion)["head"].double(), head, atol=1e-6)


@pytest.mark.parametrize("family", NAMES[:2])
def test_a_straight_leg_is_straight_and_its_sole_is_flat(tmp_path: Path, family: str) -> None:
    upright = {"LeftUpLeg": -20.0, "RightUpLeg": 20.0, "LeftHip": -20.0, "RightHip": 20.0}
    turns = {name: torch.tensor([0, 0, turn]) for name, turn in upright.items()}
    motion = retarget(read_bvh(write_bvh(tmp_path / "a.bvh", family, turns)), "a")
    for side in ("left", "right"):
        thigh, shin = (
            bone(motion, f"{side}_hip", f"{side}_knee"),
            bone(motion, f"{side}_knee", f"{side}_ankle"),
        )
        assert degrees_between(thigh, shin).max() < 0.05
        assert degrees_between(shin, torch.tensor([0, -1.0, 0])).max() < 0.1
        assert degrees_between(world(motion)[f"{side}_foot"][:, :, 1], torch.tensor([0, 1.0, 0])).max() < 0.1
    assert hinges(motion.rotations)[:, :2].rad2deg() == pytest.approx(-7.8, abs=0.3)


def test_palms_face_the_thighs_and_both_cmu_skeletons_agree(tmp_path: Path) -> None:
    # The forearm turned by 20 degrees and the hand bent by 30: two joints in one skeleton, one in the other.
    down = geometry.exp(torch.tensor([0, 0, -math.pi / 2], dtype=torch.float64))
    turned, bent = torch.tensor([20.0, 0, 0]), torch.tensor([0, 30.0, 0])
    both = roma.rotvec_to_rotmat(turned.double().deg2rad()) @ roma.rotvec_to_rotmat(bent.double().deg2rad())
    hanging = {"LeftArm": torch.tensor([0, 0, -90.0])}
    made = {
        "still": ("cmu-mb", hanging),
        "mb": ("cmu-mb", hanging | {"LeftHand": turned, "LeftFingerBase": bent}),
        "max": ("cmu-max", {"LeftWrist": roma.rotmat_to_rotvec(down @ both @ down.T).rad2deg()}),
    }
    moved = {
        name: world(retarget(read_bvh(write_bvh(tmp_path / f"{name}.bvh", family, turns)), "a"))
        for name, (family, turns) in made.items()
    }
    for joint in ("left_shoulder", "left_elbow", "left_wrist"):
        apart = geometry.geodesic(moved["mb"][joint], moved["max"][joint]).rad2deg()
        assert apart.max() < 1.5, joint
    wrist = moved["still"]["left_wrist"]
    assert degrees_between(-wrist[:, :, 1], torch.tensor([-1.0, 0, 0])).max() < 1, "palm"
    assert degrees_between(wrist[:, :, 2], torch.tensor([0, 0, 1.0])).max() < 1, "thumb"


def test_an_unknown_skeleton_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    path = write_bvh(tmp_path / "a.bvh", "cmu-mb")
    path.write_text(path.read_text().replace("LeftForeArm", "Tentacle"))
    with pytest.raises(ValueError, match=r"a: skeleton of Hips, .* cmu-mb lacks LeftForeArm"):
        retarget(read_bvh(path), "a")


# -- BVH -----------------------------------------------------------------------------------------------------


def test_rotations_are_in_the_order_of_the_channels(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    turns = {
        "Spine": 50 * torch.randn(4, 3, generator=draw),
        "LeftArm": 50 * torch.randn(4, 3, generator=draw),
    }
    clips = [
        read_bvh(write_bvh(tmp_path / f"{order}.bvh", "cmu-mb", turns, 4, order, 1 / 120))
        for order in ("ZYX", "ZXY", "XYZ")
    ]
    for clip in clips:
        for name, vectors in turns.items():
            expected = roma.rotvec_to_rotmat(vectors.double().deg2rad())
            assert torch.allclose(clip.rotations[:, clip.names.index(name)], expected, atol=1e-6)
        assert clip.fps == 120
        assert clip.ends["LeftToeBase"] == (0, 0, 12)


Damage = Callable[[str], str]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "empty": (lambda text: "", "line 0: the file ends, expected HIERARCHY"),
    "other format": (lambda text: '{"Frames": []}', "line 1: .* expected HIERARCHY"),
    "cut in the skeleton": (lambda text: text[: text.index("LeftLeg")], "the file ends|names of their own"),
    "no MOTION": (lambda text: text[: text.index("MOTION")], "the file ends"),
    "cut in the motion": (
        lambda text: text[: text.rindex("\n", 0, -2) + 1],
        "expected 3 frames .* but 2 are there",
    ),
    "cut in a line": (lambda text: text[: len(text) - 40], r"frame 3 of \d+ numbers|frame 3 '"),
    "a column too many": (lambda text: text.rstrip() + " 0\n", r"frame 3 of \d+ numbers"),
    "a frame too many": (lambda text: text + text.splitlines()[-1] + "\n", "another line"),
    "not a number": (lambda text: text.replace("17.000000", "nan", 1), "finite numbers"),
    "a word": (lambda text: text.replace("17.000000", "seventeen", 1), "frame 1 '"),
    "a bad channel": (lambda text: text.replace("Zrotation", "Wrotation", 1), "expected CHANNELS"),
    "channels of another number": (
        lambda text: text.replace("CHANNELS 6", "CHANNELS 5", 1),
        "expected CHANNELS",
    ),
    "an offset of two": (
        lambda text: text.replace("OFFSET 0.0 2.1 ", "OFFSET 2.1 ", 1),
        "OFFSET of 2 numbers",
    ),
    "a name twice": (lambda text: text.replace("JOINT LeftArm", "JOINT LeftLeg", 1), "names of their own"),
    "two roots": (lambda text: text.replace("JOINT LowerBack", "ROOT LowerBack", 1), "one ROOT"),
    "a channel twice": (
        lambda text: text.replace("Xposition Yposition", "Xposition Xposition", 1),
        "every channel once",
    ),
    "a brace too few": (lambda text: text.replace("}\nMOTION", "MOTION", 1), "expected JOINT|braces closed"),
    "a brace too many": (
        lambda text: text.replace("}\nMOTION", "}\n}\nMOTION", 1),
        "expected ROOT or MOTION",
    ),
    "no time": (lambda text: text.replace("Frame Time: 0.0", "Frame Time: -0.0", 1), "Frame Time"),
    "nested for ever": (
        lambda text: "HIERARCHY\n" + "".join(f"{'JOINT' if i else 'ROOT'} j{i}\n{{\n" for i in range(5000)),
        "at most 100",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bvh_is_refused_by_file_and_line(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    path = write_bvh(tmp_path / "a.bvh", "cmu-mb")
    text = change(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_bvh(path)
    assert f"{path}, line " in str(caught.value)


@pytest.mark.parametrize("family", NAMES[:2])
def test_cmu_exports_are_repaired(tmp_path: Path, family: str) -> None:
    draw = torch.Generator().manual_seed(2)
    arms = ("LeftArm", "RightArm") if family == "cmu-mb" else ("LeftShoulder", "RightShoulder")
    hips = ("LeftUpLeg", "RightUpLeg") if family == "cmu-mb" else ("LeftHip", "RightHip")
    turns = {"Hips": torch.tensor([0, 50.0, 0]) + torch.randn(6, 3, generator=draw)}
    whole = read_bvh(write_bvh(tmp_path / "60_04.bvh", family, turns, frames=6, seconds=1 / 120))
    # The defects as the real exports have them: lost bones, and a first frame with the arms out and the legs down.
    offsets, t_pose = (
        whole.offsets.clone(),
        torch.eye(3, dtype=torch.float64).repeat(1, len(whole.names), 1, 1),
    )
    lost = ("Neck", "LeftShoulder", "RightShoulder", "LeftFingerBase", "LThumb", "RightFingerBase", "RThumb")
    if family == "cmu-max":
        lost = ("lowerneck", "LeftCollar", "RightCollar", "lhand", "LThumb", "rhand", "RThumb")
    for name in lost:
        offsets[whole.names.index(name)] = 0
    for sign, arm, hip in zip((-1, 1), arms, hips, strict=True):
        turn = torch.tensor([0, 0, sign * math.radians(21)], dtype=torch.float64)
        t_pose[0, whole.names.index(hip)] = geometry.exp(turn)
        if family == "cmu-max":
            t_pose[0, whole.names.index(arm)] = geometry.exp(turn * (-90 / 21))
    broken = replace(
        whole,
        offsets=offsets,
        rotations=torch.cat([t_pose, whole.rotations]),
        root=torch.cat([torch.zeros(1, 3, dtype=torch.float64), whole.root]),
    )
    repaired = repair_cmu(broken)
    assert torch.allclose(repaired.offsets, whole.offsets, atol=0.02)
    assert torch.equal(repaired.rotations, whole.rotations)
    assert torch.equal(repaired.root, whole.root)
    assert repaired.fps == 60
    assert [
        word for repair in repaired.repairs for word in ("thorax", "wrist", "T-pose", "60") if word in repair
    ] == [
        "thorax",
        "wrist",
        "T-pose",
        "60",
    ]
    assert repair_cmu(repaired) is repaired
    assert repair_cmu(replace(whole, name="05_01")).repairs == ()
    assert repair_cmu(replace(whole, name="05_01"), fps=100.0).fps == 100
    assert "T-pose" in retarget(repaired, "060").notes[0]


def test_a_recording_that_begins_in_a_t_pose_keeps_it(tmp_path: Path) -> None:
    slow = torch.linspace(0, 30, 10)[:, None] * torch.tensor([0, 0, -1.0])
    legs = {"LeftUpLeg": torch.tensor([0, 0, -20.0]), "RightUpLeg": torch.tensor([0, 0, 20.0])}
    clip = read_bvh(write_bvh(tmp_path / "a.bvh", "cmu-mb", {"LeftArm": slow} | legs, frames=10))
    assert repair_cmu(clip) is clip


# -- real recordings -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mocap(request: pytest.FixtureRequest) -> Path:
    """The folder of recordings, named by FITKIT_DATA or beside the checkout."""
    named = os.environ.get("FITKIT_DATA")
    folder = (Path(named) if named else request.getfixturevalue("shared_data")) / "mocap"
    if not folder.is_dir():
        pytest.skip(f"no recordings in {folder}: the checks on real motion are left out")
    return folder


CLIPS = ("val/012_01", "train/007_11", "val/131_02", "train/135_07")
# Mean direction errors, degrees: of limbs none, but where rotations were copied on purpose (daz-generic), and at the
# foot, whose sole is kept flat.
ERRORS = {
    "cmu": {"knee": 0.1, "ankle": 0.1, "foot": 13.0, "elbow": 0.1, "wrist": 0.1},
    "daz": {"knee": 3.6, "ankle": 4.5, "foot": 2.3, "elbow": 0.1, "wrist": 18.0},
}
STARTS = {"knee": "hip", "ankle": "knee", "foot": "ankle", "elbow": "shoulder", "wrist": "elbow"}


@pytest.mark.parametrize("name", CLIPS)
def test_real_recordings_point_and_bend_as_they_should(mocap: Path, name: str) -> None:
    clip = read_bvh(mocap / "bvh" / f"{name}.bvh")
    assert repair_cmu(clip) is clip
    motion = retarget(clip, name)
    split, trial = name.split("/")
    with np.load(mocap / f"joints_{split}.npz") as archive:
        places = torch.from_numpy(archive[trial])
        names = [str(joint).replace("toe", "foot") for joint in archive["joint_names"]]
    allowed = ERRORS["daz" if motion.skeletons[0] == "daz-generic" else "cmu"]
    for side in ("left", "right"):
        for end, start in STARTS.items():
            theirs = [places[:, names.index(f"{side[0]}_{part}")] for part in (start, end)]
            error = degrees_between(bone(motion, f"{side}_{start}", f"{side}_{end}"), theirs[1] - theirs[0])
            assert error.mean() < allowed[end], (side, start, end)
        others = vector_of(motion, f"{side}_elbow")[:, [0, 2]], vector_of(motion, f"{side}_knee")[:, 1:]
        assert max(float(other.std(0).max()) for other in others) < 3
    good = motion.usable_only()
    assert len(good) > 0.9 * len(motion)
    assert hinges(good.rotations).rad2deg().min() > -15
    assert torch.allclose(motion.root, places[:, names.index("pelvis")].float(), atol=1e-3)


def test_both_forms_of_a_real_trial_agree(mocap: Path) -> None:
    with np.load(mocap / "deepmimic_val.npz") as archive:
        rows = archive["011_01"]
    copied = Motion.join([read_rows(rows)])
    recorded = retarget(read_bvh(mocap / "bvh/val/011_01.bvh"), "011").select(slice(1, 1 + len(copied)))
    apart = geometry.geodesic(copied.rotations, recorded.rotations).rad2deg().mean(0)
    limits = {"pelvis": 1.5, "hip": 1.5, "knee": 1.5, "elbow": 1.5, "shoulder": 12, "ankle": 10}
    for joint, name in enumerate(JOINTS):
        part = name.removeprefix("left_").removeprefix("right_")
        assert apart[joint] < limits.get(part, 360), name
    head = world(copied)["head"].mT @ world(recorded)["head"]
    assert roma.rotmat_to_rotvec(head).rad2deg()[:, 0].mean().abs() < 6


def read_rows(rows: np.ndarray) -> Motion:
    from fitkit.datasets.deepmimic import from_rows

    rotations, root = from_rows(torch.from_numpy(rows.astype(np.float64)), copied_from_cmu=True)
    return Motion.of_clip("011_01", "011", 30.0, "deepmimic", rotations, root, believable(rotations, 30.0))


def test_a_real_t_pose_before_a_real_clip_is_found(mocap: Path) -> None:
    clip = read_bvh(mocap / "bvh/val/012_01.bvh")
    t_pose: BvhClip = read_bvh(mocap / "tpose/012_mb.bvh")
    joined = replace(
        clip,
        rotations=torch.cat([t_pose.rotations, clip.rotations]),
        root=torch.cat([t_pose.root, clip.root]),
    )
    assert torch.equal(repair_cmu(joined).rotations, clip.rotations)
    neutral = retarget(t_pose, "012")
    assert vector_of(neutral, "neck").norm(dim=1).max() < 12
    assert degrees_between(world(neutral)["head"][:, :, 1], torch.tensor([0, 1.0, 0])).max() < 1

"""AMASS, DeepMimic and Motion itself: what is read, kept, mirrored, split and refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roma
import torch

from fitkit import geometry
from fitkit.datasets import (
    Motion,
    believable,
    read_amass,
    read_bvh,
    read_deepmimic,
    read_deepmimic_arrays,
    read_folders,
    read_motion,
    retarget,
    split_by_subject,
)
from fitkit.datasets.__main__ import main
from fitkit.datasets.motion import JOINTS
from tests.recordings import (
    axis,
    bone,
    degrees_between,
    vector_of,
    world,
    write_bvh,
)

# -- AMASS ---------------------------------------------------------------------------------------------------


@dataclass
class Amass:
    arrays: dict[str, Any]
    vectors: np.ndarray


def amass(frames: int = 4) -> Amass:
    draw = np.random.default_rng(0)
    vectors = 0.3 * draw.standard_normal((frames, 52, 3))
    vectors[:, 0] = [math.pi / 2, 0, 0]  # standing in a world with Z up
    trans = np.tile([1.0, 2.0, 0.9], (frames, 1))
    arrays = {
        "poses": vectors.reshape(frames, 156),
        "trans": trans,
        "betas": np.zeros(16),
        "gender": np.array("female"),
        "mocap_framerate": np.array(120.0),
        "dmpls": np.zeros((frames, 8)),
    }
    return Amass(arrays, vectors)


def test_both_layouts_of_amass_are_read_and_turned_upright(tmp_path: Path) -> None:
    made = amass()
    folder = tmp_path / "s1"
    folder.mkdir()
    flat = made.arrays["poses"]
    face = np.full((4, 9), 0.2)
    smplx: dict[str, Any] = {k: v for k, v in made.arrays.items() if k not in ("poses", "mocap_framerate")}
    smplx |= {"mocap_frame_rate": np.array(120.0), "surface_model_type": np.array("smplx")}
    labels = np.array([{"a": 1}], dtype=object)  # as real files have them beside the numbers
    np.savez(folder / "h.npz", **made.arrays)
    np.savez(folder / "x.npz", poses=np.concatenate([flat[:, :66], face, flat[:, 66:]], 1), **smplx)
    np.savez(
        folder / "parts.npz",
        root_orient=flat[:, :3],
        pose_body=flat[:, 3:66],
        pose_hand=flat[:, 66:],
        labels_obs=labels,
        **smplx,
    )
    for name, layout in (("h", "smplh"), ("x", "smplx"), ("parts", "smplx")):
        motion = read_motion(folder / f"{name}.npz")
        assert (motion.skeletons, motion.subjects, motion.fps) == ((f"amass-{layout}",), ("s1",), (120.0,))
        expected = roma.rotvec_to_rotmat(torch.from_numpy(made.vectors)).float()
        assert torch.allclose(motion.rotations[:, 0], torch.eye(3).expand(4, 3, 3), atol=1e-6)
        assert torch.allclose(motion.body_pose, expected[:, 1:22], atol=1e-6)
        assert motion.hands is not None
        assert torch.allclose(motion.hands, expected[:, 22:], atol=1e-6)
        assert torch.allclose(motion.rotations[:, 23], expected[:, 22 + 18], atol=1e-6)
        assert torch.allclose(motion.root, torch.tensor([1.0, 0.9, -2.0]), atol=1e-6)
    read = read_motion(folder / "h.npz")
    read.save(tmp_path / "out.npz")
    again = Motion.load(tmp_path / "out.npz").hands
    assert again is not None
    assert read.hands is not None
    assert torch.allclose(again, read.hands, atol=1e-5)
    assert torch.allclose(read.mirrored().mirrored().rotations, read.rotations, atol=1e-6)


AMASS_DAMAGES: dict[str, tuple[dict[str, np.ndarray | None], str]] = {
    "objects": ({"poses": np.array([{}, {}], dtype=object)}, "not an .npz of plain arrays"),
    "shape": ({"poses": np.zeros((4, 72))}, r"poses has shape \(4, 72\), expected"),
    "nan": ({"poses": np.full((4, 156), np.nan)}, "not finite"),
    "frames": ({"trans": np.zeros((3, 3))}, "trans has 3 frames"),
    "no trans": ({"trans": None}, "no trans"),
    "no rate": ({"mocap_framerate": None}, "no mocap_framerate"),
    "rate": ({"mocap_framerate": np.array("fast")}, "expected frames per second"),
    "words": ({"poses": np.full((4, 156), "a")}, "expected"),
}


@pytest.mark.parametrize("damage", AMASS_DAMAGES)
def test_damaged_amass_is_refused(tmp_path: Path, damage: str) -> None:
    change, message = AMASS_DAMAGES[damage]
    arrays: dict[str, Any] = {k: v for k, v in (amass().arrays | change).items() if v is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        read_amass(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(caught.value)


def test_a_cmu_subject_has_one_name_in_every_kind_of_file(tmp_path: Path) -> None:
    for folder, stem in (("05", "05_01_poses"), ("walkers", "05_02_poses")):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / f"{stem}.npz", **amass().arrays)
    read = read_folders([tmp_path]).motion
    assert (read.subjects, read.clips) == (("005", "walkers"), ("05_01", "05_02"))


def test_missing_amass_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"amass\.is\.tue\.mpg\.de.*licence"):
        read_amass(tmp_path / "a.npz")


# -- DeepMimic -----------------------------------------------------------------------------------------------


def humanoid(frames: int = 3) -> np.ndarray:
    """Standing at rest."""
    rows = np.zeros((frames, 43))
    for start in (3, 7, 11, 15, 20, 24, 29, 34, 38):
        rows[:, start] = 1
    return rows


def write_deepmimic(path: Path, rows: np.ndarray, seconds: float = 1 / 60) -> Path:
    frames = [[seconds, *row] for row in rows.tolist()]
    path.write_text(json.dumps({"Loop": "none", "Frames": frames}))
    return path


def test_deepmimics_humanoid_has_its_front_at_x_and_bends_about_z(tmp_path: Path) -> None:
    rows = humanoid()
    rows[:, :3] = [2.0, 0.9, 0.5]
    rows[:, 33], rows[:, 42] = [0, -0.5, -1], [0, 0.5, 1]  # left knee and elbow
    rows[:, 7:11] = [math.cos(0.15), 0, 0, -math.sin(0.15)]  # leaning forwards by 0.3
    rows[2, 3:7] = [math.cos(0.2), 0, math.sin(0.2), 0]  # turned to the left by 0.4
    motion = read_deepmimic(write_deepmimic(tmp_path / "walk.json", rows))
    assert (motion.fps, motion.skeletons, motion.subjects) == ((60.0,), ("deepmimic",), (tmp_path.name,))
    assert torch.allclose(motion.root, torch.tensor([-0.5, 0.9, 2.0]))
    assert vector_of(motion, "pelvis").deg2rad()[2].tolist() == pytest.approx([0, 0.4, 0], abs=1e-6)
    for spine in ("spine1", "spine2", "spine3"):
        assert vector_of(motion, spine).deg2rad()[0].tolist() == pytest.approx([0.1, 0, 0], abs=1e-6)
    knee, elbow = vector_of(motion, "left_knee"), vector_of(motion, "left_elbow")
    assert (knee[:, 0] - torch.tensor([0, 0.5, 1]).rad2deg() + 7.8).abs().max() < 0.3
    assert (elbow[:, 1] + torch.tensor([0, 0.5, 1]).rad2deg()).abs().max() < 0.3
    assert torch.cat([knee[:, 1:], elbow[:, ::2]]).std(0).max() < 3
    still = motion.select([0])
    down = torch.tensor([0, -1.0, 0])
    for start, end in (("left_hip", "left_knee"), ("left_knee", "left_ankle"), ("right_hip", "right_knee")):
        assert degrees_between(bone(still, start, end), down).max() < 0.05
    assert torch.allclose(world(still)["left_foot"], torch.eye(3), atol=1e-6)
    lean = geometry.exp(torch.tensor([0.3, 0, 0]))
    assert degrees_between(bone(still, "left_shoulder", "left_elbow"), lean @ down).max() < 0.05


def test_clips_copied_from_cmu_bend_the_elbow_as_cmus_skeleton(tmp_path: Path) -> None:
    rows = humanoid()
    rows[:, 42] = [0, 0.7, 1.4]
    read = read_deepmimic(write_deepmimic(tmp_path / "07_03.json", rows))
    turns = {"LeftElbow": torch.tensor([[0], [0.7], [1.4]]).rad2deg() * axis("elbow", "cmu-max")}
    recorded = retarget(read_bvh(write_bvh(tmp_path / "a.bvh", "cmu-max", turns)), "a")
    for joint in ("left_shoulder", "left_elbow"):
        assert geometry.geodesic(world(read)[joint], world(recorded)[joint]).rad2deg().max() < 0.1
    assert "elbows" in read.notes[0]


def test_deepmimic_arrays_are_one_clip_each(tmp_path: Path) -> None:
    clips: dict[str, Any] = {
        "007_03": humanoid(4).astype(np.float32),
        "127_10": humanoid(2).astype(np.float32),
    }
    np.savez(tmp_path / "a.npz", **clips)
    motion = read_deepmimic_arrays(tmp_path / "a.npz")
    assert (motion.clips, motion.subjects, motion.clip.tolist()) == (
        ("007_03", "127_10"),
        ("007", "127"),
        [0, 0, 0, 0, 1, 1],
    )
    np.savez(tmp_path / "b.npz", x=np.zeros((4, 42)))
    with pytest.raises(ValueError, match=r"b.npz: x has shape \(4, 42\), expected \(N, 43\)"):
        read_deepmimic_arrays(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=np.zeros((4, 43)))
    with pytest.raises(ValueError, match=r"c.npz: x: pelvis's quaternion has length 0"):
        read_deepmimic_arrays(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Frames": [[0.1, 1', "not JSON"),
        ('{"Frames": []}', "at least one frame"),
        ("[1, 2]", "expected a list 'Frames'"),
        ('{"Frames": [[0.1, 2, 3]]}', "frame 0 has 3 entries, expected 44"),
        ('{"Frames": [{"a": 1}]}', "frame 0 has dict entries"),
        (f'{{"Frames": [{[0.1] + ["a"] * 43}]}}'.replace("'", '"'), "expected 44 numbers"),
        (f'{{"Frames": [[0.1{", NaN" * 43}]]}}', "not finite"),
        (f'{{"Frames": [[0{", 1" * 43}]]}}', "frames of 0 seconds"),
    ],
)
def test_damaged_deepmimic_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_deepmimic(path)
    assert str(path) in str(caught.value)


# -- motion --------------------------------------------------------------------------------------------------


def motions(clips: int = 3, frames: int = 9) -> Motion:
    draw = torch.Generator().manual_seed(3)
    return Motion.join(
        [
            Motion.of_clip(
                name=f"{index:03d}_01",
                subject=f"{index // 2:03d}",
                fps=120.0,
                skeleton="cmu-mb",
                rotations=geometry.exp(0.4 * torch.randn(frames, 24, 3, generator=draw, dtype=torch.float64)),
                root=torch.randn(frames, 3, generator=draw),
                usable=torch.arange(frames) % 4 != 0,
                note="é" if index else "",
            )
            for index in range(clips)
        ]
    )


def test_mirrored_swaps_the_sides_and_twice_is_nothing() -> None:
    motion = motions()
    mirrored, twice = motion.mirrored(), motion.mirrored().mirrored()
    assert torch.allclose(twice.rotations, motion.rotations, atol=1e-6)
    assert torch.equal(twice.root, motion.root)
    reflect = torch.tensor([-1.0, 1, 1])
    for start, end, other, last in (
        ("left_hip", "left_knee", "right_hip", "right_knee"),
        ("neck", "head") * 2,
    ):
        assert torch.allclose(bone(mirrored, start, end), bone(motion, other, last) * reflect, atol=1e-5)


def test_saved_motion_comes_back(tmp_path: Path) -> None:
    motion = motions()
    motion.save(tmp_path / "a.npz")
    again = Motion.load(tmp_path / "a.npz")
    assert torch.allclose(again.rotations, motion.rotations, atol=1e-5)
    for name in ("root", "usable", "clip"):
        assert torch.equal(getattr(again, name), getattr(motion, name)), name
    for name in ("clips", "subjects", "fps", "skeletons", "notes", "hands"):
        assert getattr(again, name) == getattr(motion, name), name


MOTION_DAMAGES: dict[str, tuple[dict[str, np.ndarray | None], str]] = {
    "joints": ({"axis_angle": np.zeros((27, 22, 3), np.float32)}, r"axis_angle has shape \(27, 22, 3\)"),
    "frames": ({"usable": np.ones(5, bool)}, "usable has shape"),
    "nan": ({"root": np.full((27, 3), np.nan, np.float32)}, "root has entries that are not finite"),
    "kind": ({"clip": np.zeros(27)}, "clip has shape .* float64"),
    "range": ({"clip": np.full(27, 7)}, r"clip is 7..7, expected 0..2"),
    "missing": ({"fps": None}, "'fps'.* missing"),
    "labels": ({"subjects": np.array(["a"])}, "subjects has shape"),
    "scalar": ({"clips": np.array("a")}, "shape"),
    "objects": ({"clips": np.array([{}, {}, {}], dtype=object)}, "plain arrays"),
}


@pytest.mark.parametrize("damage", MOTION_DAMAGES)
def test_damaged_motion_is_refused(tmp_path: Path, damage: str) -> None:
    change, message = MOTION_DAMAGES[damage]
    motions().save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files} | change
    np.savez(tmp_path / "a.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ValueError, match=message) as caught:
        Motion.load(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(caught.value)


def test_a_cut_motion_file_is_refused(tmp_path: Path) -> None:
    motions().save(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 30):
        (tmp_path / "a.npz").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"a\.npz: not an \.npz"):
            Motion.load(tmp_path / "a.npz")


def test_splits_share_no_subject() -> None:
    motion = motions(5)
    train, held_out = split_by_subject(motion, ["001"])
    assert (set(train.subjects), set(held_out.subjects)) == ({"000", "002"}, {"001"})
    assert len(train) + len(held_out) == len(motion)
    assert held_out.clips == ("002_01", "003_01")
    assert torch.equal(held_out.rotations, motion.rotations[18:36])
    assert held_out.clip.tolist() == [0] * 9 + [1] * 9
    assert len(motion.usable_only()) == 5 * 6
    with pytest.raises(ValueError, match=r"no subject \['9'\]"):
        split_by_subject(motion, ["9"])
    with pytest.raises(ValueError, match="all subjects are held out"):
        split_by_subject(motion, ["000", "001", "002"])


def test_resampling_drops_frames_and_never_makes_them_up() -> None:
    motion = motions(2)
    slow = motion.every(30.0)
    assert torch.equal(slow.root, motion.root[[0, 4, 8, 9, 13, 17]])
    assert slow.fps == (30.0, 30.0)
    assert torch.equal(motion.every(80.0).root[:6], motion.root[[0, 2, 3, 4, 6, 8]])
    assert motion.every(119.88).fps == (120.0, 120.0)
    with pytest.raises(ValueError, match="000_01 has 120 frames per second"):
        motion.every(240.0)


@pytest.mark.parametrize(
    ("joint", "turn"), [("knee", (0, 80, 0)), ("elbow", (0, 0, 90)), ("collar", (0, 0, 170))]
)
def test_hinges_that_turn_aside_are_not_believed(joint: str, turn: tuple[float, ...]) -> None:
    pose = torch.eye(3).repeat(3, 24, 1, 1)
    assert believable(pose, 30.0).all()
    pose[:, JOINTS.index(f"left_{joint}")] = geometry.exp(torch.tensor(turn).deg2rad())
    assert not believable(pose, 30.0).any()


def test_couples_are_not_parted() -> None:
    pair = replace(motions(2), subjects=("060", "061"))
    with pytest.raises(ValueError, match="danced together"):
        split_by_subject(Motion.join([pair, motions(1)]), ["060"])


def test_flips_leaps_and_limbs_bent_backwards_are_not_believed() -> None:
    rotations = torch.eye(3).repeat(9, 24, 1, 1)

    def turned(joint: str, row: int, vector: list[float]) -> list[bool]:
        changed = rotations.clone()
        changed[row:, JOINTS.index(joint)] = geometry.exp(torch.deg2rad(torch.tensor(vector)))
        return believable(changed, 30.0).tolist()

    assert all(turned("left_elbow", 4, [0, -50.0, 0]))
    assert turned("left_elbow", 4, [0, -70.0, 0]) == [True] * 3 + [False] * 2 + [True] * 4
    assert turned("left_knee", 4, [-20.0, 0, 0]) == [True] * 4 + [False] * 5
    assert turned("right_elbow", 4, [0, -20.0, 0]) == [True] * 4 + [False] * 5
    assert turned("left_ankle", 0, [100.0, 0, 0]) == [False] * 9
    assert believable(
        geometry.exp(torch.linspace(0, 1, 4)[:, None, None].expand(4, 24, 3) * 0.1), 120.0
    ).all()


# -- folders -------------------------------------------------------------------------------------------------


def test_a_broken_file_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mocap"
    folder.mkdir()
    write_bvh(folder / "07_03.bvh", "cmu-mb", seconds=1 / 120, frames=9)
    write_bvh(folder / "09_01.bvh", "daz-generic", seconds=1 / 120, frames=9)
    write_deepmimic(folder / "07_03.json", humanoid())
    write_deepmimic(folder / "run.json", humanoid())
    np.savez(folder / "amass.npz", **amass().arrays)
    (folder / "broken.bvh").write_text("HIERARCHY\nROOT Hips\n")
    (folder / "other.npz").write_bytes(b"PK")
    assert main([str(folder), "--out", str(tmp_path / "out.npz"), "--fps", "30", "--held-out", "009"]) == 0
    printed = capsys.readouterr()
    assert "broken.bvh, line 2: the file ends" in printed.err
    assert "other.npz" in printed.err
    assert "07_03: read already" in printed.err
    train = Motion.load(tmp_path / "out.npz")
    assert dict(zip(train.clips, train.subjects, strict=True)) == {
        "07_03": "007",
        "amass": "mocap",
        "run": "mocap",
    }
    assert train.fps == (30.0,) * 3
    assert Motion.load(tmp_path / "out-held-out.npz").subjects == ("009",)
    conversion = read_folders([tmp_path / "out.npz", folder / "09_01.bvh"])
    assert conversion.motion.clips == (*train.clips, "09_01")


def test_nothing_to_read_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.bvh").write_text("HIERARCHY\n")
    assert main([str(tmp_path), "--out", str(tmp_path / "out.npz")]) == 1
    assert "broken.bvh" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out.npz")]) == 1
    assert not (tmp_path / "out.npz").exists()

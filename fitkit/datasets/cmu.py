"""The known defects of CMU's recordings as BVH files, and their repair."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import torch

from fitkit import geometry
from fitkit.datasets.bvh import BvhClip

TRIAL = re.compile(r"^(\d{1,3})_\w+$")  # names of CMU's trials: subject_trial
THORAX = (
    1.008  # length of the thorax over that of the spine bone below it: mean of ten ASF files (0.997-1.041)
)
HAND = 0.5  # length of the wrist bone over that of the radius: in all ten
_THORAX_TOPS = (
    ("Spine1", ("Neck", "LeftShoulder", "RightShoulder")),
    ("Chest2", ("lowerneck", "LeftCollar", "RightCollar")),
)
_HANDS = (
    ("LeftHand", ("LeftFingerBase", "LThumb")),
    ("RightHand", ("RightFingerBase", "RThumb")),
    ("LeftWrist", ("lhand", "LThumb")),
    ("RightWrist", ("rhand", "RThumb")),
)
_ARMS = (("LeftArm", "LeftForeArm"), ("LeftShoulder", "LeftElbow"), ("lShldr", "lForeArm"))
_LEGS = (("LeftLeg", "LeftFoot"), ("LeftKnee", "LeftAnkle"), ("lShin", "lFoot"))
SLOW_SUBJECTS = frozenset({60, 61, 88})  # recorded at 60 Hz by CMU's list; exported as 120
_CLAIMED = 120.0


def repair_cmu(clip: BvhClip, fps: float | None = None) -> BvhClip:
    """Undo what BVH exports of CMU's recordings got wrong; a clip without these defects comes back as it is.

    - Exports by way of MotionBuilder and Max lose the bone above a branch: neck and shoulders sit on the last bone of
      the spine, fingers and thumb on the wrist, all with OFFSET 0. The thorax is put back upwards, `THORAX` times the
      bone below it; the wrist bone along the radius, `HAND` times it. Rotations are right and stay.
    - Their first frame is an artificial T-pose. It is dropped where the first frame is one (arms sideways, shins
      down) and the second is another pose altogether.
    - Trials of subjects 60, 61 and 88, recorded at 60 Hz, say 120: by the trial's number in the name.

    Args:
        clip: as read.
        fps: frames per second of the recording where you know better than the file.
    """
    for repair in (_fill_bones, _drop_t_pose):
        clip = repair(clip)
    subject = TRIAL.match(clip.name)
    if fps is None and subject and int(subject[1]) in SLOW_SUBJECTS and round(clip.fps) == _CLAIMED:
        fps = 60.0
    if fps is not None and fps != clip.fps:
        clip = _record(replace(clip, fps=float(fps)), f"{fps:g} frames per second, not {clip.fps:g}")
    return clip


def _record(clip: BvhClip, repair: str) -> BvhClip:
    return replace(clip, repairs=(*clip.repairs, repair))


def _fill_bones(clip: BvhClip) -> BvhClip:
    for what, lengths, table in (("thorax", THORAX, _THORAX_TOPS), ("wrist bone", HAND, _HANDS)):
        offsets, filled = clip.offsets.clone(), []
        for below, names in table:
            if below not in clip.names:
                continue
            bone = clip.offsets[clip.names.index(below)]
            if what == "thorax":
                bone = torch.stack([bone.new_zeros(()), bone.norm(), bone.new_zeros(())])
            for name in names:
                joint = clip.names.index(name) if name in clip.names else 0
                # A name of one skeleton may be another joint in the other.
                if joint and clip.names[clip.parents[joint]] == below and not clip.offsets[joint].any():
                    offsets[joint] = lengths * bone
                    filled.append(name)
        if filled:
            clip = _record(replace(clip, offsets=offsets), f"{what} put back at {', '.join(filled)}")
    return clip


def _drop_t_pose(clip: BvhClip) -> BvhClip:
    if len(clip) < 3:
        return clip
    turns = clip.rotations[:3]
    step = geometry.geodesic(turns[:-1], turns[1:]).rad2deg().amax(1)
    if not (step[0] > 20 and step[0] > 4 * step[1] and _is_t_pose(clip)):
        return clip
    dropped = replace(clip, rotations=clip.rotations[1:], root=clip.root[1:])
    return _record(dropped, "artificial T-pose of the first frame dropped")


def _is_t_pose(clip: BvhClip) -> bool:
    """Arms within 15 degrees of sideways and shins within 10 of down in the first frame, the body facing +Z."""
    _, places = replace(clip, rotations=clip.rotations[:1], root=clip.root[:1]).pose()
    for pairs, axis, degrees in ((_ARMS, (1.0, 0.0, 0.0), 15.0), (_LEGS, (0.0, -1.0, 0.0), 10.0)):
        for start, end in pairs:
            if not (start in clip.names and end in clip.names):
                continue
            if clip.names[clip.parents[clip.names.index(end)]] != start:
                continue
            bone = places[0, clip.names.index(end)] - places[0, clip.names.index(start)]
            for_bone = torch.nn.functional.normalize(bone, dim=0)
            if float(for_bone @ for_bone.new_tensor(axis)) < math.cos(math.radians(degrees)):
                return False
    return True

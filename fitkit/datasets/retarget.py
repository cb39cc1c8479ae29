"""Motion capture of other skeletons as rotations of SMPL's joints, on the open body's bones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit.body import open_body
from fitkit.datasets.believable import believable
from fitkit.datasets.bvh import BvhClip
from fitkit.datasets.motion import JOINTS, PARENTS, Motion
from fitkit.keypoints import get_set

# The bone that a joint turns: where it leads.
BONES = {
    "hip": "knee",
    "knee": "ankle",
    "ankle": "foot",
    "shoulder": "elbow",
    "elbow": "wrist",
    "wrist": "hand",
}


@dataclass(frozen=True)
class Family:
    """A skeleton that motion capture comes in, recognised by the names of its joints.

    Attributes:
        name: as in `Motion.skeletons`.
        joints: which of its joints moves as which of ours does; ours that are not there are at rest, or, in the
            spine, halfway between their neighbours.
        elbow, knee: axis of flexion of the left side, in the skeleton's zero pose.
        metres: per unit of the file.
        neck, head: how far the neutral neck and head are pitched from the zero pose, degrees.
        copied: limbs whose zero pose is the same standing straight as ours although the joint centres say
            otherwise: their rotations are copied.
    """

    name: str
    joints: dict[str, str]
    elbow: tuple[float, float, float]
    knee: tuple[float, float, float]
    metres: float
    neck: float = 0.0
    head: float = 0.0
    copied: frozenset[str] = frozenset()


def _sides(middle: str, sides: str) -> dict[str, str]:
    """`ours=theirs` words; in `sides` a `<` is Left, left or l, as in `<Arm`."""
    joints = dict(word.split("=") for word in middle.split())
    for ours, theirs in (word.split("=") for word in sides.split()):
        for side, letters in (("left", ("Left", "l", "L")), ("right", ("Right", "r", "R"))):
            joints[f"{side}_{ours}"] = (
                theirs.replace("<<", letters[2]).replace("<", letters[0]).replace("~", letters[1])
            )
    return joints


# CMU's forearm is two bones, radius and wrist, and pronation turns between them; what bends at the wrist bends the
# hand bone, LeftFingerBase. A skeleton that has both in one joint (cmu-max) has the hand bone at rest.
FAMILIES = (
    Family(
        "cmu-mb",
        _sides(
            "pelvis=Hips spine1=LowerBack spine2=Spine spine3=Spine1 neck=Neck1 head=Head",
            "hip=<UpLeg knee=<Leg ankle=<Foot foot=<ToeBase collar=<Shoulder shoulder=<Arm elbow=<ForeArm "
            "wrist=<FingerBase hand=<HandIndex1",
        ),
        elbow=(0.0, -(0.75**0.5), 0.5),
        knee=(0.9397, 0.3420, 0.0),
        metres=0.0254 / 0.45,
        neck=5.0,
        head=16.0,
    ),
    Family(
        "cmu-max",
        _sides(
            "pelvis=Hips spine1=lowerback spine2=Chest spine3=Chest2 neck=Neck head=Head",
            "hip=<Hip knee=<Knee ankle=<Ankle foot=<Toe collar=<Collar shoulder=<Shoulder elbow=<Elbow "
            "wrist=~hand hand=<<Fingers",
        ),
        elbow=(-(0.75**0.5), 0.0, 0.5),
        knee=(0.9397, 0.3420, 0.0),
        metres=0.0254 / 0.45,
        neck=5.0,
        head=16.0,
    ),
    Family(
        "daz-generic",
        _sides(
            "pelvis=hip spine1=abdomen spine3=chest neck=neck head=head",
            "hip=~Thigh knee=~Shin ankle=~Foot collar=~Collar shoulder=~Shldr elbow=~ForeArm wrist=~Hand hand=~Mid1",
        ),
        elbow=(-0.1206, -0.8576, 0.5),
        knee=(1.0, 0.0, 0.0),
        metres=0.01,
        copied=frozenset({"hip", "knee", "ankle", "elbow", "wrist"}),
    ),
)


def family_of(clip: BvhClip) -> Family:
    """The family that has all its joints in the clip.

    Raises:
        ValueError: none has.
    """
    names = set(clip.names)
    missing = {family.name: sorted(set(family.joints.values()) - names) for family in FAMILIES}
    for family in FAMILIES:
        if not missing[family.name]:
            return family
    nearest = min(missing, key=lambda name: len(missing[name]))
    raise ValueError(
        f"{clip.name}: skeleton of {', '.join(clip.names[:6])} ... is not one of {', '.join(missing)}; "
        f"{nearest} lacks {', '.join(missing[nearest])}"
    )


def retarget(
    clip: BvhClip, subject: str, family: Family | None = None, metres_per_unit: float | None = None
) -> Motion:
    """One clip on our joints.

    Every joint of ours turns in the world as its counterpart does, `R_ours = R_theirs A`, with a constant A per joint
    that takes our rest bones to the directions of theirs in their zero pose and our axes of flexion (knees about x,
    elbows about y) to theirs. So limbs point where the recorded limbs point, a straight leg is straight, and hinges
    are hinges.

    Args:
        clip: as read, repaired where it comes from CMU.
        subject: who moves.
        family: by the names of the joints if None.
        metres_per_unit: of the file; None for what is usual in the family.

    Raises:
        ValueError: a skeleton of none of the families.
    """
    family = family or family_of(clip)
    turns, _ = clip.pose()
    world = torch.zeros(len(clip), len(JOINTS), 3, 3, dtype=torch.float64)
    corrections = _corrections(clip, family)
    absent = []
    for joint, name in enumerate(JOINTS):
        if name in family.joints:
            world[:, joint] = turns[:, clip.names.index(family.joints[name])] @ corrections[name]
        elif name == "spine2":
            absent.append(joint)
        else:
            world[:, joint] = world[:, PARENTS[joint]]
    for joint in absent:
        above = JOINTS.index("spine3")
        world[:, joint] = halfway(world[:, PARENTS[joint]], world[:, above])
    rotations = parent_relative(world)
    return Motion.of_clip(
        name=clip.name,
        subject=subject,
        fps=clip.fps,
        skeleton=family.name,
        rotations=rotations,
        root=clip.root * (family.metres if metres_per_unit is None else metres_per_unit),
        usable=believable(rotations, clip.fps),
        note="; ".join(clip.repairs),
    )


def _corrections(clip: BvhClip, family: Family) -> dict[str, Tensor]:
    """A of each joint: our rest pose to their zero pose."""
    ours, zero = rest_joints(), clip.zero_pose()
    result: dict[str, Tensor] = {}

    def bone(name: str, end: str) -> Tensor:
        start, stop = family.joints[name], family.joints[end]
        result = zero[clip.names.index(stop)] - zero[clip.names.index(start)]
        if not 1e-6 < float(result.norm()) < 1e6:
            raise ValueError(
                f"{clip.name}: {start} to {stop} is {float(result.norm()):.3g} long, expected a bone; "
                "exports of CMU's recordings lose some (fitkit.datasets.repair_cmu)"
            )
        return result

    for name in JOINTS:
        side, _, part = name.rpartition("_")
        above = result.get(JOINTS[PARENTS[JOINTS.index(name)]], torch.eye(3, dtype=torch.float64))
        if part in ("neck", "head"):
            pitch = -torch.deg2rad(torch.tensor([getattr(family, part), 0, 0], dtype=torch.float64))
            result[name] = geometry.exp(pitch)
        elif part in ("foot", "hand") or (part == "elbow" and part in family.copied):
            result[name] = above
        elif part not in BONES or part in family.copied:
            result[name] = torch.eye(3, dtype=torch.float64)
        else:
            end = f"{side}_{BONES[part]}"
            mine, theirs = ours[end] - ours[name], bone(name, end)
            if part == "wrist":
                # The palm faces down in our rest pose and in theirs, whatever the axis of the elbow.
                result[name] = shortest(mine, theirs)
            elif part == "ankle":
                # Soles are flat where ours are: the foot is splayed with the leg and not tilted to the other's bone,
                # which ends at another height.
                result[name] = shortest(hinge(name), _of_side(family.knee, side))
            else:
                axis = family.knee if part in ("hip", "knee") else family.elbow
                result[name] = bone_and_hinge(mine, hinge(name), theirs, _of_side(axis, side))
    return result


# -- parts that other skeletons need too ---------------------------------------------------------------------


@cache
def rest_joints() -> dict[str, Float[Tensor, 3]]:
    """Our joints at rest, metres, float64; the hands are at the base of the middle finger."""
    body = open_body()
    places = body.joints(body.neutral())[0].double()
    names = get_set("smplx55").names
    result = {name: places[names.index(name)] for name in JOINTS[:22]}
    for side in ("left", "right"):
        result[f"{side}_hand"] = places[names.index(f"{side}_middle1")]
    return result


def hinge(name: str) -> Float[Tensor, 3]:
    """Our axis of flexion at a hip, knee, ankle, shoulder or elbow."""
    if name.endswith(("hip", "knee", "ankle")):
        return torch.tensor([1.0, 0, 0], dtype=torch.float64)
    return torch.tensor([0, -1.0 if name.startswith("left") else 1.0, 0], dtype=torch.float64)


def _of_side(axis: tuple[float, float, float], side: str) -> Float[Tensor, 3]:
    """An axis of rotation of the left side, or its mirror image."""
    x, y, z = axis
    return torch.tensor((x, y, z) if side == "left" else (x, -y, -z), dtype=torch.float64)


def bone_and_hinge(
    bone: Float[Tensor, 3],
    axis: Float[Tensor, 3],
    to_bone: Float[Tensor, 3],
    to_axis: Float[Tensor, 3],
) -> Float[Tensor, "3 3"]:
    """The rotation that takes a bone exactly, and its axis of flexion as nearly as that allows, to another's."""

    def frame(along: Tensor, across: Tensor) -> Tensor:
        along = torch.nn.functional.normalize(along, dim=0)
        across = across - (across @ along) * along
        if float(across.norm()) < 0.1:
            raise ValueError(f"a bone along {along.tolist()}, expected one across its axis of flexion")
        across = torch.nn.functional.normalize(across, dim=0)
        return torch.stack([along, across, torch.linalg.cross(along, across)], 1)

    return frame(to_bone, to_axis) @ frame(bone, axis).mT


def shortest(start: Float[Tensor, 3], end: Float[Tensor, 3]) -> Float[Tensor, "3 3"]:
    """The smallest rotation that takes one direction to another."""
    start, end = (torch.nn.functional.normalize(vector, dim=0) for vector in (start, end))
    axis = torch.linalg.cross(start, end)
    sine = axis.norm()
    return geometry.exp(axis / sine.clamp_min(1e-12) * torch.atan2(sine, start @ end))


def halfway(first: Float[Tensor, "N 3 3"], second: Float[Tensor, "N 3 3"]) -> Float[Tensor, "N 3 3"]:
    """The rotation midway between two."""
    return first @ share(first.mT @ second, 0.5)


def share(rotations: Float[Tensor, "N 3 3"], part: float) -> Float[Tensor, "N 3 3"]:
    """A part of each rotation, about the same axis."""
    import roma  # brings torch's compiler with it

    return geometry.exp(part * roma.rotmat_to_rotvec(rotations))


def parent_relative(world: Float[Tensor, "N 24 3 3"]) -> Float[Tensor, "N 24 3 3"]:
    """Rotations in the world to rotations in the parent's frame; the pelvis stays in the world."""
    return torch.cat([world[:, :1], world[:, list(PARENTS[1:])].mT @ world[:, 1:]], 1)

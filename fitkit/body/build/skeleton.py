"""The SMPL-X joint tree, and how Anny's bones map onto it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.floating]

FINGERS = ("index", "middle", "pinky", "ring", "thumb")
JOINT_NAMES: tuple[str, ...] = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle",
    "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "jaw", "left_eye", "right_eye",
    *(f"{side}_{finger}{k}" for side in ("left", "right") for finger in FINGERS for k in (1, 2, 3)),
)  # fmt: skip
JOINT = {name: i for i, name in enumerate(JOINT_NAMES)}
NUM_BODY_JOINTS = 21
FLIP = np.array([-1, 1, 1], np.float32)  # mirrors points and displacements


def _parents() -> NDArray[np.int16]:
    body = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
    for wrist, first in ((20, 25), (21, 40)):
        for base in range(first, first + 15, 3):
            body += [wrist, base, base + 1]
    return np.array(body, np.int16)


PARENTS = _parents()


def mirrored_name(name: str) -> str:
    """The same name on the other side of the body: left_knee <-> right_knee, l-arm <-> r-arm."""
    for a, b in (("left", "right"), ("right", "left"), ("Left", "Right"), ("Right", "Left")):
        if name.startswith(a):
            return b + name[len(a) :]
        if name.endswith(a):
            return name[: -len(a)] + b
    for a, b in (("mouth_left", "mouth_right"), ("mouth_right", "mouth_left")):
        if name == a:
            return b
    return name


JOINT_MIRROR = np.array([JOINT[mirrored_name(n)] for n in JOINT_NAMES], np.int16)

# The Anny bone whose head is the joint's centre. Anny's root lies only 2.4 cm above the hip line,
# spine04 7 cm, which is where SMPL has its pelvis. The feet are the mean of the five toe roots.
BONE_OF_JOINT: dict[str, str] = {
    "pelvis": "spine04", "spine1": "spine03", "spine2": "spine02", "spine3": "spine01",
    "neck": "neck01", "head": "head", "jaw": "jaw", "left_eye": "eye.L", "right_eye": "eye.R",
}  # fmt: skip
# All bones that move rigidly with a joint; bones absent here follow their parent.
_BONES: dict[str, list[str]] = {
    "pelvis": ["root", "pelvis.L", "pelvis.R", "spine05", "spine04"],
    "spine1": ["spine03"], "spine2": ["spine02", "breast.L", "breast.R"], "spine3": ["spine01"],
    "neck": ["neck01", "neck02", "neck03"], "head": ["head"], "jaw": ["jaw"],
    "left_eye": ["eye.L"], "right_eye": ["eye.R"],
}  # fmt: skip
_FINGER_NUMBER = {"thumb": 1, "index": 2, "middle": 3, "ring": 4, "pinky": 5}
for _side, _s in (("left", "L"), ("right", "R")):
    for _joint, _bones in {
        "hip": ["upperleg01", "upperleg02"], "knee": ["lowerleg01", "lowerleg02"], "ankle": ["foot"],
        "collar": ["clavicle", "shoulder01"], "shoulder": ["upperarm01", "upperarm02"],
        "elbow": ["lowerarm01", "lowerarm02"], "wrist": ["wrist"] + [f"metacarpal{k}" for k in (1, 2, 3, 4)],
    }.items():  # fmt: skip
        BONE_OF_JOINT[f"{_side}_{_joint}"] = f"{_bones[0]}.{_s}"
        _BONES[f"{_side}_{_joint}"] = [f"{b}.{_s}" for b in _bones]
    _BONES[f"{_side}_foot"] = [f"toe{t}-{k}.{_s}" for t in range(1, 6) for k in (1, 2, 3)]
    for _finger, _n in _FINGER_NUMBER.items():
        for _k in (1, 2, 3):
            BONE_OF_JOINT[f"{_side}_{_finger}{_k}"] = f"finger{_n}-{_k}.{_s}"
            _BONES[f"{_side}_{_finger}{_k}"] = [f"finger{_n}-{_k}.{_s}"]
JOINT_OF_BONE = {bone: joint for joint, bones in _BONES.items() for bone in bones}


def toe_roots(joint: str) -> list[str]:
    """The five toe bones whose mean head is `left_foot` or `right_foot`."""
    return [f"toe{t}-1.{'L' if joint.startswith('left') else 'R'}" for t in range(1, 6)]


def merge_targets(bones: list[str], parents: list[int]) -> list[int]:
    """The SMPL-X joint that each bone is merged into (bones without one follow their parent)."""
    out: list[int] = []
    for bone, parent in zip(bones, parents, strict=True):
        out.append(JOINT[JOINT_OF_BONE[bone]] if bone in JOINT_OF_BONE else out[parent])
    return out


def carriers(bones: list[str]) -> list[int]:
    """Per bone the SMPL-X joint whose rotation it performs when Anny is posed, or -1 (rigid to its parent)."""
    first = {bone: joint for joint, bone in BONE_OF_JOINT.items()}
    first["root"] = "pelvis"
    first.pop("spine04", None)  # the pelvis turns as a whole, from the root
    for side in ("left", "right"):
        first.update({bone: f"{side}_foot" for bone in toe_roots(f"{side}_foot")})
    return [JOINT[first[b]] if b in first else -1 for b in bones]


def _unit(v: Array) -> Array:
    return v / np.linalg.norm(v)


def _frame(x: Array, z: Array) -> Array:
    x = _unit(x)
    z = _unit(z - x * (z @ x))
    return np.stack([x, np.cross(z, x), z], 1)


def _swing(a: Array, b: Array) -> Array:
    """The smallest rotation that takes direction a to direction b."""
    a, b = _unit(a), _unit(b)
    axis = np.cross(a, b)
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + k + k @ k / (1 + a @ b)


def _exp(v: Array) -> Array:
    return Rotation.from_rotvec(v).as_matrix()


def _log(r: Array) -> Array:
    return Rotation.from_matrix(r).as_rotvec()


X, Y, Z = np.eye(3)
LEG_OUTWARD = np.radians(2.2)
FINGER_SPREAD = {2: 6.0, 3: 1.0, 4: -5.0, 5: -12.0}  # degrees towards the thumb, as a relaxed flat hand


def tpose_rotations(bones: list[str], parents: list[int], heads: Array) -> Array:
    """World rotation of each bone from Anny's rest (an A-pose) to the T-pose.

    heads: (N, 3) bone heads at rest, Y up, +Z front, +X body-left. Returns (N, 3, 3), the same for every
    shape: upper arms and forearms along X with the elbow's flexion axis vertical, palms down, fingers
    straight, legs 2.2 degrees outward.
    """
    at = {b: heads[i] for i, b in enumerate(bones)}
    left = {**_left_arm(at), **_left_leg(at)}
    flip = np.diag([-1.0, 1, 1])
    both = {f"{b}.L": r for b, r in left.items()} | {f"{b}.R": flip @ r @ flip for b, r in left.items()}
    out: list[Array] = []
    for bone, parent in zip(bones, parents, strict=True):
        out.append(both.get(bone, out[parent] if parent >= 0 else np.eye(3)))
    return np.stack(out)


def _left_arm(at: dict[str, Array]) -> dict[str, Array]:
    upper = at["lowerarm01.L"] - at["upperarm01.L"]
    lower = at["wrist.L"] - at["lowerarm01.L"]
    flexion = _unit(np.cross(upper, lower))
    target = _frame(X, np.cross(X, -Y))
    g_upper = target @ _frame(upper, np.cross(upper, flexion)).T
    g_lower = target @ _frame(lower, np.cross(lower, flexion)).T
    hand = at["finger3-1.L"] - at["wrist.L"]
    g_hand = _frame(X, Z) @ _frame(hand, at["finger2-1.L"] - at["finger5-1.L"]).T
    # Spread the residual twist over the two bones of the upper arm and of the forearm.
    swing = _swing(upper, X)
    hand_twist = _log(g_hand @ (_swing(g_lower @ hand, X) @ g_lower).T)
    out: dict[str, Array] = {
        "upperarm01": _exp(0.5 * _log(g_upper @ swing.T)) @ swing, "upperarm02": g_upper,
        "lowerarm01": g_lower, "lowerarm02": _exp(0.5 * hand_twist) @ g_lower,
        "wrist": g_hand, **{f"metacarpal{k}": g_hand for k in (1, 2, 3, 4)},
    }  # fmt: skip
    for n, spread in FINGER_SPREAD.items():
        towards = _exp(np.radians(-spread) * Y) @ X
        g = g_hand
        for k in (1, 2):
            bone = at[f"finger{n}-{k + 1}.L"] - at[f"finger{n}-{k}.L"]
            g = _swing(g @ bone, towards) @ g
            out[f"finger{n}-{k}"] = g
        out[f"finger{n}-3"] = g
    first = g_hand @ (at["finger1-2.L"] - at["finger1-1.L"])
    thumb = _swing(g_hand @ (at["finger1-3.L"] - at["finger1-2.L"]), first) @ g_hand
    out.update({"finger1-1": g_hand, "finger1-2": thumb, "finger1-3": thumb})
    return out


def _left_leg(at: dict[str, Array]) -> dict[str, Array]:
    leg = at["foot.L"] - at["upperleg01.L"]
    turn = _exp(-(np.arctan2(leg[0], -leg[1]) - LEG_OUTWARD) * Z)
    leg_bones = dict.fromkeys(("upperleg01", "upperleg02", "lowerleg01", "lowerleg02"), turn)
    return leg_bones | {"foot": np.eye(3)}

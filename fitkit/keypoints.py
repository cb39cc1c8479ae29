"""Named keypoint sets, 2D and 3D keypoints of a batch of people, and the mapping between sets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows


@dataclass(frozen=True)
class KeypointSet:
    """The names of K keypoints in a detector's or a data set's own order.

    Attributes:
        name: of the set, as in `get_set`.
        names: of the K points. The same name in two sets means the same place on the body only as nearly as
            annotators and detectors agree; a body has a regressor of its own for each set.
        edges: pairs of positions to draw as limbs.
    """

    name: str
    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def flip(self) -> tuple[int, ...]:
        """For each point, the position of its mirror image (its own on the midline)."""
        return tuple(self.names.index(_mirrored(name)) for name in self.names)

    def index(self, name: str) -> int:
        """Position of a point.

        Raises:
            ValueError: no such point; the message lists those there are.
        """
        if name not in self.names:
            raise ValueError(f"keypoint {name!r} is not in {self.name}, which has {list(self.names)}")
        return self.names.index(name)


def _mirrored(name: str) -> str:
    if name.startswith("mouth_"):
        return {"mouth_left": "mouth_right", "mouth_right": "mouth_left"}[name]
    for side, other in (("left_", "right_"), ("right_", "left_")):
        if name.startswith(side):
            return other + name[len(side) :]
    return name


_COCO = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
)
_FEET = "left_big_toe left_small_toe left_heel right_big_toe right_small_toe right_heel"
_SMPLX_BODY = (
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot right_foot "
    "neck left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist"
)
_FINGERS = " ".join(
    f"{side}_{finger}{phalanx}"
    for side in ("left", "right")
    for finger in ("index", "middle", "pinky", "ring", "thumb")
    for phalanx in (1, 2, 3)
)
_SETS = {
    # COCO, and COCO-WholeBody's body and feet
    "coco17": _COCO,
    "coco23": f"{_COCO} {_FEET}",
    # OpenPose BODY_25
    "openpose25": "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist mid_hip "
    "right_hip right_knee right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear "
    "left_big_toe left_small_toe left_heel right_big_toe right_small_toe right_heel",
    # MediaPipe Pose
    "mediapipe33": "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear "
    "right_ear mouth_left mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
    "left_pinky right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee "
    "left_ankle right_ankle left_heel right_heel left_foot_index right_foot_index",
    # Human3.6M in the order of Martinez et al. and VideoPose3D; `neck` is their "Neck/Nose"
    "h36m17": "pelvis right_hip right_knee right_ankle left_hip left_knee left_ankle spine thorax neck head "
    "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist",
    # Leeds Sports Pose
    "lsp14": "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist neck head_top",
    # the kinematic joints of the body models
    "smplx55": f"{_SMPLX_BODY} jaw left_eye right_eye {_FINGERS}",
    "smplh52": f"{_SMPLX_BODY} {_FINGERS}",
    "smpl24": f"{_SMPLX_BODY} left_hand right_hand",
}
# Limbs to draw, by name; a set has those whose two ends it has.
_LIMBS = (
    "left_shoulder-left_elbow left_elbow-left_wrist right_shoulder-right_elbow right_elbow-right_wrist "
    "left_hip-left_knee left_knee-left_ankle right_hip-right_knee right_knee-right_ankle "
    "left_shoulder-right_shoulder left_hip-right_hip left_shoulder-left_hip right_shoulder-right_hip "
    "left_ankle-left_heel left_ankle-left_big_toe left_ankle-left_foot_index left_heel-left_foot_index "
    "right_ankle-right_heel right_ankle-right_big_toe right_ankle-right_foot_index right_heel-right_foot_index "
    "left_wrist-left_index right_wrist-right_index left_wrist-left_pinky right_wrist-right_pinky "
    "nose-left_eye nose-right_eye left_eye-left_ear right_eye-right_ear mouth_left-mouth_right "
    "pelvis-spine spine-thorax thorax-neck neck-head neck-head_top"
).split()


@cache
def get_set(name: str) -> KeypointSet:
    """A keypoint set by name.

    Raises:
        ValueError: unknown name; the message lists the known ones.

    >>> get_set("coco17").names[:2]
    ('nose', 'left_eye')
    """
    if name not in _SETS:
        raise ValueError(f"unknown keypoint set {name!r}, expected one of {sorted(_SETS)}")
    names = tuple(_SETS[name].split())
    pairs = [limb.split("-") for limb in _LIMBS]
    edges = tuple((names.index(a), names.index(b)) for a, b in pairs if a in names and b in names)
    return KeypointSet(name, names, edges)


def set_names() -> list[str]:
    """The names that `get_set` knows."""
    return sorted(_SETS)


@dataclass(frozen=True)
class Keypoints(Rows):
    """2D keypoints of B people, pixels of the full photo.

    Points that were not seen have confidence 0. A coordinate that is not finite, or a confidence that is not
    positive, is turned into that here, so that no NaN ever reaches the maths.

    Attributes:
        set: the names.
        xy: `(B, K, 2)` pixels.
        confidence: `(B, K)`, 0 = not seen, 1 = certain.
    """

    set: KeypointSet
    xy: Float[Tensor, "B K 2"]
    confidence: Float[Tensor, "B K"]

    def __post_init__(self) -> None:
        _clean(self, "xy", 2)

    def __len__(self) -> int:
        return len(self.xy)

    def box(self) -> Float[Tensor, "B 4"]:
        """x, y, w, h of the seen points of each person; zeros where none is."""
        seen = self.confidence > 0
        low = self.xy.masked_fill(~seen[..., None], float("inf")).amin(1)
        high = self.xy.masked_fill(~seen[..., None], float("-inf")).amax(1)
        box = torch.cat([low, high - low], 1)
        return torch.where(seen.any(1, keepdim=True), box, torch.zeros_like(box))

    @cached_property
    def sure_box(self) -> Float[Tensor, "B 4"]:
        """x, y, w, h of the surely seen points of each person.

        Surely is a confidence over 0.2 where there are such points: guessed ones outside the photo do not count.
        """
        sure = torch.where(self.confidence > 0.2, self.confidence, torch.zeros_like(self.confidence))
        some = (sure > 0).any(1, keepdim=True)
        return torch.where(some, Keypoints(self.set, self.xy, sure).box(), self.box())

    @cached_property
    def extent(self) -> Float[Tensor, " B"]:
        """Longer side of `sure_box`, pixels, at least 1."""
        return self.sure_box[:, 2:].amax(1).clamp_min(1.0)

    def convert(self, name: str) -> Keypoints:
        """The same people in another set: points of the same name, confidence 0 for those this set lacks."""
        target = get_set(name)
        xy = self.xy.new_zeros(len(self), len(target), 2)
        confidence = self.confidence.new_zeros(len(self), len(target))
        shared = [
            (i, self.set.names.index(point))
            for i, point in enumerate(target.names)
            if point in self.set.names
        ]
        if shared:
            there, here = map(list, zip(*shared, strict=True))
            xy[:, there], confidence[:, there] = self.xy[:, here], self.confidence[:, here]
        return Keypoints(target, xy, confidence)


@dataclass(frozen=True)
class Keypoints3D(Rows):
    """3D keypoints of B people around their root, metres, camera axes (x right, y down, z forward).

    Attributes:
        set: the names.
        xyz: `(B, K, 3)` metres.
        confidence: `(B, K)`, 0 = not seen.
    """

    set: KeypointSet
    xyz: Float[Tensor, "B K 3"]
    confidence: Float[Tensor, "B K"]

    def __post_init__(self) -> None:
        _clean(self, "xyz", 3)

    def __len__(self) -> int:
        return len(self.xyz)

    @cached_property
    def _bones(self) -> dict[tuple[tuple[int, int], ...], tuple[Tensor, Tensor]]:
        return {}

    def directions(
        self, bones: tuple[tuple[int, int], ...]
    ) -> tuple[Float[Tensor, "B M 3"], Float[Tensor, "B M"]]:
        """Unit directions of (from, to) pairs of points, and the lower confidence of their ends; kept."""
        if bones not in self._bones:
            start, end = [a for a, _ in bones], [b for _, b in bones]
            unit = torch.nn.functional.normalize(self.xyz[:, end] - self.xyz[:, start], dim=-1)
            self._bones[bones] = unit, torch.minimum(self.confidence[:, start], self.confidence[:, end])
        return self._bones[bones]


def _clean(points: Keypoints | Keypoints3D, field: str, dimension: int) -> None:
    coordinates, confidence = getattr(points, field), points.confidence
    expected = (*confidence.shape, dimension)
    if confidence.ndim != 2 or confidence.shape[1] != len(points.set) or coordinates.shape != expected:
        raise ValueError(
            f"keypoints of the set {points.set.name}: {field} {tuple(coordinates.shape)} and confidence "
            f"{tuple(confidence.shape)}, expected (B, {len(points.set)}, {dimension}) and (B, {len(points.set)})"
        )
    seen = torch.isfinite(coordinates).all(-1) & torch.isfinite(confidence) & (confidence > 0)
    object.__setattr__(
        points, field, torch.where(seen[..., None], coordinates, torch.zeros_like(coordinates))
    )
    object.__setattr__(points, "confidence", torch.where(seen, confidence, torch.zeros_like(confidence)))

"""What a keypoint detector would see of people who are known, with the errors that detectors make."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fitkit import geometry
from fitkit.body import BodyModel
from fitkit.keypoints import Keypoints, Keypoints3D, KeypointSet, get_set
from fitkit.maps import extent
from fitkit.observation import Observation
from fitkit.simulate.people import Dice, Scene

_LIMBS = (
    ("left_shoulder", "left_elbow", "left_wrist", "left_index", "left_pinky", "left_thumb"),
    ("right_shoulder", "right_elbow", "right_wrist", "right_index", "right_pinky", "right_thumb"),
    ("left_hip", "left_knee", "left_ankle", "left_heel", "left_foot_index"),
    ("right_hip", "right_knee", "right_ankle", "right_heel", "right_foot_index"),
)
_TORSO = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
# Standard deviation of a surely seen point, in sizes of the person; half of it is that of the annotators.
_NOISE = {
    "nose": 0.010, "eye": 0.010, "ear": 0.012, "mouth": 0.010, "shoulder": 0.017, "elbow": 0.017, "wrist": 0.014,
    "hip": 0.020, "knee": 0.018, "ankle": 0.014, "heel": 0.018, "foot": 0.020, "pinky": 0.020, "index": 0.020,
    "thumb": 0.020,
}  # fmt: skip
# Bins of the confidence of points on limbs: their upper ends, how many seen and hidden points lie in each, the noise
# in that of a sure point, and the share of gross errors. Torso and head are always sure.
_BINS = (0.2, 0.5, 0.8, 0.95, 1.0)
_SEEN = (0.025, 0.075, 0.21, 0.27, 0.42)
_HIDDEN = (0.10, 0.15, 0.30, 0.20, 0.25)
_WIDER = (3.2, 2.6, 2.6, 1.5, 1.0)
_GROSS = (0.15, 0.12, 0.10, 0.06, 0.01)


@dataclass(frozen=True)
class Errors:
    """Errors of a detector: MediaPipe's, as `benchmarks/detector.py` finds them on annotated photos.

    Attributes:
        points: keypoint set.
        scale: factor on the noise of all points.
        spread: standard deviation of its logarithm between people.
        together: correlation of the noise of a limb's points beyond the first.
        hidden: noise of points that something hides, in that of seen ones of the same confidence.
        gross: factor on the share of gross errors: most a normal of 0.12 sizes of the person, some anywhere on the
            person; what hangs on a limb's joint mostly errs with it.
        dropped: share of people many of whose points are missing altogether, up to half.
        swapped: share of people with all left and right points exchanged; as many each only have arms or legs so.
        behind: share of people of whom something in the photo hides a part.
        certain: whether confidences are 0 or 1, as annotators give them, and do not say how good a point is.
        world: share of people with a 3D guess.
    """

    points: str = "mediapipe33"
    scale: float = 0.9
    spread: float = 0.35
    together: float = 0.6
    hidden: float = 1.8
    gross: float = 1.0
    dropped: float = 0.1
    swapped: float = 0.007
    behind: float = 0.3
    certain: bool = False
    world: float = 0.8


ANNOTATED = Errors(
    "coco17",
    scale=0.7,
    together=0.0,
    spread=0.5,
    gross=0.5,
    dropped=0.4,
    swapped=0.0,
    certain=True,
    world=0.0,
)
"""Points as a person marks them, or as a test problem has them: seen or not, hardly any outliers."""


def detect(body: BodyModel, scene: Scene, draw: torch.Generator, errors: Errors) -> Observation:
    """Keypoints, their confidences and perhaps a 3D guess of everybody in a scene.

    Args:
        body: of the scene.
        scene: of B people.
        draw: of everything random, on the body's device.
        errors: see there.
    """
    dice, points = Dice(draw, body.dtype), get_set(errors.points)
    place = body.keypoints(scene.state, points.name)
    pixels = scene.camera.project(place)
    inside, beyond = _inside(scene, pixels, place)
    some = torch.where((inside.sum(1) > 2)[:, None], inside, torch.ones_like(inside))
    size = extent(pixels, some)
    hidden = _behind_something(pixels, some, dice, errors.behind) | _behind_torso(points, pixels, place)
    hidden = hidden & inside
    beyond = beyond / size[:, None]
    bins, confidence = _confidence(points, inside, hidden, beyond, dice)
    away = _noise(points, inside, hidden, beyond, bins, dice, errors)
    noisy = pixels + size[:, None, None] * away
    order = _swaps(points, len(scene), dice, errors.swapped)
    noisy = noisy.gather(1, order[..., None].expand(-1, -1, 2))
    kept = _kept(inside, hidden, dice, errors)
    confidence = (kept.to(dice.dtype) if errors.certain else confidence * kept).gather(1, order)
    world = None
    if errors.world > 0:
        given = dice.happens(errors.world, len(scene))[:, None]
        world = Keypoints3D(points, _guess(points, place, dice), confidence * given)
    return Observation(scene.camera, Keypoints(points, noisy, confidence), world)


def _columns(points: KeypointSet, names: tuple[str, ...]) -> list[int]:
    return [points.names.index(name) for name in names if name in points.names]


def _inside(scene: Scene, pixels: Tensor, place: Tensor) -> tuple[Bool[Tensor, "B K"], Float[Tensor, "B K"]]:
    """Which points are in the photo, and how many pixels outside of it the others lie."""
    camera = scene.camera
    frame = torch.tensor([camera.width, camera.height], dtype=pixels.dtype, device=pixels.device)
    beyond = (torch.maximum(-pixels, pixels - frame).amax(-1)).clamp_min(0)
    return (beyond == 0) & (place[..., 2] > 0.1), beyond


def _behind_something(pixels: Tensor, seen: Tensor, dice: Dice, share: float) -> Bool[Tensor, "B K"]:
    """What a half plane (a table, somebody in front) or a small box hides, in coordinates of the person's box."""
    count = len(pixels)
    low = pixels.masked_fill(~seen[..., None], torch.inf).amin(1, keepdim=True)
    high = pixels.masked_fill(~seen[..., None], -torch.inf).amax(1, keepdim=True)
    unit = (pixels - low) / (high - low).clamp_min(1)
    below = unit[..., 1] > dice.between(0.3, 0.95, count, 1)
    beside = (unit[..., 0] - dice.happens(0.5, count, 1).to(unit)).abs() < dice.between(0.05, 0.5, count, 1)
    corner, side = dice.uniform(count, 1, 2), dice.between(0.1, 0.45, count, 1, 2)
    box = ((unit - corner).abs() < side / 2).all(-1)
    which = dice.uniform(count, 1)
    what = torch.where(which < 0.4, below, torch.where(which < 0.55, beside, box))
    return what & dice.happens(share, count)[:, None]


def _behind_torso(points: KeypointSet, pixels: Tensor, place: Tensor) -> Bool[Tensor, "B K"]:
    """Arms that the own torso hides: within its outline and behind it."""
    torso = _columns(points, _TORSO)
    middle, around = pixels[:, torso].mean(1, keepdim=True), pixels[:, torso]
    reach = (around - middle).abs().amax(1, keepdim=True) + 1
    within = ((pixels - middle).abs() < reach).all(-1)
    farther = place[..., 2] > place[:, torso, 2].mean(1, keepdim=True) + 0.07
    arms = torch.zeros(len(points), dtype=torch.bool, device=pixels.device)
    arms[[column for limb in _LIMBS[:2] for column in _columns(points, limb[1:])]] = True
    return within & farther & arms


def _limb(points: KeypointSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """The limb of each point, the last number for torso and head; and whether it hangs on the limb's joint."""
    limb = torch.full((len(points),), len(_LIMBS), device=device)
    hangs = torch.zeros(len(points), dtype=torch.bool, device=device)
    for number, names in enumerate(_LIMBS):
        limb[_columns(points, names[1:])] = number
        hangs[_columns(points, names[2:])] = True
    return limb, hangs


def _confidence(
    points: KeypointSet, inside: Tensor, hidden: Tensor, beyond: Tensor, dice: Dice
) -> tuple[Tensor, Float[Tensor, "B K"]]:
    """Bins of the confidences, and these: sure of torso and head, of limbs less; little is left outside."""
    device = inside.device
    ends = torch.tensor((0.0, *_BINS), dtype=dice.dtype, device=device)
    share = torch.tensor((_SEEN, _HIDDEN), dtype=dice.dtype, device=device).cumsum(1)
    toss = dice.uniform(*inside.shape)
    bins = (toss[..., None] > share[hidden.long()]).sum(-1).clamp_max(len(_BINS) - 1)
    limb, _ = _limb(points, device)
    bins = torch.where(limb == len(_LIMBS), len(_BINS) - 1, bins)
    low, high = ends[bins], ends[bins + 1]
    confidence = low + (high - low) * dice.uniform(*inside.shape) ** 0.5
    out = 0.8 * dice.uniform(*inside.shape) ** (1 + 20 * beyond)
    return bins, torch.where(inside, confidence, out)


def _noise(
    points: KeypointSet,
    inside: Tensor,
    hidden: Tensor,
    beyond: Tensor,
    bins: Tensor,
    dice: Dice,
    errors: Errors,
) -> Float[Tensor, "B K 2"]:
    """In sizes of the person."""
    people, device = len(inside), inside.device
    sigma = torch.tensor(
        [next(value for word, value in _NOISE.items() if word in name) for name in points.names],
        dtype=dice.dtype,
        device=device,
    )
    wider, gross = (torch.tensor(row, dtype=dice.dtype, device=device) for row in (_WIDER, _GROSS))
    level = errors.scale * (errors.spread * dice.normal(people, 1)).exp() * sigma
    level = level * torch.where(hidden, errors.hidden, 1.0) * (1.0 if errors.certain else wider[bins])
    level = torch.where(inside, level, 0.05 + 0.4 * beyond.clamp_max(1))
    limb, hangs = _limb(points, device)
    own, shared = dice.normal(people, len(points), 2), dice.normal(people, len(_LIMBS) + 1, 2)[:, limb]
    mixed = math.sqrt(1 - errors.together) * own + math.sqrt(errors.together) * shared
    away = level[..., None] * torch.where((limb < len(_LIMBS))[:, None], mixed, own)
    often = errors.gross * (torch.full_like(level, 0.015) if errors.certain else gross[bins])
    # Some people are seen badly, and most well.
    often = (often + 0.1 * errors.gross * hidden) * 0.5 * (1.2 * dice.normal(people, 1)).exp()
    wrong = dice.happens(often, *inside.shape) & inside
    near, anywhere = 0.12 * dice.normal(people, len(points), 2), dice.uniform(people, len(points), 2) - 0.5
    jump = torch.where(dice.happens(0.3, people, len(points), 1), anywhere, near) * wrong[..., None]
    # The joint is the first of a limb's points; what hangs on it follows three times out of four.
    follows = (dice.happens(0.75, people, len(points)) & hangs)[..., None]
    joints = jump.new_zeros(people, len(_LIMBS) + 1, 2)
    for number, names in enumerate(_LIMBS):
        first = _columns(points, names[1:2])
        joints[:, number] = jump[:, first[0]]
    return away + jump + joints[:, limb] * follows


def _kept(inside: Tensor, hidden: Tensor, dice: Dice, errors: Errors) -> Bool[Tensor, "B K"]:
    """Which points there are at all."""
    people = len(inside)
    rate = dice.happens(errors.dropped, people)[:, None] * 0.5 * dice.uniform(people, 1) + 0.01
    kept = ~dice.happens(rate, *inside.shape)
    if errors.certain:
        # An annotator may mark what is hidden, never what is outside.
        return kept & inside & (~hidden | dice.happens(0.3, *inside.shape))
    return kept


def _swaps(points: KeypointSet, people: int, dice: Dice, share: float) -> Tensor:
    """`(B, K)` which point each place shows, after sides were exchanged."""
    device = dice.draw.device
    same = torch.arange(len(points), device=device)
    other = torch.tensor(points.flip, device=device)
    arms, legs = (torch.zeros(len(points), dtype=torch.bool, device=device) for _ in range(2))
    arms[[c for limb in _LIMBS[:2] for c in _columns(points, limb)]] = True
    legs[[c for limb in _LIMBS[2:] for c in _columns(points, limb)]] = True
    which = dice.uniform(people, 1)
    swapped = which < share
    swapped = swapped | ((which < 2 * share) & arms) | ((which > 1 - share) & legs)
    return torch.where(swapped, other, same)


def _guess(points: KeypointSet, place: Tensor, dice: Dice) -> Float[Tensor, "B K 3"]:
    """A 3D guess around the hips: upright-biased, flat or deep, limbs now and then mirrored in depth, noisy."""
    people = len(place)
    hips, shoulders = _columns(points, _TORSO[2:]), _columns(points, _TORSO[:2])
    around = place - place[:, hips].mean(1, keepdim=True)
    spine = torch.nn.functional.normalize(around[:, shoulders].mean(1), dim=-1)
    up = torch.tensor([0.0, -1.0, 0.0], dtype=place.dtype, device=place.device).expand_as(spine)
    axis = torch.linalg.cross(spine, up, dim=-1)
    sine = axis.norm(dim=-1, keepdim=True)
    lean = torch.atan2(sine, (spine * up).sum(-1, keepdim=True))
    back = axis / sine.clamp_min(1e-6) * lean * dice.between(0.0, 0.5, people, 1) * (lean < 1.2)
    turn = geometry.exp(back + math.radians(7) * dice.normal(people, 3))
    around = around @ turn.mT
    around[..., 2] *= (0.2 * dice.normal(people, 1)).exp()
    for names in _LIMBS:
        limb = _columns(points, names)
        flip = dice.happens(0.05, people)[:, None]
        first = around[:, limb[:1], 2]
        z = around[:, limb, 2]
        around[:, limb, 2] = torch.where(flip, 2 * first - z, z)
    return around + 0.03 * dice.normal(*around.shape) * (0.5 * dice.normal(people, 1, 1)).exp()

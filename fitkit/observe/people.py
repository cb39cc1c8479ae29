"""Everyone in a photo as one Observation: where to look, who is whom, and what was seen of each."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fitkit.camera import Camera
from fitkit.keypoints import Keypoints, Keypoints3D, get_set
from fitkit.observation import Observation
from fitkit.observe.image import Photo, load_image
from fitkit.observe.mediapipe_graph import (
    BOX_DETECTION_SCORE,
    DETECTION_SCORE,
    Detection,
    Landmarks,
    PoseGraphs,
    Roi,
    pose_graphs,
    shrink,
)

if TYPE_CHECKING:
    import PIL.Image

MAX_PEOPLE = 1000
"""Most boxes, or people of a file, in one call."""

MASK_SIDE = 512  # longer side of the masks, pixels
_WORKING_SIDE = 1280  # longer side of the photo that is cut into tiles; landmarks see the full photo
_TILE_SIDE = 448  # a tile is handed over at most this large: the detector works on 224 x 224
_TILE_LEVELS = (1, 2, 3)  # the whole photo, then tiles of 1.4 / 2 and 1.4 / 3 of its longer side
_TILE_OVERLAP = 0.38
_SMALLEST_SIDE = 16  # pixels; in less nobody can be made out
_INSIDE = 0.8  # a person whose mask lies this far inside that of a better one is the same person ...
_AROUND = 0.9  # ... and so is one around a better one: less, because masks leak onto a neighbour
_LOWEST_SCORE = 0.57  # detector's score x presence; tiles bring in furniture at 0.5 to 0.55
_SURE_POINTS = 11  # of the 33: a person cut by the frame has a face and shoulders, a cat has not even that
_BOX_SQUARES = (1.25, 1.5)  # sides of the upright squares tried around a given box, times its longer side
_BOX_CROPS = (
    1.25,
    2.0,
)  # sides of the parts of the photo in which the detector looks for the person of a box
_GOOD_FIT = 0.7  # of a person to a box: no further square is tried
_LEFT_HIP, _RIGHT_HIP = 23, 24


@dataclass(frozen=True)
class _Person:
    """One person in pixels of the photo: landmarks, mask over the whole photo, box x, y, w, h, score."""

    xy: np.ndarray
    confidence: np.ndarray
    world: np.ndarray
    mask: np.ndarray
    box: np.ndarray
    score: float


def observe(
    image: str | Path | np.ndarray | PIL.Image.Image | Photo,
    people: str | int = "all",
    boxes: np.ndarray | torch.Tensor | None = None,
    camera: Camera | None = None,
    focal: float | None = None,
) -> Observation:
    """Find people in a photo with MediaPipe.

    Returns one row per person, largest box first; nobody found gives an Observation of 0 people. Keypoints are
    of the set "mediapipe33"; their confidence is the smaller of the network's visibility and presence, and falls
    with the distance outside the photo, where points are extrapolated. `world` is in metres around the mid-hip;
    `mask` covers the photo with a longer side of at most 512 pixels.

    image: as in `load_image` (arrays are RGB).
    people: "all", "largest" (the first row), or the number of a row.
    boxes: (N, 4) x, y, w, h in pixels of the upright photo. One row per box in the given order, with confidence
        and score 0 where nothing like a person was found inside.
    camera: of this photo, one row. focal: pixels. With neither, EXIF; without that, the longer side of the
        photo. The principal point is the centre of the photo.

    Errors: ValueError for contradicting or malformed arguments and a person's number that does not exist,
    `load_image`'s, DetectorUnavailable without MediaPipe.

    >>> observe("photo.jpg").keypoints.xy.shape        # doctest: +SKIP
    torch.Size([2, 33, 2])
    """
    if isinstance(people, str) and people not in ("all", "largest"):
        raise ValueError(f'people={people!r}; expected "all", "largest" or the number of a person')
    photo = load_image(image)
    of_photo = photo_camera(photo, camera, focal)
    graphs = pose_graphs()
    if boxes is not None:
        found = [_in_box(graphs, photo.pixels, box) for box in _check_boxes(boxes, photo)]
    else:
        found = sorted(_everyone(graphs, photo.pixels), key=lambda p: -float(p.box[2] * p.box[3]))
    return choose_people(_to_observation(found, photo, of_photo), people, photo.source)


def photo_camera(photo: Photo, camera: Camera | None = None, focal: float | None = None) -> Camera:
    """The camera of a photo (one row): the one given, or from `focal` pixels, EXIF, or the longer side.

    Errors: ValueError when both are given, when the camera is of another photo or of several people.
    """
    if camera is None:
        known = focal if focal is not None else photo.focal
        return Camera.from_size(photo.width, photo.height, known)
    if focal is not None:
        raise ValueError(f"camera and focal={focal:g} were both given; expected one of them")
    if len(camera) != 1 or (camera.width, camera.height) != (photo.width, photo.height):
        raise ValueError(
            f"camera: {len(camera)} row(s) for a photo of {camera.width} x {camera.height}; expected 1 row for "
            f"{photo.width} x {photo.height} ({photo.source})"
        )
    return camera


def choose_people(
    observation: Observation, people: str | int, source: str = "the observation"
) -> Observation:
    """All people, the one with the largest box, or the one of a row's number.

    people: "all", "largest", or a number from 0 on, as the rows of "all" are numbered.
    source: named in errors.

    Errors: ValueError for another word, a number that no row has, or people without boxes and keypoints.
    """
    if people == "all":
        return observation
    count = len(observation)
    if people == "largest":
        box = observation.box
        if box is None and observation.keypoints is not None:
            box = observation.keypoints.box()
        if box is None:
            raise ValueError(
                f"people='largest': {source} has neither boxes nor keypoints to tell who that is"
            )
        return observation if count < 2 else observation.select(int((box[:, 2] * box[:, 3]).argmax()))
    try:
        number = -1 if isinstance(people, bool | str) else operator.index(people)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f'people={people!r}; expected "all", "largest" or a number from 0 on')
    if number >= count:
        there = f"numbered 0 ... {count - 1}" if count else "nobody was found"
        raise ValueError(f"people={number}: {source} has {count} people ({there})")
    return observation.select(number)


def _check_boxes(boxes: np.ndarray | torch.Tensor, photo: Photo) -> np.ndarray:
    rows = boxes.detach().cpu().numpy() if isinstance(boxes, torch.Tensor) else boxes
    try:
        array = np.asarray(rows, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"boxes: {boxes!r}; expected (N, 4) numbers x, y, w, h in pixels") from error
    if array.shape == (0,):
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4 or len(array) > MAX_PEOPLE:
        raise ValueError(
            f"boxes: shape {array.shape}; expected (N, 4) x, y, w, h in pixels, at most {MAX_PEOPLE}"
        )
    for i, (x, y, w, h) in enumerate(array):
        inside = x < photo.width and y < photo.height and x + w > 0 and y + h > 0
        if not (np.isfinite(array[i]).all() and w >= 1 and h >= 1 and inside):
            raise ValueError(
                f"boxes[{i}] = x {x:g}, y {y:g}, w {w:g}, h {h:g}; expected a box of at least 1 x 1 pixel that "
                f"touches the photo of {photo.width} x {photo.height}"
            )
    return array


def _everyone(graphs: PoseGraphs, pixels: np.ndarray) -> list[_Person]:
    """Detect on tiles, find landmarks twice, keep one of each person."""
    if min(pixels.shape[:2]) < _SMALLEST_SIDE:
        return []
    seen: list[_Person] = []
    for detection in _detections(graphs, pixels):
        first = graphs.landmarks(pixels, detection.roi())
        if first is None:
            continue
        draft = _person(first, pixels, detection.score)
        # Most doubles show at the first look; the second is spared.
        if draft.score < _LOWEST_SCORE or any(_within(draft, other, _AROUND) for other in seen):
            continue
        second = graphs.landmarks(pixels, first.next_roi)
        seen.append(draft if second is None else _person(second, pixels, detection.score))
    kept: list[_Person] = []
    for person in sorted(seen, key=lambda p: -p.score):
        double = any(_within(person, o, _INSIDE) or _within(o, person, _AROUND) for o in kept)
        if person.score >= _LOWEST_SCORE and not double:
            kept.append(person)
    return kept


def _within(inner: _Person, outer: _Person, share: float) -> bool:
    """Whether more than this share of one mask lies in another; an empty mask lies nowhere."""
    mask = inner.mask > 0.5
    return int((mask & (outer.mask > 0.5)).sum()) > share * max(int(mask.sum()), 1)


def _tiles(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """x, y, w, h of overlapping tiles: small people fill more of a tile than of the photo."""
    tiles = [(0, 0, width, height)]
    for level in _TILE_LEVELS[1:]:
        side = max(width, height) * 1.4 / level
        w, h = min(side, width), min(side, height)
        across, down = (
            math.ceil((whole - part) / (part * (1 - _TILE_OVERLAP))) + 1
            for whole, part in ((width, w), (height, h))
        )
        for x in np.linspace(0, width - w, across):
            tiles.extend(
                (int(x), int(y), max(1, int(w)), max(1, int(h))) for y in np.linspace(0, height - h, down)
            )
    return tiles


def _detections(graphs: PoseGraphs, pixels: np.ndarray) -> list[Detection]:
    """Detections of all tiles in pixels of the photo, best first, one per place."""
    small, _ = shrink(pixels, _WORKING_SIDE)
    back = np.array([pixels.shape[1] / small.shape[1], pixels.shape[0] / small.shape[0]])
    found: list[Detection] = []
    for x, y, w, h in _tiles(small.shape[1], small.shape[0]):
        found += _detect_in(graphs, small[y : y + h, x : x + w], np.array([x, y]), back)
    kept: list[Detection] = []
    for one in sorted(found, key=lambda d: -d.score):
        if all(_apart(one, other) for other in kept):
            kept.append(one)
    return kept


def _detect_in(
    graphs: PoseGraphs,
    part: np.ndarray,
    origin: np.ndarray,
    back: np.ndarray,
    score: float = DETECTION_SCORE,
) -> list[Detection]:
    """Detections in a part of a picture that starts at `origin`; `back` scales the picture to the photo."""
    tile, _ = shrink(part, _TILE_SIDE)
    found = graphs.detect(tile, score)
    scale = np.array([part.shape[1] / tile.shape[1], part.shape[0] / tile.shape[0]])
    return [
        Detection(d.score, *((point * scale + origin) * back for point in (d.hip, d.top, d.shoulder)))
        for d in found
    ]


def _apart(one: Detection, other: Detection) -> bool:
    reach = max(np.hypot(*(one.top - one.hip)), np.hypot(*(other.top - other.hip)))
    distance = np.hypot(*(one.hip - other.hip)) + np.hypot(*(one.shoulder - other.shoulder))
    return bool(distance > 0.35 * reach)


def _in_box(graphs: PoseGraphs, pixels: np.ndarray, box: np.ndarray) -> _Person:
    """The person that fits a given box best, from two looks into each of a few squares."""
    best, best_fit = None, 0.0
    for roi in _squares(graphs, pixels, box):
        next_roi = roi
        for _ in range(2):
            look = graphs.landmarks(pixels, next_roi)
            if look is None:
                break
            person, next_roi = _person(look, pixels, 1.0), look.next_roi
            fit = _box_overlap(person.box, box) * person.score * float(person.confidence.mean())
            if fit > best_fit:
                best, best_fit = person, fit
        if best_fit > _GOOD_FIT:
            break
    if best is not None:
        return best
    size = _mask_size(pixels.shape[1], pixels.shape[0])
    nothing = np.zeros((size[1], size[0]), np.float32)
    return _Person(np.zeros((33, 2)), np.zeros(33), np.zeros((33, 3)), nothing, np.array(box), 0.0)


def _squares(graphs: PoseGraphs, pixels: np.ndarray, box: np.ndarray) -> Iterator[Roi]:
    """Squares that may hold the person of a box; the detector's first: it knows who lies or hangs."""
    x, y, w, h = box
    for scale in _BOX_CROPS:
        square = Roi(x + w / 2, y + h / 2, scale * max(w, h))
        x0, y0, x1, y1 = square.bounds(pixels.shape[1], pixels.shape[0])
        if min(x1 - x0, y1 - y0) < _SMALLEST_SIDE:
            continue
        part, origin = pixels[y0:y1, x0:x1], np.array([x0, y0])
        found = _detect_in(graphs, part, origin, np.ones(2), BOX_DETECTION_SCORE)
        inside = [d for d in found if x <= d.hip[0] <= x + w and y <= d.hip[1] <= y + h]
        if inside:
            yield max(inside, key=lambda d: d.score).roi()
    for scale in _BOX_SQUARES:
        yield Roi(x + w / 2, y + h / 2, scale * max(w, h))


def _box_overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes x, y, w, h."""
    low = np.maximum(one[:2], other[:2])
    high = np.minimum(one[:2] + one[2:], other[:2] + other[2:])
    common = float(np.prod(np.clip(high - low, 0, None)))
    union = float(np.prod(one[2:]) + np.prod(other[2:])) - common
    return common / union if union > 0 else 0.0


def _person(look: Landmarks, pixels: np.ndarray, score: float) -> _Person:
    height, width = pixels.shape[:2]
    confidence = np.minimum(look.visibility, look.presence)
    mask = _whole_mask(look, width, height)
    box = _box(look.xy, confidence, mask, width, height)
    outside = np.hypot(*np.maximum(np.maximum(-look.xy, look.xy - [width, height]), 0).T)
    trusted = np.clip(1 - outside / (0.1 * max(box[2], box[3])), 0.1, 1)
    return _Person(
        xy=look.xy,
        confidence=confidence * trusted,
        world=look.world - look.world[[_LEFT_HIP, _RIGHT_HIP]].mean(0),
        mask=mask,
        box=box,
        score=score * float(np.sort(look.presence)[-_SURE_POINTS:].mean()),
    )


def _mask_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, MASK_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _whole_mask(look: Landmarks, width: int, height: int) -> np.ndarray:
    """The mask of one window resampled to the whole photo, (h, w) float32."""
    import cv2

    size = _mask_size(width, height)
    to_mask = np.array([size[0] / width, size[1] / height])
    x0, y0, x1, y1 = look.window
    wanted = np.maximum(np.rint(np.array([x1 - x0, y1 - y0]) * to_mask), 1).astype(int)
    part = look.mask
    if wanted[0] < part.shape[1] or wanted[1] < part.shape[0]:
        part = cv2.resize(part, (int(wanted[0]), int(wanted[1])), interpolation=cv2.INTER_AREA)
    scale = np.array([x1 - x0, y1 - y0]) * to_mask / [part.shape[1], part.shape[0]]
    shift = (
        0.5 * scale - 0.5 + np.array([x0, y0]) * to_mask
    )  # OpenCV counts from the centre of the first pixel
    turn = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
    return np.asarray(np.clip(cv2.warpAffine(part, turn, size, flags=cv2.INTER_LINEAR), 0, 1), np.float32)


def _box(xy: np.ndarray, confidence: np.ndarray, mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """x, y, w, h around the mask and the confident landmarks, inside the photo."""
    to_photo = np.array([width / mask.shape[1], height / mask.shape[0]])
    rows, columns = np.nonzero(mask > 0.5)
    points = [xy[confidence > 0.5]]
    if len(rows):
        points.append(np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) * to_photo)
    corners = np.concatenate(points)
    if len(corners) < 2:
        corners = xy
    size = np.array([width, height])
    low = np.clip(corners.min(0), 0, size - 1)
    high = np.clip(corners.max(0), low + 1, size)
    return np.concatenate([low, high - low])


def _to_observation(people: list[_Person], photo: Photo, camera: Camera) -> Observation:
    dtype = torch.get_default_dtype()
    size = _mask_size(photo.width, photo.height)

    def stack(rows: list[np.ndarray], *shape: int) -> torch.Tensor:
        return torch.tensor(np.array(rows).reshape(len(people), *shape), dtype=dtype)

    points = get_set("mediapipe33")
    confidence = stack([p.confidence for p in people], 33)
    return Observation(
        camera=camera.expand(len(people)),
        keypoints=Keypoints(points, stack([p.xy for p in people], 33, 2), confidence),
        world=Keypoints3D(points, stack([p.world for p in people], 33, 3), confidence),
        mask=stack([p.mask for p in people], size[1], size[0]),
        box=stack([p.box for p in people], 4),
        score=stack([np.array(p.score) for p in people]),
        image=photo.pixels,
    )

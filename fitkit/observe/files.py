"""Keypoints of other detectors: OpenPose and COCO JSON, and plain arrays, as Keypoints and Observation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fitkit.camera import Camera
from fitkit.keypoints import Keypoints, Keypoints3D, KeypointSet, get_set
from fitkit.observation import Observation
from fitkit.observe._reading import as_numbers, check_limit, check_path, of_photo, read_arrays, read_json
from fitkit.observe.image import Photo
from fitkit.observe.people import photo_camera

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYPOINTS = "keypoints (.json, .npy or .npz)"
_SETS_BY_COUNT = {17: "coco17", 23: "coco23", 25: "openpose25", 33: "mediapipe33", 14: "lsp14"}
"""The set of a plain array that names none: only where one count means one set among detectors."""


def keypoints_from_file(
    path: str | Path, set: str | None = None, image: str | int | None = None
) -> Keypoints:
    """Read the keypoints of any supported file: OpenPose JSON, COCO JSON, or a plain array.

    path: `.json` (told apart by content), `.npy` or `.npz`.
    set: name of the keypoint set of a plain array; by default the detectors' set with that many points. For
        OpenPose and COCO files, checked against what the file holds.
    image: COCO files only: which photo, by id or file name.

    Errors: FileNotFoundError, IsADirectoryError, and ValueError naming the file and what is wrong with it.
    """
    if set is not None:
        get_set(set)
    if Path(path).suffix.lower() in (".npy", ".npz"):
        return read_array(path, set)
    content = read_json(path, KEYPOINTS)
    if isinstance(content, dict) and "people" in content:
        keypoints = _openpose(content, path)
    elif _is_coco(content):
        keypoints = _coco(content, path, image)
    else:
        return _from_array(content, set, str(path))
    if set is not None and set != keypoints.set.name:
        raise ValueError(f"{path}: holds keypoints of the set {keypoints.set.name!r}; expected set={set!r}")
    return keypoints


def read_openpose(path: str | Path) -> Keypoints:
    """All people of an OpenPose JSON file (BODY_25: `pose_keypoints_2d` = 25 x x, y, confidence, pixels).

    A file of no people gives Keypoints of 0 people. Errors: as `keypoints_from_file`.
    Format: CMU-Perceptual-Computing-Lab/openpose, doc/02_output.md.
    """
    return _openpose(read_json(path, KEYPOINTS), path)


def read_coco(path: str | Path, image: str | int | None = None) -> Keypoints:
    """The people of one photo from COCO keypoint JSON: a list of results, or a full annotation file.

    image: id, or file name (annotation files only); may be left out when the file is about one photo.
    17 points give the set "coco17"; people with `foot_kpts` (COCO-WholeBody) give "coco23". In annotation files
    visibility 0 / 1 / 2 becomes confidence 0 / 0.5 / 1 (unlabelled / hidden / visible); in results (they have a
    `score`) the third number is the confidence itself, limited to [0, 1].
    Errors: as `keypoints_from_file`. Format: cocodataset.org, "Data format" and "Results format".
    """
    content = read_json(path, KEYPOINTS)
    if not _is_coco(content):
        raise ValueError(
            f"{path}: not COCO keypoints; expected a list of results with image_id and keypoints, or an object "
            "with images and annotations"
        )
    return _coco(content, path, image)


def read_array(source: str | Path | np.ndarray | Sequence[Any], set: str | None = None) -> Keypoints:
    """Keypoints from numbers: an array, or a `.npy`, `.npz` or `.json` file of one.

    Shape (K, 2), (K, 3), (N, K, 2) or (N, K, 3): x, y in pixels and, where there is a third, the confidence
    (1 otherwise). Of an `.npz` the entry `keypoints`, or the only one, is read.
    set: name of the keypoint set; by default the detectors' set with K points.
    Points with coordinates that are not finite get confidence 0.
    Errors: as `keypoints_from_file`; a count that is not the set's names the set and both counts.
    """
    if not isinstance(source, (str, Path)):
        return _from_array(source, set, "keypoints")
    path = Path(source)
    if path.suffix.lower() not in (".npy", ".npz"):
        return _from_array(read_json(path, KEYPOINTS), set, str(path))
    arrays = read_arrays(check_path(path, KEYPOINTS), "keypoints")
    return _from_array(arrays["keypoints"], set, str(path))


def observation_from_keypoints(
    keypoints: Keypoints,
    photo: Photo | None = None,
    camera: Camera | None = None,
    focal: float | None = None,
    world: Keypoints3D | None = None,
) -> Observation:
    """An Observation of keypoints that some other detector found.

    photo or camera must be given: pixels mean nothing without the size of the photo. The box is the extent of
    the points with confidence > 0 (zeros for a person without any), the score their mean confidence. People
    keep their order, and a person of whom nothing was seen keeps the row.

    Errors: ValueError when neither photo nor camera is given, when camera and focal contradict, or when no point
    of anybody lies in or near the photo (coordinates from 0 to 1, points of another photo).
    """
    if photo is not None:
        one = photo_camera(photo, camera, focal)
    elif camera is None:
        raise ValueError("keypoints came without a photo and without a camera; expected one of them")
    elif focal is not None:
        raise ValueError(f"camera and focal={focal:g} were both given; expected one of them")
    else:
        one = camera
    if len(one) not in (1, len(keypoints)):
        raise ValueError(
            f"camera: {len(one)} rows for {len(keypoints)} people; expected 1 or {len(keypoints)}"
        )
    seen = keypoints.confidence > 0
    _check_pixels(keypoints, one)
    return Observation(
        camera=one.expand(len(keypoints)) if len(one) == 1 else one,
        keypoints=keypoints,
        world=world,
        box=keypoints.box(),
        score=keypoints.confidence.sum(1) / seen.sum(1).clamp_min(1),
        image=None if photo is None else photo.pixels,
    )


def _check_pixels(keypoints: Keypoints, camera: Camera) -> None:
    """Refuse points that cannot be pixels of this photo; people may well reach out of it, but not all of everybody."""
    xy = keypoints.xy[keypoints.confidence > 0]
    if len(xy) == 0:
        return
    size = xy.new_tensor([camera.width, camera.height])
    low, high = xy.amin(0), xy.amax(0)
    found = f"points from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g})"
    photo = f"a photo of {camera.width} x {camera.height}"
    if len(xy) > 2 and bool((low >= 0).all()) and bool((high <= 1.5).all()) and float(size.max()) > 16:
        raise ValueError(
            f"keypoints: {found} for {photo}: expected pixels, not fractions (multiply by the size)"
        )
    if not bool(((xy > -size) & (xy < 2 * size)).all(1).any()):
        raise ValueError(f"keypoints: {found}, none in or near {photo}: are they of another photo?")


def _triplets(person: Any, key: str, count: int, where: str) -> np.ndarray:
    """A flat list x, y, c, x, y, c ... of `count` points as (count, 3)."""
    if not isinstance(person, dict) or key not in person:
        raise ValueError(f"{where}: expected an object with {key}")
    numbers = as_numbers(person[key], f"{where}: {key}")
    if numbers.shape != (3 * count,):
        raise ValueError(
            f"{where}: {key} of shape {numbers.shape}; expected {count} points x 3 = {3 * count} numbers"
        )
    return numbers.reshape(count, 3)


def _openpose(content: Any, path: str | Path) -> Keypoints:
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list):
        raise ValueError(f"{path}: not OpenPose JSON; expected an object with a list 'people'")
    check_limit(len(people), path)
    points = get_set("openpose25")
    rows = []
    for i, person in enumerate(people):
        where = f"{path}: OpenPose person {i}"
        flat = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
        if isinstance(flat, list) and len(flat) in (45, 54):
            raise ValueError(
                f"{where}: {len(flat) // 3} points (the COCO or MPI model); expected set 'openpose25' with 25: run "
                "OpenPose with --model_pose BODY_25"
            )
        rows.append(_triplets(person, "pose_keypoints_2d", len(points), where))
    return _keypoints(points, np.array(rows).reshape(len(rows), len(points), 3))


def _is_coco(content: Any) -> bool:
    if isinstance(content, dict):
        return "annotations" in content
    # An empty list is the result of a detector that found nobody.
    return isinstance(content, list) and all(isinstance(entry, dict) for entry in content)


def _coco(content: Any, path: str | Path, image: str | int | None) -> Keypoints:
    is_results = isinstance(content, list)
    annotations = content if is_results else content["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise ValueError(f"{path}: COCO annotations are not a list of objects")
    chosen = of_photo(content, annotations, path, image)
    chosen = [a for a in chosen if not a.get("iscrowd") and "keypoints" in a]
    check_limit(len(chosen), path)
    points = get_set("coco23" if any("foot_kpts" in a for a in chosen) else "coco17")
    people = np.zeros((len(chosen), len(points), 3))
    for i, annotation in enumerate(chosen):
        where = f"{path}: COCO person {i}"
        people[i, :17] = _triplets(annotation, "keypoints", 17, where)
        if "foot_kpts" in annotation:
            people[i, 17:] = _triplets(annotation, "foot_kpts", 6, where)
        if "score" not in annotation:
            people[i, :, 2] /= 2  # visibility 0, 1, 2
    return _keypoints(points, people)


def _from_array(source: Any, set: str | None, where: str) -> Keypoints:
    numbers = as_numbers(source, where)
    shape = numbers.shape
    if numbers.ndim == 2:
        numbers = numbers[None]
    if numbers.ndim != 3 or numbers.shape[2] not in (2, 3):
        raise ValueError(f"{where}: shape {shape}; expected (K, 2), (K, 3), (N, K, 2) or (N, K, 3)")
    check_limit(len(numbers), where)
    count = numbers.shape[1]
    name = set or _SETS_BY_COUNT.get(count)
    if name is None:
        raise ValueError(
            f"{where}: {count} keypoints, which belong to no set for certain; expected set= with its name, or "
            f"one of the counts {sorted(_SETS_BY_COUNT)}"
        )
    points = get_set(name)
    if count != len(points):
        raise ValueError(f"{where}: {count} keypoints; expected {len(points)} of the set {name!r}")
    if numbers.shape[2] == 2:
        numbers = np.concatenate([numbers, np.ones((*numbers.shape[:2], 1))], 2)
    return _keypoints(points, numbers)


def _keypoints(points: KeypointSet, people: np.ndarray) -> Keypoints:
    """(N, K, 3) x, y, confidence as Keypoints; what is not finite was not seen."""
    people = np.where(np.isfinite(people).all(2, keepdims=True), people, 0.0)
    if people.size and float(np.abs(people).max()) > 1e6:
        people = np.where((np.abs(people) > 1e6).any(2, keepdims=True), 0.0, people)
    confidence = np.clip(people[..., 2], 0, 1)
    xy = np.where(confidence[..., None] > 0, people[..., :2], 0.0)
    dtype = torch.get_default_dtype()
    return Keypoints(points, torch.tensor(xy, dtype=dtype), torch.tensor(confidence, dtype=dtype))

"""Part maps, normals and masks that other programs made of a photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.maps import PART_CHANNELS, NormalMap, PartMap
from fitkit.observe import part_labels
from fitkit.observe._map_files import (
    MAP_SIDE,
    Numbers,
    Source,
    average,
    check_count,
    confidence_among,
    cover,
    read_numbers,
    resize,
    tensor,
    thin,
)
from fitkit.observe.part_labels import Vocabulary

VOID = 255
"""The label that most programs write where nothing is known."""

_UNIT = 0.25  # a normal may be so much longer or shorter than 1: 8 bits, and blending at the edge
_NOT_UNIT = 0.05  # share of pixels that may be off by more; they count as edge
_AXES = {"camera": (1.0, 1.0, 1.0), "opengl": (1.0, -1.0, -1.0)}


def part_map_from_file(
    source: Source,
    vocabulary: str | Vocabulary | Mapping[str, object] | Mapping[int, object],
    photo_size: tuple[int, int] | None = None,
    instances: Source | None = None,
    boxes: np.ndarray | Tensor | None = None,
    *,
    void: Sequence[int] | None = None,
    allow_empty: bool = False,
    side: int = MAP_SIDE,
) -> PartMap:
    """Label maps of a human parsing program as a PartMap of one row per person.

    Where a person's map says background and another person is seen, nothing is known of the first (confidence 0):
    they may stand behind.

    Args:
        source: a picture of label numbers (PNG, grey or palette, 8 or 16 bits), a `.npy` or `.npz` file (entry
            "labels") or an array: `(h, w)` one map, `(N, h, w)` one per person.
        vocabulary: what the numbers mean, as in `fitkit.observe.part_labels.vocabulary`.
        photo_size: (width, height) of the photo; a map of all of it may have any resolution.
        instances: for one map of several people, whose each pixel is: 0 nobody, other numbers a person, in the same
            form and size (CIHP's `Human_ids`). Rows in ascending order of these numbers. A pixel whose label and
            person contradict each other (a person's background, nobody's face) says nothing.
        boxes: `(N, 4)` x, y, w, h in pixels of the photo, if each map covers a box and not all of the photo.
        void: numbers that say nothing, among labels and instances; by default 255, unless it is a label.
        allow_empty: accept people of whom no pixel is seen.
        side: longer side of the result in pixels; larger maps are thinned.

    Raises:
        FileNotFoundError, IsADirectoryError: no file.
        ValueError: a damaged file; a colour picture, a lossy one, or numbers that are no integers; labels that the
            vocabulary does not have; sizes that do not go together; a person without any pixel.
    """
    words = part_labels.vocabulary(vocabulary)
    read = read_numbers(source, "part labels", "labels")
    labels = _label_maps(read)
    void = ((VOID,) if len(words) <= VOID else ()) if void is None else void
    table = torch.cat([words.table, torch.zeros(1, PART_CHANNELS, dtype=torch.bool)])
    nothing = len(words)
    labels = _known_labels(labels, words, void, read.name)
    box = cover(labels.shape, photo_size, boxes, read.name)
    is_part, is_background = table[:, 1:].any(1).numpy(), table[:, 0].numpy()
    if instances is None:
        check_seen(is_part[labels], None, read.name, allow_empty)
        labels = thin(labels, side)
        check_count(len(labels), labels.shape[1], labels.shape[2], read.name)
    else:
        owner, numbers = owners(instances, is_part[labels], read.name, void, allow_empty)
        labels, owner = thin(labels, side), thin(owner, side)
        check_count(len(numbers), labels.shape[1], labels.shape[2], read.name)
        own = owner == numbers[:, None, None]
        told = np.where(own, ~is_background[labels], (owner == 0) & is_background[labels])
        labels = np.where(told, labels, nothing)
        box = np.tile(box, (len(numbers), 1))
    sure = confidence_among(is_part[labels], box)
    return PartMap.from_labels(torch.from_numpy(labels), tensor(box), tensor(sure), table)


def part_map_from_probabilities(
    source: Source,
    photo_size: tuple[int, int] | None = None,
    boxes: np.ndarray | Tensor | None = None,
    visibility: Source | None = None,
    *,
    allow_empty: bool = False,
    side: int = MAP_SIDE,
) -> PartMap:
    """Probabilities of DensePose's 14 parts as a PartMap of one row per person.

    Args:
        source: `(N, 15, h, w)` or `(15, h, w)`, in [0, 1]: the parts in the order of `fitkit.maps.PART_NAMES`, then
            visibility; or 14 parts and `visibility`. An array, or a `.npy` or `.npz` file (entry "parts").
        photo_size: (width, height) of the photo.
        boxes: `(N, 4)` x, y, w, h, if each map covers a box.
        visibility: `(N, h, w)` or `(h, w)` in [0, 1], of any part at all (entry "visibility").
        allow_empty: accept people who are nowhere visible with 0.5 or more.
        side: longer side of the result in pixels; larger maps are averaged.

    Raises:
        FileNotFoundError, IsADirectoryError: no file.
        ValueError: a damaged file; NaN or values outside of [0, 1]; other shapes; channels that sum to 1, which
            have a background among them; sizes that do not go together; a person without any pixel.
    """
    read = read_numbers(source, "part probabilities", "parts")
    parts = fractions(read)
    parts = parts[None] if parts.ndim == 3 else parts
    wanted = PART_CHANNELS - (visibility is not None)
    if parts.ndim != 4 or parts.shape[1] != wanted:
        raise ValueError(
            f"{read.name}: shape {read.values.shape}; expected (N, {wanted}, h, w)"
            + (": 14 parts, then visibility (or give visibility=)" if visibility is None else "")
        )
    if visibility is not None:
        of_any = read_numbers(visibility, "visibility", "visibility")
        plane = fractions(of_any).reshape(-1, *of_any.values.shape[-2:])
        if plane.shape != (len(parts), *parts.shape[2:]):
            raise ValueError(
                f"{of_any.name}: shape {of_any.values.shape}; expected {(len(parts), *parts.shape[2:])}, as "
                f"{read.name}"
            )
        parts = np.concatenate([parts, plane[:, None]], 1)
    elif float(np.abs(parts.sum(1) - 1).max()) < 1e-2:
        raise ValueError(
            f"{read.name}: the channels sum to 1 at every pixel, so one of them is background; expected 14 parts, "
            "and visibility = 1 - background"
        )
    box = cover(parts.shape, photo_size, boxes, read.name)
    check_seen(parts[:, -1] >= 0.5, None, read.name, allow_empty)
    parts = average(parts, side)
    check_count(len(parts), parts.shape[2], parts.shape[3], read.name)
    values = tensor(parts)
    sure = tensor(confidence_among(parts[:, -1], box))
    return PartMap(values, tensor(box), sure, torch.zeros_like(values))


def normals_from_file(
    source: Source,
    photo_size: tuple[int, int] | None = None,
    boxes: np.ndarray | Tensor | None = None,
    *,
    axes: str = "camera",
    mask: Float[Tensor, "N H W"] | None = None,
    side: int = MAP_SIDE,
) -> NormalMap:
    """Surface normals of another program as a NormalMap of one row per person.

    Args:
        source: `(h, w, 3)` or `(N, h, w, 3)` floats, or 8- or 16-bit numbers that stand for -1 to 1 as in a normal
            picture (0 to 255 is -1 to 1). A picture, `.npy`, `.npz` (entry "normals") or an array.
        photo_size: (width, height) of the photo.
        boxes: `(N, 4)` x, y, w, h, if each map covers a box.
        axes: "camera" (x right, y down, z forward, away from the viewer) or "opengl" (x right, y up, z towards the
            viewer: the usual blueish normal picture).
        mask: `(N, H, W)` in [0, 1] of each person over the whole photo, for normals of the whole scene: one map
            then becomes N rows.
        side: longer side of the result in pixels; larger maps are thinned.

    Vectors are made unit length. Confidence is 0 where they are not finite or zero (in pictures: black, white and
    middle grey as well) and where the mask is.

    Raises:
        FileNotFoundError, IsADirectoryError: no file.
        ValueError: a damaged file; other shapes; vectors that are not near unit length (more than 5 % of them off
            by more than 0.25); more than half of them looking away from the camera, which no visible surface does;
            sizes that do not go together; no normal at all.
    """
    if axes not in _AXES:
        raise ValueError(f"axes={axes!r}; expected one of {', '.join(_AXES)}")
    read = read_numbers(source, "normals", "normals")
    values = read.values[None] if read.values.ndim == 3 else read.values
    if values.ndim != 4 or values.shape[-1] != 3:
        raise ValueError(f"{read.name}: shape {read.values.shape}; expected (h, w, 3) or (N, h, w, 3)")
    values = np.moveaxis(values, -1, 1)
    box = cover(values.shape, photo_size, boxes, read.name)
    vectors, there = _unit_vectors(thin(values, side), axes, read.name)
    confidence = there.astype(np.float32)
    if mask is not None:
        if boxes is not None or mask.ndim != 3 or len(values) not in (1, len(mask)):
            raise ValueError(
                f"{read.name}: mask of shape {tuple(mask.shape)} for {len(values)} maps; expected (N, H, W) of the "
                "whole photo, for one map or N, without boxes"
            )
        cover(tuple(mask.shape), photo_size, None, "mask")
        weight = resize(mask.detach().cpu().numpy(), *vectors.shape[2:])
        confidence = confidence * weight
        vectors = np.broadcast_to(vectors, (len(weight), *vectors.shape[1:]))
        box = np.broadcast_to(box, (len(weight), 4))
    return NormalMap(tensor(vectors), tensor(box), tensor(confidence))


def mask_from_file(
    source: Source,
    photo_size: tuple[int, int],
    *,
    allow_empty: bool = False,
    side: int = MAP_SIDE,
) -> Float[Tensor, "N h w"]:
    """Masks of people from any segmenter, over the whole photo: `Observation.mask`.

    Args:
        source: `(h, w)` or `(N, h, w)`: booleans, 0 and 1, 0 to 255 (8 bits), or floats in [0, 1]. A grey picture,
            `.npy`, `.npz` (entry "mask") or an array.
        photo_size: (width, height) of the photo.
        allow_empty: accept people without any pixel above 0.5.
        side: longer side of the result in pixels; larger masks are averaged.

    Raises:
        FileNotFoundError, IsADirectoryError: no file.
        ValueError: a damaged file; other shapes, values or proportions; an empty mask.
    """
    read = read_numbers(source, "a mask", "mask")
    values = _grey(read)
    if values.ndim not in (2, 3):
        raise ValueError(f"{read.name}: shape {values.shape}; expected (h, w) or (N, h, w)")
    if values.dtype.kind in "ui" and int(values.max()) > 1:
        low, high = int(values.min()), int(values.max())
        if values.dtype != np.uint8 or high < 200:
            raise ValueError(
                f"{read.name}: {values.dtype} from {low} to {high}; expected 0 and 1, or 0 to 255 in uint8; "
                "label numbers are part_map_from_file's"
            )
        values = values.astype(np.float32) / 255
    masks = fractions(Numbers(values, read.name)).reshape(-1, *values.shape[-2:])
    cover(masks.shape, photo_size, None, read.name)
    check_seen(masks > 0.5, None, read.name, allow_empty)
    return tensor(average(masks, side))


def _grey(read: Numbers) -> np.ndarray:
    """Numbers of one channel; a grey picture that was saved as RGB becomes that."""
    values = read.values
    if values.ndim != 3 or values.shape[2] not in (2, 3, 4):
        return values
    if values.shape[2] > 2 and (values[..., :3] == values[..., :1]).all():
        return values[..., 0]
    raise ValueError(
        f"{read.name}: a colour picture {values.shape}; expected one number per pixel: colours are how a program "
        "shows its labels, save the numbers themselves (PNG in grey or with a palette, .npy)"
    )


def _label_maps(read: Numbers) -> np.ndarray:
    """`(N, h, w)` label numbers as int64."""
    values = _grey(read)
    if read.lossy:
        raise ValueError(f"{read.name}: a lossy picture, in which label numbers do not survive; expected PNG")
    if values.dtype.kind not in "bui":
        raise ValueError(
            f"{read.name}: dtype {values.dtype}; expected whole label numbers (for probabilities: "
            "part_map_from_probabilities)"
        )
    if values.ndim not in (2, 3):
        raise ValueError(f"{read.name}: shape {values.shape}; expected (h, w) or (N, h, w)")
    return values.astype(np.int64).reshape(-1, *values.shape[-2:])


def _known_labels(labels: np.ndarray, words: Vocabulary, void: Sequence[int], name: str) -> np.ndarray:
    """Labels with those that say nothing as number `len(words)`; others that are not in the vocabulary are refused."""
    empty = np.isin(labels, list(void))
    strange = ((labels < 0) | (labels >= len(words))) & ~empty
    if strange.any():
        numbers, counts = np.unique(labels[strange], return_counts=True)
        some = ", ".join(f"{n} ({c} pixels)" for n, c in zip(numbers[:8], counts[:8], strict=True))
        raise ValueError(
            f"{name}: labels {some}{' ...' if len(numbers) > 8 else ''}, which the vocabulary {words.name!r} does not "
            f"have; expected 0 to {len(words) - 1}, or void={tuple(void)}"
        )
    return np.where(empty, len(words), labels)


def owners(
    instances: Source, seen: np.ndarray, name: str, void: Sequence[int], allow_empty: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Whose each pixel is, `(1, h, w)`, -1 where that is not known; and the numbers of all people.

    Args:
        instances: one map of numbers.
        seen: `(1, h, w)` where the map that it goes with sees anybody, and `name` of that.
        void: numbers that say nothing.
        allow_empty: accept people of whom nothing is seen.
    """
    told = read_numbers(instances, "instances", "instances")
    owner = _label_maps(told)
    if owner.shape != seen.shape or len(seen) != 1:
        raise ValueError(
            f"{told.name}: instances of {_sizes(owner.shape)} for {name} of {_sizes(seen.shape)}; expected one map "
            "each, of the same size"
        )
    owner = np.where(np.isin(owner, list(void)), -1, owner)
    numbers = np.unique(owner[owner > 0])
    if len(numbers) == 0:
        raise ValueError(f"{told.name}: no instance; expected a number above 0 for each person")
    some = np.isin(numbers, np.unique(owner[seen]))
    check_seen(some[:, None, None], [f"{i} (instance {n})" for i, n in enumerate(numbers)], name, allow_empty)
    return owner, numbers


def _sizes(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} map(s) of {shape[2]} x {shape[1]}"


def check_seen(seen: np.ndarray, names: Sequence[str] | None, name: str, allow_empty: bool) -> None:
    """Refuse people `(N, h, w)` of whom nothing is seen, called by their names or numbers."""
    empty = np.flatnonzero(~seen.any((1, 2))).tolist()
    if empty and not allow_empty:
        people = ", ".join(str(i) if names is None else names[i] for i in empty)
        raise ValueError(
            f"{name}: nothing is seen of person {people}: all background; leave such people out, or allow_empty=True"
        )


def fractions(read: Numbers) -> np.ndarray:
    """Numbers in [0, 1] as float32."""
    values = read.values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{read.name}: {int((~np.isfinite(values)).sum())} values are not finite")
    low, high = float(values.min()), float(values.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(f"{read.name}: values from {low:g} to {high:g}; expected 0 to 1")
    return np.clip(values, 0, 1)


def _unit_vectors(values: np.ndarray, axes: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Normals `(N, 3, h, w)` in camera axes, and where there are any `(N, h, w)`."""
    if values.dtype.kind in "ui":
        if values.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"{name}: dtype {values.dtype}; expected floats, uint8 or uint16")
        top = np.iinfo(values.dtype).max
        blank = ((values == 0) | (values == top)).all(1)
        blank |= (np.abs(values.astype(np.int64) - top // 2) <= top // 100).all(1)
        vectors = values.astype(np.float32) * (2 / top) - 1
    else:
        vectors = values.astype(np.float64)
        blank = np.zeros(vectors[:, 0].shape, bool)
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.linalg.norm(vectors, axis=1)
    there = np.isfinite(length) & (length > 1e-3) & ~blank
    if not there.any():
        raise ValueError(f"{name}: no normal at all; expected some vectors of length 1")
    off = there & ~(np.abs(length - 1) <= _UNIT)
    if off.sum() > _NOT_UNIT * there.sum():
        raise ValueError(
            f"{name}: {off.sum() / there.sum():.0%} of the vectors are not of unit length (median "
            f"{float(np.median(length[there])):.3g}); expected normals of length 1"
        )
    there &= ~off
    unit = np.where(there[:, None], vectors / np.where(there, length, 1)[:, None], 0)
    unit = unit * np.array(_AXES[axes], np.float32)[:, None, None]
    away = float((unit[:, 2][there] > 0).mean())
    if away > 0.5:
        other = next(word for word in _AXES if word != axes)
        raise ValueError(
            f"{name}: {away:.0%} of the normals look away from the camera with axes={axes!r}; expected surfaces that "
            f"face it: axes={other!r}?"
        )
    return unit, there

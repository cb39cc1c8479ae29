"""What all readers of maps share: numbers from a picture or array file, the rectangle they cover, their size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fitkit.observe._reading import check_path, read_arrays
from fitkit.observe.image import MAX_PIXELS
from fitkit.observe.people import MASK_SIDE, MAX_PEOPLE

Source = str | Path | np.ndarray | Tensor
"""A picture, a `.npy` or `.npz` file, or the numbers themselves."""

MAP_SIDE = MASK_SIDE
"""Longer side of the maps that readers give, pixels; larger ones are thinned."""

_SAME_ASPECT = 0.02
_MOST_PIXELS = 1 << 26  # of all people: 8 GB as part maps
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF")


@dataclass(frozen=True)
class Numbers:
    """Numbers of a file, as they were stored.

    Attributes:
        values: the array; of a picture (h, w) or (h, w, channels).
        name: begins every message.
        lossy: whether it comes from a picture format that changes values.
    """

    values: np.ndarray
    name: str
    lossy: bool = False


def read_numbers(source: Source, what: str, entry: str) -> Numbers:
    """Numbers from a picture (palettes give their indices), a `.npy` or `.npz` file, an array or a tensor.

    Args:
        source: a path or the numbers.
        what: names them in messages, "part labels".
        entry: of an `.npz`; a file of one entry may call it what it likes.

    Raises:
        FileNotFoundError, IsADirectoryError: the path leads nowhere, or to a folder.
        ValueError: damaged or cut off; not numbers; a pickle.
    """
    if isinstance(source, Tensor):
        return Numbers(_checked(source.detach().cpu().numpy(), what), what)
    if isinstance(source, np.ndarray):
        return Numbers(_checked(source, what), what)
    path, name = check_path(source, what), str(source)
    if path.suffix.lower() in (".npy", ".npz"):
        return Numbers(_checked(read_arrays(path, entry)[entry], name), name)
    if path.suffix.lower() in _PICKLES:
        raise ValueError(
            f"{name}: a pickle, which can run any code; expected {what} as a picture, .npy or .npz (np.savez)"
        )
    return _picture(path, what)


def _picture(path: Path, what: str) -> Numbers:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, expected at most {MAX_PIXELS}")
            lossy = image.format in _LOSSY
            return Numbers(_checked(np.array(image), str(path)), str(path), lossy)
    except Exception as error:  # broken headers make Pillow's plugins raise almost anything
        raise ValueError(
            f"{path}: not a picture of {what} that Pillow can read, damaged or cut off "
            f"[{type(error).__name__}: {error}]"
        ) from error


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name}: dtype {array.dtype}; expected numbers")
    if array.size == 0:
        raise ValueError(f"{name}: shape {array.shape} holds nothing; expected at least one pixel")
    return array


def cover(
    shape: tuple[int, ...],
    photo_size: tuple[int, int] | None,
    boxes: np.ndarray | Tensor | None,
    name: str,
) -> np.ndarray:
    """The rectangles `(N, 4)` x, y, w, h of the photo that maps `(N, ..., h, w)` cover: given boxes or all of it.

    Raises:
        ValueError: neither is given; boxes that are no boxes, of another number of people, or outside of the photo;
            a map whose sides are not in the proportion of what it covers (2 % and a pixel of rounding aside).
    """
    people, (height, width) = shape[0], shape[-2:]
    check_count(people, 1, 1, name)
    if boxes is None:
        if photo_size is None:
            raise ValueError(f"{name}: came without photo_size and without boxes; expected one of them")
        whole = _photo_size(photo_size)
        _same_aspect((width, height), (float(whole[0]), float(whole[1])), name, "the photo")
        return np.tile(np.array([0.0, 0.0, *whole]), (people, 1))
    rows = check_boxes(boxes, name)
    if len(rows) != people:
        raise ValueError(f"{name}: {people} maps for {len(rows)} boxes; expected one map per box")
    for i, box in enumerate(rows):
        if photo_size is not None:
            whole = _photo_size(photo_size)
            if not ((box[:2] < whole).all() and (box[:2] + box[2:] > 0).all()):
                raise ValueError(
                    f"{name}: boxes[{i}] = {box.tolist()} lies outside of the photo of {whole[0]} x {whole[1]}"
                )
        _same_aspect((width, height), (float(box[2]), float(box[3])), name, f"boxes[{i}]")
    return rows


def check_count(people: int, height: int, width: int, name: str) -> None:
    """Refuse more people than memory has room for."""
    if people > MAX_PEOPLE or people * height * width > _MOST_PIXELS:
        raise ValueError(
            f"{name}: {people} maps of {width} x {height}; expected at most {MAX_PEOPLE} maps and "
            f"{_MOST_PIXELS / 1e6:.0f} million pixels together"
        )


def check_boxes(boxes: np.ndarray | Tensor, name: str) -> np.ndarray:
    """Boxes x, y, w, h as `(N, 4)` float64; one box may come as `(4,)`."""
    plain = boxes.detach().cpu().numpy() if isinstance(boxes, Tensor) else np.asarray(boxes)
    if plain.dtype.kind not in "iuf" or plain.shape[-1:] != (4,) or plain.ndim > 2:
        raise ValueError(
            f"{name}: boxes of shape {plain.shape} and dtype {plain.dtype}; expected (N, 4) numbers x, y, w, h"
        )
    rows = plain.reshape(-1, 4).astype(np.float64)
    for i, box in enumerate(rows):
        if not (np.isfinite(box).all() and (box[2:] > 0).all()):
            raise ValueError(f"{name}: boxes[{i}] = {box.tolist()}; expected finite x, y and w, h above 0")
    return rows


def _photo_size(photo_size: tuple[int, int]) -> tuple[int, int]:
    size = tuple(photo_size)
    if len(size) != 2 or not all(isinstance(n, int | np.integer) and n > 0 for n in size):
        raise ValueError(f"photo_size: {photo_size!r}; expected (width, height) in pixels")
    return int(size[0]), int(size[1])


def _same_aspect(found: tuple[int, int], whole: tuple[float, float], name: str, what: str) -> None:
    def fits(width: int, height: int) -> bool:
        across, down = width / whole[0], height / whole[1]
        # Both sides may have been rounded to whole pixels, which is much on a small map.
        return abs(across - down) <= _SAME_ASPECT * max(across, down) + 1 / whole[0] + 1 / whole[1]

    if not fits(*found):
        turned = "; it would fit with width and height exchanged" if fits(found[1], found[0]) else ""
        raise ValueError(
            f"{name}: {found[0]} x {found[1]} pixels for {what} of {whole[0]:g} x {whole[1]:g}; expected the same "
            f"proportions, at any resolution{turned}"
        )


def thin(values: np.ndarray, side: int) -> np.ndarray:
    """Maps `(..., h, w)` whose longer side is at most `side`: of larger ones the pixel nearest to each new centre."""
    size = _thinned(values, side)
    return values if size is None else resize(values, *size)


def _thinned(values: np.ndarray, side: int) -> tuple[int, int] | None:
    """Height and width of maps `(..., h, w)` whose longer side is at most `side`; None where it is."""
    if side < 8:
        raise ValueError(f"side is {side}, expected at least 8 pixels")
    height, width = values.shape[-2:]
    if max(height, width) <= side:
        return None
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps `(..., h, w)` at another resolution, nearest pixel: labels and charts have no averages."""
    old_height, old_width = values.shape[-2:]
    rows = ((np.arange(height) + 0.5) * old_height / height).astype(int)
    columns = ((np.arange(width) + 0.5) * old_width / width).astype(int)
    return values[..., rows[:, None], columns]


def average(values: np.ndarray, side: int) -> np.ndarray:
    """As `thin`, by averages: of masks and probabilities."""
    size = _thinned(values, side)
    if size is None:
        return values
    flat = torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(1, -1, *values.shape[-2:])
    return torch.nn.functional.adaptive_avg_pool2d(flat, size).numpy().reshape(*values.shape[:-2], *size)


def confidence_among(visible: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How sure `(N, h, w)` one can be of what each person's map says, others being in the way.

    Where another person is seen, a map that says "not me" means hidden, not absent: there, and only there, nothing
    is known.

    Args:
        visible: `(N, h, w)` in [0, 1] of each person.
        boxes: `(N, 4)` x, y, w, h that the maps cover.
    """
    visible = visible.astype(np.float32)
    count, height, width = visible.shape
    confidence = np.ones(visible.shape, np.float32)
    for i in range(count):
        x = boxes[i, 0] + (np.arange(width) + 0.5) * boxes[i, 2] / width
        y = boxes[i, 1] + (np.arange(height) + 0.5) * boxes[i, 3] / height
        for j in range(count):
            column = np.floor((x - boxes[j, 0]) * width / boxes[j, 2]).astype(int)
            row = np.floor((y - boxes[j, 1]) * height / boxes[j, 3]).astype(int)
            across, down = (0 <= column) & (column < width), (0 <= row) & (row < height)
            if i == j or not (across.any() and down.any()):
                continue
            part = np.ix_(down, across)
            other = visible[j][np.ix_(row[down], column[across])]
            hidden = other * (1 - visible[i][part])
            confidence[i][part] = np.minimum(confidence[i][part], 1 - hidden)
    return confidence


def tensor(values: np.ndarray) -> Tensor:
    """Numbers as a tensor of the default dtype."""
    return torch.tensor(values, dtype=torch.get_default_dtype())

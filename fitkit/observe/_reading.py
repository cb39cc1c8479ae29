"""What all readers of files share: paths, JSON, arrays, numbers, and which photo of a COCO file is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fitkit.observe.people import MAX_PEOPLE


def check_path(source: str | Path, what: str) -> Path:
    """The path of a file that is there."""
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file; expected {what}")
    if path.is_dir():
        raise IsADirectoryError(f"{source}: is a folder; expected a file of {what}")
    return path


def read_arrays(path: Path, entry: str) -> dict[str, np.ndarray]:
    """All arrays of a `.npy` (as `entry`) or `.npz` file; the only one of several names is also called `entry`."""
    try:
        if path.suffix.lower() == ".npy":
            # Mapped first: a header that claims more than the file holds fails before memory is set aside for it.
            return {entry: np.array(np.load(path, allow_pickle=False, mmap_mode="r"))}
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a damaged archive fails in zipfile, zlib, ast or numpy
        raise ValueError(f"{path}: not a readable array file, damaged or cut off [{error}]") from error
    if entry not in arrays:
        if len(arrays) != 1:
            raise ValueError(f"{path}: holds {list(arrays)}; expected an entry {entry!r}, or one entry")
        arrays[entry] = next(iter(arrays.values()))
    return arrays


def read_json(path: str | Path, what: str) -> Any:
    """The content of a JSON file of `what`."""
    try:
        return json.loads(check_path(path, what).read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON, damaged or cut off [{error}]") from error


def check_limit(count: int, source: str | Path) -> None:
    """Refuse more people than anybody means."""
    if count > MAX_PEOPLE:
        raise ValueError(f"{source}: {count} people; expected at most {MAX_PEOPLE}")


def as_numbers(value: Any, where: str) -> np.ndarray:
    """Numbers of a file as float64; null is NaN. Everything else, text and booleans included, is refused."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu":
            raise ValueError(f"{where}: dtype {value.dtype}; expected numbers")
        return value.astype(np.float64)
    try:
        array = np.array(value)
        if array.dtype.kind == "O":  # null inside
            array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: not a regular list of numbers [{error}]") from error
    if array.size == 0:
        return array.astype(np.float64)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{where}: {type(value).__name__} of {array.dtype}; expected numbers")
    return array.astype(np.float64)


def of_photo(
    content: Any, people: list[dict[str, Any]], path: str | Path, image: str | int | None
) -> list[dict[str, Any]]:
    """Those of some annotations of a COCO file that are of one photo, given by id or file name.

    Raises:
        ValueError: several photos and none given, or none of that name.
    """
    # A list of results that is empty names no photo; an annotation file names its photos in any case.
    if image is None or (not people and isinstance(content, list)):
        ids = {str(person.get("image_id")) for person in people}
        if len(ids) > 1:
            raise ValueError(
                f"{path}: holds {len(ids)} photos; expected image= with the id or file name of one"
            )
        return people
    number = _image_id(content, path, image)
    return [person for person in people if str(person.get("image_id")) == number]


def _image_id(content: Any, path: str | Path, image: str | int) -> str:
    """The id, as text, of a photo given by id or file name."""
    if isinstance(content, dict):
        images = content.get("images")
        if not isinstance(images, list) or not all(isinstance(i, dict) for i in images):
            raise ValueError(f"{path}: COCO file without a list of images")
        for entry in images:
            name = str(entry.get("file_name", ""))
            if str(image) in (str(entry.get("id")), name, Path(name).name):
                return str(entry.get("id"))
        known = [str(entry.get("file_name", entry.get("id"))) for entry in images]
    else:
        known = sorted({str(a.get("image_id")) for a in content})
        stem = Path(str(image)).stem.lstrip("0") or "0"  # 000000000139.jpg is photo 139
        for one in known:
            if one in (str(image), stem):
                return one
    some = ", ".join(known[:5]) + (" ..." if len(known) > 5 else "")
    raise ValueError(f"{path}: no photo {image!r}; expected one of {len(known)}: {some}")

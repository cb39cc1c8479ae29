"""Results as JSON: arrays and tensors as lists, and nothing that a strict reader would refuse."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePath

import numpy as np
from torch import Tensor

from fitkit.files import atomic_write, output_folder

__all__ = ["atomic_write", "output_folder", "plain", "write_json"]


def plain(value: object) -> object:
    """The same content in nothing but dict, list, str, int, float, bool and None.

    NaN and infinities become None (JSON has no word for them); tensors and arrays become lists; an enum's member its
    value; a dataclass a dict of its fields; a path its text.

    Raises:
        TypeError: something that has no plain form; the message names its type.

    >>> plain({"energy": np.array([1.5, np.nan]), "file": Path("a.jpg")})
    {'energy': [1.5, None], 'file': 'a.jpg'}
    """
    if value is None or (isinstance(value, (bool, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in value]
    raise TypeError(
        f"cannot write {type(value).__name__} as JSON, expected numbers, text, arrays, lists or dicts"
    )


def write_json(path: str | Path, value: object) -> Path:
    """Write anything that `plain` understands as UTF-8 JSON, whole or not at all.

    Raises:
        OSError: the folder is missing or cannot be written to.
        TypeError: something that has no plain form.
    """
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    # A file name that is not valid UTF-8 reaches Python as lone surrogates.
    return atomic_write(path, (text + "\n").encode("utf-8", "backslashreplace"))

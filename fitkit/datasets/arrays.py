"""Arrays of an `.npz`, read without executing anything in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np


def read_arrays(
    path: str | Path, required: Iterable[str] = (), only: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` by name.

    Args:
        path: of the file.
        required: names that must be there.
        only: names to read where they are there, for files that hold other things too; None for all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an `.npz`, cut short, with Python objects in it, or without a required array; the message
            names the file.
    """
    try:
        # Opened here: numpy leaves a file open that is not an archive.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = list(archive.files)
            arrays = {name: archive[name] for name in found if only is None or name in only}
    except (FileNotFoundError, IsADirectoryError):
        raise
    except Exception as error:  # damage shows wherever zip, zlib or numpy meets it first
        raise ValueError(f"{path}: not an .npz of plain arrays, or cut short ({error})") from error
    missing = [name for name in required if name not in arrays]
    if missing:
        raise ValueError(f"{path}: {missing} missing, found {sorted(found)}")
    return arrays

"""Files that are written whole or not at all, and checkpoints that are read safely."""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch


def atomic_write(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> Path:
    """Write a file whole or not at all: a reader never meets half of it, and a failure leaves the old one.

    Args:
        path: of the file.
        content: its bytes, or a callable that writes them to an open binary file.

    Raises:
        OSError: the folder is missing or cannot be written to; the message names the path.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        # Opened like any new file, so that the user's umask decides who may read it.
        descriptor = os.open(
            temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666
        )
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def output_folder(path: str | Path) -> Path:
    """A folder to write to, made with its parents where it is missing.

    Raises:
        OSError: the path is a file, or the folder cannot be made or written to; the message names the path.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"output {path} is a file, expected a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(error.errno, f"cannot make the output folder {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"output folder {path} cannot be written to")
    return path


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a training wrote with `torch.save`; nothing in it is executed.

    Args:
        path: of the file.
        device: of the tensors.

    Raises:
        ValueError: damaged, or of something else.
    """
    import torch  # a file that is only written needs none of it

    try:
        state: object = torch.load(path, weights_only=True, map_location=device)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"checkpoint {path}: damaged, remove it to start anew ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"checkpoint {path}: damaged, remove it to start anew (of {type(state).__name__})")
    return state

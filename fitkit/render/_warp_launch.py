"""Starting Warp quietly, and sharing a launch between the threads that torch was given."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any

import torch
import warp as wp
from torch import Tensor


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Warp's banner; the user's own setting holds again afterwards."""
    # Releases before 1.19 have `quiet`; 30 is the level of warnings.
    name, least = ("log_level", 30) if hasattr(wp.config, "log_level") else ("quiet", True)
    before = getattr(wp.config, name)
    setattr(wp.config, name, max(before, least))
    try:
        yield
    finally:
        setattr(wp.config, name, before)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Without what compiled code writes to the error stream."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@cache
def _started() -> None:
    # Without a CUDA driver the native library says so on every start, which is no news to users of the CPU.
    with _quiet(), contextlib.nullcontext() if torch.cuda.is_available() else _without_stderr():
        wp.init()


@cache
def load(module: ModuleType, device: str) -> None:
    """Compile the kernels of a module for a device, or take them from Warp's cache on disk; once per process."""
    _started()
    with _quiet():
        wp.load_module(module, device=device)


class Launcher:
    """Runs kernels on the device of a tensor, in torch's own order of things.

    On CUDA a kernel is one launch on torch's current stream. On the CPU, where Warp itself uses one core, its
    pieces are shared between as many Python threads as torch has; pieces must not write to the same places.

    Args:
        module: that the kernels live in.
        device: of the tensors.
    """

    def __init__(self, module: ModuleType, device: torch.device) -> None:
        self.device = str(device)
        self.cuda = device.type == "cuda"
        self.threads = 1 if self.cuda else torch.get_num_threads()
        load(module, self.device)

    def __call__(self, kernel: Any, shape: tuple[int, ...], inputs: Sequence[Any]) -> None:
        """Launch once, over `shape`."""
        if 0 in shape:
            return
        stream = wp.stream_from_torch(torch.cuda.current_stream(self.device)) if self.cuda else None
        wp.launch(kernel, dim=shape, inputs=list(inputs), device=self.device, stream=stream)

    def each(self, kernel: Any, pieces: Sequence[tuple[tuple[int, ...], Sequence[Any]]]) -> None:
        """Launch several pieces `(shape, inputs)`, side by side where there are threads."""
        if self.threads == 1 or len(pieces) == 1:
            for shape, inputs in pieces:
                self(kernel, shape, inputs)
            return
        with ThreadPoolExecutor(min(self.threads, len(pieces))) as pool:
            for done in [pool.submit(self, kernel, shape, inputs) for shape, inputs in pieces]:
                done.result()


def structs(struct: Any, shape: tuple[int, ...], device: torch.device) -> tuple[Any, Tensor]:
    """An array of Warp structs in memory of torch's, and the tensor which owns that memory."""
    import ctypes

    size = ctypes.sizeof(struct.ctype)
    memory = torch.empty((*shape, size), dtype=torch.uint8, device=device)
    return wp.array(ptr=memory.data_ptr(), dtype=struct, shape=shape, device=str(device)), memory


def array(tensor: Tensor | None, dtype: Any = None) -> Any:
    """The same memory as a Warp array; None, or nothing in it, is an array that kernels take for absent."""
    if tensor is None or tensor.numel() == 0:
        return None
    return wp.from_torch(tensor.detach().contiguous(), dtype=dtype)

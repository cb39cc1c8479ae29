"""The back ends of the soft rasteriser, by name; none is imported before it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from fitkit.render.scene import Scene

# A back end turns a scene into silhouette (B, H, W) and attributes (B, H, W, C).
Render: TypeAlias = Callable[[Scene], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Backend:
    module: str  # has `render`
    package: str
    install: str
    devices: tuple[str, ...] = ("cpu", "cuda")


_BACKENDS = {
    "warp": _Backend("fitkit.render._warp_soft", "warp", "pip install warp-lang"),
    "torch": _Backend("fitkit.render._torch_soft", "torch", "pip install torch"),
    "pytorch3d": _Backend(
        "fitkit.render._pytorch3d_soft",
        "pytorch3d",
        'pip install --no-build-isolation "git+https://github.com/facebookresearch/pytorch3d.git"',
    ),
    "nvdiffrast": _Backend(
        "fitkit.render._nvdiffrast_soft",
        "nvdiffrast.torch",
        'pip install --no-build-isolation "git+https://github.com/NVlabs/nvdiffrast.git"',
        ("cuda",),
    ),
}


def backend_names() -> tuple[str, ...]:
    """Every back end there is, installed or not.

    >>> backend_names()
    ('warp', 'torch', 'pytorch3d', 'nvdiffrast')
    """
    return tuple(_BACKENDS)


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """The back ends that can be imported here and draw on this kind of device, the default first."""
    kind = torch.device(device).type
    return tuple(name for name in _BACKENDS if kind in _BACKENDS[name].devices and _problem(name) is None)


def get_backend(name: str | None, device: torch.device | str = "cpu") -> Render:
    """The function that draws.

    Args:
        name: one of `backend_names()`; None takes Warp where it is installed, and plain torch elsewhere.
        device: of the tensors.

    Raises:
        ValueError: no back end of this name, or it does not draw on this device.
        RuntimeError: its package is not installed, or does not load; the message says how it is installed.
    """
    kind = torch.device(device).type
    if name is None:
        name = "warp" if kind in _BACKENDS["warp"].devices and _problem("warp") is None else "torch"
    if name not in _BACKENDS:
        raise ValueError(f"no rasteriser back end {name!r}, expected one of {', '.join(_BACKENDS)}")
    backend = _BACKENDS[name]
    if kind not in backend.devices:
        raise ValueError(f"rasteriser back end {name} draws on {' or '.join(backend.devices)}, not on {kind}")
    problem = _problem(name)
    if problem is not None:
        raise RuntimeError(
            f"rasteriser back end {name}: {backend.package} does not load ({problem}); "
            f"install it with: {backend.install}"
        )
    render: Render = importlib.import_module(backend.module).render
    return render


@cache
def _problem(name: str) -> str | None:
    """Why a back end cannot be had, or None."""
    try:
        importlib.import_module(_BACKENDS[name].package)
        importlib.import_module(_BACKENDS[name].module)
    except Exception as error:  # compiled extensions fail in every way when torch has changed
        return f"{type(error).__name__}: {error}"
    return None

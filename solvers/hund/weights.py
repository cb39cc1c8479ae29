"""Files of HUND networks: `.safetensors` whose metadata say what the network is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fitkit.files import atomic_write
from fitkit.solvers.hund.network import HundNetwork, Settings

_KIND = "fitkit-hund"
_SHIPPED = "hund.safetensors"


def save_network(network: HundNetwork, path: str | Path) -> Path:
    """Write a network, whole or not at all.

    Raises:
        OSError: it cannot be written there.
    """
    tensors = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    metadata = {"kind": _KIND, "settings": json.dumps(asdict(network.settings))}
    return atomic_write(path, save(tensors, metadata))


def load_network(path: str | Path | None = None) -> tuple[HundNetwork, str]:
    """A network, ready to run, and its name: the file's, and the beginning of its SHA-256.

    Args:
        path: None for the one that ships. Read once and kept.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of such a network.
    """
    if path is None:
        return _read(Path(str(files("fitkit.solvers.hund").joinpath("data", _SHIPPED))), 0)
    file = Path(path)
    return _read(file, file.stat().st_mtime_ns)


@cache
@torch.inference_mode(False)
def _read(file: Path, changed: int) -> tuple[HundNetwork, str]:
    try:
        with safe_open(file, framework="pt") as archive:
            metadata = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 - not a dict
        if metadata.get("kind") != _KIND:
            raise ValueError(f"of kind {metadata.get('kind')!r}, expected {_KIND!r}")
        network = HundNetwork(Settings.read(json.loads(metadata["settings"])))
        network.load_state_dict(tensors)
        odd = sorted(name for name, values in tensors.items() if not bool(torch.isfinite(values).all()))
        if odd:
            raise ValueError(f"{odd} with values that are not finite")
    except (SafetensorError, AttributeError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{file}: not a HUND network of this version ({error})") from error
    # Of the numbers: the header of a file has no order.
    digest = hashlib.sha256(json.dumps(asdict(network.settings)).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    name = f"{file.stem} ({network.settings.body}, {digest.hexdigest()[:8]})"
    return network.requires_grad_(False).eval(), name

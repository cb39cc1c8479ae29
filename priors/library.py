"""Pose priors by name: those that ship, and those in files of one's own."""

from __future__ import annotations

import copy
import json
from functools import cache
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fitkit.files import atomic_write
from fitkit.priors.density import Density
from fitkit.priors.pool import PooledPrior
from fitkit.priors.pose import PosePrior

# Where each architecture lives; imported when weights of it are read.
KINDS = {
    "gaussian": ("fitkit.priors.density", "Gaussian"),
    "mixture": ("fitkit.priors.mixture", "GaussianMixture"),
    "joint-flow": ("fitkit.priors.flow", "JointFlow"),
    "prelu-flow": ("fitkit.priors.flow", "PReLUFlow"),
    "real-nvp": ("fitkit.priors.flow", "RealNVP"),
    "vae": ("fitkit.priors.vae", "PoseVAE"),
}


def shipped() -> list[str]:
    """Names of the pose priors that come with the package."""
    names = (entry.name for entry in files("fitkit.priors.data").iterdir())
    return sorted(
        name.removesuffix(".safetensors")
        for name in names
        if name.endswith(".safetensors") and name != "upright.safetensors"
    )


def load_prior(weights: str | Path = "joint-flow-21") -> PosePrior:
    """A pose prior of trained weights.

    Args:
        weights: name of one that ships (`shipped()`), or a file that `save_prior` wrote.

    Raises:
        FileNotFoundError: neither; the message lists what ships.
        ValueError: the file is no pose prior; the message names what is missing in it.
    """
    if Path(weights).suffix == ".safetensors":
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"pose prior {path}: no such file")
        return _read(path)
    return copy.deepcopy(_load(str(weights)))


def flow_prior(kind: str = "joint-flow", joints: int = 21) -> PosePrior:
    """The normalizing-flow pose prior.

    Args:
        kind: `joint-flow` (ours, of the best likelihood on unseen people), or one of the paper's two:
            `prelu-flow` (light) and `real-nvp`.
        joints: 21 of SMPL-X's body, or 23 of SMPL's.
    """
    return load_prior(f"{kind}-{joints}")


def gaussian_prior(diagonal: bool = False) -> PosePrior:
    """The Gaussian pose prior over 21 joints.

    Args:
        diagonal: without what goes together with what.
    """
    return load_prior("diagonal-21" if diagonal else "gaussian-21")


def default_pose_prior() -> PooledPrior:
    """Half the flow and half the Gaussian.

    The flow knows hinges and their stops but has poses of its own to fall into, the Gaussian is smooth but pulls
    straight limbs to a bent mean. `benchmarks/priors.py` compares the pool with either. Its numbers are made once: all
    fits share them.
    """
    return copy.copy(_default_pool())


@cache
@torch.inference_mode(False)
def _default_pool() -> PooledPrior:
    return PooledPrior(0.5 * flow_prior(), 0.5 * gaussian_prior())


def mixture_prior() -> PosePrior:
    """The mixture of Gaussians over 21 joints, lowered as in SMPLify."""
    return load_prior("mixture-21")


def vae_prior() -> PosePrior:
    """The variational autoencoder over 21 joints, of VPoser's size."""
    return load_prior("vae-21")


def save_prior(prior: PosePrior, path: str | Path) -> Path:
    """Write a prior as `.safetensors`, whole or not at all.

    Args:
        prior: to save.
        path: of the file, `.safetensors`.

    Raises:
        ValueError: another ending.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"pose prior to {path}, expected a name that ends in .safetensors")
    tensors = {f"density.{name}": value for name, value in prior.density.state_dict().items()}
    if prior.calibration is not None:
        tensors["calibration"] = prior.calibration
    header = {
        "kind": prior.density.kind,
        "settings": prior.density.settings(),
        "joints": prior.joints,
        "representation": prior.representation.name,
        "block": prior.block,
        "noise": prior.noise,
    }
    stored = {name: value.detach().float().contiguous().cpu() for name, value in tensors.items()}
    return atomic_write(path, save(stored, metadata={"fitkit_prior": json.dumps(header)}))


@cache
def _load(weights: str) -> PosePrior:
    resource = files("fitkit.priors.data").joinpath(f"{weights}.safetensors")
    if not resource.is_file():
        raise FileNotFoundError(
            f"pose prior {weights!r}: expected a .safetensors file, or one of those that ship: {shipped()}"
        )
    with as_file(resource) as file:
        return _read(file)


def _read(path: Path) -> PosePrior:
    try:
        with safe_open(path, framework="pt") as archive:
            header = (archive.metadata() or {}).get("fitkit_prior")
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"pose prior {path}: no safetensors file ({error})") from error
    if header is None:
        raise ValueError(f"pose prior {path}: no fitkit_prior in its metadata, expected a file of save_prior")
    try:
        given = json.loads(header)
        odd = sorted(name for name, value in tensors.items() if not bool(value.isfinite().all()))
        if odd:
            raise ValueError(f"numbers in {odd} that are not finite")
        density = _make(given["kind"], given["settings"])
        own = {
            name.removeprefix("density."): value
            for name, value in tensors.items()
            if name.startswith("density.")
        }
        density.double().load_state_dict(own)
        return PosePrior(
            density.eval(),
            given["joints"],
            given["representation"],
            given["block"],
            given["noise"],
            tensors["calibration"].double() if "calibration" in tensors else None,
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # a header or tensors of another layout
        raise ValueError(f"pose prior {path}: {error}") from error


def _make(kind: str, settings: dict[str, int]) -> Density:
    if kind not in KINDS:
        raise ValueError(f"pose prior of kind {kind!r}, expected one of {sorted(KINDS)}")
    module, name = KINDS[kind]
    density: Density = getattr(import_module(module), name)(**settings)
    return density

"""VPoser: the user's own weights of it, as a pose prior."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from fitkit.priors.pose import PosePrior
from fitkit.priors.vae import NOISE, PoseVAE

_PARTS = "norm first hidden_norm second third mean deviation out_first out_second out_third".split()
# Its names of these; v1.0 has no third layer of the encoder.
_NAMES = {
    "VPoser v1.0": [
        *("bodyprior_enc_bn1", "bodyprior_enc_fc1", "bodyprior_enc_bn2", "bodyprior_enc_fc2", ""),
        *("bodyprior_enc_mu", "bodyprior_enc_logvar"),
        *("bodyprior_dec_fc1", "bodyprior_dec_fc2", "bodyprior_dec_out"),
    ],
    "VPoser v2.0": [
        *(f"vp_model.encoder_net.{part}" for part in ("1", "2", "4", "6", "7", "8.mu", "8.logvar")),
        *(f"vp_model.decoder_net.{part}" for part in ("0", "3", "5")),
    ],
}
# Slopes of the Leaky ReLUs of the encoder and of the decoder, which no file says.
_SLOPES = {"VPoser v1.0": ((0.2, 0.2), (0.2, 0.2)), "VPoser v2.0": ((0.01, 1.0), (0.01, 0.01))}
_BATCH_NORM_EPS = 1e-5
_WHERE = "VPoser is free for research under its own licence: register at https://smpl-x.is.tue.mpg.de and download it"

Layer = tuple[Tensor, Tensor]


def load_vposer(path: str | Path, noise: float = NOISE) -> PosePrior:
    """VPoser from the user's own copy of its weights, as a pose prior over 21 joints.

    Reads v1.0 (`vposer_v1_0`, `TR00_E096.pt`) and v2.0 (`V02_05`, `*.ckpt`), whose layouts are those of
    github.com/nghorbani/human_body_prior. Nothing in the file is executed. VPoser reads rotation vectors (v1.0 in one
    variant matrices) and writes the first two columns row by row; both are converted, and its batch
    normalisations become part of the layers after them. It is a density only by what `PoseVAE` makes of it:
    VPoser itself was trained for another loss, and states no noise.

    Args:
        path: the file, or the folder that holds it, itself or in `snapshots`; of several the last by name.
        noise: standard deviation of the 6D numbers around the decoded ones.

    Raises:
        FileNotFoundError: no such file, or a folder without one.
        ValueError: a file that is damaged or of another layout.
    """
    file = _snapshot(Path(path))
    state = _tensors(file)
    version = next((each for each, names in _NAMES.items() if f"{names[1]}.weight" in state), None)
    if version is None:
        expected = " or ".join(f"{names[1]}.weight ({each})" for each, names in _NAMES.items())
        raise ValueError(f"{file}: tensors {_some(list(state))}, expected {expected}")
    layers = _layers(file, version, state)
    hidden, latent = layers["out_first"][0].shape
    size, eaten = len(layers["out_third"][1]), layers["first"][0].shape[1]
    vae = PoseVAE(size, latent, hidden, eaten * 6 // size).double().requires_grad_(False)
    vae.noise.fill_(noise)
    for slopes, values in zip((vae.encoder.slopes, vae.decoder.slopes), _SLOPES[version], strict=True):
        slopes.copy_(torch.tensor(values, dtype=torch.float64))
    # VPoser writes x0 y0 x1 y1 x2 y2 of the columns x and y, and we x0 x1 x2 y0 y1 y2.
    order = torch.arange(size).view(-1, 3, 2).mT.flatten()
    layers["out_third"] = layers["out_third"][0][order], layers["out_third"][1][order]
    for part, (weight, bias) in layers.items():
        network = vae.decoder if part.startswith("out_") else vae.encoder
        layer = getattr(network, part.removeprefix("out_"))
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return PosePrior(vae.eval(), size // 6, noise=noise)


def _snapshot(path: Path) -> Path:
    """The file of weights that a path means."""
    if path.is_file():
        return path
    files = [*sorted((path / "snapshots").glob("*")), *sorted(path.glob("*"))]
    found = [file for file in files if file.suffix in (".pt", ".ckpt")]
    if not found:
        what = "a folder without *.pt or *.ckpt, itself or in snapshots" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}. {_WHERE}")
    return [file for file in found if file.parent == found[0].parent][-1]


def _tensors(file: Path) -> dict[str, Tensor]:
    """Named tensors of a file, read without running anything in it."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file}: not a file of tensors alone, expected VPoser's weights. What else it holds could run code and is "
            "not read; if you trust its source, keep torch.load(file, weights_only=False)['state_dict'] in a new file"
        ) from error
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"{file}: not readable ({error}), expected VPoser's .pt or .ckpt") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"{file}: a {type(state).__name__}, expected named tensors")
    # Copies without the trainer's prefix are about.
    bare = ("encoder_net.", "decoder_net.")
    prefix = {str(name): "vp_model." * str(name).startswith(bare) for name in state}
    return {prefix[str(name)] + str(name): each for name, each in state.items() if isinstance(each, Tensor)}


def _layers(file: Path, version: str, state: dict[str, Tensor]) -> dict[str, Layer]:
    """Weights and biases by the names in `Encoder`, and with `out_` before them in `Decoder`, in float64."""
    names = {part: name for part, name in zip(_PARTS, _NAMES[version], strict=True) if name}
    read: dict[str, list[Tensor]] = {}
    for part, name in names.items():
        ends = ["weight", "bias"] + ["running_mean", "running_var"] * part.endswith("norm")
        missing = [f"{name}.{end}" for end in ends if f"{name}.{end}" not in state]
        if missing:
            raise ValueError(f"{file}: {version} without {_some(missing)}; it has {_some(list(state))}")
        read[part] = [state[f"{name}.{end}"].double() for end in ends]
    _check_shapes(f"{file}: {version}", names, read)
    layers = {part: (each[0], each[1]) for part, each in read.items() if not part.endswith("norm")}
    layers["first"] = _folded(read["norm"], layers["first"])
    layers["second"] = _folded(read["hidden_norm"], layers["second"])
    hidden = len(layers["first"][1])
    layers.setdefault("third", (torch.eye(hidden).double(), torch.zeros(hidden).double()))
    odd = [names[part] for part in names if part in layers and not all(map(_finite, layers[part]))]
    if odd:
        raise ValueError(f"{file}: {version} with numbers up to {_some(odd)} that are not finite")
    return layers


def _check_shapes(what: str, names: dict[str, str], read: dict[str, list[Tensor]]) -> None:
    """That every tensor is of the shape that the others ask for."""
    hidden, eaten, latent, size = (read[each][1].numel() for each in ("first", "norm", "mean", "out_third"))
    if size % 6 or eaten * 6 not in (3 * size, 9 * size):
        raise ValueError(
            f"{what} of {eaten} numbers in and {size} out, expected 63 (or 189) and 126, for 21 joints"
        )
    square, head = (hidden, hidden), (latent, hidden)
    encoder = [(eaten,), (hidden, eaten), (hidden,), square, square, head, head]
    shapes = dict(zip(_PARTS, [*encoder, (hidden, latent), square, (size, hidden)], strict=True))
    for part, each in read.items():
        got = [tuple(one.shape) for one in each]
        expected = [shapes[part], *[shapes[part][:1]] * (len(each) - 1)]
        if got != expected:
            raise ValueError(f"{what} with {names[part]} of shapes {got}, expected {expected}")


def _finite(numbers: Tensor) -> bool:
    return bool(torch.isfinite(numbers).all())


def _folded(norm: list[Tensor], layer: Layer) -> Layer:
    """A linear layer that does what a batch normalisation and it do in evaluation mode."""
    gain, shift, mean, variance = norm
    scale = gain / (variance + _BATCH_NORM_EPS).sqrt()
    return layer[0] * scale, layer[1] + layer[0] @ (shift - mean * scale)


def _some(names: list[str]) -> str:
    """The first few of a list."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more or "none"

"""The variational autoencoder: bound, rows, curvature, and VPoser's weights against its plain forward pass."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import roma
import torch
from torch import Tensor
from torch.nn import functional

from fitkit import geometry
from fitkit.prediction import Prediction
from fitkit.priors.density import batched_jacobian
from fitkit.priors.representation import AxisAngle
from fitkit.priors.vae import PoseVAE
from fitkit.priors.vposer import load_vposer

F64 = torch.float64
SMALL = {"latent": 4, "hidden": 16}
# How each VPoser bends: encoder after its first and second layer, decoder.
BENDS = {"v1": (0.2, 0.2, 0.2), "v2": (0.01, 1.0, 0.01)}
NAMES = {
    "v1": "bodyprior_enc_bn1 bodyprior_enc_fc1 bodyprior_enc_bn2 bodyprior_enc_fc2 - bodyprior_enc_mu "
    "bodyprior_enc_logvar bodyprior_dec_fc1 bodyprior_dec_fc2 bodyprior_dec_out",
    "v2": "vp_model.encoder_net.1 vp_model.encoder_net.2 vp_model.encoder_net.4 vp_model.encoder_net.6 "
    "vp_model.encoder_net.7 vp_model.encoder_net.8.mu vp_model.encoder_net.8.logvar vp_model.decoder_net.0 "
    "vp_model.decoder_net.3 vp_model.decoder_net.5",
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def turned(people: int, joints: int = 21, angle: float = 0.4) -> Tensor:
    """Rotations of joints."""
    return geometry.exp(angle * normal(people, joints, 3, seed=3))


@pytest.fixture(params=[0, 3, 9], ids=["plain", "axis-angle", "matrix"])
def vae(request: pytest.FixtureRequest) -> PoseVAE:
    """Small, with random weights, of two joints and a bend everywhere."""
    torch.manual_seed(0)
    made = PoseVAE(12, **SMALL, turns=request.param).double().eval()
    made.encoder.slopes.copy_(torch.tensor([0.2, 0.3]))
    if not request.param:
        made.start_from(0.3 + 2 * normal(50, 12, seed=5))
    return made


def some(people: int, joints: int = 2) -> Tensor:
    """6D numbers near those of rotations."""
    return geometry.to_6d(turned(people, joints, 1.0)).flatten(1) + 0.05 * normal(people, 6 * joints, seed=4)


def test_sizes_are_vposers() -> None:
    vae = PoseVAE(126)
    counts = [sum(each.numel() for each in part.parameters()) for part in (vae.decoder, vae.encoder)]
    assert counts == [344_190, 623_168]
    again = PoseVAE(**vae.settings())
    assert again.training
    again.load_state_dict(vae.state_dict())
    assert not again.training
    x = torch.randn(3, 126)
    assert torch.equal(again.rows(x), vae.eval().rows(x))


def test_shapes_batches_and_dtypes(vae: PoseVAE) -> None:
    x = some(5)
    here = vae.quadratic(x)
    assert vae.encode_mean(x).shape == (5, 4)
    assert vae.rows(x).shape == (5, 16)
    assert here.precision.shape == (5, 12, 12)
    assert vae.centre().shape == (12,)
    assert vae.log_prob(x[:0]).shape == (0,)
    alone = torch.cat([vae.log_prob(row[None]) for row in x])
    torch.testing.assert_close(alone, vae.log_prob(x))
    torch.testing.assert_close(vae.quadratic(x[2:3]).precision, here.precision[2:3])
    half = copy.deepcopy(vae).float()
    assert half.log_prob(x.float()).dtype == torch.float32
    torch.testing.assert_close(half.log_prob(x.float()), alone.float(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        half.quadratic(x.float()).gradient, here.gradient.float(), rtol=1e-3, atol=1e-2
    )


def test_log_prob_is_not_random(vae: PoseVAE) -> None:
    x = some(140)  # more than are decoded at once
    first = vae.log_prob(x)
    torch.manual_seed(99)
    assert torch.equal(vae.log_prob(x), first)
    torch.testing.assert_close(vae.log_prob(x[130:]), first[130:])


def test_quadratic_is_that_of_the_rows(vae: PoseVAE) -> None:
    x = some(6).requires_grad_(True)
    (gradient,) = torch.autograd.grad(0.5 * vae.rows(x).square().sum(), x)
    with torch.inference_mode():
        here = vae.quadratic(x.detach())
        rows, jacobian = vae.rows_jacobian(x.detach())
    torch.testing.assert_close(here.gradient, gradient)
    torch.testing.assert_close(rows, vae.rows(x).detach())
    each = [torch.autograd.grad(vae.rows(x)[:, row].sum(), x)[0] for row in range(16)]
    torch.testing.assert_close(jacobian, torch.stack(each, 1))
    torch.testing.assert_close(here.precision, jacobian.mT @ jacobian)
    assert bool((torch.linalg.eigvalsh(here.precision) > -1e-8 * here.precision.abs().amax()).all())


def test_jacobian_at_full_size_is_autodiffs() -> None:
    torch.manual_seed(1)
    vae = PoseVAE(126).double().eval()
    x = some(2, 21)
    torch.testing.assert_close(vae.rows_jacobian(x)[1], batched_jacobian(vae.rows, x))


def test_gram_schmidt_jacobian_off_the_rotations() -> None:
    numbers, step = 0.7 * normal(8, 6), 1e-6 * normal(8, 6, seed=1)
    before, after = geometry.from_6d(numbers - step), geometry.from_6d(numbers + step)
    moved = roma.rotmat_to_rotvec(before.mT @ after)
    expected = 2 * (geometry.gram_schmidt_jacobian(numbers) @ step[..., None])[..., 0]
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-10)


def linear_vae(mixing: Tensor, bias: Tensor, noise: float, wider: float) -> PoseVAE:
    """Of linear networks: `x = mixing z + bias + noise`; the posterior's mean exact, its deviation `wider` times."""
    size, latent = mixing.shape
    vae = PoseVAE(size, latent, hidden=size).double().eval().requires_grad_(False)
    vae.noise.fill_(noise)
    for part in (vae.encoder, vae.decoder):
        part.slopes.fill_(1)
        for layer in (part.first, part.second, part.third):
            layer.weight.copy_(torch.eye(*layer.weight.shape))
            layer.bias.zero_()
    vae.decoder.third.weight.copy_(torch.cat([mixing, torch.zeros(size, size - latent)], 1))
    vae.decoder.third.bias.copy_(bias)
    covariance = torch.linalg.inv(mixing.mT @ mixing / noise**2 + torch.eye(latent, dtype=F64))
    vae.encoder.mean.weight.copy_(covariance @ mixing.mT / noise**2)
    vae.encoder.mean.bias.copy_(-vae.encoder.mean.weight @ bias)
    vae.encoder.deviation.weight.zero_()
    vae.encoder.deviation.bias.copy_((wider * covariance.diagonal().sqrt()).expm1().log())
    return vae


def gaussian(mixing: Tensor, bias: Tensor, noise: float) -> torch.distributions.MultivariateNormal:
    eye = torch.eye(len(bias), dtype=F64)
    return torch.distributions.MultivariateNormal(bias, mixing @ mixing.mT + noise**2 * eye)


def test_log_prob_is_exact_where_the_posterior_is() -> None:
    mixing, bias = torch.linalg.qr(normal(5, 2))[0] * torch.tensor([0.5, 2.0]), normal(5, seed=1)
    x = gaussian(mixing, bias, 0.3).sample((20,))
    bound = linear_vae(mixing, bias, 0.3, 1.0).log_prob(x)
    torch.testing.assert_close(bound, gaussian(mixing, bias, 0.3).log_prob(x))


def test_log_prob_is_a_bound_that_tightens() -> None:
    mixing, bias = 0.5 * normal(5, 2), normal(5, seed=1)
    exact = gaussian(mixing, bias, 0.3)
    torch.manual_seed(0)
    x = exact.sample((200,))
    vae = linear_vae(mixing, bias, 0.3, 1.3)
    gaps = []
    for vae.draws in (1, 16, 4096):
        gaps.append(float((exact.log_prob(x) - vae.log_prob(x)).mean()))
    # A bound on average over the draws, which are the same for every x: not of each one.
    assert gaps[0] > gaps[1] > gaps[2]
    assert abs(gaps[2]) < 0.02


def test_loss_reaches_every_parameter_and_lowers() -> None:
    torch.manual_seed(0)
    vae = PoseVAE(12, **SMALL).double()
    x = 0.3 + normal(400, 3) @ normal(3, 12, seed=1) + 0.05 * normal(400, 12, seed=2)
    vae.start_from(x)
    torch.testing.assert_close(vae.origin, x.mean(0))
    start = vae.loss(x)
    start.backward()
    for name, each in vae.named_parameters():
        assert each.grad is not None, name
        assert float(each.grad.abs().sum()) > 0, name
    optimiser = torch.optim.Adam(vae.parameters(), 3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        vae.loss(x).backward()
        optimiser.step()
    vae.eval()
    with torch.no_grad():
        assert float(vae.loss(x)) < 0.2 * float(start)
        # Divergence is not negative; more weight on it cannot lower the same draws' loss.
        losses = []
        for beta in (1.0, 2.0):
            torch.manual_seed(3)
            losses.append(float(vae.loss(x, beta)))
        assert losses[1] > losses[0]
        assert float(vae.log_prob(x).mean()) / 12 > -losses[0]


def test_sample_is_decoded_noise(vae: PoseVAE) -> None:
    draws = [vae.sample(7, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert draws[0].shape == (7, 12)
    assert torch.equal(*draws)
    torch.testing.assert_close(vae.decode(torch.zeros(1, 4, dtype=F64))[0], vae.centre())
    if vae.turns:
        columns = draws[0].view(7, 2, 2, 3)
        torch.testing.assert_close(columns @ columns.mT, torch.eye(2, dtype=F64).expand(7, 2, 2, 2))


@pytest.mark.parametrize("scale", [0.0, 10.0, 1e4])
def test_far_inputs_stay_finite(vae: PoseVAE, scale: float) -> None:
    for dtype in (torch.float32, torch.float64):
        x = (scale * vae.spread * normal(4, 12, seed=6)).to(dtype)
        moved = copy.deepcopy(vae).to(dtype)
        here = moved.quadratic(x)
        for each in (moved.log_prob(x), moved.rows(x), here.gradient, here.precision):
            assert bool(torch.isfinite(each).all())


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"turns 4 for 126 numbers"):
        PoseVAE(126, turns=4)
    with pytest.raises(ValueError, match=r"turns 3 for 125 numbers"):
        PoseVAE(125, turns=3)
    with pytest.raises(ValueError, match=r"1 vectors, turns 0"):
        PoseVAE(12, **SMALL).start_from(torch.zeros(1, 12))
    with pytest.raises(ValueError, match=r"turns 3, expected two or more and turns 0"):
        PoseVAE(12, **SMALL, turns=3).start_from(torch.zeros(5, 12))


# -- VPoser ----------------------------------------------------------------------------------------------------------


def weights(version: str, eaten: int = 63, hidden: int = 512, latent: int = 32) -> OrderedDict[str, Tensor]:
    """Random tensors of the names and shapes of a VPoser's file."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(eaten,), (hidden, eaten), (hidden,), *[(hidden, hidden)] * 2, *[(latent, hidden)] * 2]
    shapes += [(hidden, latent), (hidden, hidden), (126, hidden)]
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, shape in zip(NAMES[version].split(), shapes, strict=True):
        if name == "-":
            continue
        state[f"{name}.weight"] = torch.randn(shape, generator=draw) / shape[-1] ** 0.5
        state[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=draw)
        if len(shape) == 1:
            state[f"{name}.weight"] = 0.5 + torch.rand(shape, generator=draw)
            state[f"{name}.running_mean"] = 0.3 * torch.randn(shape, generator=draw)
            state[f"{name}.running_var"] = 0.2 + torch.rand(shape, generator=draw)
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return state


def forward(version: str, state: dict[str, Tensor], eaten: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation and the decoded mean as rotations: VPoser's order of operations, in float64."""
    names = NAMES[version].split()
    one, two, out = BENDS[version]

    def layer(index: int, x: Tensor) -> Tensor:
        name = names[index]
        if name == "-":
            return x
        gain, bias = state[f"{name}.weight"].double(), state[f"{name}.bias"].double()
        if gain.ndim == 2:
            return functional.linear(x, gain, bias)
        mean, variance = (state[f"{name}.running_{each}"].double() for each in ("mean", "var"))
        return functional.batch_norm(x, mean, variance, gain, bias)

    units = layer(2, functional.leaky_relu(layer(1, layer(0, eaten)), one))
    units = layer(4, functional.leaky_relu(layer(3, units), two))
    mean, deviation = layer(5, units), functional.softplus(layer(6, units))
    said = functional.leaky_relu(layer(8, functional.leaky_relu(layer(7, mean), out)), out)
    pairs = layer(9, said).reshape(-1, 21, 3, 2)
    x = pairs[..., 0] / pairs[..., 0].norm(dim=-1, keepdim=True)
    y = pairs[..., 1] - (x * pairs[..., 1]).sum(-1, keepdim=True) * x
    y = y / y.norm(dim=-1, keepdim=True)
    return mean, deviation, torch.stack([x, y, torch.linalg.cross(x, y, dim=-1)], -1)


def saved(folder: Path, version: str, **shape: int) -> tuple[Path, OrderedDict[str, Tensor]]:
    """A synthetic file laid out as the download: v1.0 in the old format of files, v2.0 beside a trainer's state."""
    state = weights(version, **shape)
    (folder / "snapshots").mkdir(exist_ok=True)
    if version == "v1":
        file = folder / "snapshots" / "TR00_E096.pt"
        torch.save(state, file, _use_new_zipfile_serialization=False)
        return file, state
    whole: dict[str, Any] = {
        "epoch": 13,
        "optimizer_states": [{"state": {}}],
        "callbacks": {"best": torch.tensor(0.03)},
    }
    extra = OrderedDict([("bm_train.v_template", torch.zeros(10, 3)), *state.items()])
    for epoch, content in (("08", {"state_dict": {}}), ("13", {**whole, "state_dict": extra})):
        torch.save(content, folder / "snapshots" / f"V02_05_epoch={epoch}_val_loss=0.03.ckpt")
    return folder / "snapshots" / "V02_05_epoch=13_val_loss=0.03.ckpt", state


def vposer(path: Path | str) -> PoseVAE:
    density = load_vposer(path).density
    assert isinstance(density, PoseVAE)
    return density


@pytest.mark.parametrize(("version", "eaten"), [("v1", 63), ("v1", 189), ("v2", 63)])
def test_vposer_is_vposer(tmp_path: Path, version: str, eaten: int) -> None:
    file, state = saved(tmp_path, version, eaten=eaten)
    rotations = turned(5)
    food = rotations.flatten(1) if eaten == 189 else AxisAngle().numbers(rotations).flatten(1)
    mean, deviation, decoded = forward(version, state, food)
    for path in (file, tmp_path, tmp_path / "snapshots", str(tmp_path)):
        vae = vposer(path)
        x = geometry.to_6d(rotations).flatten(1)
        torch.testing.assert_close(vae.encode_mean(x), mean)
        torch.testing.assert_close(vae.posterior(x)[1], deviation)
        torch.testing.assert_close(vae.decode(mean), geometry.to_6d(decoded).flatten(1))
    assert not vae.training
    assert sum(each.numel() for each in vae.decoder.parameters()) == 344_190
    again = PoseVAE(**vae.settings()).double()
    again.load_state_dict(vae.state_dict())
    assert torch.equal(again.log_prob(x), vae.log_prob(x))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_vposer_in_pose_prior(tmp_path: Path, version: str, people: Any, body: Any) -> None:
    prior = load_vposer(saved(tmp_path, version)[0])
    state, observation = people(3)
    pred = Prediction(body, state, observation.camera)
    residual = prior.residual(pred, observation)
    assert residual.rows.shape[:2] == (3, 32 + 126)
    assert bool(torch.isfinite(prior.log_prob(state.body_pose)).all())
    assert prior.sample(2).shape == (2, 21, 3, 3)
    assert prior.mean_pose().shape == (21, 3, 3)
    closed = prior.closed_normal(pred, observation, residual)
    assert closed is not None
    step = torch.zeros(3, 21, 3, dtype=F64, requires_grad=True)
    numbers = geometry.to_6d(state.body_pose @ geometry.exp(step)).flatten(1)
    (gradient,) = torch.autograd.grad(0.5 * prior.density.rows(numbers).square().sum(), step)
    torch.testing.assert_close(closed[0], gradient.flatten(1))


def test_vposer_has_slopes_at_rest(tmp_path: Path) -> None:
    """The rotation vector of no turn at all: where a careless logarithm has no derivative."""
    vae = vposer(saved(tmp_path, "v2")[0])
    x = geometry.to_6d(torch.eye(3, dtype=F64)).repeat(1, 21).requires_grad_(True)
    (gradient,) = torch.autograd.grad(0.5 * vae.rows(x).square().sum(), x)
    torch.testing.assert_close(gradient, vae.quadratic(x.detach()).gradient)


def test_vposer_missing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "TR00_E096.pt"):
        with pytest.raises(FileNotFoundError, match=r"smpl-x\.is\.tue\.mpg\.de"):
            load_vposer(path)


def damaged(state: OrderedDict[str, Tensor], how: str) -> Any:
    """A file of another layout."""
    if how == "not a dict":
        return [1, 2]
    if how == "other names":
        return {"backbone.weight": torch.zeros(3)}
    if how == "lacks a layer":
        del state["bodyprior_dec_fc2.bias"]
    elif how == "shape":
        state["bodyprior_enc_mu.weight"] = torch.zeros(31, 512)
    elif how == "not finite":
        state["bodyprior_enc_bn2.running_var"][3] = -1
    elif how == "half the joints":
        state["bodyprior_dec_out.weight"] = torch.zeros(60, 512)
        state["bodyprior_dec_out.bias"] = torch.zeros(60)
    elif how == "runs code":
        return {"state_dict": state, "hyper_parameters": Path("anything")}
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("not a dict", r"a list, expected named tensors"),
        (
            "other names",
            r"tensors backbone\.weight, expected bodyprior_enc_fc1\.weight .* vp_model\.encoder_net\.2",
        ),
        (
            "lacks a layer",
            r"v1\.0 without bodyprior_dec_fc2\.bias; it has bodyprior_enc_bn1\.weight, .* more",
        ),
        ("shape", r"bodyprior_enc_mu of shapes \[\(31, 512\), \(32,\)\], expected \[\(32, 512\), \(32,\)\]"),
        ("not finite", r"bodyprior_enc_fc2 that are not finite"),
        ("half the joints", r"63 numbers in and 60 out, expected 63"),
        ("runs code", r"not a file of tensors alone"),
    ],
)
def test_vposer_refuses(tmp_path: Path, how: str, message: str) -> None:
    file = tmp_path / "wrong.pt"
    torch.save(damaged(weights("v1"), how), file)
    with pytest.raises(ValueError, match=message):
        load_vposer(file)


@pytest.mark.parametrize("cut", [0, 1000, 100_000])
def test_vposer_refuses_truncated(tmp_path: Path, cut: int) -> None:
    for version in ("v1", "v2"):
        file = saved(tmp_path, version)[0]
        file.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(ValueError, match=r"expected VPoser's"):
            load_vposer(file)

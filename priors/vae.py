"""PoseVAE: the variational autoencoder that pose priors are compared with."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fitkit import geometry
from fitkit.priors.density import HALF_LOG_TAU, Density, Quadratic
from fitkit.priors.representation import AxisAngle, Matrix, Representation

# Of the units that training leaves out, and the slope below zero of its Leaky ReLUs: as VPoser v2.
DROPOUT = 0.1
SLOPE = 0.01
# Standard deviation of the Gaussian around the decoded numbers: the noise that the priors here are stated at.
NOISE = 0.05
# People whose draws `log_prob` decodes at once: 64 draws of as many stay within some hundred megabytes.
_AT_ONCE = 128


class Encoder(nn.Module):
    """Mean and standard deviation of `q(z|x)`, in the layout of VPoser v2 without its batch normalisations.

    Three layers, of which only the first is followed by a Leaky ReLU, and two heads; the deviation is a softplus,
    though its layer is called log-variance there.

    Attributes:
        slopes: `(2,)` below zero, after the first and the second layer; 1 is no bend at all.
    """

    slopes: Tensor

    def __init__(self, size: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(size, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, hidden)
        self.mean = nn.Linear(hidden, latent)
        self.deviation = nn.Linear(hidden, latent)
        self.dropout = nn.Dropout(DROPOUT)
        self.register_buffer("slopes", torch.tensor([SLOPE, 1.0]))

    def forward(self, numbers: Float[Tensor, "B F"]) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        units = self.dropout(_leaky(self.first(numbers), self.slopes[0]))
        units = self.third(_leaky(self.second(units), self.slopes[1]))
        # Far from the data softplus underflows, and the logarithm of the deviation must not.
        return self.mean(units), functional.softplus(self.deviation(units)).clamp_min(1e-6)

    def jacobian(self, numbers: Float[Tensor, "B F"]) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L F"]]:
        """The mean and its derivative: the product of the layers and of the slopes between them."""
        first = self.first(numbers)
        second = self.second(_leaky(first, self.slopes[0]))
        mean = self.mean(self.third(_leaky(second, self.slopes[1])))
        along = self.mean.weight @ self.third.weight
        along = along * _slope(second, self.slopes[1])[:, None]
        along = (along @ self.second.weight) * _slope(first, self.slopes[0])[:, None]
        return mean, along @ self.first.weight


class Decoder(nn.Module):
    """Three layers with Leaky ReLUs between them, as both VPosers have them.

    Attributes:
        slopes: `(2,)` below zero, after the first and the second layer.
    """

    slopes: Tensor

    def __init__(self, size: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(latent, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, size)
        self.dropout = nn.Dropout(DROPOUT)
        self.register_buffer("slopes", torch.tensor([SLOPE, SLOPE]))

    def forward(self, z: Float[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        units = self.dropout(_leaky(self.first(z), self.slopes[0]))
        numbers: Tensor = self.third(_leaky(self.second(units), self.slopes[1]))
        return numbers

    def jacobian(self, z: Float[Tensor, "B L"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B L D"]]:
        """The numbers and the transpose of their derivative."""
        first = self.first(z)
        second = self.second(_leaky(first, self.slopes[0]))
        along = self.first.weight.mT * _slope(first, self.slopes[0])[:, None]
        # Latent numbers beside people: one product for all of them.
        along = functional.linear(along, self.second.weight) * _slope(second, self.slopes[1])[:, None]
        return self.third(_leaky(second, self.slopes[1])), functional.linear(along, self.third.weight)


class PoseVAE(Density):
    """Variational autoencoder of poses (VPoser; Pavlakos et al., CVPR 2019, section 3.3).

    `p(x) = integral of N(x; decode(z), noise^2) N(z; 0, 1) dz`. For 21 joints in 6D, 32 latent numbers and 512
    hidden units the decoder has exactly 344,190 parameters: 32 -> 512 -> 512 -> 126, which is how Zanfir et al.
    (ECCV 2020, supplement) count VPoser. The encoder (`Encoder`) adds 623,168, used in training and to find z.

    Its density is no number that it can name: `log_prob` is a lower bound. A fit lowers the negative evidence lower
    bound's data and latent part at the encoder's mean. Training mode adds dropout; a density that was loaded is in
    evaluation mode.

    Args:
        size: D.
        latent: L.
        hidden: units of each layer.
        turns: 0 for plain numbers. 3 or 9: x are joints in 6D that the encoder reads as rotation vectors or as
            matrices, and whatever the decoder says is brought to the 6D numbers of a rotation, as VPoser does it.

    Attributes:
        noise: standard deviation of x around the decoded numbers.
        draws: K of `log_prob`.

    Raises:
        ValueError: `turns` of another value, or with a size that is not six times something.

    >>> vae = PoseVAE(126).eval()
    >>> sum(each.numel() for each in vae.decoder.parameters())
    344190
    """

    kind = "vae"
    noise: Tensor
    origin: Tensor
    spread: Tensor

    def __init__(self, size: int, latent: int = 32, hidden: int = 512, turns: int = 0) -> None:
        super().__init__(size)
        if turns not in (0, 3, 9) or (turns and size % 6):
            raise ValueError(f"turns {turns} for {size} numbers, expected 0, or 3 or 9 for joints in 6D")
        self.latent, self.hidden, self.turns, self.draws = latent, hidden, turns, 64
        self._form: Representation | None = {3: AxisAngle(), 9: Matrix()}.get(turns)
        self.encoder = Encoder(size // 6 * turns if turns else size, latent, hidden)
        self.decoder = Decoder(size, latent, hidden)
        self.register_buffer("noise", torch.tensor(NOISE))
        self.register_buffer("origin", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.register_load_state_dict_post_hook(_evaluating)

    def settings(self) -> dict[str, int]:
        return {"size": self.size, "latent": self.latent, "hidden": self.hidden, "turns": self.turns}

    def start_from(self, x: Float[Tensor, "N D"]) -> None:
        """Standardise by these vectors.

        Raises:
            ValueError: fewer than two vectors, or a VAE that reads rotations.
        """
        if self.turns or len(x) < 2:
            raise ValueError(f"{len(x)} vectors, turns {self.turns}, expected two or more and turns 0")
        self.origin.copy_(x.double().mean(0))
        # Numbers that hardly move are noise: making them large would only teach it.
        self.spread.copy_(x.double().std(0).clamp_min(float(self.noise)))

    # -- encoder and decoder -----------------------------------------------------------------------------------

    def posterior(self, x: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Mean and standard deviation of `q(z|x)`."""
        mean, deviation = self.encoder(self._read(x))
        return mean, deviation

    def encode_mean(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B L"]:
        """Mean of `q(z|x)`."""
        return self.posterior(x)[0]

    def decode(self, z: Float[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """Mean of `p(x|z)`."""
        return self.origin + self.spread * self._write(self.decoder(z))

    def _read(self, x: Tensor) -> Tensor:
        """What the encoder eats."""
        unit = (x - self.origin) / self.spread
        if self._form is None:
            return unit
        return self._form.numbers(geometry.from_6d(unit.unflatten(1, (-1, 6)))).flatten(1)

    def _write(self, numbers: Tensor) -> Tensor:
        """What the decoder says, as 6D numbers of rotations where it is about those."""
        if self._form is None:
            return numbers
        return geometry.to_6d(geometry.from_6d(numbers.unflatten(1, (-1, 6)))).flatten(1)

    # -- as a density --------------------------------------------------------------------------------------------

    def log_prob(self, x: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Lower bound of the natural logarithm of the density: not the density itself, which has no closed form.

        Importance-weighted by `draws` samples of `q(z|x)` (Burda et al., ICLR 2016, eq. 8): below it on average over
        the draws, not at each of them, and nearer the more there are. They are the same for every x and every call:
        values of different x compare, and nothing is random. VPoser's own encoder was trained for another loss than
        this noise says, and its bound is looser.
        """
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(self.draws, self.latent, generator=generator, dtype=torch.float64).to(x)
        return torch.cat([self._bound(part, normal) for part in x.split(_AT_ONCE)])

    def _bound(self, x: Tensor, normal: Float[Tensor, "K L"]) -> Tensor:
        mean, deviation = self.posterior(x)
        z = mean[:, None] + deviation[:, None] * normal
        error = (x[:, None] - self.decode(z.flatten(0, 1)).view(len(x), self.draws, self.size)) / self.noise
        seen = -0.5 * (error * error).sum(-1) - self.size * (self.noise.log() + HALF_LOG_TAU)
        # Of log p(z) - log q(z|x) the constants cancel.
        drawn = 0.5 * ((normal * normal).sum(-1) - (z * z).sum(-1)) + deviation.log().sum(-1)[:, None]
        return torch.logsumexp(seen + drawn, 1) - math.log(self.draws)

    def rows(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B R"]:
        """`[mu(x), (x - decode(mu(x))) / noise]`, R = L + D.

        Half its squares is the negative evidence lower bound's data and latent part at the posterior mean, without
        what the width of the posterior adds.
        """
        mean = self.encode_mean(x)
        return torch.cat([mean, (x - self.decode(mean)) / self.noise], 1)

    def rows_jacobian(self, x: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R D"]]:
        """`rows` and their derivative, outside training.

        In closed form: between its bends a network of Leaky ReLUs is linear, and the latent numbers are few.
        """
        unit = (x - self.origin) / self.spread
        mean, encoded = self.encoder.jacobian(self._read(x))
        said, decoded = self.decoder.jacobian(mean)
        if self._form is not None:
            six = unit.unflatten(1, (-1, 6))
            encoded = _through(
                encoded, self._form.jacobian(geometry.from_6d(six)) @ geometry.gram_schmidt_jacobian(six)
            )
            six = said.unflatten(1, (-1, 6))
            turned = geometry.to_6d_jacobian(geometry.from_6d(six)) @ geometry.gram_schmidt_jacobian(six)
            decoded = _through(decoded, turned.mT)
        encoded = encoded / self.spread
        error = x - self.origin - self.spread * self._write(said)
        eye = torch.eye(self.size, dtype=x.dtype, device=x.device)
        moved = eye - (decoded * self.spread).mT @ encoded
        return torch.cat([mean, error / self.noise], 1), torch.cat([encoded, moved / self.noise], 1)

    def quadratic(self, x: Float[Tensor, "B D"]) -> Quadratic:
        """Exact gradient and Gauss-Newton curvature."""
        rows, jacobian = self.rows_jacobian(x)
        return Quadratic(rows, (jacobian.mT @ rows[..., None])[..., 0], jacobian.mT @ jacobian)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count D"]:
        """Decoded unit normal numbers, without the noise around them."""
        return self.decode(self._normal(count, self.latent, generator))

    def centre(self) -> Float[Tensor, " D"]:
        return self.decode(self.origin.new_zeros(1, self.latent))[0]

    # -- training ------------------------------------------------------------------------------------------------

    def loss(self, x: Float[Tensor, "B D"], beta: float = 1.0) -> Float[Tensor, ""]:
        """Negative evidence lower bound per number, nats, of vectors that already carry the noise.

        One draw per vector (Kingma and Welling, ICLR 2014, eq. 7), the divergence in closed form.

        Args:
            x: vectors, with noise of standard deviation `noise` added.
            beta: weight of the divergence (Higgins et al., ICLR 2017); at 1 it is the bound.
        """
        mean, deviation = self.posterior(x)
        error = (x - self.decode(mean + deviation * torch.randn_like(mean))) / self.noise
        seen = 0.5 * (error * error).sum(1) + self.size * (self.noise.log() + HALF_LOG_TAU)
        divergence = (0.5 * (deviation * deviation + mean * mean - 1) - deviation.log()).sum(1)
        return (seen + beta * divergence).mean() / self.size


def _leaky(units: Tensor, slope: Tensor) -> Tensor:
    return torch.where(units > 0, units, slope * units)


def _slope(units: Tensor, slope: Tensor) -> Tensor:
    """Derivative of `_leaky`."""
    return torch.where(units > 0, torch.ones_like(slope), slope)


def _evaluating(vae: nn.Module, _: object) -> None:
    """Hook after loading."""
    vae.eval()


def _through(rows: Float[Tensor, "B K M"], blocks: Float[Tensor, "B J m n"]) -> Float[Tensor, "B K N"]:
    """Rows times a derivative that is block by block, M = J m and N = J n."""
    return torch.einsum("bkjm,bjmn->bkjn", rows.unflatten(2, (blocks.shape[1], -1)), blocks).flatten(2)

"""HundNetwork: the context code, the initial state and the recurrent stages of HUND."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fitkit._select import Rows
from fitkit.solvers.hund.context import BONES, CHANNELS, PICTURE, POINTS, Context

FEEDBACK = ("residuals", "tokens", "values", "none")
VIEW = 7
_TOKEN, _NAME, _PICTURE_CODE = 32, 16, 64
_HEATMAP = 32  # pixels


@dataclass(frozen=True)
class Settings:
    """What a network is: enough to build it, and what it was trained for.

    Attributes:
        body: name of the body.
        joints: of `body_pose`.
        betas: shape coefficients.
        sets: keypoint sets that it was trained with.
        terms: names of the objective's terms that it was trained with.
        stages: M, the recurrent stages of training.
        units: of the LSTM.
        context: size of the context code.
        feedback: what a stage reads of the objective: "residuals" (a token per term, and one per keypoint), "tokens"
            (per term only), "values" (the terms' values side by side, as the paper has it), or "none".
        heatmaps: whether keypoints enter as heatmaps through six convolutions (as in the paper), not as numbers.
        memory: whether the LSTM remembers; else every stage begins anew.
        informed: whether stages see the context code; the initial state always comes from it.
        gradient: whether stages see the objective's gradient with respect to the state's numbers.
        latent: whether the numbers of the pose are latent ones of a flow, as many as 6D has,
            which the solver must then be given.
    """

    body: str
    joints: int
    betas: int
    sets: tuple[str, ...]
    terms: tuple[str, ...]
    stages: int = 5
    units: int = 256
    context: int = 256
    feedback: str = "residuals"
    heatmaps: bool = False
    memory: bool = True
    informed: bool = True
    gradient: bool = False
    latent: bool = False

    def __post_init__(self) -> None:
        if self.feedback not in FEEDBACK:
            raise ValueError(f"feedback {self.feedback!r}, expected one of {FEEDBACK}")
        if min(self.stages, self.units, self.context, self.joints) < 1:
            raise ValueError(f"{self}: expected at least one stage, unit, number of context and joint")

    @property
    def size(self) -> int:
        """D, numbers of a state."""
        return 6 * (1 + self.joints) + self.betas + 3

    @classmethod
    def read(cls, found: dict[str, Any]) -> Settings:
        """From what JSON makes of them."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}
        return cls(**values)


@dataclass(frozen=True)
class Feedback(Rows):
    """What the objective says at a state.

    Attributes:
        names: of the T terms: rows of `Settings.terms` counted from 1, 0 for a term that is not among them.
        values: `(B, T)` of the terms.
        before: `(B, T)` at the state before it.
        residuals: `(B, 23, 3)` of the keypoints in the frame (x, y) and their length, zero where none was seen.
        gradient: `(B, D)` of the energy in the state's numbers; None where the network does not read it.
    """

    names: tuple[int, ...]
    values: Float[Tensor, "B T"]
    before: Float[Tensor, "B T"]
    residuals: Float[Tensor, "B K 3"]
    gradient: Float[Tensor, "B D"] | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Recall(Rows):
    """What the LSTM remembers of each person: `(B, U)` output and cell."""

    output: Float[Tensor, "B U"]
    cell: Float[Tensor, "B U"]

    def __len__(self) -> int:
        return len(self.output)


class HundNetwork(nn.Module):
    """Human Neural Descent (Zanfir et al., CVPR 2021, figure 1 and eq. 2), for one body.

    `[s_i, m_i] = RNN(s_{i-1}, m_{i-1}, L^{i-1}, s^c)`: every stage reads the state, its memory, what the objective
    says there and the context code, and adds to the state's numbers. All stages share their weights.

    Args:
        settings: of the network.
        mean: `(D,)` numbers of the mean state, from which the initial one is predicted.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, settings: Settings, mean: Float[Tensor, " D"] | None = None) -> None:
        super().__init__()
        self.settings = settings
        size = settings.size
        self.register_buffer("mean", torch.zeros(size) if mean is None else mean.float())
        # Errors on people who were not trained on: root-mean-square angle of each joint (radians), and of betas.
        self.register_buffer("spread", torch.full((settings.joints + 2,), 0.3))
        self.context = ContextEncoder(settings)
        first = nn.Linear(256, size)
        self.initial = nn.Sequential(nn.Linear(settings.context, 256), nn.LeakyReLU(0.1), first)
        self.feedback = FeedbackEncoder(settings)
        read = size + self.feedback.width + (settings.context if settings.informed else 0)
        self.cell = nn.LSTMCell(read, settings.units)
        self.update = nn.Linear(settings.units, size)
        for layer in (first, self.update):
            nn.init.zeros_(layer.bias)
            layer.weight.data.mul_(0.1)

    def begin(self, context: Context) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B D"]]:
        """The context code, and the numbers of the initial state."""
        code = self.context(context)
        return code, self.mean + self.initial(code)

    def recall(self, people: int) -> Recall:
        """An empty memory."""
        empty = self.mean.new_zeros(people, self.settings.units)
        return Recall(empty, empty)

    def stage(
        self, state: Float[Tensor, "B D"], recall: Recall, feedback: Feedback, code: Float[Tensor, "B C"]
    ) -> tuple[Float[Tensor, "B D"], Recall]:
        """One stage: numbers of the next state, and the memory."""
        parts = [state - self.mean, *self.feedback(feedback)]
        if self.settings.informed:
            parts.append(code)
        if not self.settings.memory:
            recall = self.recall(len(state))
        output, cell = self.cell(torch.cat(parts, 1), (recall.output, recall.cell))
        return state + self.update(output), Recall(output, cell)


class ContextEncoder(nn.Module):
    """The context code of what was observed. Every part of it may be missing: zeros with zero confidence."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.heatmaps = HeatmapEncoder(settings.context) if settings.heatmaps else None
        self.picture = PictureEncoder()
        seen = settings.context if settings.heatmaps else 3 * len(POINTS)
        width = seen + 4 * len(BONES) + VIEW + _PICTURE_CODE
        self.layers = nn.Sequential(
            nn.Linear(width, 512),
            nn.LeakyReLU(0.1),
            nn.Linear(512, 512),
            nn.LeakyReLU(0.1),
            nn.Linear(512, settings.context),
        )

    def forward(self, context: Context) -> Float[Tensor, "B C"]:
        points = context.points * context.points.new_tensor([4.0, 4.0, 1.0])
        seen = points.flatten(1) if self.heatmaps is None else self.heatmaps(context.points)
        picture = self.picture(context.picture)
        code: Tensor = self.layers(torch.cat([seen, context.directions.flatten(1), context.view, picture], 1))
        return code


class PictureEncoder(nn.Module):
    """Mask and parts through small convolutions; people without any cost nothing and get zeros."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = CHANNELS
        for out in (24, 32, 48):
            layers += [nn.Conv2d(width, out, 3, stride=2, padding=1), nn.LeakyReLU(0.1)]
            width = out
        side = PICTURE // 8
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side * side, _PICTURE_CODE))

    def forward(self, picture: Float[Tensor, "B C h w"]) -> Float[Tensor, "B P"]:
        code = picture.new_zeros(len(picture), _PICTURE_CODE)
        known = picture[:, -1].flatten(1).any(1).nonzero()[:, 0]
        if len(known):
            code = code.index_copy(0, known, self.layers(picture[known]).to(code.dtype))
        return code


class HeatmapEncoder(nn.Module):
    """Keypoints as heatmaps through six convolutions with pooling and a fully connected layer (section 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = len(POINTS)
        for number, out in enumerate((32, 32, 48, 48, 64, 64)):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.LeakyReLU(0.1)]
            if number % 2 == 1:
                layers.append(nn.MaxPool2d(2))
            channels = out
        side = _HEATMAP // 8
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, width))

    def forward(self, points: Float[Tensor, "B K 3"]) -> Float[Tensor, "B W"]:
        grid = (torch.arange(_HEATMAP, device=points.device) + 0.5) / _HEATMAP - 0.5
        near = -(((points[..., :2, None] - grid) * _HEATMAP) ** 2) / 2
        x, y = near.exp().unbind(2)
        code: Tensor = self.layers(points[..., 2, None, None] * y[..., :, None] * x[..., None, :])
        return code


class FeedbackEncoder(nn.Module):
    """What the objective says: one token per term (name, value, change), summed, so that more terms change no width.

    Terms that the network does not know share one name. Tokens of keypoints are linear in the residual with weights
    of their own, which summed is one linear layer over all of them.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.kind, self.terms = settings.feedback, settings.terms
        self.gradient = nn.Linear(settings.size, 64) if settings.gradient else None
        self.width = 64 if settings.gradient else 0
        if self.kind in ("tokens", "residuals"):
            self.names = nn.Embedding(1 + len(self.terms), _NAME)
            self.token = nn.Sequential(
                nn.Linear(_NAME + 2, _TOKEN), nn.LeakyReLU(0.1), nn.Linear(_TOKEN, _TOKEN)
            )
            self.width += _TOKEN
        if self.kind == "residuals":
            self.points = nn.Linear(3 * len(POINTS), 96)
            self.width += 96
        if self.kind == "values":
            self.width += 2 * len(self.terms)

    def forward(self, feedback: Feedback) -> list[Tensor]:
        """Parts of what a stage reads, each `(B, ...)`."""
        level = feedback.values.clamp_min(0).log1p()
        change = level - feedback.before.clamp_min(0).log1p()
        there = torch.isfinite(level) & torch.isfinite(change)
        level, change = (torch.where(there, part, torch.zeros_like(part)) for part in (level, change))
        parts: list[Tensor] = []
        if self.kind == "values":
            known = level.new_zeros(len(level), 1 + len(self.terms), 2)
            known[:, feedback.names] = torch.stack([0.25 * level, change], 2)
            parts.append(known[:, 1:].flatten(1))
        if self.kind in ("tokens", "residuals"):
            names = self.names.weight[list(feedback.names)].expand(len(level), -1, -1)
            tokens = self.token(torch.cat([names, 0.25 * level[..., None], change[..., None]], 2))
            parts.append((tokens * there[..., None]).sum(1))
        if self.kind == "residuals":
            parts.append(self.points(4 * feedback.residuals.flatten(1)))
        if self.gradient is not None and feedback.gradient is not None:
            parts.append(self.gradient(feedback.gradient))
        return parts

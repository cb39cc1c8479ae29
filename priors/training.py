"""Training of one density: its recipe, its steps and looks at unseen poses, and a file from which it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fitkit.files import atomic_write, read_checkpoint
from fitkit.priors.density import Density, Flow
from fitkit.priors.vae import PoseVAE

WATCHED = 2000  # poses of unseen subjects at every look


@dataclass(frozen=True)
class Recipe:
    """How one architecture is trained.

    Attributes:
        make: a density for so many joints of so many numbers.
        steps: at most; the folds say where between the looks to stop.
        batch: poses per step.
        rate: of Adam at the start.
        cosine: whether the rate falls to a fiftieth as a cosine over all steps; else by 0.99 every 10,000 steps.
        look: steps between two looks at unseen subjects.
        clip: bound on the gradient's norm.
    """

    make: Callable[[int, int], Flow | PoseVAE]
    steps: int
    batch: int = 256
    rate: float = 2e-3
    cosine: bool = True
    look: int = 250
    clip: float = 5.0

    def paper(self) -> Recipe:
        """Section 1 of the supplement of Zanfir et al., ECCV 2020: 200,000 steps of 64 poses, Adam at 1e-4."""
        return replace(self, steps=200_000, batch=64, rate=1e-4, cosine=False, look=5_000)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        if not self.cosine:
            return float(self.rate * 0.99 ** (step / 10_000))
        return self.rate * (0.02 + 0.49 * (1 + math.cos(math.pi * step / self.steps)))

    def lasting(self, steps: int) -> Recipe:
        """The same for another number of steps, with looks that divide them.

        Raises:
            ValueError: no steps.
        """
        if steps < 1:
            raise ValueError(f"{steps} steps, expected 1 or more")
        looks = max(1, steps // self.look)
        return replace(self, steps=looks * (steps // looks), look=steps // looks)


class Training:
    """One density on its way: steps, looks at unseen poses, and a file from which it goes on.

    Args:
        recipe: of the architecture.
        x: `(N, D)` numbers to train on, without noise.
        shape: joints and numbers per joint.
        noise: standard deviation added to the numbers, anew at every step.
        seed: of everything random.
        file: of the checkpoint; it is gone on from where one of the same settings and motion exists.
    """

    def __init__(
        self,
        recipe: Recipe,
        x: Float[Tensor, "N D"],
        shape: tuple[int, int],
        noise: float,
        seed: int,
        file: Path,
    ) -> None:
        self.recipe, self.x, self.noise, self.file = recipe, x, noise, file
        self.draw = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.density = recipe.make(*shape)
            if isinstance(self.density, PoseVAE):
                self.density.noise.fill_(noise)
            self.density.start_from(x + noise * torch.randn(x.shape, generator=self.draw))
        self.optimiser = torch.optim.Adam(self.density.parameters(), lr=recipe.rate)
        self.step = 0
        self.curve: list[float] = []
        # A checkpoint goes on only where everything that shaped it is the same.
        kind, settings = type(self.density), self.density.settings()
        weighed = float((x.double().sum(1) * torch.arange(len(x))).sum())  # changes with the order, too
        same = replace(recipe, make=kind), settings, noise, seed, len(x), weighed
        self.origin = " ".join(map(str, same))
        if file.is_file():
            self._resume()

    def run(self, steps: int, look: Callable[[Density], float] | None = None) -> Density:
        """Train up to a number of steps in all, and look every so often."""
        with torch.random.fork_rng(devices=[]):
            return self._run(steps, look)

    def _run(self, steps: int, look: Callable[[Density], float] | None) -> Density:
        while self.step < steps:
            if self.step % self.recipe.look == 0:
                # For dropout: the same after an interruption.
                torch.manual_seed(self.draw.initial_seed() + self.step)
                if look is not None and len(self.curve) <= self.step // self.recipe.look:
                    self.curve.append(look(self.density.eval()))
                self._save()
            self.density.train()
            rows = torch.randint(len(self.x), (self.recipe.batch,), generator=self.draw)
            x = self.x[rows]
            loss = self.density.loss(x + self.noise * torch.randn(x.shape, generator=self.draw))
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.density.parameters(), self.recipe.clip)
            for group in self.optimiser.param_groups:
                group["lr"] = self.recipe.rate_at(self.step)
            self.optimiser.step()
            self.step += 1
        if look is not None and len(self.curve) <= steps // self.recipe.look:
            self.curve.append(look(self.density.eval()))
        self._save()
        return self.density.eval()

    def _save(self) -> None:
        state = {
            "origin": self.origin,
            "step": self.step,
            "curve": self.curve,
            "density": self.density.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "draw": self.draw.get_state(),
        }
        atomic_write(self.file, lambda file: torch.save(state, file))

    def _resume(self) -> None:
        state = read_checkpoint(self.file)
        if state.get("origin") != self.origin:
            return
        self.step, self.curve = state["step"], state["curve"]
        self.density.load_state_dict(state["density"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.draw.set_state(state["draw"])


class Watch:
    """Looks at unseen poses: nats per number at the noise of the density.

    Args:
        x: `(N, D)` numbers of unseen subjects, without noise.
        subject: `(N,)` whose they are.
        noise: see `Training`.

    Attributes:
        weight: `(W,)` of each pose that is watched, where every subject is to count alike.
    """

    def __init__(self, x: Float[Tensor, "N D"], subject: Int[Tensor, " N"], noise: float) -> None:
        rows = torch.linspace(0, len(x) - 1, min(WATCHED, len(x))).long()
        self.clean = x[rows]
        draw = torch.Generator().manual_seed(0)
        self.noisy = self.clean + noise * torch.randn(self.clean.shape, generator=draw)
        self.weight = 1 / torch.bincount(subject[rows])[subject[rows]].double()

    def __call__(self, density: Density) -> float:
        return -float(self.log_prob(density, self.noisy).mean()) / self.noisy.shape[1]

    @torch.no_grad()
    def log_prob(self, density: Density, x: Tensor) -> Tensor:
        """`(N,)`, a few at a time."""
        like = next(density.buffers())
        return torch.cat([density.log_prob(rows.to(like)) for rows in x.split(512)])

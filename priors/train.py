"""Train a pose prior on motion capture: `python -m fitkit.priors.train KIND --motion FILE --out FILE`.

Subjects are split into folds. Each fold's model is trained on the other subjects and watched on its own; the number
of steps that is best on average over unseen subjects is the length of the last training, on everybody. What the
folds' models say of the people that they never saw calibrates `PosePrior.plausibility`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from fitkit.datasets import Motion
from fitkit.files import atomic_write
from fitkit.priors.closed import fit_gaussian, fit_mixture, fit_upright
from fitkit.priors.density import Density, Flow
from fitkit.priors.flow import JointFlow, PReLUFlow, RealNVP
from fitkit.priors.library import save_prior
from fitkit.priors.numbers import representation
from fitkit.priors.pose import PosePrior
from fitkit.priors.poses import COUPLES, Poses
from fitkit.priors.vae import PoseVAE

QUANTILES = 512
WATCHED = 2000  # poses of unseen subjects at every look
SAME = 1e-3  # nats per number
CEILING_MARGIN = 2.0  # nats above the largest log-determinant of the motion


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
        share = 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / self.steps))))
        return self.rate * (0.02 + 0.98 * share)


RECIPES = {
    "joint-flow": Recipe(lambda joints, width: JointFlow(joints, width, couplings=6), steps=4_000),
    "prelu-flow": Recipe(lambda joints, width: PReLUFlow(joints * width), steps=6_000, rate=5e-4),
    "real-nvp": Recipe(lambda joints, width: RealNVP(joints * width), steps=3_000, rate=5e-4),
    "vae": Recipe(lambda joints, width: PoseVAE(joints * width), steps=10_000, rate=1e-3),
}
CLOSED: dict[str, Callable[[Tensor, float], Density]] = {
    "gaussian": fit_gaussian,
    "diagonal": lambda x, noise: fit_gaussian(x, noise, diagonal=True),
    "mixture": fit_mixture,
}


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
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.density = recipe.make(*shape)
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
                torch.manual_seed(
                    self.draw.initial_seed() + self.step
                )  # dropout, alike after an interruption
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
        state = torch.load(self.file, weights_only=True)
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
        noise: see `Training`.
    """

    def __init__(self, x: Float[Tensor, "N D"], noise: float) -> None:
        chosen = x[torch.linspace(0, len(x) - 1, min(WATCHED, len(x))).long()]
        draw = torch.Generator().manual_seed(0)
        self.clean = chosen
        self.noisy = chosen + noise * torch.randn(chosen.shape, generator=draw)

    def __call__(self, density: Density) -> float:
        return -float(self.log_prob(density, self.noisy).mean()) / self.noisy.shape[1]

    @torch.no_grad()
    def log_prob(self, density: Density, x: Tensor) -> Tensor:
        """`(N,)`, a few at a time."""
        like = next(density.buffers())
        return torch.cat([density.log_prob(rows.to(like)) for rows in x.split(512)])


class Course:
    """The trainings of one prior: folds by subject, and everybody.

    Args:
        kind: one of `RECIPES` or `CLOSED`.
        x: `(N, D)` numbers of poses, without noise.
        shape: joints and numbers per joint.
        noise: see `Training`.
        seed: of everything random.
        recipe: of the kind; None where it needs no training.
        work: folder of checkpoints, and the beginning of their names.
    """

    def __init__(
        self,
        kind: str,
        x: Float[Tensor, "N D"],
        shape: tuple[int, int],
        noise: float,
        seed: int,
        recipe: Recipe | None,
        work: Path,
    ) -> None:
        self.kind, self.x, self.shape, self.noise, self.seed = kind, x, shape, noise, seed
        self.recipe, self.work = recipe, work

    def run(
        self, part: str, rows: Tensor, steps: int, watch: Watch | None = None
    ) -> tuple[Density, list[float]]:
        """A density of some of the poses, and what its looks at unseen ones gave."""
        if self.recipe is None:
            density = CLOSED[self.kind](self.x[rows], self.noise)
            return density, [] if watch is None else [watch(density)]
        file = self.work.with_name(f"{self.work.name}-{part}.pt")
        run = Training(self.recipe, self.x[rows], self.shape, self.noise, self.seed, file)
        return run.run(steps, watch), run.curve


def train_prior(
    kind: str,
    poses: Poses,
    joints: int = 21,
    representation_name: str = "6d",
    noise: float = 0.05,
    folds: int = 4,
    seed: int = 0,
    recipe: Recipe | None = None,
    work: Path = Path("out/priors"),
    say: Callable[[str], None] = print,
) -> PosePrior:
    """Train a prior with folds by subject, as the module's text says.

    Args:
        kind: one of `RECIPES` or `CLOSED`.
        poses: of several subjects.
        joints: the first ones after the pelvis: 21 of SMPL-X's body, 23 of SMPL's.
        representation_name: see `fitkit.priors.numbers`.
        noise: standard deviation on the numbers.
        folds: of subjects.
        seed: of everything random.
        recipe: instead of the kind's own.
        work: folder of the checkpoints from which an interrupted training goes on.
        say: told of every fold.

    Raises:
        ValueError: an unknown kind, or fewer subjects than folds.
    """
    if kind not in RECIPES and kind not in CLOSED:
        raise ValueError(f"prior of kind {kind!r}, expected one of {sorted({*RECIPES, *CLOSED})}")
    there = {poses.subjects[row] for row in poses.subject.unique().tolist()}
    alone = len({COUPLES.get(name, name) for name in there})
    if not 2 <= folds <= alone:
        raise ValueError(
            f"{folds} folds of {len(there)} subjects, expected 2 to {alone}: couples stay together"
        )
    form = representation(representation_name)
    recipe = recipe or RECIPES.get(kind)
    work.mkdir(parents=True, exist_ok=True)
    stem = work / f"{kind}-{joints}-{representation_name}-{noise:g}-{seed}"
    course = Course(kind, poses.numbers(joints, form), (joints, form.width), noise, seed, recipe, stem)
    most = recipe.steps if recipe is not None else 0
    held = list(poses.folds(folds))
    watches = [Watch(course.x[unseen], noise) for unseen in held]
    models, curves = [], []
    for number, (unseen, watch) in enumerate(zip(held, watches, strict=True)):
        began = time.perf_counter()
        density, curve = course.run(f"fold{number}-of-{folds}", ~unseen, most, watch)
        models.append(density)
        curves.append(curve)
        who = " ".join(poses.subjects[i] for i in poses.subject[unseen].unique().tolist())
        say(
            f"fold {number} ({who}): best {min(curve):.3f}, last {curve[-1]:.3f}, {time.perf_counter() - began:.0f} s"
        )
    mean = torch.tensor(curves).mean(0)
    # Not a few steps fewer for a hair's breadth: stopping early is against overfitting.
    best = int((mean <= mean.min() + SAME).nonzero()[-1])
    steps = best * recipe.look if recipe is not None else 0
    say(f"nats per number on unseen subjects, sigma {noise:g}: {float(mean[best]):.3f} after {steps} steps")
    if steps < most:  # the folds' models as they were then
        models = [course.run(f"fold{i}-{steps}", ~unseen, steps)[0] for i, unseen in enumerate(held)]
    whole = course.run(f"all-{steps}", torch.ones(len(poses), dtype=torch.bool), steps)[0]
    if isinstance(whole, Flow):
        _set_ceiling(whole.double().eval(), course.x)
    unlikely = torch.cat(
        [-watch.log_prob(density, watch.clean) for watch, density in zip(watches, models, strict=True)]
    )
    table = torch.quantile(unlikely.double(), torch.linspace(0, 1, QUANTILES, dtype=torch.float64))
    return PosePrior(whole, joints, representation_name, noise=noise, calibration=table)


@torch.no_grad()
def _set_ceiling(flow: Flow, x: Tensor) -> None:
    volumes = torch.cat([flow.encode(rows.double())[1] for rows in x[::7].split(1024)])
    flow.ceiling.fill_(volumes.max() + CEILING_MARGIN)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train a pose prior", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("kind", choices=sorted({*RECIPES, *CLOSED, "upright"}))
    parser.add_argument("--motion", type=Path, required=True, help="file of `python -m fitkit.datasets`")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors to write")
    parser.add_argument("--joints", type=int, default=21, help="21 of SMPL-X's body, 23 of SMPL's")
    parser.add_argument("--representation", default="6d", help="6d, axis-angle or matrix")
    parser.add_argument("--noise", type=float, default=0.05, help="sigma added to the numbers")
    parser.add_argument("--folds", type=int, default=4, help="of subjects")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="at most, instead of the recipe's")
    parser.add_argument("--paper", action="store_true", help="the paper's batch, rate and 200,000 steps")
    parser.add_argument("--work", type=Path, default=Path("out/priors"), help="checkpoints to go on from")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES.get(given.kind)
    if recipe is not None and given.paper:
        recipe = recipe.paper()
    if recipe is not None and given.steps:
        recipe = replace(recipe, steps=given.steps)
    poses = Poses.of(Motion.load(given.motion), given.seed)
    print(f"{len(poses)} poses of {len(poses.subjects)} subjects, half of them mirrored")
    if recipe is not None and recipe.steps < recipe.look:
        recipe = replace(recipe, look=recipe.steps)
    if given.kind == "upright":
        print(atomic_write(given.out, save(fit_upright(poses, given.noise))))
        return
    prior = train_prior(
        given.kind,
        poses,
        given.joints,
        given.representation,
        given.noise,
        given.folds,
        given.seed,
        recipe,
        given.work,
    )
    print(save_prior(prior, given.out))


if __name__ == "__main__":
    main()

"""Train a pose prior on motion capture: `python -m fitkit.priors.train KIND --motion FILE --out FILE`.

Subjects are split into folds. Each fold's model is trained on the other subjects and watched on its own; the number
of steps that is best on average over unseen subjects is the length of the last training, on everybody. What the
folds' models say of the people that they never saw calibrates `PosePrior.plausibility`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from fitkit.datasets import Motion
from fitkit.files import atomic_write
from fitkit.priors.density import Density, Flow
from fitkit.priors.flow import JointFlow, PReLUFlow, RealNVP
from fitkit.priors.library import save_prior
from fitkit.priors.moments import fit_gaussian, fit_mixture, fit_upright
from fitkit.priors.pose import PosePrior
from fitkit.priors.poses import BLOCKS, Poses
from fitkit.priors.representation import REPRESENTATIONS, Representation, representation
from fitkit.priors.training import Recipe, Training, Watch
from fitkit.priors.vae import PoseVAE

QUANTILES = 512
SAME_NATS = 1e-3  # per number
CEILING_MARGIN = 2.0  # nats above the largest log-determinant of the motion


RECIPES = {
    "joint-flow": Recipe(lambda joints, width: JointFlow(joints, width, couplings=6), steps=4_000),
    "prelu-flow": Recipe(lambda joints, width: PReLUFlow(joints * width), steps=6_000, rate=5e-4),
    "real-nvp": Recipe(lambda joints, width: RealNVP(joints * width), steps=3_000, rate=5e-4),
    "vae": Recipe(lambda joints, width: PoseVAE(joints * width), steps=6_000, rate=1e-3, look=2_000),
}
CLOSED: dict[str, Callable[[Tensor, float], Density]] = {
    "gaussian": fit_gaussian,
    "diagonal": lambda x, noise: fit_gaussian(x, noise, diagonal=True),
    "mixture": fit_mixture,
}


class Course:
    """The trainings of one prior: folds by subject, and everybody.

    Args:
        kind: one of `RECIPES` or `CLOSED`.
        poses: of several subjects.
        joints: the first ones after the pelvis.
        form: of a rotation.
        noise: see `Training`.
        seed: of everything random.
        recipe: of the kind; None where it needs no training.
        work: folder of checkpoints, and the beginning of their names.
    """

    def __init__(
        self,
        kind: str,
        poses: Poses,
        joints: int,
        form: Representation,
        noise: float,
        seed: int,
        recipe: Recipe | None,
        work: Path,
    ) -> None:
        self.kind, self.poses, self.joints, self.form = kind, poses, joints, form
        self.noise, self.seed, self.recipe, self.work = noise, seed, recipe, work

    def numbers(self, rows: Tensor | None = None) -> Tensor:
        """Of some of the poses, without noise."""
        return self.poses.numbers(self.joints, self.form, rows)

    def run(
        self, part: str, rows: Tensor | None, steps: int, watch: Watch | None = None
    ) -> tuple[Density, list[float]]:
        """A density of some of the poses, and what its looks at unseen ones gave."""
        x = self.numbers(rows)
        density: Density
        if self.recipe is None:
            density = CLOSED[self.kind](x, self.noise)
            curve = [] if watch is None else [watch(density)]
        else:
            file = self.work.with_name(f"{self.work.name}-{part}.pt")
            run = Training(self.recipe, x, (self.joints, self.form.width), self.noise, self.seed, file)
            density, curve = run.run(steps, watch), run.curve
        if isinstance(density, Flow):
            _set_ceiling(density, x)
        return density, curve


@torch.no_grad()
def _set_ceiling(flow: Flow, x: Tensor) -> None:
    volumes = torch.cat([flow.encode(rows.to(flow.mean))[1] for rows in x[::7].split(1024)])
    flow.ceiling.fill_(volumes.max() + CEILING_MARGIN)


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
        representation_name: see `fitkit.priors.representation`.
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
    form = representation(representation_name)
    recipe = recipe or RECIPES.get(kind)
    work.mkdir(parents=True, exist_ok=True)
    stem = work / f"{kind}-{poses.block}-{joints}-{representation_name}-{noise:g}-{seed}"
    course = Course(kind, poses, joints, form, noise, seed, recipe, stem)
    held = list(poses.folds(folds))
    watches = [Watch(course.numbers(rows), poses.subject[rows].repeat(2), noise) for rows in held]
    most = recipe.steps if recipe is not None else 0
    models, curves = [], []
    for number, (rows, watch) in enumerate(zip(held, watches, strict=True)):
        began = time.perf_counter()
        density, curve = course.run(f"fold{number}-of-{folds}", ~rows, most, watch)
        models.append(density)
        curves.append(curve)
        who = " ".join(poses.subjects[i] for i in poses.subject[rows].unique().tolist())
        took = time.perf_counter() - began
        say(f"fold {number} ({who}): best {min(curve):.3f}, last {curve[-1]:.3f}, {took:.0f} s")
    mean = torch.tensor(curves).mean(0)
    # Not a few steps fewer for a hair's breadth: stopping early is against overfitting.
    best = int((mean <= mean.min() + SAME_NATS).nonzero()[-1])
    steps = best * recipe.look if recipe is not None else 0
    say(f"nats per number on unseen subjects, sigma {noise:g}: {float(mean[best]):.3f} after {steps} steps")
    if steps < most:  # the folds' models as they were then
        models = [course.run(f"fold{i}-of-{folds}-{steps}", ~rows, steps)[0] for i, rows in enumerate(held)]
    whole = course.run(f"all-{steps}", None, steps)[0]
    table = _calibration(watches, models)
    return PosePrior(whole, joints, representation_name, poses.block, noise, table)


def _calibration(watches: Sequence[Watch], models: Sequence[Density]) -> Tensor:
    """`(QUANTILES,)` of `-log_prob` of poses that a fold's model has not seen; every subject counts alike."""
    pairs = zip(watches, models, strict=True)
    unlikely = torch.cat([-watch.log_prob(model, watch.clean) for watch, model in pairs]).double()
    weight = torch.cat([watch.weight for watch in watches])
    order = unlikely.argsort()
    share = weight[order].cumsum(0) / weight.sum()
    levels = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    return unlikely[order][torch.searchsorted(share, levels).clamp_max(len(order) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train a pose prior", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("kind", choices=sorted({*RECIPES, *CLOSED, "upright"}))
    parser.add_argument("--motion", type=Path, required=True, help="file of `python -m fitkit.datasets`")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors to write")
    parser.add_argument("--block", default="body_pose", choices=BLOCKS, help="what is learned")
    parser.add_argument(
        "--joints", type=int, default=21, help="21 of SMPL-X's body, 23 of SMPL's, 15 of a hand"
    )
    parser.add_argument("--representation", default="6d", choices=sorted(REPRESENTATIONS))
    parser.add_argument("--noise", type=float, default=0.05, help="sigma added to the numbers")
    parser.add_argument("--folds", type=int, default=4, help="of subjects")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="at most, instead of the recipe's")
    parser.add_argument(
        "--paper", action="store_true", help="the paper's batch, rate and 200,000 steps: hours on a CPU"
    )
    parser.add_argument("--work", type=Path, default=Path("out/priors"), help="checkpoints to go on from")
    given = parser.parse_args()
    most = 23 if given.block == "body_pose" else 15
    if given.out.suffix != ".safetensors" or not given.out.resolve().parent.is_dir():
        parser.error(f"--out {given.out}: expected a name that ends in .safetensors in a folder that exists")
    if not 1 <= given.joints <= most or not 0 < given.noise < 1:
        parser.error(f"--joints 1 to {most} and --noise between 0 and 1, got {given.joints}, {given.noise}")
    torch.set_num_threads(1)
    recipe = RECIPES.get(given.kind)
    if recipe is not None:
        recipe = recipe.paper() if given.paper else recipe
        recipe = recipe if given.steps is None else recipe.lasting(given.steps)
    try:
        poses = Poses.of(Motion.load(given.motion), given.seed, given.block)
        print(f"{len(poses)} poses of {len(poses.subjects)} subjects, and their mirror images")
        if given.kind == "upright":
            print(atomic_write(given.out, save(fit_upright(poses, given.folds))))
            return
        shape = given.joints, given.representation, given.noise
        prior = train_prior(given.kind, poses, *shape, given.folds, given.seed, recipe, given.work)
        print(save_prior(prior, given.out))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

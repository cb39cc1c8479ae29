"""Pose priors on people whom none of them was trained on: as densities, as judges of poses, and in fits.

Nats are of the numbers with noise of the prior's sigma added; a variational autoencoder's are a bound. Ranking errors:
share of pairs in which an odd pose is not the less likely one; an arm and a leg of somebody else who also stands or
walks are often not odd at all. Denoising and completion: Levenberg-Marquardt of what was measured and the prior at
weight 1. Fits are the paper's figure 1 (Zanfir et al., ECCV 2020) under keypoints, from four rotated starts, each
prior at the weight that is best on people it was trained on, the default of `fitkit.fit` as it is there: the whole
body, without knees and ankles (`upper`), without the left arm and leg (`one side`), and with three times the noise and
the gaps (`noisy`). The same under body parts waits for that objective. The body that makes the problems fits them, so
errors are lower bounds. Standard errors take problems for independent; they are of five subjects.

    python benchmarks/priors.py --data DIR --json priors.json
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from _common import Report, data_folder, milliseconds, options
from _prior_tasks import (
    JOINTS,
    SURE,
    TURN,
    VIEWS,
    Fits,
    angle_over,
    excess,
    fit_poses,
    hidden_sets,
    implausible,
    likeliest,
    noisy,
    ranked_wrongly,
    vertex_error,
)
from _problems import LAYOUT, MOTION, SEED, Problems, in_turn, make_problems, subjects_of
from torch import Tensor

from fitkit import geometry
from fitkit.body import BodyModel, open_body
from fitkit.datasets import Motion, read_folders
from fitkit.metrics import LIMBS, joint_angle_error, mpjpe, pa_mpjpe
from fitkit.objectives import Objective
from fitkit.priors import PosePrior, default_pose_prior, gaussian_prior, load_prior, shipped
from fitkit.priors.density import Density, Flow
from fitkit.priors.vae import PoseVAE

TRAINING = "mocap/bvh/train"
# Of some of whom weights are chosen: a few seconds to read.
SUBJECTS = ("005", "007", "013", "016", "055", "090")
REFERENCE, FREE = "gaussian-21", "limits only"
# The prior of `fitkit.fit`, as it is there.
POOL = "the default: flow and Gaussian"
WITHOUT_UPRIGHT = (REFERENCE, "joint-flow-21", POOL)
WEIGHTS = (0.25, 0.5, 1.0, 2.0)
JOINT_COUNT = 21


@dataclass(frozen=True)
class Sizes:
    """How much of everything is looked at."""

    poses: int = 500  # per subject, for likelihoods
    judged: int = 1000
    solved: int = 200
    tuned: int = 50  # per view
    fitted: int = 200  # per view
    weights: tuple[float, ...] = WEIGHTS


QUICK = Sizes(50, 100, 16, 2, 16, (1.0,))


@dataclass(frozen=True)
class People:
    """Poses of whom they are.

    Attributes:
        rotations: `(N, 22, 3, 3)` float64, joint 0 in a world with Y up.
        subject: `(N,)` row in `names`.
        names: of the subjects.
    """

    rotations: Tensor
    subject: Tensor
    names: tuple[str, ...]

    @classmethod
    def of(cls, motion: Motion) -> People:
        """The usable frames in the order of `_problems.load_poses`: the first ones are of everybody alike."""
        motion = motion.usable_only()
        whose = subjects_of(motion)
        order = in_turn(whose)
        return cls(motion.rotations[order, :22].double(), whose[order], tuple(sorted(set(motion.subjects))))


# -- as densities ------------------------------------------------------------------------------------------------


def add_likelihood(
    report: Report, priors: dict[str, PosePrior], people: People, sizes: Sizes, device: str
) -> None:
    """Nats per number of unseen people, round trips, samples and time."""
    chosen = [(people.subject == each).nonzero()[: sizes.poses, 0] for each in range(len(people.names))]
    share = torch.bincount(people.subject).double() / len(people.subject)
    nats = {}
    for name, prior in priors.items():
        add, density = partial(report.add, "likelihood", name), _density(prior, device)
        draw = torch.Generator().manual_seed(SEED)
        means = []
        for rows in chosen:
            x = prior.representation.numbers(people.rotations[rows, 1 : 1 + prior.joints]).flatten(1)
            x = (x + prior.noise * torch.randn(x.shape, generator=draw, dtype=x.dtype)).to(device)
            with torch.no_grad():
                means.append(float(-torch.cat([density.log_prob(part) for part in x.split(256)]).mean()))
        nats[name] = torch.tensor(means).double() / density.size
        add("nats, frames", float((share * nats[name]).sum()), "per number")
        add("nats, subjects", float(nats[name].mean()), "per number")
        for who, value in zip(people.names, nats[name].tolist(), strict=True):
            report.add("likelihood by subject", name, f"nats, {who}", value, "per number")
        if REFERENCE in nats:
            gap = nats[name] - nats[REFERENCE]
            add(f"nats - {REFERENCE}, frames", float((share * gap).sum()), "per number")
            add(f"nats - {REFERENCE}, subjects", float(gap.mean()), "per number")
        add("a bound", float(isinstance(density, PoseVAE)), "1 = yes")
        add("sigma", prior.noise, "")
        poses = people.rotations[:64, 1:].to(device)
        with torch.no_grad():
            add("log_prob of 64 poses", milliseconds(partial(prior.log_prob, poses), device), "ms")
        _add_round_trip(report, name, prior, people.rotations[:256, 1:].to(device))
    add_samples(report, priors, people)


def _density(prior: PosePrior, device: str, dtype: torch.dtype = torch.float64) -> Density:
    return copy.deepcopy(prior.density).to(device, dtype)


@torch.no_grad()
def _add_round_trip(report: Report, name: str, prior: PosePrior, poses: Tensor) -> None:
    """Largest change of a number by encoding and decoding in float32: of real poses, and three times as far out."""
    density = _density(prior, str(poses.device), torch.float32)
    if not isinstance(density, Flow):
        return
    x = prior.representation.numbers(poses[:, : prior.joints]).flatten(1).float()
    z = density.encode(x)[0]
    back, far = density.decode(z), density.decode(3 * z)
    again = density.decode(density.encode(far)[0])
    report.add("likelihood", name, "log-determinant", float(prior.log_determinant(poses).mean()), "nats")
    report.add("likelihood", name, "round trip", float((back - x).abs().max()), "largest")
    report.add("likelihood", name, "round trip, 3 z", float((again - far).abs().max()), "largest")


def add_samples(report: Report, priors: dict[str, PosePrior], people: People) -> None:
    """How many random poses, and how many real ones, keep to the joint limits."""
    for name, prior in priors.items():
        with torch.no_grad():
            poses = prior.sample(1000, torch.Generator().manual_seed(SEED))
        _add_samples(report, name, poses)
    _add_samples(report, "motion", people.rotations[:1000, 1:])


def _add_samples(report: Report, name: str, poses: Tensor) -> None:
    beyond = excess(poses)
    inside = 100 * float((beyond <= 0.5).double().mean())
    report.add("samples", name, "within joint limits", inside, "%")
    report.add("samples", name, "energy of joint limits, median", float(beyond.median()), "")


# -- as judges -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def add_plausibility(
    report: Report, priors: dict[str, PosePrior], people: People, sizes: Sizes, device: str
) -> None:
    """Whether `plausibility` means what it says, and how often odd poses pass for better ones than real ones."""
    real = people.rotations[: sizes.judged, 1:].to(device)
    kinds = implausible(real, people.subject[: sizes.judged], SEED)
    for name, prior in priors.items():
        if prior.calibration is not None:
            share = prior.plausibility(real)
            for level in (0.01, 0.05, 0.5):
                below = 100 * float((share < level).double().mean())
                report.add("calibration", name, f"plausibility below {level}", below, "%")
        mine = -prior.log_prob(real)
        _add_ranking(report, name, mine, {kind: -prior.log_prob(odd) for kind, odd in kinds.items()})
    _add_ranking(report, "joint limits", excess(real), {kind: excess(odd) for kind, odd in kinds.items()})


def _add_ranking(report: Report, name: str, real: Tensor, odd: dict[str, Tensor]) -> None:
    for kind, scores in odd.items():
        other, own = ranked_wrongly(real, scores)
        report.add("ranking error", name, kind, 100 * other, "% of pairs")
        report.add("ranking error", name, f"{kind}, same pose", 100 * own, "% of poses")


# -- of poses alone ------------------------------------------------------------------------------------------------


def add_repairs(
    report: Report, priors: dict[str, PosePrior], people: People, sizes: Sizes, body: BodyModel
) -> None:
    """Denoising and completion of poses."""
    truth = people.rotations[: sizes.solved, 1:].to(body.device)
    thrown = noisy(truth, SEED)
    certain = torch.full(truth.shape[:2], torch.deg2rad(torch.tensor(TURN)).item() ** -2).to(truth)
    for name, prior in priors.items():
        found = likeliest(body, prior, thrown, certain, thrown)
        add = partial(report.add, "denoising", name)
        before, after = joint_angle_error(thrown, truth), joint_angle_error(found, truth)
        add("before", float(before.mean()), "deg")
        add("after", float(after.mean()), "deg")
        add("after, limbs", float(joint_angle_error(found, truth, LIMBS).mean()), "deg")
        mean = prior.mean_pose().to(truth)
        for kind, mask in hidden_sets(len(truth), SEED).items():
            hidden = mask.to(truth.device)
            start = torch.where(hidden[..., None, None], mean, truth)
            known = (~hidden).to(truth) * torch.deg2rad(torch.tensor(SURE)).item() ** -2
            found = likeliest(body, prior, truth, known, start)
            add = partial(report.add, "completion", name)
            add(f"{kind}, mean pose", float(angle_over(start, truth, hidden).mean()), "deg")
            add(kind, float(angle_over(found, truth, hidden).mean()), "deg")


# -- in fits -------------------------------------------------------------------------------------------------------


class Fitting:
    """Fits of the problems of every view under every prior.

    Args:
        report: to add to.
        body: that makes and fits the problems, in float64.
        priors: by name; None for joint limits only.
        sizes: how many problems.
    """

    def __init__(
        self, report: Report, body: BodyModel, priors: dict[str, Objective | None], sizes: Sizes
    ) -> None:
        self.report, self.body, self.priors, self.sizes = report, body, priors, sizes
        self.errors: dict[tuple[str, str], dict[str, Tensor]] = {}

    def problems(self, poses: Tensor, view: str, seed: int) -> Problems:
        """Random bodies in these poses, seen so."""
        how, body = VIEWS[view], self.body.to(torch.float64, "cpu")
        return make_problems(body, poses, seed, how.noise, how.missing).to(str(self.body.device))

    def fit(self, name: str, problems: Problems, view: str, weight: float, upright: bool = True) -> Fits:
        """All problems under one prior, from its mean pose."""
        prior = self.priors[name]
        mean = (prior if isinstance(prior, PosePrior) else gaussian_prior()).mean_pose().to(problems.sigma)
        return fit_poses(self.body, problems, prior, mean, weight, VIEWS[view].noise, upright)

    def best_weight(self, name: str, people: People) -> float:
        """The weight of least MPJPE on training subjects, over all views."""
        if not isinstance(self.priors[name], PosePrior):
            return 1.0
        found: dict[float, float] = {}
        # Poses of one view are not those of another: more of them are seen.
        parts = zip(VIEWS, people.rotations.split(self.sizes.tuned), strict=False)
        problems = {view: self.problems(poses, view, SEED + 1) for view, poses in parts}
        for weight in self.sizes.weights:
            each = []
            for view, part in problems.items():
                state = self.fit(name, part, view, weight).state
                each.append(mpjpe(self.body.joints(state)[:, :22], self.body.joints(part.truth)[:, :22]))
            found[weight] = 1e3 * float(torch.cat(each).mean())
            self.report.add("weights", name, f"MPJPE at {weight:g}", found[weight], "mm, training subjects")
        best = min(found, key=lambda weight: found[weight])
        self.report.add("weights", name, "weight", best, "")
        return best

    def add(self, name: str, people: People, weight: float, view: str, upright: bool = True) -> None:
        """Errors of one prior in one view."""
        problems = self.problems(people.rotations[: self.sizes.fitted], view, SEED)
        fits = self.fit(name, problems, view, weight, upright)
        section = f"fitting, {view}" if upright else f"fitting, {view}, not upright"
        state, truth, body = fits.state, problems.truth, self.body
        mine, true = body.joints(state)[:, :22], body.joints(truth)[:, :22]
        pixels = problems.observation.camera.project(body.keypoints(state, "coco17"))
        errors = {
            "MPJPE": 1e3 * mpjpe(mine, true),
            "MPVPE": 1e3 * vertex_error(body, state, truth),
            "PA-MPJPE": 1e3 * pa_mpjpe(mine, true),
        }
        if hidden := VIEWS[view].hidden:
            errors["MPJPE, hidden"] = 1e3 * mpjpe(mine, true, joints=[JOINTS.index(each) for each in hidden])
        angle = joint_angle_error(state.body_pose[:, :JOINT_COUNT], truth.body_pose, LIMBS)
        clean = (pixels - problems.clean).norm(dim=-1).mean(1) / problems.sigma
        add = partial(self.report.add, section, name)
        for measure, values in errors.items():
            self.report.add_spread(section, name, measure, values, "mm")
        root = torch.rad2deg(geometry.geodesic(state.global_orient[:, 0], truth.global_orient[:, 0]))
        add("turned by over 45 deg", 100 * float((root > 45).double().mean()), "% of problems")
        add("angle, limbs", float(angle.mean()), "deg")
        add("2D error, clean points", float(clean.mean()), "sigma")
        add("per person", fits.milliseconds, "ms")
        add("steps", float(fits.steps.double().mean()), "mean")
        add("at the step limit", 100 * float(fits.at_limit.double().mean()), "% of problems")
        self.errors[section, name] = errors

    def add_differences(self) -> None:
        """Means over the same problems of what each prior errs more than the Gaussian, and their standard errors."""
        for (section, name), errors in self.errors.items():
            other = self.errors.get((section, REFERENCE))
            if other is None or name == REFERENCE:
                continue
            for measure, values in errors.items():
                gap = values - other[measure]
                deviation = float(gap.std() / len(gap) ** 0.5)
                self.report.add(section, name, f"{measure} - {REFERENCE}", float(gap.mean()), "mm")
                self.report.add(section, name, f"{measure} - {REFERENCE}, SE", deviation, "mm")


def add_fits(
    report: Report,
    priors: dict[str, PosePrior],
    people: People,
    trained: People,
    sizes: Sizes,
    body: BodyModel,
) -> None:
    """Figure 1 of the paper as tables, one per view."""
    everybody: dict[str, Objective | None] = {**priors, POOL: default_pose_prior(), FREE: None}
    fitting = Fitting(report, body, everybody, sizes)
    for name in everybody:
        began = time.perf_counter()
        weight = fitting.best_weight(name, trained)
        for view in VIEWS:
            fitting.add(name, people, weight, view)
        if name in WITHOUT_UPRIGHT:
            fitting.add(name, people, weight, "full", upright=False)
        print(f"fitting, {name}: {time.perf_counter() - began:.0f} s", flush=True)
    fitting.add_differences()


# ------------------------------------------------------------------------------------------------------------------


def _priors(names: list[str] | None, parser: argparse.ArgumentParser) -> dict[str, PosePrior]:
    chosen = names or [name for name in shipped() if name.endswith(f"-{JOINT_COUNT}")]
    chosen.sort(
        key=lambda name: Path(name).stem != REFERENCE
    )  # what the others are compared with comes first
    priors = {Path(name).stem: load_prior(name) for name in chosen}
    wrong = [
        name for name, prior in priors.items() if (prior.joints, prior.block) != (JOINT_COUNT, "body_pose")
    ]
    if wrong or len(priors) < len(chosen):
        parser.error(
            f"--prior: {wrong or chosen}, expected priors of {JOINT_COUNT} body joints, each name once"
        )
    return priors


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--prior", nargs="+", metavar="NAME", help=f"names or files; those of {JOINT_COUNT} joints that ship"
    )
    parser.add_argument("--count", type=int, metavar="N", help="problems of each view (200, quick: 16)")
    given = parser.parse_args()
    layout = {**LAYOUT, TRAINING: "the same of subjects that priors are trained on, to choose weights"}
    folder, sizes = data_folder(given.data, layout), QUICK if given.quick else Sizes()
    if given.count:
        sizes = replace(sizes, fitted=given.count)
    priors = _priors(given.prior, parser)
    people = People.of(read_folders([folder / MOTION]).motion)
    clips = sorted(file for file in (folder / TRAINING).iterdir() if file.name[:3] in SUBJECTS)
    trained = People.of(read_folders(clips).motion)
    body = open_body().to(torch.float64, given.device)

    report = Report("priors")
    for what, run in {
        "likelihood": partial(add_likelihood, report, priors, people, sizes, given.device),
        "plausibility": partial(add_plausibility, report, priors, people, sizes, given.device),
        "denoising and completion": partial(add_repairs, report, priors, people, sizes, body),
        "fitting": partial(add_fits, report, priors, people, trained, sizes, body),
    }.items():
        began = time.perf_counter()
        run()
        print(f"{what}: {time.perf_counter() - began:.0f} s", flush=True)
    report.finish(given.json)


if __name__ == "__main__":
    main()

"""What each part of HUND is worth: small networks, trained alike but for one thing, on people whom none has seen.

Every variant is trained for `--steps` steps of `--batch` people on the motion of training subjects, and tested on the
problems of `hund.py` (validation subjects). `SS` and `FS+SS` see part maps of eight people per step and no directions:
compare them with `FS, no directions`. One seed each: differences of a few millimetres are within what another seed
gives. An interrupted run goes on where it was.

    python benchmarks/hund_ablations.py --steps 800 --data DIR --json hund_ablations.json
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _common import Report, data_folder, options
from _problems import (
    LAYOUT,
    MOTION,
    UNITS,
    Problems,
    errors_of,
    load_poses,
    make_problems,
    objective,
)

from fitkit.body import BodyModel, open_body
from fitkit.datasets import Motion, read_folders, split_by_subject
from fitkit.metrics import mpjpe
from fitkit.priors import flow_prior
from fitkit.priors.poses import Poses
from fitkit.problem import Problem
from fitkit.solve import solve
from fitkit.solvers.hund import HUND, save_network
from fitkit.train.hund import Recipe, Training, settings_for

# Motion to train on, where no file of it is given.
TRAIN = ("mocap/bvh/train", "mocap/deepmimic_train.npz")
HELD_OUT = ("016", "090", "093", "104")  # of the training subjects: those who are watched, as in the recipe


@dataclass(frozen=True)
class Variant:
    """What differs from the plain network: its settings and its recipe."""

    settings: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "plain": Variant(),
    "meta-loss last": Variant(recipe={"meta": "last"}),
    "meta-loss min": Variant(recipe={"meta": "min"}),
    "meta-loss max": Variant(recipe={"meta": "max"}),
    "meta-loss improvement": Variant(recipe={"meta": "improvement"}),
    "open loop": Variant({"feedback": "none"}),
    "no memory": Variant({"memory": False}),
    "no context": Variant({"informed": False}),
    "one stage": Variant({"stages": 1}),
    "values side by side": Variant({"feedback": "values"}),
    "tokens of terms only": Variant({"feedback": "tokens"}),
    "heatmaps": Variant({"heatmaps": True}),
    "SS": Variant(recipe={"supervision": "SS", "pictured": 8, "rendered": 2}),
    "FS, no directions": Variant(recipe={"world": False}),
    "FS+SS": Variant(recipe={"supervision": "FS+SS", "pictured": 8, "rendered": 2}),
    "gradient as input": Variant({"gradient": True}),
    "latent of the flow": Variant({"latent": True}),
}


def add_variant(report: Report, name: str, file: Path, body: BodyModel, problems: Problems) -> None:
    """Errors after the last stage, after every other one and after twice as many."""
    true = body.joints(problems.truth)[:, :22]
    problem = Problem(body, problems.observation, objective())
    network = HUND(file, pose=flow_prior())
    doubled = HUND(file, stages=2 * network.max_steps, pose=flow_prior())
    with torch.no_grad():
        solution = solve(problem, doubled, doubled.start(problem), states=True)
    for number, state in enumerate(solution.trace.states):
        error = 1e3 * mpjpe(body.joints(state)[:, :22], true)
        if number <= network.max_steps or number == doubled.max_steps:
            report.add("stages", name, f"{number}", float(error.mean()), "mm")
        if number == network.max_steps:
            errors = errors_of(body, problems, state)
            for what in ("MPJPE", "PA-MPJPE", "angle, limbs", "angle, 21 joints", "2D error, clean points"):
                report.add("ablations", name, what, float(errors[what].mean()), UNITS[what])
            report.add("ablations", name, "+-", float(error.std() / len(error) ** 0.5), "mm")
            report.add("ablations", name, "energy, median", float(errors["energy"].median()), "")


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--motion",
        type=Path,
        metavar="FILE",
        help="of `python -m fitkit.datasets`, instead of the data folder's training subjects",
    )
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--steps", type=int, default=800, help="of training (quick: 20)")
    parser.add_argument("--batch", type=int, default=64, help="people per step")
    parser.add_argument(
        "--work", type=Path, default=Path("out/hund_ablations"), help="checkpoints and networks"
    )
    given = parser.parse_args()
    data = data_folder(
        given.data, LAYOUT | dict.fromkeys(() if given.motion else TRAIN, "motion to train on")
    )
    steps, count = (20, 16) if given.quick else (given.steps, 200)
    body = open_body().to(torch.float32, given.device)
    motion = (
        Motion.load(given.motion) if given.motion else read_folders([data / name for name in TRAIN]).motion
    )
    learn, watch = (Poses.of(part) for part in split_by_subject(motion, HELD_OUT))
    exact = open_body().to(torch.float64)
    problems = make_problems(exact, load_poses(data / MOTION, count))
    given.work.mkdir(parents=True, exist_ok=True)
    report = Report(f"hund, ablations, {count} problems, {steps} steps of {given.batch}")
    warnings.simplefilter("ignore")
    for name in given.variant:
        variant, began = VARIANTS[name], time.perf_counter()
        recipe = replace(
            Recipe(steps=steps, batch=given.batch, look=max(steps // 3, 1), average=200, pictured=0),
            **variant.recipe,
        )
        stem = given.work / f"{name.replace(' ', '_').replace(',', '')}-{steps}-{given.batch}"
        settings = settings_for(body, **variant.settings)
        pose = flow_prior() if settings.latent else None
        training = Training(settings, recipe, body, learn, watch, stem.with_suffix(".pt"), pose)
        file = save_network(training.run(lambda text: None), stem.with_suffix(".safetensors"))
        add_variant(report, name, file, exact.to(torch.float64, given.device), problems.to(given.device))
        report.add("ablations", name, "training", time.perf_counter() - began, "s")
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    report.finish(given.json)


if __name__ == "__main__":
    main()

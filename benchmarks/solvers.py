"""Solvers on problems whose answer is known: real poses of unseen subjects, random bodies, cameras and noise.

The same body makes and fits the problems and nothing hides itself, so the errors are a lower bound of those on
photos. MPJPE: 22 joints, pelvises together. PA-MPJPE: after the best similarity. Angles: 21 joints; limbs are hips,
knees, shoulders and elbows.

    python benchmarks/solvers.py --data DIR --json solvers.json
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import roma
import torch
from _common import Report, data_folder, milliseconds, options, sync
from torch import Tensor

from fitkit import geometry
from fitkit._select import Rows
from fitkit.api import default_stages
from fitkit.body import BodyModel, open_body
from fitkit.camera import Camera
from fitkit.initialise import make_starts
from fitkit.keypoints import Keypoints, get_set
from fitkit.metrics import LIMBS, joint_angle_error, mpjpe, pa_mpjpe
from fitkit.objectives import GMoF, Keypoints2D, Objective, Residual
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import GaussianPosePrior, JointLimits, ShapePrior
from fitkit.problem import Problem
from fitkit.registry import get_solver
from fitkit.solve import Outcome, Solution, Solver, solve
from fitkit.state import State

MOTION = "mocap/rotations_val.npz"
LAYOUT = {MOTION: "axis_angle (N, 22, 3) radians, joint 0 in a world with Y up; ok (N,) bool"}
NOISE, MISSING, SEED = 0.01, 0.1, 123
SIDE, FOCAL = 1000, 1000.0


@dataclass(frozen=True)
class Problems(Rows):
    """Problems with their answers, one row each.

    Attributes:
        observation: noisy keypoints with some missing, and the camera.
        truth: what made them.
        clean: `(B, 17, 2)` pixels before noise.
        sigma: `(B,)` pixels of the noise.
    """

    observation: Observation
    truth: State
    clean: Tensor
    sigma: Tensor

    def __len__(self) -> int:
        return len(self.sigma)


def make_problems(body: BodyModel, poses: Tensor, seed: int = SEED) -> Problems:
    """Random bodies in these poses, anywhere in front of a camera, turned any way, and what is seen of them.

    Args:
        body: in float64, on the CPU.
        poses: `(B, 22, 3, 3)`, joint 0 in a world with Y up and facing +Z.
        seed: of everything random.
    """
    draw, count = torch.Generator().manual_seed(seed), len(poses)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    heading = torch.atan2(poses[:, 0, 0, 2], poses[:, 0, 2, 2])
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    orient = upright @ geometry.yaw(2 * math.pi * uniform(count) - heading) @ poses[:, 0]
    depth = 2.5 + 3.5 * uniform(count)
    aside = (uniform(count, 2) - 0.5) * torch.tensor([0.2, 0.1]) * depth[:, None]
    transl = torch.cat([aside, depth[:, None]], 1)
    truth = State(orient[:, None], poses[:, 1:], normal(count, body.num_betas), transl)

    camera = Camera.from_size(SIDE, SIDE, FOCAL).expand(count).to(torch.float64)
    clean = camera.project(body.keypoints(truth, "coco17"))
    width, height = (clean.amax(1) - clean.amin(1)).unbind(1)
    sigma = NOISE * torch.maximum(height, width / 2)
    noisy = clean + sigma[:, None, None] * normal(count, 17, 2)
    confidence = (uniform(count, 17) > MISSING).double()
    observation = Observation(camera, Keypoints(get_set("coco17"), noisy, confidence))
    return Problems(observation, truth, clean, sigma)


def load_poses(file: Path, count: int) -> Tensor:
    """`(count, 22, 3, 3)` of the frames marked ok, drawn without replacement."""
    with np.load(file) as archive:
        frames = torch.from_numpy(archive["axis_angle"][archive["ok"]]).double()
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(SEED))
    rotations: Tensor = roma.rotvec_to_rotmat(frames[order[:count]])
    return rotations


def objective() -> Objective:
    """The calibrated sum: keypoints at the noise that the problems have, pose and shape priors, joint limits."""
    return Keypoints2D(sigma=NOISE, kernel=GMoF(10)) + GaussianPosePrior() + ShapePrior() + JointLimits()


def run(body: BodyModel, problems: Problems, solver: Solver) -> Solution:
    """One batch, as `fitkit.fit` would solve it."""
    prior = GaussianPosePrior().mean_pose().to(body.device, body.dtype)
    starts = make_starts(body, problems.observation, prior)
    stages = solver.stages or default_stages(solver.max_steps)
    problem = Problem(body, problems.observation, objective())
    return solve(problem, solver, starts.state, stages, starts.count, starts.hint, starts.kinds)


# -- what is measured --------------------------------------------------------------------------------------------


def add_errors(report: Report, column: str, body: BodyModel, problems: Problems, state: State) -> None:
    """Distance of states from the truth and from what was seen."""
    truth = problems.truth
    mine, true = body.joints(state)[:, :22], body.joints(truth)[:, :22]
    seen, camera = problems.observation.keypoints, problems.observation.camera
    assert seen is not None
    pixels = camera.project(body.keypoints(state, "coco17"))
    off = (pixels - seen.xy).norm(dim=-1) * seen.confidence
    noisy = off.sum(1) / seen.confidence.sum(1) / problems.sigma
    clean = (pixels - problems.clean).norm(dim=-1).mean(1) / problems.sigma
    spread = partial(report.add_spread, "accuracy", column)
    spread("energy", Problem(body, problems.observation, objective()).energy(state), "")
    spread("2D error, noisy points", noisy, "sigma")
    spread("2D error, clean points", clean, "sigma")
    spread("MPJPE", 1e3 * mpjpe(mine, true), "mm")
    spread("PA-MPJPE", 1e3 * pa_mpjpe(mine, true), "mm")
    spread("angle, 21 joints", joint_angle_error(state.body_pose[:, :21], truth.body_pose), "deg")
    spread("angle, limbs", joint_angle_error(state.body_pose[:, :21], truth.body_pose, LIMBS), "deg")


def add_solver(
    report: Report, name: str, body: BodyModel, problems: Problems, batch: int, singles: int
) -> None:
    """Accuracy over all problems, in batches; time per person in full batches and alone."""
    solver, states, outcomes, times = get_solver(name), [], [], []
    run(body, problems.select(slice(0, 2)), solver)
    for first in range(0, len(problems), batch):
        part = problems.select(slice(first, first + batch))
        sync(body.device)
        began = time.perf_counter()
        solution = run(body, part, solver)
        sync(body.device)
        if len(part) == batch:
            times.append((time.perf_counter() - began) / batch)
        states.append(solution.state)
        outcomes.append(solution.outcome)
    outcome = torch.cat(outcomes)
    whole = State(**{part: torch.cat([getattr(s, part) for s in states]) for part in states[0].parts()})
    add_errors(report, name, body, problems, whole)
    failed = sum(Outcome(code).failed for code in outcome.tolist())
    report.add("accuracy", name, "failures", failed, f"of {len(problems)}")
    report.add(
        "accuracy",
        name,
        "at the step limit",
        int((outcome == Outcome.MAX_STEPS).sum()),
        f"of {len(problems)}",
    )
    alone = [
        milliseconds(partial(run, body, problems.select(row), solver), body.device, repeats=3)
        for row in range(singles)
    ]
    report.add("time", name, "per person, batch 1", median(alone), "ms")
    report.add("time", name, f"per person, batch {batch}", 1e3 * median(times), "ms")


class Automatic(Objective):
    """A term without its closed-form Jacobian."""

    def __init__(self, term: Objective) -> None:
        self.term = term
        self.name, self.weight, self.kernel, self.requires = (
            term.name,
            term.weight,
            term.kernel,
            term.requires,
        )

    def residual(self, pred: Prediction, obs: Observation) -> Residual | Tensor:
        return self.term.residual(pred, obs)


def add_jacobians(report: Report, body: BodyModel, problems: Problems, batch: int) -> None:
    """The least-squares problem of one step, by closed forms and by automatic differentiation."""
    plain = objective()
    terms = [Automatic(term) for term in plain.terms()]
    automatic: Objective = terms[0]
    for term in terms[1:]:
        automatic = automatic + term
    for size in (1, batch):
        part = problems.select(slice(0, size))
        state = replace(part.truth, betas=0.5 * part.truth.betas)
        pair = {
            "closed form": Problem(body, part.observation, plain),
            "automatic": Problem(body, part.observation, automatic),
        }
        times = {}
        with torch.no_grad():
            for name, problem in pair.items():
                times[name] = milliseconds(partial(problem.linearize, state), body.device)
                report.add("linearize", name, f"batch {size}", times[name], "ms")
            first, second = (problem.linearize(state) for problem in pair.values())
        report.add(
            "ratios",
            f"batch {size}",
            "automatic / closed form",
            times["automatic"] / times["closed form"],
            "x",
        )
        gap = (first.gradient - second.gradient).abs().max() / second.gradient.abs().max()
        report.add("ratios", f"batch {size}", "their gradients differ by", float(gap), "relative")


def add_ratios(report: Report, names: list[str], batch: int) -> None:
    """Times against the first solver named."""
    times = {(column, name): value for section, column, name, value, _ in report.rows if section == "time"}
    for size in (1, batch):
        measure = f"per person, batch {size}"
        for other in names[1:]:
            ratio = times[other, measure] / times[names[0], measure]
            report.add("ratios", f"batch {size}", f"{other} / {names[0]}", ratio, "x")


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--solver", nargs="+", default=["lm", "lbfgs"], metavar="NAME", help="solvers (lm lbfgs)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="problems (200, quick: 16)")
    given = parser.parse_args()
    file = data_folder(given.data, LAYOUT) / MOTION
    count = given.count or (16 if given.quick else 200)
    batch, singles = (min(8, count), 2) if given.quick else (min(64, count), min(10, count))
    poses = load_poses(file, count)
    problems = make_problems(open_body().to(torch.float64), poses).to(given.device)
    body = open_body().to(torch.float64, given.device)

    report = Report(f"solvers, {count} problems")
    add_errors(report, "truth", body, problems, problems.truth)
    for name in given.solver:
        add_solver(report, name, body, problems, batch, singles)
    add_jacobians(report, body, problems, batch)
    add_ratios(report, given.solver, batch)
    report.finish(given.json)


if __name__ == "__main__":
    main()

"""What dense observations add to keypoints: masks, parts, IUV and normals of people whose bodies are known.

Poses are motion capture of subjects that no prior has seen, bodies, cameras and keypoint noise those of `solvers.py`;
the maps are what a perfect network would see at 128 x 128 pixels. MPVPE is of vertices around the pelvis; the shape
error is the mean distance of the vertices of the two bodies in the T-pose, around the pelvis.

    python benchmarks/dense.py --data DIR --json dense.json
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from statistics import median

import torch
from _common import Report, data_folder, options, sync
from _prior_tasks import vertex_error
from _problems import LAYOUT, MOTION, Problems, load_poses, make_problems, objective
from torch import Tensor

from fitkit._select import concatenate
from fitkit.api import default_stages
from fitkit.body import BodyModel, open_body
from fitkit.initialise import make_starts
from fitkit.maps import IUVMap
from fitkit.metrics import mpjpe, pa_mpjpe
from fitkit.objectives import IUV, Normals, Objective, Outline, Parts, Silhouette
from fitkit.priors import default_pose_prior
from fitkit.problem import Problem
from fitkit.registry import get_solver
from fitkit.simulate import simulate_maps
from fitkit.solve import solve
from fitkit.state import State

# What is added to the keypoints.
TERMS: dict[str, tuple[Objective, ...]] = {
    "keypoints": (),
    "+ outline": (Outline(),),
    "+ silhouette": (Silhouette(),),
    "+ parts": (Parts(),),
    "+ normals": (Normals(),),
    "+ IUV": (IUV(),),
    "+ noisy IUV": (IUV(),),
    "+ IUV + parts": (IUV(), Parts()),
}
COUNT, AT_ONCE = 64, 16
# Noise of a network's U and V (a hundredth of a chart is about 3 mm), and pixels that it puts somewhere else.
UV_NOISE, WRONG = 0.05, 0.1


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, metavar="N", help=f"people ({COUNT}, quick: 8)")
    parser.add_argument("--solver", default="lm", metavar="NAME", help="by name (lm)")
    parser.add_argument("--motion", default=MOTION, metavar="FOLDER", help="of the data folder")
    parser.add_argument("--terms", nargs="+", choices=list(TERMS), default=list(TERMS), metavar="NAME")
    given = parser.parse_args()
    data = data_folder(given.data, LAYOUT)
    count = given.count or (8 if given.quick else COUNT)
    body = open_body().to(torch.float64)
    problems = make_problems(body, load_poses(data / given.motion, count))
    seen = simulate_maps(body, problems.truth, problems.observation)
    problems = replace(problems, observation=seen)
    report, moved = Report("dense observations"), body.to(device=given.device)
    found: dict[str, list[State]] = {name: [] for name in given.terms}
    seconds: dict[str, list[float]] = {name: [] for name in given.terms}
    for name in given.terms:  # compiles what is compiled when it is first needed
        run(moved, problems.select(slice(0, 1)), name, given.solver)
    for first in range(0, count, AT_ONCE):
        part = problems.select(slice(first, first + AT_ONCE))
        for name in given.terms:  # in turn, so that a busy minute of the machine meets all of them
            state, spent = run(moved, part, name, given.solver)
            found[name].append(state.to("cpu"))
            seconds[name].append(spent / len(part))
    off = {name: errors(body, concatenate(states), problems.truth) for name, states in found.items()}
    for name, measures in off.items():
        for measure, values in measures.items():
            report.add_spread("fits", name, measure, values, "mm")
            if name != "keypoints" and "keypoints" in off:
                gain = values - off["keypoints"][measure]
                report.add("gain", name, measure, float(gain.mean()), "mm")
                if count > 1:
                    report.add("gain", name, f"{measure}, +-", float(gain.std() / len(gain) ** 0.5), "mm")
        report.add("fits", name, "time per person", 1e3 * median(seconds[name]), "ms")
        if "keypoints" in off:
            ratios = [a / b for a, b in zip(seconds[name], seconds["keypoints"], strict=True)]
            report.add("fits", name, "time over that of keypoints alone", median(ratios), "x")
    report.finish(given.json)


def run(body: BodyModel, problems: Problems, name: str, solver: str) -> tuple[State, float]:
    """States of everybody, and wall-clock seconds."""
    observation = problems.observation.to(str(body.device))
    if "noisy" in name:
        observation = replace(observation, iuv=disturbed(observation.iuv))
    total = objective()
    for term in TERMS[name]:
        total = total + term
    began = time.perf_counter()
    problem = Problem(body, observation, total)
    starts = make_starts(body, observation, default_pose_prior().mean_pose().to(body.device, body.dtype))
    stages = default_stages(30, dense=problem.starts_without_dense)
    solution = solve(problem, get_solver(solver), starts.state, stages, starts.count, kinds=starts.kinds)
    sync(body.device)
    return solution.state, time.perf_counter() - began


def disturbed(iuv: object) -> IUVMap:
    """A map as a network errs: U and V off by some noise, a share of the pixels on another chart."""
    assert isinstance(iuv, IUVMap)
    draw = torch.Generator().manual_seed(1)
    noise = UV_NOISE * torch.randn(iuv.uv.shape, generator=draw, dtype=torch.float64).to(iuv.uv)
    other = torch.randint(1, 25, iuv.chart.shape, generator=draw).to(iuv.chart)
    wrong = (torch.rand(iuv.chart.shape, generator=draw) < WRONG).to(iuv.chart.device) & (iuv.chart > 0)
    return replace(iuv, uv=(iuv.uv + noise).clamp(0, 1), chart=torch.where(wrong, other, iuv.chart))


def errors(body: BodyModel, state: State, truth: State) -> dict[str, Tensor]:
    """Millimetres, one per person."""
    joints, wanted = body.joints(state)[:, :22], body.joints(truth)[:, :22]
    rest, rest_truth = (replace(body.neutral(len(part)), betas=part.betas) for part in (state, truth))
    return {
        "MPJPE": 1e3 * mpjpe(joints, wanted, [0]),
        "PA-MPJPE": 1e3 * pa_mpjpe(joints, wanted),
        "MPVPE": 1e3 * vertex_error(body, state, truth),
        "shape error": 1e3 * vertex_error(body, rest, rest_truth),
        "depth error": 1e3 * (state.transl - truth.transl)[:, 2].abs(),
    }


if __name__ == "__main__":
    main()

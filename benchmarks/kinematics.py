"""What a body costs: joints, keypoints, their derivatives, the mesh; and what a keypoint fit never pays for.

python benchmarks/kinematics.py --json kinematics.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from statistics import median

import torch
from _common import Report, milliseconds, options
from torch import Tensor
from torch.func import jacfwd, vmap

from fitkit import geometry
from fitkit.api import default_objective, fit
from fitkit.body import BodyModel, open_body
from fitkit.camera import Camera
from fitkit.coordinates import Tangent
from fitkit.keypoints import Keypoints, get_set
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors import gaussian_prior
from fitkit.state import State

POINTS = "coco17"
_IMPORT = "import time, torch; began = time.perf_counter(); import fitkit; print(time.perf_counter() - began)"


def random_state(body: BodyModel, people: int) -> State:
    """Bodies about the prior's mean, 4 m away, facing the camera."""
    draw = torch.Generator().manual_seed(0)
    turn = 0.3 * torch.randn(people, 22, 3, generator=draw, dtype=torch.float64)
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    state = State(
        upright @ geometry.exp(turn[:, :1]),
        gaussian_prior().mean_pose() @ geometry.exp(turn[:, 1:]),
        torch.randn(people, body.num_betas, generator=draw, dtype=torch.float64),
        torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64).expand(people, 3),
    )
    return state.to(body.dtype).to(str(body.device))


def closed_form(body: BodyModel, state: State, camera: Camera) -> Tensor:
    """`(B, K, 3, D)` as the solvers read it."""
    return Prediction(body, state, camera, Tangent(state).blocks).keypoints_jacobian(POINTS)


def forward_mode(body: BodyModel, state: State) -> Tensor:
    """`(B, K, 3, D)` by vmap(jacfwd), the usual way in torch."""

    def points(x: Tensor, orient: Tensor, pose: Tensor, betas: Tensor, transl: Tensor) -> Tensor:
        one = State(orient[None], pose[None], betas[None], transl[None])
        return body.keypoints(Tangent(one).decode(x[None]), POINTS)[0]

    x = Tangent(state).encode(state)
    jacobian: Tensor = vmap(jacfwd(points))(
        x, state.global_orient, state.body_pose, state.betas, state.transl
    )
    return jacobian


def gradient(body: BodyModel, state: State) -> Tensor:
    """`(B, D)` of one number per person, by one backward pass."""
    chart = Tangent(state)
    x = chart.encode(state).requires_grad_(True)
    total = body.keypoints(chart.decode(x), POINTS).square().sum()
    return torch.autograd.grad(total, x)[0]


def add_times(report: Report, body: BodyModel, people: int) -> None:
    """One batch size."""
    state = random_state(body, people)
    camera = Camera.from_size(1000, 1000).expand(people).to(body.dtype).to(str(body.device))
    add = partial(report.add, str(body.dtype).removeprefix("torch."), f"batch {people}")
    runs = {
        "joints": partial(body.joints, state),
        "keypoints": partial(body.keypoints, state, POINTS),
        "keypoints and Jacobian, closed form": partial(closed_form, body, state, camera),
        "keypoints and Jacobian, vmap(jacfwd)": partial(forward_mode, body, state),
        "vertices": partial(body.vertices, state),
    }
    with torch.no_grad():
        times = {name: milliseconds(call, body.device) for name, call in runs.items()}
    times["keypoints and gradient, autograd"] = milliseconds(partial(gradient, body, state), body.device)
    for name, value in times.items():
        add(name, value, "ms")
    exact, automatic = closed_form(body, state, camera), forward_mode(body, state)
    slow, fast = times["keypoints and Jacobian, vmap(jacfwd)"], times["keypoints and Jacobian, closed form"]
    add("vmap(jacfwd) / closed form", slow / fast, "x")
    add("vertices / keypoints", times["vertices"] / times["keypoints"], "x")
    add("the two Jacobians differ by", float((exact - automatic).abs().max()), "m/rad")


def count_meshes(body: BodyModel) -> tuple[int, int]:
    """Evaluations of the full surface in a fit to keypoints, and in reading its vertices (to see that it counts)."""
    state = random_state(body, 2)
    camera = Camera.from_size(1000, 1000).expand(2).to(body.dtype)
    pixels = camera.project(body.keypoints(state, POINTS))
    observation = Observation(camera, Keypoints(get_set(POINTS), pixels, torch.ones_like(pixels[..., 0])))
    calls: list[int] = []

    class Counting(BodyModel):
        def vertices(self, state: State, ids: Tensor | None = None) -> Tensor:
            if ids is None or len(ids) == len(self.data.v_template):
                calls.append(len(state))
            return super().vertices(state, ids)

    counting = Counting(body.data, body.dtype)
    result = fit(observation, body=counting, objective=default_objective(observation), dtype=body.dtype)
    during = len(calls)
    result.vertices()
    return during, len(calls)


def import_seconds(repeats: int) -> float:
    """Median time of `import fitkit` in a fresh process that has torch already."""
    command = [sys.executable, "-c", _IMPORT]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(repeats)]
    return median(float(run.stdout) for run in runs)


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    given = parser.parse_args()
    report = Report("kinematics")
    for dtype in (torch.float64,) if given.quick else (torch.float64, torch.float32):
        for people in (1, 8) if given.quick else (1, 64):
            add_times(report, open_body().to(dtype, given.device), people)
    during, after = count_meshes(open_body().to(torch.float64))
    report.add("cost", "fitkit", "full meshes in a keypoint fit", during, "")
    report.add("cost", "fitkit", "full meshes after reading the vertices", after, "")
    report.add("cost", "fitkit", "import beyond torch", import_seconds(1 if given.quick else 5), "s")
    report.finish(given.json)


if __name__ == "__main__":
    main()

"""What drawing bodies costs, hard and soft: Warp, plain torch, and the other rasterisers that are installed.

Soft pictures are a silhouette and 14 body parts (15 channels) at pytorch3d's usual sigma of 1e-4; the loss is the sum
of their squares, its gradient that to the vertices. All back ends take turns, so that what else the machine does hits
them alike; times are medians. Peak memory is that of a fresh process, above what it held before it drew.

    python benchmarks/render.py --threads 2 --json render.json
"""

from __future__ import annotations

import argparse
import gc
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from _common import Report, options, sync
from torch import Tensor

from fitkit.body import open_body
from fitkit.camera import Camera
from fitkit.priors import flow_prior
from fitkit.render import FaceLabels, available_backends, hard, rasterize_each, soft_rasterize
from fitkit.render.scene import Scene

PARTS = 14
# Share of the picture that a body takes up, and metres.
FILLED, DEPTH_SOFTNESS = 0.7, 0.0099
# What would take longer, or more memory, is not run.
MOST_SECONDS, MOST_BYTES = 60.0, 8e9
# Every round draws with each back end, often with the fast ones.
ROUNDS, SECONDS_OF_ROUNDS, REPEATS, SECONDS_OF_REPEATS = 5, 20.0, 5, 0.5


@dataclass(frozen=True)
class Case:
    """What is drawn: "soft" or "hard", pixels of a side, bodies at once."""

    kind: str
    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.size} px, batch {self.batch}"

    @property
    def pixels(self) -> int:
        return self.size**2 * self.batch


@dataclass(frozen=True)
class Shot:
    """Bodies (B, V, 3) before B cameras."""

    vertices: Tensor
    faces: Tensor
    labels: FaceLabels
    camera: Camera

    @property
    def softness(self) -> float:
        """Pixels: sigma is 1e-4 where half a picture has length one."""
        return self.camera.width / 200


Draw: TypeAlias = Callable[[Shot], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Cost:
    """Seconds of drawing, and of drawing and the gradient, by the wall clock and of the processor."""

    wall: float
    wall_both: float
    cpu: float
    cpu_both: float


def make_shot(size: int, batch: int, device: str, dtype: torch.dtype = torch.float32) -> Shot:
    """Bodies in random poses of the prior, 4 m away, each filling the same share of its picture."""
    body, draw = open_body().to(torch.float64), torch.Generator().manual_seed(0)
    state = body.neutral(batch)
    state = replace(
        state,
        global_orient=torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)).expand(batch, 1, 3, 3),
        body_pose=flow_prior().sample(batch, draw).to(torch.float64),
        betas=torch.randn(batch, body.num_betas, generator=draw, dtype=torch.float64),
        transl=torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64).expand(batch, 3),
    )
    vertices = body.vertices(state)
    rays = vertices[..., :2] / vertices[..., 2:]
    low, high = rays.amin(1), rays.amax(1)
    focal = FILLED * size / (high - low).amax(1, keepdim=True).expand(-1, 2)
    camera = Camera(focal, size / 2 - focal * (low + high) / 2, size, size)
    assert body.data.parts is not None
    labels = FaceLabels(torch.as_tensor(body.data.parts.astype("int64") - 1, device=device), PARTS)
    return Shot(vertices.to(device, dtype), body.faces.to(device), labels, camera.to(dtype).to(device))


def renderers(kind: str, device: str) -> dict[str, Draw]:
    """What draws here, ours first."""
    names = available_backends(device)
    draws: dict[str, Draw] = {}
    for name in names:
        if kind == "soft":
            draws["pytorch3d, K = 50" if name == "pytorch3d" else name] = partial(_soft, name)
            if name == "pytorch3d":
                draws["pytorch3d, K = 10"] = _soft_of_ten
        elif name in _HARD:
            draws[name] = _HARD[name]
    return draws


def _soft(backend: str, shot: Shot) -> tuple[Tensor, ...]:
    images = soft_rasterize(
        shot.vertices,
        shot.faces,
        shot.camera,
        shot.labels,
        shot.softness,
        DEPTH_SOFTNESS,
        backend=backend,
    )
    return images.silhouette, images.attributes


def _soft_of_ten(shot: Shot) -> tuple[Tensor, ...]:
    """pytorch3d with ten faces per pixel, the fewest that people use: faster, and full of holes."""
    from fitkit.render import _pytorch3d_soft

    corners = torch.cat([shot.camera.project(shot.vertices), shot.vertices[..., 2:]], -1).to(torch.float64)
    size, softness = shot.camera.width, shot.softness
    scene = Scene(
        corners,
        shot.faces,
        None,
        shot.labels,
        size,
        size,
        softness,
        DEPTH_SOFTNESS,
        0.05,
        shot.vertices.dtype,
    )
    return _pytorch3d_soft.render(scene, faces_per_pixel=10)


def _hard_warp(shot: Shot) -> tuple[Tensor, ...]:
    return (rasterize_each(shot.vertices, shot.faces, shot.camera).face,)


def _hard_torch(shot: Shot) -> tuple[Tensor, ...]:
    with patch.object(hard, "_kernels", lambda device: None):
        return _hard_warp(shot)


def _hard_pytorch3d(shot: Shot) -> tuple[Tensor, ...]:
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    size = shot.camera.width
    xy = 1 - 2 * shot.camera.project(shot.vertices) / size  # its axes point left and up
    points = torch.cat([xy, shot.vertices[..., 2:]], -1)
    meshes: Any = Meshes(verts=list(points), faces=[shot.faces] * len(points))
    found = rasterize_meshes(meshes, (size, size), 0.0, 1, perspective_correct=True)[0][..., 0]
    return (torch.where(found >= 0, found % len(shot.faces), -1),)


_HARD: dict[str, Draw] = {"warp": _hard_warp, "torch": _hard_torch, "pytorch3d": _hard_pytorch3d}


def gradient(images: tuple[Tensor, ...], vertices: Tensor) -> Tensor:
    """Of the sum of the squares."""
    return torch.autograd.grad(torch.stack([image.square().sum() for image in images]).sum(), vertices)[0]


def cost(draw: Draw, shot: Shot) -> Cost:
    """One run; the gradient only of what has one."""
    vertices = shot.vertices.clone().requires_grad_(True)
    sync(vertices.device)
    wall, cpu = time.perf_counter(), time.process_time()
    images = draw(replace(shot, vertices=vertices))
    sync(vertices.device)
    drawn, cpu_drawn = time.perf_counter() - wall, time.process_time() - cpu
    if images[0].requires_grad:
        gradient(images, vertices)
        sync(vertices.device)
    return Cost(drawn, time.perf_counter() - wall, cpu_drawn, time.process_time() - cpu)


def take_turns(runs: dict[str, Callable[[], Cost]]) -> dict[str, Cost]:
    """Medians over rounds in which everything runs."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    began = time.perf_counter()
    for turn in range(ROUNDS):
        for name, run in runs.items():
            since = time.perf_counter()
            for _ in range(REPEATS):
                costs[name].append(run())
                if time.perf_counter() - since > SECONDS_OF_REPEATS:
                    break
        # As many as there is time for, unless the next one would be too many.
        if (time.perf_counter() - began) * (turn + 2) / (turn + 1) > SECONDS_OF_ROUNDS:
            break
    fields = ("wall", "wall_both", "cpu", "cpu_both")
    return {
        name: Cost(*(median(getattr(one, field) for one in found) for field in fields))
        for name, found in costs.items()
    }


def peak_memory(name: str, case: Case, device: str) -> float:
    """Bytes that a fresh process needs to draw and differentiate once, above what it held; NaN where it fails."""
    command = [sys.executable, __file__, "--device", device, "--peak", name, case.kind]
    run = subprocess.run([*command, str(case.size), str(case.batch)], capture_output=True, text=True)
    return float(run.stdout) if run.returncode == 0 else math.nan


def own_peak(draw: Draw, case: Case, device: str) -> float:
    """The same in this process: of torch's memory on CUDA, of all of it on Linux, NaN elsewhere."""
    shot = make_shot(case.size, case.batch, device)
    # Loads what is compiled, and leaves next to nothing for the run to take over.
    few = FaceLabels(shot.labels.labels[:8], PARTS)
    cost(draw, replace(make_shot(16, 1, device), faces=shot.faces[:8], labels=few))
    gc.collect()
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        cost(draw, shot)
        return float(torch.cuda.max_memory_allocated() - before)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now
    except OSError:
        return math.nan
    before = _status("VmRSS")
    cost(draw, shot)
    return float(_status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def add_costs(report: Report, kind: str, sizes: list[int], batches: list[int], device: str) -> None:
    """All sizes and batches, small ones first: what they cost says which of the others are left out."""
    draws = renderers(kind, device)
    for draw in draws.values():
        cost(draw, make_shot(16, 1, device))
    seconds, held = dict.fromkeys(draws, 0.0), dict.fromkeys(draws, 0.0)  # most per pixel
    cases = [Case(kind, size, batch) for size in sizes for batch in batches]
    for case in sorted(cases, key=lambda case: case.pixels):
        memory = {}
        for name in draws:
            expected = {"time": seconds[name] * case.pixels, "memory": held[name] * case.pixels}
            if expected["time"] > MOST_SECONDS or expected["memory"] > MOST_BYTES:
                report.add("not run", name, f"{case}: time expected", expected["time"], "s")
                report.add("not run", name, f"{case}: memory expected", expected["memory"] / 1e6, "MB")
                continue
            memory[name] = peak_memory(name, case, device)
            held[name] = memory[name] / case.pixels
        shot = make_shot(case.size, case.batch, device)
        costs = take_turns({name: partial(cost, draws[name], shot) for name in memory})
        for name, found in costs.items():
            seconds[name] = found.wall_both / case.pixels
        _add(report, str(case), costs, memory, kind == "soft")
        print(f"{case}: done", file=sys.stderr, flush=True)


def _add(
    report: Report, section: str, costs: dict[str, Cost], memory: dict[str, float], backward: bool
) -> None:
    base = next(iter(costs))
    for name, found in costs.items():
        add = partial(report.add, section, name)
        add("forward", 1e3 * found.wall, "ms")
        add("forward, CPU time", 1e3 * found.cpu, "ms")
        if backward:
            add("forward and backward", 1e3 * found.wall_both, "ms")
            add("forward and backward, CPU time", 1e3 * found.cpu_both, "ms")
        if not math.isnan(memory[name]):
            add("peak memory", memory[name] / 1e6, "MB")
        add(f"forward, over {base}", found.wall / costs[base].wall, "x")
        add(f"forward, CPU time, over {base}", found.cpu / costs[base].cpu, "x")
        if backward:
            add(f"forward and backward, over {base}", found.wall_both / costs[base].wall_both, "x")
            add(f"forward and backward, CPU time, over {base}", found.cpu_both / costs[base].cpu_both, "x")


def add_agreement(report: Report, size: int, device: str) -> None:
    """How far the pictures are from plain torch in float64, so that nobody is fast by drawing something else."""
    shot, exact = make_shot(size, 1, device), make_shot(size, 1, device, torch.float64)
    wanted = _drawn(partial(_soft, "torch"), exact)
    section = f"difference from float64, {size} px"
    for name, draw in renderers("soft", device).items():
        *images, slope = _drawn(draw, shot)
        for what, got, right in zip(("silhouette", "parts"), images, wanted, strict=False):
            report.add(section, name, f"{what}, largest", float((got - right).abs().max()), "")
            report.add(section, name, f"{what}, mean over the body", _over_body(got, right, wanted[0]), "")
        cosine = torch.nn.functional.cosine_similarity(slope.flatten(), wanted[-1].flatten(), 0)
        report.add(section, name, "gradient, 1 - cosine", 1 - float(cosine), "")
    right = _hard_torch(exact)[0]
    for name, draw in renderers("hard", device).items():
        other = (draw(shot)[0] != right).sum() / (right >= 0).sum()
        report.add(section, name, "hard: another face", 100 * float(other), "% of the body")


def _drawn(draw: Draw, shot: Shot) -> list[Tensor]:
    vertices = shot.vertices.clone().requires_grad_(True)
    images = draw(replace(shot, vertices=vertices))
    return [one.detach().to(torch.float64) for one in (*images, gradient(images, vertices))]


def _over_body(got: Tensor, right: Tensor, silhouette: Tensor) -> float:
    return float((got - right).abs()[silhouette > 0.5].mean())


def add_threads(report: Report, threads: int, size: int, batches: list[int], device: str) -> None:
    """Pictures per second of our own back end, over threads."""
    draw = partial(_soft, available_backends(device)[0])
    before = torch.get_num_threads()

    def on(count: int, shot: Shot) -> Cost:
        torch.set_num_threads(count)
        return cost(draw, shot)

    for batch in batches:
        shot = make_shot(size, batch, device)
        costs = take_turns({str(count): partial(on, count, shot) for count in range(1, threads + 1)})
        for count, found in costs.items():
            section, column = f"threads, soft, {size} px", f"{count} thread{'s' if count != '1' else ''}"
            report.add(section, column, f"batch {batch}", batch / found.wall_both, "pictures/s")
            gain = costs["1"].wall_both / found.wall_both
            report.add(section, column, f"batch {batch}, over one thread", gain, "x")
    torch.set_num_threads(before)


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="also on 2 to N threads")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        name, kind, size, batch = given.peak
        print(own_peak(renderers(kind, given.device)[name], Case(kind, int(size), int(batch)), given.device))
        return
    sizes, batches = ([32], [2]) if given.quick else ([64, 128, 224, 480], [1, 8])
    report = Report("rasterisers")
    for kind in ("soft", "hard"):
        add_costs(report, kind, sizes, batches, given.device)
    add_agreement(report, 64, given.device)
    if given.threads > 1:
        add_threads(report, given.threads, 32 if given.quick else 128, batches, given.device)
    report.finish(given.json)


if __name__ == "__main__":
    main()

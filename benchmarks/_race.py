"""Energy against time: every solver from the same start, one stage, the same objective (HUND, figures 3 and 4)."""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from _entries import BACK_ENDS, OURS, Ours, entries
from _peers import peer_start
from _problems import Problems, objective

from fitkit.body import BodyModel
from fitkit.files import atomic_write
from fitkit.problem import Problem
from fitkit.solve import solve
from fitkit.solver import Stage
from fitkit.solvers import LM
from fitkit.state import State

# Of those whose steps can be watched; a step of Theseus is a hundred times one of ours.
STEPS = {**dict.fromkeys(OURS, 300), "theseus-lm": 30}
# Seconds that a curve of a slow back end may take, all points together.
ENOUGH = 15.0
SINGLES = 4


@dataclass(frozen=True)
class Curve:
    """Mean energy of the problems after so many seconds per person."""

    name: str
    batch: int
    seconds: list[float]
    energy: list[float]


def start_of(body: BodyModel, problems: Problems) -> State:
    """The prior's mean pose turned to where the keypoints fit a rigid body best: the same for everybody."""
    yaw = peer_start(body, problems.observation)
    problem = Problem(body, problems.observation, objective())
    return solve(problem, LM(), yaw, [Stage(10, ("global_orient", "transl"), widen=None)]).state


def race(body: BodyModel, problems: Problems, batch: int, names: list[str]) -> list[Curve]:
    """Curves of those solvers of ours and of other packages that are named, at batch 1 (the mean over a few problems)
    and in one batch."""
    table, curves = entries(), []
    several = problems.select(slice(0, batch))
    for name in [name for name in (*OURS, *BACK_ENDS) if name in names]:
        entry = table.get(name)
        if not isinstance(entry, Ours):
            continue
        alone = [_curve(entry, body, problems.select(row)) for row in range(min(SINGLES, len(problems)))]
        curves.append(_mean(alone))
        if name in STEPS:
            curves.append(_curve(entry, body, several))
    return curves


def _curve(entry: Ours, body: BodyModel, problems: Problems) -> Curve:
    start = start_of(body, problems)
    assert entry.solver is not None
    problem = Problem(body, problems.observation, objective())
    people = len(problems)
    solver = entry.solver
    if entry.name in STEPS:
        trace = solve(problem, solver, start, [Stage(STEPS[entry.name])]).trace
        return Curve(entry.name, people, [t / people for t in trace.seconds], trace.energy.mean(1).tolist())
    # A back end is one step: its curve is made of runs that are cut off earlier and later.
    seconds, energy, began = [0.0], [float(problem.energy(start).mean())], time.perf_counter()
    for limit in (3, 10, 30, 100, 300):
        if time.perf_counter() - began > ENOUGH:
            break
        clock = time.perf_counter()
        cut = type(solver)(max_iterations=limit)  # type: ignore[call-arg]
        state = solve(problem, cut, start, [Stage(1)]).state
        seconds.append((time.perf_counter() - clock) / people)
        energy.append(float(problem.energy(state).mean()))
    return Curve(entry.name, people, seconds, energy)


def _mean(curves: list[Curve]) -> Curve:
    """One curve of several problems on a common clock; before its first record a problem is where it started."""
    ends = [curve.seconds[-1] for curve in curves]
    clock = torch.logspace(-3, math.log10(max(ends)), 300, dtype=torch.float64)
    rows = []
    for curve in curves:
        index = torch.searchsorted(torch.tensor(curve.seconds, dtype=torch.float64), clock, right=True) - 1
        rows.append(torch.tensor(curve.energy, dtype=torch.float64)[index.clamp_min(0)])
    return Curve(curves[0].name, 1, clock.tolist(), torch.stack(rows).mean(0).tolist())


def draw_race(file: Path, curves: list[Curve]) -> None:
    """Two panels, one person at a time and a batch; both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted({curve.batch for curve in curves})
    figure, axes = pyplot.subplots(1, len(sizes), figsize=(6.2 * len(sizes), 4.6), sharey=True, squeeze=False)
    names = list(dict.fromkeys(curve.name for curve in curves))
    for axis, size in zip(axes[0], sizes, strict=True):
        for curve in curves:
            if curve.batch == size:
                color = f"C{names.index(curve.name)}"
                style = "-" if curve.name in OURS else "--"
                axis.plot(
                    [1e3 * t for t in curve.seconds], curve.energy, style, color=color, label=curve.name
                )
        axis.set(xscale="log", yscale="log", xlabel="milliseconds per person")
        axis.set_title("one person at a time" if size == 1 else f"a batch of {size}")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("mean energy")
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    atomic_write(file, picture.getvalue())

"""The pictures of HUND (figures 3 and 4) from our own runs: one descent, and errors and times of many problems."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _hund_rows import OURS_BFGS, Measured, anew, problem_of
from _peers import peer_start
from _problems import Problems

import fitkit
from fitkit.body import BodyModel
from fitkit.files import atomic_write
from fitkit.solve import solve
from fitkit.solver import Chain, Solver
from fitkit.solvers import BFGS
from fitkit.solvers.hund import HUND

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 100  # problems of the second picture, as in the paper
ERROR = "angle, limbs"


@dataclass(frozen=True)
class Descent:
    """One run on one problem: milliseconds and energy after every iteration; the start is the first.

    Attributes:
        first: iterations that came before the first of them.
    """

    name: str
    milliseconds: list[float]
    energy: list[float]
    first: int = 0


def typical(hund: Measured) -> int:
    """The problem whose error is the median of HUND's."""
    errors = hund.errors["MPJPE"]
    return int((errors - errors.median()).abs().argmin())


def descents(
    weights: Path | None, body: BodyModel, one: Problems, repeats: int, made: Sequence[int]
) -> list[Descent]:
    """BFGS from the mean pose, HUND, and HUND(i)+BFGS after some of its stages."""
    hund = HUND(weights)
    run = partial(_descent, body=body, one=one, repeats=repeats)
    curves = [
        run("BFGS, mean pose", BFGS()),
        run("HUND", hund, hund),
    ]
    for stages in made:
        chain = fitkit.chain(HUND(weights, stages=stages, hold=0), BFGS())
        whole = run(f"HUND({stages})+BFGS", chain, hund)
        # Stages take as long in every run: the link after them is drawn from where they are in HUND's own.
        late = curves[1].milliseconds[stages] - whole.milliseconds[stages]
        times = [each + late for each in whole.milliseconds[stages:]]
        curves.append(Descent(whole.name, times, whole.energy[stages:], stages))
    return curves


def _descent(
    name: str,
    solver: Solver | Chain,
    first: HUND | None = None,
    *,
    body: BodyModel,
    one: Problems,
    repeats: int,
) -> Descent:
    """Every step at its fastest of a few runs. Making the start counts; a chain's second link does not begin anew."""
    runs = []
    for _ in range(repeats):
        problem = problem_of(body, anew(one))
        began = time.perf_counter()
        start = peer_start(problem.body, problem.observation) if first is None else first.start(problem)
        ready = time.perf_counter() - began
        trace = solve(problem, solver, start).trace
        seconds = torch.tensor([-ready, *trace.seconds], dtype=torch.float64)
        runs.append(seconds.diff())
    times = 1e3 * torch.stack(runs).amin(0).cumsum(0)
    # Where a link begins, its first record is the last one of the link before it.
    kept = [n for n in range(len(trace)) if n == 0 or trace.stage[n] == trace.stage[n - 1]]
    return Descent(name, times[kept].tolist(), trace.energy[kept, 0].tolist())


def draw_descent(
    file: Path, weights: Path | None, body: BodyModel, one: Problems, repeats: int, made: Sequence[int]
) -> None:
    """The objective of one problem against iterations and against milliseconds; all axes logarithmic.

    Args:
        file: to write.
        weights: of the network; None for the one that ships.
        body: in float64.
        one: the problem.
        repeats: runs whose fastest steps are drawn.
        made: stages before a hybrid's descent.
    """
    curves = descents(weights, body, one, repeats, made)
    figure, axes = _canvas(1, 2, (12.4, 4.6), sharey=True)
    looks: dict[str, dict[str, Any]] = {
        "BFGS, mean pose": {"color": "C3", "ls": "--", "lw": 2},
        "HUND": {"color": "black", "marker": "o", "ms": 5, "lw": 2, "zorder": 5},
    }
    for axis, timed in zip(axes, (False, True), strict=True):
        for number, curve in enumerate(curves):
            count = [curve.first + n for n in range(1, 1 + len(curve.energy))]
            look = looks.get(curve.name, {"color": _shade(number - 2, len(curves) - 2), "lw": 1.5})
            axis.plot(curve.milliseconds if timed else count, curve.energy, label=curve.name, **look)
        axis.set(xscale="log", yscale="log", xlabel="milliseconds" if timed else "iterations, the start is 1")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("objective")
    axes[1].legend(fontsize=8)
    _save(figure, file)


def draw_problems(file: Path, rows: Sequence[Measured]) -> None:
    """Errors of the limbs' angles over many problems, and times alone, a row for each solver, first on top."""
    figure, axes = _canvas(1, 2, (12.4, 0.9 + 0.33 * len(rows)), sharey=True)
    count = min(MOST, len(rows[0]))
    values = [row.errors[ERROR][:MOST].tolist() for row in rows]
    for axis, data in zip(axes, (values, [row.alone for row in rows]), strict=True):
        boxes = axis.boxplot(
            data, orientation="horizontal", widths=0.62, patch_artist=True, showmeans=True,
            meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"},
            medianprops={"color": "black"}, flierprops={"marker": ".", "markersize": 4, "alpha": 0.4},
        )  # fmt: skip
        for row, box in zip(rows, boxes["boxes"], strict=True):
            box.set_facecolor(_color(row.name))
        axis.grid(alpha=0.3, axis="x", which="both")
        axis.set_yticks(range(1, 1 + len(rows)), [_label(row.name) for row in rows])
    axes[0].invert_yaxis()
    axes[0].set_xlim(left=0)
    axes[0].set_xlabel(f"angle error of hips, knees, shoulders and elbows, degrees; {count} problems")
    axes[1].set(xscale="log", xlabel=f"milliseconds, one person at a time; {len(rows[0].alone)} problems")
    _save(figure, file)


def _label(name: str) -> str:
    return "BFGS, mean pose" if name == OURS_BFGS else name


def _color(name: str) -> str:
    if not name.startswith("HUND"):
        return "#e39a9a"
    return "#f2c894" if "BFGS" in name else "#9dc3e6"


def _shade(number: int, count: int) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    red, green, blue, alpha = colormaps["viridis"](0.9 * number / max(count - 1, 1))
    return red, green, blue, alpha


def _canvas(high: int, wide: int, size: tuple[float, float], sharey: bool) -> tuple[Figure, list[Axes]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(high, wide, figsize=size, sharey=sharey, squeeze=False)
    return figure, list(axes[0])


def _save(figure: Figure, file: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    atomic_write(file, picture.getvalue())

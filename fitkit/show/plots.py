"""The course of a fit: pictures and tables of energies against steps and seconds."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from fitkit.files import atomic_write
from fitkit.show.inputs import FloatArray, as_array, person_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More people than this are drawn in one grey, with their median on top.
_MANY = 12


@dataclass(frozen=True)
class _Course:
    """A checked trace: T moments, B people."""

    step: FloatArray  # (T,)
    seconds: FloatArray  # (T,)
    stage: list[str]  # T names
    curves: dict[str, FloatArray]  # (T, B) each, the energy first

    @property
    def people(self) -> int:
        return int(next(iter(self.curves.values())).shape[1])


def trace_plot(path: str | Path, trace: Mapping[str, Any]) -> Path:
    """Draw the energy and each of its terms against steps (left) and seconds (right), one line per person.

    Args:
        path: of the picture; its ending says the format: png, svg or pdf.
        trace: `step` (T integers), `seconds` (T numbers), `stage` (T names), `values` (`{term: (T, B)}`) and `energy`
            `(T, B)`. Steps that start again at a new stage of a chain are drawn one after the other. Axes are
            logarithmic where all values are positive and span more than a factor of ten.

    Raises:
        ValueError: a part is missing or its length differs; an unknown picture format.
        OSError: the folder is missing or cannot be written to.
    """
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"trace plot {path}: expected a name ending in .png, .svg or .pdf")
    course = _checked(trace)

    def draw(file: BinaryIO) -> None:
        _figure(course, file, kind)

    return atomic_write(path, draw)


def write_trace_table(path: str | Path, trace: Mapping[str, Any]) -> Path:
    """Write the trace as CSV, one row per moment and person: step, seconds, stage, person, energy, every term.

    Args:
        path: of the `.csv` file.
        trace: as for `trace_plot`. A value that is not finite is left empty.

    Raises:
        ValueError: a part of the trace is missing or its length differs.
        OSError: the folder is missing or cannot be written to.
    """
    course = _checked(trace)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "seconds", "stage", "person", *course.curves])
    for t, stage in enumerate(course.stage):
        for person in range(course.people):
            values = [_cell(curve[t, person]) for curve in course.curves.values()]
            seconds = f"{course.seconds[t]:.6f}"
            writer.writerow([int(as_array(trace["step"])[t]), seconds, stage, person, *values])
    return atomic_write(path, text.getvalue().encode("utf-8", "replace"))


def _cell(value: float) -> str:
    return f"{value:.9g}" if np.isfinite(value) else ""


def _checked(trace: Mapping[str, Any]) -> _Course:
    missing = [name for name in ("step", "seconds", "stage", "values", "energy") if name not in trace]
    if missing:
        raise ValueError(f"trace has no {', '.join(missing)}; expected step, seconds, stage, values, energy")
    step = as_array(trace["step"]).astype(np.float64)
    seconds = as_array(trace["seconds"]).astype(np.float64)
    stage = [str(name) for name in trace["stage"]]
    curves = {"energy": as_array(trace["energy"]).astype(np.float64)}
    for name, curve in trace["values"].items():
        curves[f"{name} (term)" if name == "energy" else str(name)] = as_array(curve).astype(np.float64)
    shape = curves["energy"].shape
    if len(shape) != 2 or any(curve.shape != shape for curve in curves.values()):
        raise ValueError(
            f"trace: energy and values must all be (T, B), got { {n: c.shape for n, c in curves.items()} }"
        )
    if not step.shape == seconds.shape == (shape[0],) or len(stage) != shape[0]:
        raise ValueError(
            f"trace: step, seconds and stage must have {shape[0]} entries like energy, "
            f"got {step.shape}, {seconds.shape}, {len(stage)}"
        )
    return _Course(_running(step), _running(seconds), stage, curves)


def _running(count: FloatArray) -> FloatArray:
    """The count carried on where it starts again."""
    drops = np.diff(count, prepend=count[:1]) < 0
    return np.asarray(count + np.cumsum(np.where(drops, np.roll(count, 1), 0.0)))


def _figure(course: _Course, file: BinaryIO, kind: str) -> None:
    # A Figure of its own, not pyplot: no state is shared with the user's plots, and nothing stays open.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(course.curves)
    figure = Figure(figsize=(10.0, 1.2 + 1.7 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, sharex="col", sharey="row", squeeze=False)
    for row, (name, curve) in zip(axes, course.curves.items(), strict=True):
        for axis, along in zip(row, (course.step, course.seconds), strict=True):
            _curves(axis, along, curve)
            _stages(axis, along, course.stage, named=name == "energy")
        row[0].set_ylabel(name, fontweight="bold" if name == "energy" else "normal")
    axes[-1, 0].set_xlabel("step")
    axes[-1, 1].set_xlabel("seconds")
    if 1 < course.people <= _MANY:
        lines = axes[0, 0].get_lines()[: course.people]
        labels = [f"person {k}" for k in range(course.people)]
        figure.legend(lines, labels, loc="outside upper center", ncols=min(course.people, 6), frameon=False)
    figure.savefig(file, format=kind)


def _curves(axis: Axes, along: FloatArray, curve: FloatArray) -> None:
    marker = "o" if len(along) == 1 else ""
    if curve.shape[1] > _MANY:
        axis.plot(along, curve, color="0.75", linewidth=0.6, marker=marker)
        middle = np.ma.median(np.ma.masked_invalid(curve), axis=1)
        axis.plot(along, middle, color="0.1", linewidth=1.6, marker=marker)
    else:
        for values, color in zip(curve.T, person_colors(curve.shape[1]) / 255.0 * 0.88, strict=True):
            axis.plot(along, values, color=color, linewidth=1.5, marker=marker, markersize=4)
    finite = curve[np.isfinite(curve)]
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        axis.set_yscale("log")
    axis.grid(True, color="0.92", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def _stages(axis: Axes, along: FloatArray, stage: Sequence[str], named: bool) -> None:
    """A dashed line where a stage begins, with its name above the first row."""
    starts = [t for t in range(len(stage)) if t == 0 or stage[t] != stage[t - 1]]
    if len(starts) < 2:
        return
    free = along[0]
    for t in starts:
        if t:
            axis.axvline(along[t], color="0.6", linewidth=0.8, linestyle=(0, (4, 3)))
        if named and along[t] >= free:  # a name that would run into the one before is left out
            place = axis.get_xaxis_transform()
            axis.text(along[t], 1.02, stage[t], transform=place, fontsize=8, color="0.35", va="bottom")
            free = along[t] + 0.013 * (len(stage[t]) + 1) * (along[-1] - along[0])

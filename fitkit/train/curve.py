"""Curves of a training, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from fitkit.files import atomic_write


def draw_curve(looks: Sequence[dict[str, float]], path: str | Path, unit: str) -> Path:
    """Everything that was looked at against the steps of training.

    Args:
        looks: one or more, each with a `step`, and numbers by name.
        path: of the PNG; written whole or not at all.
        unit: of the numbers.

    Raises:
        OSError: it cannot be written there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [look["step"] for look in looks]
    for name in [name for name in looks[0] if name != "step"]:
        axes.plot(steps, [look[name] for look in looks], label=name, linewidth=1)
    axes.set(xlabel="steps", ylabel=unit, yscale="log")
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.3, which="both")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return atomic_write(path, file.getvalue())

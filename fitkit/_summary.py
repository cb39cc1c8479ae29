"""What the command line shows: progress, one screen about a photo, errors on one line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from fitkit.result import FitResult

_MOST_ROWS = 20  # people of one photo; result.json has all
_SURELY_SEEN = 0.5  # confidence of the keypoints that the distance is taken over


class Steps:
    """What `fit` calls after every step: shows it where there is somebody to see it."""

    def __init__(self, label: str, progress: Any = None, task: Any = None) -> None:
        self.label, self.progress, self.task = label, progress, task

    def __call__(self, step: int, stage: str) -> None:
        if self.progress is not None:
            text = f"{stage}, step {step}" if step else stage
            self.progress.update(self.task, description=f"{self.label}: {text}")


@contextlib.contextmanager
def progress(label: str) -> Iterator[Steps]:
    """A line on stderr that goes away again, on a terminal only."""
    if not sys.stderr.isatty():
        yield Steps(label)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(f"{escape(label)}: looking for people", total=None)
        yield Steps(escape(label), shown, task)


def summarise(path: str, result: FitResult, folder: Path, seconds: float) -> None:
    """One screen about a photo: its people, how well they fit, and where the files lie.

    Args:
        path: of the photo.
        result: of the fit.
        folder: where it was saved.
        seconds: for all of it: reading, finding, fitting, saving.
    """
    people = f"{len(result)} {'person' if len(result) == 1 else 'people'}" if len(result) else "nobody found"
    solver = " ".join([result.solver, *(f"({name})" for name in result.networks)])
    say(f"{path}: {people}, {seconds:.1f} s, solver {solver}, body {result.body.name}")
    if len(result):
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("  person", "status", "height", "depth", "energy", "keypoints off", "solve"):
            table.add_column(heading, justify="left" if heading == "status" else "right", no_wrap=True)
        for person in range(min(len(result), _MOST_ROWS)):
            table.add_row(str(person), *_row(result[person]))
        stdout().print(table)
    if len(result) > _MOST_ROWS:
        say(f"  and {len(result) - _MOST_ROWS} more, see result.json")
    shown = [
        str(folder / name)
        for name in ("overlay.png", "stages.png", "report.html")
        if (folder / name).exists()
    ]
    say(f"  {', '.join(shown) or f'files in {folder}'}")


def _row(person: FitResult) -> list[str]:
    """Status, height, depth, energy, distance to the keypoints, and seconds of one person."""
    height = person.body.readout(person.state).get("height_m")
    usable = bool(person.ok[0])
    return [
        person.status[0].name.lower().replace("_", " "),
        f"{float(height[0]):.2f} m" if height is not None and usable else "-",
        f"{float(person.state.transl[0, 2]):.2f} m" if usable else "-",
        f"{float(person.energy[0]):.4g}",
        _distance(person) if usable else "-",
        f"{float(person.seconds[0]):.2f} s",
    ]


def _distance(person: FitResult) -> str:
    """Mean distance of the body's keypoints to the surely seen ones: pixels, and part of the person's extent."""
    seen = person.observation.keypoints
    if seen is None:
        return "-"
    sure = (seen.confidence > _SURELY_SEEN) & person.body.available(seen.set.name)
    if not bool(sure.any()):
        return "-"
    away = (person.keypoints_2d(seen.set.name) - seen.xy).norm(dim=-1)
    pixels = float(away[sure].mean())
    return f"{pixels:.1f} px ({100 * pixels / float(seen.extent[0]):.1f} %)"


def stdout() -> Console:
    """Standard output; where it is not a terminal, wide enough for every line."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False)


def say(text: str) -> None:
    """A line on stdout, whatever bytes a file name in it may hold."""
    print(_printable(text, sys.stdout.encoding))


def complain(error: BaseException | str) -> None:
    """One line on stderr, and the traceback where FITKIT_TRACEBACK asks for it."""
    if isinstance(error, BaseException) and os.environ.get("FITKIT_TRACEBACK", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    line = " ".join(str(error).split())
    print(f"fitkit: error: {_printable(line, sys.stderr.encoding)}", file=sys.stderr)


def _printable(text: str, encoding: str | None) -> str:
    """The text with escapes for what the encoding lacks: lone surrogates of odd file names, letters in ASCII."""
    name = encoding or "utf-8"
    return text.encode(name, "backslashreplace").decode(name)

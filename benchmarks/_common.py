"""What the benchmark programs share: their options, the data folder, clocks, and how results are written."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from fitkit.files import atomic_write

DATA_VARIABLE = "FITKIT_DATA"
MOST_COLUMNS = 7


def options(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has; a program adds its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small part of it, to see that it runs")
    parser.add_argument("--device", default="cpu", help="such as cuda; what runs only on the CPU stays there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a list of {name, value, unit}")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help=f"data folder; else the environment's {DATA_VARIABLE}"
    )
    # Small tensors are slower on several threads than on one, and only one thread compares with one thread.
    torch.set_num_threads(1)
    return parser


def data_folder(given: Path | None, layout: dict[str, str]) -> Path:
    """The folder of photos and recordings.

    Args:
        given: by `--data`.
        layout: files and folders that must lie in it, and what they hold.

    Raises:
        SystemExit: no folder named, or files missing; the message says what was expected.
    """
    name = given or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    expected = "\n".join(f"  {file}: {what}" for file, what in layout.items())
    if name is None:
        sys.exit(f"no data folder: give --data DIR or set {DATA_VARIABLE}; expected in it\n{expected}")
    missing = [file for file in layout if not (name / file).exists()]
    if missing:
        sys.exit(f"{name}: {', '.join(missing)} missing; expected\n{expected}")
    return name


def sync(device: torch.device | str) -> None:
    """Wait until the device has done what it was given, so that a clock can be read."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], object], device: torch.device | str = "cpu", repeats: int = 20) -> float:
    """Median wall-clock time of one call, after one that warms up; at most about five seconds of calls."""
    run()
    sync(device)
    times: list[float] = []
    while len(times) < repeats and (len(times) < 3 or sum(times) < 5):
        began = time.perf_counter()
        run()
        sync(device)
        times.append(time.perf_counter() - began)
    return 1e3 * median(times)


class Report:
    """Measured numbers: shown as tables, one column per thing compared, and written as JSON.

    Args:
        title: of the program.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[tuple[str, str, str, float, str]] = []

    def add(self, section: str, column: str, name: str, value: float, unit: str) -> None:
        """One number. Its name in the JSON is `section/column/name`."""
        self.rows.append((section, column, name, float(value), unit))

    def add_spread(self, section: str, column: str, name: str, values: torch.Tensor, unit: str) -> None:
        """Mean and median of one number per person."""
        values = values[torch.isfinite(values)].double()
        if len(values):
            self.add(section, column, name, float(values.mean()), unit)
            self.add(section, column, f"{name}, median", float(values.median()), unit)

    def finish(self, file: Path | None) -> None:
        """Print the tables and write the file, where there is one."""
        from rich.console import Console
        from rich.table import Table

        # Wide enough for the tables where the output goes to a file.
        console = Console(width=None if sys.stdout.isatty() else 200)
        for section in dict.fromkeys(row[0] for row in self.rows):
            rows = [row for row in self.rows if row[0] == section]
            columns = list(dict.fromkeys(row[1] for row in rows))
            measures = list(dict.fromkeys((row[2], row[4]) for row in rows))
            cells = {(row[1], row[2], row[4]): _number(row[3]) for row in rows}
            table = Table(title=f"{self.title}: {section}", title_justify="left")
            table.add_column("")
            if len(columns) > MOST_COLUMNS:  # the other way round
                for name, unit in measures:
                    table.add_column(f"{name}\n{unit}", justify="right")
                for column in columns:
                    table.add_row(column, *(cells.get((column, *measure), "") for measure in measures))
            else:
                for column in columns:
                    table.add_column(column, justify="right")
                table.add_column("unit")
                for name, unit in measures:
                    table.add_row(name, *(cells.get((column, name, unit), "") for column in columns), unit)
            console.print(table)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, (json.dumps(self.items(), indent=1, allow_nan=False) + "\n").encode())

    def items(self) -> list[dict[str, str | float | None]]:
        """The numbers as JSON has them; one that is not finite is null."""
        return [
            {"name": "/".join(row[:3]), "value": row[3] if math.isfinite(row[3]) else None, "unit": row[4]}
            for row in self.rows
        ]


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile of a few numbers, NaN of none."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(share)) if values else math.nan


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "none"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.{digits}f}"

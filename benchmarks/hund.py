"""HUND on problems whose answer is known and on photos: after every stage, against other solvers, and with them.

The problems and their objective are those of `solvers.py`: people whom neither network nor prior has seen. Everything
of one table is of the same problems and the same minutes; times are those of the process, on one thread. `hund+lm` is
held near the network's answer, as it is by default; the hybrids HUND(i)+LM and HUND(i)+BFGS lower the plain objective
after i stages, as in the paper (0: from the network's initial state). The mean pose is the prior's, facing the
camera. The drawn curves are of wall-clock time.

    python benchmarks/hund.py --data DIR --json hund.json --plot docs
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from _common import Report, data_folder, options
from _hund_figures import draw_descent, draw_problems, typical
from _hund_photos import add_photos, photo_solvers
from _hund_rows import (
    OURS_BFGS,
    PAIRED,
    Measured,
    Run,
    add_errors,
    compared,
    corrupted,
    hybrids,
    measure,
    stages_of,
)
from _problems import LAYOUT, MISSING, MOTION, NOISE, UNITS, Problems, errors_of, load_poses, make_problems

from fitkit.body import BodyModel, open_body
from fitkit.files import output_folder
from fitkit.solvers.hund import HUND

T = TypeVar("T")
FEW = 30  # problems that SciPy is given
SINGLES = 10  # problems that the clock sees at batch 1
# Runs whose fastest steps are drawn: what a busy machine adds is not the solver's.
REPEATS = 5


def add_stages(report: Report, stages: list[Measured], trained: int) -> None:
    """The stages of training one by one, and some that come after them."""
    for number, stage in enumerate(stages):
        if number <= trained or number in (8, 10):
            add_errors(report, "stages", str(number), stage.errors)
            report.add("stages", str(number), "alone, from the start", stage.times[1], "ms")


def add_solvers(report: Report, rows: list[Measured], section: str = "solvers") -> None:
    """Accuracy, and time per person by batch size."""
    for row in rows:
        add_errors(report, section, row.name, row.errors)
        report.add(section, row.name, "problems", len(row), "")
        for size in sorted(row.times):
            report.add("time", row.name, f"per person, batch {size}", row.times[size], "ms")


def add_ratios(report: Report, rows: list[Measured]) -> None:
    """Times over HUND's at the same batch size; who goes one by one takes their own time in every batch."""
    for row in rows:
        for size in sorted(row.over):
            report.add("ratios", row.name, f"over hund, batch {size}", row.over[size], "x")


def add_paired(report: Report, rows: list[Measured], hund: Measured) -> None:
    """Mean differences to HUND on the same problems, and their standard errors."""
    for row in rows:
        count = len(row)
        report.add("paired", row.name, "problems", count, "")
        for what in (*PAIRED, "2D error, noisy points"):
            mine, other = row.errors[what], hund.errors[what][:count]
            report.add("paired", row.name, what, float((mine - other).mean()), UNITS[what])
            if count > 1:
                wide = float((mine - other).std()) / count**0.5
                report.add("paired", row.name, f"{what}, +-", wide, UNITS[what])
        above = 100 * float(row.errors["MPJPE"].mean() / hund.errors["MPJPE"][:count].mean() - 1)
        report.add("paired", row.name, "MPJPE, above hund", above, "%")


def add_subset(report: Report, rows: list[Measured], count: int) -> None:
    """Everybody on the problems that the slowest was given."""
    for row in rows:
        part = {what: values[:count] for what, values in row.errors.items()}
        add_errors(report, "subset", row.name, part)
        report.add("subset", row.name, "problems", count, "")


def add_robustness(
    report: Report, chosen: list[Run], body: BodyModel, conditions: dict[str, Problems]
) -> None:
    """Errors in space where the photo says less, and how far above those of the clean row they are."""
    clean: dict[str, dict[str, float]] = {}
    for condition, problems in conditions.items():
        for entry in chosen:
            found = errors_of(body, problems, entry(body, problems).state)
            means = {what: float(found[what].mean()) for what in ("MPJPE", "PA-MPJPE")}
            first = clean.setdefault(entry.name, means)
            for what, value in means.items():
                report.add("robustness", condition, f"{entry.name}, {what}", value, "mm")
                above = 100 * (value / first[what] - 1)
                report.add("robustness", condition, f"{entry.name}, {what} above clean", above, "%")


def add_problems(report: Report, given: argparse.Namespace, file: Path, count: int) -> None:
    """Everything that needs no photos, and the pictures of it."""
    few = min(given.scipy or (2 if given.quick else FEW), count)
    singles, repeats = (2, 1) if given.quick else (SINGLES, REPEATS)
    poses, exact = load_poses(file, count), open_body().to(torch.float64)
    body = exact.to(torch.float64, given.device)

    def make(noise: float = NOISE, missing: float = MISSING) -> Problems:
        return make_problems(exact, poses, noise=noise, missing=missing).to(given.device)

    problems, trained = make(), HUND(given.weights).max_steps
    follow = partial(stages_of, given.weights, body, problems, max(10, trained), singles)
    stages, table = _timed("stages", follow), compared(given.weights, few)
    clock = partial(measure, hund=table[0], body=body, problems=problems, singles=singles)
    rows = [_timed(entry.name, partial(clock, entry)) for entry in table]
    made = (0, trained) if given.quick else range(trained + 1)
    mixed = [_timed(entry.name, partial(clock, entry)) for entry in hybrids(given.weights, made)]
    add_stages(report, stages, trained)
    add_errors(report, "solvers", "truth", errors_of(body, problems, problems.truth))
    add_solvers(report, rows)
    add_solvers(report, mixed, "hybrids")
    add_ratios(report, [*rows, *mixed])
    add_paired(report, [*rows[1:], *mixed], rows[0])
    if few < count:
        add_subset(report, [*rows, *mixed], few)
    chosen = [entry for entry in table if entry.name in ("hund", "lm", "hund+lm")]
    _timed("robustness", partial(add_robustness, report, chosen, body, corrupted(make)))
    if given.plot is not None:
        folder = output_folder(given.plot)
        apose = [row for row in rows if row.name == OURS_BFGS]
        bfgs = [row for row in mixed if row.name.endswith("BFGS")]
        draw_problems(folder / "hund_problems.png", [*apose, *stages[: trained + 1], *bfgs])
        one = problems.select(typical(rows[0]))
        draw_descent(folder / "hund_descent.png", given.weights, body, one, repeats, made[1:])


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--weights", type=Path, metavar="FILE", help="of the network; else the one that ships")
    add("--count", type=int, metavar="N", help="problems (200, quick: 8)")
    add("--scipy", type=int, metavar="N", help=f"problems that SciPy gets ({FEW}, quick: 2)")
    action = argparse.BooleanOptionalAction
    add("--photos", action=action, help="whether photos are fitted (where there are any)")
    add("--pictures", type=Path, metavar="DIR", help="write a picture of every photo's fits")
    add("--plot", type=Path, metavar="DIR", help="draw hund_descent.png and hund_problems.png")
    given = parser.parse_args()
    data = data_folder(given.data, LAYOUT)
    if given.weights is not None and not given.weights.is_file():
        parser.error(f"--weights {given.weights}: no such file")
    photos = _has_photos(data) if given.photos is None else given.photos
    count = given.count or (8 if given.quick else 200)
    report = Report(f"hund, {count} problems")
    with torch.no_grad():
        add_problems(report, given, data / MOTION, count)
    if photos:
        number, solvers = 3 if given.quick else None, photo_solvers(given.weights)
        _timed("photos", partial(add_photos, report, data, solvers, given.device, number, given.pictures))
    report.finish(given.json)


def _has_photos(data: Path) -> bool:
    return (data / "photos" / "index.json").is_file() and importlib.util.find_spec("mediapipe") is not None


def _timed(what: str, run: Callable[[], T]) -> T:
    """Said as it goes: all of it takes the better part of an hour."""
    began = time.perf_counter()
    result = run()
    print(f"{what}: {time.perf_counter() - began:.0f} s", flush=True)
    return result


if __name__ == "__main__":
    main()

"""Solvers on problems whose answer is known: real poses of unseen subjects, random bodies, cameras and noise.

The same body makes and fits the problems and nothing hides itself, so the errors are a lower bound of those on
photos. MPJPE: 22 joints, pelvises together. PA-MPJPE: after the best similarity. Angles: 21 joints; limbs are hips,
knees, shoulders and elbows. Energy: of the same objective for all. Solvers of ours and of other packages run from the
four starts of `fitkit.fit`; published recipes from their one.

    python benchmarks/solvers.py --data DIR --json solvers.json --plot race.png
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from _common import Report, data_folder, milliseconds, options, sync
from _entries import OURS, Entry, entries, in_charts
from _problems import LAYOUT, MOTION, UNITS, Problems, errors_of, load_poses, make_problems, objective
from _race import draw_race, race
from torch import Tensor

from fitkit.body import BodyModel, open_body
from fitkit.metrics import mpjpe, pa_mpjpe
from fitkit.objectives import Objective, Residual
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.problem import Problem
from fitkit.solver import Outcome
from fitkit.state import State

# How many problems the clock sees at batch 1; slow ones take seconds each.
SINGLES, SLOW_SINGLES = 10, 5


def energy_of(body: BodyModel, problems: Problems, state: State) -> Tensor:
    """`(B,)` of the objective that everybody lowers."""
    return Problem(body, problems.observation, objective()).energy(state)


def add_errors(report: Report, name: str, body: BodyModel, problems: Problems, state: State) -> None:
    """Distance of states from the truth and from what was seen."""
    for what, values in errors_of(body, problems, state).items():
        report.add_spread("accuracy", name, what, values, UNITS[what])


def in_batches(
    entry: Entry, body: BodyModel, problems: Problems, batch: int
) -> tuple[State, Tensor, Tensor, dict[int, float]]:
    """All problems: states, outcomes and steps, and milliseconds per person by batch size."""
    size = min(batch, entry.limit or batch)
    entry(body, problems.select(slice(0, min(2, size))))  # tables that are made once
    answers, times = [], []
    for first in range(0, len(problems), size):
        part = problems.select(slice(first, first + size))
        sync(body.device)
        began = time.perf_counter()
        answers.append(entry(body, part))
        sync(body.device)
        if len(part) == size:
            times.append(1e3 * (time.perf_counter() - began) / size)
    names = answers[0].state.parts()
    whole = State(**{name: torch.cat([getattr(a.state, name) for a in answers]) for name in names})
    outcome, steps = torch.cat([a.outcome for a in answers]), torch.cat([a.steps for a in answers])
    return whole.to(body.dtype), outcome, steps, {size: median(times)}


def add_entry(report: Report, entry: Entry, body: BodyModel, problems: Problems, batch: int) -> Tensor:
    """Accuracy over all problems; time per person alone and in batches; `(B,)` energies."""
    problems = problems.select(slice(0, entry.most))
    state, outcome, steps, times = in_batches(entry, body, problems, batch)
    count = len(problems)
    add_errors(report, entry.name, body, problems, state)
    failed = sum(Outcome(code).failed for code in outcome.tolist())
    add = partial(report.add, "accuracy", entry.name)
    add("failures", failed, f"of {count}")
    add("at the step limit", int((outcome == Outcome.MAX_STEPS).sum()), f"of {count}")
    add("steps", float(steps.double().mean()), "mean")
    energy = energy_of(body, problems, state)
    singles = min(SLOW_SINGLES if entry.slow else SINGLES, count)
    if 1 not in times:
        alone, apart = [], []
        for row in range(singles):
            run = partial(entry, body, problems.select(row))
            apart.append(energy_of(body, problems.select(row), run().state.to(body.dtype)))
            alone.append(milliseconds(run, body.device, repeats=1 if entry.slow else 3))
        times[1] = median(alone)
        gap = (torch.cat(apart) - energy[:singles]).abs() / energy[:singles]
        add("alone against in a batch, energy", float(gap.max()), "largest relative")
    if entry.limit is None and 16 < batch:
        times[16] = milliseconds(partial(entry, body, problems.select(slice(0, 16))), body.device, 1) / 16
    for size in sorted(times):
        report.add("time", entry.name, f"per person, batch {size}", times[size], "ms")
    return energy


def add_bests(report: Report, energies: dict[str, Tensor]) -> None:
    """How far each is from the lowest energies that anybody found, and from Levenberg-Marquardt's."""
    count = max(map(len, energies.values()))
    whole = {name: energy for name, energy in energies.items() if len(energy) == count}
    best = torch.stack(list(whole.values())).amin(0)
    lowest = min(float(energy.mean()) for energy in whole.values())
    for name, energy in energies.items():
        add, same = partial(report.add, "energy", name), len(energy)
        add("problems", same, "")
        add("mean", float(energy.mean()), "")
        if same == count:
            add("mean above the lowest mean", 100 * float(energy.mean() / lowest - 1), "%")
        above = energy.mean() / best[:same].mean()
        add("mean above that of the best of each", 100 * float(above - 1), "%")
        near = (energy <= 1.01 * best[:same]).double().mean()
        add("within 1 % of the best", 100 * float(near), "% of problems")
        if "lm" in energies:
            reference = energies["lm"][:same]
            add("mean above lm's", 100 * float(energy.mean() / reference.mean() - 1), "%")
            lower = (energy < reference * (1 - 1e-3)).double().mean()
            add("lower than lm's", 100 * float(lower), "% of problems")


def add_ratios(report: Report, names: list[str]) -> None:
    """Times against Levenberg-Marquardt, and one person alone against one of a batch."""
    times = {(column, name): value for section, column, name, value, _ in report.rows if section == "time"}
    for name in names:
        for size in (1, 16, 64):
            measure = f"per person, batch {size}"
            if (name, measure) in times and ("lm", measure) in times:
                report.add(
                    "ratios", name, f"over lm, batch {size}", times[name, measure] / times["lm", measure], "x"
                )
        first, last = (times.get((name, f"per person, batch {size}")) for size in (1, 64))
        if first and last:
            report.add("ratios", name, "alone over in a batch of 64", first / last, "x")


class Automatic(Objective):
    """A term without its closed-form Jacobian."""

    def __init__(self, term: Objective) -> None:
        self.term = term
        self.name, self.weight, self.kernel = term.name, term.weight, term.kernel
        self.requires = term.requires

    def residual(self, pred: Prediction, obs: Observation) -> Residual | Tensor:
        return self.term.residual(pred, obs)


def add_jacobians(report: Report, body: BodyModel, problems: Problems, batch: int) -> None:
    """The least-squares problem of one step, by closed forms and by automatic differentiation."""
    plain = objective()
    terms = [Automatic(term) for term in plain.terms()]
    automatic: Objective = terms[0]
    for term in terms[1:]:
        automatic = automatic + term
    for size in (1, batch):
        part = problems.select(slice(0, size))
        state = replace(part.truth, betas=0.5 * part.truth.betas)
        pair = {
            "closed form": Problem(body, part.observation, plain),
            "automatic": Problem(body, part.observation, automatic),
        }
        times = {}
        with torch.no_grad():
            for name, problem in pair.items():
                times[name] = milliseconds(partial(problem.linearize, state), body.device)
                report.add("linearize", name, f"batch {size}", times[name], "ms")
            first, second = (problem.linearize(state) for problem in pair.values())
        ratio = times["automatic"] / times["closed form"]
        report.add("linearize", "automatic / closed form", f"batch {size}", ratio, "x")
        gap = (first.gradient - second.gradient).abs().max() / second.gradient.abs().max()
        report.add("linearize", "automatic - closed form", f"gradient, batch {size}", float(gap), "relative")


def add_charts(report: Report, body: BodyModel, problems: Problems, batch: int) -> None:
    """Our solvers in the three kinds of coordinates."""
    for entry in in_charts():
        state, _, _, times = in_batches(entry, body, problems, batch)
        joints, true = body.joints(state)[:, :22], body.joints(problems.truth)[:, :22]
        add = partial(report.add, "coordinates", entry.name)
        add("energy", float(energy_of(body, problems, state).mean()), "")
        add("MPJPE", float(1e3 * mpjpe(joints, true).mean()), "mm")
        add("PA-MPJPE", float(1e3 * pa_mpjpe(joints, true).mean()), "mm")
        for size, each in times.items():
            add(f"per person, batch {size}", each, "ms")


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--solver", nargs="+", metavar="NAME", help=f"some of {', '.join(entries())}")
    parser.add_argument("--count", type=int, metavar="N", help="problems (200, quick: 16)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw energy against time")
    given = parser.parse_args()
    file = data_folder(given.data, LAYOUT) / MOTION
    known = entries()
    chosen = given.solver or (list(OURS) if given.quick else list(known))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"--solver: {unknown} unknown, expected some of {list(known)}")
    count = given.count or (16 if given.quick else 200)
    batch = min(8 if given.quick else 64, count)
    poses = load_poses(file, count)
    problems = make_problems(open_body().to(torch.float64), poses).to(given.device)
    body = open_body().to(torch.float64, given.device)

    report = Report(f"solvers, {count} problems")
    add_errors(report, "truth", body, problems, problems.truth)
    energies = {}
    for name in chosen:
        energies[name] = _timed(name, partial(add_entry, report, known[name], body, problems, batch))
    add_bests(report, energies)
    add_ratios(report, chosen)
    add_jacobians(report, body, problems, batch)
    if not given.quick and given.solver is None:
        _timed("coordinates", partial(add_charts, report, body, problems, batch))
    if given.plot is not None:
        draw_race(given.plot, race(body, problems, batch, chosen))
    report.finish(given.json)


def _timed(what: str, run: Callable[[], Tensor | None]) -> Tensor:
    """Said as it goes: all of it takes the better part of an hour."""
    began = time.perf_counter()
    result = run()
    print(f"{what}: {time.perf_counter() - began:.0f} s", flush=True)
    return result if result is not None else torch.empty(0)


if __name__ == "__main__":
    main()

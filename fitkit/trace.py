"""Trace: what happened step by step, and the recorder that collects it while rows leave and multiply."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trace:
    """What happened, step by step, of the start that won for each person.

    Attributes:
        step: of each record, 0 = the start.
        seconds: since the start, wall clock of the whole batch (on CUDA: when the step was queued).
        stage: name of the stage of each record; in a chain it begins with the solver's name.
        terms: names of the terms.
        values: `(T, B, terms)` of the objective as the stage weighed it.
        energy: `(T, B)`.
    """

    step: list[int]
    seconds: list[float]
    stage: list[str]
    terms: tuple[str, ...]
    values: Tensor
    energy: Tensor

    def select(self, rows: Tensor) -> Trace:
        """The trace of some of the people."""
        rows = rows.to(self.energy.device)
        return replace(self, values=self.values[:, rows], energy=self.energy[:, rows])


class Recorder:
    """Collects energies of the whole batch, whoever is still running. A lane is the history of one start.

    Args:
        terms: names of all terms.
        like: any tensor with one row per lane.
    """

    def __init__(self, terms: tuple[str, ...], like: Tensor) -> None:
        self.terms, self.began = terms, time.perf_counter()
        self.columns: dict[tuple[str, ...], Tensor] = {}
        self.records: list[tuple[int, float, str, Tensor, Tensor]] = []
        self.energy = like.new_full((len(like),), torch.nan)
        self.values = like.new_full((len(like), len(terms)), torch.nan)
        self.steps = torch.zeros(len(like), dtype=torch.long, device=like.device)

    def add(self, stage: str, names: tuple[str, ...], lanes: Tensor, values: Tensor, energy: Tensor) -> None:
        """One record: `values` `(b, names)` and `energy` `(b,)` of the lanes `(b,)` that are still running."""
        self.energy, self.values = self.energy.clone(), self.values.clone()
        self.energy[lanes] = energy
        if names not in self.columns:
            self.columns[names] = torch.tensor(
                [self.terms.index(name) for name in names], device=lanes.device
            )
        self.values[lanes[:, None], self.columns[names]] = values
        seconds = time.perf_counter() - self.began
        self.records.append((len(self.records), seconds, stage, self.values, self.energy))

    def branch(self, lanes: Tensor) -> None:
        """From here on lane i continues what lane `lanes[i]` was."""
        self.records = [
            (step, seconds, stage, values[lanes], energy[lanes])
            for step, seconds, stage, values, energy in self.records
        ]
        self.values, self.energy, self.steps = self.values[lanes], self.energy[lanes], self.steps[lanes]

    def trace(self, lanes: Tensor) -> Trace:
        """The histories of some lanes."""
        step, seconds, stage, values, energy = map(list, zip(*self.records, strict=True))
        history = Trace(step, seconds, stage, self.terms, torch.stack(values), torch.stack(energy))
        return history.select(lanes)

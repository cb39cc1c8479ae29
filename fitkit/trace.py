"""Trace: what happened step by step, collected while rows leave and multiply, and put together when it is read."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Trace:
    """What happened, step by step, of the start that won for each of B people.

    Args:
        recorder: what was collected.
        lanes: `(B,)` the start that won.
    """

    def __init__(self, recorder: Recorder, lanes: Tensor) -> None:
        self._recorder, self._lanes = recorder, lanes

    def __len__(self) -> int:
        return len(self._recorder.records)

    @property
    def step(self) -> list[int]:
        """Number of each of T records, 0 = the start."""
        return list(range(len(self)))

    @property
    def seconds(self) -> list[float]:
        """Since the start, wall clock of the whole batch (on CUDA: when the step was queued)."""
        return [record.seconds for record in self._recorder.records]

    @property
    def stage(self) -> list[str]:
        """Name of the stage of each record; in a chain it begins with the solver's name."""
        return [record.stage for record in self._recorder.records]

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms."""
        return self._recorder.terms

    @property
    def values(self) -> Float[Tensor, "T B terms"]:
        """Of each term as the stage weighed it; NaN before its first record."""
        return self._recorder.table.values[:, self._lanes]

    @property
    def energy(self) -> Float[Tensor, "T B"]:
        """Of the terms that the stage counted."""
        return self._recorder.table.energy[:, self._lanes]

    @property
    def steps_made(self) -> Int[Tensor, " B"]:
        """Steps that were made of each person's start, before and after it branched off another."""
        return self._recorder.table.steps[self._lanes]

    def __getstate__(self) -> dict[str, object]:
        """For pickles and copies: one person of a thousand does not take the others along."""
        lanes = torch.arange(len(self._lanes), device=self._lanes.device)
        return {"_recorder": self._recorder.only(self._lanes), "_lanes": lanes}

    def select(self, rows: Tensor) -> Trace:
        """The trace of some of the people."""
        return Trace(self._recorder, self._lanes[rows.to(self._lanes.device)])


@dataclass(frozen=True)
class _Record:
    """One moment: values `(b, names)` and energy `(b,)` of the lanes `(b,)`, and who of them made a step `(b,)`."""

    seconds: float
    stage: str
    names: tuple[str, ...]
    lanes: Tensor
    values: Tensor
    energy: Tensor
    moved: Tensor


@dataclass(frozen=True)
class _Table:
    values: Tensor
    energy: Tensor
    steps: Tensor


class Recorder:
    """Collects energies of the whole batch, whoever is still running. A lane is the history of one start.

    Args:
        terms: names of all terms.
        lanes: how many there are at first.
    """

    def __init__(self, terms: tuple[str, ...], lanes: int) -> None:
        self.terms, self.lanes, self.began = terms, lanes, time.perf_counter()
        # Tensors among them are branches: from there on lane i continues what lane `branch[i]` was.
        self.events: list[_Record | Tensor] = []

    @property
    def records(self) -> list[_Record]:
        """What was added."""
        return [event for event in self.events if isinstance(event, _Record)]

    def add(
        self,
        stage: str,
        names: tuple[str, ...],
        lanes: Tensor,
        values: Tensor,
        energy: Tensor,
        moved: Tensor,
    ) -> None:
        """One record, of a step or of where a stage begins; cheap, because a solver waits for it."""
        seconds = time.perf_counter() - self.began
        self.events.append(_Record(seconds, stage, names, lanes, values, energy, moved))

    def branch(self, lanes: Tensor) -> None:
        """From here on lane i continues what lane `lanes[i]` was."""
        self.events.append(lanes)

    def only(self, lanes: Tensor) -> Recorder:
        """The histories of some lanes, which are lanes 0, 1, ... of the result."""
        kept, nobody = Recorder(self.terms, len(lanes)), lanes[:0]
        kept.events = [
            replace(record, lanes=nobody, values=nobody, energy=nobody, moved=nobody)
            for record in self.records
        ]
        table = self.table
        kept.table = _Table(table.values[:, lanes], table.energy[:, lanes], table.steps[lanes])
        return kept

    @cached_property
    def table(self) -> _Table:
        """Everything in rows of the last lanes; who was not running stands where they were."""
        like = self.records[0].energy
        energy = like.new_full((self.lanes,), torch.nan)
        values = like.new_full((self.lanes, len(self.terms)), torch.nan)
        steps = torch.zeros(self.lanes, dtype=torch.long, device=like.device)
        history: list[tuple[Tensor, Tensor]] = []
        for event in self.events:
            if isinstance(event, Tensor):
                history = [(old[event], sums[event]) for old, sums in history]
                energy, values, steps = energy[event], values[event], steps[event]
                continue
            energy, values, lanes = energy.clone(), values.clone(), event.lanes
            energy[lanes] = event.energy
            columns = torch.tensor([self.terms.index(name) for name in event.names], device=lanes.device)
            values[lanes[:, None], columns] = event.values
            steps.index_add_(0, lanes, event.moved.long())
            history.append((values, energy))
        return _Table(torch.stack([v for v, _ in history]), torch.stack([e for _, e in history]), steps)

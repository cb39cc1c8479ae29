"""Trace: what happened step by step, collected while rows leave and multiply, and put together when it is read."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fitkit._select import choose
from fitkit.state import State


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

    @cached_property
    def states(self) -> tuple[State, ...]:
        """The T states of B people, metres, camera frame; none where they were not kept (see `solve`)."""
        return self._recorder.states_of(self._lanes)

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
    """One moment: values `(b, names)` and energy `(b,)` of the lanes `(b,)`, who of them made a step `(b,)`, and their
    states where these are kept."""

    seconds: float
    stage: str
    names: tuple[str, ...]
    lanes: Tensor
    values: Tensor
    energy: Tensor
    moved: Tensor
    state: State | None = None


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
        states: whether the state of every record is kept.
    """

    def __init__(self, terms: tuple[str, ...], lanes: int, states: bool = False) -> None:
        self.terms, self.lanes, self.began = terms, lanes, time.perf_counter()
        self.keeps_states = states
        # Worked out already, of all lanes; see `only`.
        self.states: tuple[State, ...] | None = None
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
        state: State,
    ) -> None:
        """One record, of a step or of where a stage begins; cheap, because a solver waits for it."""
        seconds = time.perf_counter() - self.began
        kept = state if self.keeps_states else None
        self.events.append(_Record(seconds, stage, names, lanes, values, energy, moved, kept))

    def expect(self, terms: tuple[str, ...]) -> None:
        """Terms of another objective that is lowered from here on, beside those that are known."""
        self.terms += tuple(name for name in terms if name not in self.terms)

    def branch(self, lanes: Tensor) -> None:
        """From here on lane i continues what lane `lanes[i]` was."""
        self.events.append(lanes)

    def only(self, lanes: Tensor) -> Recorder:
        """The histories of some lanes, which are lanes 0, 1, ... of the result."""
        kept, nobody = Recorder(self.terms, len(lanes)), lanes[:0]
        kept.events = [
            replace(record, lanes=nobody, values=nobody, energy=nobody, moved=nobody, state=None)
            for record in self.records
        ]
        table, kept.states = self.table, self.states_of(lanes)
        kept.table = _Table(table.values[:, lanes], table.energy[:, lanes], table.steps[lanes])
        return kept

    def states_of(self, lanes: Tensor) -> tuple[State, ...]:
        """The state of some of the last lanes at every record; who was not running stands where they were."""
        if self.states is not None:
            return tuple(state.select(lanes) for state in self.states)
        if not self.keeps_states:
            return ()
        history: list[State] = []
        for record, then, count in self._ancestors(lanes):
            state = record.state
            assert state is not None  # of all records or of none
            place = torch.full((count,), -1, dtype=torch.long, device=then.device)
            place[record.lanes] = torch.arange(len(record.lanes), device=then.device)
            rows = place[then]
            if len(state) == 0:  # nobody was running
                history.append(history[-1] if history else state)
                continue
            now = state.select(rows.clamp_min(0))
            history.append(choose(rows >= 0, now, history[-1]) if history else now)
        return tuple(history)

    def _ancestors(self, lanes: Tensor) -> list[tuple[_Record, Tensor, int]]:
        """Every record, the lane that each of some last lanes was then, and how many there were."""
        counts = [self.lanes]
        for event in self.events:
            counts.append(len(event) if isinstance(event, Tensor) else counts[-1])
        found, then = [], lanes
        for event, count in zip(reversed(self.events), reversed(counts[1:]), strict=True):
            if isinstance(event, Tensor):
                then = event[then]
            else:
                found.append((event, then, count))
        return found[::-1]

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

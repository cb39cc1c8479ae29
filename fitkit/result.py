"""FitResult: all people of a call as one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Index, as_index
from fitkit.alternatives import Alternatives
from fitkit.body.model import BodyModel
from fitkit.observation import Observation
from fitkit.solver import Outcome
from fitkit.state import State
from fitkit.trace import Trace

if TYPE_CHECKING:
    from PIL.Image import Image


class FitError(RuntimeError):
    """Some of the people could not be fitted; `.result` still holds everybody."""

    def __init__(self, message: str, result: FitResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class FitResult:
    """The people of a photo, fitted: index, iterate and slice like a list; every item is a batch again.

    Attributes:
        state: `(B, ...)` best state of each person, metres, camera frame.
        body: of the states.
        observation: what they were fitted to.
        values: `(B,)` of each term of the objective, weights included.
        energy: `(B,)` their sum.
        status: why each person's fit stopped.
        trace: step by step.
        alternatives: where the starts that lost ended; None where nothing was solved.
        solver: name.
        seconds: `(B,)` wall clock of the solve, shared out over the people of the batch.
        source: what was fitted, for the reports.
        networks: names of the networks that its solvers ran.
    """

    state: State
    body: BodyModel
    observation: Observation
    values: dict[str, Tensor]
    energy: Float[Tensor, " B"]
    status: tuple[Outcome, ...]
    trace: Trace | None
    solver: str
    seconds: Float[Tensor, " B"]
    source: str = field(default="")
    alternatives: Alternatives | None = None
    networks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.status)

    def __getitem__(self, index: Index) -> FitResult:
        """The chosen people, as a batch.

        Raises:
            IndexError: nobody of that number.
        """
        rows = as_index(index, len(self))
        return replace(
            self,
            state=self.state.select(rows),
            observation=self.observation.select(rows),
            values={name: value[rows.to(value.device)] for name, value in self.values.items()},
            energy=self.energy[rows.to(self.energy.device)],
            status=tuple(self.status[row] for row in rows.tolist()),
            trace=None if self.trace is None else self.trace.select(rows),
            seconds=self.seconds[rows.to(self.seconds.device)],
            alternatives=None if self.alternatives is None else self.alternatives.select(rows),
        )

    def __iter__(self) -> Iterator[FitResult]:
        return (self[person] for person in range(len(self)))

    def __repr__(self) -> str:
        failed = sum(status.failed for status in self.status)
        return (
            f"FitResult({len(self)} people, {failed} failed, solver={self.solver!r}, body={self.body.name!r})"
        )

    @property
    def ok(self) -> Tensor:
        """`(B,)` bool: whose state can be used."""
        return torch.tensor([not status.failed for status in self.status], dtype=torch.bool)

    def raise_if_failed(self) -> FitResult:
        """This result, or a FitError that says who failed and why."""
        failed = [
            f"person {i}: {status.message}{self._culprits(i)}"
            for i, status in enumerate(self.status)
            if status.failed
        ]
        if failed:
            raise FitError("; ".join(failed), self)
        return self

    def _culprits(self, person: int) -> str:
        """The terms without a finite value, in brackets."""
        names = [name for name, value in self.values.items() if not math.isfinite(float(value[person]))]
        return f" ({', '.join(names)})" if names else ""

    @cached_property
    def runner_up(self) -> tuple[State, Float[Tensor, " B"]]:
        """The best answer that is another pose, and how far its energy is above: how clear the decision was.

        See `Alternatives.runner_up`; below about 1 the photo did not decide, and the other state deserves a look.
        With `jumps` it is in the estimated probability (`fitkit.jumps.evidence`), by which the winner was chosen.
        """
        if self.alternatives is None:
            return self.state, torch.full_like(self.energy, torch.inf)
        return self.alternatives.runner_up(self.body, self.state)

    @property
    def margin(self) -> Float[Tensor, " B"]:
        """How far the runner-up is above the best, infinite where no other pose was found."""
        return self.runner_up[1]

    def vertices(self) -> Float[Tensor, "B V 3"]:
        """The surfaces, metres, camera frame."""
        return self.body.vertices(self.state)

    def keypoints(self, name: str = "coco17") -> Float[Tensor, "B K 3"]:
        """The bodies' points of a keypoint set, metres, camera frame; NaN for points that the body cannot give."""
        points = self.body.keypoints(self.state, name)
        given = self.body.available(name)[:, None]
        return torch.where(given, points, torch.full_like(points, float("nan")))

    def keypoints_2d(self, name: str = "coco17") -> Float[Tensor, "B K 2"]:
        """The bodies' points of a keypoint set, pixels of the full photo."""
        return self.observation.camera.project(self.keypoints(name))

    def save(self, folder: str | Path) -> Path:
        """Write overlay, meshes, parameters, trace and report to a folder (made if missing).

        Files: `overlay.png`, `views.png`, `body_N.glb`, `body_N.obj`, `scene.glb`, `params.npz`, `trace.png`,
        `trace.csv`, `report.html` and `result.json`, and `stages.png` where the trace has states
        (`fit(..., states=True)`); each is written whole or not at all.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        from fitkit.show import save_result

        return save_result(self, folder)

    def show(self) -> Image:
        """The overlay as a Pillow image (a notebook displays it)."""
        from fitkit.show import show_result

        return show_result(self)

"""Coordinates: how a solver moves a State, as one flat tensor with named blocks, some of them frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit.state import ROTATIONS, State

VECTORS = ("betas", "expression", "transl")


@lru_cache(maxsize=256)
def _pack(
    sizes: tuple[tuple[str, int], ...], free: tuple[str, ...] | None, per_joint: int
) -> dict[str, slice]:
    """Columns of the free parts of a state, side by side; asked for at every step, so it is kept."""
    count = dict(sizes)
    unknown = [name for name in free or () if name not in count]
    if unknown:
        raise ValueError(f"cannot free {unknown}: the state has {sorted(count)}")
    blocks, start = {}, 0
    for name in (*ROTATIONS, *VECTORS):
        if name in count and (free is None or name in free):
            stop = start + count[name] * (per_joint if name in ROTATIONS else 1)
            blocks[name], start = slice(start, stop), stop
    return blocks


class Coordinates(ABC):
    """A chart around a reference state: `encode(state) -> x (B, D)` and `decode(x) -> State`.

    Args:
        reference: what frozen blocks keep, and where a chart is centred.
        free: names of the blocks that move (State's names); None for all that the reference has.

    Raises:
        ValueError: a block that the reference does not have.
    """

    per_joint: int

    def __init__(self, reference: State, free: Sequence[str] | None = None) -> None:
        self.reference = reference
        sizes = tuple((name, value.shape[1]) for name, value in reference.parts().items())
        self.blocks = _pack(sizes, None if free is None else tuple(free), self.per_joint)
        self.free = tuple(self.blocks)
        self.size = max((block.stop for block in self.blocks.values()), default=0)

    def decode(self, x: Float[Tensor, "B D"]) -> State:
        """The state at x; frozen blocks are those of the reference."""
        changed = {}
        for name, block in self.blocks.items():
            values = x[:, block]
            changed[name] = self._rotation(name, values) if name in ROTATIONS else values
        return replace(self.reference, **changed)

    @abstractmethod
    def encode(self, state: State) -> Float[Tensor, "B D"]:
        """The x of a state (its free blocks)."""

    @abstractmethod
    def _rotation(self, name: str, values: Tensor) -> Tensor: ...


class Tangent(Coordinates):
    """Rotation vectors at the reference: `R = R_ref exp(w)`, radians, w = 0 at the reference itself."""

    per_joint = 3

    def encode(self, state: State) -> Tensor:
        import roma

        columns = []
        for name in self.free:
            value = getattr(state, name)
            if name in ROTATIONS:
                value = roma.rotmat_to_rotvec(getattr(self.reference, name).mT @ value).flatten(1)
            columns.append(value)
        return torch.cat(columns, 1)

    def _rotation(self, name: str, values: Tensor) -> Tensor:
        turn = geometry.exp(values.unflatten(1, (-1, 3)))
        reference: Tensor = getattr(self.reference, name)
        return reference @ turn


class SixD(Coordinates):
    """Two columns of each rotation, orthonormalised on the way back (Zhou et al., CVPR 2019)."""

    per_joint = 6

    def encode(self, state: State) -> Tensor:
        columns = []
        for name in self.free:
            value = getattr(state, name)
            columns.append(geometry.to_6d(value).flatten(1) if name in ROTATIONS else value)
        return torch.cat(columns, 1)

    def _rotation(self, name: str, values: Tensor) -> Tensor:
        return geometry.from_6d(values.unflatten(1, (-1, 6)))


def retract(state: State, delta: Tensor, blocks: dict[str, slice], trust: float = 1.0) -> State:
    """One step on the manifold: rotations by `R exp(w)`, everything else by addition.

    Args:
        state: where the step starts.
        delta: `(B, D)` in the tangent blocks.
        blocks: of a `Tangent`.
        trust: radians that no joint may turn by in one step; a longer turn is a linearisation out of its range.
    """
    changed: dict[str, Tensor] = {}
    turning = [name for name in blocks if name in ROTATIONS]
    if turning:
        # Rotations are the first columns, side by side: one exponential turns them all.
        old = torch.cat([getattr(state, name) for name in turning], 1)
        turn = delta[:, : 3 * old.shape[1]].unflatten(1, (-1, 3))
        angle = torch.linalg.vector_norm(turn, dim=-1, keepdim=True)
        new = old @ geometry.exp(turn * (trust / angle.clamp_min(trust)))
        counts = [getattr(state, name).shape[1] for name in turning]
        changed.update(zip(turning, new.split(counts, 1), strict=True))
    for name, block in blocks.items():
        if name not in ROTATIONS:
            changed[name] = getattr(state, name) + delta[:, block]
    return replace(state, **changed)

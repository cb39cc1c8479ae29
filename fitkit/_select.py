"""Rows of frozen dataclasses: every noun of a batch of people is indexed, moved and joined the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound="Rows")
Index = int | slice | Sequence[int] | Tensor


def as_index(index: Index, length: int) -> Tensor:
    """Rows of a batch as a tensor of positions, so that selecting never drops the batch axis.

    Args:
        index: an int (negative counts from the end), a slice, positions, or a boolean mask `(B,)`.
        length: B.

    Raises:
        IndexError: a position outside the batch.
    """
    if isinstance(index, slice):
        return torch.tensor(range(length)[index], dtype=torch.long)
    chosen = torch.as_tensor(index)
    if chosen.dtype == torch.bool:
        if chosen.shape != (length,):
            raise IndexError(
                f"a mask of shape {tuple(chosen.shape)} for {length} people, expected ({length},)"
            )
        return chosen.nonzero()[:, 0]
    if chosen.numel() and chosen.is_floating_point():
        raise IndexError(f"people chosen by {chosen.dtype}, expected integers, a slice or a boolean mask")
    chosen = chosen.reshape(-1).long()
    if chosen.numel() and (int(chosen.min()) < -length or int(chosen.max()) >= length):
        raise IndexError(f"person {chosen.tolist()} asked for, but there are {length} (0..{length - 1})")
    return torch.where(chosen < 0, chosen + length, chosen)


class Rows:
    """Mixin of a frozen dataclass whose tensor fields all have one row per person.

    Fields that are dataclasses of the same kind are followed; everything else is shared between the rows.
    """

    def _map(self: T, change: Any) -> T:
        changed = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = change(value)
            elif isinstance(value, Rows) and is_dataclass(value):
                changed[field.name] = value._map(change)
        return replace(self, **changed)  # type: ignore[type-var]

    def select(self: T, index: Index) -> T:
        """The chosen people, as a batch (an int gives a batch of one)."""
        rows = as_index(index, len(self))  # type: ignore[arg-type]
        return self._map(lambda tensor: tensor[rows.to(tensor.device)])

    def repeat(self: T, times: int) -> T:
        """Every person `times` times, copies of one person side by side."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, 0))

    def to(self: T, target: torch.device | torch.dtype | str) -> T:
        """Moved to a device, or (floating point tensors only) to a dtype."""
        if isinstance(target, torch.dtype):
            return self._map(lambda tensor: tensor.to(target) if tensor.is_floating_point() else tensor)
        return self._map(lambda tensor: tensor.to(target))


def concatenate(parts: Sequence[T]) -> T:
    """One batch from several; parts that are None in the first are None in the result.

    Raises:
        ValueError: nothing to join, or an optional part that only some of them have.
    """
    if not parts:
        raise ValueError("nothing to concatenate: expected at least one batch")
    first, joined = parts[0], {}
    for field in fields(first):  # type: ignore[arg-type]
        values = [getattr(part, field.name) for part in parts]
        if any((value is None) != (values[0] is None) for value in values):
            raise ValueError(f"cannot concatenate: {field.name} is there for some people only")
        if isinstance(values[0], Rows) and any(type(value) is not type(values[0]) for value in values):
            kinds = sorted({type(value).__name__ for value in values})
            raise ValueError(f"cannot concatenate: {field.name} is of the kinds {kinds}")
        if isinstance(values[0], Tensor):
            if len({value.shape[1:] for value in values}) > 1:
                shapes = [tuple(value.shape) for value in values]
                raise ValueError(f"cannot concatenate: {field.name} has the shapes {shapes}")
            joined[field.name] = torch.cat(values)
        elif isinstance(values[0], Rows):
            joined[field.name] = concatenate(values)
        elif any(value is not values[0] and not _same(value, values[0]) for value in values):
            raise ValueError(
                f"cannot concatenate: {field.name} is not the same for all; fit photos one by one"
            )
    return replace(first, **joined)  # type: ignore[type-var]


def _same(first: Any, second: Any) -> bool:
    """Whether a part that all rows share is the same: names and numbers by value, pictures only by identity."""
    return not hasattr(first, "shape") and bool(first == second)


def choose(condition: Tensor, yes: T, no: T) -> T:
    """Row by row one of two batches, by a `(B,)` condition."""
    changed = {}
    for field in fields(yes):  # type: ignore[arg-type]
        first, second = getattr(yes, field.name), getattr(no, field.name)
        if isinstance(first, Tensor) and first is not second:
            changed[field.name] = torch.where(condition.view(-1, *[1] * (first.ndim - 1)), first, second)
        elif isinstance(first, Rows):
            changed[field.name] = choose(condition, first, second)
    return replace(yes, **changed)  # type: ignore[type-var]

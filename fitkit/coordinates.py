"""Coordinates: how a solver moves a State, as one flat tensor with named blocks, some of them frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit.state import ROTATIONS, State

VECTORS = ("betas", "expression", "transl")


@lru_cache(maxsize=256)
def _pack(widths: tuple[tuple[str, int], ...], free: tuple[str, ...] | None) -> dict[str, slice]:
    """Columns of the free parts of a state, side by side; asked for at every step, so it is kept."""
    count = dict(widths)
    unknown = [name for name in free or () if name not in count]
    if unknown:
        raise ValueError(f"cannot free {unknown}: the state has {sorted(count)}")
    blocks, start = {}, 0
    for name in (*ROTATIONS, *VECTORS):
        if name in count and (free is None or name in free):
            blocks[name] = slice(start, start + count[name])
            start += count[name]
    return blocks


class Coordinates(ABC):
    """A chart around a reference state: `encode(state) -> x (B, D)` and `decode(x) -> State`.

    Attributes:
        per_joint: numbers of a rotation.
        redundant: whether there are more numbers than degrees of freedom.

    Args:
        reference: what frozen blocks keep, and where a chart is centred.
        free: names of the blocks that move (State's names); None for all that the reference has.

    Raises:
        ValueError: a block that the reference does not have.
    """

    per_joint: int
    redundant: bool

    def __init__(self, reference: State, free: Sequence[str] | None = None) -> None:
        self.reference = reference
        widths = tuple((name, self._width(name, value.shape[1])) for name, value in reference.parts().items())
        self.blocks = _pack(widths, None if free is None else tuple(free))
        self.free = tuple(self.blocks)
        self.size = max((block.stop for block in self.blocks.values()), default=0)

    def encode(self, state: State) -> Float[Tensor, "B D"]:
        """The x of a state (its free blocks)."""
        columns = []
        for name in self.free:
            value = getattr(state, name)
            columns.append(self._numbers(name, value) if name in ROTATIONS else value)
        return torch.cat(columns, 1)

    def decode(self, x: Float[Tensor, "B D"]) -> State:
        """The state at x; frozen blocks are those of the reference."""
        changed = self._rotations(x)
        changed.update({name: x[:, block] for name, block in self.blocks.items() if name not in ROTATIONS})
        return replace(self.reference, **changed)

    def moved(self, delta: Float[Tensor, "B D"]) -> State:
        """The state one step away from the reference."""
        return self.decode(self.encode(self.reference) + delta)

    def differential(self) -> Float[Tensor, "B T D"] | None:
        """Derivative of the tangent columns (see `Tangent`) with respect to x, at the reference; None for identity.

        It turns a linearisation, which is always taken in the tangent, into one in x.
        """
        blocks = Tangent(self.reference, self.free).blocks
        people = len(self.reference)
        whole = self.reference.transl.new_zeros(people, max(b.stop for b in blocks.values()), self.size)
        for name, rows in blocks.items():
            value = getattr(self.reference, name)
            if name in ROTATIONS:
                part = self._rotation_differential(name, value)
            else:
                part = torch.eye(value.shape[1], dtype=value.dtype, device=value.device)
            whole[:, rows, self.blocks[name]] = part
        return whole

    def evened(self, sizes: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Sizes of the numbers (curvatures), those of a block made equal where there are more than degrees of freedom.

        Which of a rotation's numbers turn it depends on the rotation; scaled one by one, the others would run away.
        """
        if not self.redundant:
            return sizes
        parts = [sizes[:, block] for block in self.blocks.values()]
        return torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in parts], 1)

    def _width(self, name: str, count: int) -> int:
        return count * (self.per_joint if name in ROTATIONS else 1)

    @abstractmethod
    def _numbers(self, name: str, rotations: Tensor) -> Tensor: ...

    @abstractmethod
    def _rotations(self, x: Tensor) -> dict[str, Tensor]: ...

    @abstractmethod
    def _rotation_differential(self, name: str, rotations: Tensor) -> Tensor: ...


class Tangent(Coordinates):
    """Rotation vectors at the reference: `R = R_ref exp(w)`, radians, w = 0 at the reference itself."""

    per_joint = 3
    redundant = False

    def moved(self, delta: Tensor) -> State:
        """By `retract`, which bounds the turn of a joint."""
        return retract(self.reference, delta, self.blocks)

    def differential(self) -> None:
        return None

    def _numbers(self, name: str, rotations: Tensor) -> Tensor:
        return _turns(getattr(self.reference, name), rotations)

    def _rotations(self, x: Tensor) -> dict[str, Tensor]:
        return _turned(self.reference, x, self.blocks)

    def _rotation_differential(self, name: str, rotations: Tensor) -> Tensor:
        return _eye(rotations)


class SixD(Coordinates):
    """Two columns of each rotation, orthonormalised on the way back (Zhou et al., CVPR 2019)."""

    per_joint = 6
    redundant = True

    def _numbers(self, name: str, rotations: Tensor) -> Tensor:
        return geometry.to_6d(rotations).flatten(1)

    def _rotations(self, x: Tensor) -> dict[str, Tensor]:
        names = [name for name in self.blocks if name in ROTATIONS]
        return {name: geometry.from_6d(x[:, self.blocks[name]].unflatten(1, (-1, 6))) for name in names}

    def _rotation_differential(self, name: str, rotations: Tensor) -> Tensor:
        return _block_diagonal(geometry.from_6d_jacobian(rotations))


@runtime_checkable
class PoseLatent(Protocol):
    """What a pose prior offers to be a coordinate: a smooth map between latent numbers and rotations.

    Attributes:
        joints: of the body pose that it knows, the first ones of `State.body_pose`.
        latent_size: L.
    """

    joints: int
    latent_size: int

    def encode(self, rotations: Float[Tensor, "B J 3 3"]) -> Float[Tensor, "B L"]:
        """Latent numbers of rotations."""

    def decode(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B J 3 3"]:
        """Rotations of latent numbers."""

    def decode_jacobian(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B J 3 L"]:
        """Derivative of the w in `decode(z + dz) = decode(z) exp(w)`."""


class Latent(Coordinates):
    """The body pose in the latent numbers of a pose prior, everything else as in `Tangent`.

    Where the prior is a unit normal in its latent numbers, they are also well scaled: what is likely is near.

    Args:
        reference: see `Coordinates`.
        free: see `Coordinates`.
        prior: such as `fitkit.priors.flow_prior()`.
    """

    per_joint = 3
    redundant = True

    def __init__(self, reference: State, free: Sequence[str] | None = None, *, prior: PoseLatent) -> None:
        block = getattr(prior, "block", "body_pose")
        if block != "body_pose":
            raise ValueError(f"a prior of {block} as coordinates of the body's pose")
        self.prior = prior
        super().__init__(reference, free)

    @staticmethod
    def of(prior: PoseLatent) -> Chart:
        """The chart of a prior, as `Problem` and `Stage` take it."""
        return partial(Latent, prior=prior)

    def _width(self, name: str, count: int) -> int:
        if name != "body_pose":
            return super()._width(name, count)
        if count < self.prior.joints:
            raise ValueError(f"a body pose of {count} joints has no latent of a prior of {self.prior.joints}")
        return self.prior.latent_size + 3 * (count - self.prior.joints)

    def _numbers(self, name: str, rotations: Tensor) -> Tensor:
        if name != "body_pose":
            return _turns(getattr(self.reference, name), rotations)
        known = self.prior.joints
        latent = self.prior.encode(rotations[:, :known])
        rest = _turns(self.reference.body_pose[:, known:], rotations[:, known:])
        return torch.cat([latent, rest], 1)

    def _rotations(self, x: Tensor) -> dict[str, Tensor]:
        if "body_pose" not in self.blocks:
            return _turned(self.reference, x, self.blocks)
        # The latent makes room for what it stands for: no turn of the joints that it knows.
        pose, known, size = self.blocks["body_pose"], self.prior.joints, self.prior.latent_size
        still = x.new_zeros(len(x), 3 * known)
        plain = torch.cat([x[:, : pose.start], still, x[:, pose.start + size :]], 1)
        changed = _turned(self.reference, plain, Tangent(self.reference, self.free).blocks)
        latent = self.prior.decode(x[:, pose.start : pose.start + size])
        changed["body_pose"] = torch.cat([latent, changed["body_pose"][:, known:]], 1)
        return changed

    def _rotation_differential(self, name: str, rotations: Tensor) -> Tensor:
        if name != "body_pose":
            return _eye(rotations)
        known, size = self.prior.joints, self.prior.latent_size
        turned = self.prior.decode_jacobian(self.prior.encode(rotations[:, :known])).flatten(1, 2)
        whole = rotations.new_zeros(
            len(rotations), 3 * rotations.shape[1], self._width(name, rotations.shape[1])
        )
        whole[:, : 3 * known, :size] = turned
        rest = whole[:, 3 * known :, size:]
        rest.diagonal(dim1=1, dim2=2).fill_(1.0)
        return whole


Chart = Callable[[State, "Sequence[str] | None"], Coordinates]


def _turns(reference: Tensor, rotations: Tensor) -> Tensor:
    """`(B, 3 J)` rotation vectors that turn the reference `(B, J, 3, 3)` into the rotations."""
    import roma

    turned: Tensor = roma.rotmat_to_rotvec(reference.mT @ rotations)
    return turned.flatten(1)


def _eye(rotations: Tensor) -> Tensor:
    return torch.eye(3 * rotations.shape[1], dtype=rotations.dtype, device=rotations.device)


def _block_diagonal(blocks: Tensor) -> Tensor:
    """`(B, J * p, J * q)` from `(B, J, p, q)`."""
    people, joints, tall, wide = blocks.shape
    whole = blocks.new_zeros(people, joints, tall, joints, wide)
    whole.diagonal(dim1=1, dim2=3).copy_(blocks.permute(0, 2, 3, 1))
    return whole.view(people, joints * tall, joints * wide)


def retract(state: State, delta: Tensor, blocks: dict[str, slice], trust: float = 1.0) -> State:
    """One step on the manifold: rotations by `R exp(w)`, everything else by addition.

    Args:
        state: where the step starts.
        delta: `(B, D)` in the tangent blocks.
        blocks: of a `Tangent`.
        trust: radians that no joint may turn by in one step; a longer turn is a linearisation out of its range.
    """
    changed = _turned(state, delta, blocks, trust)
    for name, block in blocks.items():
        if name not in ROTATIONS:
            changed[name] = getattr(state, name) + delta[:, block]
    return replace(state, **changed)


def _turned(
    state: State, delta: Tensor, blocks: dict[str, slice], trust: float | None = None
) -> dict[str, Tensor]:
    """The rotations of a state, turned by tangent columns."""
    turning = [name for name in blocks if name in ROTATIONS]
    if not turning:
        return {}
    # Rotations are the first columns, side by side: one exponential turns them all.
    old = torch.cat([getattr(state, name) for name in turning], 1)
    turn = delta[:, : 3 * old.shape[1]].unflatten(1, (-1, 3))
    if trust is not None:
        turn = turn * (trust / torch.linalg.vector_norm(turn, dim=-1, keepdim=True).clamp_min(trust))
    counts = [getattr(state, name).shape[1] for name in turning]
    return dict(zip(turning, (old @ geometry.exp(turn)).split(counts, 1), strict=True))

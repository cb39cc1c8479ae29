"""Forward kinematics, skinned points and their analytic Jacobian: one definition for joints, keypoints, vertices.

A point k that a regressor `r` takes from the skinned surface is, without pose correctives,

    p_k = sum_v r_kv sum_j w_vj (G_j (v - J_j) + T_j) = sum_j G_j P_kj(beta) + c_kj T_j,

with `G_j` the global rotation and `T_j` the position of joint j, `c_kj = sum_v r_kv w_vj`, and `P_kj` linear in the
shape. Few (k, j) pairs are not zero, so a keypoint costs a few joints and never the mesh. A joint is the point with
c = 1 at itself, a vertex the point of a one-hot regressor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows


@dataclass(frozen=True)
class Skeleton:
    """The joints that can move, and where they rest.

    Attributes:
        parents: of each of A joints, -1 for the root; parents come before children.
        rest: `(A * 3)` offset of each joint from its parent at zero shape, metres (of the root: from the origin).
        rest_dirs: `(S, A * 3)` its change with the shape coefficients.
    """

    parents: tuple[int, ...]
    rest: Tensor
    rest_dirs: Tensor
    jumps: tuple[Tensor, ...] = field(init=False)
    ancestors: Tensor = field(init=False)
    above: Tensor = field(init=False)
    _root: Tensor = field(init=False)
    _frame: Tensor = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.parents)
        # Pointer jumping: after round i every joint holds the product over its 2^i nearest ancestors, so a chain of
        # n joints takes log2(n) batched products instead of n. Row `count` is the identity above the root.
        jumps, up = [], [parent if parent >= 0 else count for parent in self.parents] + [count]
        while any(joint != count for joint in up[:count]):
            jumps.append(torch.tensor(up, device=self.rest.device))
            up = [up[joint] for joint in up]
        ancestors = torch.eye(count, dtype=self.rest.dtype)
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                ancestors[joint] += ancestors[parent]
        object.__setattr__(self, "jumps", tuple(jumps))
        above = torch.tensor([max(parent, 0) for parent in self.parents], device=self.rest.device)
        object.__setattr__(self, "above", above)
        object.__setattr__(self, "ancestors", ancestors.to(self.rest.device))
        # `_root` hands the translation to the root alone; `_frame` holds the last row of every local transform, and
        # the identity above the root.
        root = torch.eye(3, 3 * count, dtype=self.rest.dtype, device=self.rest.device)
        object.__setattr__(self, "_root", root)
        frame = torch.zeros(count + 1, 4, 4, dtype=self.rest.dtype, device=self.rest.device)
        frame[:, 3, 3] = 1
        frame[count] = torch.eye(4)
        object.__setattr__(self, "_frame", frame)

    def __len__(self) -> int:
        return len(self.parents)

    def pose(
        self, rotations: Float[Tensor, "B A 3 3"], shape: Float[Tensor, "B S"], transl: Float[Tensor, "B 3"]
    ) -> Posed:
        """Global transforms of all joints.

        Args:
            rotations: parent-relative.
            shape: coefficients; fewer than the skeleton has directions for leave the rest at zero.
            transl: of the root, metres.
        """
        people, count = len(rotations), len(self)
        offsets = torch.addmm(self.rest, shape, self.rest_dirs[: shape.shape[1]])
        offsets = torch.addmm(offsets, transl, self._root)
        local = torch.cat([rotations, offsets.view(people, count, 3, 1)], -1)
        local = (torch.nn.functional.pad(local, (0, 0, 0, 1, 0, 1)) + self._frame).flatten(0, 1)
        for jump in self.jumps:
            above = local.view(people, count + 1, 16).index_select(1, jump)
            local = torch.bmm(above.view(-1, 4, 4), local)
        transforms = local.view(people, count + 1, 4, 4)[:, :-1, :3]
        return Posed(transforms, rotations, shape)


@dataclass(frozen=True)
class Posed(Rows):
    """Joints of B bodies after forward kinematics.

    Attributes:
        transforms: `(B, A, 3, 4)` `[G | T]`: global rotation and position (metres, camera frame) of each joint.
        rotations: `(B, A, 3, 3)` parent-relative, as given.
        shape: `(B, S)` coefficients, as given.
    """

    transforms: Float[Tensor, "B A 3 4"]
    rotations: Float[Tensor, "B A 3 3"]
    shape: Float[Tensor, "B S"]

    def __len__(self) -> int:
        return len(self.transforms)


@dataclass(frozen=True)
class PointSet:
    """K points that move with the skeleton, as sparse (point, joint) pairs.

    Attributes:
        count: K.
        point: `(n,)` the point of each pair.
        joint: `(n,)` the joint of each pair.
        offset: `(n * 4)` `[P | c]` of each pair at zero shape.
        offset_dirs: `(S, n * 4)` its change with the shape.
        skeleton: whose joints they are.
    """

    count: int
    point: Tensor
    joint: Tensor
    offset: Tensor
    offset_dirs: Tensor
    skeleton: Skeleton
    _sum: Tensor = field(init=False)

    def __post_init__(self) -> None:
        gather = self.offset.new_zeros(self.count, len(self.point))
        gather[self.point, torch.arange(len(self.point), device=self.point.device)] = 1
        object.__setattr__(self, "_sum", gather)

    def _pairs(self, posed: Posed) -> Tensor:
        """What each pair contributes to its point, `(B, n, 3)`."""
        shape = posed.shape
        offset = torch.addmm(self.offset, shape, self.offset_dirs[: shape.shape[1]])
        moved = posed.transforms.index_select(1, self.joint).flatten(0, 1)
        return torch.bmm(moved, offset.view(-1, 4, 1)).view(len(posed), len(self.point), 3)

    def positions(self, posed: Posed) -> Float[Tensor, "B K 3"]:
        """Where the points are, metres, camera frame."""
        return self._gathered(self._pairs(posed))

    def _gathered(self, pairs: Float[Tensor, "B n 3"]) -> Float[Tensor, "B K 3"]:
        """Pairs summed over their points: one matrix product for the whole batch, not one for each person."""
        people = len(pairs)
        if people == 1:
            return self._sum @ pairs
        flat = self._sum @ pairs.transpose(0, 1).reshape(len(self.point), people * 3)
        return flat.view(self.count, people, 3).transpose(0, 1)

    def jacobian(
        self, posed: Posed, joints: int | None = None, shaped: bool = True
    ) -> tuple[
        Float[Tensor, "B K 3"],
        Float[Tensor, "B K 3 R"],
        Float[Tensor, "B K 3 S"] | None,
        Float[Tensor, "B K 3 3"],
    ]:
        """Positions, and their derivatives with respect to rotations, shape and translation.

        Rotations are perturbed on the right, `R_j exp(w_j)`. Turning joint j by w about its own axes moves a point
        by `G_j w` crossed with the lever arm from T_j to the part of the point that hangs below j: the arm costs
        one matrix product for all joints, where automatic differentiation would pay one pass per coordinate.

        Args:
            posed: joints.
            joints: how many of the first joints may turn, R = 3 * joints; None for all.
            shaped: whether the shape derivative is wanted; None is returned for it otherwise.
        """
        table = self._jacobian_table
        people, joints = len(posed), len(self.skeleton) if joints is None else joints
        size = posed.shape.shape[1]
        pairs = self._pairs(posed)
        turned, place = posed.transforms[..., :3], posed.transforms[..., 3]
        below = (table.below[: joints * self.count] @ pairs).view(people, joints, self.count, 3)
        arm = below - table.mass[:joints, :, None] * place[:, :joints, None]
        arm = arm.transpose(1, 2)[..., None].expand(people, self.count, joints, 3, 3)
        rotate = torch.linalg.cross(turned[:, None, :joints].expand_as(arm), arm, dim=-2)
        rotate = rotate.transpose(2, 3).reshape(people, self.count, 3, 3 * joints)
        move = table.move.expand(people, -1, -1, -1)
        if not shaped:
            return self._gathered(pairs), rotate, None, move
        flat = turned.transpose(1, 2).flatten(2) @ table.shape
        spread = flat.view(people, 3, self.count, len(self.offset_dirs))[..., :size].transpose(1, 2)
        return self._gathered(pairs), rotate, spread + table.root[..., :size], move

    @cached_property
    @torch.inference_mode(False)  # kept: no later gradient could go through an inference tensor
    def _jacobian_table(self) -> _JacobianTable:
        return _JacobianTable.of(self)


@dataclass(frozen=True)
class _JacobianTable:
    """Constants of `PointSet.jacobian`.

    Attributes:
        below: `(A * K, n)` sums the pairs of a point that hang below a joint.
        mass: `(A, K)` their total c.
        shape: `(A * 3, K * S)` what a shape coefficient moves a point by, in the frame of each joint.
        root: `(K, 3, S)` the part of it that hangs on no joint: the root's own rest position.
        move: `(1, K, 3, 3)` what a translation moves a point by.
    """

    below: Tensor
    mass: Tensor
    shape: Tensor
    root: Tensor
    move: Tensor

    @staticmethod
    def of(points: PointSet) -> _JacobianTable:
        skeleton, pairs = points.skeleton, len(points.point)
        joints, size = len(skeleton), len(points.offset_dirs)
        hangs = skeleton.ancestors[points.joint]
        below = torch.einsum("kn,nj->jkn", points._sum, hangs)
        offset = points.offset.view(pairs, 4)
        mass = below @ offset[:, 3]
        own = points.offset.new_zeros(points.count, joints, 3, size)
        dirs = points.offset_dirs.view(size, pairs, 4)[..., :3].permute(1, 2, 0)
        own.index_put_((points.point, points.joint), dirs, accumulate=True)
        rest = skeleton.rest_dirs.view(size, joints, 3).permute(1, 2, 0)
        for joint, parent in enumerate(skeleton.parents):
            if parent >= 0:
                own[:, parent] += mass[joint, :, None, None] * rest[joint]
        shape = own.permute(1, 2, 0, 3).reshape(joints * 3, points.count * size)
        root = mass[0, :, None, None] * rest[0]
        move = mass[0, :, None, None] * torch.eye(3, dtype=mass.dtype, device=mass.device)
        return _JacobianTable(below.reshape(-1, pairs), mass, shape, root, move[None])

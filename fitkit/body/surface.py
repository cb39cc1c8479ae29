"""Points anywhere on the skinned surface, other ones for every person, and their analytic Jacobian.

A point with weights `b_v` on vertices v (the corners of a face, or one vertex alone) is

    p = sum_v b_v sum_j w_vj (G_j (x_v - J_j) + T_j),   x_v = template + shape + pose correctives,

so it hangs on joint j with the mass `m_j = sum_v b_v w_vj`, exactly as a keypoint does (`kinematics`); the correctives
add what the turning of a joint does to `x_v` itself. Only these vertices are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.body.kinematics import Posed, Skeleton


@dataclass(frozen=True)
class Skin:
    """What moves N points of each person; each hangs on K vertices.

    Attributes:
        share: `(B, N, K)` of each vertex in the point.
        rest: `(B, N, K, 3)` template positions, metres.
        dirs: `(B, N, K, 3, S)` their change with the shape.
        posedirs: `(B, N, K, 3, 9 P)` pose correctives of joints 1..P.
        weights: `(B, N, K, A)` skinning, on the joints that can move.
        joints: `(A, 3)` rest positions of the joints, metres.
        joint_dirs: `(A, 3, S)` their change with the shape.
        skeleton: the joints.
    """

    share: Tensor
    rest: Tensor
    dirs: Tensor
    posedirs: Tensor
    weights: Tensor
    joints: Tensor
    joint_dirs: Tensor
    skeleton: Skeleton

    def _unposed(self, posed: Posed) -> Tensor:
        """Vertices in the rest pose, `(B, N, K, 3)`."""
        size = posed.shape.shape[1]
        shaped = self.rest + torch.einsum("bnkcs,bs->bnkc", self.dirs[..., :size], posed.shape)
        count = self.posedirs.shape[-1] // 9
        if not count:
            return shaped
        eye = torch.eye(3, dtype=shaped.dtype, device=shaped.device)
        feature = (posed.rotations[:, 1 : count + 1] - eye).flatten(1)
        return shaped + (self.posedirs @ feature[:, None, None, :, None])[..., 0]

    def _pairs(self, posed: Posed) -> tuple[Tensor, Tensor]:
        """What each joint contributes to a point, `(B, N, A, 3)`, and its mass `(B, N, A)`."""
        pull = self.weights * self.share[..., None]
        mass = pull.sum(2)
        joints = self.joints + torch.einsum(
            "jcs,bs->bjc", self.joint_dirs[..., : posed.shape.shape[1]], posed.shape
        )
        lever = pull.mT @ self._unposed(posed) - mass[..., None] * joints[:, None]
        turned = torch.einsum("bjrc,bnjc->bnjr", posed.transforms[..., :3], lever)
        return turned + mass[..., None] * posed.transforms[:, None, :, :, 3], mass

    def positions(self, posed: Posed) -> Float[Tensor, "B N 3"]:
        """Where the points are, metres, camera frame."""
        return self._pairs(posed)[0].sum(2)

    def jacobian(
        self, posed: Posed
    ) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N 3 R"], Float[Tensor, "B N 3 S"]]:
        """Positions, and their derivatives with respect to rotations (on the right, `R_j exp(w_j)`) and shape.

        The derivative with respect to the translation is the identity.
        """
        pairs, mass = self._pairs(posed)
        turned, place = posed.transforms[..., :3], posed.transforms[..., 3]
        hangs = self.skeleton.ancestors
        below = torch.einsum("bnjc,ja->bnac", pairs, hangs)
        arm = below - (mass @ hangs)[..., None] * place[:, None]
        # (G_a e_i) x arm for the three axes i of every joint a
        axes = turned.mT[:, None].expand(-1, arm.shape[1], -1, -1, -1)
        rotate = torch.linalg.cross(axes, arm[..., None, :].expand_as(axes), dim=-1)
        rotate = rotate.flatten(2, 3).mT
        # How a displacement of each vertex moves the point: b_v sum_j w_vj G_j.
        carry = torch.einsum("bnkj,bjrc->bnkrc", self.weights * self.share[..., None], turned)
        self._add_correctives(posed, carry, rotate)
        return pairs.sum(2), rotate, self._spread(posed, carry, mass)

    def _add_correctives(self, posed: Posed, carry: Tensor, rotate: Tensor) -> None:
        """What turning a joint does through the pose correctives, added in place."""
        count = min(self.posedirs.shape[-1] // 9, posed.rotations.shape[1] - 1)
        if not count:
            return
        # Row m of R [e_i]_x as a function of the axis i: minus the cross product of R's rows with e_i.
        rotations = posed.rotations[:, 1 : count + 1]
        eye = torch.eye(3, dtype=rotate.dtype, device=rotate.device)
        rows = rotations[..., :, :, None].expand(*rotations.shape, 3)
        turning = torch.linalg.cross(rows, eye.expand_as(rows), dim=-2)
        turning = turning.flatten(2, 3)  # (B, P, 9, 3)
        moved = carry.transpose(2, 3).flatten(3) @ self.posedirs[..., : 9 * count].flatten(2, 3)
        moved = torch.einsum("bnrpm,bpmi->bnrpi", moved.unflatten(-1, (count, 9)), turning)
        rotate[..., 3 : 3 * count + 3] += moved.flatten(-2)

    def _spread(self, posed: Posed, carry: Tensor, mass: Tensor) -> Tensor:
        """Derivative with respect to the shape: of the vertices, of the joints, and of the bones between them."""
        size = posed.shape.shape[1]
        turned, skeleton = posed.transforms[..., :3], self.skeleton
        bones = skeleton.rest_dirs[:size].view(size, len(skeleton), 3).permute(1, 2, 0)
        grown = turned[:, skeleton.above] @ bones
        grown[:, 0] = bones[0]
        place = torch.einsum("ja,bacs->bjcs", skeleton.ancestors, grown)
        place = place - turned @ self.joint_dirs[..., :size]
        surface = carry.transpose(2, 3).flatten(3) @ self.dirs[..., :size].flatten(2, 3)
        return surface + torch.einsum("bnj,bjcs->bncs", mass, place)

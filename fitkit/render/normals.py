"""Smooth normals of meshes, differentiable."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Squared length below which a sum of face normals has no direction (m^4; a face of 1 mm^2 gives 4e-12).
_NO_DIRECTION = 1e-24


def vertex_normals(vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "B V 3"]:
    """Unit normals at the vertices, the mean of the faces around them weighed by area; differentiable.

    They face outwards where the faces, seen from outside, run counter-clockwise. Values and gradients are finite: a
    vertex without a direction (of no face, or of faces without area or with corners that are not finite) gets zero.

    Args:
        vertices: `(B, V, 3)` metres.
        faces: `(F, 3)` integers.
    """
    pictures, count = vertices.shape[:2]
    start = torch.arange(pictures, device=vertices.device)[:, None] * count
    corners = [(start + faces[:, k].long()).reshape(-1) for k in range(3)]
    finite = torch.isfinite(vertices).all(-1).reshape(-1)
    points = torch.where(finite[:, None], vertices.reshape(-1, 3), 0.0)
    a, b, c = (points.index_select(0, corner) for corner in corners)
    usable = finite[corners[0]] & finite[corners[1]] & finite[corners[2]]
    area = torch.where(usable[:, None], torch.linalg.cross(b - a, c - a), 0.0)
    normals = torch.zeros_like(points)
    for corner in corners:
        normals = normals.index_add(0, corner, area)
    length2 = normals.square().sum(-1, keepdim=True)
    some = length2 > _NO_DIRECTION
    unit = torch.where(some, normals * torch.where(some, length2, 1.0).rsqrt(), 0.0)
    return unit.view(vertices.shape)

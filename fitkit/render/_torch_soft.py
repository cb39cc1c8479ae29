"""The soft rasteriser in plain torch: all pairs of a face and a pixel it can reach, in the dtype of the vertices.

The oracle of the other back ends (in float64), and what draws where Warp is not installed. Autograd keeps some 60
numbers per pair: a body of 27 thousand faces over 128 x 128 pixels has half a million pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fitkit.render.scene import BACKGROUND, Scene


def render(scene: Scene) -> tuple[Tensor, Tensor]:
    """Silhouette `(B, H, W)` and attributes `(B, H, W, C)` in the dtype of the vertices."""
    size, new = (len(scene.corners), scene.height, scene.width), scene.corners.new_zeros(0, dtype=scene.dtype)
    with torch.no_grad():
        picture, face, column, row = _pairs(scene)
    at = scene.faces[face]
    triangle = scene.corners[picture[:, None], at]
    # Lengths are counted from the pixel, so that float32 loses little to large coordinates.
    pixel = torch.stack([column, row], -1).to(triangle) + 0.5
    distance2, weights, inside = _on_screen((triangle[..., :2] - pixel[:, None]).to(scene.dtype))
    kept = torch.nonzero(inside | (distance2.detach() < scene.blur2))[:, 0]
    inward = torch.where(inside, distance2, -distance2)[kept] / scene.softness**2
    weights, z = weights[kept], triangle[kept, :, 2].to(scene.dtype)
    picture, face, at = picture[kept], face[kept], at[kept]
    to = (picture * scene.height + row[kept]) * scene.width + column[kept]

    pixels = size[0] * size[1] * size[2]
    silhouette = -torch.expm1(new.new_zeros(pixels).index_add(0, to, -softplus(inward)))
    # Perspective divides by z; clipping and dividing by the sum follow, so no other factor matters.
    mixed = weights.clamp_min(0) / z
    mixed = mixed / mixed.sum(1, keepdim=True)
    depth = (mixed * z).sum(1)
    nearest = new.new_full((pixels,), torch.inf).scatter_reduce(0, to, depth.detach(), "amin")
    weight = inward.sigmoid() * ((nearest[to] - depth) / scene.depth_softness).exp()
    total = new.new_full((pixels,), BACKGROUND).index_add(0, to, weight)

    attributes = new.new_zeros(pixels, scene.channels)
    if scene.labels is not None:
        label = scene.labels.labels.long()[face]
        chosen = torch.nonzero(label >= 0)[:, 0]
        flat = to[chosen] * scene.channels + label[chosen]
        attributes = attributes.view(-1).index_add(0, flat, weight[chosen]).view(pixels, -1)
    elif scene.values is not None:
        value = (mixed[..., None] * scene.values.to(scene.dtype)[picture[:, None], at]).sum(1)
        attributes = attributes.index_add(0, to, weight[:, None] * value)
    return silhouette.view(size), (attributes / total[:, None]).view(*size, scene.channels)


def _pairs(scene: Scene) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Picture, face, column and row of every pair (P,) of a face with a pixel of its widened bounding box."""
    corners = scene.corners.detach()[:, scene.faces][..., :2]
    limit = torch.tensor([scene.width, scene.height], device=corners.device)
    reach = scene.blur2**0.5
    first = (corners.amin(2) - reach - 0.5).ceil().clamp_min(0).minimum(limit.to(corners)).long()
    end = (corners.amax(2) + reach + 0.5).floor().clamp_min(0).minimum(limit.to(corners)).long()
    shape = (end - first).clamp_min(0) * scene.usable()[..., None]
    count = shape.prod(-1).reshape(-1)
    pair = torch.repeat_interleave(count)
    number = torch.arange(len(pair), device=pair.device) - (count.cumsum(0) - count)[pair]
    across = shape[..., 0].reshape(-1)[pair]
    column = number % across + first[..., 0].reshape(-1)[pair]
    row = number // across + first[..., 1].reshape(-1)[pair]
    faces = len(scene.faces)
    return pair // faces, pair % faces, column, row


def _on_screen(triangle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of triangles (P, 3, 2) around a pixel at the origin: squared distance to the outline, weights, inside."""
    after, edge = triangle.roll(-1, 1), triangle.roll(-1, 1) - triangle
    length2 = edge.square().sum(-1)
    along = (-(triangle * edge).sum(-1) / length2).clamp(0, 1)
    distance2 = (triangle + along[..., None] * edge).square().sum(-1).amin(1)
    opposite = _cross(triangle, after).roll(-1, 1)  # the edge from b to c belongs to a
    area = _cross(edge[:, 0], edge[:, 1])
    weights = opposite / area[:, None]
    return distance2, weights, (weights > 0).all(1)


def _cross(one: Tensor, two: Tensor) -> Tensor:
    return one[..., 0] * two[..., 1] - one[..., 1] * two[..., 0]

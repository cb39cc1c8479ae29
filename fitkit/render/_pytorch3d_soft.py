"""The soft rasteriser of pytorch3d: its nearest faces of every pixel, blended as its `softmax_rgb_blend` does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fitkit.render.scene import BACKGROUND, Scene


def render(scene: Scene, faces_per_pixel: int = 50) -> tuple[Tensor, Tensor]:
    """Silhouette `(B, H, W)` and attributes `(B, H, W, C)`, float32.

    The gradients that pytorch3d gives to barycentric weights and depths explode on faces seen almost from the side
    (measured at commit 9381c40: 10^5 times too long over a body of 27 thousand faces); those to the silhouette do not.

    Args:
        scene: to draw.
        faces_per_pixel: pytorch3d's K; farther faces are left out, which makes holes where more are within reach.
    """
    fragments, distance2, depth, weights = _fragments(scene, faces_per_pixel)
    there = fragments >= 0
    inward = torch.where(there, -distance2 / scene.softness**2, -1e4)  # where no face is, its cover is 0
    silhouette = -torch.expm1(logsigmoid(-inward).sum(-1))
    nearest = torch.where(there, depth, torch.inf).amin(-1, keepdim=True).detach()
    behind = torch.where(there, depth - nearest, 0.0) / scene.depth_softness
    weight = torch.where(there, inward.sigmoid() * (-behind).exp(), 0.0)
    total = weight.sum(-1, keepdim=True) + BACKGROUND
    face = fragments.clamp_min(0) % max(len(scene.faces), 1)
    shape = (*silhouette.shape, scene.channels)
    if scene.labels is not None:
        label = scene.labels.labels.long()[face]
        share = torch.where(label >= 0, weight / total, 0.0)
        attributes = weight.new_zeros(shape).scatter_add(-1, label.clamp_min(0), share)
    elif scene.values is not None:
        picture = torch.arange(len(scene.corners), device=face.device).view(-1, 1, 1, 1, 1)
        corner = scene.values.to(weight)[picture, scene.faces[face]]  # (B, H, W, K, 3, C)
        color = (weights[..., None] * corner).sum(-2)
        attributes = ((weight / total)[..., None] * color).sum(-2)
    else:
        attributes = weight.new_zeros(shape)
    return silhouette, attributes


def _fragments(scene: Scene, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Faces (B, H, W, K) of all pictures, squared distances in pixels (inside negative), depths, weights."""
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    size = torch.tensor([scene.width, scene.height], device=scene.corners.device)
    half = min(scene.width, scene.height) / 2
    # Its axes point left and up, and reach from -1 to 1 over the shorter side.
    xy = (size / 2 - scene.corners[..., :2]) / half
    points = torch.cat([xy, scene.corners[..., 2:]], -1).to(torch.float32)
    # pytorch3d passes over a face without area.
    faces = torch.where(scene.usable()[..., None], scene.faces, 0)
    meshes: Any = Meshes(verts=list(points), faces=list(faces))
    fragments, depth, weights, distance2 = rasterize_meshes(
        meshes,
        image_size=(scene.height, scene.width),
        blur_radius=scene.blur2 / half**2,
        faces_per_pixel=count,
        perspective_correct=True,
        clip_barycentric_coords=True,
        cull_backfaces=False,
    )
    return fragments, distance2 * half**2, depth, weights

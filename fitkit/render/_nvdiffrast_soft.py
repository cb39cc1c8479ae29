"""nvdiffrast under the interface of the soft rasteriser: the nearest face only, with antialiased edges; CUDA only."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fitkit.render.scene import FARTHEST, Scene

# Coverage below which a pixel shows the background alone.
_NOTHING = 1e-6


def render(scene: Scene) -> tuple[Tensor, Tensor]:
    """Silhouette `(B, H, W)` and attributes `(B, H, W, C)`, float32.

    Laine et al. (ToG 2020): edges have gradients within one pixel, so `softness` and `depth_softness` have no effect.
    """
    import nvdiffrast.torch as dr

    clip, index, ranges = _meshes(scene)
    size = [scene.height, scene.width]
    hits, _ = dr.rasterize(_context(str(clip.device)), clip, index, resolution=size, ranges=ranges)
    seen = hits[..., 3:] > 0
    layers = [seen.to(torch.float32)]
    if scene.labels is not None:
        face = (hits[..., 3].long() - 1).clamp_min(0) % max(len(scene.faces), 1)
        label = scene.labels.labels.long()[face][..., None]
        channel = torch.arange(scene.labels.count, device=label.device)
        layers.append(((label == channel) & seen).to(torch.float32))
    elif scene.values is not None:
        color, _ = dr.interpolate(scene.values.to(torch.float32).flatten(0, 1), hits, index)
        layers.append(torch.where(seen, color, torch.zeros_like(color)))
    smooth = dr.antialias(torch.cat(layers, -1).contiguous(), hits, clip, index)
    silhouette = smooth[..., 0].clamp(0, 1)
    covered = silhouette[..., None] > _NOTHING
    attributes = smooth[..., 1:] / torch.where(covered, silhouette[..., None], 1.0)
    return silhouette, torch.where(covered, attributes, torch.zeros_like(attributes))


def _meshes(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Clip space (B V, 4), triangles (B F, 3) of all pictures one after the other, and which are whose (B, 2).

    nvdiffrast's rows run, as ours, from -1 at the first. Faces that are not drawn become points.
    """
    pictures, vertices = scene.corners.shape[:2]
    size = torch.tensor([scene.width, scene.height], device=scene.corners.device)
    z = scene.corners[..., 2:]
    xy = (2 * scene.corners[..., :2] / size - 1) * z
    depth = (z * (FARTHEST + scene.near) - 2 * FARTHEST * scene.near) / (FARTHEST - scene.near)
    clip = torch.cat([xy, depth, z], -1).to(torch.float32).flatten(0, 1).contiguous()
    faces = torch.where(scene.usable()[..., None], scene.faces, 0)
    first = torch.arange(pictures, device=faces.device)[:, None, None] * vertices
    index = (faces + first).flatten(0, 1).to(torch.int32).contiguous()
    count = len(scene.faces)
    return clip, index, torch.tensor([[row * count, count] for row in range(pictures)], dtype=torch.int32)


@cache
def _context(device: str) -> Any:
    import nvdiffrast.torch as dr

    return dr.RasterizeCudaContext(device=device)

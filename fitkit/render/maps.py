"""What is to be read off a body's surface at each pixel: parts, charts, their coordinates, depth and normals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.render.hard import Raster
from fitkit.render.normals import vertex_normals


@dataclass(frozen=True)
class SurfaceMaps:
    """Labels of the visible surface, at the pixels of a `Raster`.

    Attributes:
        mask: (..., H, W) bool, where a body is seen; everything else is 0 elsewhere, the depth infinite.
        part: (..., H, W) int64.
        chart: (..., H, W) int64.
        uv: (..., H, W, 2) within the chart.
        depth: (..., H, W) metres.
        normals: (..., H, W, 3) unit vectors of the smooth surface, camera frame, outwards.
    """

    mask: Tensor
    part: Tensor
    chart: Tensor
    uv: Tensor
    depth: Tensor
    normals: Tensor


@torch.no_grad()
def surface_maps(
    raster: Raster, vertices: Tensor, faces: Tensor, face_parts: Tensor, face_charts: Tensor, chart_uv: Tensor
) -> SurfaceMaps:
    """Look the labels of the faces up at every pixel; not differentiable.

    Args:
        raster: of these vertices and faces, by `rasterize` or `rasterize_each`.
        vertices: (B, V, 3) metres, camera frame.
        faces: (F, 3), counter-clockwise seen from outside.
        face_parts: (F,) integers.
        face_charts: (F,) integers.
        chart_uv: (F, 3, 2) of the faces' corners.

    Raises:
        ValueError: labels of another number of faces.
    """
    for name, table, shape in (
        ("face_parts", face_parts, (len(faces),)),
        ("face_charts", face_charts, (len(faces),)),
        ("chart_uv", chart_uv, (len(faces), 3, 2)),
    ):
        if tuple(table.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(table.shape)}")
    mask, device = raster.mask, raster.depth.device
    seen = raster.face[mask]
    part, chart = torch.zeros_like(raster.face), torch.zeros_like(raster.face)
    part[mask], chart[mask] = face_parts.to(device).long()[seen], face_charts.to(device).long()[seen]
    uv = chart_uv.new_zeros(*mask.shape, 2, device=device)
    corners = chart_uv.to(device)[seen]
    uv[mask] = (corners * raster.barycentric[mask].to(corners)[..., None]).sum(1)
    smooth = raster.interpolate(vertex_normals(vertices, faces), faces)
    return SurfaceMaps(mask, part, chart, uv, raster.depth, torch.nn.functional.normalize(smooth, dim=-1))

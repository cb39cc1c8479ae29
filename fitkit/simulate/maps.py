"""The maps of a known body: mask, parts, IUV and normals as a perfect network would see them."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.body import BodyModel
from fitkit.body.charts import Charts
from fitkit.camera import Camera
from fitkit.maps import IUVMap, NormalMap, PartMap, window
from fitkit.observation import Observation
from fitkit.render import rasterize_each, surface_maps
from fitkit.state import State

# Side of the crop in sizes of the person.
_ROOM = 1.2


def simulate_maps(body: BodyModel, state: State, observation: Observation, size: int = 128) -> Observation:
    """An observation with the maps of the bodies that are really there, each alone in the photo.

    Part, IUV and normal maps cover a square around each person at `size` x `size` pixels; the mask covers the photo
    with a longer side of at most 512 pixels, as a detector's does.

    Args:
        body: of the states, with parts and charts.
        state: of B people.
        observation: of the same people; its camera is used, its maps are replaced.
        size: of the maps, pixels.

    Raises:
        ValueError: a body without parts or charts.
    """
    charts = Charts.of(body)
    vertices, camera = body.vertices(state), observation.camera
    box = _square(camera, vertices)
    crop = camera.crop(box, size, size)
    maps = surface_maps(
        rasterize_each(vertices, body.faces, crop),
        vertices,
        body.faces,
        body.face_parts,
        charts.charts.to(body.device),
        charts.uv.to(body.device),
    )
    dtype = camera.focal.dtype
    inside = _in_photo(camera, box, size)
    labels = torch.where(inside, maps.part, 0)
    sure = inside.to(dtype)
    return replace(
        observation,
        mask=_whole_mask(camera, vertices, body.faces),
        parts=PartMap.from_labels(labels, box, sure),
        iuv=IUVMap(maps.chart, maps.uv.movedim(-1, 1).to(dtype), box, sure, charts.name),
        normals=NormalMap(maps.normals.movedim(-1, 1).to(dtype), box, (maps.mask & inside).to(dtype)),
    )


def simulate_parts(
    body: BodyModel, state: State, camera: Camera, box: Float[Tensor, "B 4"], size: int
) -> PartMap:
    """The part maps alone, of any rectangle of the photo: a third of the time of `simulate_maps`.

    Args:
        body: of the states, with parts.
        state: of B people.
        camera: of the same people.
        box: `(B, 4)` x, y, w, h that the maps cover, pixels of the photo; nothing is known outside of the photo.
        size: of the maps, pixels.

    Raises:
        ValueError: a body without parts.
    """
    raster = rasterize_each(body.vertices(state), body.faces, camera.crop(box, size, size))
    labels = torch.where(raster.mask, body.face_parts[raster.face.clamp_min(0)], 0)
    inside = _in_photo(camera, box, size)
    return PartMap.from_labels(torch.where(inside, labels, 0), box, inside.to(camera.focal.dtype))


def _square(camera: Camera, vertices: Tensor) -> Tensor:
    """`(B, 4)` square around the points in front of the camera; the photo's, where there is none."""
    pixels, behind = camera.project(vertices), vertices[..., 2:] <= 0.05
    low = pixels.masked_fill(behind, torch.inf).amin(1)
    high = pixels.masked_fill(behind, -torch.inf).amax(1)
    hidden, frame = behind.all(1), camera.frame.to(low)
    low, high = torch.where(hidden, frame[:, :2], low), torch.where(hidden, frame[:, 2:], high)
    side = _ROOM * (high - low).amax(1, keepdim=True)
    return torch.cat([(low + high - side) / 2, side.expand(-1, 2)], 1)


def _in_photo(camera: Camera, box: Tensor, size: int) -> Tensor:
    """`(B, size, size)`: which pixels of the crops lie in the photo."""
    return window(box.new_ones(len(box), 1, 1, 1), camera.frame.to(box), box, size)[:, 0] > 0.5


def _whole_mask(camera: Camera, vertices: Tensor, faces: Tensor) -> Tensor:
    """`(B, h, w)` over the photo."""
    scale = min(1.0, 512 / max(camera.width, camera.height))
    width, height = max(1, round(camera.width * scale)), max(1, round(camera.height * scale))
    small = camera.crop(camera.frame, width, height)
    return rasterize_each(vertices, faces, small).mask.to(camera.focal.dtype)

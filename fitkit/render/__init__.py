"""Rasterisation: which body is seen at which pixel and how far away it is, hard and soft."""

from fitkit.render.backends import available_backends, backend_names
from fitkit.render.hard import Raster, rasterize, rasterize_each
from fitkit.render.maps import SurfaceMaps, surface_maps
from fitkit.render.normals import vertex_normals
from fitkit.render.scene import FaceLabels
from fitkit.render.soft import SoftImages, soft_rasterize

__all__ = [
    "FaceLabels",
    "Raster",
    "SoftImages",
    "SurfaceMaps",
    "available_backends",
    "backend_names",
    "rasterize",
    "rasterize_each",
    "soft_rasterize",
    "surface_maps",
    "vertex_normals",
]

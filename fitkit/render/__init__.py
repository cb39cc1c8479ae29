"""Rasterisation: which body is seen at which pixel, and how far away it is."""

from fitkit.render.hard import Raster, rasterize

__all__ = ["Raster", "rasterize"]

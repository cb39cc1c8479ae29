"""Bodies seen from the side and from above, on squared paper: what the photo itself cannot show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fitkit.show.inputs import (
    ArrayLike,
    BodiesLike,
    FloatArray,
    IntArray,
    Picture,
    as_bodies,
    as_colors,
    as_faces,
)
from fitkit.show.shade import shade

if TYPE_CHECKING:
    from PIL import ImageDraw

# Rows: right, down and away from the viewer, in the camera frame.
_SIDE = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
_ABOVE = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
_PAPER, _LINE, _BOLD, _INK = (248, 249, 250), (224, 228, 232), (140, 148, 156), (84, 92, 100)
# The viewer stands this many times the scene's size away: parallel lines stay parallel to 0.5 %.
_FAR = 100.0


def side_view(
    vertices: BodiesLike, faces: ArrayLike, *, colors: ArrayLike | None = None, height: int = 640
) -> Picture:
    """Two panels to one scale: from the side (the camera is on the left) and from above (it is at the bottom).

    A square of the paper is 0.5 m (more where people stand far apart; the scale is written on it). The bold line of
    the side view is level with the lowest point, so leaning bodies and arms thrown back show against it.

    Args:
        vertices: `(B, V, 3)`, `(V, 3)` or a list of `(V, 3)`, metres, camera frame.
        faces: `(F, 3)`, shared by all people.
        colors: `(B, 3)` RGB; else the palette.
        height: of the picture, pixels.

    Returns:
        `(height, w, 3)` uint8 RGB; w depends on how the people stand.

    Raises:
        ValueError: a shape is wrong, or the height is below 64 pixels.
    """
    if height < 64:
        raise ValueError(f"height must be at least 64 pixels, got {height}")
    bodies, table = as_bodies(vertices), as_faces(faces)
    paint = as_colors(colors, len(bodies))
    points = bodies[np.isfinite(bodies).all(-1)]
    points = points if len(points) else np.array([[-1.0, -1.0, 3.0], [1.0, 1.0, 5.0]])
    low, high = points.min(0) - 0.25, points.max(0) + 0.25
    scale = min(height / max(high[1] - low[1], high[2] - low[2]), 1.5 * height / (high[0] - low[0]))
    step = next(s for s in (0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 1e9) if scale * s >= 24)
    panels = [
        _panel(bodies, table, paint, turn, low, high, scale, step, height, caption)
        for turn, caption in (
            (_SIDE, "side   (camera on the left)"),
            (_ABOVE, "above   (camera at the bottom)"),
        )
    ]
    gap = np.full((height, 4, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)


def _panel(
    bodies: FloatArray,
    faces: IntArray,
    paint: Picture,
    turn: FloatArray,
    low: FloatArray,
    high: FloatArray,
    scale: float,
    step: float,
    height: int,
    caption: str,
) -> Picture:
    """One view: `turn` maps the camera frame to right, down, away; `scale` is pixels per metre."""
    from PIL import Image, ImageDraw

    corners = np.sort(np.stack([turn @ low, turn @ high]), axis=0)
    middle, extent = corners.mean(0), corners[1] - corners[0]
    width = max(round(extent[0] * scale), height // 3)
    paper = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(paper)
    _grid(draw, middle, scale, step, width, height)
    if turn is _SIDE:
        level = (high[1] - 0.25 - middle[1]) * scale + height / 2
        draw.line([(0, level), (width, level)], fill=_BOLD, width=2)
    _label(draw, f"{caption}   {step:g} m squares")

    distance = _FAR * float(np.abs(extent).max())
    seen = (bodies @ turn.T) - middle + [0.0, 0.0, distance]
    focal = np.full(2, scale * distance)
    drawn = shade(seen, faces, paint, focal, np.array([width / 2, height / 2]), width, height)
    mixed = np.asarray(paper) * (1.0 - drawn[..., 3:]) + drawn[..., :3]
    return np.round(mixed).clip(0, 255).astype(np.uint8)


def _grid(
    draw: ImageDraw.ImageDraw, middle: FloatArray, scale: float, step: float, width: int, height: int
) -> None:
    """Lines at whole multiples of `step` metres of the camera frame."""
    for axis, size in ((0, width), (1, height)):
        reach = size / 2 / scale
        for k in range(int(np.ceil((middle[axis] - reach) / step)), int((middle[axis] + reach) // step) + 1):
            at = (k * step - middle[axis]) * scale + size / 2
            line = [(at, 0), (at, height)] if axis == 0 else [(0, at), (width, at)]
            draw.line(line, fill=_LINE, width=1)


def _label(draw: ImageDraw.ImageDraw, text: str) -> None:
    from PIL import ImageFont

    draw.text((10, 8), text, fill=_INK, font=ImageFont.load_default(15))

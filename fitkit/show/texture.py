"""Texture transfer: what is painted on an atlas of the charts, put onto the people of a photo.

The atlas is that of DensePose's texture transfer (there 1200 x 800 pixels): six rows and four columns of square tiles,
chart `6 column + row + 1` in each, u to the right and v up. A tile belongs to the charts of one body: a texture that
was made for SMPL's official charts puts the right colours on the right parts of the open body, and patterns within a
part somewhere else.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fitkit.body import BodyData, BodyModel
from fitkit.body.charts import CHART_NAMES, Charts
from fitkit.render import rasterize
from fitkit.show.inputs import (
    ArrayLike,
    BodiesLike,
    FloatArray,
    Picture,
    as_array,
    as_bodies,
    as_pair,
    as_photo,
    vertex_normals,
)
from fitkit.show.overlay import shrink
from fitkit.show.shade import window

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageDraw

ATLAS_ROWS, ATLAS_COLUMNS = 6, 4
# Rays per pixel along each side, where the people take up no more than so many pixels; one ray a pixel otherwise: at
# that size the edges are fine enough.
_SAMPLES, _SMOOTHED = 2, 4_000_000
# Rays traced at once; at most 300 bytes each.
_AT_ONCE = 1_000_000
# Light before the photo is looked at, for (1, normal): from the camera and a little from above; how much of the photo
# it outweighs (dark hair and a bright shirt are no light); what is believed; and from how many pixels.
_LIGHT, _LIGHT_WEIGHT, _LIGHT_RANGE, _FEWEST = (0.6, 0.0, -0.15, -0.42), 0.15, (0.45, 1.25), 16


def paint_texture(
    photo: ArrayLike,
    vertices: BodiesLike,
    charts: Charts,
    focal: ArrayLike,
    center: ArrayLike,
    atlas: ArrayLike,
    *,
    opacity: float = 1.0,
    shade: bool = True,
) -> Picture:
    """Put a texture on the people of a photo, nearest in front; antialiased unless they are very large.

    Args:
        photo: `(H, W, 3)` uint8 RGB.
        vertices: `(B, V, 3)`, `(V, 3)` or a list of `(V, 3)`, metres, camera frame.
        charts: of their body, `Charts.of(body)`.
        focal: `(2,)` pixels of the photo, or `(B, 2)` with equal rows.
        center: likewise the principal point.
        atlas: `(6 t, 4 t, 3)` or `(6 t, 4 t, 4)` uint8, RGB or RGBA, tiles of t x t pixels; the photo shows where
            alpha is 0, as it does where a body has no chart (the eyes).
        opacity: of the texture, 0..1.
        shade: whether light and shadow of the photo fall on the texture: for every person what best explains how
            bright the pixels are by where the surface faces. Otherwise the texture's colours are kept as they are.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: a shape, a type or a range is wrong.
    """
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity must lie in 0..1, got {opacity}")
    ground, bodies, pyramid = as_photo(photo), as_bodies(vertices), _Pyramid.of(atlas)
    if len(bodies) and bodies.shape[1] <= int(charts.faces.max()):
        raise ValueError(
            f"vertices {bodies.shape} are not of body {charts.name}, whose faces name {int(charts.faces.max()) + 1}"
        )
    f, c = as_pair(focal, "focal"), as_pair(center, "center")
    height, width = ground.shape[:2]
    left, top, right, bottom = window(bodies, f, c, width, height)
    samples = _SAMPLES if (right - left) * (bottom - top) <= _SMOOTHED else 1
    light = _brightness(bodies, charts.faces, ground, f, c) if shade else None
    scene = _Scene(bodies, charts, pyramid, _levels(bodies, charts, pyramid, f * samples), light, samples)
    painted = ground.copy()
    rows = max(1, _AT_ONCE // (samples**2 * max(right - left, 1)))
    for low in range(top, bottom, rows):
        high = min(low + rows, bottom)
        drawn = _draw(scene, f, c, (left, low, right, high)) * np.float32(opacity)
        place = painted[low:high, left:right]
        place[:] = np.round(place * (1.0 - drawn[..., 3:]) + drawn[..., :3]).clip(0, 255)
    return painted


def tiles(atlas: ArrayLike) -> Picture:
    """The tiles of an atlas in the order of the charts, `(24, t, t, 4)` RGBA; top row first, as in the picture.

    Args:
        atlas: `(6 t, 4 t, 3)` or `(6 t, 4 t, 4)` uint8.

    Raises:
        ValueError: another shape or type.
    """
    picture = as_array(atlas)
    if picture.ndim != 3 or picture.shape[-1] not in (3, 4) or picture.dtype != np.uint8:
        raise ValueError(f"atlas must be (h, w, 3) or (h, w, 4) uint8, got {picture.shape} {picture.dtype}")
    height, width, channels = picture.shape
    size = height // ATLAS_ROWS
    if size < 1 or (height, width) != (ATLAS_ROWS * size, ATLAS_COLUMNS * size):
        near = max(1, round((height / ATLAS_ROWS + width / ATLAS_COLUMNS) / 2))
        raise ValueError(
            f"atlas is {width} x {height} pixels, expected four columns and six rows of square tiles, such as "
            f"{ATLAS_COLUMNS * near} x {ATLAS_ROWS * near}"
        )
    cut = picture.reshape(ATLAS_ROWS, size, ATLAS_COLUMNS, size, channels).transpose(2, 0, 1, 3, 4)
    cut = cut.reshape(-1, size, size, channels)
    if channels == 3:
        cut = np.concatenate([cut, np.full_like(cut[..., :1], 255)], -1)
    return np.ascontiguousarray(cut, np.uint8)


@dataclass(frozen=True)
class _Pyramid:
    """The tiles in ever smaller sizes, so that a texture seen from afar is averaged and does not flicker.

    Attributes:
        levels: `(24, t, t, 4)` float32 each, colour 0..255 multiplied by alpha, and alpha 0..1.
    """

    levels: tuple[Tensor, ...]

    @staticmethod
    def of(atlas: ArrayLike) -> _Pyramid:
        level = torch.from_numpy(tiles(atlas).astype(np.float32))
        level[..., 3:] /= 255
        level[..., :3] *= level[..., 3:]
        levels = [level]
        while level.shape[1] > 2:
            half = (level.shape[1] + 1) // 2
            level = torch.nn.functional.adaptive_avg_pool2d(level.permute(0, 3, 1, 2), half).permute(
                0, 2, 3, 1
            )
            levels.append(level.contiguous())
        return _Pyramid(tuple(levels))

    def look_up(self, chart: Tensor, uv: Tensor, level: Tensor) -> Tensor:
        """`(P, 4)` at charts `(P,)` 1..24 and `(P, 2)`, between two levels `(P,)`."""
        level = level.clamp(0, len(self.levels) - 1)
        out = torch.zeros(len(uv), 4)
        for number, table in enumerate(self.levels):
            share = (1 - (level - number).abs()).clamp_min(0)
            some = torch.nonzero(share > 0)[:, 0]
            if len(some):
                out[some] += share[some, None].to(out) * _bilinear(table, chart[some] - 1, uv[some])
        return out


def _bilinear(table: Tensor, tile: Tensor, uv: Tensor) -> Tensor:
    """`(P, C)` from `(24, t, t, C)`; beyond the middles of a tile's outermost pixels their own colour goes on."""
    size = table.shape[1]
    x = (uv[:, 0] * size - 0.5).clamp(0, size - 1)
    y = ((1 - uv[:, 1]) * size - 0.5).clamp(0, size - 1)
    column, row = x.long().clamp_max(max(size - 2, 0)), y.long().clamp_max(max(size - 2, 0))
    right, below = (column + 1).clamp_max(size - 1), (row + 1).clamp_max(size - 1)
    s, t = (x - column).to(table)[:, None], (y - row).to(table)[:, None]
    upper = (1 - s) * table[tile, row, column] + s * table[tile, row, right]
    lower = (1 - s) * table[tile, below, column] + s * table[tile, below, right]
    return (1 - t) * upper + t * lower


@dataclass(frozen=True)
class _Scene:
    """What is drawn.

    Attributes:
        bodies: `(B, V, 3)` metres, camera frame.
        charts: of the body.
        pyramid: of the texture.
        levels: `(B, F)` see `_levels`.
        light: `(B, V)` see `_brightness`; None for the texture's own colours.
        samples: rays per pixel along each side.
    """

    bodies: FloatArray
    charts: Charts
    pyramid: _Pyramid
    levels: Tensor
    light: Tensor | None
    samples: int


def _draw(
    scene: _Scene, focal: FloatArray, center: FloatArray, window: tuple[int, int, int, int]
) -> npt.NDArray[np.float32]:
    """A window (left, top, right, bottom) of the picture, `(h, w, 4)`: colour multiplied by coverage, and coverage."""
    left, top, right, bottom = window
    samples, faces = scene.samples, scene.charts.faces
    columns, rows = (right - left) * samples, (bottom - top) * samples
    raster = rasterize(scene.bodies, faces, focal * samples, (center - [left, top]) * samples, columns, rows)
    seen = raster.mask
    face, person, weights = raster.face[seen], raster.person[seen], raster.barycentric[seen]
    chart, uv = scene.charts.encode(face, weights)
    on = chart > 0
    paint = torch.zeros(len(chart), 4)
    paint[on] = scene.pyramid.look_up(chart[on], uv[on], scene.levels[person, face][on])
    if scene.light is not None:
        light = (scene.light[person[:, None], faces[face]] * weights).sum(1, keepdim=True)
        paint[:, :3] = torch.minimum(paint[:, :3] * light, 255 * paint[:, 3:])
    fine = np.zeros((rows, columns, 4), np.float32)
    fine[seen.numpy()] = paint.numpy()
    if samples == 1:
        return fine
    blocks = fine.reshape(bottom - top, samples, right - left, samples, 4)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float32)


def _levels(bodies: FloatArray, charts: Charts, pyramid: _Pyramid, focal: FloatArray) -> Tensor:
    """`(B, F)` at which level of the pyramid a pixel of a face's tile is as large as a ray's share of the picture.

    Args:
        bodies: `(B, V, 3)` metres, camera frame.
        charts: of the body.
        pyramid: of the texture.
        focal: `(2,)` in rays.
    """
    u, v = charts.uv.unbind(-1)
    texels = _area(u, v) * pyramid.levels[0].shape[1] ** 2
    points = torch.from_numpy(bodies)
    x, y = (points[..., :2] / points[..., 2:].clamp_min(1e-3) * torch.from_numpy(focal)).unbind(-1)
    rays = _area(x[:, charts.faces], y[:, charts.faces])
    # Of a face that is seen at a slant the area says too little across and too much along: half a level less blur.
    return (0.5 * torch.log2((texels + 1e-9) / (rays + 1e-9)) - 0.5).nan_to_num(nan=0.0).float()


def _area(x: Tensor, y: Tensor) -> Tensor:
    """Of triangles with corners x and y `(..., 3)`."""
    one, two = (x[..., 1] - x[..., 0], y[..., 1] - y[..., 0]), (x[..., 2] - x[..., 0], y[..., 2] - y[..., 0])
    return (one[0] * two[1] - one[1] * two[0]).abs() / 2


def _brightness(
    bodies: FloatArray, faces: Tensor, photo: Picture, focal: FloatArray, center: FloatArray
) -> Tensor:
    """`(B, V)` how bright the photo's light makes every vertex; 1 is this person's mean.

    Brightness is taken for ambient and one direction of light (spherical harmonics of first order): what explains the
    photo best by where the surface faces.
    """
    small = shrink(photo, 320)
    scale = np.array([small.shape[1] / photo.shape[1], small.shape[0] / photo.shape[0]])
    raster = rasterize(bodies, faces, focal * scale, center * scale, small.shape[1], small.shape[0])
    normals = torch.from_numpy(vertex_normals(bodies, faces.numpy()))
    bright = torch.from_numpy(small.astype(np.float64) @ [0.299, 0.587, 0.114])
    seen, prior = raster.interpolate(normals, faces), torch.tensor(_LIGHT, dtype=torch.float64)
    light = torch.ones(bodies.shape[:2])
    for person, normal in enumerate(normals):
        terms, mine = prior, raster.person == person
        if int(mine.sum()) >= _FEWEST:
            rows, level = _facing(seen[mine]), bright[mine] / bright[mine].mean().clamp_min(1.0)
            terms = prior + _explain(rows, level - rows @ prior, _LIGHT_WEIGHT)
            terms[2].clamp_max_(0)  # light from below is rare, dark hair above a bright shirt is not
        light[person] = (_facing(normal) @ terms).clamp(*_LIGHT_RANGE)
    return light


def _facing(normals: Tensor) -> Tensor:
    """`(P, 4)` one, and the unit normal of `(P, 3)`."""
    return torch.cat([torch.ones_like(normals[:, :1]), torch.nn.functional.normalize(normals, dim=-1)], 1)


def _explain(rows: Tensor, values: Tensor, weight: float) -> Tensor:
    """Ridge regression `(4,)` of values `(P,)` by rows `(P, 4)`."""
    square = rows.mT @ rows / len(rows) + weight * torch.eye(4, dtype=rows.dtype)
    return torch.linalg.solve(square, rows.mT @ values / len(rows))


def atlas_template(body: BodyModel | BodyData, tile: int = 200) -> Picture:
    """An atlas to draw a texture on: of every chart its name, its outline, a grid of u and v, and which way is up.

    The name stands as it will on the body: its arrow points to the top of the head, on arms to the shoulder, on hands
    to the fingertips, on feet to the toes. The open body's charts are that way up; those of others may be turned.

    Args:
        body: with charts.
        tile: its side, pixels; at least 32.

    Returns:
        `(6 tile, 4 tile, 3)` uint8 RGB.

    Raises:
        ValueError: a body without charts, or a smaller tile.
    """
    if tile < 32:
        raise ValueError(f"tile of {tile} pixels, expected at least 32")
    from PIL import Image

    charts = Charts.of(body)
    rest = (body.data if isinstance(body, BodyModel) else body).v_template.astype(np.float64)
    picture = Image.new("RGB", (ATLAS_COLUMNS * tile, ATLAS_ROWS * tile))
    for chart in range(1, len(CHART_NAMES) + 1):
        column, row = divmod(chart - 1, ATLAS_ROWS)
        picture.paste(_template_tile(charts, chart, rest, tile), (column * tile, row * tile))
    return np.array(picture)


def _template_tile(charts: Charts, chart: int, rest: FloatArray, tile: int) -> PIL.Image.Image:
    from PIL import Image, ImageDraw

    size = tile * 2  # drawn larger, then reduced: Pillow's lines are not antialiased
    hue = (int(charts.chart_to_part[chart]) * 0.382) % 1.0
    skin, grid, ink = (_rgb(hue, *tone) for tone in ((0.35, 0.95), (0.5, 0.8), (0.8, 0.45)))
    image = Image.new("RGB", (size, size), (235, 235, 235))
    draw = ImageDraw.Draw(image)
    mine = charts.charts == chart
    corners = charts.uv[mine].numpy()
    for triangle in _on_tile(corners, size):
        draw.polygon([tuple(point) for point in triangle], fill=skin)
    for k in range(11):
        place, wide = size * k / 10, size // 100 if k % 5 == 0 else max(1, size // 200)
        draw.line([(place, 0), (place, size)], fill=grid, width=wide)
        draw.line([(0, place), (size, place)], fill=grid, width=wide)
    for start, end in _on_tile(_outline(corners), size):
        draw.line([tuple(start), tuple(end)], fill=ink, width=max(2, size // 100))
    if len(corners):
        middle, up = _pose_of_label(
            corners, _height(rest[charts.faces[mine].numpy()], CHART_NAMES[chart - 1])
        )
        label = _label(chart, size, middle, up, ink)
        image.paste(label, mask=label)
    return image.resize((tile, tile), Image.Resampling.LANCZOS)


def _height(points: FloatArray, name: str) -> FloatArray:
    """How far up on its own part each corner `(T, 3, 3)` of the chart of this name lies in the T-pose, `(T, 3)`."""
    if "hand" in name:
        return np.abs(points[..., 0])
    if "arm" in name:
        return -np.abs(points[..., 0])
    return np.asarray(points[..., 2 if "foot" in name else 1])


def _pose_of_label(uv: FloatArray, height: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The middle of a chart `(2,)` in u and v, and which way `(2,)` there `height` rises.

    Args:
        uv: `(T, 3, 2)`.
        height: `(T, 3)` of the same corners.
    """
    one, two = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    area = one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]
    rise, other = height[:, 1] - height[:, 0], height[:, 2] - height[:, 0]
    # The gradient of the height over u and v, times twice the area; by the sign of the area, seen from outside.
    up = np.stack([rise * two[:, 1] - other * one[:, 1], other * one[:, 0] - rise * two[:, 0]], -1)
    up = (up * np.sign(area)[:, None]).sum(0)
    weight = np.abs(area)[:, None] / max(float(np.abs(area).sum()), 1e-12)
    return np.asarray((uv.mean(1) * weight).sum(0)), np.asarray(up)


def _label(
    chart: int, size: int, middle: FloatArray, up: FloatArray, ink: tuple[int, int, int]
) -> PIL.Image.Image:
    """An arrow, and the number and name of the chart, around its middle; up is `up` in u and v."""
    from PIL import Image, ImageDraw, ImageFont

    layer = Image.new("RGBA", (size, size), (*ink, 0))
    draw = ImageDraw.Draw(layer)
    unit = size / 20
    x, y = (min(max(place, 6 * unit), 14 * unit) for place in _on_tile(middle, size))
    draw.line([(x, y - 6 * unit), (x, y - 2.5 * unit)], fill=ink, width=max(2, size // 50))
    head = [(x, y - 7.5 * unit), (x - 0.8 * unit, y - 5.5 * unit), (x + 0.8 * unit, y - 5.5 * unit)]
    draw.polygon(head, fill=ink)
    first, *others = CHART_NAMES[chart - 1].split("_")
    name = "\n".join([first, " ".join(others[:2]), *others[2:]])
    large, small = ImageFont.load_default(size / 6), ImageFont.load_default(size / 12)
    draw.text((x, y - 0.2 * unit), str(chart), fill=ink, font=large, anchor="mm")
    draw.multiline_text((x, y + 4.2 * unit), name, fill=ink, font=small, anchor="mm", align="center")
    turn = math.degrees(math.atan2(-up[0], up[1]))
    return layer.rotate(turn, Image.Resampling.BICUBIC, center=(x, y))


def _on_tile(uv: FloatArray, size: int) -> Any:
    """Points `(..., 2)` in u and v as lists of pixels of a tile, from its top left corner."""
    return (np.stack([uv[..., 0], 1 - uv[..., 1]], -1) * size).tolist()


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _outline(corners: FloatArray) -> FloatArray:
    """`(n, 2, 2)` edges that only one triangle `(T, 3, 2)` of a chart has: its outline, and seams inside of it."""
    grid = np.round(corners * 65536).astype(np.int64)
    key = grid[..., 0] * 65537 + grid[..., 1]
    ends = np.sort(np.stack([key, np.roll(key, -1, axis=1)], -1).reshape(-1, 2), axis=1)
    _, first, count = np.unique(ends, axis=0, return_index=True, return_counts=True)
    edges = np.stack([corners, np.roll(corners, -1, axis=1)], 2).reshape(-1, 2, 2)
    return np.asarray(edges[first[count == 1]], np.float64)

"""The course of a fit as pictures: the body over the photo from the start to the last step, one row per person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fitkit.show.inputs import FloatArray, IntArray, Picture, person_colors
from fitkit.show.overlay import overlay
from fitkit.show.shade import shade, window

if TYPE_CHECKING:
    from PIL import ImageDraw

    from fitkit.observation import Observation
    from fitkit.result import FitResult

_PAGE, _PAPER, _LINE = (255, 255, 255), (248, 249, 250), (214, 219, 224)
_INK, _SOFT = (40, 46, 52), (84, 92, 100)
# Rows: right, down and away from the viewer, in the camera frame.
_SIDE = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
_ABOVE = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
# The viewer of these stands so many sizes of the body away: parallel lines stay parallel to 0.5 %.
_FAR = 100.0
# Around a person, as part of their size; how far beyond what was seen of them their body may widen the crop; height
# of a cell as part of its width.
_MARGIN, _BEYOND, _SHAPES = 0.12, 0.4, (0.75, 2.2)
# Sizes of titles and of the text below a cell, as parts of its width.
_HEAD, _FOOT = 0.105, 0.08
_SURE = 0.1  # confidence of the keypoints that say where somebody is


def draw_stages(result: FitResult, *, people: int = 6, steps: int = 6, width: int = 220) -> Picture:
    """Draw the body at every step of a fit over the photo (as in figure 6 of Zanfir et al., CVPR 2021, on HUND).

    A row shows one person: the photo, the start, the steps with their energies, and the last body from the side and
    from above on paper of 0.5 m squares. Of a solver with many steps those are drawn
    that lie evenly on a logarithmic scale, the last among them. Columns bear the number of the step, as in
    `Trace.step`, with the stage where the trace has several; energies of different stages count different terms.

    Args:
        result: of `fit(..., states=True)`; whoever failed is left out.
        people: rows at most, in the result's order (people found in a photo: largest first).
        steps: steps at most, beside the start.
        width: of a cell, pixels; a row is as high as its person's part of the photo makes it.

    Returns:
        `(h, w, 3)` uint8 RGB.

    Raises:
        ValueError: nobody was fitted, the trace keeps no states, or a number is too small.
    """
    for name, value, least in (("people", people, 1), ("steps", steps, 1), ("width", width, 64)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected {least} or more")
    numbers = result.ok.nonzero()[:people, 0]
    if not len(numbers):
        raise ValueError(
            f"no stages to draw: {'nobody of the result' if len(result) else 'nobody'} was fitted"
        )
    trace = result.trace
    if trace is None or not trace.states:
        raise ValueError("the trace keeps no states, expected the result of fit(..., states=True)")
    last = len(trace) - 1
    # Where a stage begins is where the one before it ended.
    moves = [t for t, name in enumerate(trace.stage) if t in (0, last) or name == trace.stage[t - 1]]
    chosen = [moves[k] for k in pick_steps(len(moves), steps)]
    surfaces = [result.body.vertices(trace.states[t].select(numbers)).detach().cpu().numpy() for t in chosen]
    energies = trace.energy.detach().cpu().numpy()[chosen]
    sheet = _Sheet(width, ["photo", *_titles(trace.stage, chosen), "side", "above"])
    faces, colors = result.body.faces.cpu().numpy(), person_colors(len(result))
    for row, person in enumerate(numbers.tolist()):
        bodies = np.stack([surface[row] for surface in surfaces]).astype(np.float64)
        seen = result.observation.select(person)
        energy = [_number(float(value)) for value in energies[:, person]]
        cells = _cells(seen, bodies, faces, colors[person][None], width)
        sheet.add(cells, ["", *energy, "", ""])
    return sheet.picture()


def pick_steps(count: int, steps: int) -> list[int]:
    """The start, and at most `steps` later ones of `count` records, even on a logarithmic scale up to the last.

    >>> pick_steps(6, 6), pick_steps(101, 5)
    ([0, 1, 2, 3, 4, 5], [0, 1, 3, 10, 32, 100])
    """
    if count - 1 <= steps:
        return list(range(count))
    chosen = [0]
    for place in np.geomspace(count - 1, 1, steps)[::-1]:  # from the last on: of a single step it is that
        chosen.append(max(round(float(place)), chosen[-1] + 1))
    return chosen


def _titles(stage: Sequence[str], chosen: Sequence[int]) -> list[str]:
    several = len(set(stage)) > 1
    return ["start" if t == 0 else f"{stage[t]} {t}".strip() if several else str(t) for t in chosen]


def _number(energy: float) -> str:
    if not math.isfinite(energy):
        return "energy not finite"
    return f"energy {energy:.0f}" if 100 <= abs(energy) < 1e6 else f"energy {energy:#.3g}".rstrip(".")


def _cells(
    seen: Observation, bodies: FloatArray, faces: IntArray, color: Picture, width: int
) -> list[Picture]:
    """One person's row: the photo, the bodies over it, and the last one from the side and from above."""
    focal, center = (
        part[0].detach().cpu().numpy().astype(np.float64) for part in (seen.camera.focal, seen.camera.center)
    )
    left, top, right, bottom = _crop(seen, bodies[-1:], focal, center)
    height = round(width * (bottom - top) / (right - left))
    ground = _part_of(seen, (left, top, right, bottom), (width, height))
    scale = np.array([width / (right - left), height / (bottom - top)])
    center = (center - [left, top]) * scale
    side = max(width, height)
    over = [
        overlay(ground, body, faces, focal * scale, center, colors=color, max_side=side) for body in bodies
    ]
    return [ground, *over, *_from_elsewhere(bodies[-1:], faces, color, width, height)]


def _crop(
    seen: Observation, body: FloatArray, focal: FloatArray, center: FloatArray
) -> tuple[int, int, int, int]:
    """The part of the photo around a person: left, top, right, bottom, pixels; it may reach beyond the photo."""
    size = np.array([seen.camera.width, seen.camera.height], np.float64)
    part = window(body, focal, center, seen.camera.width, seen.camera.height)
    low, high = np.array(part[:2], np.float64), np.array(part[2:], np.float64)
    found = _where(seen)
    if found is not None:
        room = _BEYOND * (found[1] - found[0])
        # A body that went astray must not make its person small.
        empty = (high <= low).any()
        low = found[0] if empty else np.minimum(found[0], np.maximum(low, found[0] - room))
        high = found[1] if empty else np.maximum(found[1], np.minimum(high, found[1] + room))
    low, high = low.clip(0, size), high.clip(0, size)
    if (high - low < 2).any():
        low, high = np.zeros(2), size
    room = _MARGIN * (high - low).max()
    low, high = (low - room).clip(0, size), (high + room).clip(0, size)
    extent, middle = high - low, (low + high) / 2
    extent[1] = max(extent[1], _SHAPES[0] * extent[0])
    extent[0] = max(extent[0], extent[1] / _SHAPES[1])
    # Inside of the photo where it is large enough, else around it.
    inside = np.clip(middle - extent / 2, 0, np.maximum(size - extent, 0))
    low = np.where(extent <= size, inside, (size - extent) / 2)
    left, top = np.floor(low).astype(int).tolist()
    across, down = np.ceil(extent).astype(int).tolist()
    return left, top, left + across, top + down


def _where(seen: Observation) -> tuple[FloatArray, FloatArray] | None:
    """Upper left and lower right corner of what was seen of a person, pixels."""
    points = []
    if seen.box is not None:
        box = seen.box[0].detach().cpu().numpy().astype(np.float64)
        points += [box[:2], box[:2] + box[2:]]
    if seen.keypoints is not None:
        sure = seen.keypoints.confidence[0] > _SURE
        points += list(seen.keypoints.xy[0][sure].detach().cpu().numpy().astype(np.float64))
    points = [point for point in points if np.isfinite(point).all()]
    return (np.min(points, axis=0), np.max(points, axis=0)) if points else None


def _part_of(seen: Observation, crop: tuple[int, int, int, int], size: tuple[int, int]) -> Picture:
    """A part of the photo in the size of a cell; paper beyond its edges, and where there is no photo."""
    from PIL import Image

    left, top, right, bottom = crop
    page = Image.new("RGB", (right - left, bottom - top), _PAPER)
    if seen.image is not None:
        low, high = (max(left, 0), max(top, 0)), (right, bottom)
        part = np.ascontiguousarray(seen.image[low[1] : high[1], low[0] : high[0]])
        page.paste(Image.fromarray(part), (low[0] - left, low[1] - top))
    return np.array(page.resize(size, Image.Resampling.LANCZOS))


def _from_elsewhere(
    body: FloatArray, faces: IntArray, color: Picture, width: int, height: int
) -> list[Picture]:
    """The body from the side and from above, both to one scale, on squares of 0.5 m."""
    from PIL import Image, ImageDraw

    foot = round(1.6 * _FOOT * width)  # of a line that says where the camera is

    points = body[np.isfinite(body).all(-1)]
    points = points if len(points) else np.array([[-1.0, -1.0, 3.0], [1.0, 1.0, 5.0]])
    low, high = points.min(0) - 0.1, points.max(0) + 0.1
    across, down, deep = (high - low).tolist()
    scale = min(width / max(across, deep), (height - foot) / max(down, deep))
    middle, far = (low + high) / 2, _FAR * max(across, down, deep)
    cells = []
    for turn, text in ((_SIDE, "camera on the left"), (_ABOVE, "camera at the bottom")):
        paper = Image.new("RGB", (width, height), _PAPER)
        draw = ImageDraw.Draw(paper)
        for axis, length in ((0, width), (1, height)):
            first = math.ceil(-length / 2 / scale / 0.5)
            for k in range(first, -first + 1):
                at = (length - axis * foot) / 2 + 0.5 * k * scale
                draw.line([(at, 0), (at, height)] if axis == 0 else [(0, at), (width, at)], fill=_LINE)
        _write(draw, (width / 2, height - foot / 2), text, _FOOT * width, width, _SOFT)
        seen = (body - middle) @ turn.T + [0.0, 0.0, far]
        lens, center = np.full(2, scale * far), np.array([width / 2, (height - foot) / 2])
        drawn = shade(seen, faces, color, lens, center, width, height)
        mixed = np.asarray(paper) * (1.0 - drawn[..., 3:]) + drawn[..., :3]
        cells.append(np.round(mixed).clip(0, 255).astype(np.uint8))
    return cells


@dataclass
class _Row:
    cells: list[Picture]
    below: list[str]


class _Sheet:
    """A table of pictures with a title above every column and a line of text below every cell.

    Args:
        width: of all cells, pixels; sizes of text and gaps go by it.
        titles: of the columns.
    """

    def __init__(self, width: int, titles: list[str]) -> None:
        self.width, self.titles = width, titles
        self.rows: list[_Row] = []
        self.gap = max(2, round(0.03 * width))

    def add(self, cells: list[Picture], below: list[str]) -> None:
        """One row, all cells of one height."""
        self.rows.append(_Row(cells, below))

    def picture(self) -> Picture:
        """The whole sheet."""
        from PIL import Image, ImageDraw

        gap, above, below = self.gap, round(1.5 * _HEAD * self.width), round(1.6 * _FOOT * self.width)
        across = gap + len(self.titles) * (self.width + gap)
        down = above + sum(row.cells[0].shape[0] + below + gap for row in self.rows)
        page = Image.new("RGB", (across, down), _PAGE)
        draw = ImageDraw.Draw(page)
        lefts = [gap + column * (self.width + gap) for column in range(len(self.titles))]
        for left, title in zip(lefts, self.titles, strict=True):
            place = (left + self.width / 2, above / 2)
            _write(draw, place, title, _HEAD * self.width, self.width, _INK)
        top = above
        for row in self.rows:
            height = row.cells[0].shape[0]
            for left, cell, text in zip(lefts, row.cells, row.below, strict=True):
                page.paste(Image.fromarray(cell), (left, top))
                place = (left + self.width / 2, top + height + below / 2)
                _write(draw, place, text, _FOOT * self.width, self.width, _SOFT)
            top += height + below + gap
        return np.array(page)


def _write(
    draw: ImageDraw.ImageDraw,
    middle: tuple[float, float],
    text: str,
    size: float,
    width: int,
    ink: tuple[int, int, int],
) -> None:
    """A line of text around a point, smaller where it would be wider than `width` pixels."""
    from PIL import ImageFont

    if text:
        size *= min(1.0, width / draw.textlength(text, font=ImageFont.load_default(size)))
        draw.text(middle, text, fill=ink, font=ImageFont.load_default(size), anchor="mm")

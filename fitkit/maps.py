"""Dense maps of people: what a network or an annotator said of every pixel, and of single points on the body.

A map covers a rectangle of the photo (all of it, or a crop around the person) at any resolution; pixel (i, j) of it
covers the square from (i, j) to (i + 1, j + 1) in units of `box / size`. Where a map says nothing - outside of its
rectangle, or at confidence 0 - nothing is known, which is not the same as background.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from fitkit._select import Rows

PART_NAMES = (
    *("torso", "right_hand", "left_hand", "left_foot", "right_foot"),
    *("right_upper_leg", "left_upper_leg", "right_lower_leg", "left_lower_leg"),
    *("left_upper_arm", "right_upper_arm", "left_lower_arm", "right_lower_arm", "head"),
)
"""DensePose's 14 body parts in its order; part number k is `PART_NAMES[k - 1]`, 0 is background."""
PART_CHANNELS = len(PART_NAMES) + 1
"""Channels of a part map: the 14 parts, then visibility."""

# Samples along each side of a pixel when a map is resampled: a mask of 512 pixels shrinks to 64 without aliasing.
_SAMPLES = 4


class _Map(Rows):
    """What all maps have: a rectangle of the photo, and how sure each pixel is."""

    box: Float[Tensor, "B 4"]
    confidence: Float[Tensor, "B h w"]

    def __len__(self) -> int:
        return len(self.box)

    def check(self, name: str) -> None:
        """Raise a ValueError for values that cannot be meant, under this name."""
        if not bool((torch.isfinite(self.box).all(1) & (self.box[:, 2:] > 0).all(1)).all()):
            raise ValueError(
                f"{name}.box: {self.box.tolist()}, expected finite x, y, w, h of at least some width and height"
            )
        check_range(f"{name}.confidence", self.confidence, 0.0, 1.0)


@dataclass(frozen=True)
class PartMap(_Map):
    """Which body part is seen at each pixel (HUND, section 2.2: probability maps and a visibility value).

    Attributes:
        probability: `(B, 15, h, w)` in [0, 1]: the 14 parts, then that of any part at all (visibility).
        box: `(B, 4)` x, y, w, h of the map, pixels of the photo.
        confidence: `(B, h, w)` in [0, 1] of each pixel, 0 = nothing is known.
        open: `(B, 15, h, w)` in [0, 1], 1 for a part that may or may not be there: a label map that knows trousers
            but not thighs from shins leaves the leg's parts open. Visibility stays what it is.
    """

    probability: Float[Tensor, "B 15 h w"]
    box: Float[Tensor, "B 4"]
    confidence: Float[Tensor, "B h w"]
    open: Float[Tensor, "B 15 h w"]

    def __post_init__(self) -> None:
        _check(self.probability, self.box, self.confidence, "part map", channels=PART_CHANNELS)
        if self.open.shape != self.probability.shape:
            raise ValueError(
                f"part map: open of shape {tuple(self.open.shape)} for probabilities "
                f"{tuple(self.probability.shape)}, expected the same"
            )

    def check(self, name: str) -> None:
        """Raise a ValueError for values that cannot be meant, under this name."""
        super().check(name)
        for field in ("probability", "open"):
            check_range(f"{name}.{field}", getattr(self, field), 0.0, 1.0)

    def shown(self) -> Bool[Tensor, "B h w"]:
        """Where the person is."""
        return self.probability[:, -1] * self.confidence > 0.5

    @staticmethod
    def from_labels(
        labels: Integer[Tensor, "B h w"],
        box: Float[Tensor, "B 4"],
        confidence: Float[Tensor, "B h w"] | None = None,
        table: Bool[Tensor, "K 15"] | None = None,
    ) -> PartMap:
        """A map of label numbers.

        Args:
            labels: 0 for background, 1..14 for parts (of a `table`: its rows).
            box: x, y, w, h of the map, pixels of the photo.
            confidence: of each pixel; 1 by default.
            table: row k says which of background and the 14 parts label k may be (True in column 0: background);
                by default label k is part k. A row without any True is a label that says nothing.

        Raises:
            ValueError: a label that the table does not have; a row that may be background or a part.
        """
        table = torch.eye(PART_CHANNELS, dtype=torch.bool) if table is None else table
        table, labels = table.to(labels.device), labels.long()
        if bool((table[:, 0] & table[:, 1:].any(1)).any()):
            raise ValueError("part labels: a label may be background or parts, not both; leave it empty")
        low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
        if low < 0 or high >= len(table):
            raise ValueError(f"part labels from {low} to {high}, expected 0 (background) to {len(table) - 1}")
        parts = table[:, 1:]
        certain = parts & (parts.sum(1, keepdim=True) == 1)
        visible = parts.any(1, keepdim=True)
        known = (table.any(1)).to(box.dtype)
        wanted = torch.cat([certain, visible], 1).to(box.dtype)
        free = torch.cat([parts & ~certain, torch.zeros_like(visible)], 1).to(box.dtype)
        sure = known[labels] if confidence is None else known[labels] * confidence
        return PartMap(wanted[labels].movedim(-1, 1), box, sure, free[labels].movedim(-1, 1))


@dataclass(frozen=True)
class NormalMap(_Map):
    """The direction in which the surface faces at each pixel (SimPose, section 3).

    Attributes:
        normal: `(B, 3, h, w)` unit vectors in the camera frame (x right, y down, z forward), so that a surface seen
            from the front has z < 0.
        box: `(B, 4)` x, y, w, h of the map, pixels of the photo.
        confidence: `(B, h, w)` in [0, 1], 0 where there is no body.
    """

    normal: Float[Tensor, "B 3 h w"]
    box: Float[Tensor, "B 4"]
    confidence: Float[Tensor, "B h w"]

    def __post_init__(self) -> None:
        _check(self.normal, self.box, self.confidence, "normal map", channels=3)

    def check(self, name: str) -> None:
        """Raise a ValueError for values that cannot be meant, under this name."""
        super().check(name)
        check_range(f"{name}.normal", self.normal, -1.0, 1.0)

    def shown(self) -> Bool[Tensor, "B h w"]:
        """Where the person is."""
        return self.confidence > 0


@dataclass(frozen=True)
class IUVPoints(Rows):
    """Points of the photo whose place on the body is known, as annotators of DensePose-COCO click them.

    Attributes:
        xy: `(B, N, 2)` pixels of the photo.
        chart: `(B, N)` 1..24; 0 is no point.
        uv: `(B, N, 2)` in [0, 1].
        confidence: `(B, N)`, 0 = no point.
        charts: whose charts: the name of a body, or "densepose" for the official ones.
    """

    xy: Float[Tensor, "B N 2"]
    chart: Int[Tensor, "B N"]
    uv: Float[Tensor, "B N 2"]
    confidence: Float[Tensor, "B N"]
    charts: str

    def __post_init__(self) -> None:
        count = self.chart.shape
        if not (self.xy.shape == self.uv.shape == (*count, 2) and self.confidence.shape == count):
            shapes = [tuple(part.shape) for part in (self.xy, self.chart, self.uv, self.confidence)]
            raise ValueError(
                f"IUV points: xy, chart, uv and confidence of shapes {shapes}, expected (B, N, 2), (B, N), (B, N, 2) "
                "and (B, N)"
            )

    def check(self, name: str) -> None:
        """Raise a ValueError for values that cannot be meant, under this name."""
        there = self.confidence > 0
        check_range(f"{name}.confidence", self.confidence, 0.0, 1.0)
        check_range(f"{name}.chart", self.chart[there], 0.0, 24.0)
        check_range(f"{name}.uv", self.uv[there], 0.0, 1.0)
        check_range(f"{name}.xy", self.xy[there], -1e7, 1e7)

    def __len__(self) -> int:
        return len(self.xy)

    def points(self, count: int) -> IUVPoints:
        """Themselves: an annotator's points are few."""
        return self


@dataclass(frozen=True)
class IUVMap(_Map):
    """For every pixel the chart and its coordinates: DensePose's I, U, V.

    Attributes:
        chart: `(B, h, w)` 0 background, 1..24.
        uv: `(B, 2, h, w)` in [0, 1].
        box: `(B, 4)` x, y, w, h of the map, pixels of the photo.
        confidence: `(B, h, w)` in [0, 1].
        charts: whose charts: the name of a body, or "densepose" for the official ones.
    """

    chart: Int[Tensor, "B h w"]
    uv: Float[Tensor, "B 2 h w"]
    box: Float[Tensor, "B 4"]
    confidence: Float[Tensor, "B h w"]
    charts: str

    def __post_init__(self) -> None:
        _check(self.uv, self.box, self.confidence, "IUV map", channels=2)
        if self.chart.shape != self.confidence.shape:
            raise ValueError(
                f"IUV map: chart of shape {tuple(self.chart.shape)} for uv {tuple(self.uv.shape)}, "
                "expected (B, h, w) and (B, 2, h, w)"
            )

    def check(self, name: str) -> None:
        """Raise a ValueError for values that cannot be meant, under this name."""
        super().check(name)
        check_range(f"{name}.chart", self.chart, 0.0, 24.0)
        check_range(f"{name}.uv", self.uv.movedim(1, -1)[self.shown()], 0.0, 1.0)

    def shown(self) -> Bool[Tensor, "B h w"]:
        """Where the person is."""
        return (self.chart > 0) & (self.confidence > 0)

    def points(self, count: int) -> IUVPoints:
        """At most `count` pixels of each person, spread evenly and always the same, as points at their centres."""
        first, xy, found = spread_pixels(self.shown(), self.box, count)
        return IUVPoints(
            xy,
            self.chart.flatten(1).gather(1, first) * found,
            self.uv.flatten(2).mT.gather(1, first[..., None].expand(-1, -1, 2)),
            self.confidence.flatten(1).gather(1, first) * found,
            self.charts,
        )


@dataclass(frozen=True)
class Correspondences(Rows):
    """Points on the surface of a body, and where they were seen.

    Attributes:
        face: `(B, N)` rows of the body's faces.
        barycentric: `(B, N, 3)` weights of the face's corners.
        target: `(B, N, 2)` pixels of the photo, or `(B, N, 3)` metres in the camera frame.
        confidence: `(B, N)`, 0 = no point.
        body: name of the body.
    """

    face: Int[Tensor, "B N"]
    barycentric: Float[Tensor, "B N 3"]
    target: Float[Tensor, "B N d"]
    confidence: Float[Tensor, "B N"]
    body: str

    def __post_init__(self) -> None:
        count = self.face.shape
        if not (
            self.barycentric.shape == (*count, 3)
            and self.target.shape[:2] == self.confidence.shape == count
            and self.target.shape[-1] in (2, 3)
        ):
            shapes = [tuple(p.shape) for p in (self.face, self.barycentric, self.target, self.confidence)]
            raise ValueError(
                f"correspondences: face, barycentric, target and confidence of shapes {shapes}, expected (B, N), "
                "(B, N, 3), (B, N, 2 or 3) and (B, N)"
            )

    def check(self, name: str) -> None:
        """Raise a ValueError for values that cannot be meant, under this name."""
        there = self.confidence > 0
        check_range(f"{name}.confidence", self.confidence, 0.0, 1.0)
        check_range(f"{name}.target", self.target[there], -1e7, 1e7)
        check_range(f"{name}.barycentric", self.barycentric[there], 0.0, 1.0)

    def __len__(self) -> int:
        return len(self.face)


def foreground_box(shown: Bool[Tensor, "B h w"], box: Float[Tensor, "B 4"]) -> Float[Tensor, "B 4"]:
    """x, y, w, h around what a map shows, pixels of the photo; zeros where it shows nothing.

    Args:
        shown: of the map's pixels.
        box: x, y, w, h that the map covers, pixels of the photo.
    """
    ends = []
    for axis, length in ((1, shown.shape[2]), (2, shown.shape[1])):
        step = torch.arange(length, device=box.device, dtype=box.dtype)
        line, unit = shown.any(axis), box[:, axis + 1] / length
        first = torch.where(line, step, length).amin(1)
        last = torch.where(line, step + 1, 0).amax(1)
        ends.append((box[:, axis - 1] + first * unit, (last - first) * unit))
    (x, w), (y, h) = ends
    found = torch.stack([x, y, w, h], 1)
    return torch.where(shown.flatten(1).any(1)[:, None], found, torch.zeros_like(found))


def spread_pixels(
    shown: Bool[Tensor, "B h w"], box: Float[Tensor, "B 4"], count: int
) -> tuple[Int[Tensor, "B n"], Float[Tensor, "B n 2"], Bool[Tensor, "B n"]]:
    """At most `count` of the pixels that a map shows, spread evenly over them, always the same.

    They are the first in the order of the R2 sequence (Roberts, "The unreasonable effectiveness of quasirandom
    sequences", 2018), the first ones of which are spread over any region.

    Args:
        shown: of the map's pixels.
        box: x, y, w, h that the map covers, pixels of the photo.
        count: most of them.

    Returns:
        Their places among the pixels row by row, their centres in pixels of the photo, and which of them are shown:
        rows of people who show fewer than others are filled up.
    """
    height, width = shown.shape[1:]
    x = torch.arange(width, device=box.device, dtype=torch.float64)
    y = torch.arange(height, device=box.device, dtype=torch.float64)[:, None]
    order = ((0.7548776662466927 * x + 0.5698402909980532 * y) % 1).reshape(-1)
    there = shown.flatten(1)
    first = torch.where(there, order, 2 + order).argsort(1)[:, :count]
    place = torch.stack([first % width, torch.div(first, width, rounding_mode="floor")], -1) + 0.5
    size = torch.tensor([width, height], dtype=box.dtype, device=box.device)
    return first, box[:, None, :2] + place * (box[:, 2:] / size)[:, None], there.gather(1, first)


def extent(points: Float[Tensor, "B N 2"], there: Bool[Tensor, "B N"]) -> Float[Tensor, " B"]:
    """Longer side of the box around each person's points, at least 1 (also of no points)."""
    if points.shape[1] == 0:
        return points.new_ones(len(points))
    low = points.masked_fill(~there[..., None], torch.inf).amin(1)
    high = points.masked_fill(~there[..., None], -torch.inf).amax(1)
    return (high - low).amax(1).clamp_min(1)


def window(
    values: Float[Tensor, "B C h w"],
    box: Float[Tensor, "B 4"],
    target: Float[Tensor, "B 4"],
    size: int,
) -> Float[Tensor, "B C size size"]:
    """Resample maps that cover `box` to a square window of the photo; 0 outside of the map.

    Each pixel is the mean of 4 x 4 bilinear samples, which does not alias as long as it covers at most 8 of the map's.

    Args:
        values: of the map's pixels.
        box: x, y, w, h that the map covers, pixels of the photo.
        target: x, y, w, h of the window, pixels of the photo.
        size: of the result, pixels.
    """
    fine = size * _SAMPLES
    step = (torch.arange(fine, dtype=box.dtype, device=box.device) + 0.5) / fine
    at = target[:, None, :2] + step[:, None] * target[:, None, 2:]
    unit = 2 * (at - box[:, None, :2]) / box[:, None, 2:].clamp_min(1e-9) - 1
    grid = torch.stack(
        [unit[:, None, :, 0].expand(-1, fine, -1), unit[:, :, None, 1].expand(-1, -1, fine)], -1
    )
    # Clamped at the border and cut off there: a map's outermost pixels count fully up to their edge.
    # The samples of single pixels are exact enough; their place is not.
    single = values.to(torch.float32)
    sampled = torch.nn.functional.grid_sample(
        single, grid.to(torch.float32), mode="bilinear", padding_mode="border", align_corners=False
    )
    inside = (unit.abs() <= 1).to(single.dtype)
    sampled = sampled * (inside[:, None, :, 1, None] * inside[:, None, None, :, 0])
    return torch.nn.functional.avg_pool2d(sampled, _SAMPLES).to(values.dtype)


def check_range(name: str, values: Tensor, low: float, high: float) -> None:
    """Raise a ValueError where values are not finite or not from low to high (a thousandth of rounding aside)."""
    if not values.numel():
        return
    least, most = float(values.min()), float(values.max())  # NaN wins in both
    room = 1e-3
    if not (low - room <= least and most <= high + room):
        raise ValueError(f"{name}: values from {least:g} to {most:g}, expected {low:g} to {high:g}")


def _check(values: Tensor, box: Tensor, confidence: Tensor, name: str, channels: int) -> None:
    """Shapes only: a batch is selected at every step, and a look at the values would wait for the GPU."""
    people, size = len(box), tuple(confidence.shape[1:])
    if (
        box.shape != (people, 4)
        or tuple(values.shape) != (people, channels, *size)
        or confidence.ndim != 3
        or len(confidence) != people
        or 0 in size
    ):
        raise ValueError(
            f"{name}: values {tuple(values.shape)}, box {tuple(box.shape)} and confidence {tuple(confidence.shape)}, "
            f"expected (B, {channels}, h, w), (B, 4) and (B, h, w)"
        )

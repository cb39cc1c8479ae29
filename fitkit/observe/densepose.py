"""What DensePose says: pictures of I, U, V, results of detectron2, and the annotation of DensePose-COCO.

U and V of these are of the official charts, which lie on SMPL (`charts="densepose"`); on a body with charts of its own,
as the open body, they are other places. The part that a chart belongs to (I) is the same on every body, so
`parts_of_iuv` serves any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows
from fitkit.body.charts import CHART_PARTS
from fitkit.maps import PART_NAMES, IUVMap, IUVPoints, PartMap
from fitkit.observe import part_labels
from fitkit.observe._map_files import (
    MAP_SIDE,
    Source,
    check_boxes,
    check_count,
    confidence_among,
    cover,
    read_numbers,
    resize,
    tensor,
    thin,
)
from fitkit.observe._reading import as_numbers, check_limit, check_path, of_photo, read_arrays, read_json
from fitkit.observe.maps import VOID, check_seen, owners

CHARTS = "densepose"
"""The `charts` of all that is read here."""

_COUNT = len(CHART_PARTS)
_BOX_UNITS = 256  # an annotation's x and y, and its masks, divide the box into so many
_ANY_PART = len(PART_NAMES) + 1  # label of masks that tell a person from the rest, and no more
_RESULTS = ("DensePoseChartResult", "DensePoseChartResultWithConfidences")
_CONVERT = (
    "found = torch.load('results.pkl', weights_only=False)[0]; "
    "arrays = {f'labels_{i}': r.labels for i, r in enumerate(found['pred_densepose'])} | "
    "{f'uv_{i}': r.uv for i, r in enumerate(found['pred_densepose'])}; "
    "numpy.savez('densepose.npz', boxes=found['pred_boxes_XYXY'], scores=found['scores'], **arrays)"
)


def densepose_from_png(
    source: Source,
    photo_size: tuple[int, int] | None = None,
    instances: Source | None = None,
    boxes: np.ndarray | Tensor | None = None,
    *,
    void: Sequence[int] = (VOID,),
    allow_empty: bool = False,
    side: int = MAP_SIDE,
) -> IUVMap:
    """A DensePose picture of I, U * 255, V * 255 as an IUVMap of one row per person.

    Args:
        source: a picture, or `(h, w, 3)` uint8 numbers. OpenCV writes I, U, V from the last channel of RGB to the
            first, other programs from the first to the last: I is the one that never exceeds 24 (OpenCV's order
            where both might be).
        photo_size: (width, height) of the photo; by default the picture's own size.
        instances: whose each pixel is (`INDS`): 0 nobody, other numbers a person. Without it all is one person.
            Pixels of others get confidence 0.
        boxes: `(1, 4)` or `(4,)` x, y, w, h, if the picture is of a box and not of all of the photo.
        void: instance numbers that say nothing.
        allow_empty: accept people of whom no pixel is seen.
        side: longer side of the result in pixels; larger maps are thinned.

    Raises:
        FileNotFoundError, IsADirectoryError: no file.
        ValueError: a damaged file; a picture in which no channel is I (a coloured view of a result); a lossy one;
            sizes that do not go together; a person without any pixel.
    """
    planes, name = _planes(source)
    size = (1, *planes.shape[2:])
    whole = photo_size if photo_size is not None or boxes is not None else (size[2], size[1])
    box = cover(size, whole, boxes, name)
    seen = planes[:, 0] > 0
    owner = seen.astype(np.int64)
    numbers = np.ones(1, np.int64)
    if instances is None:
        check_seen(seen, None, name, allow_empty)
    else:
        owner, numbers = owners(instances, seen, name, void, allow_empty)
    planes, owner = thin(planes, side), thin(owner, side)
    check_count(len(numbers), owner.shape[1], owner.shape[2], name)
    seen, own = planes[:, 0] > 0, owner == numbers[:, None, None]
    sure = np.where(own, seen, (owner == 0) & ~seen)
    chart = planes[:, 0].astype(np.int64) * own
    uv = np.broadcast_to(planes[:, 1:].astype(np.float32) / 255, (len(numbers), 2, *owner.shape[1:]))
    box = np.tile(box, (len(numbers), 1))
    return IUVMap(torch.from_numpy(chart), tensor(uv), tensor(box), tensor(sure), CHARTS)


def densepose_from_detectron2(
    source: str | Path | Mapping[str, Any],
    image: int = 0,
    *,
    least_score: float = 0.0,
    side: int = MAP_SIDE,
) -> IUVMap:
    """Results of detectron2's DensePose (chart models) as an IUVMap of one row per detection, in their order.

    Args:
        source: what `apply_net.py dump` found in one photo: a mapping with `pred_boxes_XYXY` `(N, 4)`, `scores` and
            `pred_densepose`, N results with `labels` `(h, w)` and `uv` `(2, h, w)`; its `.pkl` of all photos, of
            which nothing is executed (torch from 2.6 on); or a `.npz` of `boxes` (x0, y0, x1, y1), `scores`,
            `labels_0`, `uv_0`, `labels_1` ...
        image: number of the photo in a `.pkl`.
        least_score: leaves out detections with less; `apply_net.py show` has 0.8.
        side: longer side of the result in pixels. All rows get the size of the largest.

    Raises:
        FileNotFoundError, IsADirectoryError: no file.
        ValueError: a damaged file, or one with anything but such results; shapes or values that no such result has.
    """
    name = str(source) if isinstance(source, str | Path) else "DensePose results"
    corners, scores, results = _detections(source, image, name)
    if corners.shape != (len(results), 4) or scores.shape != (len(results),):
        raise ValueError(
            f"{name}: boxes of shape {corners.shape} and scores of {scores.shape} for {len(results)} results; expected "
            f"({len(results)}, 4) and ({len(results)},)"
        )
    kept = [i for i in range(len(results)) if scores[i] >= least_score]
    box = check_boxes(np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])[kept], f"{name} (XYXY)")
    charts, uvs = [], []
    for i, rectangle in zip(kept, box, strict=True):
        chart, uv = _result(*results[i], f"{name}: result {i}")
        cover((1, *chart.shape), None, rectangle, f"{name}: result {i}")
        charts.append(thin(chart, side))
        uvs.append(thin(uv, side))
    height = max((chart.shape[0] for chart in charts), default=1)
    width = max((chart.shape[1] for chart in charts), default=1)
    check_count(len(kept), height, width, name)
    chart = np.array([resize(one, height, width) for one in charts], np.int64).reshape(-1, height, width)
    uv = np.array([resize(one, height, width) for one in uvs], np.float32).reshape(-1, 2, height, width)
    sure = confidence_among(chart > 0, box)
    return IUVMap(torch.from_numpy(chart), tensor(uv), tensor(box), tensor(sure), CHARTS)


@dataclass(frozen=True)
class DensePoseAnnotation(Rows):
    """What annotators of DensePose-COCO said of the N people of a photo.

    Attributes:
        points: places on the body that they clicked, `charts="densepose"`.
        parts: their masks of 14 parts, over each person's box; confidence 0 of people without masks.
        box: `(N, 4)` x, y, w, h in pixels of the photo.
    """

    points: IUVPoints
    parts: PartMap
    box: Float[Tensor, "N 4"]

    def __len__(self) -> int:
        return len(self.box)


def densepose_from_coco(path: str | Path, image: str | int | None = None) -> DensePoseAnnotation:
    """The people of one photo from DensePose-COCO (or -PoseTrack) annotation JSON: points and part masks.

    Coordinates become x0 + dp_x * w / 256 as detectron2 has it (`DensePoseDataRelative`; an old notebook divides by
    255, at most 0.4 % of the box away).

    Args:
        path: of the JSON file.
        image: id or file name of the photo; may be left out when the file is about one photo.

    Raises:
        FileNotFoundError, IsADirectoryError: no file.
        ValueError: not such a file, or a damaged one; several photos and none chosen; lists of unequal lengths,
            charts that are not 1 to 24, U and V outside of [0, 1]; masks whose code does not add up to their size.
    """
    content = read_json(path, "DensePose-COCO annotation (.json)")
    people = _annotated(content, path, image)
    box = np.zeros((len(people), 4))
    points: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for i, person in enumerate(people):
        where = f"{path}: DensePose person {i}"
        rows = check_boxes(as_numbers(person.get("bbox"), f"{where}: bbox"), f"{where}: bbox")
        if len(rows) != 1:
            raise ValueError(f"{where}: bbox of {rows.size} numbers; expected x, y, w, h")
        box[i] = rows[0]
        points.append(_points(person, box[i], where))
        labels.append(_masks(person.get("dp_masks"), where))
    most = max((len(one) for one in points), default=0)
    table = np.zeros((len(people), most, 5))
    for i, one in enumerate(points):
        table[i, : len(one)] = one
    chart = table[..., 2].astype(np.int64)
    found = IUVPoints(
        tensor(table[..., :2]), torch.from_numpy(chart), tensor(table[..., 3:]), tensor(chart > 0), CHARTS
    )
    return DensePoseAnnotation(found, _part_map(labels, box), tensor(box))


def parts_of_iuv(iuv: IUVMap) -> PartMap:
    """The 14 parts that the charts of an IUVMap lie on; it needs no U and V, so it holds for every body."""
    return PartMap.from_labels(
        iuv.chart, iuv.box, iuv.confidence, part_labels.vocabulary("densepose24").table
    )


def _planes(source: Source) -> tuple[np.ndarray, str]:
    """I, U * 255, V * 255 as `(1, 3, h, w)` uint8, and the name for messages."""
    read = read_numbers(source, "DensePose's I, U, V", "iuv")
    values = read.values
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype != np.uint8 or read.lossy:
        raise ValueError(
            f"{read.name}: {'lossy picture, ' if read.lossy else ''}shape {values.shape}, dtype {values.dtype}; "
            "expected (h, w, 3) uint8: I, U * 255, V * 255, as PNG"
        )
    first, last = int(values[..., 0].max()), int(values[..., 2].max())
    if min(first, last) > _COUNT:
        raise ValueError(
            f"{read.name}: channels up to {first} and {last}; expected I from 0 to {_COUNT} in the first or the last "
            "one: is this a coloured view of a result?"
        )
    if first > _COUNT or (last <= _COUNT and isinstance(source, str | Path)):
        values = values[..., ::-1]
    return np.moveaxis(values, -1, 0)[None], read.name


def _detections(
    source: str | Path | Mapping[str, Any], image: int, name: str
) -> tuple[np.ndarray, np.ndarray, list[tuple[Any, Any]]]:
    """Boxes, scores and (labels, uv) of one photo."""
    if not isinstance(source, Mapping):
        path = check_path(source, "DensePose results (.npz, .pkl)")
        if path.suffix.lower() == ".npz":
            arrays = read_arrays(path, "boxes")
            count = sum(key.startswith("labels_") for key in arrays)
            missing = [
                f"{kind}_{i}"
                for i in range(count)
                for kind in ("labels", "uv")
                if f"{kind}_{i}" not in arrays
            ]
            if missing:
                raise ValueError(f"{name}: holds {list(arrays)}; expected {', '.join(missing)} as well")
            results = [(arrays[f"labels_{i}"], arrays[f"uv_{i}"]) for i in range(count)]
            return arrays["boxes"], arrays.get("scores", np.ones(count)), results
        source = _from_dump(path, image)
    boxes, found = source.get("pred_boxes_XYXY"), source.get("pred_densepose")
    if boxes is None or not isinstance(found, Sequence) or isinstance(found, str):
        raise ValueError(
            f"{name}: holds {list(source)}; expected pred_boxes_XYXY and a list pred_densepose (of a chart model)"
        )
    scores = source.get("scores")
    pairs = [(getattr(one, "labels", None), getattr(one, "uv", None)) for one in found]
    return _plain(boxes), np.ones(len(pairs)) if scores is None else _plain(scores), pairs


def _plain(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _result(labels: Any, uv: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Chart numbers `(h, w)` and coordinates `(2, h, w)` of one detection."""
    if labels is None or uv is None:
        raise ValueError(f"{name}: has no labels and uv; expected a DensePoseChartResult")
    chart, place = _plain(labels), _plain(uv)
    if (
        chart.ndim != 2
        or 0 in chart.shape
        or place.shape != (2, *chart.shape)
        or chart.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"{name}: labels {chart.shape} of {chart.dtype} and uv {place.shape}; expected whole numbers (h, w) and "
            "(2, h, w)"
        )
    if int(chart.min()) < 0 or int(chart.max()) > _COUNT:
        raise ValueError(f"{name}: labels from {chart.min()} to {chart.max()}; expected 0 to {_COUNT}")
    if place.dtype.kind not in "f" or not np.isfinite(place).all():
        raise ValueError(f"{name}: uv of {place.dtype} with values that are not finite; expected floats")
    # The network's U and V may leave the unit square by a little; detectron2 clamps them as well.
    return chart.astype(np.int64), np.clip(place, 0, 1).astype(np.float32)


class _Result:
    """Stands for a result of detectron2 in a dump: keeps its tensors, does nothing."""


@contextmanager
def _results_only() -> Iterator[None]:
    """Lets torch's restricted reader make stand-ins of DensePose's results, and nothing else beyond tensors."""
    names = [f"densepose.structures.chart_result.{name}" for name in _RESULTS]
    with torch.serialization.safe_globals([(_Result, name) for name in names]):
        yield


def _from_dump(path: Path, image: int) -> Mapping[str, Any]:
    """What a dump says of one photo."""
    try:
        with _results_only():
            photos = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # not a dump, damaged, an old one, or an old torch
        raise ValueError(
            f"{path}: not a dump of detectron2's DensePose that can be read without running it, or cut off "
            f"[{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}]. Where detectron2 is "
            f"installed: {_CONVERT}"
        ) from error
    if not isinstance(photos, list) or not all(isinstance(photo, Mapping) for photo in photos):
        raise ValueError(
            f"{path}: holds a {type(photos).__name__}; expected a list of results, one per photo"
        )
    if not 0 <= image < len(photos):
        raise ValueError(f"{path}: no photo number {image}; expected 0 to {len(photos) - 1}")
    chosen: Mapping[str, Any] = photos[image]
    return chosen


def _annotated(content: Any, path: str | Path, image: str | int | None) -> list[dict[str, Any]]:
    """The people of one photo who have DensePose annotation."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise ValueError(
            f"{path}: not DensePose-COCO; expected an object with images and a list of annotations"
        )
    chosen = [a for a in annotations if "dp_x" in a and not a.get("iscrowd")]
    if not chosen and annotations:
        raise ValueError(f"{path}: no annotation has dp_x; expected DensePose-COCO, not plain COCO")
    chosen = of_photo(content, chosen, path, image)
    check_limit(len(chosen), path)
    return chosen


def _points(person: dict[str, Any], box: np.ndarray, where: str) -> np.ndarray:
    """Points of one person: x, y (pixels), chart, u, v, `(N, 5)`."""
    keys = ("dp_x", "dp_y", "dp_I", "dp_U", "dp_V")
    missing = [key for key in keys if key not in person]
    if missing:
        raise ValueError(
            f"{where}: lacks {', '.join(missing)}; expected {', '.join(keys)} (annotation by charts)"
        )
    columns = [as_numbers(person[key], f"{where}: {key}") for key in keys]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise ValueError(
            f"{where}: {', '.join(keys)} of shapes {[c.shape for c in columns]}; expected one length"
        )
    points = np.stack(columns, 1)
    x, y, chart, uv = points[:, 0], points[:, 1], points[:, 2], points[:, 3:]
    if len(points) and not (np.isin(chart, np.arange(1, _COUNT + 1)).all() and ((0 <= uv) & (uv <= 1)).all()):
        raise ValueError(
            f"{where}: dp_I from {chart.min():g} to {chart.max():g}, dp_U and dp_V from {uv.min():g} to "
            f"{uv.max():g}; expected whole numbers from 1 to {_COUNT}, and 0 to 1"
        )
    if not ((0 <= x) & (x <= _BOX_UNITS) & (0 <= y) & (y <= _BOX_UNITS)).all():
        raise ValueError(f"{where}: dp_x, dp_y outside of 0 to {_BOX_UNITS}; expected a point in the box")
    points[:, :2] = box[:2] + points[:, :2] / _BOX_UNITS * box[2:]
    return points


def _masks(masks: Any, where: str) -> np.ndarray:
    """Part labels of one person over the box; all void where there are no masks."""
    void = np.full((_BOX_UNITS, _BOX_UNITS), _ANY_PART + 1)
    if isinstance(masks, dict) and masks:  # a person without parts, as of apes
        return _decoded(masks, where) * _ANY_PART
    if not masks:
        return void
    if not isinstance(masks, list) or len(masks) != len(PART_NAMES):
        raise ValueError(f"{where}: dp_masks; expected a list of {len(PART_NAMES)} masks, or one mask")
    decoded = {k: _decoded(mask, f"{where}: dp_masks[{k - 1}]") for k, mask in enumerate(masks, 1) if mask}
    if not decoded:
        return void
    labels = np.zeros_like(next(iter(decoded.values())))
    for k, mask in decoded.items():
        if mask.shape != labels.shape:
            raise ValueError(f"{where}: dp_masks of sizes {labels.shape} and {mask.shape}; expected one size")
        labels[mask > 0] = k
    return labels


def _decoded(mask: Any, where: str) -> np.ndarray:
    """A mask `(h, w)` of 0 and 1 from COCO's run lengths: columns from top to bottom, runs of 0 and 1 in turn."""
    size = mask.get("size") if isinstance(mask, dict) else None
    sides = isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n <= 4096 for n in size)
    if not sides or not isinstance(size, list):
        raise ValueError(f"{where}: expected an object with counts and size [h, w], at most 4096")
    counts = mask.get("counts")
    runs = _run_lengths(counts) if isinstance(counts, str) else counts
    whole = isinstance(runs, list) and all(type(n) is int and 0 <= n <= size[0] * size[1] for n in runs)
    if not whole or not isinstance(runs, list) or sum(runs) != size[0] * size[1]:
        raise ValueError(
            f"{where}: run lengths that do not add up to {size[0]} x {size[1]}; damaged or cut off"
        )
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    return np.ascontiguousarray(values.reshape(size[1], size[0]).T)


def _run_lengths(text: str) -> list[int]:
    """COCO's compressed run lengths: five bits a character, low ones first, from the fourth on as differences."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            if shift > 60:
                return []
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs


def _part_map(labels: list[np.ndarray], box: np.ndarray) -> PartMap:
    """Part labels of several people, each over a box."""
    table = torch.zeros(_ANY_PART + 2, _ANY_PART, dtype=torch.bool)
    table[:_ANY_PART] = torch.eye(_ANY_PART, dtype=torch.bool)
    table[_ANY_PART, 1:] = True
    side = max((max(one.shape) for one in labels), default=1)
    maps = np.array([resize(one, side, side) for one in labels], np.int64).reshape(-1, side, side)
    seen = (0 < maps) & (maps <= _ANY_PART)
    return PartMap.from_labels(
        torch.from_numpy(maps), tensor(box), tensor(confidence_among(seen, box)), table
    )

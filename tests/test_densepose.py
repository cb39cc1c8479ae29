"""DensePose's pictures, results and annotation: good, truncated and of the wrong type."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fitkit.maps import PART_NAMES
from fitkit.observe.densepose import (
    _decoded,
    densepose_from_coco,
    densepose_from_detectron2,
    densepose_from_png,
    parts_of_iuv,
)
from tests.map_files import instance_map, save

HEAD = PART_NAMES.index("head")


def _iuv() -> np.ndarray:
    """I, U, V: the first person's head (24) and torso (1), the second's left foot (5)."""
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[5:10, 5:12] = 24, 51, 255
    picture[10:25, 5:12] = 1, 102, 153
    picture[5:25, 22:34] = 5, 204, 0
    return picture


def test_densepose_pictures(tmp_path: Path) -> None:
    iuv = _iuv()
    for source in (
        iuv,
        iuv[..., ::-1],
        save(tmp_path / "rgb.png", iuv),
        save(tmp_path / "bgr.png", np.ascontiguousarray(iuv[..., ::-1])),
    ):
        read = densepose_from_png(source)
        assert read.charts == "densepose"
        assert read.box.tolist() == [[0, 0, 40, 30]]
        np.testing.assert_array_equal(read.chart[0], iuv[..., 0])
        np.testing.assert_allclose(read.uv[0], iuv[..., 1:].transpose(2, 0, 1) / 255, rtol=1e-6)
    read = densepose_from_png(iuv, (400, 300), instance_map())
    assert read.box.tolist() == [[0, 0, 400, 300]] * 2
    assert read.chart[:, 7, (7, 25)].tolist() == [[24, 0], [0, 5]]
    assert read.confidence[:, 7, (7, 25)].tolist() == [[1, 0], [0, 1]]
    parts = parts_of_iuv(read)
    assert parts.probability[0, HEAD, 7, 7] == parts.probability[1, 3, 7, 25] == 1
    torch.testing.assert_close(parts.confidence, read.confidence)
    for wrong, message in (
        (iuv + 100, "channels up to"),
        (iuv[..., 0], "expected .h, w, 3. uint8"),
        (iuv.astype(float), "uint8"),
        (iuv * 0, "all background"),
    ):
        with pytest.raises(ValueError, match=message):
            densepose_from_png(wrong)


def test_densepose_sample(shared_data: Path) -> None:
    folder = shared_data / "densepose"
    names = [folder / f"demo_im_{kind}_prediction.png" for kind in ("IUV", "INDS")]
    iuv = densepose_from_png(names[0], (1116, 600), names[1])
    assert len(iuv) == 13
    assert int(iuv.chart.max()) == 24
    # The man on the left faces the camera: his right hand is on the left of his left hand, his head above both.
    man = int((iuv.chart > 0).sum((1, 2)).topk(2).indices[1])
    parts = parts_of_iuv(iuv.select(man)).probability[0, :14]
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in parts.shape[1:]), indexing="ij")
    place = {
        name: (float(x[one > 0].mean()), float(y[one > 0].mean()))
        for name, one in zip(PART_NAMES, parts, strict=True)
    }
    assert place["right_hand"][0] < place["torso"][0] < place["left_hand"][0]
    assert place["head"][1] < place["torso"][1] < place["right_lower_leg"][1] < place["right_foot"][1]


class DensePoseChartResult:
    """As detectron2 pickles it."""

    def __init__(self, labels: torch.Tensor, uv: torch.Tensor) -> None:
        self.labels, self.uv = labels, uv


DensePoseChartResult.__module__ = "densepose.structures.chart_result"


def _detections() -> dict[str, Any]:
    """Two people whose boxes meet: 20 x 10 from (2, 3), and 12 x 16 from (16.5, 3.2)."""
    first, second = torch.zeros(10, 20, dtype=torch.long), torch.zeros(16, 12, dtype=torch.long)
    first[2:8, 1:19], second[:, 2:] = 1, 24
    uv = [torch.full((2, *labels.shape), 0.25 + 0.5 * i) for i, labels in enumerate((first, second))]
    return {
        "file_name": "a.jpg",
        "scores": torch.tensor([0.9, 0.4]),
        "pred_boxes_XYXY": torch.tensor([[2.0, 3, 22, 13], [16.5, 3.25, 29, 19.5]]),
        "pred_densepose": [DensePoseChartResult(first, uv[0]), DensePoseChartResult(second, uv[1])],
    }


def _dump(path: Path, content: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = ModuleType(DensePoseChartResult.__module__)
    module.DensePoseChartResult = DensePoseChartResult  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for depth in (1, 2, 3):
            name = ".".join(module.__name__.split(".")[:depth])
            patch.setitem(sys.modules, name, module)
        torch.save(content, path)
    return path


def _archive(path: Path) -> Path:
    found = _detections()
    arrays = {f"labels_{i}": r.labels.numpy() for i, r in enumerate(found["pred_densepose"])}
    arrays |= {f"uv_{i}": r.uv.numpy() for i, r in enumerate(found["pred_densepose"])}
    np.savez(path, boxes=found["pred_boxes_XYXY"], scores=found["scores"], **arrays)
    return path


@pytest.mark.parametrize("source", ["memory", "npz", "pkl"])
def test_detectron2(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = _detections()
    if source == "npz":
        found = _archive(tmp_path / "a.npz")
    elif source == "pkl":
        if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 6):
            pytest.skip("torch before 2.6 has no restricted reader with names")
        found = _dump(tmp_path / "a.pkl", [{"file_name": "other"}, found], monkeypatch)
    iuv = densepose_from_detectron2(found, 1 if source == "pkl" else 0)
    torch.testing.assert_close(iuv.box, torch.tensor([[2, 3, 20, 10], [16.5, 3.25, 12.5, 16.25]]))
    assert iuv.chart.shape == (2, 16, 20)
    assert iuv.chart.unique().tolist() == [0, 1, 24]
    assert float((iuv.chart[0] == 1).float().mean()) == pytest.approx(6 * 18 / 200, abs=0.07)
    assert iuv.uv[:, :, 8, 10].tolist() == [[0.25, 0.25], [0.75, 0.75]]
    # Beside the first person, in the first person's box, the second is seen.
    assert iuv.confidence[0, 8].tolist() == [1.0] * 19 + [0.0]
    assert len(densepose_from_detectron2(found, 1 if source == "pkl" else 0, least_score=0.8)) == 1
    assert len(densepose_from_detectron2(found, 1 if source == "pkl" else 0, least_score=0.95)) == 0


def test_wrong_detectron2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(**change: Any) -> dict[str, Any]:
        return _detections() | change

    results = _detections()["pred_densepose"]
    for wrong, message in (
        ({"a": 3}, r"holds \['a'\]; expected pred_boxes_XYXY"),
        (changed(pred_densepose=results[:1]), r"boxes of shape \(2, 4\) .* for 1 results"),
        (changed(pred_densepose=[3, 4]), "result 0: has no labels and uv"),
        (changed(scores=torch.ones(3)), "scores of"),
        (changed(pred_boxes_XYXY=_detections()["pred_boxes_XYXY"].flip(1)), "XYXY"),
        (
            changed(pred_densepose=[results[0], DensePoseChartResult(results[1].labels * 2, results[1].uv)]),
            "0 to 48",
        ),
        (
            changed(pred_densepose=[results[0], DensePoseChartResult(results[1].labels, results[0].uv)]),
            "uv .2, 10, 20",
        ),
        (
            changed(
                pred_densepose=[results[0], DensePoseChartResult(results[1].labels, results[1].uv * np.nan)]
            ),
            "finite",
        ),
        (changed(pred_densepose=results[::-1]), "12 x 16 pixels for boxes.0. of 20 x 10"),
    ):
        with pytest.raises(ValueError, match=message):
            densepose_from_detectron2(wrong)

    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (tmp_path / "executed",)

    harmful = _dump(tmp_path / "harmful.pkl", [_detections() | {"scores": Harmful()}], monkeypatch)
    with pytest.raises(ValueError, match=r"harmful\.pkl.*numpy\.savez"):
        densepose_from_detectron2(harmful)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ValueError, match="no photo number 2; expected 0 to 0"):
        densepose_from_detectron2(_dump(tmp_path / "a.pkl", [_detections()], monkeypatch), 2)


Y, X = np.mgrid[:12, :9]
DISC, LATTICE = (
    "`0562O00000001N9",
    "0120000020N00000O0100000O010000020N00000O0100000O010000020N00000O0100000O",
)


@pytest.mark.parametrize(
    ("counts", "mask"),
    [
        (DISC, (X - 4) ** 2 + (Y - 6) ** 2 < 14),
        (LATTICE, (X + Y) % 3 == 0),
        ("\\3", X < 0),
        ("0\\3", X >= 0),
        ([108], X < 0),
        ([0, 12, 96], X == 0),
    ],
    ids=["disc", "lattice", "nothing", "everything", "plain nothing", "plain column"],
)
def test_run_lengths_as_pycocotools_writes_them(counts: object, mask: np.ndarray) -> None:
    np.testing.assert_array_equal(_decoded({"size": [12, 9], "counts": counts}, "mask"), mask)


@pytest.mark.parametrize(
    "mask",
    [
        *(3, [], {}, {"size": [12, 9]}, {"counts": DISC}, {"size": [12, 9, 1], "counts": DISC}),
        *(
            {"size": [12, 9], "counts": DISC[:-3]},
            {"size": [12, 8], "counts": DISC},
            {"size": [True, 9], "counts": DISC},
        ),
        *(
            {"size": [12, 9], "counts": [-1, 109]},
            {"size": [12, 9], "counts": [108.0]},
            {"size": [12, 9], "counts": "é/"},
        ),
        *(
            {"size": [99999, 99999], "counts": DISC},
            {"size": [12, 9], "counts": "P" * 10_000},
            {"size": "ab", "counts": 3},
        ),
    ],
    ids=str,
)
def test_wrong_run_lengths(mask: object) -> None:
    with pytest.raises(ValueError, match="this mask"):
        _decoded(mask, "this mask")


def _coco() -> dict[str, Any]:
    empty: list[Any] = [[]] * 14
    masks = [*empty[:13], {"size": [12, 9], "counts": DISC}]
    first = {"dp_x": [0, 128.0], "dp_y": [64, 256], "dp_I": [24.0, 1], "dp_U": [0.5, 0], "dp_V": [0.25, 1]}
    second = {"dp_x": [64], "dp_y": [64], "dp_I": [3], "dp_U": [0.5], "dp_V": [0.5]}
    return {
        "images": [{"id": 4, "file_name": "a.jpg"}, {"id": 5, "file_name": "b.jpg"}],
        "annotations": [
            {"image_id": 4, "bbox": [10, 20, 90, 120], "dp_masks": masks, **first},
            {"image_id": 4, "bbox": [300.5, 20, 64, 32], "dp_masks": [], **second},
            {"image_id": 4, "bbox": [10, 20, 90, 120], "keypoints": []},
            {"image_id": 5, "bbox": [0, 0, 12, 9], "dp_masks": {"size": [12, 9], "counts": "0\\3"}, **second},
        ],
    }


def test_densepose_coco(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(_coco()))
    said = densepose_from_coco(path, "a.jpg")
    assert len(said) == 2
    assert said.points.xy.tolist() == [[[10, 50], [55, 140]], [[316.5, 28], [0, 0]]]
    assert said.points.chart.tolist() == [[24, 1], [3, 0]]
    assert said.points.uv.tolist() == [[[0.5, 0.25], [0, 1]], [[0.5, 0.5], [0, 0]]]
    assert said.points.confidence.tolist() == [[1, 1], [1, 0]]
    assert said.points.charts == "densepose"
    assert said.box.tolist() == said.parts.box.tolist() == [[10, 20, 90, 120], [300.5, 20, 64, 32]]
    assert said.parts.confidence.mean((1, 2)).tolist() == [1, 0]
    disc = float(((X - 4) ** 2 + (Y - 6) ** 2 < 14).mean())
    head = said.parts.probability[0, HEAD]
    side = head.shape[-1]
    assert float(head.mean()) == pytest.approx(disc, abs=0.02)
    assert float(head[side // 2, side // 2]) == 1
    assert torch.equal(said.parts.probability[0, 14], head)
    other = densepose_from_coco(path, 5)
    assert bool((other.parts.probability[0, 14] == 1).all())
    assert bool((other.parts.open[0, :14] == 1).all())
    assert len(said.select(1)) == 1
    with pytest.raises(ValueError, match="holds 2 photos"):
        densepose_from_coco(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dp_I": [25, 1]}, "dp_I from 1 to 25"),
        ({"dp_I": [1.5, 1]}, "expected whole numbers"),
        ({"dp_U": [0.5, 1.5]}, "dp_U and dp_V from 0.25 to 1.5"),
        ({"dp_V": [0.5, None]}, "dp_U and dp_V"),
        ({"dp_V": [0.5]}, "expected one length"),
        ({"dp_x": [300, 1]}, "outside of 0 to 256"),
        ({"dp_x": ["a", "b"]}, "dp_x"),
        ({"bbox": [1, 2, 3]}, r"boxes of shape \(3,\)"),
        ({"bbox": [1, 2, 0, 3]}, "w, h above 0"),
        ({"bbox": None}, "bbox"),
        ({"dp_masks": [[]] * 13 + [{"size": [12, 9], "counts": "0"}]}, r"dp_masks\[13\]: run lengths"),
        ({"dp_masks": [3]}, "a list of 14 masks"),
        ({"dp_masks": 3}, "a list of 14 masks"),
    ],
    ids=str,
)
def test_wrong_densepose_coco(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = _coco()
    content["annotations"][0] |= change
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"a\.json.*{message}"):
        densepose_from_coco(path, 4)


def test_coco_without_densepose(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, message in (
        ({"annotations": [{"image_id": 3, "bbox": [0, 0, 1, 1]}]}, "no annotation has dp_x"),
        ([], "expected an object"),
        ({"annotations": 3}, "expected an object"),
        (
            {"images": [], "annotations": [{"image_id": 3, "dp_x": [1], "dp_y": [1], "dp_vertex": [3]}]},
            "bbox|lacks dp_I",
        ),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            densepose_from_coco(path)
    path.write_text(json.dumps({"images": [{"id": 3}], "annotations": []}))
    assert len(densepose_from_coco(path)) == 0


def test_cut_off_densepose_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(json.dumps(_coco()))
    _archive(tmp_path / "a.npz")
    save(tmp_path / "a.png", _iuv())
    _dump(tmp_path / "a.pkl", [_detections()], monkeypatch)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        readers: dict[str, Callable[[Path], object]] = {
            ".json": densepose_from_coco,
            ".png": densepose_from_png,
        }
        read = readers.get(path.suffix, densepose_from_detectron2)
        for keep in (0, 1, 40, len(whole) // 2, len(whole) - 30):
            path.write_bytes(whole[:keep])
            with pytest.raises(ValueError, match=path.name):
                read(path)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read(tmp_path / "nowhere")

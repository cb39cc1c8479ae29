"""Keypoint files of other detectors: good, truncated and of the wrong type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fitkit.camera import Camera
from fitkit.keypoints import Keypoints, get_set
from fitkit.observe import (
    keypoints_from_file,
    load_image,
    observation_from_keypoints,
    read_array,
    read_coco,
    read_openpose,
)

POINTS = np.random.default_rng(0).uniform(1, 400, (2, 25, 3)) * [1, 1, 1 / 400]


def _openpose(people: np.ndarray) -> dict[str, Any]:
    return {
        "version": 1.3,
        "people": [{"person_id": [-1], "pose_keypoints_2d": p.ravel().tolist()} for p in people],
    }


def _results(people: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"image_id": 139 + i, "category_id": 1, "keypoints": p[:17].ravel().tolist(), "score": 0.9}
        for i, p in enumerate(people)
    ]


def _annotations(people: np.ndarray, feet: bool = False) -> dict[str, Any]:
    entries = []
    for i, person in enumerate(people):
        seen = person.copy()
        seen[:, 2] = np.arange(25) % 3
        entry = {"id": i, "image_id": 7 + i // 2, "iscrowd": 0, "keypoints": seen[:17].ravel().tolist()}
        entries.append(entry | ({"foot_kpts": seen[17:23].ravel().tolist()} if feet else {}))
    entries.append({"id": 99, "image_id": 7, "iscrowd": 1, "keypoints": [0] * 51})
    return {
        "images": [{"id": 7, "file_name": "val/a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "annotations": entries,
    }


def _write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_openpose(tmp_path: Path) -> None:
    path = _write(tmp_path / "a_keypoints.json", _openpose(POINTS))
    for keypoints in (
        read_openpose(path),
        keypoints_from_file(path),
        keypoints_from_file(path, "openpose25"),
    ):
        assert keypoints.set is get_set("openpose25")
        assert len(keypoints) == 2
        np.testing.assert_allclose(keypoints.xy, POINTS[..., :2], rtol=1e-6)
        np.testing.assert_allclose(keypoints.confidence, POINTS[..., 2], rtol=1e-6)
    assert len(keypoints_from_file(_write(path, _openpose(POINTS[:0])))) == 0
    with pytest.raises(ValueError, match="'openpose25'; expected set='coco17'"):
        keypoints_from_file(path, "coco17")


def test_coco_results(tmp_path: Path) -> None:
    path = _write(tmp_path / "results.json", _results(POINTS))
    for image in (140, "140", "000000000140.jpg"):
        keypoints = keypoints_from_file(path, image=image)
        assert keypoints.set is get_set("coco17")
        assert len(keypoints) == 1
        np.testing.assert_allclose(keypoints.xy[0], POINTS[1, :17, :2], rtol=1e-6)
        np.testing.assert_allclose(keypoints.confidence[0], POINTS[1, :17, 2], rtol=1e-6)
    with pytest.raises(ValueError, match="2 photos"):
        read_coco(path)
    with pytest.raises(ValueError, match="no photo 5; expected one of 2: 139, 140"):
        read_coco(path, 5)


def test_coco_annotations(tmp_path: Path) -> None:
    path = _write(tmp_path / "person_keypoints.json", _annotations(POINTS))
    for image in (7, "val/a.jpg", "a.jpg"):
        keypoints = read_coco(path, image)
        assert keypoints.set is get_set("coco17")
        assert len(keypoints) == 2
        assert keypoints.confidence[0, :4].tolist() == [0, 0.5, 1, 0]
        assert (keypoints.xy[:, 0] == 0).all()
        assert (keypoints.xy[:, 1] > 0).all()
    assert len(read_coco(path, "b.jpg")) == 0
    assert len(read_coco(path)) == 2
    with pytest.raises(ValueError, match=r"no photo 'c\.jpg'"):
        read_coco(path, "c.jpg")
    whole = read_coco(_write(path, _annotations(POINTS, feet=True)), 7)
    assert whole.set is get_set("coco23")
    np.testing.assert_allclose(whole.xy[1, 17:23][[0, 2, 3, 5]], POINTS[1, [17, 19, 20, 22], :2], rtol=1e-6)


@pytest.mark.parametrize("suffix", ["npy", "npz", "json"])
@pytest.mark.parametrize("shape", ["one with confidence", "several without"])
def test_plain_arrays(tmp_path: Path, suffix: str, shape: str) -> None:
    array = POINTS[0, :17] if shape == "one with confidence" else POINTS[:, :17, :2]
    path = tmp_path / f"points.{suffix}"
    if suffix == "npy":
        np.save(path, array)
    elif suffix == "npz":
        np.savez(path, keypoints=array, other=np.zeros(3))
    else:
        _write(path, array.tolist())
    for keypoints in (keypoints_from_file(path), read_array(path, "coco17"), read_array(array)):
        assert keypoints.set.name == "coco17"
        assert len(keypoints) == (1 if array.ndim == 2 else 2)
        np.testing.assert_allclose(keypoints.xy[0], POINTS[0, :17, :2], rtol=1e-6)
        expected = POINTS[0, :17, 2] if array.ndim == 2 else np.ones(17)
        np.testing.assert_allclose(keypoints.confidence[0], expected, rtol=1e-6)


def test_what_is_not_finite_was_not_seen(tmp_path: Path) -> None:
    array = POINTS[:1, :17].copy()
    array[0, 0, 0], array[0, 1, 1], array[0, 2, 2], array[0, 3, 2], array[0, 4, 2] = (
        np.nan,
        np.inf,
        np.nan,
        -1,
        7,
    )
    keypoints = read_array(array)
    assert keypoints.confidence[0, :5].tolist() == [0, 0, 0, 0, 1]
    assert (keypoints.xy[0, :4] == 0).all()
    assert torch.isfinite(keypoints.xy).all()
    content = _openpose(POINTS[:1])
    content["people"][0]["pose_keypoints_2d"][0] = None
    assert float(read_openpose(_write(tmp_path / "null.json", content)).confidence[0, 0]) == 0
    text = json.dumps(_openpose(POINTS[:1])).replace(str(POINTS[0, 0, 0]), "NaN")
    (tmp_path / "nan.json").write_text(text)
    assert float(keypoints_from_file(tmp_path / "nan.json").confidence[0, 0]) == 0


Reader = Callable[[Path], Keypoints]


@pytest.mark.parametrize("reader", [keypoints_from_file, read_openpose, read_coco, read_array])
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe\x00", b"null", b"3", b'"text"', b"{}", b"[[], 1]", b"[" * 100_000),
        *(b'{"people": 3}', b'{"people": [3]}', b'{"people": [{"pose_keypoints_2d": [1, 2]}]}'),
        *(b'{"people": [{"pose_keypoints_2d": "abc"}]}', b'{"people": [{"pose_keypoints_2d": [[1], 2]}]}'),
        *(b'{"annotations": 3}', b'{"annotations": [3]}', b'[{"image_id": 1, "keypoints": [1, 2, 3]}]'),
        *(b'[{"image_id": 1, "keypoints": {"a": 1}}]', b"[[1, 2], [3]]", b"[[true, false]]", b'[["a", "b"]]'),
    ],
    ids=lambda content: content[:30].decode(errors="replace"),
)
def test_wrong_json_names_the_file(tmp_path: Path, reader: Reader, content: bytes) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.json"):
        reader(path)


def test_cut_off_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", POINTS)
    np.savez(tmp_path / "a.npz", POINTS)
    _write(tmp_path / "openpose.json", _openpose(POINTS))
    _write(tmp_path / "results.json", _results(POINTS))
    _write(tmp_path / "annotations.json", _annotations(POINTS))
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for keep in (0, 1, 40, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:keep])
            with pytest.raises(ValueError, match=path.name):
                keypoints_from_file(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        keypoints_from_file(tmp_path / "nowhere.json")
    with pytest.raises(IsADirectoryError, match="folder"):
        keypoints_from_file(tmp_path)


def test_wrong_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="17 keypoints; expected 25 of the set 'openpose25'"):
        read_array(POINTS[:, :17], "openpose25")
    with pytest.raises(ValueError, match=r"unknown keypoint set 'coco18'.*coco17"):
        keypoints_from_file(_write(tmp_path / "a.json", _openpose(POINTS)), "coco18")
    with pytest.raises(ValueError, match="19 keypoints"):
        read_array(POINTS[:, :19])
    with pytest.raises(ValueError, match=r"shape \(2, 17, 4\)"):
        read_array(np.zeros((2, 17, 4)))
    with pytest.raises(ValueError, match="1001 people"):
        read_array(np.zeros((1001, 17, 2)))
    with pytest.raises(ValueError, match="COCO or MPI model"):
        read_openpose(_write(tmp_path / "old.json", _openpose(POINTS[:, :18])))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "complex.npy", np.zeros((17, 2), complex))
    np.savez(tmp_path / "two.npz", a=POINTS, b=POINTS)
    for name in ("pickled.npy", "complex.npy", "two.npz"):
        with pytest.raises(ValueError, match=name):
            keypoints_from_file(tmp_path / name)


def test_observation_from_keypoints() -> None:
    photo = load_image(np.zeros((300, 400, 3), np.uint8))
    array = POINTS[:, :17].copy()
    array[1, :, 2] = 0
    keypoints = read_array(array)
    seen = observation_from_keypoints(keypoints, photo)
    assert len(seen) == 2
    assert seen.camera.focal.tolist() == [[400.0, 400.0]] * 2
    assert seen.camera.center.tolist() == [[200.0, 150.0]] * 2
    low, high = array[0, :, :2].min(0), array[0, :, :2].max(0)
    assert seen.box is not None
    assert seen.score is not None
    assert seen.image is not None
    np.testing.assert_allclose(seen.box, [[*low, *(high - low)], [0, 0, 0, 0]], rtol=1e-5)
    np.testing.assert_allclose(seen.score, [array[0, :, 2].mean(), 0], rtol=1e-5)
    camera = Camera.from_size(640, 480, 700.0)
    assert observation_from_keypoints(keypoints, camera=camera).camera.focal[1].tolist() == [700.0, 700.0]
    assert observation_from_keypoints(keypoints, photo, focal=500.0).camera.focal[0, 0] == 500
    with pytest.raises(ValueError, match="without a photo and without a camera"):
        observation_from_keypoints(keypoints)
    with pytest.raises(ValueError, match="both given"):
        observation_from_keypoints(keypoints, camera=camera, focal=500.0)
    with pytest.raises(ValueError, match="640 x 480"):
        observation_from_keypoints(keypoints, photo, camera)


def test_a_detector_that_found_nobody_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "nobody.json").write_text("[]")
    assert len(keypoints_from_file(tmp_path / "nobody.json")) == 0
    (tmp_path / "people.json").write_text('{"version": 1.3, "people": []}')
    assert len(keypoints_from_file(tmp_path / "people.json")) == 0

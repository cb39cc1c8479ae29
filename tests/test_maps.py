"""Part maps, IUV, normals and masks of other programs: good, truncated and of the wrong type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fitkit.body.charts import CHART_PARTS
from fitkit.camera import Camera
from fitkit.maps import PART_NAMES, PartMap
from fitkit.observation import Observation
from fitkit.observe._map_files import check_count, thin
from fitkit.observe.maps import (
    mask_from_file,
    normals_from_file,
    part_map_from_file,
    part_map_from_probabilities,
)
from fitkit.observe.part_labels import vocabulary, vocabulary_names
from tests.map_files import FACE, PANTS, SIZE, instance_map, label_map, save

HEAD = PART_NAMES.index("head")


def _can_be(parts: PartMap, person: int, y: int, x: int) -> set[str]:
    there = (parts.probability + parts.open)[person, :14, y, x] > 0
    return {name for name, one in zip(PART_NAMES, there.tolist(), strict=True) if one}


@pytest.mark.parametrize("name", vocabulary_names())
def test_vocabularies(name: str) -> None:
    words = vocabulary(name)
    expected = {
        "lip": 20,
        "cihp": 20,
        "atr": 18,
        "pascal-person-part": 7,
        "densepose14": 15,
        "densepose24": 25,
    }
    assert len(words) == expected[name] == len(words.table)
    assert words.labels[0] == "background"
    assert words.table[0].tolist() == [True] + [False] * 14
    assert not words.table[1:, 0].any()
    assert words.table[1:].any(0)[1:].all(), "a part that no label may be"
    for label, row in zip(words.labels, words.table[:, 1:], strict=True):
        parts = [PART_NAMES[k] for k in row.nonzero()[:, 0].tolist()]
        assert bool(parts) == (label not in ("background", "bag"))
        side = next((side for side in ("left", "right") if label.startswith(side)), None)
        assert side is None or all(part.startswith(side) for part in parts)
        if side is not None and "-" in label:
            limb = label.split("-")[1].replace("shoe", "foot")
            assert any(limb in part for part in parts)


def test_charts_are_those_of_densepose(shared_data: Path) -> None:
    names = json.loads((shared_data / "densepose" / "parts.json").read_text())
    coarse = {int(chart): part for chart, part in names["fine_to_coarse"].items()}
    assert list(CHART_PARTS) == [coarse[k] for k in range(1, 25)]
    index = json.loads((shared_data / "parts" / "index.json").read_text())
    plain = [label.replace("-", "").lower() for label in vocabulary("cihp").labels]
    assert plain == [label.replace("-", "").lower() for label in index["classes"]]


def test_own_vocabularies() -> None:
    named = vocabulary({"background": "background", "skin": ["left_arm", "head"], "thing": ""})
    numbered = vocabulary({0: "background", 2: "left_upper_arm left_lower_arm left_hand head"})
    assert named.labels == ("background", "skin", "thing")
    assert named.table[1].tolist() == numbered.table[2].tolist()
    assert not named.table[2].any()
    assert not numbered.table[1].any()
    assert vocabulary(named) is named
    for wrong, message in (
        ("lips", "unknown vocabulary 'lips'.*lip, cihp"),
        ({"a": "left_arm_"}, "'left_arm_', expected names of background, torso"),
        ({"a": [3]}, "said to be 3"),
        ({"a": 3}, "said to be 3"),
        ({"a": "background torso"}, "may be background or a part"),
        ({-1: "torso"}, "from 0 to 65535"),
        ({1: "torso", "b": "head"}, "names only, or numbers"),
        ({}, "a mapping"),
    ):
        with pytest.raises(ValueError, match=message):
            vocabulary(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["grey.png", "palette.png", "a.tif", "a.npy", "a.npz", "wide.png", "array"])
def test_label_maps(tmp_path: Path, file: str) -> None:
    labels = label_map().astype(np.uint16 if file == "wide.png" else np.uint8)
    source = labels if file == "array" else save(tmp_path / file, labels)
    parts = part_map_from_file(source, "lip", SIZE)
    assert len(parts) == 1
    assert parts.box.tolist() == [[0, 0, 40, 30]]
    assert bool((parts.confidence == 1).all())
    assert parts.probability[0, HEAD, 7, 7] == 1
    assert parts.probability[0, :, 12, 7].tolist() == [0] * 14 + [1]
    assert _can_be(parts, 0, 12, 7) == {"torso"} | {
        f"{s}_{p}_leg" for s in ("left", "right") for p in ("upper", "lower")
    }
    assert _can_be(parts, 0, 12, 32) == {"left_upper_arm", "left_lower_arm", "left_hand"}
    assert float(parts.probability[0, :, 0, 0].sum()) == 0


def test_people_told_apart_by_instances(tmp_path: Path) -> None:
    source, owner = save(tmp_path / "labels.png", label_map()), instance_map()
    owner[0, 0], owner[5, 5], owner[6, 5] = (
        7,
        0,
        255,
    )  # somebody's background, nobody's face, nobody knows whose
    parts = part_map_from_file(source, "lip", SIZE, save(tmp_path / "ids.png", owner))
    assert len(parts) == 2
    for person, (own, other) in enumerate([(7, 25), (25, 7)]):
        assert parts.probability[person, HEAD, 7, own] == parts.confidence[person, 7, own] == 1
        assert parts.probability[person, 14, 7, other] == parts.confidence[person, 7, other] == 0
        assert parts.confidence[person, 28, 20] == 1
        assert (parts.confidence[person, (5, 6), 5] == 0).all()
    assert parts.confidence[:, 0, 0].tolist() == [0, 0]
    with pytest.raises(
        ValueError, match=r"instances of 1 map\(s\) of 20 x 30 for .*labels.png of 1 map\(s\) of 40 x 30"
    ):
        part_map_from_file(source, "lip", SIZE, owner[:, :20])
    with pytest.raises(ValueError, match="no instance"):
        part_map_from_file(source, "lip", SIZE, owner * 0)
    owner[29, 39] = 9
    with pytest.raises(ValueError, match=r"person 2 \(instance 9\): all background"):
        part_map_from_file(source, "lip", SIZE, owner)
    assert len(part_map_from_file(source, "lip", SIZE, owner, allow_empty=True)) == 3
    # Too small to be left at this resolution, and still a row.
    small = instance_map()
    small[7, 7] = 2
    assert len(part_map_from_file(source, "lip", SIZE, small, side=10)) == 3


def test_one_map_per_person_is_the_same_as_instances() -> None:
    labels = label_map()
    owner = instance_map() * (labels > 0)
    apart = np.stack([np.where(owner == k, labels, 0) for k in (3, 7)])
    one, other = part_map_from_file(apart, "lip", SIZE), part_map_from_file(labels, "lip", SIZE, owner)
    torch.testing.assert_close(one.confidence, other.confidence)
    sure = one.confidence[:, None]
    torch.testing.assert_close(one.probability * sure, other.probability * sure)
    torch.testing.assert_close(one.open * sure, other.open * sure)


def test_crops_hide_each_other_as_the_whole_does() -> None:
    labels, owner = label_map(), instance_map()
    apart = np.stack([np.where(owner == k, labels, 0) for k in (3, 7)])
    boxes = np.array([[0, 0, 30, 26], [10, 3, 30, 26]])
    crops = np.stack([apart[0, :26, :30], apart[1, 3:29, 10:]])
    parts = part_map_from_file(crops, "lip", SIZE, boxes=torch.tensor(boxes))
    whole = part_map_from_file(apart, "lip", SIZE)
    assert parts.box.tolist() == boxes.tolist()
    # What lies outside of the other's crop is not known to be theirs.
    np.testing.assert_array_equal(parts.confidence[1, :, :20], whole.confidence[1, 3:29, 10:30])
    np.testing.assert_array_equal(parts.confidence[0], whole.confidence[0, :26, :30])
    np.testing.assert_array_equal(parts.probability[1], whole.probability[1, :, 3:29, 10:])


def test_sizes_go_together() -> None:
    labels = label_map()
    for size in ((40, 30), (400, 300), (4000, 2950), (41, 30)):
        part_map_from_file(labels, "lip", size)
    for arguments, message in (
        ({"photo_size": (60, 30)}, "40 x 30 pixels for the photo of 60 x 30"),
        ({"photo_size": (30, 40)}, "40 x 30 .* 30 x 40.*width and height exchanged"),
        ({}, "without photo_size and without boxes"),
        ({"photo_size": (0, 30)}, "photo_size"),
        ({"boxes": np.array([[0, 0, 40, 60]])}, r"boxes\[0\] of 40 x 60"),
        ({"boxes": np.zeros((2, 4)) + 1}, "1 maps for 2 boxes"),
        ({"boxes": np.array([[0, 0, 0, 9.0]])}, "w, h above 0"),
        ({"boxes": np.array([[np.nan, 0, 4, 3]])}, "finite"),
        ({"boxes": np.zeros((1, 3))}, r"shape \(1, 3\)"),
        ({"boxes": np.array([[50, 0, 40, 30]]), "photo_size": SIZE}, "outside of the photo of 40 x 30"),
    ):
        with pytest.raises(ValueError, match=message):
            part_map_from_file(labels, "lip", **arguments)


def test_wrong_labels(tmp_path: Path) -> None:
    labels = label_map()
    labels[:2, :3] = 77
    with pytest.raises(ValueError, match=r"labels 77 \(6 pixels\), which the vocabulary 'lip' does not"):
        part_map_from_file(labels, "lip", SIZE)
    known = part_map_from_file(labels, "lip", SIZE, void=(77,))
    assert known.confidence[0, 1, :4].tolist() == [0, 0, 0, 1]
    assert (
        float(part_map_from_file(np.where(labels == 77, 255, labels), "lip", SIZE).confidence[0, 1, 1]) == 0
    )
    own = {0: "background", FACE: "head", 255: "torso"}
    assert part_map_from_file(np.where(labels == PANTS, 255, FACE), own, SIZE).probability[0, 0, 12, 7] == 1
    with pytest.raises(ValueError, match="person 0: all background"):
        part_map_from_file(np.where(labels == PANTS, 255, 0), own, SIZE, void=(255,))
    with pytest.raises(ValueError, match="person 0: all background"):
        part_map_from_file(labels * 0, "lip", SIZE)
    assert len(part_map_from_file(labels * 0, "lip", SIZE, allow_empty=True)) == 1
    colour = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    with pytest.raises(ValueError, match=r"colour\.png: a colour picture \(30, 40, 3\)"):
        part_map_from_file(save(tmp_path / "colour.png", colour), "lip", SIZE)
    part_map_from_file(save(tmp_path / "threefold.png", np.repeat(label_map()[..., None], 3, 2)), "lip", SIZE)
    with pytest.raises(ValueError, match="lossy"):
        part_map_from_file(save(tmp_path / "a.jpg", labels), "lip", SIZE)
    for wrong, message in (
        (labels * 0.5, "dtype float64; expected whole label numbers"),
        (labels[None, None], "shape"),
        (labels[:0], "holds nothing"),
        (labels.astype("U2"), "expected numbers"),
        (np.full((30, 40), -1), r"labels -1 \(1200 pixels\)"),
    ):
        with pytest.raises(ValueError, match=message):
            part_map_from_file(wrong, "lip", SIZE)


def test_large_maps_are_thinned() -> None:
    big = np.kron(label_map(), np.ones((20, 20), np.uint8))
    parts = part_map_from_file(
        big, "lip", (4000, 3000), np.kron(instance_map(), np.ones((20, 20), np.uint8)), side=40
    )
    small = part_map_from_file(label_map(), "lip", (4000, 3000), instance_map())
    torch.testing.assert_close(parts.probability, small.probability)
    torch.testing.assert_close(parts.confidence, small.confidence)
    assert parts.box[0].tolist() == [0, 0, 4000, 3000]
    assert part_map_from_file(big, "lip", (4000, 3000)).confidence.shape == (1, 384, 512)
    with pytest.raises(ValueError, match="300 maps of 640 x 480; expected at most"):
        check_count(300, 480, 640, "maps")
    # The value of a pixel is taken near its centre: x itself is off by half an old pixel at most.
    ramp = thin(np.arange(1000)[None] + 0.5, 300)[0]
    assert np.abs(ramp - (np.arange(300) + 0.5) * 1000 / 300).max() <= 0.5


def _probabilities() -> np.ndarray:
    values = np.zeros((2, 15, 15, 20), np.float32)
    values[0, 0, 3:9, 3:9], values[0, 13, 1:3, 4:7] = 0.75, 1
    values[1, 0, 3:9, 12:18], values[1, 2, 4, 19] = 0.5, 0.25
    values[:, 14] = values[:, :14].sum(1)
    return values


@pytest.mark.parametrize("file", ["a.npy", "a.npz", "array", "tensor"])
def test_probabilities(tmp_path: Path, file: str) -> None:
    values = _probabilities()
    plain: dict[str, Any] = {"array": values, "tensor": torch.from_numpy(values)}
    source = plain[file] if file in plain else save(tmp_path / file, values)
    parts = part_map_from_probabilities(source, SIZE)
    np.testing.assert_array_equal(parts.probability, values)
    assert not parts.open.any()
    assert float(parts.confidence[0, 4, 14]) == 0.5
    assert float(parts.confidence[1, 4, 14]) == 1
    assert float(parts.confidence[1, 2, 5]) == 0
    apart = part_map_from_probabilities(values[:, :14], SIZE, visibility=values[:, 14])
    torch.testing.assert_close(apart.probability, parts.probability)
    assert part_map_from_probabilities(values[0], SIZE).probability.shape == (1, 15, 15, 20)


def test_wrong_probabilities() -> None:
    values = _probabilities()
    broken = values.copy()
    broken[0, 0, 0, 0] = np.nan
    softmax = np.concatenate([1 - values[:, 14:], values[:, :14]], 1)
    for wrong, message in (
        (broken, "1 values are not finite"),
        (values * 2, "from 0 to 2; expected 0 to 1"),
        (values - 1, "from -1"),
        (values[:, :14], r"expected \(N, 15, h, w\): 14 parts, then visibility"),
        (softmax, "one of them is background"),
        (values * 0.4, "person 0, 1: all background"),
        (values[:, :, :, :10], "10 x 15 pixels for the photo of 40 x 30"),
    ):
        with pytest.raises(ValueError, match=message):
            part_map_from_probabilities(wrong, SIZE)
    with pytest.raises(ValueError, match=r"visibility: shape .*expected \(2, 15, 20\)"):
        part_map_from_probabilities(values[:, :14], SIZE, visibility=values[:1, 14])


def _normals() -> np.ndarray:
    """A ball seen from the front, camera axes; nothing around it."""
    y, x = np.mgrid[:30, :40].astype(np.float64)
    x, y = (x - 19.5) / 12, (y - 14.5) / 12
    inside = x**2 + y**2 < 1
    z = -np.sqrt(np.where(inside, 1 - x**2 - y**2, 0))
    return np.where(inside[..., None], np.stack([x, y, z], -1), 0)


def test_normals(tmp_path: Path) -> None:
    normals = _normals()
    inside = np.linalg.norm(normals, axis=-1) > 0
    for source in (normals, normals[None] * 1.1, save(tmp_path / "a.npz", normals.astype(np.float32))):
        read = normals_from_file(source, SIZE)
        np.testing.assert_allclose(read.normal[0], normals.transpose(2, 0, 1), atol=1e-6)
        np.testing.assert_array_equal(read.confidence[0], inside)
    flipped = normals * [1, -1, -1]
    for background in (0, 127, 128, 255):
        picture = np.where(inside[..., None], np.rint((flipped + 1) * 127.5), background).astype(np.uint8)
        read = normals_from_file(save(tmp_path / "a.png", picture), SIZE, axes="opengl")
        np.testing.assert_array_equal(read.confidence[0], inside)
        np.testing.assert_allclose(read.normal[0], normals.transpose(2, 0, 1), atol=0.01)
    masks = torch.zeros(2, 15, 20)
    masks[0, :, :10], masks[1, :, 10:] = 1, 0.5
    read = normals_from_file(normals, SIZE, mask=masks)
    assert len(read) == 2
    assert read.confidence[:, 15, 19].tolist() == [1, 0]
    assert read.confidence[:, 15, 20].tolist() == [0, 0.5]


def test_wrong_normals() -> None:
    normals = _normals()
    spoiled = normals.copy()
    spoiled[15, 20] = np.nan
    spoiled[15, 21] = 1e300
    assert normals_from_file(spoiled, SIZE).confidence[0, 15, 19:23].tolist() == [1, 0, 0, 1]
    for wrong, message in (
        (normals * 2, "100% of the vectors are not of unit length .median 2"),
        (normals * [1, -1, -1], "axes='camera'; expected surfaces that face it: axes='opengl'"),
        (normals * 0, "no normal at all"),
        (normals[..., :2], "shape"),
        (normals.astype(np.int64), "dtype int64"),
        (normals[:, :20], "20 x 30 pixels for the photo"),
    ):
        with pytest.raises(ValueError, match=message):
            normals_from_file(wrong, SIZE)
    with pytest.raises(ValueError, match=r"axes='blender'; expected one of camera, opengl"):
        normals_from_file(normals, SIZE, axes="blender")
    with pytest.raises(ValueError, match="mask of shape"):
        normals_from_file(np.stack([normals] * 3), SIZE, mask=torch.ones(2, 30, 40))


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, "255", "png"])
def test_masks(tmp_path: Path, kind: Any) -> None:
    plain = instance_map()[None] == np.array([3, 7])[:, None, None]
    wide = (plain * 255).astype(np.uint8)
    source = (
        save(tmp_path / "a.png", wide[0]) if kind == "png" else wide if kind == "255" else plain.astype(kind)
    )
    mask = mask_from_file(source, SIZE)
    np.testing.assert_array_equal(mask, plain[: len(mask)])
    camera = Camera.from_size(*SIZE).expand(len(mask))
    assert len(Observation(camera, mask=mask)) == len(mask)
    with pytest.raises(ValueError, match="mask is of"):
        Observation(camera.expand(5) if len(camera) == 1 else camera.select([0]), mask=mask)


def test_wrong_masks() -> None:
    mask = (instance_map() > 0).astype(np.float32)
    np.testing.assert_allclose(mask_from_file(np.kron(mask, np.ones((8, 8))), SIZE, side=40)[0], mask)
    for wrong, message in (
        (mask * 2, "expected 0 to 1"),
        (mask + np.nan, "not finite"),
        (instance_map(), "uint8 from 0 to 7; expected 0 and 1, or 0 to 255 in uint8"),
        (mask * 0, "person 0: all background"),
        (mask[0], "shape"),
        (mask[:, :20], "20 x 30 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            mask_from_file(wrong, SIZE)


def test_cihp_samples(shared_data: Path) -> None:
    index = json.loads((shared_data / "parts" / "index.json").read_text())
    for item in index["items"]:
        size = Image.open(shared_data / "parts" / item["image"]).size
        parts = part_map_from_file(shared_data / "parts" / item["labels"], "cihp", size)
        assert parts.probability.shape[2:] == (
            min(size[1], parts.confidence.shape[1]),
            parts.confidence.shape[2],
        )
        assert bool((parts.confidence == 1).all())
        assert float(parts.probability[0, HEAD].sum()) > 500


READERS: dict[str, tuple[Callable[[Path], object], Callable[[], np.ndarray], tuple[str, ...]]] = {
    "labels": (lambda path: part_map_from_file(path, "lip", SIZE), label_map, ("png", "npy", "npz")),
    "instances": (
        lambda path: part_map_from_file(label_map(), "lip", SIZE, path),
        instance_map,
        ("png", "npy", "npz"),
    ),
    "parts": (lambda path: part_map_from_probabilities(path, SIZE), _probabilities, ("npy", "npz")),
    "normals": (lambda path: normals_from_file(path, SIZE), _normals, ("npy", "npz")),
    "masks": (
        lambda path: mask_from_file(path, SIZE),
        lambda: (instance_map() > 0) * np.uint8(255),
        ("png", "npy", "npz"),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_cut_off_files(tmp_path: Path, name: str) -> None:
    read, make, suffixes = READERS[name]
    for suffix in suffixes:
        path = save(tmp_path / f"whole.{suffix}", make())
        read(path)
        whole = path.read_bytes()
        for keep in (0, 1, 40, len(whole) // 2, len(whole) - 30):
            path.write_bytes(whole[:keep])
            with pytest.raises(ValueError, match=rf"whole\.{suffix}"):
                read(path)


@pytest.mark.parametrize("name", READERS)
def test_files_of_the_wrong_kind(tmp_path: Path, name: str) -> None:
    read = READERS[name][0]
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(tmp_path / "complex.npy", np.zeros((30, 40), complex))
    np.save(tmp_path / "vector.npy", np.zeros(40))
    for file, content in (
        ("a.pkl", b"\x80\x04N."),
        ("a.txt", b"text"),
        ("a.png", b"text"),
        ("a.npz", b"PK\x03\x04"),
    ):
        (tmp_path / file).write_bytes(content)
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=path.name):
            read(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        read(tmp_path / "nowhere.png")
    with pytest.raises(IsADirectoryError, match="folder"):
        read(tmp_path)

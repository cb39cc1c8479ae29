"""Photo -> people with MediaPipe: who is found, how well, and that nobody is silently chosen or invented."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fitkit.camera import Camera
from fitkit.keypoints import get_set
from fitkit.observation import Observation
from fitkit.observe import DetectorUnavailable, load_image, mediapipe_graph, observe
from fitkit.observe.mediapipe_graph import Roi, silent_stderr


@pytest.fixture(scope="module")
def seen(astronaut: np.ndarray) -> Observation:
    return observe(astronaut)


def _box(seen: Observation) -> torch.Tensor:
    assert seen.box is not None
    return seen.box


def _nose(seen: Observation, person: int = 0) -> torch.Tensor:
    assert seen.keypoints is not None
    return seen.keypoints.xy[person, 0]


NOSE = torch.tensor([224.0, 124.0])  # of the astronaut, by hand


def test_one_person(seen: Observation, astronaut: np.ndarray) -> None:
    assert len(seen) == 1
    assert seen.keypoints is not None
    assert seen.world is not None
    assert seen.mask is not None
    assert seen.score is not None
    points = get_set("mediapipe33")
    assert seen.keypoints.set is points
    assert seen.world.set is points
    assert float((_nose(seen) - NOSE).norm()) < 15
    xy = {name: seen.keypoints.xy[0, points.index(name)] for name in ("left_shoulder", "right_shoulder")}
    assert xy["left_shoulder"][0] > 280
    assert xy["right_shoulder"][0] < 200
    # Knees and feet are below the photo: their place is a guess, and the confidence says so.
    below = seen.keypoints.xy[0, :, 1] > 560
    assert below.any()
    assert float(seen.keypoints.confidence[0, below].max()) < 0.2
    assert float(seen.keypoints.confidence[0, 0]) > 0.9
    # metres, y down, root between the hips
    hips = [points.index("left_hip"), points.index("right_hip")]
    assert float(seen.world.xyz[0, hips].mean(0).norm()) < 1e-5
    assert -0.8 < float(seen.world.xyz[0, 0, 1]) < -0.4
    assert float(seen.world.xyz[0, 0, 2]) < 0  # she looks into the camera: the nose is nearer
    mask = seen.mask[0]
    assert mask.shape == (512, 512)
    assert 0 <= float(mask.min())
    assert float(mask.max()) <= 1
    assert float(mask[148, 217]) > 0.9
    assert float(mask[20, 40]) < 0.1
    x, y, w, h = _box(seen)[0].tolist()
    assert 0 <= x < 60
    assert y < 60
    assert x + w <= 512
    assert y + h == 512
    assert 0.7 < float(seen.score[0]) <= 1
    np.testing.assert_array_equal(seen.image, astronaut)


def test_same_again_and_in_every_form(seen: Observation, astronaut: np.ndarray, tmp_path: Path) -> None:
    from PIL import Image

    again = observe(astronaut)
    for field in ("mask", "box", "score"):
        assert torch.equal(getattr(again, field), getattr(seen, field))
    large = np.asarray(Image.fromarray(astronaut).resize((3000, 3000)))
    grown = observe(large)
    assert len(grown) == 1
    assert float((_nose(grown) / 3000 * 512 - NOSE).norm()) < 15
    assert grown.mask is not None
    assert grown.mask.shape == (1, 512, 512)
    assert grown.camera.focal.tolist() == [[3000.0, 3000.0]]
    grey = Image.fromarray(astronaut).convert("L")
    grey.save(tmp_path / "grey.jpg")
    for source in (tmp_path / "grey.jpg", grey):
        found = observe(source)
        assert len(found) == 1
        assert float((_nose(found) - NOSE).norm()) < 15
    small = observe(np.asarray(Image.fromarray(astronaut).resize((96, 96))))
    assert len(small) == 1
    assert small.mask is not None
    assert small.mask.shape == (1, 96, 96)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (16, 16), (1, 4000), (30, 3000), (480, 640)])
def test_nobody(astronaut: np.ndarray, shape: tuple[int, int]) -> None:
    for value in (0, 255):
        empty = observe(np.full((*shape, 3), value, np.uint8))
        assert len(empty) == 0
        assert empty.camera.width == shape[1]
        assert empty.keypoints is not None
        assert empty.keypoints.xy.shape == (0, 33, 2)
        assert empty.mask is not None
        assert empty.mask.shape[0] == 0
        assert _box(empty).shape == (0, 4)
    assert len(observe(np.zeros((*shape, 3), np.uint8), people="largest")) == 0
    with pytest.raises(ValueError, match="nobody was found"):
        observe(np.zeros((*shape, 3), np.uint8), people=0)


def test_several_people_are_sorted_by_size(astronaut: np.ndarray) -> None:
    from PIL import Image

    small = np.asarray(Image.fromarray(astronaut).resize((256, 256)))
    pair = np.full((512, 900, 3), 128, np.uint8)
    pair[256:, :256], pair[:, 388:] = small, astronaut
    both = observe(pair)
    area = _box(both)[:, 2] * _box(both)[:, 3]
    assert len(both) == 2
    assert area[0] > area[1]
    assert float((_nose(both) - NOSE - torch.tensor([388.0, 0])).norm()) < 12
    assert float((_nose(both, 1) - NOSE / 2 - torch.tensor([0, 256.0])).norm()) < 8
    choices: list[tuple[str | int, int]] = [("largest", 0), (0, 0), (1, 1)]
    for people, row in choices:
        one = observe(pair, people=people)
        assert len(one) == 1
        assert torch.equal(_box(one)[0], _box(both)[row])
    with pytest.raises(ValueError, match=r"people=2: array has 2 people \(numbered 0 ... 1"):
        observe(pair, people=2)
    # a box asks for one person, and rows keep the order of the boxes
    boxes = np.array([[0, 256, 256, 256], [600.0, 20, 40, 40], [388, 0, 512, 512]])
    chosen = observe(pair, boxes=boxes)
    assert len(chosen) == 3
    assert chosen.score is not None
    assert float((_nose(chosen, 0) - _nose(both, 1)).norm()) < 8
    assert float((_nose(chosen, 2) - _nose(both, 0)).norm()) < 12
    assert chosen.image is not None
    assert chosen.image.shape == pair.shape


def test_a_box_without_anybody(astronaut: np.ndarray) -> None:
    nobody = observe(np.zeros((200, 300, 3), np.uint8), boxes=np.array([[10.0, 20, 50, 60], [299, 0, 9, 4]]))
    assert len(nobody) == 2
    assert nobody.keypoints is not None
    assert nobody.score is not None
    assert float(nobody.score.max()) < 0.5
    assert float(nobody.keypoints.confidence.mean()) < 0.3
    assert len(observe(astronaut, boxes=np.zeros((0, 4)))) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"people": "smallest"}, "people='smallest'"),
        ({"people": -1}, "people=-1"),
        ({"people": True}, "people=True"),
        ({"boxes": np.zeros(4)}, r"shape \(4,\)"),
        ({"boxes": np.zeros((2, 5))}, r"shape \(2, 5\)"),
        ({"boxes": np.array([[0, 0, 5, 5], [3, 3, 0, 4]])}, r"boxes\[1\]"),
        ({"boxes": np.array([[0, 0, np.nan, 5]])}, r"boxes\[0\]"),
        ({"boxes": np.array([[50, 50, 5, 5]])}, "touches the photo of 40 x 30"),
        ({"boxes": np.zeros((1001, 4))}, "at most 1000"),
        ({"focal": 4.25}, "expected pixels"),
        ({"focal": 50.0, "camera": Camera.from_size(40, 30)}, "both given"),
        ({"camera": Camera.from_size(30, 40)}, "expected 1 row for 40 x 30"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    if "boxes" in arguments:
        pytest.importorskip("mediapipe", reason="the extra [detect] is not installed")
    with pytest.raises(ValueError, match=message):
        observe(np.zeros((30, 40, 3), np.uint8), **arguments)


def test_camera(astronaut: np.ndarray, tmp_path: Path) -> None:
    from PIL import Image

    assert observe(astronaut).camera.focal.tolist() == [[512.0, 512.0]]
    assert observe(astronaut, focal=700.0).camera.focal.tolist() == [[700.0, 700.0]]
    camera = Camera.from_intrinsics(600.0, 610.0, 250.0, 240.0, 512, 512)
    assert torch.equal(observe(astronaut, camera=camera).camera.center, camera.center)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 35
    Image.fromarray(astronaut).save(tmp_path / "phone.jpg", exif=exif)
    expected = 35 / 43.27 * 512 * 2**0.5
    assert float(observe(tmp_path / "phone.jpg").camera.focal[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_stderr_stays_empty(astronaut: np.ndarray, tmp_path: Path) -> None:
    """In a process of its own: the noise comes with the first graph, and again when the process ends."""
    np.save(tmp_path / "photo.npy", astronaut)
    program = (
        "import sys, numpy as np\nfrom fitkit.observe import observe\n"
        "assert not {'mediapipe', 'cv2', 'PIL'} & set(sys.modules), 'imported before they are needed'\n"
        f"found = observe(np.load({str(tmp_path / 'photo.npy')!r}))\n"
        "print(len(found))\nprint('still heard', file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("1\n", "still heard\n", 0)


def test_stderr_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with silent_stderr(), silent_stderr():
            os.write(2, b"hidden")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_a_forked_process_is_told(seen: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, MediaPipe would end the process."""
    assert len(seen) == 1
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="spawn"):
        observe(np.zeros((30, 40, 3), np.uint8))


def test_without_mediapipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mediapipe_graph, "_cache", {})
    for name in [n for n in sys.modules if n.split(".")[0] == "mediapipe"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(DetectorUnavailable, match=r"fitkit-body\[detect\].*keypoints_from_file") as caught:
        observe(np.zeros((30, 40, 3), np.uint8))
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    ("top", "angle"), [((50, 20), 0.0), ((80, 50), np.pi / 2), ((20, 50), -np.pi / 2), ((50, 80), -np.pi)]
)
def test_squares_turn_with_the_person(top: tuple[int, int], angle: float) -> None:
    roi = Roi.from_points(np.array([50.0, 50.0]), np.array(top, float))
    assert [roi.x, roi.y, roi.side] == pytest.approx([50, 50, 75])
    assert roi.angle == pytest.approx(angle)
    assert roi.bounds(60, 1000)[2] == 60
    assert roi.bounds(60, 1000)[3] <= 91


# Sigmas of the 17 COCO points (cocodataset.org, "Keypoint evaluation"), and the points' places among the 33.
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


def test_recall_on_annotated_photos(shared_data: Path) -> None:
    pytest.importorskip("mediapipe", reason="the extra [detect] is not installed")
    names = {"coco_000000197388.jpg": 4, "coco_000000196141.jpg": 3, "coco_000000442450.jpg": 2}
    names |= {"ochuman_003799.jpg": 1, "coco_000000406129.jpg": 1, "coco_000000174375.jpg": 1}
    entries = {e["file"]: e for e in json.loads((shared_data / "photos" / "index.json").read_text())}
    for name, expected in names.items():
        photo = load_image(shared_data / "photos" / name)
        seen = observe(photo)
        assert seen.keypoints is not None
        found = seen.keypoints.convert("coco17").xy.numpy()
        people = [a for a in entries[name]["annotations"] if a["num_keypoints"] >= 8]
        best = [max((_oks(xy, person) for xy in found), default=0.0) for person in people]
        assert sum(b > 0.5 for b in best) >= expected, (name, best)
        main = entries[name]["annotations"][entries[name]["main_person"]]
        assert max(_oks(xy, main) for xy in found) > 0.5, name
        assert len(found) <= expected + 1, name  # no crowd of doubles
    boxed = observe(photo, boxes=np.array([main["bbox_xywh"]])).keypoints
    assert boxed is not None
    assert _oks(boxed.convert("coco17").xy[0].numpy(), main) > 0.6


def _oks(xy: np.ndarray, person: dict[str, Any]) -> float:
    """Object keypoint similarity with the area of the box x 0.53."""
    truth = np.array(person["keypoints"], float)
    labelled = truth[:, 2] > 0
    area = 0.53 * person["bbox_xywh"][2] * person["bbox_xywh"][3]
    squared = ((xy - truth[:, :2]) ** 2).sum(1)
    return float(np.exp(-squared / (2 * area * (2 * SIGMAS) ** 2))[labelled].mean())

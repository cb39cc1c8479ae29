"""Input that nobody wishes for, end to end: a sensible answer, or one clear error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fitkit.api import fit
from fitkit.cli import main
from fitkit.keypoints import Keypoints, get_set
from fitkit.observation import Observation
from fitkit.result import FitError, FitResult
from fitkit.solver import Outcome

# -- what was observed ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(people: Callable[..., Any]) -> Observation:
    """Three people of whom 2D keypoints were seen."""
    observation: Observation = people(3)[1]
    return replace(observation, world=None)


@pytest.fixture(scope="module")
def plain(three: Observation) -> FitResult:
    """Their fit, when nothing is wrong."""
    return fit(three)


def _with(observation: Observation, xy: torch.Tensor, confidence: torch.Tensor) -> Observation:
    return replace(observation, keypoints=Keypoints(get_set("mediapipe33"), xy, confidence))


def _points(observation: Observation) -> tuple[torch.Tensor, torch.Tensor]:
    assert observation.keypoints is not None
    return observation.keypoints.xy.clone(), observation.keypoints.confidence.clone()


def _same(one: FitResult, other: FitResult) -> None:
    """The same people, up to what the order of additions in a batch of another size does."""
    torch.testing.assert_close(one.energy, other.energy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.keypoints(), other.keypoints(), rtol=0, atol=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_keypoint_that_is_not_finite_was_not_seen(
    three: Observation, plain: FitResult, value: float
) -> None:
    xy, confidence = _points(three)
    confidence[1, 13] = 0
    unseen = fit(_with(three, xy, confidence))
    xy[1, 13, 0] = value
    confidence[1, 13] = 1
    result = fit(_with(three, xy, confidence))
    assert not any(status.failed for status in result.status)
    assert bool(torch.isfinite(result.vertices()).all())
    _same(result, unseen)
    _same(result[[0, 2]], plain[[0, 2]])


def test_a_confidence_that_is_not_a_number(three: Observation, plain: FitResult) -> None:
    xy, confidence = _points(three)
    confidence[0, 12] = float("nan")
    result = fit(_with(three, xy, confidence))
    assert bool(torch.isfinite(result.energy).all())
    _same(result[1:], plain[1:])


@pytest.mark.parametrize("seen", [0, 3])
def test_a_person_with_hardly_any_keypoints(three: Observation, plain: FitResult, seen: int) -> None:
    xy, confidence = _points(three)
    confidence[1, seen:] = 0
    result = fit(_with(three, xy, confidence))
    assert result.status[1] is Outcome.NOT_ENOUGH_SEEN
    assert result.ok.tolist() == [True, False, True]
    assert bool(torch.isfinite(result.vertices()).all())
    _same(result[[0, 2]], plain[[0, 2]])
    with pytest.raises(FitError, match="person 1: failed: fewer than 4 keypoints") as caught:
        result.raise_if_failed()
    assert caught.value.result is result


def test_an_empty_mask(three: Observation, plain: FitResult) -> None:
    _same(fit(replace(three, mask=torch.zeros(3, 40, 50, dtype=torch.float64))), plain)


def test_all_keypoints_in_one_place(three: Observation) -> None:
    xy, confidence = _points(three)
    xy[:] = xy[:, :1]
    assert bool(torch.isfinite(fit(_with(three, xy, confidence)).vertices()).all())


# -- photos --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(astronaut: np.ndarray) -> FitResult:
    """Her fit."""
    return fit(astronaut)


def _turned(picture: Image.Image, path: Path) -> None:
    """Stored on its side, with the EXIF note of it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


KINDS: dict[str, Callable[[Image.Image, Path], None]] = {
    "grey": lambda picture, path: picture.convert("L").save(path),
    "rgba": lambda picture, path: picture.convert("RGBA").save(path),
    "palette": lambda picture, path: picture.quantize(256).save(path),
    "sixteen bits": lambda picture, path: Image.fromarray(
        np.asarray(picture.convert("L")).astype(np.uint16) * 257
    ).save(path),
    "turned": _turned,
    "12 megapixels": lambda picture, path: picture.resize((3500, 3500)).save(path, compress_level=0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_photos_of_every_kind(astronaut: np.ndarray, fitted: FitResult, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.png"
    KINDS[kind](Image.fromarray(astronaut), path)
    result = fit(path)
    assert len(result) == len(fitted) == 1
    result.raise_if_failed()
    camera = result.observation.camera
    nose = result.keypoints_2d()[0, 0] / camera.width * 512
    assert float((nose - torch.tensor([224.0, 124.0], dtype=nose.dtype)).norm()) < 20
    # The focal length grows with the photo, so that the person stays where they are.
    assert float(result.state.transl[0, 2]) == pytest.approx(float(fitted.state.transl[0, 2]), rel=0.2)


def test_command_line_end_to_end(
    astronaut: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person, nobody, and three files that are no photos, in one call."""
    names = [str(tmp_path / name) for name in ("her.png", "nobody.png", "one.png", "cut.png", "text.jpg")]
    Image.fromarray(astronaut).save(names[0])
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(names[1])
    Image.new("RGB", (1, 1)).save(names[2])
    Path(names[3]).write_bytes(Path(names[0]).read_bytes()[:5000])
    Path(names[4]).write_text("not a photo", encoding="utf-8")
    out = tmp_path / "out"
    assert main(["fit", *names, str(tmp_path), "--out", str(out)]) == 1
    shown, errors = capsys.readouterr()
    assert "6 photos, 1 done, 5 with errors" in shown
    lines = errors.splitlines()
    for line, name in zip(lines, [*names[1:], str(tmp_path)], strict=True):
        assert line.startswith("fitkit: error: ")
        assert name in line
    assert sorted(path.name for path in out.iterdir()) == ["her", "nobody", "one"]
    made = {path.name for path in (out / "her").iterdir()}
    assert {"overlay.png", "body_0.glb", "params.npz", "trace.png", "report.html", "result.json"} <= made
    (person,) = json.loads((out / "her" / "result.json").read_text(encoding="utf-8"))["people"]
    assert person["ok"]
    assert f"{person['readout']['height_m']:.2f} m" in shown
    for name, size in (("nobody", [120, 90]), ("one", [1, 1])):
        saved = json.loads((out / name / "result.json").read_text(encoding="utf-8"))
        assert saved["people"] == []
        assert [saved["width"], saved["height"]] == size
        assert (out / name / "overlay.png").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"\xff\xd8\xff\xe0junk", "not a photo"),
        (b"<html>", "not a photo"),
    ],
)
def test_files_that_are_no_photos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        fit(path)
    assert main(["fit", str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fitkit: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_is_no_photo(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder"):
        fit(tmp_path)


def test_keypoints_of_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.png")
    (tmp_path / "openpose.json").write_text('{"people": []}', encoding="utf-8")
    line = ["fit", str(tmp_path / "photo.png"), "--keypoints", str(tmp_path / "openpose.json")]
    assert main([*line, "--out", str(tmp_path / "out")]) == 1
    assert "nobody found" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["people"] == []


# -- output --------------------------------------------------------------------------------------------------


def test_a_file_in_place_of_the_output(
    plain: FitResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine", encoding="utf-8")
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder"):
        plain.save(taken)
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.png")
    assert main(["fit", str(tmp_path / "photo.png"), "--out", str(taken)]) == 2
    assert f"{taken} is a file" in capsys.readouterr().err
    assert taken.read_text(encoding="utf-8") == "mine"


def test_an_output_folder_without_permission(plain: FitResult, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(PermissionError, match="closed"):
        plain.save(closed)
    with pytest.raises(PermissionError, match="closed"):
        plain.save(closed / "below")

"""The command line: what is typed reaches `fit`, what comes back is shown, and mistakes get one clear line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fitkit.api
import fitkit.doctor
from fitkit.camera import Camera
from fitkit.cli import main
from fitkit.keypoints import Keypoints
from fitkit.observe import DetectorUnavailable, Photo
from fitkit.result import FitResult
from fitkit.solver import Outcome
from fitkit.solvers import LBFGS

ROOT = Path(__file__).resolve().parents[1]
SIZE = (100, 80)


@pytest.fixture(scope="module")
def two(body: Any, people: Callable[..., Any]) -> FitResult:
    """A result of two people whose keypoints lie 5 pixels off: 3 to the side and 4 up."""
    state, observation = people(2)
    xy = observation.camera.project(body.keypoints(state, "coco17")) + torch.tensor([3.0, 4.0])
    seen = Keypoints(fitkit.get_set("coco17"), xy, torch.ones(2, 17, dtype=torch.float64))
    return FitResult(
        state=state,
        body=body,
        observation=replace(observation, keypoints=seen, world=None),
        values={"keypoints_2d": torch.tensor([1.5, 2.5])},
        energy=torch.tensor([1.5, 2.5]),
        status=(Outcome.CONVERGED, Outcome.MAX_STEPS),
        trace=None,
        solver="lm",
        seconds=torch.tensor([0.25, 0.25]),
    )


class FakeFit:
    """Stands in for `fitkit.fit`: remembers how it was called, answers as it is told."""

    def __init__(self, answer: FitResult) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []
        self.by_name: dict[str, FitResult | BaseException] = {}

    def __call__(self, photo: Photo, **options: Any) -> FitResult:
        self.calls.append({"photo": photo, **options})
        options["on_step"](1, "fine")
        answer = self.by_name.get(Path(photo.source).name, self.answer)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def fake(two: FitResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeFit:
    """A fake `fit`, a fake `save`, and three photos in the current folder."""
    fit = FakeFit(two)

    def save(self: FitResult, folder: str | Path) -> Path:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "result.json").write_text(json.dumps(len(self)), encoding="utf-8")
        return Path(folder)

    monkeypatch.setattr(fitkit.api, "fit", fit)
    monkeypatch.setattr(FitResult, "save", save)
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "sub/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", SIZE).save(name)
    return fit


def _saved() -> list[str]:
    return sorted(str(path) for path in Path().rglob("result.json"))


def test_one_photo(fake: FakeFit, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "a.png"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert _saved() == ["fitkit-out/result.json"]
    height = float(fake.answer.body.readout(fake.answer.state)["height_m"][0])
    first, *rows = out.splitlines()
    assert first.startswith("a.png: 2 people, ")
    for text in ("converged", f"{height:.2f} m", f"{float(fake.answer.state.transl[0, 2]):.2f} m", "1.5"):
        assert text in rows[1]
    assert "5.0 px" in rows[1]
    assert "5.0 px" in rows[2]
    assert "max steps" in rows[2]
    assert "fitkit-out" in rows[-1]
    (call,) = fake.calls
    wanted = {
        "body": None,
        "people": "all",
        "boxes": None,
        "keypoints": None,
        "camera": None,
        "device": "cpu",
    }
    assert {name: call[name] for name in wanted} == wanted
    assert call["solver"].name == "lm"


def test_options_reach_fit(fake: FakeFit) -> None:
    line = "fit --people 1 --box 1 2 30 40.5 -5 6 70 8 a.png --box 9 9 9 9 --focal 120 --solver lbfgs --out x"
    assert main(line.split()) == 0
    (call,) = fake.calls
    assert isinstance(call["solver"], LBFGS)
    assert call["people"] == 1
    assert call["boxes"].tolist() == [[1, 2, 30, 40.5], [-5, 6, 70, 8], [9, 9, 9, 9]]
    assert call["camera"].focal.tolist() == [[120, 120]]
    assert call["camera"].center.tolist() == [[50, 40]]
    assert _saved() == ["x/result.json"]
    np.save("seen.npy", np.ones((2, 17, 2)))
    line = "fit a.png --keypoints seen.npy --keypoint-set coco17 --intrinsics 120 130 51 41 --people largest"
    assert main(line.split()) == 0
    call = fake.calls[1]
    assert call["people"] == "largest"
    assert call["keypoints"].set.name == "coco17"
    assert call["keypoints"].xy.shape == (2, 17, 2)
    assert call["camera"].focal.tolist() == [[120, 130]]
    assert call["camera"].center.tolist() == [[51, 41]]


def test_several_photos_share_a_coco_file(fake: FakeFit, capsys: pytest.CaptureFixture[str]) -> None:
    people = [{"image_id": i, "keypoints": [10 * i, 5, 2] * 17} for i in (1, 2)]
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    Path("coco.json").write_text(json.dumps({"images": images, "annotations": people}), encoding="utf-8")
    assert main(["fit", "a.png", "b.png", "--keypoints", "coco.json"]) == 0
    assert [float(call["keypoints"].xy[0, 0, 0]) for call in fake.calls] == [10, 20]
    assert main(["fit", "b.png", "--keypoints", "coco.json"]) == 0
    assert float(fake.calls[2]["keypoints"].xy[0, 0, 0]) == 20
    np.save("seen.npy", np.ones((17, 2)))
    assert main(["fit", "a.png", "b.png", "--keypoints", "seen.npy"]) == 2
    assert "for several photos" in capsys.readouterr().err


def test_a_broken_photo_does_not_stop_the_others(fake: FakeFit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.jpg").write_bytes(b"\xff\xd8 and then nothing")
    fake.by_name["b.png"] = RuntimeError("out of\nluck")
    assert main(["fit", "a.png", "broken.jpg", "gone.jpg", "b.png", "sub/a.png", "--out", "fits"]) == 1
    out, err = capsys.readouterr()
    assert _saved() == ["fits/a-2/result.json", "fits/a/result.json"]
    lines = err.splitlines()
    assert [line.startswith("fitkit: error: ") for line in lines] == [True] * 3
    for line, text in zip(lines, ("broken.jpg", "gone.jpg", "b.png: RuntimeError: out of luck"), strict=True):
        assert text in line
    assert "5 photos, 2 done, 3 with errors" in out


def test_nobody_and_failed_people(fake: FakeFit, capsys: pytest.CaptureFixture[str]) -> None:
    fake.by_name["a.png"] = fake.answer[[]]
    assert main(["fit", "a.png"]) == 1
    out, err = capsys.readouterr()
    assert "a.png: nobody found" in out
    assert "--box" in err
    assert "--keypoints" in err
    assert _saved() == ["fitkit-out/result.json"]
    fake.by_name["a.png"] = replace(fake.answer, status=(Outcome.CONVERGED, Outcome.NOT_ENOUGH_SEEN))
    assert main(["fit", "a.png"]) == 1
    out, err = capsys.readouterr()
    assert "not enough seen" in out
    assert err == "fitkit: error: a.png: person 1: failed: fewer than 4 keypoints were seen\n"


def test_interrupted(fake: FakeFit, capsys: pytest.CaptureFixture[str]) -> None:
    fake.by_name["b.png"] = KeyboardInterrupt()
    assert main(["fit", "a.png", "b.png", "sub/a.png"]) == 130
    assert "1 of 3 photos done" in capsys.readouterr().err
    assert _saved() == ["fitkit-out/a/result.json"]


def test_traceback_on_request(
    fake: FakeFit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.by_name["a.png"] = RuntimeError("inside")
    assert main(["fit", "a.png"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("FITKIT_TRACEBACK", "1")
    assert main(["fit", "a.png"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert not Path("fitkit-out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no command was given"),
        ("fti a.png", "unknown command 'fti'"),
        ("a.png", "did you mean: fitkit fit a.png"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("fit", "at least one PHOTO"),
        ("fit a.png --solvr lm", "did you mean --solver"),
        ("fit a.png --solver newton", "unknown solver 'newton'"),
        ("fit a.png --focal 12", "12 for a photo of 100 x 80 pixels: expected pixels.*millimetres"),
        ("fit a.png --focal 0", "more than 0"),
        ("fit a.png --focal nan", "finite"),
        ("fit a.png --focal far", "'far'"),
        ("fit a.png --intrinsics 5 5 5 5", "millimetres"),
        ("fit a.png --intrinsics 100 100", "4 arguments"),
        ("fit a.png --focal 100 --intrinsics 100 100 50 40", "both given"),
        ("fit a.png --box 1 2 3", "4 arguments"),
        ("fit a.png --box 1 2 3 4 5", "groups of four"),
        ("fit a.png --box 1 2 0 4", "at least 1 x 1"),
        ("fit a.png --box 200 2 30 40", "outside of a.png"),
        ("fit a.png --people most", "'most', expected all, largest"),
        ("fit a.png --people -1", "'-1', expected all, largest"),
        ("fit a.png --device tpu", "expected cpu, cuda"),
        ("fit a.png --device cuda", "no CUDA device"),
        ("fit a.png --body gone.npz", "no body file gone.npz"),
        ("fit a.png --body a.png", "a.png: "),
        ("fit a.png --out a.png", "a.png is a file"),
        ("fit a.png --out a.png/below", "a.png/below"),
        ("fit a.png --keypoints gone.json", "no such file"),
        ("fit a.png --keypoints a.png", "not valid JSON"),
        ("fit a.png --keypoint-set coco17", "without --keypoints"),
        ("fit a.png --keypoints a.png --keypoint-set nine", "'nine'"),
        ("fit a.png --keypoints a.png --box 1 2 3 4", "both given"),
        ("texture", "no file was given, expected PHOTO TEXTURE"),
        ("texture a.png", "a.png was given, expected PHOTO TEXTURE"),
        ("texture a.png b.png", "texture b.png: atlas is 100 x 80.*four columns and six rows"),
        ("texture a.png gone.png", "texture gone.png cannot be read: No such file"),
        ("texture a.png b.png --opacity 2", "--opacity 2: expected 0 to 1"),
        ("texture a.png b.png --out x.jpg", "ends in .png"),
        ("texture a.png b.png --out gone/x.png", "no folder gone"),
        ("texture a.png b.png --body a.npz", "unrecognized arguments: --body"),
        ("texture a.png --template x.png", "alone"),
        ("texture --template x.png --no-shade", "alone"),
        ("texture --template sub", "ends in .png"),
    ],
)
def test_wrong_use(fake: FakeFit, capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    if line.endswith("--device cuda") and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert fake.calls == []
    assert err.startswith("fitkit: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not Path("fitkit-out").exists()


@pytest.fixture
def dressed(fake: FakeFit) -> FakeFit:
    """A fake `fit` and a texture, red all over; the first person stands large in the middle of the photo."""
    Image.new("RGB", (40, 60), (255, 0, 0)).save("red.png")
    Image.new("RGBA", (40, 60), (255, 0, 0, 0)).save("glass.png")
    camera = Camera.from_size(*SIZE).to(torch.float64)
    state = replace(fake.answer.state, transl=torch.tensor([[0, 0, 2.0], [0, 0, -5.0]], dtype=torch.float64))
    seen = replace(fake.answer.observation, camera=camera.expand(2))
    fake.answer = replace(fake.answer, state=state, observation=seen)
    return fake


def test_texture(dressed: FakeFit, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["texture", "a.png", "red.png"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("a.png: 2 people in red.png, ")
    assert out.endswith(" s; fitkit-texture.png\n")
    with Image.open("fitkit-texture.png") as image:
        assert (image.size, image.mode) == (SIZE, "RGB")
        drawn = np.asarray(image)
    assert drawn[40, 50, 0] > 60
    assert not drawn[..., 1:].any()
    line = "texture --no-shade red.png --out x.png --opacity 0.5 --people 1 --solver lbfgs --focal 120"
    assert main([*line.split()[:1], "a.png", *line.split()[1:]]) == 0
    assert (np.asarray(Image.open("x.png"))[40, 50] == [128, 0, 0]).all()
    call = dressed.calls[1]
    assert (call["people"], call["solver"].name, call["body"], call["jumps"]) == (1, "lbfgs", None, False)
    assert call["camera"].focal.tolist() == [[120, 120]]
    assert main(["texture", "a.png", "glass.png", "--out", "x.png"]) == 0
    assert not np.asarray(Image.open("x.png")).any()


def test_texture_of_nobody_and_of_failed_people(dressed: FakeFit, capsys: pytest.CaptureFixture[str]) -> None:
    dressed.by_name["a.png"] = dressed.answer[[]]
    dressed.by_name["b.png"] = replace(dressed.answer, status=(Outcome.CONVERGED, Outcome.NOT_ENOUGH_SEEN))
    assert main(["texture", "a.png", "red.png"]) == 1
    assert "a.png: nobody found; try --box" in capsys.readouterr().err
    assert main(["texture", "gone.png", "red.png"]) == 1
    assert "gone.png" in capsys.readouterr().err
    assert not Path("fitkit-texture.png").exists()
    assert main(["texture", "b.png", "red.png"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("b.png: 1 person in red.png")
    assert err == "fitkit: error: b.png: person 1: failed: fewer than 4 keypoints were seen\n"
    assert Path("fitkit-texture.png").is_file()


def test_damaged_textures(dressed: FakeFit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("half.png").write_bytes(Path("red.png").read_bytes()[:60])
    Image.fromarray(np.full((60, 40), 30000, np.uint16)).save("deep.png")
    for name, message in (("half.png", "cannot be read"), ("deep.png", "8 bits"), ("sub", "Is a directory")):
        assert main(["texture", "a.png", name]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert name in err
        assert message in err or name == "sub"  # systems say that in words of their own
    assert dressed.calls == []


def test_template(dressed: FakeFit, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["texture", "--template", "suit.png"]) == 0
    assert capsys.readouterr().out.startswith("suit.png: draw on it")
    assert dressed.calls == []
    with Image.open("suit.png") as image:
        assert image.size == (800, 1200)
    assert main(["texture", "a.png", "suit.png"]) == 0


def test_photos_anywhere_and_odd_names(fake: FakeFit, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("-x.png", "[red]ä.png", "B.png", ".png.png"):
        Image.new("RGB", SIZE).save(name)
    line = [
        "fit",
        "b.png",
        "--out",
        "o",
        "B.png",
        "[red]ä.png",
        "--people",
        "all",
        "--",
        "-x.png",
        ".png.png",
    ]
    assert main(line) == 0
    assert [call["photo"].source for call in fake.calls] == ["b.png", *line[4:6], "-x.png", ".png.png"]
    assert sorted(path.name for path in Path("o").iterdir()) == ["-x", ".png", "B-2", "[red]ä", "b"]
    assert "[red]ä.png: 2 people" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["fit"], ["texture"], ["doctor"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: fitkit" in out
    if command == ["fit"]:
        for option in (
            "--box X Y W H",
            "--keypoints FILE",
            "--intrinsics FX FY CX CY",
            "lbfgs, lm",
            "exit status",
        ):
            assert option in out


def test_runs_as_a_module_and_starts_light() -> None:
    script = (
        "import sys, runpy; sys.argv = ['fitkit', 'fit', '--help']\n"
        "try: runpy.run_module('fitkit', run_name='__main__')\n"
        "except SystemExit as leaving: code = leaving.code\n"
        "heavy = {'PIL', 'cv2', 'matplotlib', 'mediapipe', 'rich', 'roma', 'trimesh', 'torch._dynamo'}\n"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert run.stdout.startswith("usage: fitkit fit PHOTO")
    assert run.stdout.splitlines()[-1] == "0 []"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fitkit {fitkit.__version__}\n"


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert report["ok"] == (code == 0)
    assert found["torch"]["detail"] == torch.__version__
    assert found["embedded body"]["state"] == "ok"
    assert "vertices" in found["embedded body"]["detail"]
    assert found["solver lm"]["state"] == "ok"
    for name in ("smplx", "pytorch3d", "nvdiffrast", "theseus", "warp", "potpourri3d"):
        assert found[name]["state"] in ("ok", "warning") or "pip install" in found[name]["remedy"]
    if found["mediapipe"]["state"] == "ok" and found["cv2"]["state"] == "ok":
        assert code == 0


def test_doctor_draws_with_warp(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("warp", reason="warp-lang is not installed: pip install warp-lang")
    seen = fitkit.doctor._warp()
    assert (seen.state, seen.needed) == ("ok", False)
    assert "cpu" in seen.detail

    def torn(*given: object, **also: object) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr("fitkit.render.soft_rasterize", torn)
    assert fitkit.doctor._warp().state == "broken"
    assert "OSError: no compiler" in fitkit.doctor._warp().detail
    monkeypatch.setattr(fitkit.doctor, "find_spec", lambda name: None)
    gone = fitkit.doctor._warp()
    assert (gone.state, gone.remedy) == ("missing", "pip install warp-lang")


def test_doctor_without_the_detector(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise DetectorUnavailable("no MediaPipe")

    installed = {"torch": "2.9", "opencv-python": "5.0", "opencv-contrib-python": "4.11"}
    monkeypatch.setattr("fitkit.observe.mediapipe_graph.pose_graphs", gone)
    monkeypatch.setattr(fitkit.doctor, "_version", installed.get)
    monkeypatch.setattr(fitkit.doctor, "_load", lambda name: (type(sys)(name), ""))
    monkeypatch.setattr(fitkit.doctor, "_OPTIONAL", ())
    cv2 = fitkit.doctor._opencv()
    assert cv2.state == "broken"  # no __version__: what is left when one of two wheels was removed
    assert "--force-reinstall" in cv2.remedy

    def load(name: str) -> tuple[Any, str]:
        module: Any = type(sys)(name)
        module.__version__ = "5.0"
        return module, ""

    monkeypatch.setattr(fitkit.doctor, "_load", load)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "overwrite each other" in out
    assert "pip uninstall -y opencv-python && pip install --force-reinstall" in out
    assert 'pip install "fitkit-body[detect]"' in out
    assert "Can fit the people in a photo: no" in out

"""Every benchmark runs in its short form, says what it measured in JSON, and says what data it wants."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fitkit.datasets import read_folders
from fitkit.render import available_backends

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def _run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "FITKIT_DATA"}
    # The programs are run from a checkout, installed or not.
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def _measure(name: str, file: Path, *arguments: str | Path) -> dict[str, float]:
    """Numbers of a short run by name, after a check of the file's form."""
    run = _run(name, "--quick", "--json", file, *arguments)
    assert run.returncode == 0, run.stderr[-2000:]
    items = json.loads(file.read_text(encoding="utf-8"))
    assert items
    assert all(set(item) == {"name", "value", "unit"} for item in items)
    assert all(isinstance(item["name"], str) and isinstance(item["unit"], str) for item in items)
    numbers = {item["name"]: item["value"] for item in items}
    assert len(numbers) == len(items), "two numbers of one name"
    missing = [name for name, value in numbers.items() if not isinstance(value, int | float)]
    # A handful of photos need not show a person of every kind; everything else is a number.
    assert name in ("detector", "photos", "masks") or missing == []
    return numbers


def test_every_program_is_tested() -> None:
    assert PROGRAMS == [
        *("dense", "detector", "hund", "hund_ablations", "kinematics", "masks", "photos", "priors", "render"),
        "solvers",
    ]


def test_kinematics(tmp_path: Path) -> None:
    numbers = _measure("kinematics", tmp_path / "new" / "kinematics.json")
    assert numbers["cost/fitkit/full meshes in a keypoint fit"] == 0
    assert numbers["cost/fitkit/full meshes after reading the vertices"] == 1
    assert numbers["cost/fitkit/import beyond torch"] > 0
    assert numbers["float64/batch 1/the two Jacobians differ by"] < 1e-9
    assert numbers["float64/batch 1/vmap(jacfwd) / closed form"] > 0


def test_render(tmp_path: Path) -> None:
    numbers = _measure("render", tmp_path / "render.json", "--threads", "2")
    backends = available_backends()
    assert numbers["soft, 32 px, batch 2/torch/forward and backward"] > 0
    for kind in ("soft", "hard"):
        assert numbers[f"{kind}, 32 px, batch 2/{backends[0]}/forward, over {backends[0]}"] == 1
    for name in {"warp", "torch"} & set(backends):
        section = f"difference from float64, 64 px/{name}"
        assert numbers[f"{section}/silhouette, largest"] < 1e-4
        assert numbers[f"{section}/parts, largest"] < 1e-4
        assert numbers[f"{section}/gradient, 1 - cosine"] < 1e-6
        assert numbers[f"{section}/hard: another face"] < 0.5
    assert numbers["threads, soft, 32 px/2 threads/batch 2"] > 0


def test_solvers(shared_data: Path, tmp_path: Path) -> None:
    numbers = _measure(
        "solvers",
        tmp_path / "solvers.json",
        *("--data", shared_data, "--count", "3", "--plot", tmp_path / "race.png"),
        *("--solver", "lm", "lm, jumps", "lbfgs", "SMPLify (SPIN), our mesh"),
    )
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")
    assert numbers["energy/lm/mean above the lowest mean"] < 2
    assert numbers["energy/SMPLify (SPIN), our mesh/mean above lm's"] > 0
    assert numbers["accuracy/lbfgs/alone against in a batch, energy"] < 1e-4
    assert numbers["accuracy/lm, jumps/failures"] == 0
    assert numbers["accuracy/truth/MPJPE"] == 0
    # Noise of one sigma in x and in y is 1.25 sigma away on average.
    assert 0.8 < numbers["accuracy/truth/2D error, noisy points"] < 1.8
    assert 0 < numbers["accuracy/lm/PA-MPJPE"] <= numbers["accuracy/lm/MPJPE"] < 200
    assert numbers["accuracy/lm/energy"] < numbers["accuracy/truth/energy"]
    assert numbers["accuracy/lm/failures"] == 0
    assert numbers["linearize/automatic - closed form/gradient, batch 1"] < 1e-6


def test_priors(shared_data: Path, tmp_path: Path) -> None:
    names = ("gaussian-21", "joint-flow-21")
    numbers = _measure("priors", tmp_path / "priors.json", "--data", shared_data, "--prior", *names)
    assert numbers["likelihood/joint-flow-21/nats - gaussian-21, frames"] < -0.05
    for name in names:
        assert numbers[f"likelihood/{name}/round trip"] < 1e-4
        assert numbers[f"ranking error/{name}/head turned 180"] < 5
        assert numbers[f"denoising/{name}/after"] < numbers[f"denoising/{name}/before"]
        errors = {column: numbers[f"fitting, full/{column}/MPJPE"] for column in (name, "limits only")}
        assert errors[name] < errors["limits only"]


def test_dense(shared_data: Path, tmp_path: Path) -> None:
    names = ("keypoints", "+ outline", "+ parts", "+ IUV")
    numbers = _measure(
        "dense", tmp_path / "dense.json", "--data", shared_data, "--count", "4", "--terms", *names
    )
    for name in names:
        assert 0 < numbers[f"fits/{name}/PA-MPJPE"] < 200
    assert numbers["gain/+ IUV/MPVPE"] < 0
    assert numbers["fits/+ IUV/time over that of keypoints alone"] > 0


def test_hund(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="SciPy is not installed")
    options = ("--data", shared_data, "--count", "4", "--scipy", "1", "--no-photos", "--plot", tmp_path)
    numbers = _measure("hund", tmp_path / "hund.json", *options)
    for picture in ("hund_descent.png", "hund_problems.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert numbers["stages/5/MPJPE"] == pytest.approx(numbers["solvers/hund/MPJPE"])
    assert numbers["stages/5/energy"] < numbers["stages/0/energy"]
    assert numbers["solvers/truth/MPJPE"] == 0
    # A descent that begins at the answer ends no higher; SciPy and ours go down the same hill.
    for name in ("hund+lm", "hund+lbfgs", "hund, unheld + lm"):
        assert numbers[f"solvers/{name}/energy"] <= numbers["solvers/hund/energy"]
    assert numbers["hybrids/HUND(5)+LM/energy"] == pytest.approx(numbers["solvers/hund, unheld + lm/energy"])
    assert numbers["paired/scipy-bfgs, mean pose/problems"] == numbers["subset/lm/problems"] == 1
    apart = numbers["solvers/lm/MPJPE"] - numbers["solvers/hund/MPJPE"]
    assert numbers["paired/lm/MPJPE"] == pytest.approx(apart)
    assert numbers["ratios/lm/over hund, batch 1"] > 0
    assert numbers["robustness/clean/hund, MPJPE"] == pytest.approx(numbers["solvers/hund/MPJPE"])
    assert numbers["robustness/clean/lm, MPJPE above clean"] == 0


def test_hund_ablations(shared_data: Path, tmp_path: Path) -> None:
    # One to learn from, and a clip of each who is held out.
    clips = ("001_14", "016_22", "090_11", "093_charleston1", "104_zombie")
    folder = shared_data / "mocap" / "bvh" / "train"
    motion = tmp_path / "motion.npz"
    read_folders([folder / f"{clip}.bvh" for clip in clips]).motion.save(motion)
    options = ("--data", shared_data, "--motion", motion, "--variant", "plain", "--work", tmp_path)
    numbers = _measure("hund_ablations", tmp_path / "hund_ablations.json", *options)
    assert numbers["stages/plain/5"] == pytest.approx(numbers["ablations/plain/MPJPE"])
    assert numbers["stages/plain/10"] > 0
    assert 0 < numbers["ablations/plain/PA-MPJPE"] <= numbers["ablations/plain/MPJPE"]


@pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="MediaPipe is not installed")
def test_detector(shared_data: Path, tmp_path: Path) -> None:
    numbers = _measure("detector", tmp_path / "detector.json", "--data", shared_data)
    annotated = numbers["people/all/annotated, 5 points or more"]
    assert 1 <= numbers["people/all/matched, OKS > 0.3"] <= annotated
    assert 0 <= numbers["people/all/box touches the photo's border"] <= 1


@pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="MediaPipe is not installed")
def test_masks(shared_data: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    options = ("--count", "2", "--ways", "keypoints", "+ silhouette", "--pictures", pictures)
    numbers = _measure("masks", tmp_path / "masks.json", "--data", shared_data, *options)
    name = "mask IoU with the polygons, main"
    assert numbers[f"masks/+ silhouette/{name}"] > numbers[f"masks/keypoints/{name}"]
    assert len(list(pictures.glob("*.png"))) == 2


@pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="MediaPipe is not installed")
def test_photos(shared_data: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    numbers = _measure(
        "photos", tmp_path / "photos.json", "--data", shared_data, "--count", "2", "--pictures", pictures
    )
    assert numbers["people/main/annotated"] == 2
    assert 0 <= numbers["people/all/recall at OKS > 0.5"] <= 1
    assert numbers["keypoints/body, main/PCK@0.2"] >= numbers["keypoints/body, main/PCK@0.05"]
    assert numbers["time/median/fit, per person"] > 0
    assert len(list(pictures.glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        *((name, "SSS_TT.bvh") for name in ("solvers", "priors", "dense", "hund", "hund_ablations")),
        ("photos", "index.json"),
        ("detector", "index.json"),
    ],
)
def test_missing_data_is_explained(name: str, wanted: str, tmp_path: Path) -> None:
    for arguments in ((), ("--data", tmp_path)):
        run = _run(name, "--quick", *arguments)
        assert run.returncode == 1
        assert wanted in run.stderr
        assert "Traceback" not in run.stderr


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    run = subprocess.run(
        [sys.executable, FOLDER / "_readme.py", "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr

"""HUND on the annotated photos: every solver on what was observed once, scored as `photos.py` does."""

from __future__ import annotations

import json
import math
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from _common import Report, percentile, sync
from photos import LIMBS, THRESHOLDS, Tally, read_people, sanity, score
from photos import _limbs as limbs_of
from photos import _plain_name as plain_name
from torch import Tensor

import fitkit
from fitkit import geometry
from fitkit.api import fit
from fitkit.files import output_folder
from fitkit.metrics import mpjpe, pa_mpjpe
from fitkit.observation import Observation
from fitkit.observe import load_image, observe
from fitkit.registry import get_solver
from fitkit.result import FitResult
from fitkit.show import overlay, person_colors, side_view
from fitkit.solver import Chain, Solver
from fitkit.solvers.hund import HUND

# Degrees: a knee that overstretches, and a head turned further than a neck goes.
BACKWARDS, AWAY = 10.0, 80.0
_HEIGHT = 480  # of a row of the pictures, pixels


def photo_solvers(weights: Path | None) -> dict[str, Solver | Chain]:
    """What is run on photos, by name."""
    hund = HUND(weights)
    return {"hund": hund, "lm": get_solver("lm"), "hund+lm": fitkit.chain(hund, "lm")}


def add_photos(
    report: Report,
    data: Path,
    solvers: dict[str, Solver | Chain],
    device: str,
    count: int | None = None,
    pictures: Path | None = None,
) -> None:
    """The annotated photos, then the frames with joints in space.

    Args:
        report: to add to.
        data: folder with `photos/index.json` and, where there are any, `gt3d/index.json`.
        solvers: by name.
        device: of the fits.
        count: of photos; None for all.
        pictures: folder for one picture per photo; None draws none.
    """
    entries = json.loads((data / "photos" / "index.json").read_text(encoding="utf-8"))
    entries = [entry for entry in entries if entry["annotated"] == "human"][:count]
    folder = output_folder(pictures) if pictures else None
    tallies = {name: Tally() for name in solvers}
    warm = False
    for entry in entries:
        seen = observe(data / "photos" / entry["file"])
        results = {}
        for name, solver in solvers.items():
            if not warm:
                fit(seen, solver=solver, device=device)
            results[name] = _timed_fit(seen, solver, device, tallies[name])
            score(results[name], read_people(entry), tallies[name])
            sanity(results[name], tallies[name])
            _impossible(results[name], tallies[name])
        warm |= len(seen) > 0
        if folder is not None and len(seen):
            draw(results, folder / f"{Path(entry['file']).stem}.png")
    for kind, threshold in product(("main", "all"), THRESHOLDS):
        value = next(iter(tallies.values())).mean(f"detector {kind} {threshold}")
        report.add("photos", "detector", f"PCK@{threshold:g}, {kind}", value, "of the box")
    for name, tally in tallies.items():
        _summarise(report, name, tally)
    if (data / "gt3d" / "index.json").is_file():
        _add_frames(report, data / "gt3d", solvers, device)


def _timed_fit(seen: Observation, solver: Solver | Chain, device: str, tally: Tally) -> FitResult:
    """A fit, in milliseconds of this process on the CPU: the detector's threads have nothing to do by then."""
    clock = time.process_time if torch.device(device).type == "cpu" else time.perf_counter
    began = clock()
    result = fit(seen, solver=solver, device=device)
    sync(device)
    spent = 1e3 * (clock() - began)
    if len(result):
        tally.put("fit", [spent / len(result)] * len(result))
    if len(result) == 1:
        tally.put("fit alone", [spent])
    return result


def _impossible(result: FitResult, tally: Tally) -> None:
    """Knees that bend forwards, and heads that look back."""
    if len(result) == 0:
        return
    pose, names = result.state.body_pose, result.body.joint_set

    def bend(name: str) -> Tensor:
        return torch.rad2deg(geometry.twist(pose[:, names.index(name) - 1]))

    knees = torch.stack([bend(f"{side}_knee")[:, 0] for side in ("left", "right")], 1)
    tally.put("knees", (knees < -BACKWARDS).any(1))
    # Forward of the head as the chest sees it: x is to its left, z to the front.
    forward = (pose[:, names.index("neck") - 1] @ pose[:, names.index("head") - 1])[:, :, 2]
    turned = torch.rad2deg(torch.atan2(forward[:, 0], forward[:, 2])).abs()
    tally.put("head", turned > AWAY)


def _summarise(report: Report, name: str, tally: Tally) -> None:
    add = partial(report.add, "photos", name)
    for kind, threshold in product(("main", "all"), THRESHOLDS):
        add(f"PCK@{threshold:g}, {kind}", tally.mean(f"body {kind} {threshold}"), "of the box")
    add("mask IoU with the polygons, main", tally.mean("iou body"), "")
    add("fit, per person, median", percentile(tally.get("fit"), 0.5), "ms")
    add("fit of one person, median", percentile(tally.get("fit alone"), 0.5), "ms")
    add("lean of the standing, median", percentile(tally.get("lean"), 0.5), "deg")
    add("lean of the standing, 90 %", percentile(tally.get("lean"), 0.9), "deg")
    add("their knees' bend, median", percentile(tally.get("knee"), 0.5), "deg")
    add("height, 10 %", percentile(tally.get("height"), 0.1), "m")
    add("height, 90 %", percentile(tally.get("height"), 0.9), "m")
    everybody = len(tally.get("failed"))
    for what, label in (
        ("failed", "failed"),
        ("knees", "knee bent forwards"),
        ("head", "head turned away"),
        ("odd height", "height not in 0.8 to 2.2 m"),
        ("behind", "partly behind the camera"),
    ):
        add(label, sum(tally.get(what)), f"of {everybody}")


def _add_frames(report: Report, folder: Path, solvers: dict[str, Solver | Chain], device: str) -> None:
    """Frames with joints in space, the focal length guessed: the person whose limbs are seen nearest to the truth's."""
    for entry in json.loads((folder / "index.json").read_text(encoding="utf-8")):
        names = [plain_name(name) for name in entry["joint_names"]]
        rows = [names.index(name) for name in LIMBS]
        truth = torch.tensor(entry["joints_cam"], dtype=torch.float64)[None, rows]
        pixels = torch.tensor(entry["joints_2d"], dtype=torch.float64)[None, rows]
        seen = observe(load_image(folder / entry["file"]))
        if len(seen) == 0:
            report.add("photos, 3D", "nobody found", Path(entry["file"]).stem, math.nan, "")
            continue
        assert seen.keypoints is not None
        points = seen.keypoints.convert("coco17").xy[:, 5:].double().cpu()
        one = seen.select(int((points - pixels).norm(dim=-1).median(1).values.argmin()))
        hips = [LIMBS.index("left_hip"), LIMBS.index("right_hip")]
        for name, solver in solvers.items():
            result = fit(one, solver=solver, device=device)
            mine = limbs_of(result.body, result.state)
            add = partial(report.add, "photos, 3D", name)
            add(f"{Path(entry['file']).stem}, MPJPE", 1e3 * float(mpjpe(mine, truth, hips)), "mm")
            add(f"{Path(entry['file']).stem}, PA-MPJPE", 1e3 * float(pa_mpjpe(mine, truth)), "mm")


def draw(results: dict[str, FitResult], file: Path) -> None:
    """Every solver's bodies over the photo, and from the side and above, one row each."""
    from PIL import Image, ImageDraw

    rows = []
    for name, result in results.items():
        camera, image = result.observation.camera, result.observation.image
        assert image is not None
        bodies, faces, colors = result.vertices().cpu(), result.body.faces.cpu(), person_colors(len(result))
        focal, center = camera.focal[0].cpu(), camera.center[0].cpu()
        over = Image.fromarray(overlay(image, bodies, faces, focal, center, colors=colors, opacity=0.7))
        over = over.resize((round(over.width * _HEIGHT / over.height), _HEIGHT))
        ImageDraw.Draw(over).text((6, 4), name, fill=(255, 255, 255), stroke_width=2, stroke_fill=(0, 0, 0))
        rows.append(
            np.concatenate([np.array(over), side_view(bodies, faces, colors=colors, height=_HEIGHT)], 1)
        )
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    Image.fromarray(np.concatenate(rows)).save(file)

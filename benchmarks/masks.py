"""What the detector's masks add on real photos: silhouettes against human polygons, and whether keypoints suffer.

The people, the detector's keypoints and masks, and how both are scored are those of `photos.py`; only the objective
differs. The mask is what the detector saw, the polygon what a human drew.

    python benchmarks/masks.py --data DIR --json masks.json --pictures out/masks
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from _common import Report, data_folder, options, percentile, sync
from photos import LAYOUT, THRESHOLDS, Tally, read_people, sanity, score

from fitkit.api import default_objective, fit
from fitkit.files import output_folder
from fitkit.objectives import Objective, Outline, Silhouette
from fitkit.observation import Observation
from fitkit.observe import observe
from fitkit.result import FitResult
from fitkit.show import overlay, person_colors

WAYS: dict[str, tuple[Objective, ...]] = {
    "keypoints": (),
    "+ outline": (Outline(),),
    "+ silhouette": (Silhouette(),),
}


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--solver", default="lm", metavar="NAME", help="by name (lm)")
    parser.add_argument("--count", type=int, metavar="N", help="annotated photos (all, quick: 3)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="NAME")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write the overlays, side by side")
    given = parser.parse_args()
    data = data_folder(given.data, LAYOUT)
    entries = json.loads((data / "photos" / "index.json").read_text(encoding="utf-8"))
    entries = [entry for entry in entries if entry["annotated"] == "human"]
    entries = entries[: given.count or (3 if given.quick else len(entries))]
    pictures = output_folder(given.pictures) if given.pictures else None
    tallies = {name: Tally() for name in given.ways}
    for entry in entries:
        seen = observe(data / "photos" / entry["file"])
        results = []
        for name, tally in tallies.items():
            result = timed(seen, WAYS[name], given.solver, given.device, tally)
            score(result, read_people(entry), tally)
            sanity(result, tally)
            results.append(result)
        if pictures is not None and len(seen):
            draw(results, pictures / f"{Path(entry['file']).stem}.png")
    report = Report(f"masks on photos, {given.solver}")
    for name, tally in tallies.items():
        summarise(report, name, tally)
    report.finish(given.json)


def timed(
    seen: Observation, terms: tuple[Objective, ...], solver: str, device: str, tally: Tally
) -> FitResult:
    """A fit with these terms beside the default ones."""
    objective: Objective = default_objective(seen)
    for term in terms:
        objective = objective + term
    began = time.perf_counter()
    result = fit(seen, solver=solver, objective=objective, device=device)
    sync(device)
    if len(result):
        tally.put("fit", [1e3 * (time.perf_counter() - began) / len(result)] * len(result))
    return result


def summarise(report: Report, name: str, tally: Tally) -> None:
    report.add("masks", name, "mask IoU with the polygons, main", tally.mean("iou body"), "")
    report.add("masks", name, "the detector's mask with them", tally.mean("iou detector"), "")
    for kind in ("main", "all"):
        for threshold in THRESHOLDS:
            value = tally.mean(f"body {kind} {threshold}")
            report.add("masks", name, f"PCK@{threshold:g}, {kind}", value, "of the box")
    report.add("masks", name, "lean of the standing, median", percentile(tally.get("lean"), 0.5), "deg")
    report.add("masks", name, "their knees' bend, median", percentile(tally.get("knee"), 0.5), "deg")
    report.add("masks", name, "height, 10 %", percentile(tally.get("height"), 0.1), "m")
    report.add("masks", name, "height, 90 %", percentile(tally.get("height"), 0.9), "m")
    report.add("masks", name, "failed", sum(tally.get("failed")), f"of {len(tally.get('failed'))}")
    report.add("masks", name, "fit, per person, median", percentile(tally.get("fit"), 0.5), "ms")


def draw(results: list[FitResult], file: Path) -> None:
    """The overlays of all ways in one row."""
    from PIL import Image

    panels = []
    for result in results:
        image, camera = result.observation.image, result.observation.camera
        assert image is not None
        panels.append(
            overlay(
                image,
                result.vertices().cpu(),
                result.body.faces.cpu(),
                camera.focal[0].cpu(),
                camera.center[0].cpu(),
                colors=person_colors(len(result)),
                opacity=0.7,
            )
        )
    Image.fromarray(np.concatenate(panels, 1)).save(file)


if __name__ == "__main__":
    main()

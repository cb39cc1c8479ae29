"""Real photos from end to end: who is found, how near the points are, whether the bodies could stand there.

PCK and OKS take COCO's 17 points where a photo's annotation has them by name; people count from 8 annotated keypoints
on. Size is the longer side of the annotated box, OKS takes 0.53 of the box as area. An annotated person's output is the
one of highest OKS of the detector's points, one to one; a point that is missing is wrong. MPJPE in space: 12 limb
joints around the middle of the hips.

    python benchmarks/photos.py --data DIR --json photos.json --pictures out/photos
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Report, data_folder, options, percentile, sync
from torch import Tensor

from fitkit.api import fit
from fitkit.body import BodyModel
from fitkit.camera import Camera
from fitkit.files import output_folder
from fitkit.keypoints import get_set
from fitkit.metrics import BOX_FILL, box_iou, mask_iou, match_people, mpjpe, oks, pa_mpjpe, within
from fitkit.observation import Observation
from fitkit.observe import load_image, observe
from fitkit.render import rasterize
from fitkit.result import FitResult
from fitkit.show import draw_keypoints, overlay, person_colors, side_view
from fitkit.state import State

LAYOUT = {
    "photos/index.json": "list of {file, annotated, keypoint_names, format, main_person, annotations}, with the photos",
    "gt3d/index.json": "list of {file, joint_names, joints_cam in metres, joints_2d, K}, with the photos",
}
COCO = get_set("coco17").names
LIMBS = list(COCO[5:])
COUNTED_FROM_ONE = ("mpii", "jhmdb")
ENOUGH = 8
THRESHOLDS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class People:
    """The annotated people of a photo.

    Attributes:
        xy: `(T, 17, 2)` pixels counted from 0.
        seen: `(T, 17)` which points are annotated.
        box: `(T, 4)` x, y, w, h.
        enough: `(T,)` who has enough annotated keypoints to be counted.
        main: `(T,)` who the photo is of.
        polygons: of each, lists of x, y; empty where there are none.
    """

    xy: Tensor
    seen: Tensor
    box: Tensor
    enough: Tensor
    main: Tensor
    polygons: list[list[list[float]]]


def read_people(entry: dict[str, Any]) -> People:
    """The people of an entry of the index whose annotation is of human hands; points are mapped by their names."""
    names = [_plain_name(name) for name in entry["keypoint_names"]]
    first = 1.0 if entry["format"].lower().startswith(COUNTED_FROM_ONE) else 0.0
    given, count = entry["annotations"], len(entry["annotations"])
    xy, seen = torch.zeros(count, len(COCO), 2), torch.zeros(count, len(COCO), dtype=torch.bool)
    for person, annotation in enumerate(given):
        for name, (x, y, visible) in zip(names, annotation["keypoints"], strict=True):
            if name in COCO and visible > 0:
                xy[person, COCO.index(name)] = torch.tensor([x - first, y - first])
                seen[person, COCO.index(name)] = True
    labelled = torch.tensor([sum(point[2] > 0 for point in annotation["keypoints"]) for annotation in given])
    polygons = [a.get("segmentation") if isinstance(a.get("segmentation"), list) else [] for a in given]
    box = torch.tensor([annotation["bbox_xywh"] for annotation in given], dtype=torch.float32)
    main = torch.arange(count) == entry["main_person"]
    return People(xy.double(), seen, box.double(), labelled >= ENOUGH, main, polygons)


def _plain_name(name: str) -> str:
    """A keypoint's name in our spelling: "Right Elbow" and "r_elbow" are right_elbow; Human3.6M's foot is the ankle."""
    words = name.lower().replace(" ", "_").split("_")
    words[0] = {"r": "right", "l": "left"}.get(words[0], words[0])
    return "_".join(words).replace("_foot", "_ankle")


@dataclass
class Tally:
    """What is gathered over the photos."""

    numbers: dict[str, list[float]] = field(default_factory=dict)

    def put(self, name: str, values: Tensor | Iterable[float]) -> None:
        found = values.double().reshape(-1).tolist() if isinstance(values, Tensor) else list(values)
        self.numbers.setdefault(name, []).extend(found)

    def get(self, name: str) -> list[float]:
        return self.numbers.get(name, [])

    def mean(self, name: str) -> float:
        values = self.get(name)
        return sum(values) / len(values) if values else math.nan


def timed(file: Path, solver: str, device: str, tally: Tally | None) -> FitResult:
    """One photo, detected and fitted; the two are timed apart."""
    began = time.perf_counter()
    observation = observe(file)
    detected = time.perf_counter()
    result = fit(observation, solver=solver, device=device)
    sync(device)
    if tally is not None:
        tally.put("detect", [1e3 * (detected - began)])
        if len(result):
            tally.put("fit", [1e3 * (time.perf_counter() - detected) / len(result)] * len(result))
    return result


# -- against annotations -----------------------------------------------------------------------------------------


def score(result: FitResult, people: People, tally: Tally) -> None:
    """Recall, outputs that are nobody, and PCK of the detector's points and of the body's."""
    assert result.observation.keypoints is not None
    seen = result.observation.keypoints.convert("coco17")
    detected = seen.xy.cpu().double().masked_fill(seen.confidence.cpu()[..., None] <= 0, math.nan)
    fitted = result.keypoints_2d("coco17").cpu().double().masked_fill(~result.ok[:, None, None], math.nan)
    area = people.box[:, 2:].prod(1) * BOX_FILL
    similarity = oks(detected, people.xy, people.seen, area)
    counted = similarity[:, people.enough]
    recalled = match_people(counted, 0.5) >= 0
    for kind, who in _kinds(people):
        tally.put(f"recall {kind}", recalled[who])
    tally.put("outputs", [len(result)])
    tally.put("unmatched", [len(result) - int(recalled.sum())])
    tally.put("ghosts", [int((box_iou(seen.box().cpu().double(), people.box) < 0.3).all(1).sum())])
    partner = match_people(counted, 0.0)
    size, target = people.box[people.enough, 2:].amax(1), people.xy[people.enough]
    for source, points in (("detector", detected), ("body", fitted)):
        filled = torch.cat([points, torch.full((1, len(COCO), 2), math.nan, dtype=points.dtype)])[partner]
        for threshold in THRESHOLDS:
            right = within(filled, target, size, threshold)
            for kind, who in _kinds(people):
                tally.put(f"{source} {kind} {threshold}", right[who][people.seen[people.enough][who]])
    _score_masks(result, people, partner, tally)


def _kinds(people: People) -> list[tuple[str, Tensor]]:
    main = people.main[people.enough]
    return [("main", main), ("others", ~main), ("all", torch.ones_like(main))]


def _score_masks(result: FitResult, people: People, partner: Tensor, tally: Tally) -> None:
    """Main person's silhouette: the detector's mask and the body's against the annotated polygons."""
    from PIL import Image, ImageDraw

    for row, person in zip(partner.tolist(), people.enough.nonzero()[:, 0].tolist(), strict=True):
        if not bool(people.main[person]) or not people.polygons[person]:
            continue
        camera, mask = result.observation.camera, result.observation.mask
        picture = Image.new("L", (camera.width, camera.height))
        for polygon in people.polygons[person]:
            ImageDraw.Draw(picture).polygon(polygon, fill=1)
        truth = torch.from_numpy(np.array(picture, np.float32))[None]
        if row < 0:
            tally.put("iou detector", [0.0])
            tally.put("iou body", [0.0])
            continue
        one = result[row]
        focal, center = one.observation.camera.focal[0], one.observation.camera.center[0]
        drawn = rasterize(one.vertices(), one.body.faces, focal, center, camera.width, camera.height).mask
        tally.put("iou body", mask_iou(drawn[None].float().cpu(), truth))
        if mask is not None:
            whole = torch.nn.functional.interpolate(
                mask[row][None, None].float().cpu(), truth.shape[-2:], mode="bilinear"
            )
            tally.put("iou detector", mask_iou(whole[0], truth))


# -- without annotations -----------------------------------------------------------------------------------------


def sanity(result: FitResult, tally: Tally) -> None:
    """Whether the bodies could stand there, for everybody found."""
    tally.put("failed", ~result.ok)
    bodies = result[result.ok]
    if len(bodies) == 0:
        return
    depth, height = bodies.state.transl[:, 2], bodies.body.readout(bodies.state)["height_m"]
    tally.put("behind", bodies.vertices()[..., 2].amin(1) <= 0)
    tally.put("height", height)
    tally.put("odd height", (height < 0.8) | (height > 2.2))
    tally.put("depth", depth)
    tally.put("odd depth", (depth < 0.3) | (depth > 60))
    upright = _stands(bodies.observation)
    joints, names = bodies.body.joints(bodies.state), bodies.body.joint_set
    axis = torch.nn.functional.normalize(
        joints[:, names.index("neck")] - joints[:, names.index("pelvis")], dim=-1
    )
    tally.put("lean", torch.rad2deg(torch.acos((-axis[:, 1]).clamp(-1, 1)))[upright])
    tally.put("pitch", torch.rad2deg(torch.atan2(-axis[:, 2], -axis[:, 1]))[upright])
    for side in ("left", "right"):
        hip, knee, ankle = (joints[upright, names.index(f"{side}_{name}")] for name in _COLUMN[1:])
        straight = torch.nn.functional.cosine_similarity(knee - hip, ankle - knee, dim=-1)
        tally.put("knee", torch.rad2deg(torch.acos(straight.clamp(-1, 1))))


def _stands(observation: Observation) -> Tensor:
    """Who stands upright as far as the photo tells.

    Torso, thighs and shins are within 20 degrees of vertical, and the legs at least 1.25 times as long as the torso:
    those of somebody on a bicycle, seen from the front, are shorter.
    """
    assert observation.keypoints is not None
    seen = observation.keypoints.convert("coco17")
    corner = {name: seen.xy[:, [COCO.index(f"left_{name}"), COCO.index(f"right_{name}")]] for name in _COLUMN}
    sure = (
        seen.confidence[:, [COCO.index(f"{side}_{name}") for name in _COLUMN for side in ("left", "right")]]
        > 0.5
    )
    torso = corner["hip"].mean(1, keepdim=True) - corner["shoulder"].mean(1, keepdim=True)
    bones = torch.cat([torso, corner["knee"] - corner["hip"], corner["ankle"] - corner["knee"]], 1)
    tilt = torch.rad2deg(torch.atan2(bones[..., 0].abs(), bones[..., 1]))
    legs = (corner["ankle"] - corner["hip"]).norm(dim=-1).amin(1)
    return sure.all(1) & (tilt < 20).all(1) & (legs > 1.25 * torso[:, 0].norm(dim=-1))


_COLUMN = ("shoulder", "hip", "knee", "ankle")


def draw(result: FitResult, file: Path) -> None:
    """The photo with its keypoints, the overlay, and the bodies from the side and above, in one picture."""
    from PIL import Image

    image, seen, camera = result.observation.image, result.observation.keypoints, result.observation.camera
    assert image is not None
    if len(result) == 0:
        Image.fromarray(image).save(file)
        return
    assert seen is not None
    colors = person_colors(len(result))
    vertices, faces = result.vertices().cpu(), result.body.faces.cpu()
    points = draw_keypoints(image, seen.xy.cpu(), seen.confidence.cpu(), seen.set.edges, colors=colors)
    bodies = overlay(image, vertices, faces, camera.focal[0].cpu(), camera.center[0].cpu(), colors=colors)
    panels = [Image.fromarray(panel) for panel in (points, bodies, side_view(vertices, faces, colors=colors))]
    height = 640
    panels = [panel.resize((round(panel.width * height / panel.height), height)) for panel in panels]
    sheet = Image.new("RGB", (sum(panel.width for panel in panels), height))
    for number, panel in enumerate(panels):
        sheet.paste(panel, (sum(p.width for p in panels[:number]), 0))
    sheet.save(file)


# -- in space ----------------------------------------------------------------------------------------------------


def score_3d(folder: Path, entry: dict[str, Any], solver: str, device: str, report: Report) -> None:
    """One frame with joints in space, with the focal length guessed and with the camera known; with and without
    limbs tried the other way in depth, and the detector's directions."""
    names = [_plain_name(name) for name in entry["joint_names"]]
    rows = [names.index(name) for name in LIMBS]
    truth = torch.tensor(entry["joints_cam"], dtype=torch.float64)[None, rows]
    pixels = torch.tensor(entry["joints_2d"], dtype=torch.float64)[None, rows]
    photo = load_image(folder / entry["file"])
    (fx, _, cx), (_, fy, cy), _ = entry["K"]
    known = Camera.from_intrinsics(fx, fy, cx, cy, photo.width, photo.height)
    for label, camera in (("", None), (", known camera", known)):
        seen = observe(photo, camera=camera)
        found = fit(seen, solver=solver, device=device)
        if len(found) == 0:
            report.add("3D", Path(entry["file"]).stem + label, "MPJPE", math.nan, "mm")
            continue
        assert seen.keypoints is not None
        points = seen.keypoints.convert("coco17").xy.cpu()[:, 5:]
        person = int((points - pixels).norm(dim=-1).median(1).values.argmin())
        one = seen.select(person)
        flat = replace(one, world=None)
        ways = {
            "": found[person],
            ", jumps": fit(one, solver=solver, jumps=True, device=device),
            ", without directions": fit(flat, solver=solver, device=device),
            ", without directions, jumps": fit(flat, solver=solver, jumps=True, device=device),
        }
        for way, result in ways.items():
            add = partial(report.add, "3D", Path(entry["file"]).stem + label + way)
            mine, other = (_limbs(result.body, state) for state in (result.state, result.runner_up[0]))
            hips = [LIMBS.index("left_hip"), LIMBS.index("right_hip")]
            add("MPJPE", 1e3 * float(mpjpe(mine, truth, hips)), "mm")
            add("PA-MPJPE", 1e3 * float(pa_mpjpe(mine, truth)), "mm")
            away = (mine[:, hips] - truth[:, hips]).mean(1)[0]
            add("root depth off", float(away[2]), "m")
            add("energy", float(result.energy[0]), "")
            if math.isfinite(float(result.margin)):
                add("next best pose, energy above", float(result.margin), "")
                add("next best pose, PA-MPJPE", 1e3 * float(pa_mpjpe(other, truth)), "mm")


def _limbs(body: BodyModel, state: State) -> torch.Tensor:
    return body.joints(state)[:, [body.joint_set.index(name) for name in LIMBS]].cpu().double()


_LABELS = {
    "lean": "lean of the standing",
    "pitch": "their lean towards the camera",
    "knee": "their knees' bend",
}

# -- the report --------------------------------------------------------------------------------------------------


def summarise(report: Report, tally: Tally) -> None:
    """Tables from what was gathered."""
    for kind in ("main", "others", "all"):
        report.add("people", kind, "annotated", len(tally.get(f"recall {kind}")), "")
        report.add("people", kind, "recall at OKS > 0.5", tally.mean(f"recall {kind}"), "")
    report.add("people", "all", "outputs on annotated photos", sum(tally.get("outputs")), "")
    report.add("people", "all", "outputs matched to none of them", sum(tally.get("unmatched")), "")
    report.add(
        "people", "all", "outputs where nobody is annotated", sum(tally.get("ghosts")), "box IoU < 0.3"
    )
    for kind in ("main", "all"):
        for source in ("detector", "body"):
            for threshold in THRESHOLDS:
                value = tally.mean(f"{source} {kind} {threshold}")
                report.add("keypoints", f"{source}, {kind}", f"PCK@{threshold:g}", value, "of the box")
    for source in ("detector", "body"):
        report.add("keypoints", f"{source}, main", "mask IoU", tally.mean(f"iou {source}"), "")
    everybody = len(tally.get("failed"))
    for name, label in (
        ("failed", "failed"),
        ("behind", "partly behind the camera"),
        ("odd height", "height not in 0.8 to 2.2 m"),
        ("odd depth", "depth not in 0.3 to 60 m"),
    ):
        report.add("world", "number", label, sum(tally.get(name)), f"of {everybody}")
    report.add("world", "number", "standing upright", len(tally.get("lean")), f"of {everybody}")
    for name, unit in (("height", "m"), ("depth", "m"), ("lean", "deg"), ("pitch", "deg"), ("knee", "deg")):
        label = _LABELS.get(name, name)
        for share, column in ((0.1, "10 %"), (0.5, "median"), (0.9, "90 %")):
            report.add("world", column, label, percentile(tally.get(name), share), unit)
    for name, label in (("detect", "detection, per photo"), ("fit", "fit, per person")):
        for share, column in ((0.5, "median"), (1.0, "slowest")):
            report.add("time", column, label, percentile(tally.get(name), share), "ms")


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--solver", default="lm", metavar="NAME", help="by name (lm)")
    parser.add_argument("--count", type=int, metavar="N", help="photos (all, quick: 4)")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="write what was found, one picture per photo"
    )
    given = parser.parse_args()
    data = data_folder(given.data, LAYOUT)
    entries = json.loads((data / "photos" / "index.json").read_text(encoding="utf-8"))
    frames = json.loads((data / "gt3d" / "index.json").read_text(encoding="utf-8"))
    count = given.count or (4 if given.quick else len(entries))
    pictures = output_folder(given.pictures) if given.pictures else None

    report, tally = Report(f"photos, {given.solver}"), Tally()
    timed(
        data / "photos" / entries[0]["file"], given.solver, given.device, None
    )  # loads the detector and the body
    for entry in entries[:count]:
        result = timed(data / "photos" / entry["file"], given.solver, given.device, tally)
        if entry["annotated"] == "human":
            score(result, read_people(entry), tally)
        sanity(result, tally)
        if pictures is not None:
            draw(result, pictures / f"{Path(entry['file']).stem}.png")
    summarise(report, tally)
    for frame in frames[:1] if given.quick else frames:
        score_3d(data / "gt3d", frame, given.solver, given.device, report)
    report.finish(given.json)


if __name__ == "__main__":
    main()

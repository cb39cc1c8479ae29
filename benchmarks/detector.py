"""How a detector's points and directions are wrong on annotated photos, for simulations with errors that are real.

Annotated people of at least 5 COCO points count where an output has an OKS over 0.3 with them. Lengths are in units of
the extent of the detector's points. Sigma is 1.4826 times the median of |x| and |y| around the median; it includes the
annotators' own. Visible, hidden and unlabelled are COCO's and OCHuman's: elsewhere the numbers mean something else.
"Cut" are standing people in photos cut across them, where the annotation knows what the detector cannot see.

    python benchmarks/detector.py --data DIR --json detector.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import roma
import torch
from _common import Report, data_folder, options, percentile
from photos import COCO, LAYOUT, LIMBS, read_people
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from fitkit.keypoints import get_set
from fitkit.metrics import BOX_FILL, match_people, oks
from fitkit.observe import load_image, observe

PLACES = [get_set("mediapipe33").index(name) for name in COCO]
FLIP = get_set("coco17").flip
FEWEST, MATCHED, OUTLIERS = 5, 0.3, (0.1, 0.2)
BINS = {f"from {low:g}": (low, high) for low, high in pairwise((0, 0.2, 0.5, 0.8, 0.95, math.inf))}
GROUPS: dict[str, tuple[str, ...]] = {"face": tuple(COCO[:5])}
JOINTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
GROUPS |= {f"{joint}s": (f"left_{joint}", f"right_{joint}") for joint in JOINTS}
SWAPS = {"all limbs": LIMBS, "arms": LIMBS[:6], "legs": LIMBS[6:], **dict(list(GROUPS.items())[1:])}
CHAINS = ("shoulder-elbow", "elbow-wrist", "hip-knee", "knee-ankle", "shoulder-hip", "hip-shoulder")
# (from, to): bones point upwards, those across to the body's left.
BONES: dict[str, tuple[Sequence[str], Sequence[str]]] = {"torso": (GROUPS["hips"], GROUPS["shoulders"])}
BONES |= {name: (GROUPS[name][1:], GROUPS[name][:1]) for name in ("shoulders", "hips")}
for number, name in ((1, "upper arm"), (2, "forearm"), (4, "thigh"), (5, "shin")):
    start, end = GROUPS[f"{JOINTS[number]}s"], GROUPS[f"{JOINTS[number - 1]}s"]
    BONES |= {f"left {name}": (start[:1], end[:1]), f"right {name}": (start[1:], end[1:])}
# Photos are cut halfway between two heights of the body.
CUTS = {"shins": ("knees", "ankles"), "thighs": ("hips", "knees"), "belly": ("shoulders", "hips")}
FAR = (0.0, 0.1, 0.3, 0.6, math.inf)
LONG = 0.1  # extents, from which on a bone's direction in the photo says something
BORDER = 2.0  # pixels


class Matched(NamedTuple):
    """N people with what was annotated and what was detected of them; points of coco17."""

    target: Tensor  # (N, 17, 2) annotated pixels
    seen: Tensor  # (N, 17) which of them are annotated
    label: Tensor  # (N, 17) 2 visible, 1 hidden, 0 unlabelled, -1 not told
    outside: Tensor  # (N, 17) extents that the annotated point lies outside of the photo
    xy: Tensor  # (N, 17, 2) detected pixels
    error: Tensor  # (N, 17, 2) detected minus annotated, in extents; NaN where nothing is annotated
    confidence: Tensor  # (N, 17) of the detector
    world: Tensor  # (N, 17, 3) detected, metres, camera axes
    extent: Tensor  # (N,) pixels
    touches: Tensor  # (N,) whether the annotated box touches the photo's border
    beyond: Tensor  # (N, 17) whether the point was detected outside of the photo


def join(parts: Sequence[Matched]) -> Matched:
    """All people of several photos."""
    return Matched(*(torch.cat(rows) for rows in zip(*parts, strict=True)))


def read(entry: dict[str, Any], pixels: np.ndarray, who: Tensor) -> Matched:
    """Those of some people of a photo, or of a part of it, whom the detector found."""
    people, observed = read_people(entry), observe(pixels)
    assert observed.keypoints is not None
    assert observed.world is not None
    size = torch.tensor([pixels.shape[1], pixels.shape[0]], dtype=torch.float64)
    past = torch.maximum(-people.xy, people.xy - size).clamp_min(0).norm(dim=-1)
    inside = people.seen & (past == 0)
    who = who[inside[who].sum(1) >= FEWEST]
    points, (low, side) = observed.keypoints.convert("coco17"), people.box[who].split(2, 1)
    area = (torch.minimum(low + side, size) - low).prod(1) * BOX_FILL
    detected = points.xy.double().masked_fill(points.confidence[..., None] <= 0, math.nan)
    partner = match_people(oks(detected, people.xy[who], inside[who], area), MATCHED)
    row, who = partner[partner >= 0], who[partner >= 0]
    target, seen, (low, side) = people.xy[who], people.seen[who], people.box[who].split(2, 1)
    label = torch.full(seen.shape, -1)
    if entry.get("dataset", "").startswith(("COCO", "OCHuman")):
        given = [[round(point[2]) for point in entry["annotations"][int(i)]["keypoints"]] for i in who]
        label = torch.tensor(given, dtype=torch.long).reshape(label.shape)
    xy, extent = detected[row], observed.keypoints.extent.double()[row]
    error = ((xy - target) / extent[:, None, None]).masked_fill(~seen[..., None], math.nan)
    touches = ((low < BORDER) | (low + side > size - BORDER)).any(1)
    world, sure = observed.world.xyz.double()[row][:, PLACES], points.confidence.double()[row]
    far, beyond = past[who] / extent[:, None], ((xy < 0) | (xy > size)).any(-1)
    return Matched(target, seen, label, far, xy, error, sure, world, extent, touches, beyond)


def cut_height(entry: dict[str, Any], cut: str) -> int | None:
    """Row at which the main person is cut; None of people who do not stand, or of whom too little is annotated."""
    people = read_people(entry)
    xy = people.xy.masked_fill(~people.seen[..., None], math.nan)[entry["main_person"], :, 1]
    at = {group: float(xy[rows(names)].nanmean()) for group, names in GROUPS.items()}
    upper, lower = (at[group] for group in CUTS[cut])
    stands = upper < lower and at["shoulders"] < at["hips"] < at["knees"]
    return round((upper + lower) / 2) if stands else None


def rows(names: Sequence[str]) -> list[int]:
    """Positions of points among coco17."""
    return [COCO.index(name) for name in names]


def sigma(errors: Tensor) -> float:
    """Robust spread per coordinate of `(M, D)`; NaN of fewer than 3."""
    errors = errors[errors.isfinite().all(-1)]
    return 1.4826 * float((errors - errors.median(0).values).abs().median()) if len(errors) > 2 else math.nan


def share(values: Tensor) -> float:
    """The mean; NaN of none."""
    return float(values.double().mean()) if values.numel() else math.nan


def add_errors(report: Report, people: Matched) -> None:
    """Size of the errors by confidence, and by what the annotators say of the point."""
    error, sure = people.error, people.confidence
    splits = {name: (low <= sure) & (sure < high) for name, (low, high) in BINS.items()}
    splits |= {"all": sure >= 0, "visible": people.label == 2, "hidden": people.label == 1}
    for group, names in {**GROUPS, "all": COCO}.items():
        for split, chosen in splits.items():
            some = error[:, rows(names)][chosen[:, rows(names)]]
            some = some[some.isfinite().all(-1)]
            report.add("sigma", split, group, sigma(some), "extent")
            for limit in OUTLIERS:
                report.add(f"beyond {limit:g}", split, group, share(some.norm(dim=-1) > limit), "share")
            report.add("points", split, group, len(some), "")


def add_confidences(report: Report, people: Matched, cut: Matched) -> None:
    """How sure the detector is of points that are visible, hidden, unlabelled, or cut off at a distance in extents."""
    for low in (0.2, 0.5):
        counts = (people.confidence < low).sum(1)
        report.add("people", "all", f"points with a confidence < {low:g}, of 17", share(counts), "points")
    labels = {"visible": people.label == 2, "hidden": people.label == 1, "unlabelled": people.label == 0}
    for group, names in GROUPS.items():
        labels[f"visible {group}"] = labels["visible"] & torch.tensor([name in names for name in COCO])
    kinds = {kind: people.confidence[chosen] for kind, chosen in labels.items()}
    for low, high in pairwise(FAR):
        chosen = cut.seen & (cut.outside > low) & (cut.outside <= high)
        kinds[f"cut off, {low:g} to {high:g}"] = cut.confidence[chosen]
    for kind, values in kinds.items():
        for name, (low, high) in BINS.items():
            report.add("confidences", kind, name, share((low <= values) & (values < high)), "share")
        for part in (0.1, 0.5, 0.9):
            report.add("confidences", kind, f"{part:.0%}", percentile(values.tolist(), part), "")
        report.add("confidences", kind, "points", len(values), "")


def add_swaps(report: Report, people: Matched) -> None:
    """For whom exchanging left and right halves the error."""
    for kind, names in SWAPS.items():
        put, here = partial(report.add, "left and right exchanged", kind), rows(names)
        there = [FLIP[i] for i in here]
        given = people.seen[:, here] & people.seen[:, there] & (people.confidence[:, here] > 0)
        away = [(people.xy[:, k] - people.target[:, here]).norm(dim=-1) for k in (here, there)]
        plain, turned = ((one * given).nansum(1)[given.sum(1) >= min(4, len(here))] for one in away)
        put("halves the error", share(turned <= plain / 2), "share")
        put("people", len(plain), "")


def add_structure(report: Report, people: Matched) -> None:
    """What errors of two points have in common, and how those of the second lie to the bone from the first to it."""
    chains = {chain: [GROUPS[f"{end}s"] for end in chain.split("-")] for chain in CHAINS}
    sides = {f"both {group}": [names, names[::-1]] for group, names in list(GROUPS.items())[1:]}
    for name, (here, there) in (chains | sides).items():
        one, two = people.error[:, rows(here)], people.error[:, rows(there)]
        known = (one + two).isfinite().all(-1)
        put = partial(report.add, "together", name)
        near = torch.stack([end[known].flatten().clamp(-OUTLIERS[0], OUTLIERS[0]) for end in (one, two)])
        put("correlation", float(near.corrcoef()[0, 1]), "")
        off = [end[known].norm(dim=-1) > OUTLIERS[0] for end in (one, two)]
        put("second off, first is", share(off[1][off[0]]), "share")
        put("second off, first is not", share(off[1][~off[0]]), "share")
        bone = people.target[:, rows(there)] - people.target[:, rows(here)]
        known &= bone.norm(dim=-1) > LONG * people.extent[:, None]
        across = normalize(torch.stack([bone[..., 1], -bone[..., 0]], -1), dim=-1)
        along = (two * normalize(bone, dim=-1)).sum(-1)[known]
        put("second: median along", percentile(along.tolist(), 0.5), "extent")
        put("sigma along", sigma(along[:, None]), "extent")
        put("sigma across", sigma((two * across).sum(-1)[known][:, None]), "extent")
        put("bones", len(along), "")


def add_cuts(report: Report, cuts: dict[str, list[Matched]]) -> None:
    """People of photos that were cut: points that are still inside, and those that are not."""
    for cut, parts in cuts.items():
        put, some = partial(report.add, "cut", cut), join(parts)
        inside, out = some.seen & (some.outside == 0), some.seen & (some.outside > 0)
        away = some.error.norm(dim=-1)
        put("people", len(parts), "")
        put("found", len(some.extent) / len(parts), "share")
        put("points inside: sigma", sigma(some.error[inside]), "extent")
        put(f"points inside: beyond {OUTLIERS[0]:g}", share(away[inside] > OUTLIERS[0]), "share")
        put("points outside: detected inside", share(~some.beyond[out]), "share")
        put("points outside: error, 50%", percentile(away[out].tolist(), 0.5), "extent")


def vectors(points: Tensor, bone: str) -> Tensor:
    """`(..., D)` of `(..., 17, D)`."""
    start, end = BONES[bone]
    return points[..., rows(end), :].mean(-2) - points[..., rows(start), :].mean(-2)


def degrees(one: Tensor, two: Tensor) -> Tensor:
    """Angles between vectors."""
    return torch.rad2deg(torch.acos(cosine_similarity(one, two, dim=-1).clamp(-1, 1)))


def add_flat_directions(report: Report, people: Matched) -> None:
    """Angles in the image plane, of the points and of the directions in space, where bones are long and sure."""
    for bone, ends in BONES.items():
        put, true = partial(report.add, "angles in the image", bone), vectors(people.target, bone)
        sure = (people.seen & (people.confidence > 0.5))[:, rows([*ends[0], *ends[1]])].all(1)
        long = sure & (true.norm(dim=-1) > LONG * people.extent)
        for name, found in (("points", people.xy), ("in space", people.world[..., :2])):
            angles = degrees(true, vectors(found, bone))[long].tolist()
            put(f"{name}, 50%", percentile(angles, 0.5), "deg")
            put(f"{name}, 90%", percentile(angles, 0.9), "deg")
        ratio = (vectors(people.xy, bone).norm(dim=-1) / true.norm(dim=-1))[long]
        put("length of the points' / true", percentile(ratio.tolist(), 0.5), "")
        put("bones", int(long.sum()), "")


def add_directions(report: Report, folder: Path, entry: dict[str, Any]) -> None:
    """Directions in space against the true ones: as they are, and after the one rotation that fits them best."""
    names = [name.replace("_foot", "_ankle") for name in entry["joint_names"]]
    joints = [entry["joints_cam"][names.index(name)] for name in LIMBS]
    truth = torch.full((len(COCO), 3), math.nan, dtype=torch.float64)
    truth[rows(LIMBS)] = torch.tensor(joints, dtype=torch.float64)
    observed, frame = observe(folder / entry["file"], people="largest"), Path(entry["file"]).stem
    if len(observed) == 0 or observed.world is None:
        return
    both = (truth, observed.world.xyz[0, PLACES].double())
    there, here = (normalize(torch.stack([vectors(p, bone) for bone in BONES]), dim=-1) for p in both)
    turn = roma.special_procrustes(here.T @ there)
    for name, angles in (("", degrees(there, here)), (", turned", degrees(there @ turn.T, here))):
        for bone, angle in zip([*BONES, "mean"], [*angles.tolist(), float(angles.mean())], strict=True):
            report.add("directions in space", bone, frame + name, angle, "deg")
    put = partial(report.add, "turn of the directions, detected - true", frame)
    # Around x, a positive turn brings the upper end nearer to the camera.
    for axis, value in zip("xyz", torch.rad2deg(roma.rotmat_to_rotvec(turn)).tolist(), strict=True):
        put(f"of all, around {axis}", value, "deg")
    lean = [torch.rad2deg(torch.atan2(-v[:, 2], -v[:, 1])) for v in (here, there)]
    for bone, value in zip(BONES, (lean[0] - lean[1]).tolist(), strict=True):
        if bone.endswith(("torso", "thigh", "shin")):
            put(f"{bone}, towards the camera", value, "deg")


def main() -> None:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    given = parser.parse_args()
    data = data_folder(given.data, LAYOUT)
    entries = json.loads((data / "photos" / "index.json").read_text(encoding="utf-8"))
    frames = json.loads((data / "gt3d" / "index.json").read_text(encoding="utf-8"))
    entries = [e for e in entries if e["annotated"] == "human"][: 3 if given.quick else None]
    found: list[Matched] = []
    cuts: dict[str, list[Matched]] = {}
    for entry in entries:
        pixels = load_image(data / "photos" / entry["file"]).pixels
        who = torch.arange(len(entry["annotations"]))
        found.append(read(entry, pixels, who))
        for cut in CUTS:
            if (height := cut_height(entry, cut)) is not None:
                part = read(entry, np.ascontiguousarray(pixels[:height]), who[[entry["main_person"]]])
                cuts.setdefault(cut, []).append(part)
    people, report = join(found), Report("errors of the detector")
    annotated = [int((read_people(entry).seen.sum(1) >= FEWEST).sum()) for entry in entries]
    put = partial(report.add, "people", "all")
    put(f"annotated, {FEWEST} points or more", sum(annotated), "")
    put(f"matched, OKS > {MATCHED:g}", len(people.extent), "")
    put("box touches the photo's border", share(people.touches), "share")
    put("points detected outside, of 17", share(people.beyond.sum(1)), "points")
    add_confidences(report, people, join([people, *(part for parts in cuts.values() for part in parts)]))
    for add in (add_errors, add_swaps, add_structure, add_flat_directions):
        add(report, people)
    add_cuts(report, cuts)
    for frame in frames[:1] if given.quick else frames:
        add_directions(report, data / "gt3d", frame)
    report.finish(given.json)


if __name__ == "__main__":
    main()

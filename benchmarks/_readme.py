"""Write the README's tables of measurements from the committed results: `python benchmarks/_readme.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MEASURED = ("<!-- measured: python benchmarks/_readme.py -->", "<!-- /measured -->")
SOLVERS = ("<!-- solvers: python benchmarks/_readme.py -->", "<!-- /solvers -->")
PRIORS = ("<!-- priors: python benchmarks/_readme.py -->", "<!-- /priors -->")
DENSE = ("<!-- dense: python benchmarks/_readme.py -->", "<!-- /dense -->")
MASKS = ("<!-- masks: python benchmarks/_readme.py -->", "<!-- /masks -->")
RENDER = ("<!-- render: python benchmarks/_readme.py -->", "<!-- /render -->")
FITS = ("<!-- fits: python benchmarks/_readme.py -->", "<!-- /fits -->")
HUND = ("<!-- hund: python benchmarks/_readme.py -->", "<!-- /hund -->")
HUND_STAGES = ("<!-- hund stages: python benchmarks/_readme.py -->", "<!-- /hund stages -->")
HUND_ABLATIONS = ("<!-- hund ablations: python benchmarks/_readme.py -->", "<!-- /hund ablations -->")
HUND_ROBUST = ("<!-- hund robustness: python benchmarks/_readme.py -->", "<!-- /hund robustness -->")
HUND_PHOTOS = ("<!-- hund photos: python benchmarks/_readme.py -->", "<!-- /hund photos -->")
# A run of few solvers by themselves: of the same minutes, which ratios of times are best taken in.
PROGRAMS = {"peers": "solvers"}
# (what, program, names of the results, how they are written)
ROWS = (
    (
        "people found (OKS > 0.5, one to one): main persons / all",
        "photos",
        (
            "people/main/recall at OKS > 0.5",
            "people/main/annotated",
            "people/all/recall at OKS > 0.5",
            "people/all/annotated",
        ),
        "{:.2f} of {:.0f} / {:.2f} of {:.0f}",
    ),
    (
        "PCK@0.1 of the box, main person: detector / fitted body",
        "photos",
        ("keypoints/detector, main/PCK@0.1", "keypoints/body, main/PCK@0.1"),
        "{:.3f} / {:.3f}",
    ),
    (
        "people behind the camera, or of impossible height or depth",
        "photos",
        (
            "world/number/partly behind the camera",
            "world/number/height not in 0.8 to 2.2 m",
            "world/number/depth not in 0.3 to 60 m",
        ),
        "{:.0f}, {:.0f}, {:.0f}",
    ),
    (
        "two photos with 3D ground truth: MPJPE / PA-MPJPE, mm",
        "photos",
        (
            "3D/S8_WalkDog_1.55011271_000026/MPJPE",
            "3D/S8_WalkDog_1.55011271_000026/PA-MPJPE",
            "3D/TS1_002001/MPJPE",
            "3D/TS1_002001/PA-MPJPE",
        ),
        "{:.0f} / {:.0f}, {:.0f} / {:.0f}",
    ),
    (
        "the same without the detector's 3D directions, and then with `jumps=True`: PA-MPJPE, mm",
        "photos",
        (
            "3D/S8_WalkDog_1.55011271_000026, without directions/PA-MPJPE",
            "3D/S8_WalkDog_1.55011271_000026, without directions, jumps/PA-MPJPE",
            "3D/TS1_002001, without directions/PA-MPJPE",
            "3D/TS1_002001, without directions, jumps/PA-MPJPE",
        ),
        "{:.0f}, {:.0f}; {:.0f}, {:.0f}",
    ),
    (
        "with `jumps=True`, S8: PA-MPJPE of the answer, of the next best pose, and how far it is above",
        "photos",
        (
            "3D/S8_WalkDog_1.55011271_000026, jumps/PA-MPJPE",
            "3D/S8_WalkDog_1.55011271_000026, jumps/next best pose, PA-MPJPE",
            "3D/S8_WalkDog_1.55011271_000026, jumps/next best pose, energy above",
        ),
        "{:.0f}, {:.0f}, {:.1f}",
    ),
    (
        "warm, ms, median (slowest): detection of a photo / fit of a person",
        "photos",
        (
            "time/median/detection, per photo",
            "time/slowest/detection, per photo",
            "time/median/fit, per person",
            "time/slowest/fit, per person",
        ),
        "{:.0f} ({:.0f}) / {:.0f} ({:.0f})",
    ),
    (
        "SMPLify as in SPIN over Levenberg-Marquardt, time per person, batch 1 / 64",
        "peers",
        ("ratios/SMPLify (SPIN)/over lm, batch 1", "ratios/SMPLify (SPIN)/over lm, batch 64"),
        "{:.0f}x / {:.0f}x",
    ),
    (
        "SMPLify-X (one person at a time) over Levenberg-Marquardt at batch 1 / 64, time per person",
        "peers",
        (
            "time/SMPLify-X/per person, batch 1",
            "time/lm/per person, batch 1",
            "time/SMPLify-X/per person, batch 1",
            "time/lm/per person, batch 64",
        ),
        "two ratios",
    ),
    (
        "mean energy, Levenberg-Marquardt: % above the lowest mean of any solver / above the best of each problem",
        "solvers",
        ("energy/lm/mean above the lowest mean", "energy/lm/mean above that of the best of each"),
        "{:.2f} / {:.2f}",
    ),
    (
        "mean energy of L-BFGS above that of Levenberg-Marquardt, %",
        "solvers",
        ("energy/lbfgs/mean above lm's",),
        "{:.2f}",
    ),
    (
        "one person alone over one of a batch of 64, time: Levenberg-Marquardt / L-BFGS",
        "peers",
        ("ratios/lm/alone over in a batch of 64", "ratios/lbfgs/alone over in a batch of 64"),
        "{:.1f}x / {:.1f}x",
    ),
    (
        "energy alone against in a batch, largest relative difference: Levenberg-Marquardt / L-BFGS",
        "solvers",
        ("accuracy/lm/alone against in a batch, energy", "accuracy/lbfgs/alone against in a batch, energy"),
        "{:.0e} / {:.0e}",
    ),
    (
        "automatic over analytic Jacobian of the keypoints, time, batch 1 / 64",
        "kinematics",
        ("float64/batch 1/vmap(jacfwd) / closed form", "float64/batch 64/vmap(jacfwd) / closed form"),
        "{:.0f}x / {:.0f}x",
    ),
    (
        "full mesh over keypoints alone, time, batch 1 / 64",
        "kinematics",
        ("float64/batch 1/vertices / keypoints", "float64/batch 64/vertices / keypoints"),
        "{:.0f}x / {:.0f}x",
    ),
    (
        "`import fitkit` beyond torch, seconds",
        "kinematics",
        ("cost/fitkit/import beyond torch",),
        "{:.2f}",
    ),
)


# (heading, section, number, how it is written) of the table of solvers
COLUMNS = (
    ("energy", "accuracy", "energy", "{:.1f}"),
    ("2D, noisy", "accuracy", "2D error, noisy points", "{:.2f}"),
    ("2D, clean", "accuracy", "2D error, clean points", "{:.2f}"),
    ("MPJPE", "accuracy", "MPJPE", "{:.1f}"),
    ("PA", "accuracy", "PA-MPJPE", "{:.1f}"),
    ("angle", "accuracy", "angle, 21 joints", "{:.1f}"),
    ("limbs", "accuracy", "angle, limbs", "{:.1f}"),
    ("steps", "accuracy", "steps", "{:.0f}"),
    ("above lm, %", "energy", "mean above lm's", "{:.1f}"),
    ("time, 1", "ratios", "over lm, batch 1", "{:.3g}x"),
    ("16", "ratios", "over lm, batch 16", "{:.3g}x"),
    ("64", "ratios", "over lm, batch 64", "{:.3g}x"),
)


# As densities and judges of poses ...
OF_PRIORS = (
    ("nats", "likelihood", "nats, frames", "{:.3f}"),
    ("to the Gaussian", "likelihood", "nats - gaussian-21, frames", "{:+.3f}"),
    ("round trip", "likelihood", "round trip", "{:.0e}"),
    ("knee forward", "ranking error", "knee forward 60", "{:.2f}"),
    ("elbow back", "ranking error", "elbow reversed", "{:.2f}"),
    ("head round", "ranking error", "head turned 180", "{:.2f}"),
    ("mixed limbs", "ranking error", "limbs of two people", "{:.0f}"),
    ("below .05", "calibration", "plausibility below 0.05", "{:.1f}"),
    ("denoised", "denoising", "after", "{:.1f}"),
    ("half", "completion", "half of the joints", "{:.1f}"),
    ("arms", "completion", "both arms", "{:.1f}"),
    ("legs", "completion", "both legs", "{:.1f}"),
)
# ... and in fits.
_VIEWS = ("full", "upper", "one side", "noisy")
OF_FITS = (
    ("weight", "weights", "weight", "{:g}"),
    *(
        (f"{view}: {short}", f"fitting, {view}", measure, "{:.1f}")
        for view in _VIEWS
        for short, measure in (("MPJPE", "MPJPE"), ("MPVPE", "MPVPE"), ("PA", "PA-MPJPE"))
    ),
    ("ms", "fitting, full", "per person", "{:.0f}"),
)

OF_DENSE = (
    *((name, "fits", name, "{:.1f}") for name in ("MPJPE", "PA-MPJPE", "MPVPE", "shape error")),
    ("MPVPE, gain", "gain", "MPVPE", "{:+.1f}"),
    ("+-", "gain", "MPVPE, +-", "{:.1f}"),
    ("shape, gain", "gain", "shape error", "{:+.1f}"),
    ("+- ", "gain", "shape error, +-", "{:.1f}"),
    ("time", "fits", "time over that of keypoints alone", "{:.1f}x"),
)
OF_MASKS = (
    ("IoU with the polygons", "masks", "mask IoU with the polygons, main", "{:.3f}"),
    *((f"PCK@{size}, main", "masks", f"PCK@{size}, main", "{:.3f}") for size in ("0.05", "0.1", "0.2")),
    ("PCK@0.1, all", "masks", "PCK@0.1, all", "{:.3f}"),
    ("lean of the standing", "masks", "lean of the standing, median", "{:.1f}"),
    ("fit, ms", "masks", "fit, per person, median", "{:.0f}"),
)
# (heading, section, number, how it is written): the back ends of one size and batch, and what they cost
_SIZES = ((64, 1), (128, 1), (128, 8), (224, 1))
OF_RENDER = (
    *(
        (f"{size} px, batch {batch}", f"soft, {size} px, batch {batch}", number, form)
        for size, batch in _SIZES
        for number, form in (("forward and backward, over warp", "{:.3g}x"),)
    ),
    ("peak MB, 128 px, batch 8", "soft, 128 px, batch 8", "peak memory", "{:.0f}"),
    ("silhouette off by", "difference from float64, 64 px", "silhouette, mean over the body", "{:.0e}"),
)

_ACCURACY = (
    ("MPJPE", "MPJPE", "{:.1f}"),
    ("PA", "PA-MPJPE", "{:.1f}"),
    ("angle", "angle, 21 joints", "{:.1f}"),
    ("limbs", "angle, limbs", "{:.1f}"),
    ("2D, noisy", "2D error, noisy points", "{:.2f}"),
    ("2D, clean", "2D error, clean points", "{:.2f}"),
    ("energy", "energy", "{:.1f}"),
)
OF_HUND = (
    *((head, "solvers", number, form) for head, number, form in _ACCURACY),
    ("MPJPE - hund", "paired", "MPJPE", "{:+.1f}"),
    ("+-", "paired", "MPJPE, +-", "{:.1f}"),
    ("limbs - hund", "paired", "angle, limbs", "{:+.1f}"),
    ("+- ", "paired", "angle, limbs, +-", "{:.1f}"),
    ("time, 1", "ratios", "over hund, batch 1", "{:.3g}x"),
    ("64", "ratios", "over hund, batch 64", "{:.3g}x"),
    ("200", "ratios", "over hund, batch 200", "{:.3g}x"),
    ("problems", "solvers", "problems", "{:.0f}"),
)
OF_STAGES = (
    *((head, "stages", number, form) for head, number, form in _ACCURACY),
    ("energy, median", "stages", "energy, median", "{:.1f}"),
    ("ms, alone", "stages", "alone, from the start", "{:.1f}"),
)
OF_ABLATIONS = (
    ("MPJPE", "ablations", "MPJPE", "{:.1f}"),
    ("+-", "ablations", "+-", "{:.1f}"),
    ("PA", "ablations", "PA-MPJPE", "{:.1f}"),
    ("limbs", "ablations", "angle, limbs", "{:.1f}"),
    ("2D, clean", "ablations", "2D error, clean points", "{:.2f}"),
    *((f"after {stage}", "stages", stage, "{:.1f}") for stage in ("0", "1", "5", "10")),
)
OF_ROBUST = tuple(
    (f"{solver}: {head}", "robustness", f"{solver}, {number}", form)
    for solver in ("hund", "hund+lm", "lm")
    for head, number, form in (
        ("MPJPE", "MPJPE", "{:.1f}"),
        ("above, %", "MPJPE above clean", "{:+.0f}"),
        ("PA", "PA-MPJPE", "{:.1f}"),
    )
)
OF_PHOTOS = (
    *((f"PCK@{size}, main", "photos", f"PCK@{size}, main", "{:.3f}") for size in ("0.05", "0.1", "0.2")),
    ("PCK@0.1, all", "photos", "PCK@0.1, all", "{:.3f}"),
    ("S8: MPJPE", "photos, 3D", "S8_WalkDog_1.55011271_000026, MPJPE", "{:.0f}"),
    ("PA", "photos, 3D", "S8_WalkDog_1.55011271_000026, PA-MPJPE", "{:.0f}"),
    ("TS1: MPJPE", "photos, 3D", "TS1_002001, MPJPE", "{:.0f}"),
    ("PA ", "photos, 3D", "TS1_002001, PA-MPJPE", "{:.0f}"),
    ("lean of the standing", "photos", "lean of the standing, median", "{:.1f}"),
    ("fit, ms", "photos", "fit, per person, median", "{:.1f}"),
    ("of one person", "photos", "fit of one person, median", "{:.1f}"),
)


def matrix(file: Path, lead: str, columns: tuple[tuple[str, str, str, str], ...]) -> str:
    """One row per thing compared, as Markdown: those that the leading section has."""
    rows = json.loads(file.read_text())
    values = {row["name"]: row["value"] for row in rows}
    names = list(dict.fromkeys(name.split("/")[1] for name in values if name.startswith(f"{lead}/")))
    heads = " | ".join(head for head, *_ in columns)
    lines = [f"| | {heads} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = []
        for _, section, number, form in columns:
            value = values.get(f"{section}/{name}/{number}")
            cells.append("" if value is None else form.format(value))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(folder: Path) -> str:
    """The rows as a Markdown table, from `photos.json`, `solvers.json` and `kinematics.json` of one run."""
    results = {
        program: {row["name"]: row["value"] for row in json.loads((folder / f"{program}.json").read_text())}
        for program in {row[1] for row in ROWS}
    }
    lines = ["| what | value | program |", "|---|---|---|"]
    for what, program, names, form in ROWS:
        values = [results[program][name] for name in names]
        if form == "two ratios":
            text = f"{values[0] / values[1]:.0f}x / {values[2] / values[3]:.0f}x"
        else:
            text = form.format(*values)
        lines.append(f"| {what} | {text} | `{PROGRAMS.get(program, program)}.py` |")
    return "\n".join(lines)


def main() -> None:
    readme = HERE.parent / "README.md"
    text, folder = readme.read_text(encoding="utf-8"), HERE / "results" / "cpu"
    tables = (
        (MEASURED, table(folder)),
        (SOLVERS, matrix(folder / "solvers.json", "accuracy", COLUMNS)),
        (PRIORS, matrix(folder / "priors.json", "likelihood", OF_PRIORS)),
        (DENSE, matrix(folder / "dense.json", "fits", OF_DENSE)),
        (MASKS, matrix(folder / "masks.json", "masks", OF_MASKS)),
        (RENDER, matrix(folder / "render.json", "soft, 128 px, batch 1", OF_RENDER)),
        (FITS, matrix(folder / "priors.json", "fitting, full", OF_FITS)),
        (HUND, matrix(folder / "hund.json", "solvers", OF_HUND)),
        (HUND_STAGES, matrix(folder / "hund.json", "stages", OF_STAGES)),
        (HUND_ABLATIONS, matrix(folder / "hund_ablations.json", "ablations", OF_ABLATIONS)),
        (HUND_ROBUST, matrix(folder / "hund.json", "robustness", OF_ROBUST)),
        (HUND_PHOTOS, matrix(folder / "hund.json", "photos", OF_PHOTOS)),
    )
    for (begin, end), made in tables:
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{made}\n{end}{after}"
    if sys.argv[1:] == ["--check"]:
        sys.exit(
            None if text == readme.read_text(encoding="utf-8") else "the README's tables are of other results"
        )
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

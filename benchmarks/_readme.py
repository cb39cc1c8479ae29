"""Write the README's table of measurements from the committed results: `python benchmarks/_readme.py`."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- measured: python benchmarks/_readme.py -->", "<!-- /measured -->"
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
        "synthetic problems, Levenberg-Marquardt: MPJPE / PA-MPJPE, mm, joint angle, degrees",
        "solvers",
        ("accuracy/lm/MPJPE", "accuracy/lm/PA-MPJPE", "accuracy/lm/angle, 21 joints"),
        "{:.0f} / {:.0f}, {:.1f}",
    ),
    (
        "the same, L-BFGS",
        "solvers",
        ("accuracy/lbfgs/MPJPE", "accuracy/lbfgs/PA-MPJPE", "accuracy/lbfgs/angle, 21 joints"),
        "{:.0f} / {:.0f}, {:.1f}",
    ),
    (
        "time of L-BFGS over that of Levenberg-Marquardt, batch 1 / 64",
        "solvers",
        ("ratios/batch 1/lbfgs / lm", "ratios/batch 64/lbfgs / lm"),
        "{:.0f}x / {:.0f}x",
    ),
    (
        "time of one person alone over one in a batch of 64, Levenberg-Marquardt",
        "solvers",
        ("time/lm/per person, batch 1", "time/lm/per person, batch 64"),
        "ratio",
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


def table(folder: Path) -> str:
    """The rows as a Markdown table, from `photos.json`, `solvers.json` and `kinematics.json` of one run."""
    results = {
        program: {row["name"]: row["value"] for row in json.loads((folder / f"{program}.json").read_text())}
        for program in {row[1] for row in ROWS}
    }
    lines = ["| what | value | program |", "|---|---|---|"]
    for what, program, names, form in ROWS:
        values = [results[program][name] for name in names]
        text = f"{values[0] / values[1]:.1f}x" if form == "ratio" else form.format(*values)
        lines.append(f"| {what} | {text} | `{program}.py` |")
    return "\n".join(lines)


def main() -> None:
    readme = HERE.parent / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n{table(HERE / 'results' / 'cpu')}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

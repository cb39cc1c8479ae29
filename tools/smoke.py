"""Use an installed fitkit as a stranger would: nothing of the checkout, no extras."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.metadata import entry_points
from pathlib import Path

# Rebuilding the embedded body needs the extra `build`.
NEEDS_EXTRA = ("fitkit.body.build",)


def check_everything_imports() -> int:
    """Import every module of the installed package; returns how many there were."""
    fitkit = importlib.import_module("fitkit")
    assert fitkit.__file__ is not None
    home = Path(fitkit.__file__).resolve()
    if Path(sys.prefix).resolve() not in home.parents:
        raise SystemExit(f"fitkit came from {home}, not from the environment {sys.prefix}")
    names = [m.name for m in pkgutil.walk_packages(fitkit.__path__, "fitkit.", onerror=_ignore_extra)]
    wanted = [name for name in names if not name.startswith(NEEDS_EXTRA)]
    for name in wanted:
        importlib.import_module(name)
    for name in ("fitkit.priors", "fitkit.solvers"):
        if name not in wanted:
            raise SystemExit(f"the wheel lacks {name}")
    return len(wanted)


def _ignore_extra(name: str) -> None:
    """walk_packages() imports packages to look inside; one that needs an extra may fail there."""
    if not name.startswith(NEEDS_EXTRA):
        raise SystemExit(f"the package {name} cannot be imported: {sys.exc_info()[1]}")


def check_entry_points() -> list[str]:
    """Load every solver and prior that the wheel announces; returns their names."""
    points = [*entry_points(group="fitkit.solvers"), *entry_points(group="fitkit.priors")]
    for point in points:
        point.load()
    return [f"{point.group}:{point.name}" for point in points]


def check_a_fit() -> str:
    """Fit two bodies to keypoints with nothing but the plain install, and save everything."""
    import torch

    import fitkit

    torch.set_num_threads(1)
    body = fitkit.open_body()
    camera = fitkit.Camera.from_size(640, 480).expand(2)
    standing = body.keypoints(body.neutral(2), "coco17") * torch.tensor([1.0, -1.0, -1.0])
    pixels = camera.project(standing + torch.tensor([[[-0.5, 0.1, 4.0]], [[0.7, 0.0, 6.0]]]))
    seen = fitkit.Keypoints(fitkit.get_set("coco17"), pixels, torch.ones(2, 17))
    result = fitkit.fit(fitkit.Observation(camera, seen)).raise_if_failed()
    off = float((result.keypoints_2d("coco17") - pixels).norm(dim=-1).mean())
    if len(result) != 2 or off > 5:
        raise SystemExit(f"{result} misses its keypoints by {off:.1f} pixels")
    folder = result.save("fit")
    files = sorted(path.name for path in folder.iterdir())
    return f"two people within {off:.1f} pixels, files: {' '.join(files)}"


def main() -> None:
    print(f"{check_everything_imports()} modules import")
    print("entry points:", ", ".join(check_entry_points()))
    print("fit:", check_a_fit())


if __name__ == "__main__":
    main()

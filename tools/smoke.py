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


def main() -> None:
    print(f"{check_everything_imports()} modules import")
    print("entry points:", ", ".join(check_entry_points()))


if __name__ == "__main__":
    main()

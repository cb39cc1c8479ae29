"""What the wheel will hold: every package, every data file, and only our import names."""

from __future__ import annotations

import subprocess
import sys
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def _folder(package: str) -> Path:
    """Where a package's files lie, the mapping of priors/ and solvers/ applied."""
    for prefix, place in SETUPTOOLS["package-dir"].items():
        if package == prefix or package.startswith(prefix + "."):
            return ROOT / place / package[len(prefix) + 1 :].replace(".", "/")
    return ROOT / package.replace(".", "/")


def _files(folder: Path) -> list[Path]:
    """Files directly in a folder that count: no byte code, nothing hidden, nothing behind a link."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    ]


def _packages_in_tree() -> set[str]:
    """Import names of all folders that hold files, found without reading pyproject.toml's list."""
    found: set[str] = set()
    for top, name in (("fitkit", "fitkit"), ("priors", "fitkit.priors"), ("solvers", "fitkit.solvers")):
        stack = [(ROOT / top, name)]
        while stack:
            folder, package = stack.pop()
            if _files(folder):
                found.add(package)
            stack += [
                (child, f"{package}.{child.name}")
                for child in folder.iterdir()
                if child.is_dir() and not child.is_symlink() and child.name.isidentifier()
                if child.name != "__pycache__"
            ]
    return found


def test_the_package_list_is_the_tree() -> None:
    listed = SETUPTOOLS["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == _packages_in_tree()


def test_every_network_has_a_card() -> None:
    weights = sorted(
        path for top in ("fitkit", "priors", "solvers") for path in (ROOT / top).rglob("*.safetensors")
    )
    assert weights
    for path in weights:
        card = path.with_suffix(".md").read_text(encoding="utf-8")
        assert path.name in card.splitlines()[0]
        for part in ("Data licence", "Recipe", "Seed, hardware, time", "## Measured", "## Limits"):
            assert part in card, f"{path.stem}.md says nothing of: {part}"


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_file_is_packaged(package: str) -> None:
    patterns = ["*.py", *SETUPTOOLS["package-data"]["*"]]
    left_out = [
        path.name for path in _files(_folder(package)) if not any(fnmatch(path.name, p) for p in patterns)
    ]
    assert left_out == []


@pytest.mark.parametrize("name", ["priors", "solvers"])
def test_top_level_folders_keep_our_import_names(name: str) -> None:
    link = ROOT / "fitkit" / name
    assert link.is_symlink()
    assert link.readlink().as_posix() == f"../{name}"
    run = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert f"import it as fitkit.{name}" in run.stderr


def _entry_points() -> list[str]:
    project = PROJECT["project"]
    groups = [project["scripts"], *project.get("entry-points", {}).values()]
    return [target for group in groups for target in group.values()]


@pytest.mark.parametrize("target", _entry_points())
def test_entry_points_exist(target: str) -> None:
    module, _, attribute = target.partition(":")
    assert callable(getattr(import_module(module), attribute))

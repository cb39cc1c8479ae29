"""Imports point one way, and `import fitkit` stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the bottom up: a module imports from its own layer or a lower one. A new module takes its place here.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {"geometry", "files", "_select", "_version", "keypoints", "camera", "maps", "state", "coordinates"}
    ),
    frozenset({"body", "observation"}),
    frozenset({"render", "initialise", "datasets"}),
    frozenset({"prediction"}),
    frozenset({"objectives"}),
    frozenset({"problem"}),
    frozenset({"alternatives", "trace", "jumps", "solver"}),
    frozenset({"solve"}),
    frozenset({"registry", "result"}),
    frozenset({"priors", "solvers"}),
    frozenset({"observe", "metrics", "simulate", "show"}),
    frozenset({"api"}),
    frozenset({"train"}),
    frozenset({"doctor", "_arguments", "_summary"}),
    frozenset({"cli", "doctor", "_arguments", "_summary", "__main__"}),
)
LEVEL = {room: level for level, layer in enumerate(LAYERS) for room in layer}
# The core reaches these by name only, never by an import statement.
PLUG_INS = frozenset({"priors", "solvers"})
MAY_IMPORT_PLUG_INS = frozenset({"api", "cli", "__main__", "train"})
# A result can save and show itself; that import waits inside the method.
LAZILY_FROM_BELOW = frozenset({"show"})
# Slow to import and not needed until something is drawn, read or detected.
HEAVY = ("PIL", "anny", "cv2", "matplotlib", "mediapipe", "rich", "skimage", "smplx", "trimesh", "tyro")


def _modules() -> list[tuple[str, Path]]:
    """Dotted names below fitkit with their files; priors and solvers are read where they really lie."""
    found = []
    for top, prefix in (("fitkit", ()), ("priors", ("priors",)), ("solvers", ("solvers",))):
        for path in sorted((ROOT / top).rglob("*.py")):
            inside = path.relative_to(ROOT / top).with_suffix("").parts
            if inside[0] in PLUG_INS and top == "fitkit":
                continue
            parts = (*prefix, *inside)
            found.append((".".join(part for part in parts if part != "__init__"), path))
    return found


class _Imports(ast.NodeVisitor):
    """Collects (room of fitkit, line, inside a function?) of every import that runs."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int, bool]] = []
        self.depth = 0

    def visit_If(self, node: ast.If) -> None:
        test = node.test
        name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""
        for child in node.orelse if name == "TYPE_CHECKING" else [*node.body, *node.orelse]:
            self.visit(child)

    def _function(self, node: ast.AST) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._function(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level:
            raise AssertionError(f"relative import in line {node.lineno}: imports are absolute here")
        if node.module == "fitkit":
            for alias in node.names:
                self._add(f"fitkit.{alias.name}", node.lineno)
        else:
            self._add(node.module or "", node.lineno)

    def _add(self, name: str, line: int) -> None:
        parts = name.split(".")
        if parts[0] in PLUG_INS:
            raise AssertionError(f"line {line} imports {name}: it is called fitkit.{name}")
        if parts[0] == "fitkit":
            self.found.append((parts[1] if len(parts) > 1 else "", line, self.depth > 0))


def _imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    visitor = _Imports()
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    yield from visitor.found


@pytest.mark.parametrize(("name", "path"), [pytest.param(n, p, id=n or "fitkit") for n, p in _modules()])
def test_imports_point_one_way(name: str, path: Path) -> None:
    room = name.split(".")[0]
    wrong = []
    for target, line, lazy in _imports(path):
        if target in PLUG_INS and target != room and room not in MAY_IMPORT_PLUG_INS:
            wrong.append(f"line {line}: {name or 'fitkit'} imports fitkit.{target}, which is reached by name")
        elif room == "":
            continue  # fitkit/__init__.py gathers the public names from every layer
        elif target not in LEVEL:
            wrong.append(f"line {line}: fitkit.{target} has no place in LAYERS")
        elif LEVEL[target] > LEVEL[room] and not (lazy and target in LAZILY_FROM_BELOW):
            wrong.append(f"line {line}: {name} imports fitkit.{target}, which is above it")
    assert wrong == []


def test_every_module_has_a_layer() -> None:
    rooms = {name.split(".")[0] for name, _ in _modules()} - {""}
    assert rooms - LEVEL.keys() == set()


def test_importing_fitkit_loads_nothing_heavy() -> None:
    script = (
        "import json, sys, torch; had = set(sys.modules); import fitkit; "
        "print(json.dumps(sorted(set(sys.modules) - had)))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = json.loads(run.stdout)
    assert "fitkit" in loaded
    heavy = [m for m in loaded if m.split(".")[0] in HEAVY or m in ("fitkit.priors", "fitkit.solvers")]
    assert heavy == []

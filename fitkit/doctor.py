"""What is installed, what works, and what to do about what does not: `fitkit doctor`."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from rich.console import Console

State = Literal["ok", "warning", "missing", "broken"]

_STYLE: dict[State, str] = {"ok": "green", "warning": "yellow", "missing": "dim", "broken": "red"}
_OPENCV = (
    "opencv-python",
    "opencv-contrib-python",
    "opencv-python-headless",
    "opencv-contrib-python-headless",
)
_REPAIR_OPENCV = "pip install --force-reinstall --no-deps opencv-contrib-python"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of a package, or of what was tried.
        state: "ok", "warning" (works, but), "missing" or "broken".
        detail: version, or what was seen.
        remedy: the command that helps; empty where nothing needs to be done.
        note: what to know about it.
        needed: whether fitting people in photos cannot do without it.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""
    note: str = ""
    needed: bool = False


@dataclass(frozen=True)
class _Optional:
    """A package that nothing needs: its module, its distributions, what it is good for, and how it comes."""

    module: str
    distribution: str
    purpose: str
    remedy: str
    note: str = ""
    cuda: bool = False


_OPTIONAL = (
    _Optional(
        "smplx",
        "smplx",
        "reference implementation of SMPL bodies, non-commercial licence",
        'pip install "fitkit-body[smplx]"',
        "files of SMPL bodies are read without it",
    ),
    _Optional(
        "pytorch3d.renderer.mesh.rasterize_meshes",
        "pytorch3d",
        "rasteriser back end",
        'pip install --no-build-isolation "git+https://github.com/facebookresearch/pytorch3d.git"',
        "there is no wheel: built from source with a C++ compiler in some 20 minutes, and again when torch changes",
    ),
    _Optional(
        "nvdiffrast.torch",
        "nvdiffrast",
        "rasteriser back end, CUDA only, non-commercial licence",
        'pip install --no-build-isolation "git+https://github.com/NVlabs/nvdiffrast.git"',
        "needs a CUDA build of torch, and nvcc",
        cuda=True,
    ),
    _Optional("scipy", "scipy", "reference solvers scipy-*", 'pip install "fitkit-body[scipy]"'),
    _Optional(
        "theseus",
        "theseus-ai",
        "the reference solver theseus-lm",
        "pip install --no-build-isolation --no-deps theseus-ai==0.2.3 torchlie==0.1.0 torchkin==0.1.1 "
        "urdf-parser-py==0.0.4 && pip install scipy pyyaml",
        "a plain installation fails in scikit-sparse, which is not needed",
    ),
    _Optional(
        "potpourri3d",
        "potpourri3d",
        "distances along the surface of the body",
        'pip install "fitkit-body[densepose]"',
    ),
)


def examine() -> list[Finding]:
    """Look at everything; takes some seconds, because what is installed is really loaded."""
    findings = [*_core(), _body(), _detector(), _opencv(), _device(), _threads(), _warp(), *_solvers()]
    return [*findings, *(_optional(package) for package in _OPTIONAL)]


def healthy(findings: list[Finding]) -> bool:
    """Whether people in photos can be fitted: nothing needed is missing or broken."""
    return all(finding.state in ("ok", "warning") for finding in findings if finding.needed)


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The findings for programs."""
    return {
        "fitkit": _version("fitkit-body") or "not installed",
        "ok": healthy(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def print_table(findings: list[Finding], console: Console) -> None:
    """The findings for people: a table, then the remedies, each on a line that can be copied."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "state", "what was seen"):
        table.add_column(heading)
    for finding in findings:
        table.add_row(
            Text(finding.name), Text(finding.state, style=_STYLE[finding.state]), Text(finding.detail)
        )
    console.print(table)
    remedies = [finding for finding in findings if finding.remedy or finding.note]
    if remedies:
        console.print("\nWhat could be done:", style="bold")
    for finding in sorted(remedies, key=lambda finding: not finding.needed):
        about = "; ".join(text for text in ("needed" if finding.needed else "", finding.note) if text)
        for line in (f"  {finding.name}{f' ({about})' if about else ''}", f"    {finding.remedy}"):
            if line.strip():
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    able = "yes" if healthy(findings) else "no"
    console.print(f"\nCan fit the people in a photo: {able}", style="bold")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _core() -> list[Finding]:
    findings = [Finding("python", "ok", f"{platform.python_version()}, {platform.platform()}", needed=True)]
    for name in ("torch", "numpy", "pillow", "trimesh", "matplotlib"):
        found = _version(name)
        if found is None:
            findings.append(Finding(name, "missing", "not installed", f"pip install {name}", needed=True))
        else:
            findings.append(Finding(name, "ok", found, needed=True))
    return findings


def _body() -> Finding:
    from fitkit.body import open_body

    try:
        body = open_body()
        detail = f"{body.name}: {len(body.data.v_template)} vertices, {len(body.data.faces)} triangles"
    except Exception as error:  # a damaged file can raise almost anything
        remedy = "pip install --force-reinstall --no-deps fitkit-body"
        return Finding("embedded body", "broken", _said(error), remedy, needed=True)
    return Finding("embedded body", "ok", detail, needed=True)


def _detector() -> Finding:
    from fitkit.observe import DetectorUnavailable
    from fitkit.observe.mediapipe_graph import pose_graphs

    remedy, note = 'pip install "fitkit-body[detect]"', ""
    if sys.version_info >= (3, 13):
        note = "mediapipe 0.10.14 has wheels for Python 3.10, 3.11 and 3.12 only"
    found = _version("mediapipe")
    try:
        pose_graphs()
    except DetectorUnavailable as error:
        state: State = "missing" if found is None else "broken"
        detail = "not installed" if found is None else f"{found}: {_said(error.__cause__ or error)}"
        return Finding("mediapipe", state, f"{detail}; nobody is found in photos", remedy, note, needed=True)
    except Exception as error:  # of its C++ side: a network that is not in the wheel, a graph that is refused
        return Finding("mediapipe", "broken", f"{found}: {_said(error)}", remedy, note, needed=True)
    if found != "0.10.14":
        detail = f"{found} works, but 0.10.14 is what was tested"
        return Finding("mediapipe", "warning", detail, remedy, note, needed=True)
    return Finding("mediapipe", "ok", f"{found}, its pose networks load", needed=True)


def _opencv() -> Finding:
    """Its wheels share one folder, which pip does not know: two of them overwrite each other."""
    wheels = {name: found for name in _OPENCV if (found := _version(name)) is not None}
    if not wheels and find_spec("cv2") is None:
        return Finding("cv2", "missing", "not installed (comes with mediapipe)", needed=True)
    module, problem = _load("cv2")
    release = getattr(module, "__version__", None)
    listed = ", ".join(f"{name} {found}" for name, found in wheels.items()) or "of no known wheel"
    if release is None:
        return Finding("cv2", "broken", f"{listed}: {problem or 'damaged'}", _REPAIR_OPENCV, needed=True)
    if len(wheels) > 1:
        others = " ".join(name for name in wheels if name != "opencv-contrib-python")
        return Finding(
            "cv2",
            "warning",
            f"{release}; {listed} overwrite each other in one folder",
            f"pip uninstall -y {others} && {_REPAIR_OPENCV}",
            needed=True,
        )
    return Finding("cv2", "ok", f"{release} ({listed})", needed=True)


def _device() -> Finding:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return Finding("device", "ok", f"CUDA {torch.version.cuda}: {', '.join(names)}")
    if torch.version.cuda is None:
        note = "--device cuda needs a CUDA build of torch: pytorch.org/get-started"
        return Finding("device", "ok", f"CPU; torch {torch.__version__} is built without CUDA", note=note)
    why = f": {_said(caught[0].message)}" if caught else ""
    return Finding(
        "device", "ok", f"CPU; torch is built for CUDA {torch.version.cuda}, no device is usable{why}"
    )


def _threads() -> Finding:
    asked = os.environ.get("OMP_NUM_THREADS")
    detail = (
        f"torch uses {torch.get_num_threads()} of {os.cpu_count()} logical CPUs, "
        f"OMP_NUM_THREADS is {asked or 'not set'}"
    )
    if torch.get_num_threads() == 1:
        return Finding("threads", "ok", detail)
    return Finding(
        "threads", "ok", detail, "export OMP_NUM_THREADS=1", "a few people are often faster on one"
    )


def _warp() -> Finding:
    """Draws one triangle, so that its kernels are compiled; without it plain torch draws."""
    remedy, note = (
        "pip install warp-lang",
        "without it bodies are drawn in plain torch: slower, in more memory",
    )
    if find_spec("warp") is None:
        return Finding("warp", "missing", "not installed", remedy, note)
    from fitkit.camera import Camera
    from fitkit.render import soft_rasterize

    module: Any
    module, problem = _load("warp")
    found, triangle = _version("warp-lang") or "of unknown version", torch.eye(3)[None] + 1
    try:
        with _quiet():
            devices = [str(device) for device in module.get_devices()]
            cuda = [f"{device} ({device.name})" for device in module.get_cuda_devices()]
            soft_rasterize(triangle, torch.tensor([[0, 1, 2]]), Camera.from_size(8, 8), backend="warp")
    except Exception as error:  # a compiler and a driver can fail in every way
        return Finding("warp", "broken", f"{found}: {problem or _said(error)}", remedy, note)
    seen = f"{found} draws on {', '.join(cuda + [name for name in devices if not name.startswith('cuda')])}"
    if torch.cuda.is_available() and not cuda:
        return Finding("warp", "warning", f"{seen}, but sees no CUDA device", "pip install -U warp-lang")
    return Finding("warp", "ok", seen)


def _solvers() -> list[Finding]:
    from fitkit.registry import get_solver, solver_names

    findings = []
    for name in solver_names():
        try:
            get_solver(name)
        except ImportError as error:  # a back end whose package is not there
            findings.append(Finding(f"solver {name}", "missing", _said(error)))
        except Exception as error:  # a solver may come from any installed package
            findings.append(Finding(f"solver {name}", "broken", _said(error)))
        else:
            findings.append(Finding(f"solver {name}", "ok", "loads"))
    return findings


def _optional(package: _Optional) -> Finding:
    name, found = package.module.split(".")[0], _version(package.distribution)
    if find_spec(name) is None:
        return Finding(name, "missing", f"optional: {package.purpose}", package.remedy, package.note)
    _, problem = _load(package.module)
    shown = found or "of unknown version"
    if problem:
        return Finding(name, "broken", f"{shown}: {problem}", package.remedy, package.note)
    if package.cuda and not torch.cuda.is_available():
        return Finding(name, "warning", f"{shown}: needs CUDA, which is not available here")
    return Finding(name, "ok", f"{shown}: {package.purpose}")


def _load(name: str) -> tuple[ModuleType | None, str]:
    """A module, or why it cannot be imported; what it says while it loads is not shown."""
    with _quiet():
        try:
            return importlib.import_module(name), ""
        except Exception as error:  # compiled extensions fail in every way when torch has changed
            return None, _said(error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from fitkit.observe.mediapipe_graph import silent_stderr

    with silent_stderr(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _said(error: object) -> str:
    """An error on one line."""
    kind = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
    return " ".join(f"{kind}{error}".split())

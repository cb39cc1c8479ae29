"""Back ends of the soft rasteriser: which there are, what they need, and that they draw the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fitkit.body.model import BodyModel
from fitkit.render import _pytorch3d_soft, available_backends, backend_names, backends, soft, soft_rasterize
from tests.soft_cases import F64, Case, cosine, crowd, drawn, each_of_ours, make_case, needs_warp

__all__ = ["crowd"]


def test_a_back_end_that_is_not_installed_says_how_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        backends, "_problem", lambda name: None if name == "torch" else "ModuleNotFoundError: gone"
    )
    assert available_backends() == ("torch",)
    assert backend_names() == ("warp", "torch", "pytorch3d", "nvdiffrast")
    for name in ("warp", "pytorch3d"):
        with pytest.raises(
            RuntimeError, match=f"back end {name}: .* does not load .*gone.*; install it with: pip"
        ):
            backends.get_backend(name)
    assert backends.get_backend(None) is backends.get_backend("torch")


@needs_warp
def test_warp_is_the_default_starts_in_silence_and_leaves_its_settings_alone() -> None:
    script = (
        "import torch; from fitkit.camera import Camera; from fitkit.render import soft_rasterize; "
        "import warp; before = warp.config.log_level; "
        "v = torch.tensor([[[-1.0, -1, 2], [1, -1, 2], [0, 1, 2]]], requires_grad=True); "
        "soft_rasterize(v, torch.tensor([[0, 1, 2]]), Camera.from_size(8, 8)).silhouette.sum().backward(); "
        "assert 'fitkit.render._warp_soft' in __import__('sys').modules; "
        "assert warp.config.log_level == before"
    )
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@needs_warp
@pytest.mark.parametrize("name", ["_warp_soft_kernels", "_warp_hard"])
def test_the_kernels_compile_for_cuda(tmp_path: Path, name: str) -> None:
    import importlib

    import warp as wp

    module = importlib.import_module(f"fitkit.render.{name}")
    try:
        wp.compile_aot_module(module, arch=75, module_dir=str(tmp_path), use_ptx=True, strip_hash=True)
    except RuntimeError as error:
        if "CUDA" in str(error) and "enabled" in str(error):
            pytest.skip(f"this build of Warp has no CUDA compiler: {error}")
        raise
    (ptx,) = tmp_path.rglob("*.ptx")
    kernels = {"_warp_soft_kernels": ("set_up", "cover", "blend", "differentiate"), "_warp_hard": ("lay",)}[
        name
    ]
    assert all(f".entry {kernel}_" in ptx.read_text() for kernel in kernels)


@pytest.mark.parametrize("seed", [1, 11, 2, 22])
def test_pytorch3d_agrees_where_it_keeps_enough_faces(
    body: BodyModel, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytorch3d", reason="pytorch3d is not installed (it is built from source)")
    case = replace(make_case(body, seed), softness=0.5)
    expected, gradients = drawn(case, "torch", F64)
    draw = partial(_pytorch3d_soft.render, faces_per_pixel=400)
    monkeypatch.setattr(soft, "get_backend", lambda name, device: draw)
    got, theirs = drawn(case, "pytorch3d", torch.float32)
    torch.testing.assert_close(got.silhouette.to(F64), expected.silhouette, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.attributes.to(F64), expected.attributes, atol=1e-3, rtol=0)
    if case.attributes is None:
        assert cosine(theirs[0], gradients[0]) > 0.9999
    else:  # few faces seen from the side have gradients of any length in pytorch3d
        touched = gradients[0].norm(dim=-1) > 1e-3
        error = (theirs[0] - gradients[0]).norm(dim=-1)[touched] / gradients[0].norm(dim=-1)[touched]
        assert float(error.quantile(0.9)) < 1e-2


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@gpu
@each_of_ours
def test_the_gpu_draws_what_the_cpu_draws(crowd: Case, backend: str) -> None:
    expected, gradients = drawn(crowd, backend, torch.float32)
    assert isinstance(crowd.attributes, Tensor)
    moved = replace(
        crowd,
        vertices=crowd.vertices.cuda(),
        faces=crowd.faces.cuda(),
        camera=crowd.camera.to("cuda"),
        attributes=crowd.attributes.cuda(),
    )
    got, theirs = drawn(moved, backend, torch.float32)
    assert got.silhouette.is_cuda
    torch.testing.assert_close(got.silhouette.cpu(), expected.silhouette, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.attributes.cpu(), expected.attributes, atol=1e-4, rtol=0)
    for mine, other in zip(gradients, theirs, strict=True):
        assert cosine(mine, other.cpu()) > 0.9999


@pytest.mark.gpu
@gpu
def test_nvdiffrast_sees_the_same_body(crowd: Case) -> None:
    pytest.importorskip("nvdiffrast", reason="nvdiffrast is not installed (it is built from source)")
    vertices = crowd.vertices.cuda().requires_grad_()
    images = [
        soft_rasterize(vertices, crowd.faces.cuda(), crowd.camera.to("cuda"), softness=0.3, backend=backend)
        for backend in ("nvdiffrast", "torch")
    ]
    one, two = (image.silhouette > 0.5 for image in images)
    assert int((one & two).sum()) > 0.8 * int((one | two).sum())
    (gradient,) = torch.autograd.grad(images[0].silhouette.sum(), vertices)
    assert bool(torch.isfinite(gradient).all())
    assert bool(gradient.any())

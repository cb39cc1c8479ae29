"""The soft rasteriser against closed forms, its definition evaluated pixel by pixel, and its oracle in float64."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fitkit import geometry
from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.render import (
    FaceLabels,
    SoftImages,
    _pytorch3d_soft,
    available_backends,
    backend_names,
    backends,
    soft,
    soft_rasterize,
)

F64 = torch.float64
OURS = ("torch", "warp")
needs_warp = pytest.mark.skipif(
    "warp" not in available_backends(), reason="warp-lang is not installed: pip install warp-lang"
)
each_of_ours = pytest.mark.parametrize("backend", ["torch", pytest.param("warp", marks=needs_warp)])


def _camera(width: int, height: int, focal: float, count: int = 1) -> Camera:
    return Camera.from_intrinsics(focal, focal, width / 2, height / 2, width, height).to(F64).expand(count)


def _at_pixels(pixels: list[list[float]], camera: Camera) -> Tensor:
    """(1, V, 3) points whose image is (column, row), at depth z."""
    column, row, z = torch.tensor(pixels, dtype=F64).T
    x = (column - camera.center[0, 0]) / camera.focal[0, 0] * z
    y = (row - camera.center[0, 1]) / camera.focal[0, 1] * z
    return torch.stack([x, y, z], -1)[None]


# -- the definition, pixel by pixel ------------------------------------------------------------------------------


def _dense(
    vertices: Tensor, faces: Tensor, camera: Camera, colors: Tensor, softness: float, depth_softness: float
) -> tuple[Tensor, Tensor]:
    """One picture, straight from the formulas; `colors` (F, 3, C) of the faces' corners. NaN colours give nothing."""
    silhouette = torch.zeros(camera.height, camera.width, dtype=F64)
    attributes = torch.zeros(camera.height, camera.width, colors.shape[-1], dtype=F64)
    focal, center = camera.focal[0].tolist(), camera.center[0].tolist()
    for row in range(camera.height):
        for column in range(camera.width):
            hits = []
            for face, corners in zip(colors, vertices[faces].tolist(), strict=True):
                if not all(z >= 0.05 for *_, z in corners):
                    continue
                screen = [
                    (x / z * focal[0] + center[0] - column - 0.5, y / z * focal[1] + center[1] - row - 0.5)
                    for x, y, z in corners
                ]
                hit = _dense_hit(screen, [z for *_, z in corners], softness)
                if hit is not None:
                    hits.append((*hit, face))
            if not hits:
                continue
            silhouette[row, column] = 1 - math.prod(1 - cover for cover, *_ in hits)
            least = min(z for _, z, *_ in hits)
            weights = [cover * math.exp((least - z) / depth_softness) for cover, z, *_ in hits]
            for weight, (_, _, mixed, face) in zip(weights, hits, strict=True):
                share = weight / (sum(weights) + 1e-10)
                attributes[row, column] += share * (torch.tensor(mixed, dtype=F64) @ face).nan_to_num()
    return silhouette, attributes


def _dense_hit(
    screen: list[tuple[float, float]], z: list[float], softness: float
) -> tuple[float, float, list[float]] | None:
    """Cover, depth and mixed weights of a face around the pixel at the origin."""
    (ax, ay), (bx, by), (cx, cy) = screen
    matrix = torch.tensor([[ax, bx, cx], [ay, by, cy], [1.0, 1.0, 1.0]], dtype=F64)
    if abs(float(torch.linalg.det(matrix))) < 1e-12:
        return None
    flat = torch.linalg.solve(matrix, torch.tensor([0.0, 0.0, 1.0], dtype=F64)).tolist()
    distance = min(_dense_segment(*screen[i], *screen[(i + 1) % 3]) for i in range(3))
    inside = min(flat) > 0
    cover = 1 / (1 + math.exp(max(-700, (-1 if inside else 1) * distance**2 / softness**2)))
    if cover < 1e-4:
        return None
    corrected = [weight / depth for weight, depth in zip(flat, z, strict=True)]
    corrected = [weight / abs(sum(corrected)) for weight in corrected]
    clipped = [max(weight, 0.0) for weight in corrected]
    mixed = [weight / sum(clipped) for weight in clipped]
    return cover, sum(weight * depth for weight, depth in zip(mixed, z, strict=True)), mixed


def _dense_segment(ax: float, ay: float, bx: float, by: float) -> float:
    """Distance of the origin from a segment."""
    best = min(math.hypot(ax, ay), math.hypot(bx, by))
    length = math.hypot(bx - ax, by - ay)
    along = -(ax * (bx - ax) + ay * (by - ay)) / length
    return abs(ax * by - ay * bx) / length if 0 < along < length else best


def _few(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    vertices = torch.rand(9, 3, generator=draw, dtype=F64) * torch.tensor([2, 2, 0.2]) + torch.tensor(
        [-1, -1, 1.9]
    )
    faces = torch.stack([torch.randperm(9, generator=draw)[:3] for _ in range(7)])
    return vertices, faces


@each_of_ours
@pytest.mark.parametrize("seed", range(3))
def test_is_the_definition_pixel_by_pixel(backend: str, seed: int) -> None:
    vertices, faces = _few(seed)
    vertices[0, 2] = 0.04  # too near: its faces are left out
    camera = _camera(13, 9, 9.0)
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(9, 3, generator=draw, dtype=F64)
    labels = FaceLabels(torch.tensor([0, 1, 2, -1, 1, 0, 3]), 4)
    one_hot = (
        torch.where(labels.labels[:, None] == torch.arange(4), 1.0, 0.0).to(F64)[:, None].expand(-1, 3, -1)
    )
    for attributes, colors in ((values, values[faces]), (labels, one_hot)):
        softness, depth = 0.4 + 0.5 * seed, 0.05
        expected = _dense(vertices, faces, camera, colors, softness, depth)
        got = soft_rasterize(vertices[None], faces, camera, attributes, softness, depth, backend=backend)
        bar = 1e-11 if backend == "torch" else 2e-6
        torch.testing.assert_close(got.silhouette[0], expected[0], atol=bar, rtol=0)
        torch.testing.assert_close(got.attributes[0], expected[1], atol=bar, rtol=0)


def test_the_oracle_has_the_gradients_of_finite_differences() -> None:
    vertices, faces = _few(4)
    values = torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    camera = _camera(6, 5, 5.0)

    def draw(vertices: Tensor, values: Tensor, focal: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        seen = replace(camera, focal=focal, center=center)
        images = soft_rasterize(vertices[None], faces, seen, values, 0.8, 0.1, backend="torch")
        return images.silhouette, images.attributes

    inputs = [x.clone().requires_grad_() for x in (vertices, values, camera.focal, camera.center)]
    assert torch.autograd.gradcheck(draw, inputs, eps=1e-7, atol=1e-4, rtol=1e-3)


# -- closed forms ------------------------------------------------------------------------------------------------


@each_of_ours
def test_a_face_over_the_whole_picture_shows_what_lies_on_the_rays(backend: str) -> None:
    camera = _camera(12, 7, 10.0)
    # Slanted in depth: the attribute is the point itself, which must lie on the ray of its pixel.
    corners = _at_pixels([[-30, -40, 1.0], [60, -35, 2.5], [5, 50, 4.0]], camera)
    got = soft_rasterize(corners, torch.tensor([[0, 1, 2]]), camera, corners, backend=backend)
    assert float((got.silhouette - 1).abs().max()) < 1e-6
    x, y, z = got.attributes[0].unbind(-1)
    column, row = torch.arange(12, dtype=F64) + 0.5, torch.arange(7, dtype=F64)[:, None] + 0.5
    torch.testing.assert_close(x / z * 10 + 6, column.expand(7, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(y / z * 10 + 3.5, row.expand(7, 12), atol=1e-5, rtol=0)


@each_of_ours
def test_an_edge_is_one_half_and_falls_off_as_the_sigmoid(backend: str) -> None:
    camera = _camera(9, 5, 10.0)
    corners = _at_pixels(
        [[4.5, -99, 2.0], [4.5, 99, 2.0], [99, 0, 2.0]], camera
    )  # to the right of column 4's centre
    got = soft_rasterize(
        corners, torch.tensor([[0, 1, 2]]), camera, softness=0.9, backend=backend
    ).silhouette[0]
    distance = torch.arange(9, dtype=F64) - 4
    cover = (distance * distance.abs() / 0.81).sigmoid()
    expected = torch.where(cover < 1e-4, 0.0, cover).expand(5, 9)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert float(got[2, 4]) == pytest.approx(0.5, abs=1e-7)


@each_of_ours
def test_the_nearer_surface_wins_by_the_depth_softness(backend: str) -> None:
    camera = _camera(5, 5, 10.0)
    sheets = [_at_pixels([[-99, -99, z], [99, -99, z], [0, 150, z]], camera) for z in (2.0, 2.03)]
    faces, labels = torch.arange(6).view(2, 3), FaceLabels(torch.tensor([1, 0]), 2)
    got = soft_rasterize(torch.cat(sheets, 1), faces, camera, labels, depth_softness=0.02, backend=backend)
    share = 1 / (1 + math.exp(-0.03 / 0.02))
    expected = torch.tensor([1 - share, share], dtype=F64).expand(5, 5, 2)
    torch.testing.assert_close(got.attributes[0], expected, atol=2e-6, rtol=0)
    hidden = replace(labels, labels=torch.tensor([-1, 0]))
    got = soft_rasterize(torch.cat(sheets, 1), faces, camera, hidden, depth_softness=0.02, backend=backend)
    torch.testing.assert_close(got.attributes[0, ..., 0], expected[..., 0], atol=2e-6, rtol=0)
    assert not bool(got.attributes[..., 1].any())


# -- bodies: Warp against the oracle -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A picture to be drawn by two back ends."""

    vertices: Tensor
    faces: Tensor
    camera: Camera
    attributes: Tensor | FaceLabels | None
    softness: float
    depth_softness: float


KINDS = (
    "whole body",
    "in the picture",
    "partly outside",
    "partly behind the camera",
    "wholly behind the camera",
    "one pixel tall",
    "degenerate faces",
    "vertices that are not finite",
    "very near",
    "very far",
)


def _case(body: BodyModel, seed: int) -> Case:
    draw = torch.Generator().manual_seed(seed)
    kind = KINDS[seed % len(KINDS)]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=F64)

    distance = {
        "partly behind the camera": 0.1,
        "wholly behind the camera": -3.0,
        "very near": 0.9,
        "very far": 150.0,
    }.get(kind, uniform(2.5, 5.0))
    state = replace(
        body.neutral(1),
        global_orient=geometry.exp(normal(1, 1, 3)),
        body_pose=geometry.exp(0.3 * normal(1, 21, 3)),
        betas=normal(1, body.num_betas),
        transl=0.15 * normal(1, 3) + torch.tensor([0, 0, distance]),
    )
    vertices, faces = body.vertices(state)[0], body.faces
    if kind != "whole body":  # the oracle is slow
        faces = faces[torch.randperm(len(faces), generator=draw)[:1200]]
    if kind == "partly outside":
        vertices = vertices + torch.tensor([0.25, 0.15, 0.0]) * distance
    if kind == "degenerate faces":
        faces = torch.cat([faces[:, [0, 0, 1]][:50], faces, faces[:, [2, 2, 2]][:50]])
        vertices[faces[200:230, 0]] = vertices[faces[200:230, 1]].clone()
    if kind == "vertices that are not finite":
        vertices[::97] = torch.nan
        vertices[5::97, 1] = torch.inf
        vertices[9::97, 2] = -torch.inf
    size = [int(uniform(20, 56)), int(uniform(20, 56))]
    size = size if kind != "whole body" else [24, 24]
    focal = 1.0 * distance if kind == "one pixel tall" else max(size) * uniform(0.7, 1.8)
    focal = 60 * max(size) if kind == "very far" else focal
    x, y = uniform(0.4, 0.6) * size[0], uniform(0.4, 0.6) * size[1]
    intrinsics = torch.tensor([[focal, 1.1 * focal]], dtype=F64), torch.tensor([[x, y]], dtype=F64)
    parts = torch.as_tensor(body.data.parts).long()
    labels = parts if kind == "whole body" else torch.randint(-1, 15, (len(faces),), generator=draw)
    attributes = (FaceLabels(labels, 15), normal(len(vertices), 3), None)[seed // len(KINDS) % 3]
    return Case(
        vertices.to(torch.float32)[None],
        faces.long(),
        Camera(*intrinsics, *size),
        attributes,
        uniform(0.3, 0.6 if kind == "whole body" else 1.5),
        0.01 if seed % 4 else 0.05,
    )


def _drawn(case: Case, backend: str, dtype: torch.dtype) -> tuple[SoftImages, list[Tensor]]:
    """The pictures, and the gradients of random linear functions of them to everything that has gradients."""
    leaves = [case.vertices, case.camera.focal, case.camera.center]
    leaves = [leaf.detach().clone().to(dtype).requires_grad_() for leaf in leaves]
    attributes = case.attributes
    if isinstance(attributes, Tensor):
        attributes = attributes.detach().clone().to(dtype).requires_grad_()
        leaves.append(attributes)
    camera = replace(case.camera, focal=leaves[1], center=leaves[2])
    images = soft_rasterize(
        leaves[0], case.faces, camera, attributes, case.softness, case.depth_softness, backend=backend
    )
    draw = torch.Generator().manual_seed(0)
    loss = images.silhouette.new_zeros(())
    for image in (images.silhouette, images.attributes):
        loss = loss + (image * torch.randn(image.shape, generator=draw, dtype=F64).to(image)).sum()
    return images, list(torch.autograd.grad(loss, leaves))


def _cosine(one: Tensor, two: Tensor) -> float:
    one, two = one.detach().flatten().to(F64), two.detach().flatten().to(F64)
    if float(one.norm()) < 1e-9 and float(two.norm()) < 1e-9:
        return 1.0
    return float(torch.nn.functional.cosine_similarity(one, two, 0, eps=1e-30))


@needs_warp
@pytest.mark.parametrize("seed", range(100))
def test_warp_agrees_with_the_oracle(body: BodyModel, seed: int) -> None:
    case = _case(body, seed)
    expected, gradients = _drawn(case, "torch", F64)
    got, ours = _drawn(case, "warp", torch.float32)
    assert got.silhouette.dtype == torch.float32
    torch.testing.assert_close(got.silhouette.to(F64), expected.silhouette, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.attributes.to(F64), expected.attributes, atol=1e-4, rtol=0)
    for mine, theirs in zip(ours, gradients, strict=True):
        assert bool(torch.isfinite(mine).all())
        assert bool(torch.isfinite(theirs).all())
        assert _cosine(mine, theirs) >= 0.9999
    kind = KINDS[seed % len(KINDS)]
    if kind != "partly behind the camera":  # of whom perhaps nothing lies in the picture
        assert bool((expected.silhouette > 0).any()) != (kind == "wholly behind the camera")


@needs_warp
def test_corners_far_outside_cost_no_precision() -> None:
    camera = _camera(24, 16, 20.0)
    corners = _at_pixels([[3.3, 2.2, 2.0], [9e5, -7e5, 1.1], [14.2, 8e5, 3.0], [-6e5, 9.1, 1.5]], camera)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    case = Case(corners, faces, camera, torch.randn(4, 2, dtype=F64), 0.6, 0.01)
    expected, gradients = _drawn(case, "torch", F64)
    got, ours = _drawn(case, "warp", F64)
    torch.testing.assert_close(got.silhouette, expected.silhouette, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.attributes, expected.attributes, atol=1e-4, rtol=0)
    assert _cosine(ours[0], gradients[0]) > 0.9999


# -- invariances -------------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(body: BodyModel) -> Case:
    """Three people in pictures of three cameras."""
    one = [_case(body, seed) for seed in (1, 11, 21)]
    camera = Camera(
        torch.cat([c.camera.focal for c in one]), torch.cat([c.camera.center for c in one]), 40, 30
    )
    values = torch.randn(3, one[0].vertices.shape[1], 2, generator=torch.Generator().manual_seed(3))
    return Case(torch.cat([c.vertices for c in one]), one[0].faces, camera, values, 0.7, 0.01)


@each_of_ours
def test_a_batch_is_its_people_one_by_one(crowd: Case, backend: str) -> None:
    values = crowd.attributes
    assert isinstance(values, Tensor)

    def drawn(rows: list[int]) -> list[Tensor]:
        leaves = [crowd.vertices[rows].requires_grad_(), values[rows].requires_grad_()]
        camera = crowd.camera.select(rows)
        images = soft_rasterize(leaves[0], crowd.faces, camera, leaves[1], 0.7, backend=backend)
        assert len(images) == len(rows)
        loss = images.silhouette.square().sum() + images.attributes.square().sum()
        return [images.silhouette, images.attributes, *torch.autograd.grad(loss, leaves)]

    together = drawn([0, 1, 2])
    assert bool(together[2].any(-1).any(-1).all())
    for row in range(3):
        for one, all_three in zip(drawn([row]), together, strict=True):
            if backend == "warp":
                assert torch.equal(one, all_three[row : row + 1])
            else:
                assert _cosine(one, all_three[row : row + 1]) > 1 - 1e-9


@each_of_ours
def test_the_order_of_the_faces_does_not_matter(crowd: Case, backend: str) -> None:
    order = torch.randperm(len(crowd.faces), generator=torch.Generator().manual_seed(2))
    one, gradients = _drawn(crowd, backend, torch.float32)
    two, shuffled = _drawn(replace(crowd, faces=crowd.faces[order].roll(1, 1)), backend, torch.float32)
    torch.testing.assert_close(one.silhouette, two.silhouette, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.attributes, two.attributes, atol=1e-4, rtol=0)
    assert _cosine(gradients[0], shuffled[0]) > 1 - 1e-6


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_warp
@pytest.mark.parametrize("people", [1, 2, 3])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.usefixtures("threads")
def test_threads_change_no_bit(crowd: Case, people: int, labelled: bool) -> None:
    attributes = crowd.attributes
    assert isinstance(attributes, Tensor)
    labels = FaceLabels(torch.arange(len(crowd.faces)) % 5 - 1, 4)
    chosen = labels if labelled else attributes[:people]
    few = replace(
        crowd, vertices=crowd.vertices[:people], camera=crowd.camera.select(slice(people)), attributes=chosen
    )
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        images, gradients = _drawn(few, "warp", torch.float32)
        results.append([images.silhouette, images.attributes, *gradients[:1]])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@each_of_ours
def test_nobody_and_nothing_are_drawn_as_nothing(backend: str) -> None:
    camera = _camera(4, 3, 5.0)
    none = soft_rasterize(torch.zeros(0, 3, 3), torch.tensor([[0, 1, 2]]), camera.select([]), backend=backend)
    assert none.silhouette.shape == (0, 3, 4)
    assert none.attributes.shape == (0, 3, 4, 0)
    vertices = torch.ones(1, 3, 3, requires_grad=True)
    empty = soft_rasterize(
        vertices, torch.zeros(0, 3, dtype=torch.long), camera, torch.ones(3, 2), backend=backend
    )
    assert not bool(empty.silhouette.any())
    assert empty.attributes.shape == (1, 3, 4, 2)
    (gradient,) = torch.autograd.grad(empty.silhouette.sum(), vertices)
    assert not bool(gradient.any())


# -- back ends, errors, devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertices": torch.ones(3, 3)}, r"vertices must be float32 or float64 of shape \(B, V, 3\)"),
        ({"vertices": torch.ones(1, 3, 3, dtype=torch.float16)}, "float16"),
        ({"faces": torch.tensor([[0, 1, 3]])}, r"faces must name vertices 0\.\.2, got 0\.\.3"),
        ({"faces": torch.ones(1, 3)}, "faces must be integers"),
        ({"camera": _camera(4, 4, 5.0, count=2)}, "camera of 2 rows for 1 bodies"),
        ({"camera": replace(_camera(4, 4, 5.0), focal=torch.tensor([[torch.nan, 1.0]]))}, "focal and center"),
        ({"camera": replace(_camera(4, 4, 5.0), width=0)}, "expected at least 1 x 1"),
        ({"attributes": torch.ones(2, 4)}, r"attributes of shape \(2, 4\)"),
        ({"attributes": torch.ones(3, dtype=torch.long)}, "attributes must be floats"),
        (
            {"attributes": FaceLabels(torch.zeros(2, dtype=torch.long), 1)},
            "labels of 2 faces for a mesh of 1",
        ),
        ({"softness": 0.0}, "softness must be positive"),
        ({"depth_softness": math.nan}, "depth_softness must be positive"),
        ({"near": 0.01}, "near must be at least 0.05"),
        ({"backend": "opengl"}, "no rasteriser back end 'opengl', expected one of warp, torch"),
        ({"backend": "nvdiffrast"}, "draws on cuda, not on cpu"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    good = {"vertices": torch.ones(1, 3, 3), "faces": torch.tensor([[0, 1, 2]]), "camera": _camera(4, 4, 5.0)}
    with pytest.raises(ValueError, match=message):
        soft_rasterize(**{**good, **change})


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.long), 1, r"integers of shape \(F,\)"),
        (torch.zeros(2), 1, "torch.float32"),
        (torch.tensor([0, 4]), 4, r"must be -1\.\.3, got 0\.\.4"),
        (torch.tensor([-2]), 4, "got -2"),
        (torch.tensor([-1]), -1, "count must not be negative"),
    ],
)
def test_wrong_labels_are_named(labels: Tensor, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaceLabels(labels, count)


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
    case = replace(_case(body, seed), softness=0.5)
    expected, gradients = _drawn(case, "torch", F64)
    draw = partial(_pytorch3d_soft.render, faces_per_pixel=400)
    monkeypatch.setattr(soft, "get_backend", lambda name, device: draw)
    got, theirs = _drawn(case, "pytorch3d", torch.float32)
    torch.testing.assert_close(got.silhouette.to(F64), expected.silhouette, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.attributes.to(F64), expected.attributes, atol=1e-3, rtol=0)
    if case.attributes is None:
        assert _cosine(theirs[0], gradients[0]) > 0.9999
    else:  # few faces seen from the side have gradients of any length in pytorch3d
        touched = gradients[0].norm(dim=-1) > 1e-3
        error = (theirs[0] - gradients[0]).norm(dim=-1)[touched] / gradients[0].norm(dim=-1)[touched]
        assert float(error.quantile(0.9)) < 1e-2


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@gpu
@each_of_ours
def test_the_gpu_draws_what_the_cpu_draws(crowd: Case, backend: str) -> None:
    expected, gradients = _drawn(crowd, backend, torch.float32)
    assert isinstance(crowd.attributes, Tensor)
    moved = replace(
        crowd,
        vertices=crowd.vertices.cuda(),
        faces=crowd.faces.cuda(),
        camera=crowd.camera.to("cuda"),
        attributes=crowd.attributes.cuda(),
    )
    got, theirs = _drawn(moved, backend, torch.float32)
    assert got.silhouette.is_cuda
    torch.testing.assert_close(got.silhouette.cpu(), expected.silhouette, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.attributes.cpu(), expected.attributes, atol=1e-4, rtol=0)
    for mine, other in zip(gradients, theirs, strict=True):
        assert _cosine(mine, other.cpu()) > 0.9999


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

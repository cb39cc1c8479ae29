"""The soft rasteriser against closed forms, its definition evaluated pixel by pixel, and its oracle in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.render import (
    FaceLabels,
    soft_rasterize,
)
from tests.soft_cases import F64, KINDS, Case, cosine, crowd, drawn, each_of_ours, make_case, needs_warp

__all__ = ["crowd"]


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


@needs_warp
@pytest.mark.parametrize("seed", range(100))
def test_warp_agrees_with_the_oracle(body: BodyModel, seed: int) -> None:
    case = make_case(body, seed)
    expected, gradients = drawn(case, "torch", F64)
    got, ours = drawn(case, "warp", torch.float32)
    assert got.silhouette.dtype == torch.float32
    torch.testing.assert_close(got.silhouette.to(F64), expected.silhouette, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.attributes.to(F64), expected.attributes, atol=1e-4, rtol=0)
    for mine, theirs in zip(ours, gradients, strict=True):
        assert bool(torch.isfinite(mine).all())
        assert bool(torch.isfinite(theirs).all())
        assert cosine(mine, theirs) >= 0.9999
    kind = KINDS[seed % len(KINDS)]
    if kind != "partly behind the camera":  # of whom perhaps nothing lies in the picture
        assert bool((expected.silhouette > 0).any()) != (kind == "wholly behind the camera")


@needs_warp
def test_corners_far_outside_cost_no_precision() -> None:
    camera = _camera(24, 16, 20.0)
    corners = _at_pixels([[3.3, 2.2, 2.0], [9e5, -7e5, 1.1], [14.2, 8e5, 3.0], [-6e5, 9.1, 1.5]], camera)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    case = Case(corners, faces, camera, torch.randn(4, 2, dtype=F64), 0.6, 0.01)
    expected, gradients = drawn(case, "torch", F64)
    got, ours = drawn(case, "warp", F64)
    torch.testing.assert_close(got.silhouette, expected.silhouette, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.attributes, expected.attributes, atol=1e-4, rtol=0)
    assert cosine(ours[0], gradients[0]) > 0.9999


# -- invariances -------------------------------------------------------------------------------------------------


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
                assert cosine(one, all_three[row : row + 1]) > 1 - 1e-9


@each_of_ours
def test_the_order_of_the_faces_does_not_matter(crowd: Case, backend: str) -> None:
    order = torch.randperm(len(crowd.faces), generator=torch.Generator().manual_seed(2))
    one, gradients = drawn(crowd, backend, torch.float32)
    two, shuffled = drawn(replace(crowd, faces=crowd.faces[order].roll(1, 1)), backend, torch.float32)
    torch.testing.assert_close(one.silhouette, two.silhouette, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.attributes, two.attributes, atol=1e-4, rtol=0)
    assert cosine(gradients[0], shuffled[0]) > 1 - 1e-6


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
        images, gradients = drawn(few, "warp", torch.float32)
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

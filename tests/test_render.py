"""The z-buffer against closed forms and against a ray caster that knows nothing of edges and rows."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.render import (
    Raster,
    available_backends,
    hard,
    rasterize,
    rasterize_each,
    surface_maps,
    vertex_normals,
)

F, C, W, H = (60.0, 62.0), (31.5, 23.0), 64, 48


@pytest.fixture(params=["torch", "warp"], autouse=True)
def z_buffer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything holds for the z-buffer of plain torch and for that of Warp."""
    if request.param == "torch":
        monkeypatch.setattr(hard, "_kernels", lambda device: None)
    elif "warp" not in available_backends():
        pytest.skip("warp-lang is not installed: pip install warp-lang")
    else:
        importlib.import_module("warp")  # one picture alone does not import it
    return str(request.param)


def _same(one: Raster, two: Raster) -> bool:
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in vars(one))


def _rays() -> np.ndarray:
    column, row = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    return np.stack([(column - C[0]) / F[0], (row - C[1]) / F[1], np.ones_like(row)], axis=-1)


def _cast(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest depth (H, W) and triangle, by solving ray = corners' weighted sum for every pixel and triangle."""
    depth, which = np.full((H, W), np.inf), np.full((H, W), -1)
    triangles = vertices[:, faces].reshape(-1, 3, 3)
    for k, corners in enumerate(triangles):
        if corners[:, 2].min() < 0.05 or abs(np.linalg.det(corners)) < 1e-12:
            continue
        weights = _rays() @ np.linalg.inv(corners)  # ray / z = weights @ corners, so z = 1 / their sum
        z = 1.0 / weights.sum(-1)
        nearer = (weights.min(-1) >= 0) & (z < depth)
        depth[nearer], which[nearer] = z[nearer], k
    return depth, which


def _sphere(radius: float, at: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    return np.asarray(ball.vertices) + at, np.asarray(ball.faces)


def _surface(raster: Raster, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    return raster.interpolate(vertices, faces)[raster.mask].numpy()


def test_agrees_with_ray_casting_on_people_of_random_triangles() -> None:
    rng = np.random.default_rng(3)
    vertices = rng.uniform([-2, -2, 0.5], [2, 2, 5], (3, 40, 3))
    vertices[0, :4, 2] = [-1.0, 0.01, 0.06, 0.05]  # behind the camera, too near, just far enough
    faces = np.array([rng.choice(40, 3, replace=False) for _ in range(60)])
    raster = rasterize(vertices, faces, F, C, W, H)
    depth, which = _cast(vertices, faces)
    assert np.array_equal(raster.mask.numpy(), which >= 0)
    np.testing.assert_allclose(raster.depth.numpy(), depth, rtol=2e-7)
    both = raster.person.numpy() * len(faces) + raster.face.numpy()
    assert np.array_equal(both[which >= 0], which[which >= 0])
    # The weights put the surface point on the ray of its pixel, at its depth: corrected for perspective.
    seen = raster.mask.numpy()
    np.testing.assert_allclose(
        _surface(raster, vertices, faces), _rays()[seen] * depth[seen][:, None], atol=5e-6
    )


def test_a_sphere_covers_the_disc_that_geometry_says() -> None:
    vertices, faces = _sphere(0.5, (0.0, 0.0, 3.0))
    raster = rasterize(vertices, faces, (400.0, 400.0), (160.5, 120.5), 320, 240)
    radius = 400.0 * 0.5 / np.sqrt(3.0**2 - 0.5**2)
    assert float(raster.mask.sum()) == pytest.approx(np.pi * radius**2, rel=0.004)
    assert float(raster.depth[120, 160]) == pytest.approx(2.5, abs=1e-3)
    assert torch.isinf(raster.depth[~raster.mask]).all()
    assert (raster.barycentric.sum(-1) - raster.mask.float()).abs().max() < 1e-5


def test_the_nearer_person_hides_the_farther_and_their_order_does_not_matter() -> None:
    near, faces = _sphere(0.3, (0.1, 0.0, 2.0))
    far, _ = _sphere(0.6, (0.0, 0.0, 3.0))
    one = rasterize(np.stack([near, far]), faces, F, C, W, H)
    two = rasterize(np.stack([far, near]), faces, F, C, W, H)
    alone = rasterize(near, faces, F, C, W, H)
    assert torch.equal(one.depth, two.depth)
    assert torch.equal(one.face, two.face)
    assert torch.equal(one.person == 0, alone.mask)
    assert torch.equal(one.person[one.mask], 1 - two.person[two.mask])
    assert int((one.person == 1).sum()) > 0


def test_faces_that_share_edges_leave_no_crack_and_no_pixel_twice() -> None:
    # A fan whose edges run exactly through pixel centres, over the whole picture.
    ring = np.array([[0, 0], [W, 0], [W, H], [0, H], [W / 2 + 0.5, H / 2 + 0.5]])
    flat = (ring - np.array(C)) / np.array(F)
    vertices = np.concatenate([flat, np.ones((5, 1))], axis=-1) * 2.0
    faces = np.array([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
    raster = rasterize(vertices, faces, F, C, W, H)
    assert bool(raster.mask.all())
    np.testing.assert_allclose(raster.depth.numpy(), 2.0, rtol=1e-6)


def test_pieces_of_any_size_give_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    vertices = rng.uniform([-1, -1, 1], [1, 1, 3], (2, 30, 3))
    faces = np.array([rng.choice(30, 3, replace=False) for _ in range(25)])
    whole = rasterize(vertices, faces, F, C, W, H)
    for size in (7, 1000):
        monkeypatch.setattr(hard, "_AT_ONCE", size)
        parts = rasterize(vertices, faces, F, C, W, H)
        assert torch.equal(parts.depth, whole.depth)
        assert torch.equal(parts.face, whole.face)
        assert torch.equal(parts.barycentric, whole.barycentric)


@pytest.mark.parametrize(
    "vertices",
    [
        np.full((1, 3, 3), np.nan),
        np.array([[[0, 0, -2], [1, 0, -2], [0, 1, -2.0]]]),
        np.array([[[0, 0, 2], [1, 0, 2], [0, 1, 0.01]]]),
        np.array([[[1e9, 0, 2], [1e9 + 1, 0, 2], [1e9, 1, 2.0]]]),
        np.array([[[0, 0, 2], [1, 1, 2], [2, 2, 2.0]]]),
        np.zeros((0, 3, 3)),
    ],
    ids=["nan", "behind", "crosses near", "far outside", "no area", "nobody"],
)
def test_nothing_is_drawn_of_what_cannot_be_seen(vertices: np.ndarray) -> None:
    raster = rasterize(vertices, np.array([[0, 1, 2]]), F, C, W, H)
    assert not bool(raster.mask.any())
    assert bool(torch.isinf(raster.depth).all())
    assert int(raster.person.max()) == -1


def test_a_body_partly_outside_fills_its_part() -> None:
    square = np.array([[-9, -9, 3], [0, -9, 3], [0, 9, 3], [-9, 9, 3.0]])
    raster = rasterize(torch.from_numpy(square), np.array([[0, 1, 2], [0, 2, 3]]), F, C, W, H)
    assert torch.equal(raster.mask, (torch.arange(W) + 0.5 <= C[0]).expand(H, W))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertices": np.zeros((3, 2))}, "vertices must have shape"),
        ({"faces": np.array([[0, 1, 3]])}, r"faces must name vertices 0\.\.2"),
        ({"faces": np.array([[0.0, 1.0, 2.0]])}, "faces must be integers"),
        ({"focal": (np.nan, 1.0)}, "focal must be two finite numbers"),
        ({"width": 0}, "at least 1 x 1"),
        ({"near": 0.0}, "near must be a positive"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "vertices": np.ones((3, 3)),
        "faces": np.array([[0, 1, 2]]),
        "focal": F,
        "center": C,
    }
    with pytest.raises(ValueError, match=message):
        rasterize(**{**good, "width": W, "height": H, **change})


def _people(body: BodyModel, count: int) -> torch.Tensor:
    turned = body.vertices(body.neutral(count)) * torch.tensor([1.0, -1.0, -1.0])
    spread = torch.tensor([[0.5, 0.1, 0.4], [0.0, 0.3, 0.2]], dtype=turned.dtype)
    steps = torch.arange(count, dtype=turned.dtype)[:, None]
    return turned + (torch.tensor([0.0, -0.2, 2.5]) + steps * spread[0] - steps % 2 * spread[1])[:, None]


@pytest.mark.skipif("warp" not in available_backends(), reason="warp-lang is not installed")
def test_warp_and_torch_see_the_same_to_the_last_bit(
    body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    vertices = _people(body, 3)
    vertices[1, ::50] = torch.nan
    vertices[2, ::60, 2] = -1.0
    camera = Camera(
        torch.tensor([[90.0, 80], [70, 75], [60, 99]]), torch.tensor([[30.0, 20], [25, 31], [40, 24]]), W, H
    )
    seen = []
    for kernels in (None, importlib.import_module("fitkit.render._warp_hard")):
        monkeypatch.setattr(hard, "_kernels", lambda device, kernels=kernels: kernels)
        seen.append(
            (rasterize(vertices, body.faces, F, C, W, H), rasterize_each(vertices, body.faces, camera))
        )
    (one, each), (two, each_two) = seen
    assert int(one.mask.sum()) > 100
    assert _same(one, two)
    assert _same(each, each_two)


def test_a_batch_of_pictures_is_one_picture_of_each_person(body: BodyModel) -> None:
    vertices = _people(body, 3)
    focal, center = (
        torch.tensor([[90.0, 80], [70, 75], [60, 99]]),
        torch.tensor([[30.0, 20], [25, 31], [40, 24]]),
    )
    each = rasterize_each(vertices, body.faces, Camera(focal, center, W, H))
    assert each.depth.shape == (3, H, W)
    carried = each.interpolate(vertices, body.faces)
    for row in range(3):
        alone = rasterize(vertices[row], body.faces, focal[row], center[row], W, H)
        assert torch.equal(each.depth[row], alone.depth)
        assert torch.equal(each.face[row], alone.face)
        assert torch.equal(each.barycentric[row], alone.barycentric)
        assert torch.equal(each.person[row] == row, alone.mask)
        assert torch.equal(carried[row], alone.interpolate(vertices[row], body.faces))
    torch.testing.assert_close(carried[..., 2][each.mask].float(), each.depth[each.mask], atol=1e-5, rtol=0)
    nobody = rasterize_each(vertices[:0], body.faces, Camera(focal[:0], center[:0], W, H))
    assert nobody.mask.shape == (0, H, W)


@pytest.mark.parametrize(
    ("rows", "focal", "near", "message"),
    [
        (2, 5.0, 0.05, "camera of 2 rows for 1 people"),
        (1, np.nan, 0.05, "focal and center must be finite"),
        (1, 5.0, 0.0, "near must be a positive"),
    ],
)
def test_a_wrong_camera_is_named(rows: int, focal: float, near: float, message: str) -> None:
    camera = Camera(torch.full((rows, 2), focal), torch.ones(rows, 2), 4, 4)
    with pytest.raises(ValueError, match=message):
        rasterize_each(torch.ones(1, 3, 3), torch.tensor([[0, 1, 2]]), camera, near)


def test_maps_show_the_labels_of_the_visible_surface() -> None:
    at = np.array([0.05, -0.02, 2.0])
    vertices, faces = (torch.as_tensor(array) for array in _sphere(0.5, tuple(at)))
    middle = vertices[faces].mean(1)
    parts, charts = 1 + (middle[:, 0] > at[0]).long(), 5 + (middle[:, 1] > at[1]).long()
    raster = rasterize_each(vertices[None], faces, Camera.from_intrinsics(*F, *C, W, H))
    maps = surface_maps(raster, vertices[None], faces, parts, charts, vertices[faces][..., :2])
    surface = raster.interpolate(vertices[None], faces)
    assert torch.equal(maps.mask, raster.mask)
    assert maps.part.shape == (1, H, W)
    assert not bool(
        maps.part[~maps.mask].any() or maps.uv[~maps.mask].any() or maps.normals[~maps.mask].any()
    )
    clear = maps.mask & ((surface[..., :2] - torch.as_tensor(at)[:2]).abs() > 0.05).all(-1)
    assert torch.equal(maps.part[clear], 1 + (surface[..., 0] > at[0]).long()[clear])
    assert torch.equal(maps.chart[clear], 5 + (surface[..., 1] > at[1]).long()[clear])
    torch.testing.assert_close(maps.uv, surface[..., :2])
    away = torch.nn.functional.normalize(surface - torch.as_tensor(at), dim=-1)[maps.mask]
    assert float((maps.normals[maps.mask] * away).sum(-1).min()) > 0.999
    with pytest.raises(ValueError, match=r"face_parts must have shape"):
        surface_maps(raster, vertices[None], faces, parts[1:], charts, vertices[faces][..., :2])


def test_vertex_normals_are_those_of_a_sphere_and_turn_with_the_faces() -> None:
    vertices, faces = (torch.as_tensor(array) for array in _sphere(0.5, (0.0, 0.0, 3.0)))
    normals = vertex_normals(vertices[None], faces)
    outwards = (vertices - torch.tensor([0, 0, 3.0])) * 2
    assert float((normals[0] * outwards).sum(-1).min()) > 0.9999
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(1, len(vertices), dtype=normals.dtype))
    torch.testing.assert_close(vertex_normals(vertices[None], faces.flip(1)), -normals)


def test_vertex_normals_have_the_gradients_of_finite_differences_and_no_others() -> None:
    draw = torch.Generator().manual_seed(1)
    faces = torch.stack([torch.randperm(6, generator=draw)[:3] for _ in range(8)])
    vertices = torch.randn(2, 6, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: vertex_normals(v, faces), vertices)
    for broken in (torch.zeros(1, 6, 3), torch.full((1, 6, 3), torch.nan), torch.full((1, 6, 3), torch.inf)):
        leaf = broken.clone().requires_grad_()
        normals = vertex_normals(leaf, faces)
        (gradient,) = torch.autograd.grad(normals.sum(), leaf)
        assert not bool(normals.any())
        assert not bool(gradient.any())
    leaf = torch.cat([vertices.detach()[:1, :5], torch.full((1, 1, 3), torch.nan)], 1).requires_grad_()
    normals = vertex_normals(leaf, faces)
    (gradient,) = torch.autograd.grad(normals[..., 0].sum(), leaf)
    assert bool(normals.any() and torch.isfinite(normals).all())
    assert bool(gradient.any() and torch.isfinite(gradient).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_sees_what_the_cpu_sees() -> None:
    rng = np.random.default_rng(7)
    vertices = torch.from_numpy(rng.uniform([-2, -2, 0.5], [2, 2, 5], (3, 40, 3)))
    faces = torch.from_numpy(np.array([rng.choice(40, 3, replace=False) for _ in range(60)]))
    cpu = rasterize(vertices, faces, F, C, W, H)
    gpu = rasterize(vertices.cuda(), faces.cuda(), F, C, W, H)
    assert gpu.depth.is_cuda
    assert (cpu.face == gpu.face.cpu()).float().mean() > 0.999  # rounding may decide an edge the other way
    same = cpu.face == gpu.face.cpu()
    torch.testing.assert_close(cpu.depth[same], gpu.depth.cpu()[same])

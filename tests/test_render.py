"""The z-buffer against closed forms and against a ray caster that knows nothing of edges and rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fitkit.render import Raster, hard, rasterize

F, C, W, H = (60.0, 62.0), (31.5, 23.0), 64, 48


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

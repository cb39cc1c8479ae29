"""The surface in charts, there and back; distances along it; and the scores made of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from fitkit.body import BodyData, BodyModel
from fitkit.body.charts import (
    CHART_NAMES,
    CHART_PARTS,
    Charts,
    SurfaceAddress,
    densepose_charts,
    with_densepose_charts,
)
from fitkit.body.geodesic import geodesic_distances
from fitkit.maps import PART_NAMES
from fitkit.metrics.surface import gps, gpsm


@pytest.fixture(scope="module")
def charts(body: BodyModel) -> Charts:
    return Charts.of(body)


def _random(charts: Charts, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Faces on charts and weights in them; some on edges and corners."""
    draw = torch.Generator().manual_seed(seed)
    on = torch.nonzero(charts.charts > 0)[:, 0]
    face = on[torch.randint(len(on), (count,), generator=draw)]
    weights = torch.rand(count, 3, generator=draw, dtype=torch.float64)
    weights[: count // 4, 0] = 0
    weights[: count // 8, 1] = 0
    return face, weights / weights.sum(1, keepdim=True)


def _mesh(points: Any, faces: Any, **more: Any) -> BodyData:
    """Any mesh as a body that nothing moves."""
    vertices = np.asarray(points, np.float32)
    count, empty = len(vertices), np.zeros((len(vertices), 3, 0), np.float32)
    return BodyData(
        name="mesh",
        parents=np.array([-1]),
        v_template=vertices,
        shapedirs=empty,
        exprdirs=empty,
        posedirs=empty,
        weights=np.ones((count, 1), np.float32),
        J_regressor=np.full((1, count), 1 / count, np.float32),
        faces=np.asarray(faces, np.int64),
        regressors={},
        **more,
    )


# ---- charts


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_there_and_back(body: BodyModel, charts: Charts, dtype: torch.dtype, near: float) -> None:
    face, weights = _random(charts, 5000)
    chart, uv = charts.encode(face, weights.to(dtype))
    assert (chart == charts.charts[face]).all()
    assert uv.dtype == dtype
    found = charts.decode(chart, uv)
    assert found.valid.all()
    assert float(found.distance.max()) < near
    again, uv_again = charts.encode(found.face, found.barycentric)
    assert (again == chart).all()
    assert float((uv_again - uv).abs().max()) < near
    template = torch.from_numpy(body.data.v_template).to(dtype)
    asked = SurfaceAddress(face, weights.to(dtype), found.distance, found.valid)
    off = found.on(template, charts.faces) - asked.on(template, charts.faces)
    # Of a triangle that is small in u and v, the last bit of u is a longer way on the body.
    assert float(off.norm(dim=-1).max()) < 1e3 * near


def test_nearest_point_in_holes_and_beyond_the_border(charts: Charts) -> None:
    draw = torch.Generator().manual_seed(1)
    chart = torch.arange(1, 25).repeat(12)
    uv = torch.rand(len(chart), 2, generator=draw, dtype=torch.float64)
    uv[::3] = 3 * uv[::3] - 1
    found = charts.decode(chart, uv)
    assert found.valid.all()
    for k in range(0, len(chart), 5):
        flat = np.pad(charts.uv[charts.charts == chart[k]].numpy(), ((0, 0), (0, 0), (0, 1)))
        at = np.append(uv[k].numpy(), 0)
        nearest = trimesh.triangles.closest_point(flat, np.tile(at, (len(flat), 1)))
        assert float(found.distance[k]) == pytest.approx(np.linalg.norm(nearest - at, axis=1).min(), abs=1e-9)
    _, there = charts.encode(found.face, found.barycentric)
    assert torch.allclose((there - uv).norm(dim=1), found.distance, atol=1e-9)
    assert float(found.distance[::3].max()) > 0.5
    assert torch.allclose(found.barycentric.sum(1), torch.ones(len(chart), dtype=torch.float64))
    assert (found.barycentric >= 0).all()


def test_where_there_is_no_point(charts: Charts) -> None:
    chart = torch.tensor([[0, 25, -1], [7, 7, 7]], dtype=torch.int16)
    uv = torch.full((2, 3, 2), 0.5)
    uv[1, 0, 0], uv[1, 1, 1] = torch.nan, torch.inf
    found = charts.decode(chart, uv)
    assert found.valid.tolist() == [[False] * 3, [False, False, True]]
    assert torch.isinf(found.distance[~found.valid]).all()
    assert not found.barycentric[~found.valid].any()
    assert not found.face[~found.valid].any()
    off = torch.nonzero(charts.charts == 0)[:2, 0]
    number, uv = charts.encode(torch.cat([off, torch.tensor([-1])]), torch.full((3, 3), 1 / 3))
    assert number.tolist() == [0, 0, 0]
    assert not uv.any()
    nothing = charts.decode(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4, 2))
    assert nothing.barycentric.shape == (0, 4, 3)


def test_charts_with_gaps_and_triangles_without_area() -> None:
    points = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    uv = np.array([[[0, 0], [1, 0], [1, 1]], [[0, 0], [0, 0.5], [0, 1]]], np.float32)
    flat = Charts(_mesh(points, [[0, 1, 2], [0, 2, 3]], charts=np.array([3, 3], np.uint8), chart_uv=uv))
    asked = torch.tensor([[0.5, 0.25], [0.0, 0.7], [0.1, 0.9]], dtype=torch.float64)
    found = flat.decode(torch.tensor([3, 3, 3]), asked)
    assert found.face.tolist() == [0, 1, 1]
    assert found.distance.tolist() == pytest.approx([0, 0, 0.1])
    assert not flat.decode(torch.tensor([4]), asked[:1]).valid.any()


def test_names_parts_and_sides(body: BodyModel, charts: Charts) -> None:
    assert charts.chart_to_part.tolist() == [0, *CHART_PARTS]
    middle = torch.from_numpy(body.data.v_template[body.data.faces].mean(1))
    for number, name in enumerate(CHART_NAMES, 1):
        part = PART_NAMES[CHART_PARTS[number - 1] - 1]
        assert part.split("_")[-1] in name
        mine = middle[charts.charts == number].mean(0)
        if "left" in name or "right" in name:
            assert ("left" in name) == ("left" in part) or part == "head"
            assert ("left" in name) == bool(mine[0] > 0)
        if name.endswith("_back"):
            front = CHART_NAMES.index(name.replace("_back", "_front")) + 1
            assert mine[2] < middle[charts.charts == front].mean(0)[2]


def test_made_once_for_each_body(body: BodyModel) -> None:
    assert Charts.of(body) is Charts.of(body.data) is Charts.of(body.to(torch.float32))
    assert body.data.charts is not None
    moved = replace(body.data, charts=np.roll(body.data.charts, 1))
    assert Charts.of(moved) is not Charts.of(body)
    with pytest.raises(ValueError, match=r"has no charts.*with_densepose_charts"):
        Charts.of(replace(body.data, charts=None))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.encode(torch.tensor([10**6]), torch.ones(1, 3)), "1000000.*expected rows 0"),
        (lambda c: c.encode(torch.tensor([-2]), torch.ones(1, 3)), "-2"),
    ],
)
def test_refusals(charts: Charts, call: Callable[[Charts], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(charts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_finds_what_the_cpu_finds(charts: Charts) -> None:
    chart, uv = charts.encode(*_random(charts, 3000))
    uv[::7] = 2 * uv[::7] - 0.5
    here, there = charts.decode(chart, uv), charts.decode(chart.cuda(), uv.cuda())
    assert there.face.is_cuda
    assert torch.allclose(there.distance.cpu(), here.distance, atol=1e-9)
    for one, other in zip(
        charts.encode(there.face, there.barycentric), charts.encode(here.face, here.barycentric), strict=True
    ):
        assert torch.allclose(one.cpu().double(), other.double(), atol=1e-9)


# ---- the official charts


def _write_mat(path: Path, data: BodyData, **changes: Any) -> Path:
    """The open body's own charts in the form of DensePose's file; faces on none are laid on chart 24."""
    scipy_io = pytest.importorskip("scipy.io", reason="SciPy is not installed")
    assert data.charts is not None
    assert data.chart_uv is not None
    chart = np.where(data.charts == 0, 24, data.charts).reshape(-1, 1)
    key = np.concatenate(
        [
            np.repeat(chart, 3, 1)[..., None],
            data.faces[..., None].astype(np.int64),
            np.round(data.chart_uv * 65536).astype(np.int64),
        ],
        -1,
    )
    rows, inverse = np.unique(key.reshape(-1, 4), axis=0, return_inverse=True)
    fields = {
        "All_FaceIndices": chart.astype(np.float64),
        "All_Faces": inverse.reshape(-1, 3) + 1.0,
        "All_U_norm": rows[:, 2:3] / 65536,
        "All_V_norm": rows[:, 3:4] / 65536,
        "All_vertices": rows[None, :, 1] + 1,
    }
    fields |= changes
    scipy_io.savemat(path, {name: value for name, value in fields.items() if value is not None})
    return path


@pytest.mark.parametrize("inside_out", [False, True])
def test_official_charts(body: BodyModel, charts: Charts, tmp_path: Path, inside_out: bool) -> None:
    source = body.data
    if inside_out:
        assert source.chart_uv is not None
        turned = source.chart_uv[:, ::-1].copy()
        source = replace(source, faces=source.faces[:, ::-1].copy(), chart_uv=turned)
    path = _write_mat(tmp_path / "UV_Processed.mat", source)
    plain = replace(body.data, charts=None, chart_uv=None, parts=None)
    dressed = with_densepose_charts(plain, path)
    assert np.array_equal(dressed.faces, body.data.faces)
    assert dressed.parts is not None
    assert dressed.parts.shape == (len(dressed.faces),)
    face, weights = _random(charts, 500)
    for one, other in zip(
        charts.encode(face, weights), Charts.of(dressed).encode(face, weights), strict=True
    ):
        assert torch.allclose(one.double(), other.double(), atol=1e-6)
    assert [part.dtype.kind for part in densepose_charts(path)] == ["i", "u", "f"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"All_Faces": None}, "All_Faces: no such field"),
        ({"All_Faces": "text"}, "All_Faces: ndarray, expected an array of numbers"),
        ({"All_Faces": np.ones((4, 2))}, r"\(4, 2\).*expected \(F, 3\)"),
        ({"All_U_norm": np.ones((5, 1))}, "5 U"),
        ({"All_FaceIndices": np.full((13756, 1), 25)}, "integers from 1 to 24"),
        ({"All_FaceIndices": np.full((13756, 1), 1.5)}, "integers from 1 to 24"),
    ],
)
def test_damaged_official_charts(
    body: BodyModel, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = _write_mat(tmp_path / "uv.mat", body.data, **changes)
    with pytest.raises(ValueError, match=message):
        with_densepose_charts(body.data, path)


def test_no_official_charts(body: BodyModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="densepose_uv_data"):
        densepose_charts(tmp_path / "UV_Processed.mat")
    (tmp_path / "UV_Processed.mat").write_bytes(b"PK and so on")
    with pytest.raises(ValueError, match="not a MATLAB 5 file"):
        densepose_charts(tmp_path / "UV_Processed.mat")
    path = _write_mat(tmp_path / "UV_Processed.mat", body.data)
    ball = trimesh.creation.icosphere(subdivisions=3)
    with pytest.raises(ValueError, match="is for 6890 vertices, but body mesh has 642"):
        with_densepose_charts(_mesh(ball.vertices, ball.faces), path)
    shuffled = replace(body.data, faces=np.random.default_rng(0).permutation(6890)[body.data.faces])
    with pytest.raises(ValueError, match="expected SMPL's mesh"):
        with_densepose_charts(shuffled, path)


# ---- distances along the surface


def _address(face: Any, weights: Any) -> SurfaceAddress:
    share = torch.as_tensor(weights, dtype=torch.float64)
    rows = torch.as_tensor(face, dtype=torch.int64)
    return SurfaceAddress(rows, share, torch.zeros(rows.shape), torch.ones(rows.shape, dtype=torch.bool))


def _pairs(data: BodyData, count: int, seed: int = 0) -> tuple[SurfaceAddress, SurfaceAddress]:
    draw = np.random.default_rng(seed)
    weights = draw.dirichlet([1, 1, 1], 2 * count)
    weights[::5] = np.eye(3)[draw.integers(0, 3, len(weights[::5]))]
    weights[1::5, 0] = 0
    weights /= weights.sum(1, keepdims=True)
    face = draw.integers(0, len(data.faces), 2 * count)
    return _address(face[:count], weights[:count]), _address(face[count:], weights[count:])


def _on(data: BodyData, points: SurfaceAddress) -> np.ndarray:
    return points.on(
        torch.from_numpy(data.v_template).double(), torch.from_numpy(data.faces.astype(np.int64))
    ).numpy()


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The unit square, flat, in 2 side^2 triangles."""
    y, x = np.mgrid[: side + 1, : side + 1]
    corner = (y[:-1, :-1] * (side + 1) + x[:-1, :-1]).reshape(-1, 1)
    faces = np.concatenate([corner + np.array([0, 1, side + 2]), corner + np.array([0, side + 2, side + 1])])
    return np.stack([x, y, 0 * x], -1).reshape(-1, 3) / side, faces


@pytest.fixture
def _library() -> None:
    pytest.importorskip("potpourri3d", reason="the extra [densepose] is not installed")


@pytest.mark.usefixtures("_library")
def test_distances_on_a_plate_flat_and_bent() -> None:
    points, faces = _grid(6)
    flat = _mesh(points, faces)
    a, b = _pairs(flat, 60)
    straight = np.linalg.norm(_on(flat, a) - _on(flat, b), axis=1)
    assert geodesic_distances(flat, a, b).numpy() == pytest.approx(straight, abs=1e-4)
    # Folded by a right angle at x = 1/2 no path on it becomes longer or shorter.
    bent = np.where(
        points[:, :1] > 0.5, np.stack([0 * points[:, 0] + 0.5, points[:, 1], points[:, 0] - 0.5], 1), points
    )
    assert geodesic_distances(_mesh(bent, faces), a, b).numpy() == pytest.approx(straight, abs=1e-4)
    both = geodesic_distances(flat, a, b, torch.from_numpy(bent))
    assert both.numpy() == pytest.approx(straight, abs=1e-4)


@pytest.mark.usefixtures("_library")
def test_distances_on_a_ball_are_great_circles() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4)
    data = _mesh(ball.vertices, ball.faces)
    a, b = _pairs(data, 80, seed=2)
    p, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (_on(data, a), _on(data, b)))
    circle = np.arctan2(np.linalg.norm(np.cross(p, q), axis=1), (p * q).sum(1))
    there, back = geodesic_distances(data, a, b).numpy(), geodesic_distances(data, b, a).numpy()
    assert there == pytest.approx(circle, rel=0.01)
    assert there == pytest.approx(back, rel=1e-4)


@pytest.mark.usefixtures("_library")
def test_distances_on_the_body(body: BodyModel) -> None:
    a, b = _pairs(body.data, 30, seed=3)
    apart = np.linalg.norm(_on(body.data, a) - _on(body.data, b), axis=1)
    there = geodesic_distances(body, a, b)
    assert (there.numpy() > apart - 1e-4).all()
    assert torch.allclose(there, geodesic_distances(body, b, a), atol=1e-4)
    assert (there < 3).all()
    assert not geodesic_distances(body, a, a).any()
    same = geodesic_distances(body, _address([5], [[1, 0, 0]]), _address([5], [[0, 0.5, 0.5]]))
    corner, *others = body.data.v_template[body.data.faces[5]].astype(np.float64)
    assert float(same[0]) == pytest.approx(float(np.linalg.norm(corner - np.mean(others, 0))), abs=1e-5)


@pytest.mark.usefixtures("_library")
def test_no_way_between_pieces_or_to_nowhere() -> None:
    points, faces = _grid(1)
    two = _mesh(np.concatenate([points, points + 2]), np.concatenate([faces, faces + len(points)]))
    a, b = (
        _address([[0], [0], [0]], np.full((3, 1, 3), 1 / 3)),
        _address([[1], [2], [1]], np.full((3, 1, 3), 1 / 3)),
    )
    b.valid[2] = False
    away = geodesic_distances(two, a, b)
    assert away.shape == (3, 1)
    assert torch.isfinite(away).tolist() == [[True], [False], [False]]
    nobody = _address(np.zeros(0, np.int64), np.zeros((0, 3)))
    assert geodesic_distances(two, nobody, nobody).shape == (0,)


@pytest.mark.usefixtures("_library")
def test_distances_refuse() -> None:
    points, faces = _grid(2)
    flat = _mesh(points, faces)
    a = _address([0], [[1, 0, 0]])
    with pytest.raises(ValueError, match="expected pairs"):
        geodesic_distances(flat, a, _address([0, 1], [[1, 0, 0]] * 2))
    with pytest.raises(ValueError, match="target has faces beyond the 8"):
        geodesic_distances(flat, a, _address([8], [[1, 0, 0]]))
    with pytest.raises(ValueError, match="finite"):
        geodesic_distances(flat, a, a, torch.full((9, 3), torch.nan))
    fan = _mesh([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, 0, 0]], [[0, 1, 2], [0, 1, 3], [0, 1, 4]])
    with pytest.raises(ValueError, match="two faces at most"):
        geodesic_distances(fan, a, _address([1], [[0, 0, 1]]))


def test_distances_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "potpourri3d", None)
    flat = _mesh(*_grid(1))
    with pytest.raises(ImportError, match=r"fitkit-body\[densepose\]"):
        geodesic_distances(flat, _address([0], [[1, 0, 0]]), _address([1], [[1, 0, 0]]))


# ---- scores


def test_geodesic_point_similarity() -> None:
    distance = torch.tensor([[0.0, 0.255, torch.inf], [0.51, torch.nan, 0.0]], dtype=torch.float64)
    expected = [(1 + math.exp(-0.5)) / 3, (math.exp(-2) + 1) / 3]
    assert gps(distance).tolist() == pytest.approx(expected)
    assert gps(distance[0]).shape == ()
    assert gps(distance, 2 * 0.255)[0] == pytest.approx((1 + math.exp(-0.125)) / 3)
    scales = torch.tensor([1.0, 0.255, 1.0], dtype=torch.float64).expand(2, 3)
    assert gps(distance, scales)[1] == pytest.approx((math.exp(-(0.51**2) / 2) + 1) / 3)
    assert math.isnan(gps(distance[0, :0]))
    both = gpsm(torch.tensor([0.5, 1.0, 0.0]), torch.tensor([0.5, 0.25, 1.0]))
    assert both.tolist() == pytest.approx([0.5, 0.5, 0])
    for wrong in (lambda: gps(-distance), lambda: gps(distance, 0.0), lambda: gpsm(distance[0], distance[0])):
        with pytest.raises(ValueError, match=r"expected|outside"):
            wrong()

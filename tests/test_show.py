"""Pictures, meshes, plots and the report: what is in them, read back with other programs."""

from __future__ import annotations

import base64
import csv
import dataclasses
import enum
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from fitkit import show
from fitkit.show.inputs import vertex_normals

F, C, W, H = np.array([200.0, 200.0]), np.array([80.0, 60.0]), 160, 120


def _balls() -> tuple[np.ndarray, np.ndarray]:
    """Two people as balls of radius 0.3 m at 2 and 3 m, the first before the second; (2, V, 3), faces."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.3)
    points = np.asarray(ball.vertices)
    return np.stack([points, points]) + np.array([[[0.0, 0.0, 2.0]], [[0.25, 0.0, 3.0]]]), np.asarray(
        ball.faces
    )


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)


def _trace(moments: int = 6, people: int = 2) -> dict[str, Any]:
    values = {
        "keypoints": np.geomspace(100, 1, moments)[:, None] * np.ones(people),
        "limits": np.zeros((moments, people)),
    }
    values["limits"][min(2, moments - 1), 0] = np.nan
    return {
        "step": [0, 1, 2, 0, 1, 2][:moments],
        "seconds": np.linspace(0, 0.1, moments).tolist(),
        "stage": (["lm"] * 3 + ["lbfgs"] * 3)[:moments],
        "values": values,
        "energy": torch.from_numpy(values["keypoints"]),
    }


# ---- pictures


def test_overlay_draws_bodies_where_the_camera_sees_them(photo: np.ndarray) -> None:
    bodies, faces = _balls()
    colors = np.array([[255, 0, 0], [0, 0, 255]])
    drawn = show.overlay(photo, bodies, faces, F, C, colors=colors, opacity=1.0)
    assert drawn.shape == photo.shape
    assert drawn.dtype == np.uint8
    middle, right = drawn[60, 80].astype(int), drawn[60, 80 + 32].astype(int)
    assert middle[0] > 200 > 100 > middle[2]  # lit from the camera: neither black nor the one behind
    assert right[2] > 120
    assert right[0] < 100
    columns = np.arange(W) + 0.5
    outside = (columns < 80 - 32) | (columns > 80 + 40)
    assert np.array_equal(drawn[:, outside], photo[:, outside])
    changed = (drawn != photo).any(-1)
    assert changed[:, :80].sum() == pytest.approx(np.pi * (200 * 0.3 / np.sqrt(4 - 0.09)) ** 2 / 2, rel=0.06)


def test_overlay_takes_tensors_lists_and_rows_and_shrinks_with_the_camera(photo: np.ndarray) -> None:
    bodies, faces = _balls()
    full = show.overlay(photo, bodies, faces, F, C)
    rows = torch.from_numpy(np.stack([F, F]))
    same = show.overlay(photo, list(torch.from_numpy(bodies)), torch.from_numpy(faces), rows, C)
    assert np.array_equal(full, same)
    large = np.zeros((2 * H, 2 * W, 3), np.uint8)
    small = show.overlay(large, bodies, faces, 2 * F, 2 * C, max_side=W)
    plain = show.overlay(np.zeros_like(photo), bodies, faces, F, C)
    assert np.array_equal(small, plain)
    assert np.array_equal(show.overlay(photo, bodies, faces, F, C, opacity=0.0), photo)
    assert np.array_equal(show.overlay(photo, bodies[:0], faces, F, C), photo)
    with pytest.raises(ValueError, match="focal must be the same for all people"):
        show.overlay(photo, bodies, faces, rows * torch.tensor([[1.0], [2.0]]), C)
    with pytest.raises(ValueError, match=r"photo must be \(H, W, 3\) uint8"):
        show.overlay(photo / 255.0, bodies, faces, F, C)


def test_normals_of_a_ball_point_away_from_its_middle() -> None:
    bodies, faces = _balls()
    away = (bodies[0] - np.array([0.0, 0.0, 2.0])) / 0.3
    assert (vertex_normals(bodies, faces)[0] * away).sum(-1).min() > 0.999


def test_side_view_shows_depth_to_the_right_and_far_at_the_top() -> None:
    bodies, faces = _balls()
    colors = np.array([[255, 0, 0], [0, 0, 255]])
    picture = show.side_view(bodies, faces, colors=colors, height=300).astype(int)
    red, blue = (picture[..., 0] - picture[..., 2] > 60), (picture[..., 2] - picture[..., 0] > 60)
    gap = int(np.flatnonzero((picture == 255).all((0, 2)))[0])
    assert np.nonzero(red[:, :gap])[1].mean() + 30 < np.nonzero(blue[:, :gap])[1].mean()
    assert np.nonzero(red[:, gap:])[0].mean() > np.nonzero(blue[:, gap:])[0].mean() + 30
    assert np.nonzero(red[:, gap:])[1].mean() < np.nonzero(blue[:, gap:])[1].mean()
    side = [np.ptp(np.nonzero(red[:, :gap])[axis]) for axis in (0, 1)]
    assert side[0] == pytest.approx(side[1], abs=2)  # a ball stays round


def test_keypoints_of_confidence_zero_are_not_drawn() -> None:
    ground = np.zeros((H, W, 3), np.uint8)
    xy = np.array([[[20.0, 20.0], [60.0, 20.0], [100.0, 100.0], [np.nan, 5.0], [1e12, 4.0]]])
    drawn = show.draw_keypoints(ground, xy, np.array([[1.0, 0.3, 0.0, 1.0, 1.0]]), [(0, 1), (1, 2), (0, 4)])
    assert drawn[20, 20].sum() > drawn[20, 60].sum() > 0
    assert drawn[20, 30].any()
    assert not drawn[60:].any()
    with pytest.raises(ValueError, match=r"edges must name keypoints 0\.\.4"):
        show.draw_keypoints(ground, xy, np.ones((1, 5)), [(0, 5)])


# ---- meshes


def test_glb_loads_again_the_right_way_up(tmp_path: Path) -> None:
    bodies, faces = _balls()
    mesh: Any = trimesh.load(
        show.write_glb(tmp_path / "body.glb", bodies[1], faces, color=(255, 0, 0)),
        force="mesh",
        process=False,
    )
    np.testing.assert_allclose(mesh.vertices, bodies[1] * [1, -1, -1], atol=1e-6)
    assert np.array_equal(mesh.faces, faces)
    middle = np.array([0.25, 0.0, -3.0])
    assert (mesh.vertex_normals * (mesh.vertices - middle) / 0.3).sum(-1).min() > 0.99
    assert mesh.volume > 0
    np.testing.assert_allclose(mesh.visual.material.baseColorFactor, [255, 0, 0, 255], atol=1)
    assert b'"NORMAL"' in (tmp_path / "body.glb").read_bytes()

    parts = np.where(bodies[1][:, :1] > 0.25, [[255, 0, 0]], [[0, 255, 0]])
    painted: Any = trimesh.load(
        show.write_glb(tmp_path / "parts.glb", bodies[1], faces, color=parts), force="mesh", process=False
    )
    assert np.array_equal(painted.visual.vertex_colors[:, :3], parts)


def test_a_scene_keeps_everybody_apart_by_name(tmp_path: Path) -> None:
    bodies, faces = _balls()
    scene: Any = trimesh.load(show.scene_glb(tmp_path / "all.glb", bodies, faces))
    assert set(scene.geometry) == {"person_0", "person_1"}
    everything = bodies * [1, -1, -1]
    np.testing.assert_allclose(scene.bounds, [everything.min((0, 1)), everything.max((0, 1))], atol=1e-5)
    with pytest.raises(ValueError, match="at least one body"):
        show.scene_glb(tmp_path / "none.glb", bodies[:0], faces)
    with pytest.raises(ValueError, match="must be finite"):
        show.scene_glb(tmp_path / "nan.glb", bodies * np.nan, faces)
    assert [file.name for file in tmp_path.iterdir()] == ["all.glb"]


def test_obj_loads_again(tmp_path: Path) -> None:
    bodies, faces = _balls()
    mesh: Any = trimesh.load(
        show.write_obj(tmp_path / "body.obj", bodies[0], faces), process=False, maintain_order=True
    )
    np.testing.assert_allclose(mesh.vertices, bodies[0] * [1, -1, -1], atol=1e-6)
    assert np.array_equal(mesh.faces, faces)


# ---- traces


@pytest.mark.parametrize(("moments", "people"), [(6, 2), (1, 1), (6, 20)])
def test_trace_plot_is_a_picture_and_leaves_pyplot_alone(tmp_path: Path, moments: int, people: int) -> None:
    from matplotlib import pyplot

    path = show.trace_plot(tmp_path / "trace.png", _trace(moments, people))
    assert np.asarray(Image.open(path)).std() > 5
    assert pyplot.get_fignums() == []
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf"):
        show.trace_plot(tmp_path / "trace.txt", _trace())
    with pytest.raises(ValueError, match="trace has no energy"):
        show.trace_plot(path, {key: part for key, part in _trace().items() if key != "energy"})


def test_trace_table_has_a_row_per_moment_and_person(tmp_path: Path) -> None:
    with show.write_trace_table(tmp_path / "trace.csv", _trace()).open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "seconds", "stage", "person", "energy", "keypoints", "limits"]
    assert [(row["step"], row["stage"], row["person"]) for row in rows[4:7]] == [
        ("2", "lm", "0"),
        ("2", "lm", "1"),
        ("0", "lbfgs", "0"),
    ]
    assert float(rows[-1]["energy"]) == pytest.approx(1.0)
    assert rows[4]["limits"] == ""


# ---- the report


def test_report_stands_alone_and_escapes_what_it_is_told(tmp_path: Path, photo: np.ndarray) -> None:
    bodies, faces = _balls()
    evil = "<script>alert('1')</script> & \"a\" \udcff.jpg"
    path = show.write_report(
        tmp_path / "report.html",
        photo=photo,
        vertices=bodies,
        faces=faces,
        focal=F,
        center=C,
        title=evil,
        people=[{"status": evil, "energy": 1.5}, {"energy": float("nan"), "height (m)": torch.tensor(1.71)}],
        settings={evil: {"a": [1, 2.0]}},
        overlay=show.overlay(photo, bodies, faces, F, C),
        views=show.side_view(bodies, faces),
        trace=show.trace_plot(tmp_path / "trace.png", _trace()),
    )
    page = path.read_text("utf-8")
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt; &amp; &quot;a&quot;") == 4
    addresses = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?([^"'\s>]{0,40})""", page)
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)
    assert not re.search(r"https?://|@import|fetch\(|XMLHttpRequest", page)
    assert "1.71" in page

    found = re.search(r'<script type="application/json" id="scene">(.*?)</script>', page, re.DOTALL)
    assert found
    scene = json.loads(found[1])
    assert scene["people"] == 2
    assert scene["size"] == [W, H]
    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(scene["vertices"]), "<f4").reshape(bodies.shape), bodies, atol=1e-6
    )
    assert np.array_equal(np.frombuffer(base64.b64decode(scene["faces"]), "<u4").reshape(-1, 3), faces)


def test_report_leaves_out_what_is_not_there(tmp_path: Path, photo: np.ndarray) -> None:
    bodies, faces = _balls()
    bodies[0, 3] = np.nan
    common: dict[str, Any] = {
        "photo": photo,
        "faces": faces,
        "focal": F,
        "center": C,
        "title": "t",
        "settings": {},
    }
    path = show.write_report(
        tmp_path / "a.html", vertices=bodies, people=[{}, {}], names=["p 4", "p<7"], **common
    )
    page = path.read_text("utf-8")
    assert "p 4</th>" in page
    assert "p&lt;7</th>" in page
    assert '"people": 1' in page
    assert "Course of the fit" not in page
    page = show.write_report(tmp_path / "b.html", vertices=bodies[:0], people=[], **common).read_text("utf-8")
    assert "0 people" in page
    with pytest.raises(ValueError, match="one entry per body, got 1 for 2"):
        show.write_report(tmp_path / "c.html", vertices=bodies, people=[{}], **common)


# ---- files


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.bin"
    show.atomic_write(path, b"old")

    def broken(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        show.atomic_write(path, broken)
    assert path.read_bytes() == b"old"
    show.atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["result.bin"]


def test_an_output_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    assert show.output_folder(tmp_path / "a" / "b").is_dir()
    file = show.atomic_write(tmp_path / "file", b"")
    with pytest.raises(OSError, match=re.escape(str(file))):
        show.output_folder(file)
    with pytest.raises(OSError, match=re.escape(str(file / "below"))):
        show.output_folder(file / "below")
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "none" / "x.json"))):
        show.write_json(tmp_path / "none" / "x.json", {})


class _Stop(enum.Enum):
    DONE = "converged"


@dataclasses.dataclass
class _Row:
    energy: float
    stop: _Stop


def test_json_is_strict_and_plain(tmp_path: Path) -> None:
    content = {
        "tensor": torch.tensor([[1.0, float("nan")]], requires_grad=True),
        "array": np.array([np.inf, 2.0]),
        1: (np.float32(0.5), np.int64(3), True, None),
        "row": _Row(float("-inf"), _Stop.DONE),
        "path": Path("a") / "\udcffö.jpg",
    }
    text = show.write_json(tmp_path / "x.json", content).read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "tensor": [[1.0, None]],
        "array": [None, 2.0],
        "1": [0.5, 3, True, None],
        "row": {"energy": None, "stop": "converged"},
        "path": "a/\udcffö.jpg",
    }
    with pytest.raises(TypeError, match="cannot write object as JSON"):
        show.write_json(tmp_path / "y.json", {"x": object()})

"""Texture transfer: every colour where its u and v say, and nothing else touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fitkit.body import BodyModel
from fitkit.body.charts import Charts
from fitkit.render import Raster, rasterize
from fitkit.show.texture import atlas_template, paint_texture, tiles

F, C, W, H = np.array([300.0, 300.0]), np.array([70.0, 100.0]), 140, 200


@pytest.fixture(scope="module")
def charts(body: BodyModel) -> Charts:
    return Charts.of(body)


@pytest.fixture(scope="module")
def standing(body: BodyModel) -> np.ndarray:
    """In the T-pose, upright, face to the camera; the left arm is on the right of the picture."""
    points = np.asarray(body.data.v_template, np.float64) * [1, -1, -1]
    return np.asarray(points + np.array([0, -0.15, 3.0]))


@pytest.fixture(scope="module")
def raster(charts: Charts, standing: np.ndarray) -> Raster:
    return rasterize(standing, charts.faces, F, C, W, H)


def _atlas(paint: Callable[[int, np.ndarray, np.ndarray], Any], size: int = 50) -> np.ndarray:
    """An atlas whose tile k is `paint(k, u, v)`: a colour, or one for each pixel."""
    u, v = np.meshgrid((np.arange(size) + 0.5) / size, 1 - (np.arange(size) + 0.5) / size)
    one = np.asarray(paint(1, u, v))
    out = np.zeros((6 * size, 4 * size, one.shape[-1]), np.uint8)
    for chart in range(1, 25):
        column, row = divmod(chart - 1, 6)
        out[row * size : (row + 1) * size, column * size : (column + 1) * size] = paint(chart, u, v)
    return out


def _photo(level: int = 90) -> np.ndarray:
    return np.full((H, W, 3), level, np.uint8)


def _chart(charts: Charts, raster: Raster) -> np.ndarray:
    return charts.encode(raster.face, raster.barycentric)[0].numpy()


def _inner(chart: np.ndarray) -> np.ndarray:
    """Pixels whose neighbours all lie on the same chart."""
    same = np.zeros_like(chart, bool)
    middle = chart[1:-1, 1:-1]
    same[1:-1, 1:-1] = (middle > 0) & np.all(
        [chart[1 + dy : H - 1 + dy, 1 + dx : W - 1 + dx] == middle for dy in (-1, 0, 1) for dx in (-1, 0, 1)],
        0,
    )
    return same


def test_each_chart_takes_its_own_tile(charts: Charts, standing: np.ndarray, raster: Raster) -> None:
    atlas = _atlas(lambda k, u, v: (10 * k, 255 - 10 * k, 7 * k))
    drawn = paint_texture(_photo(), standing, charts, F, C, atlas, shade=False)
    chart = _chart(charts, raster)
    for k in np.unique(chart[chart > 0]):
        seen = _inner(chart) & (chart == k)
        assert (drawn[seen] == [10 * k, 255 - 10 * k, 7 * k]).all()
    assert len(np.unique(chart)) > 12
    # Seen from the front: its own right hand (chart 3) on the left of the picture, the head above the feet.
    columns, rows = (np.broadcast_to(one, (H, W)) for one in np.ogrid[:H, :W][::-1])
    assert columns[chart == 3].max() < columns[chart == 2].min() < columns[chart == 4].min()
    assert rows[chart == 24].max() < rows[chart == 5].min()


def test_u_runs_right_and_v_up(charts: Charts, standing: np.ndarray, raster: Raster) -> None:
    atlas = _atlas(lambda k, u, v: np.stack([255 * u, 255 * v, 0 * u], -1), 100)
    drawn = paint_texture(_photo(), standing, charts, F, C, atlas, shade=False).astype(float)
    chart, uv = (one.numpy() for one in charts.encode(raster.face, raster.barycentric))
    seen = _inner(chart) & np.isin(chart, [2, 9, 10, 13, 14])
    off = np.abs(drawn[seen][:, :2] / 255 - uv[seen])
    assert np.median(off) < 0.01
    assert np.quantile(off, 0.9) < 0.05
    torso = np.argwhere(seen & (chart == 2))
    for channel, axis, sign in ((0, 1, 1), (1, 0, -1)):
        slope = np.polyfit(torso[:, axis], drawn[torso[:, 0], torso[:, 1], channel], 1)[0]
        assert sign * slope > 0.5


def test_tiles_do_not_bleed(charts: Charts, standing: np.ndarray, raster: Raster) -> None:
    """Every tile is white, and black where its neighbours' tiles begin: only colours of its own may be seen."""
    atlas = _atlas(lambda k, u, v: (255, 255, 255) if k == 2 else (0, 0, 0), 8)
    drawn = paint_texture(_photo(0), standing, charts, F, C, atlas, shade=False)
    chart = _chart(charts, raster)
    assert (drawn[_inner(chart) & (chart == 2)] == 255).all()
    assert (drawn[_inner(chart) & (chart != 2)] == 0).all()


def test_nothing_else_is_touched(charts: Charts, standing: np.ndarray, raster: Raster) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    red = _atlas(lambda k, u, v: (255, 0, 0, 255 if k == 2 else 0))
    before = photo.copy()
    drawn = paint_texture(photo, torch.from_numpy(standing), charts, F, C, red)
    assert np.array_equal(photo, before)
    chart = _chart(charts, raster)
    empty = _inner(np.where(chart == 2, 0, chart + 100))
    assert np.array_equal(drawn[empty], photo[empty])
    assert np.array_equal(paint_texture(photo, standing, charts, F, C, red, opacity=0.0), photo)
    assert np.array_equal(paint_texture(photo, standing[None][:0], charts, F, C, red), photo)
    assert np.array_equal(paint_texture(photo, standing - np.array([0, 0, 9]), charts, F, C, red), photo)
    half = paint_texture(photo, standing, charts, F, C, red, opacity=0.5, shade=False).astype(float)
    torso = _inner(chart) & (chart == 2)
    assert half[torso] == pytest.approx((photo[torso] + np.array([255.0, 0, 0])) / 2, abs=1)


def test_half_transparent_texture_and_the_one_in_front(
    charts: Charts, standing: np.ndarray, raster: Raster
) -> None:
    photo, chart = _photo(200), _chart(charts, raster)
    glass = _atlas(lambda k, u, v: (0, 0, 0, 51))
    torso = _inner(chart) & (chart == 2)
    seen = paint_texture(photo, standing, charts, F, C, glass, shade=False)[torso]
    assert (seen == 160).all()
    two = np.stack([standing * [1, 1, 1.5], standing])
    assert (paint_texture(photo, two, charts, F, C, glass, shade=False)[torso] == 160).all()


def test_far_away_a_fine_pattern_is_its_mean(charts: Charts, standing: np.ndarray) -> None:
    fine = _atlas(
        lambda k, u, v: np.repeat(255 * ((200 * u + 200 * v).astype(int) % 2)[..., None], 3, -1), 400
    )
    far = standing + np.array([0, 0, 5.0])
    drawn = paint_texture(_photo(0), far, charts, F, C, fine, shade=False)
    chart = _chart(charts, rasterize(far, charts.faces, F, C, W, H))
    torso = drawn[_inner(chart) & (chart == 2)].astype(float)
    assert len(torso) > 50
    assert abs(torso.mean() - 127) < 8
    assert torso.std() < 12


@pytest.mark.parametrize("side", [-1, 1])
def test_light_of_the_photo_falls_on_the_texture(
    charts: Charts, standing: np.ndarray, raster: Raster, side: int
) -> None:
    points = standing[charts.faces.numpy()]
    normals = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    lit = 60 + 120 * np.clip(normals @ (np.array([side, 0, -1.0]) / 2**0.5), 0, None)
    photo = _photo()
    photo[raster.mask.numpy()] = lit[raster.face[raster.mask].numpy()][:, None]
    grey = _atlas(lambda k, u, v: (120, 120, 120))
    chart = _chart(charts, raster)
    torso = np.argwhere(_inner(chart) & (chart == 2))
    level = paint_texture(photo, standing, charts, F, C, grey)[torso[:, 0], torso[:, 1], 0].astype(float)
    assert side * np.polyfit(torso[:, 1], level, 1)[0] > 0.3
    assert 90 < level.mean() < 150
    flat = paint_texture(photo, standing, charts, F, C, grey, shade=False)[torso[:, 0], torso[:, 1]]
    assert (flat == 120).all()


def test_windows_do_not_show(charts: Charts, standing: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas = _atlas(lambda k, u, v: np.stack([255 * u, 255 * v, 9.0 * k + 0 * u], -1))
    whole = paint_texture(_photo(), standing, charts, F, C, atlas)
    monkeypatch.setattr("fitkit.show.texture._AT_ONCE", 5000)
    assert np.array_equal(paint_texture(_photo(), standing, charts, F, C, atlas), whole)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [1, 50])
def test_tiles(channels: int, size: int) -> None:
    atlas = np.random.default_rng(0).integers(0, 256, (6 * size, 4 * size, channels), dtype=np.uint8)
    cut = tiles(atlas)
    assert cut.shape == (24, size, size, 4)
    assert np.array_equal(cut[6 * 2 + 3, ..., :channels], atlas[3 * size : 4 * size, 2 * size : 3 * size])
    assert channels == 4 or (cut[..., 3] == 255).all()


@pytest.mark.parametrize(
    ("atlas", "message"),
    [
        (np.zeros((800, 1200, 3), np.uint8), "1200 x 800 pixels.*four columns and six rows"),
        (np.zeros((1201, 800, 3), np.uint8), "800 x 1201 pixels, expected.*such as 800 x 1200"),
        (np.zeros((0, 0, 3), np.uint8), "0 x 0 pixels"),
        (np.zeros((1200, 800), np.uint8), r"\(1200, 800\)"),
        (np.zeros((12, 8, 2), np.uint8), r"\(12, 8, 2\)"),
        (np.zeros((12, 8, 3)), "float64"),
    ],
)
def test_no_atlas(charts: Charts, standing: np.ndarray, atlas: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paint_texture(_photo(), standing, charts, F, C, atlas)


def test_other_refusals(charts: Charts, standing: np.ndarray) -> None:
    atlas = np.zeros((12, 8, 3), np.uint8)
    for wrong, message in (
        (lambda: paint_texture(_photo(), standing, charts, F, C, atlas, opacity=1.5), "opacity.*1.5"),
        (lambda: paint_texture(_photo(), standing[:100], charts, F, C, atlas), "not of body open"),
        (lambda: paint_texture(_photo()[..., :2], standing, charts, F, C, atlas), "photo must be"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_template_marks_every_chart(body: BodyModel, charts: Charts) -> None:
    picture = atlas_template(body, 64)
    assert picture.shape == (384, 256, 3)
    v, u = np.mgrid[:64, :64]
    for chart, tile in enumerate(tiles(picture), 1):
        blank = np.ptp(tile[..., :3].astype(int), axis=-1) < 10
        at = torch.from_numpy(np.stack([(u + 0.5) / 64, 1 - (v + 0.5) / 64], -1).reshape(-1, 2))
        away = charts.decode(torch.full((64 * 64,), chart), at).distance.view(64, 64).numpy()
        assert blank[away == 0].mean() < 0.05
        if (away > 0.05).sum() > 200:  # more than its outline covers
            assert blank[away > 0.05].mean() > 0.3
    with pytest.raises(ValueError, match="tile of 8 pixels"):
        atlas_template(body, 8)
    assert atlas_template(body.data, 32).shape == (192, 128, 3)

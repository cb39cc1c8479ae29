"""Maps of people, the windows that they are read in, points of the skin, and the maps of known bodies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import config
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree
from torch import Tensor

import fitkit
from fitkit.body.charts import CHART_PARTS, Charts
from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.coordinates import Tangent, retract
from fitkit.maps import Correspondences, IUVMap, IUVPoints, NormalMap, PartMap, window
from fitkit.objectives.view import distance_to, mask_in_view, softened, view_of
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.render import soft_rasterize
from fitkit.simulate import simulate_maps
from fitkit.state import State
from tests.test_kinematics import CASES, VERTICES, Case, _random_body, _random_state

PEOPLE, SIZE = 3, 48
MakePeople = Callable[..., tuple[State, Observation]]


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture(scope="module")
def seen(body: BodyModel, people: MakePeople) -> tuple[State, Observation]:
    """Bodies, the second of them half outside of the photo, and their maps."""
    state, observation = people(PEOPLE)
    aside = torch.zeros(PEOPLE, 3, dtype=torch.float64)
    aside[1, 0] = 2.0 - state.transl[1, 0]
    state = replace(state, transl=state.transl + aside)
    return state, simulate_maps(body, state, observation, SIZE)


# -- points of the skin ------------------------------------------------------------------------------------------


def _points(body: BodyModel, people: int, corners: int) -> tuple[Tensor, Tensor]:
    vertex = (_draw(people, 7, corners, seed=corners) * VERTICES).long()
    share = _draw(people, 7, corners, seed=corners + 10) + 0.1
    return vertex, share / share.sum(-1, keepdim=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("corners", [1, 3])
def test_points_of_the_skin_are_mixtures_of_vertices(case: Case, corners: int) -> None:
    body = _random_body(case.joints, correctives=True)
    state = _random_state(body, 4, *case.extra, betas=case.betas)
    vertex, share = _points(body, 4, corners)
    row = torch.arange(4)[:, None, None]
    expected = (body.vertices(state)[row, vertex] * share[..., None]).sum(2)
    pred = Prediction(body, state, Camera.from_size(100, 100).expand(4))
    torch.testing.assert_close(pred.surface(pred.skin(vertex, share)), expected, atol=1e-12, rtol=0)
    if corners == 1:
        alone = pred.vertex_skin(vertex[..., 0])
        torch.testing.assert_close(pred.surface(alone), expected, atol=1e-12, rtol=0)
    rough = Prediction(body.to(torch.float32), state.to(torch.float32), pred.camera)
    found = rough.surface(rough.skin(vertex, share.float()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("corners", [1, 3])
def test_jacobian_of_the_skin_is_the_finite_difference(case: Case, corners: int) -> None:
    """Of all columns; frozen blocks have none, and the others are what they were."""
    body = _random_body(case.joints, correctives=True)
    state = _random_state(body, 2, *case.extra, betas=case.betas)
    vertex, share = _points(body, 2, corners)
    blocks = Tangent(state, None).blocks
    pred = Prediction(body, state, Camera.from_size(100, 100).expand(2), blocks)
    skin = pred.skin(vertex, share)
    place, jacobian = pred.surface_jacobian(skin)
    torch.testing.assert_close(place, pred.surface(skin), atol=1e-12, rtol=0)

    def at(x: Tensor) -> Tensor:
        return skin.positions(body.pose(retract(state, x.expand(2, -1), blocks)))

    step = 1e-6
    for column, direction in enumerate(step * torch.eye(jacobian.shape[-1], dtype=torch.float64)):
        slope = (at(direction) - at(-direction)) / (2 * step)
        torch.testing.assert_close(jacobian[..., column], slope, atol=2e-8, rtol=0)
    for free in (("body_pose", "transl"), ("betas",), ("global_orient", *case.extra)):
        some = Tangent(state, free).blocks
        part = Prediction(body, state, pred.camera, some).surface_jacobian(skin)[1]
        for name, columns in some.items():
            torch.testing.assert_close(part[..., columns], jacobian[..., blocks[name]], atol=1e-12, rtol=0)
        assert part.shape[-1] == max(columns.stop for columns in some.values())


# -- windows -----------------------------------------------------------------------------------------------------


def test_windows_are_averages_of_pixels() -> None:
    values, box = _draw(2, 3, 24, 24), _boxes([10, 20, 48, 48], [-7, 3, 5, 5])
    shrunk = torch.nn.functional.avg_pool2d(values, 4)
    torch.testing.assert_close(window(values, box, box, 6), shrunk, atol=1e-6, rtol=0)
    moved = box + box[:, 2:].repeat(1, 2) * torch.tensor([1 / 3, 0.5, 0, 0])
    torch.testing.assert_close(
        window(values, box, moved, 6)[..., :3, :4], shrunk[..., 3:, 2:], atol=1e-6, rtol=0
    )


def test_a_window_of_a_ramp_is_the_ramp() -> None:
    """Whatever the sizes and the boxes: it says where it is, to half a pixel of the map."""
    x, y = torch.meshgrid(torch.arange(20.0) + 0.5, torch.arange(16.0) + 0.5, indexing="xy")
    box, target = _boxes([5, -3, 40, 48]), _boxes([12, 7, 20, 14])
    ramp = torch.stack([5 + 2 * x, -3 + 3 * y])[None].double()
    found = window(ramp, box, target, 9)
    step = (torch.arange(9.0) + 0.5) / 9
    expected = torch.stack(
        [(12 + 20 * step).expand(9, 9), (7 + 14 * step)[:, None].expand(9, 9)],
    )[None].double()
    assert ((found - expected).abs() < torch.tensor([1.0, 1.5])[:, None, None]).all()


def test_windows_are_zero_outside_or_go_on_straight() -> None:
    values, box = _draw(1, 1, 8, 8) + 1, _boxes([0, 0, 8, 8])
    twice = _boxes([-8, -8, 24, 24])
    found = window(values, box, twice, 6)[0, 0]
    outside = torch.ones(6, 6, dtype=torch.bool)
    outside[2:4, 2:4] = False
    assert (found[outside] == 0).all()
    torch.testing.assert_close(
        found[2:4, 2:4], torch.nn.functional.avg_pool2d(values, 4)[0, 0], atol=1e-6, rtol=0
    )


def test_windows_of_people_do_not_know_each_other() -> None:
    values = _draw(3, 2, 10, 14)
    box = _boxes([0, 0, 10, 14], [100, 50, 30, 70], [-5, -5, 1, 1])
    target = _boxes([3, -4, 5, 5], [90, 60, 60, 60], [-4.7, -4.9, 0.3, 0.3])
    whole = window(values, box, target, 7)
    for k in range(3):
        one = slice(k, k + 1)
        torch.testing.assert_close(window(values[one], box[one], target[one], 7)[0], whole[k])


@pytest.mark.parametrize("reach", [None, 1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (5, 12), (13, 4)])
def test_distances_are_euclidean(shape: tuple[int, int], reach: int | None) -> None:
    """As far as they are asked for; beyond, and from a region that is empty, twice as far, as documented."""
    region = _draw(7, *shape, seed=3) < torch.tensor([0.02, 0.1, 0.3, 0.9, 1.0, 0.0, 0.05])[:, None, None]
    region[6] = False
    region[6, 0, 0] = True
    found, limit = distance_to(region, reach), max(shape) if reach is None else reach
    for here, there in zip(region.numpy(), found.numpy(), strict=True):
        expected = distance_transform_edt(~here) if here.any() else np.full(shape, np.inf)
        expected = np.where(expected > limit, 2.0 * limit, expected)
        np.testing.assert_allclose(there, expected, rtol=1e-6, atol=0)
        assert np.array_equal(np.rint(there**2), np.rint(expected**2))


@pytest.mark.parametrize("softness", [0.2, 0.35, 1.0])
def test_a_softened_mask_is_what_the_soft_rasteriser_draws(
    body: BodyModel, seen: tuple[State, Observation], softness: float
) -> None:
    """Better than the plain mask, which the rasteriser outgrows by about two softnesses."""
    state, observation = seen
    size = 40
    view = view_of(observation, "mask", size)
    drawn = soft_rasterize(
        body.vertices(state), body.faces, view.camera, softness=softness, backend="torch"
    ).silhouette
    soft = softened(
        mask_in_view(observation, 2 * size),
        view_of(observation, "mask", 2 * size).known,
        size,
        softness,
        len(body.faces),
    )
    plain = mask_in_view(observation, size)

    def overlap(mask: Tensor) -> Tensor:
        """Intersection over union of fuzzy sets, 1 of a picture with itself."""
        both, either = torch.minimum(drawn, mask), torch.maximum(drawn, mask)
        return (both * view.known).sum((1, 2)) / (either * view.known).sum((1, 2))

    assert (overlap(soft) > 0.85).all(), overlap(soft)
    assert (overlap(soft) > overlap(plain)).all()
    away = ((drawn - soft).abs() * view.known).mean((1, 2))
    assert (away < ((drawn - plain).abs() * view.known).mean((1, 2))).all()
    assert (away < 0.04).all()


def test_a_view_holds_its_person_and_some_room(body: BodyModel, seen: tuple[State, Observation]) -> None:
    state, observation = seen
    pixels, view = observation.camera.project(body.vertices(state)), view_of(observation, "mask", 16)
    whole = observation.camera.frame
    low = pixels.amin(1).maximum(whole[:, :2])
    high = pixels.amax(1).minimum(whole[:, 2:])
    assert (view.box[:, :2] < low).all()
    assert (view.box[:, :2] + view.box[:, 2:] > high).all()
    complete = [0, 2]
    torch.testing.assert_close(view.box[complete, 2], 1.4 * (high - low).amax(1)[complete], rtol=0.05, atol=0)
    assert (float(view.known[1].amin()), float(view.known.amax())) == (0, 1)
    assert view.camera.width == view.camera.height == 16
    assert observation.mask is not None
    nobody = torch.zeros_like(observation.mask)
    empty = replace(observation, mask=nobody, parts=None, iuv=None, normals=None)
    torch.testing.assert_close(view_of(empty, "mask", 16).box[:, 2], 1.4 * whole[:, 2])


# -- nouns -------------------------------------------------------------------------------------------------------


def test_points_of_a_map_are_the_same_spread_foreground_pixels() -> None:
    chart = torch.zeros(2, 40, 30, dtype=torch.int64)
    chart[0, 5:35, 3:27], chart[1, 10:13, 2:5] = 7, 2
    confidence = torch.ones(2, 40, 30, dtype=torch.float64)
    confidence[0, 20:, :] = 0
    uv, box = _draw(2, 2, 40, 30), _boxes([100, 200, 60, 160], [0, 0, 30, 40])
    map_ = IUVMap(chart, uv, box, confidence, "open-1")
    points = map_.points(50)
    for first, second in zip(points.__dict__.values(), map_.points(50).__dict__.values(), strict=True):
        assert first is second or torch.equal(first, second)
    there = points.confidence > 0
    assert there.sum(1).tolist() == [50, 9]
    assert (points.chart > 0).equal(there)
    column = (points.xy[..., 0] - box[:, :1]) / box[:, 2:3] * 30 - 0.5
    row = (points.xy[..., 1] - box[:, 1:2]) / box[:, 3:] * 40 - 0.5
    torch.testing.assert_close(row, row.round(), atol=1e-9, rtol=0)
    at = torch.arange(2)[:, None], row.round().long(), column.round().long()
    assert (chart[at][there] == points.chart[there]).all()
    assert (confidence[at][there] > 0).all()
    torch.testing.assert_close(points.uv[there], uv[at[0], :, at[1], at[2]][there])
    # Evenly spread: 50 points on 15 x 24 pixels are 2.7 pixels apart, at random half of that.
    place = torch.stack([row[0], column[0]], 1)[there[0]].numpy()
    near = cKDTree(place).query(place, 2)[0][:, 1]
    assert near.mean() > 0.7 * np.sqrt(15 * 24 / 50)
    assert near.min() > 1
    for person in range(2):
        alone = map_.select(person).points(50)
        assert torch.equal(alone.xy[0], points.xy[person])
        assert torch.equal(alone.confidence[0], points.confidence[person])
    everything = map_.points(10**6)
    assert everything.xy.shape == (2, 1200, 2)
    assert (everything.confidence > 0).sum(1).tolist() == [15 * 24, 9]
    assert points.points(3) is points


def test_labels_become_channels() -> None:
    box, labels = _boxes([0, 0, 3, 1]), torch.tensor([[[0, 14, 3]]])
    parts = PartMap.from_labels(labels, box)
    expected = torch.zeros(1, 15, 1, 3, dtype=torch.float64)
    expected[0, 13, 0, 1] = expected[0, 2, 0, 2] = 1
    expected[0, 14, 0, 1:] = 1
    assert torch.equal(parts.probability, expected)
    assert not parts.open.any()
    assert torch.equal(parts.confidence, torch.ones(1, 1, 3, dtype=torch.float64))

    table = torch.zeros(4, 15, dtype=torch.bool)
    table[0, 0] = table[1, 6] = table[1, 7] = table[2, 14] = True  # 3: says nothing
    sure = torch.full((1, 1, 4), 0.5, dtype=torch.float64)
    coarse = PartMap.from_labels(torch.tensor([[[0, 1, 2, 3]]]), box, sure, table)
    assert coarse.confidence.flatten().tolist() == [0.5, 0.5, 0.5, 0]
    assert coarse.probability[0, 14, 0].tolist() == [0, 1, 1, 0]
    assert coarse.open[0, :, 0, 1].nonzero()[:, 0].tolist() == [5, 6]
    assert coarse.probability[0, :14, 0, 1].sum() == 0
    assert coarse.probability[0, 13, 0, 2] == 1
    assert not coarse.open[0, :, 0, 2].any()


def test_wrong_labels_are_refused() -> None:
    box = _boxes([0, 0, 2, 1])
    for labels in ([[[0, 15]]], [[[-1, 3]]]):
        with pytest.raises(ValueError, match=r"part labels from .* expected 0 \(background\) to 14"):
            PartMap.from_labels(torch.tensor(labels), box)
    table = torch.zeros(2, 15, dtype=torch.bool)
    table[1, 0] = table[1, 3] = True
    with pytest.raises(ValueError, match="background or parts, not both"):
        PartMap.from_labels(torch.tensor([[[0, 1]]]), box, table=table)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """What a user meets, for whom no types are checked."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_wrong_shapes_are_told() -> None:
    box, sure = _boxes([0, 0, 2, 2]), torch.ones(1, 4, 5)
    with pytest.raises(ValueError, match=r"part map: values \(1, 15, 5, 4\)"):
        PartMap(torch.ones(1, 15, 5, 4), box, sure, torch.ones(1, 15, 5, 4))
    with pytest.raises(ValueError, match="part map: open of shape"):
        PartMap(torch.ones(1, 15, 4, 5), box, sure, torch.ones(1, 15, 4, 4))
    with pytest.raises(ValueError, match=r"normal map: .* expected"):
        NormalMap(torch.ones(1, 3, 4, 5), box.repeat(2, 1), sure)
    with pytest.raises(ValueError, match="normal map"):
        NormalMap(torch.ones(1, 3, 0, 5), box, torch.ones(1, 0, 5))
    with pytest.raises(ValueError, match=r"IUV map: chart of shape \(1, 4, 4\)"):
        IUVMap(torch.ones(1, 4, 4, dtype=torch.long), torch.ones(1, 2, 4, 5), box, sure, "open-1")
    flat, place = torch.ones(1, 6), torch.ones(1, 6, 2)
    with pytest.raises(ValueError, match="IUV points"):
        IUVPoints(place, flat.long(), place[:, :5], flat, "open-1")
    with pytest.raises(ValueError, match=r"correspondences: .* \(B, N, 2 or 3\)"):
        Correspondences(flat.long(), torch.ones(1, 6, 3), torch.ones(1, 6, 4), flat, "open-1")
    with pytest.raises(ValueError, match="observation: normals is of 1 people, the camera of 2"):
        Observation(Camera.from_size(9, 9).expand(2), normals=NormalMap(torch.ones(1, 3, 4, 5), box, sure))


def test_observations_with_maps_are_rows(seen: tuple[State, Observation]) -> None:
    _, observation = seen
    assert observation.iuv is not None
    assert observation.parts is not None
    points = observation.iuv.points(8)
    bare = replace(
        observation,
        surface=Correspondences(
            points.chart, _draw(PEOPLE, 8, 3), points.xy, points.confidence, observation.iuv.charts
        ),
    )
    view_of(bare, "mask", 16)  # what was worked out for all people is not handed on to some of them
    joined = fitkit.concatenate([bare.select(2), bare.select([0, 1])])
    again = joined.select([1, 2, 0]).repeat(2).select(slice(0, 6, 2))
    for name in ("parts", "iuv", "normals", "surface"):
        for here, there in zip(
            getattr(bare, name).__dict__.values(), getattr(again, name).__dict__.values(), strict=True
        ):
            assert torch.equal(here, there) if isinstance(here, Tensor) else here == there
    torch.testing.assert_close(view_of(joined, "mask", 16).box, view_of(bare, "mask", 16).box[[2, 0, 1]])
    single = bare.to(torch.float32)
    assert single.parts is not None
    assert single.iuv is not None
    assert single.parts.open.dtype == single.parts.box.dtype == torch.float32
    assert single.iuv.chart.dtype == torch.int64
    assert view_of(single, "mask", 16).box.dtype == torch.float32
    other = replace(bare, iuv=replace(observation.iuv, charts="densepose"))
    with pytest.raises(ValueError, match="charts is not the same"):
        fitkit.concatenate([bare, other])
    with pytest.raises(ValueError, match="parts is there for some people only"):
        fitkit.concatenate([bare, replace(bare, parts=None)])


# -- the maps of known bodies ------------------------------------------------------------------------------------


def _centres(box: Tensor) -> Tensor:
    """`(B, S, S, 2)` pixels of the photo."""
    step = (torch.arange(SIZE, dtype=torch.float64) + 0.5) / SIZE
    x = box[:, 0, None] + step * box[:, 2, None]
    y = box[:, 1, None] + step * box[:, 3, None]
    return torch.stack([x[:, None, :].expand(-1, SIZE, -1), y[:, :, None].expand(-1, -1, SIZE)], -1)


def test_simulated_iuv_leads_back_to_its_pixels(body: BodyModel, seen: tuple[State, Observation]) -> None:
    state, observation = seen
    iuv, vertices = observation.iuv, body.vertices(state)
    assert isinstance(iuv, IUVMap)
    centres = _centres(iuv.box)
    for person in range(PEOPLE):
        shown = iuv.chart[person] > 0
        address = Charts.of(body).decode(iuv.chart[person][shown], iuv.uv[person].movedim(0, -1)[shown])
        assert address.valid.all()
        place = address.on(vertices[person], body.faces)
        pixels = observation.camera.select(person).project(place[None])[0]
        away = (pixels - centres[person][shown]).norm(dim=-1) / (iuv.box[person, 2] / SIZE)
        assert away.max() < 1
        assert shown.sum() > 100


def test_simulated_parts_and_normals_are_those_of_the_surface(seen: tuple[State, Observation]) -> None:
    _, observation = seen
    parts, iuv, normals = observation.parts, observation.iuv, observation.normals
    assert parts is not None
    assert isinstance(iuv, IUVMap)
    assert normals is not None
    known = (parts.confidence > 0) & (iuv.chart > 0)
    expected = torch.tensor((0, *CHART_PARTS))[iuv.chart]
    found = parts.probability[:, :14].argmax(1) + 1
    agree = (found == expected)[known]
    assert agree.double().mean() > 0.995  # a face may lie on another part than most of its chart
    assert (parts.probability[:, :14].sum(1) == parts.probability[:, 14]).all()
    seen_at = normals.confidence > 0
    vectors = normals.normal.movedim(1, -1)[seen_at]
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors), dtype=torch.float64))
    rays = (_centres(normals.box) - observation.camera.center[:, None, None]) / observation.camera.focal[
        :, None, None
    ]
    rays = torch.cat([rays, torch.ones_like(rays[..., :1])], -1)[seen_at]
    # Smooth normals of a face at the rim may point a little away.
    assert ((vectors * rays / rays.norm(dim=-1, keepdim=True)).sum(-1) < 0).double().mean() > 0.97


def test_simulated_maps_know_nothing_outside_of_the_photo(seen: tuple[State, Observation]) -> None:
    _, observation = seen
    assert observation.parts is not None
    assert observation.normals is not None
    camera, parts = observation.camera, observation.parts
    centres = _centres(parts.box)
    inside = (centres >= 0).all(-1) & (centres[..., 0] < camera.width) & (centres[..., 1] < camera.height)
    assert torch.equal(parts.confidence > 0, inside)
    assert not (observation.normals.confidence > 0)[~inside].any()
    assert not inside[1].all()
    assert inside[1].any()
    assert inside[0].all()
    assert parts.probability[1, :, ~inside[1]].sum() == 0


def test_a_simulated_mask_covers_the_body(body: BodyModel, seen: tuple[State, Observation]) -> None:
    state, observation = seen
    camera, mask = observation.camera, observation.mask
    assert mask is not None
    assert max(mask.shape[1:]) <= 512
    points = camera.project(body.joints(state)[:, :22])
    shown = (points >= 2).all(-1) & (points[..., 0] < camera.width - 2) & (points[..., 1] < camera.height - 2)
    scale = torch.tensor([mask.shape[2] / camera.width, mask.shape[1] / camera.height], dtype=torch.float64)
    column, row = (points * scale).long().unbind(-1)
    column, row = column.clamp(0, mask.shape[2] - 1), row.clamp(0, mask.shape[1] - 1)
    assert (mask[torch.arange(PEOPLE)[:, None], row, column] == 1)[shown].double().mean() > 0.95
    assert shown[1].sum() < shown[0].sum()


def test_only_bodies_with_parts_and_charts_have_maps(body: BodyModel, people: MakePeople) -> None:
    state, observation = people(1)
    data = body.data
    for bare, message in (
        (replace(data, parts=None), "has no parts"),
        (replace(data, charts=None), "has no charts"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate_maps(BodyModel(bare, torch.float64), state, observation)

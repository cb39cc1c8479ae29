"""What dense terms work out once: for the right body, in any grad mode, for the right person; and awkward states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fitkit
from fitkit.body.model import BodyModel
from fitkit.maps import IUVMap, PartMap, foreground_box
from fitkit.objectives import IUV, GMoF, Normals, Objective, Outline, Parts, Silhouette
from fitkit.observation import Observation
from fitkit.observe import maps_for
from fitkit.priors import ShapePrior, default_pose_prior
from fitkit.problem import Problem
from fitkit.simulate import simulate_maps
from fitkit.solver import Stage
from fitkit.state import State

MakePeople = Callable[..., tuple[State, Observation]]
TERMS: list[Objective] = [
    Outline(),
    IUV(count=40),
    *(kind(size=16, softness=0.8) for kind in (Parts, Silhouette, Normals)),
]


@pytest.fixture(scope="module")
def seen(body: BodyModel, people: MakePeople) -> tuple[State, Observation]:
    truth, observation = people()
    return truth, simulate_maps(body, truth, observation, 32)


def _moved(state: State) -> State:
    return replace(state, transl=state.transl + torch.tensor([0.05, -0.03, 0.2], dtype=torch.float64))


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
class TestEveryTerm:
    def test_what_was_kept_without_gradients_serves_with_them(
        self, body: BodyModel, seen: tuple[State, Observation], term: Objective
    ) -> None:
        state, observation = _moved(seen[0]), replace(seen[1])
        fresh = Problem(body, replace(observation), term).linearize(state)
        with torch.inference_mode():
            Problem(body, observation, term).energy(state)
        problem = Problem(body, observation, term)
        torch.testing.assert_close(problem.linearize(state).gradient, fresh.gradient)
        chart = problem.chart(state)
        torch.testing.assert_close(
            problem.value_and_grad(chart.encode(state), chart)[1], fresh.gradient, atol=1e-6, rtol=1e-5
        )

    def test_another_body_on_the_same_observation_is_another_body(
        self, body: BodyModel, seen: tuple[State, Observation], term: Objective
    ) -> None:
        """Also one of the same name."""
        state, observation = _moved(seen[0]), replace(seen[1])
        stout = BodyModel(
            replace(body.data, v_template=(body.data.v_template * 1.1).astype(np.float32)), torch.float64
        )
        Problem(body, observation, term).linearize(state)
        after = Problem(stout, observation, term).linearize(state)
        alone = Problem(stout, replace(observation), term).linearize(state)
        torch.testing.assert_close(after.energy, alone.energy)
        torch.testing.assert_close(after.hessian, alone.hessian)

    def test_what_was_worked_out_goes_with_its_people(
        self, body: BodyModel, seen: tuple[State, Observation], term: Objective
    ) -> None:
        state, observation = _moved(seen[0]), replace(seen[1])
        problem = Problem(body, observation, term)
        energy = problem.energy(state)
        for rows in ([2, 0], [1], [0, 0, 2]):
            torch.testing.assert_close(problem.select(rows).energy(state.select(rows)), energy[rows])

    def test_robust_kernels_weigh_it(
        self, body: BodyModel, seen: tuple[State, Observation], term: Objective
    ) -> None:
        state = _moved(seen[0])
        problem = Problem(body, seen[1], 0.5 * term.robust(GMoF(2.0)))
        here, chart = problem.linearize(state), problem.chart(state)
        energy, gradient = problem.value_and_grad(chart.encode(state), chart)
        torch.testing.assert_close(here.energy, energy)
        torch.testing.assert_close(here.gradient, gradient, atol=1e-6, rtol=1e-5)
        assert (energy > 0).all()

    def test_a_state_that_is_not_finite_is_that_person_s_own(
        self, body: BodyModel, seen: tuple[State, Observation], term: Objective
    ) -> None:
        state = _moved(seen[0])
        transl = state.transl.clone()
        transl[1] = torch.nan
        problem = Problem(body, seen[1], term)
        here, whole = problem.linearize(replace(state, transl=transl)), problem.linearize(state)
        assert not torch.isfinite(here.energy[1])
        torch.testing.assert_close(here.energy[[0, 2]], whole.energy[[0, 2]])
        torch.testing.assert_close(here.gradient[[0, 2]], whole.gradient[[0, 2]])


def test_a_term_sees_its_own_map_only(body: BodyModel, seen: tuple[State, Observation]) -> None:
    """A mask of something else does not move the window of the parts, so leaving it out changes nothing."""
    state, observation = seen
    assert observation.mask is not None
    other = replace(observation, mask=torch.ones_like(observation.mask))
    problem = Problem(body, other, TERMS[2])
    torch.testing.assert_close(problem.energy(_moved(state)), problem.trimmed().energy(_moved(state)))


def test_somebody_behind_the_camera_has_empty_maps(body: BodyModel, people: MakePeople) -> None:
    truth, observation = people(2)
    transl = truth.transl.clone()
    transl[1, 2] = -4.0
    maps = simulate_maps(body, replace(truth, transl=transl), observation, 32)
    assert maps.parts is not None
    assert (maps.parts.probability[:, -1].sum((1, 2)) > 0).tolist() == [True, False]


def test_points_and_maps_do_not_join(body: BodyModel, seen: tuple[State, Observation]) -> None:
    _, observation = seen
    assert isinstance(observation.iuv, IUVMap)
    points = replace(observation, iuv=observation.iuv.points(9))
    with pytest.raises(ValueError, match=r"iuv is of the kinds \['IUVMap', 'IUVPoints'\]"):
        fitkit.concatenate([observation, points])


def test_labels_may_be_bytes() -> None:
    labels = torch.tensor([[[0, 1], [14, 2]]], dtype=torch.uint8)
    map_ = PartMap.from_labels(labels, torch.tensor([[0.0, 0.0, 2.0, 2.0]]))
    assert map_.probability[0, :, 1, 0].nonzero()[:, 0].tolist() == [13, 14]


@pytest.mark.parametrize("widen", [0.0, -1.0, float("nan"), float("inf")])
def test_a_stage_widens_by_a_positive_number(widen: float) -> None:
    with pytest.raises(ValueError, match="widen"):
        Stage(3, widen=widen)


def test_the_right_depth_is_the_best(body: BodyModel, people: MakePeople) -> None:
    """Soft silhouettes are as large as their bodies, so a map is not met best by a body farther away."""
    truth, observation = people()
    maps = simulate_maps(body, truth, observation, 128)
    for term, off in ((Outline(), 0.01), (Silhouette(), 0.011), (Parts(), 0.011)):
        problem = Problem(body, maps, term)
        steps = torch.linspace(-0.03, 0.03, 13, dtype=torch.float64).tolist()
        energies = torch.stack(
            [problem.energy(replace(truth, transl=truth.transl * (1 + step))) for step in steps]
        ).mean(1)
        assert abs(steps[int(energies.argmin())]) < off, (term.name, energies)


def test_people_whom_the_photo_cuts_off_are_not_charged(body: BodyModel, people: MakePeople) -> None:
    """Legs below the photo: the mask says nothing of them, and the outline costs the true body next to nothing."""
    truth, observation = people()
    down = torch.zeros_like(truth.transl)
    down[:, 1] = 0.3 * truth.transl[:, 2]
    truth = replace(truth, transl=truth.transl + down)
    maps = simulate_maps(body, truth, observation, 64)
    assert maps.mask is not None
    assert (maps.mask[:, -1].amax(1) > 0).all(), "not everybody is cut off"
    assert (Problem(body, maps, Outline()).energy(truth) < 3).all()


def test_maps_find_their_people(body: BodyModel, people: MakePeople) -> None:
    truth, observation = people()
    aside = torch.tensor([[-1.2, 0, 0], [0, 0, 0], [1.2, 0, 0]], dtype=torch.float64)
    maps = simulate_maps(body, replace(truth, transl=truth.transl + aside), observation, 32)
    assert maps.parts is not None
    detected = replace(maps, box=foreground_box(maps.parts.shown(), maps.parts.box), parts=None)
    shuffled = maps.parts.select([2, 0])
    found = maps_for(detected, shuffled)
    torch.testing.assert_close(found.probability[[0, 2]], maps.parts.probability[[0, 2]])
    assert (found.confidence[1] == 0).all()
    with pytest.raises(ValueError, match="neither boxes nor keypoints"):
        maps_for(replace(detected, box=None, keypoints=None), shuffled)
    with pytest.raises(ValueError, match="0 people"):
        maps_for(detected, maps.parts.select([]))


def _broken(seen: Observation, part: str, field: str, value: float) -> Observation:
    whole: Any = getattr(seen, part)
    if field == "":
        changed: Any = torch.full_like(whole, value)
    else:
        changed = replace(whole, **{field: torch.full_like(getattr(whole, field), value)})
    return replace(seen, **{part: changed})


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("mask", "", 255.0, "mask: values from 255 to 255, expected 0 to 1"),
        ("mask", "", float("nan"), "mask: values from nan"),
        ("parts", "probability", float("nan"), r"parts.probability: values from nan"),
        ("parts", "confidence", -1.0, r"parts.confidence: values from -1"),
        ("parts", "box", 0.0, r"parts.box"),
        ("iuv", "uv", 7.0, r"iuv.uv: values from 7"),
        ("normals", "normal", 3.0, r"normals.normal: values from 3"),
    ],
)
def test_maps_with_impossible_values_are_named(
    seen: tuple[State, Observation], part: str, field: str, value: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fitkit.fit(_broken(seen[1], part, field, value), solver="lm", max_seconds=0.0)


def test_a_start_is_refined_by_what_was_seen_of_it(body: BodyModel, seen: tuple[State, Observation]) -> None:
    """With a mask and priors alone no stage may follow the priors away from a good start."""
    truth, observation = seen
    start = replace(truth, transl=truth.transl + 0.02)
    objective = Silhouette(size=32, softness=0.8) + default_pose_prior() + ShapePrior()
    alone = replace(observation, keypoints=None, world=None)
    result = fitkit.fit(alone, start=start, objective=objective)
    before = Problem(body, alone, objective).energy(start)
    assert (result.energy <= before).all()


def test_margins_are_known_with_dense_terms_too(seen: tuple[State, Observation]) -> None:
    keypoints = replace(seen[1], parts=None, iuv=None, normals=None)
    objective = fitkit.default_objective(keypoints)
    plain = fitkit.fit(keypoints, objective=objective).margin
    dense = fitkit.fit(keypoints, objective=objective + Silhouette(size=32, softness=0.8)).margin
    assert (torch.isfinite(dense) == torch.isfinite(plain)).all()


def test_few_points_pull_as_points_of_a_person(body: BodyModel, seen: tuple[State, Observation]) -> None:
    """Three neighbouring pixels are 10 cm off: relative to the person, not to the spot that they cover."""
    truth, observation = seen
    assert isinstance(observation.iuv, IUVMap)
    points = observation.iuv.points(400)
    near = (points.xy - points.xy[:, :1]).norm(dim=-1).argsort(1)[:, :3]
    few = replace(
        points,
        xy=points.xy.gather(1, near[..., None].expand(-1, -1, 2)),
        uv=points.uv.gather(1, near[..., None].expand(-1, -1, 2)),
        chart=points.chart.gather(1, near),
        confidence=points.confidence.gather(1, near),
    )
    assert observation.parts is not None
    box = foreground_box(observation.parts.shown(), observation.parts.box)
    moved = replace(truth, transl=truth.transl + torch.tensor([0.1, 0, 0], dtype=torch.float64))
    problem = Problem(body, replace(observation, iuv=few, box=box), IUV()).trimmed()
    here = problem.linearize(moved)
    assert (here.energy < 0.9 * 0.5 * 3 * 25).all(), "outliers"
    assert (here.gradient.norm(dim=1) > 10).all()


def test_an_annotation_without_points_costs_nothing(body: BodyModel, seen: tuple[State, Observation]) -> None:
    truth, observation = seen
    assert isinstance(observation.iuv, IUVMap)
    points = observation.iuv.points(4)
    none = replace(
        points,
        xy=points.xy[:, :0],
        chart=points.chart[:, :0],
        uv=points.uv[:, :0],
        confidence=points.confidence[:, :0],
    )
    here = Problem(body, replace(observation, iuv=none), IUV()).linearize(truth)
    assert not here.energy.any()
    assert not here.gradient.any()

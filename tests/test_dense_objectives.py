"""Objectives on maps: derivatives, batches, what they are lowest at, what they pass over, schedules and whole fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import fitkit
from fitkit import geometry
from fitkit.api import default_stages
from fitkit.body.model import BodyModel
from fitkit.coordinates import Tangent, retract
from fitkit.keypoints import Keypoints, get_set
from fitkit.maps import Correspondences, IUVMap, PartMap
from fitkit.objectives import (
    IUV,
    Keypoints2D,
    Normals,
    Objective,
    Outline,
    Parts,
    Silhouette,
    SurfacePoints,
)
from fitkit.objectives.rendered import Rendered
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.problem import Problem
from fitkit.simulate import simulate_maps
from fitkit.solve import solve
from fitkit.solver import Outcome, Stage
from fitkit.solvers.lm import LM
from fitkit.state import State

PEOPLE = 3
MakePeople = Callable[..., tuple[State, Observation]]


class Scene(NamedTuple):
    """People turned any way, the second half outside of the photo; where a solver may be; what was seen."""

    truth: State
    start: State
    observation: Observation


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _surface(body: BodyModel, truth: State, observation: Observation, flat: bool) -> Correspondences:
    draw = torch.Generator().manual_seed(4)
    face = torch.randint(len(body.faces), (PEOPLE, 20), generator=draw)
    weights = torch.rand(PEOPLE, 20, 3, generator=draw, dtype=torch.float64)
    weights = weights / weights.sum(-1, keepdim=True)
    corners = body.vertices(truth)[torch.arange(PEOPLE)[:, None, None], body.faces[face]]
    place = (corners * weights[..., None]).sum(2)
    target = observation.camera.project(place) if flat else place
    confidence = torch.rand(PEOPLE, 20, generator=draw, dtype=torch.float64)
    confidence[:, 3] = 0
    return Correspondences(face, weights, target, confidence, body.name)


@pytest.fixture(scope="module")
def scene(body: BodyModel, people: MakePeople) -> Scene:
    truth, observation = people(PEOPLE)
    place = truth.transl + torch.tensor([[0.0, 0, 0], [1.9, 0, 0], [0, 0, 0.5]])
    turned = truth.global_orient @ geometry.exp(1.5 * _normal(PEOPLE, 1, 3))
    truth = replace(truth, transl=place, global_orient=turned)
    blocks = Tangent(truth, None).blocks
    sizes = {"betas": 0.3, "transl": 0.04}
    size = torch.cat([torch.full((c.stop - c.start,), sizes.get(k, 0.12)) for k, c in blocks.items()])
    start = retract(truth, size * _normal(PEOPLE, len(size), seed=1), blocks)
    return Scene(truth, start, simulate_maps(body, truth, observation, 64))


TERMS: dict[str, Objective] = {
    "parts": Parts(24, 0.35, backend="torch"),
    "silhouette": Silhouette(24, 0.35, backend="torch"),
    "normals": Normals(20, 0.5, backend="torch"),
    "outline": Outline(size=32, count=40),
    "iuv": IUV(count=40),
    "pixels": SurfacePoints(),
    "metres": SurfacePoints(kernel=None, sigma_metres=0.05).named("metres"),
}
CLOSED = ("outline", "iuv", "pixels", "metres")


def _seen(body: BodyModel, scene: Scene, name: str) -> Observation:
    if name not in ("pixels", "metres"):
        return replace(scene.observation)
    return replace(
        scene.observation, surface=_surface(body, scene.truth, scene.observation, name == "pixels")
    )


@pytest.mark.parametrize("name", TERMS)
class TestEveryTerm:
    def test_gradient_is_that_of_the_value(self, body: BodyModel, scene: Scene, name: str) -> None:
        """Linearisation, backwards differentiation and central differences, which the weight multiplies alike."""
        state, term = scene.start, TERMS[name]
        problem = Problem(body, _seen(body, scene, name), 3.0 * term)
        here, chart = problem.linearize(state), problem.chart(state)
        value, gradient = problem.value_and_grad(chart.encode(state), chart)
        torch.testing.assert_close(here.energy, value)
        torch.testing.assert_close(here.gradient, gradient, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(Problem(body, problem.observation, term).energy(state), value / 3)
        assert (value > 0).all()
        # So short that hardly any face enters or leaves a pixel on the way, where the picture has a step of 1e-4.
        step = 1e-8 if isinstance(term, Rendered) else 1e-7
        direction = _normal(PEOPLE, chart.size, seed=2)
        ahead = problem.energy(retract(state, step * direction, chart.blocks))
        behind = problem.energy(retract(state, -step * direction, chart.blocks))
        slope = (gradient * direction).sum(1)
        torch.testing.assert_close((ahead - behind) / (2 * step), slope, atol=1e-4, rtol=1e-5)

    def test_curvature_is_symmetric_and_not_negative(self, body: BodyModel, scene: Scene, name: str) -> None:
        """Also of frozen blocks, which are cut out of the whole."""
        problem = Problem(body, _seen(body, scene, name), TERMS[name])
        whole = problem.linearize(scene.start)
        torch.testing.assert_close(whole.hessian, whole.hessian.mT)
        least = torch.linalg.eigvalsh(whole.hessian)
        assert (least[:, 0] > -1e-9 * least[:, -1]).all()
        part = replace(problem, free=("betas", "global_orient")).linearize(scene.start)
        blocks = problem.free_blocks(scene.start)
        columns = [*range(3), *range(blocks["betas"].start, blocks["betas"].stop)]
        torch.testing.assert_close(part.gradient, whole.gradient[:, columns], atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(part.hessian, whole.hessian[:, columns][..., columns])

    def test_people_do_not_know_each_other(self, body: BodyModel, scene: Scene, name: str) -> None:
        """One person is a batch of one, and another order of people is another order of answers."""
        problem = Problem(body, _seen(body, scene, name), TERMS[name])
        whole = problem.linearize(scene.start)
        for order in ([1], [2, 0, 1]):
            chosen = scene.start.select(order)
            some = problem.select(order).linearize(chosen)
            torch.testing.assert_close(some.energy, whole.energy[order])
            torch.testing.assert_close(some.gradient, whole.gradient[order], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(some.hessian, whole.hessian[order], atol=1e-6, rtol=1e-6)
            # Whether what was prepared of them was selected with them, or is prepared for them alone.
            fresh = replace(problem, observation=_seen(body, scene, name)).select(order)
            torch.testing.assert_close(fresh.energy(chosen), some.energy)

    def test_float32_agrees(self, body: BodyModel, scene: Scene, name: str) -> None:
        seen = _seen(body, scene, name)
        exact = Problem(body, seen, TERMS[name]).energy(scene.start)
        single = Problem(body.to(torch.float32), seen.to(torch.float32), TERMS[name])
        rough = single.energy(scene.start.to(torch.float32))
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough.double(), exact, rtol=2e-3, atol=2e-3)

    def test_what_it_needs_is_told(self, body: BodyModel, scene: Scene, name: str) -> None:
        bare = Observation(scene.observation.camera)
        with pytest.raises(ValueError, match=r"objective \w+ needs \['\w+'\], which the observation"):
            Problem(body, bare, TERMS[name])


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_the_automatic_ones(body: BodyModel, scene: Scene, name: str) -> None:
    problem = Problem(body, _seen(body, scene, name), 3.0 * TERMS[name])
    here = problem.linearize(scene.start)
    gradient, hessian = (3.0 * TERMS[name]).normal(*problem.automatic(TERMS[name], scene.start))
    torch.testing.assert_close(here.gradient, gradient, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(here.hessian, hessian, atol=1e-4, rtol=1e-6)


def test_hands_and_expressions_are_columns_too(body: BodyModel, scene: Scene) -> None:
    turns = geometry.exp(0.2 * _normal(PEOPLE, 15, 3))
    state = replace(
        scene.start,
        expression=_normal(PEOPLE, body.num_expression),
        left_hand_pose=turns,
        betas=scene.start.betas[:, :10],
    )
    for name in CLOSED:
        problem = Problem(body, _seen(body, scene, name), TERMS[name])
        chart = problem.chart(state)
        _, gradient = problem.value_and_grad(chart.encode(state), chart)
        torch.testing.assert_close(problem.linearize(state).gradient, gradient, atol=1e-5, rtol=1e-6)


# -- what they are lowest at -------------------------------------------------------------------------------------


def _moved(body: BodyModel, truth: State) -> dict[str, State]:
    """The truth nearer, farther, aside, and with the left arm 40 degrees down."""
    bend = torch.zeros(PEOPLE, 21, 3, dtype=torch.float64)
    bend[:, get_set("smplx55").names[1:22].index("left_shoulder"), 2] = -0.7
    aside = torch.tensor([0.05 * 1.7, 0, 0])
    return {
        "nearer": replace(truth, transl=0.94 * truth.transl),
        "farther": replace(truth, transl=1.06 * truth.transl),
        "aside": replace(truth, transl=truth.transl + aside),
        "aside, up": replace(truth, transl=truth.transl + aside[[1, 0, 2]]),
        "bent": replace(truth, body_pose=truth.body_pose @ geometry.exp(bend)),
    }


@pytest.mark.parametrize(
    "term",
    [
        Parts(backend="torch"),
        Silhouette(backend="torch"),
        Normals(backend="torch"),
        Outline(),
        IUV(),
    ],
    ids=lambda term: term.name,
)
def test_a_body_elsewhere_costs_more(body: BodyModel, people: MakePeople, term: Objective) -> None:
    truth, observation = people(PEOPLE)
    problem = Problem(body, simulate_maps(body, truth, observation, 96), term)
    here = problem.energy(truth)
    for name, other in _moved(body, truth).items():
        assert (problem.energy(other) > here + 0.1).all(), name


def test_the_shortest_way_back_is_found(body: BodyModel, people: MakePeople) -> None:
    """From a body beside its mask: the silhouette sees nothing there, the outline leads back, by squares first."""
    truth, observation = people(PEOPLE)
    seen = simulate_maps(body, truth, observation, 32)
    aside = torch.zeros(PEOPLE, 3, dtype=torch.float64)
    aside[:, 0] = torch.tensor([1.7, -1.7, 1.7])
    away = replace(truth, transl=truth.transl + aside)
    blind = Problem(body, seen, Silhouette(32, backend="torch"), free=("transl",)).linearize(away)
    torch.testing.assert_close(blind.energy, torch.full_like(blind.energy, 100.0), rtol=1e-3, atol=0)
    assert (blind.gradient.abs() < 1e-3).all()
    problem = Problem(body, seen, Outline(), free=("transl",))
    slope = problem.linearize(away).gradient
    assert ((slope * aside).sum(1) > 0.8 * slope[:, :2].norm(dim=1) * aside.norm(dim=1)).all()
    found = solve(problem, LM(), away, [Stage(20, widen=None), Stage(20)])
    assert (found.energy < 0.2 * problem.energy(away)).all()
    left = found.state.transl - truth.transl
    assert (left.norm(dim=1) < 0.1).all(), left


def test_a_softer_picture_reaches_farther(body: BodyModel, people: MakePeople) -> None:
    truth, observation = people(PEOPLE)
    seen = simulate_maps(body, truth, observation, 32)
    term = Silhouette(32, backend="torch")
    problem = Problem(body, seen, term, free=("transl",))
    wide = problem.staged(widen=3.0)
    (soft,) = wide.objective.terms()
    assert isinstance(soft, Silhouette)
    assert soft.softness == 3 * term.softness
    assert term.widened(None).softness == term.softness
    assert (soft.size, soft.sigma) == (term.size, term.sigma)
    pixels = observation.camera.project(body.vertices(truth))
    width = (pixels[..., 0].amax(1) - pixels[..., 0].amin(1)) / observation.camera.focal[:, 0]
    aside = torch.zeros(PEOPLE, 3, dtype=torch.float64)
    aside[:, 0] = 1.1 * width * truth.transl[:, 2]
    away = replace(truth, transl=truth.transl + aside)
    near, far = problem.linearize(away).gradient[:, 0], wide.linearize(away).gradient[:, 0]
    assert (far > 0).all()
    assert (far.abs() > 10 * near.abs()).all()


# -- what they pass over -----------------------------------------------------------------------------------------


def _hidden(scene: Scene) -> Tensor:
    """`(B, 64, 64)` a band across everybody."""
    band = torch.zeros(PEOPLE, 64, 64, dtype=torch.bool)
    band[:, 22:36] = True
    return band


def test_wrong_pixels_without_confidence_change_nothing(body: BodyModel, scene: Scene) -> None:
    seen, band = scene.observation, _hidden(scene)
    iuv, normals = seen.iuv, seen.normals
    assert isinstance(iuv, IUVMap)
    assert normals is not None
    assert seen.parts is not None
    parts = seen.parts

    def with_(noise: float) -> Observation:
        junk = noise * torch.rand(
            PEOPLE, 3, 64, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64
        )
        return replace(
            seen,
            parts=replace(
                parts,
                probability=torch.where(band[:, None], junk[:, :1], parts.probability),
                open=torch.where(band[:, None], junk[:, 1:2], parts.open),
                confidence=parts.confidence * ~band,
            ),
            iuv=replace(
                iuv,
                uv=torch.where(band[:, None], junk[:, :2], iuv.uv),
                chart=torch.where(band, (junk[:, 0] * 24).long(), iuv.chart),
                confidence=iuv.confidence * ~band,
            ),
            normals=replace(
                normals,
                normal=torch.where(band[:, None], junk, normals.normal),
                confidence=normals.confidence * ~band,
            ),
        )

    for name in ("parts", "iuv", "normals"):
        right, wrong = (Problem(body, with_(noise), TERMS[name]).linearize(scene.start) for noise in (0, 1))
        torch.testing.assert_close(right.energy, wrong.energy)
        torch.testing.assert_close(right.gradient, wrong.gradient)
        assert (right.energy > 0.1).all()


@pytest.mark.parametrize("name", ["pixels", "metres"])
def test_points_without_confidence_may_be_anything(body: BodyModel, scene: Scene, name: str) -> None:
    seen = _seen(body, scene, name)
    points = seen.surface
    assert points is not None
    target = points.target.clone()
    target[:, 3] = torch.nan
    other = replace(seen, surface=replace(points, target=target))
    right, wrong = (Problem(body, each, TERMS[name]).linearize(scene.start) for each in (seen, other))
    torch.testing.assert_close(right.energy, wrong.energy)
    torch.testing.assert_close(right.hessian, wrong.hessian)


@pytest.mark.parametrize("name", TERMS)
def test_nothing_seen_costs_nothing(body: BodyModel, scene: Scene, name: str) -> None:
    """Of the first person; the others go on as before."""
    seen, sure = _seen(body, scene, name), torch.tensor([0.0, 1, 1], dtype=torch.float64)
    changes: dict[str, object] = {}
    assert seen.mask is not None
    changes["mask"] = seen.mask * sure[:, None, None]
    for part in ("parts", "iuv", "normals", "surface"):
        map_ = getattr(seen, part)
        if map_ is not None:
            shape = (PEOPLE, *[1] * (map_.confidence.ndim - 1))
            changes[part] = replace(map_, confidence=map_.confidence * sure.view(shape))
    blank = replace(seen, **changes)  # type: ignore[arg-type]
    problem = Problem(body, blank, TERMS[name])
    here, chart = problem.linearize(scene.start), problem.chart(scene.start)
    value, gradient = problem.value_and_grad(chart.encode(scene.start), chart)
    for each in (here.energy, value, here.gradient, gradient, here.hessian):
        assert torch.isfinite(each).all()
        assert each[0].abs().max() < 1e-12
    whole = Problem(body, seen, TERMS[name]).energy(scene.start)
    torch.testing.assert_close(value[1:], whole[1:])


def test_parts_that_are_left_open_cost_nothing(body: BodyModel, scene: Scene) -> None:
    """A map that knows no more than 'leg': at the truth it costs no more, and any leg will do."""
    exact = scene.observation.parts
    assert exact is not None
    labels = torch.where(exact.probability[:, 14] > 0, exact.probability[:, :14].argmax(1) + 1, 0)
    legs = [6, 7, 8, 9]
    table = torch.eye(15, dtype=torch.bool)
    table[6:10, 6:10] = True
    swapped = torch.tensor([*range(6), 9, 8, 7, 6, *range(10, 15)])[labels]
    term = TERMS["parts"]

    def energy(given: Tensor, table: Tensor | None) -> Tensor:
        parts = PartMap.from_labels(given, exact.box, exact.confidence, table)
        return Problem(body, replace(scene.observation, parts=parts), term).energy(scene.truth)

    sharp, coarse = energy(labels, None), energy(labels, table)
    assert (coarse <= sharp + 1e-9).all()
    torch.testing.assert_close(energy(swapped, table), coarse)
    shown = torch.isin(labels, torch.tensor(legs)).flatten(1).sum(1) > 50
    assert shown.any()
    assert (energy(swapped, None) > sharp + 1)[shown].all()


# -- schedules and fits ------------------------------------------------------------------------------------------


class _Watch(Objective):
    """Counts who looks at it: steps linearise, choices read its value."""

    name, dense = "watch", True

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def residual(self, pred: Prediction, obs: Observation) -> Tensor:
        self.log.append("step" if pred.linearizing else "choice")
        return pred.betas[:, :1]


def test_dense_terms_count_at_the_end_and_in_choices(body: BodyModel, people: MakePeople) -> None:
    state, observation = people(1)
    log: list[str] = []
    problem = Problem(body, observation, Keypoints2D() + 1e-3 * _Watch(log))
    stages = default_stages(12, dense=True)
    assert [stage.name for stage in stages] == ["place", "coarse", "fine", "soft", "dense"]
    assert [stage.dense for stage in stages[1:]] == [False, False, True, True]
    assert not any(stage.name == "dense" for stage in default_stages(12))
    starts = state.repeat(3)
    solve(
        problem,
        LM(),
        starts,
        stages,
        3,
        on_step=lambda _, stage: log.append(stage),
    )
    last = max(place for place, entry in enumerate(log) if entry == "fine")
    assert set(log[:last]) == {"place", "coarse", "fine"}
    assert log[last + 1] == "choice"
    assert {"step", "soft", "dense"} <= set(log[last:])


def test_a_problem_of_dense_terms_alone_keeps_them(body: BodyModel, scene: Scene) -> None:
    both = Problem(body, scene.observation, TERMS["iuv"] + TERMS["outline"])
    assert [term.name for term in both.staged(dense=False).objective.terms()] == ["iuv"]
    alone = Problem(body, scene.observation, TERMS["parts"] + TERMS["outline"])
    assert len(alone.staged(dense=False).objective.terms()) == 2


def _noisy_keypoints(body: BodyModel, truth: State, observation: Observation) -> Observation:
    xyz = body.keypoints(truth, "mediapipe33")
    pixels = observation.camera.project(xyz) + 8 * _normal(PEOPLE, 33, 2, seed=2)
    points = Keypoints(get_set("mediapipe33"), pixels, torch.ones(PEOPLE, 33, dtype=torch.float64))
    return replace(observation, keypoints=points, world=None)


def _mpvpe(body: BodyModel, found: State, truth: State) -> Tensor:
    """`(B,)` millimetres, around the pelvis."""
    here, there = (body.vertices(state) - body.joints(state)[:, :1] for state in (found, truth))
    return 1000 * (here - there).norm(dim=-1).mean(1)


def test_parts_make_fits_better(body: BodyModel, people: MakePeople) -> None:
    pytest.importorskip("warp", reason="warp-lang is not installed: in plain torch this takes a minute")
    truth, observation = people(PEOPLE)
    observation = _noisy_keypoints(body, truth, observation)
    seen = simulate_maps(body, truth, observation, 64)
    objective = fitkit.default_objective(observation)
    solver = LM(max_steps=12)
    plain = fitkit.fit(observation, objective=objective, solver=solver, body=body)
    parts = fitkit.fit(seen, objective=objective + Parts(), solver=solver, body=body)
    assert "parts" in parts.values
    before, after = (_mpvpe(body, result.state, truth).mean() for result in (plain, parts))
    assert after < 0.9 * before, (before, after)


def test_lbfgs_lowers_them(body: BodyModel, scene: Scene) -> None:
    problem = Problem(body, scene.observation, TERMS["parts"] + TERMS["silhouette"])
    found = solve(problem, fitkit.get_solver("lbfgs"), scene.start, [Stage(4)])
    assert (found.energy < 0.95 * problem.energy(scene.start)).all()


def test_iuv_alone_is_enough(body: BodyModel, scene: Scene) -> None:
    """Without keypoints there is nothing to start from, so a start is given."""
    bare = replace(scene.observation, keypoints=None, world=None, mask=None, parts=None, normals=None)
    result = fitkit.fit(bare, objective=IUV(), start=scene.start, body=body)
    assert all(status in (Outcome.CONVERGED, Outcome.MAX_STEPS, Outcome.STALLED) for status in result.status)
    assert (result.energy < 0.05 * Problem(body, bare, IUV()).energy(scene.start)).all()
    there = body.vertices(scene.truth)[[0, 2]], body.vertices(result.state)[[0, 2]]
    assert (there[0] - there[1]).norm(dim=-1).mean() < 0.05
    with pytest.raises(ValueError, match="keypoints"):
        fitkit.fit(bare, objective=IUV(), body=body)


# -- errors ------------------------------------------------------------------------------------------------------


def test_what_does_not_belong_to_the_body_is_refused(body: BodyModel, scene: Scene) -> None:
    iuv = scene.observation.iuv
    assert iuv is not None
    foreign = replace(scene.observation, iuv=replace(iuv, charts="densepose"))
    with pytest.raises(ValueError, match=r"charts of 'densepose', but body .* use Parts"):
        Problem(body, foreign, IUV()).energy(scene.start)
    points = _surface(body, scene.truth, scene.observation, flat=True)
    other = replace(scene.observation, surface=replace(points, body="smpl"))
    with pytest.raises(ValueError, match=r"points on body 'smpl', but the fit is of"):
        Problem(body, other, SurfacePoints()).energy(scene.start)
    for change in (len(body.faces), -1 - int(points.face.max())):
        wrong = replace(scene.observation, surface=replace(points, face=points.face + change))
        with pytest.raises(ValueError, match=rf"expected 0 to {len(body.faces) - 1}"):
            Problem(body, wrong, SurfacePoints()).energy(scene.start)
    bare = BodyModel(replace(body.data, parts=None), torch.float64)
    with pytest.raises(ValueError, match="has no parts"):
        Problem(bare, scene.observation, Parts(16)).energy(scene.start)


PICTURES: tuple[Callable[..., Objective], ...] = (Parts, Silhouette, Normals)


@pytest.mark.parametrize("kind", [*PICTURES, Outline, IUV, SurfacePoints])
def test_wrong_settings_are_refused(kind: Callable[..., Objective]) -> None:
    settings: dict[str, tuple[float | str, ...]] = {"sigma": (0.0, -1.0, float("nan"))}
    if kind in PICTURES:
        settings |= {"size": (7, 1025), "softness": (0.0, float("inf")), "backend": ("opengl",)}
    elif kind is Outline:
        settings |= {"size": (7,), "count": (7,)}
    else:
        settings |= {"count": (0,)} if kind is IUV else {"sigma_metres": (0.0, -1.0)}
    for name, values in settings.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"objective \w+: {name} (is )?'?{value}'?, expected"):
                kind(**{name: value})

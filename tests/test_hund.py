"""HUND: its frame, what it reads of an observation, every kind of network, its files, and the solver around it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fitkit
from fitkit import geometry
from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.keypoints import Keypoints3D, get_set
from fitkit.maps import PartMap
from fitkit.objectives.keypoints import bones
from fitkit.observation import Observation
from fitkit.solver import Outcome
from fitkit.solvers.hund import HUND, save_network
from fitkit.solvers.hund.context import BONES, PICTURE, POINTS, Context, read_context
from fitkit.solvers.hund.frame import ROOM, Frame
from fitkit.solvers.hund.network import FEEDBACK, Feedback, HundNetwork, Settings
from fitkit.solvers.hund.solver import look
from fitkit.state import State
from tests.hund_cases import TERMS, MakePeople, network, problem_of, same, small

# -- frame -------------------------------------------------------------------------------------------------------


def scenes(count: int, seed: int = 0) -> tuple[Frame, State]:
    """Frames anywhere in photos of odd cameras, and people near them."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=draw, dtype=torch.float64)

    focal, center = uniform(400, 3000, count, 2), uniform(-200, 1400, count, 2)
    camera = Camera(focal, center, 1200, 900)
    box = torch.cat([uniform(-100, 1000, count, 2), uniform(40, 900, count, 2)], 1)
    frame = Frame.of(Observation(camera, box=box))
    turns = geometry.from_6d(torch.randn(count, 22, 6, generator=draw, dtype=torch.float64))
    depth = uniform(1.0, 12.0, count, 1)
    transl = torch.cat([uniform(-1, 1, count, 2) * depth, depth], 1)
    near = 1.7 * ROOM * focal[:, 1:] / frame.size
    transl = transl * (near * uniform(-2, 2, count, 1).exp()) / depth
    betas = torch.randn(count, 16, generator=draw, dtype=torch.float64)
    return frame, State(turns[:, :1], turns[:, 1:], betas, transl)


def test_codes_are_states() -> None:
    frame, state = scenes(200)
    code = frame.encode(state)
    assert code.shape == (200, small().size)
    same(state, frame.decode(code, 16))
    torch.testing.assert_close(frame.encode(frame.decode(code, 16)), code)


def test_any_numbers_are_a_state() -> None:
    frame, _ = scenes(300)
    wild = 5 * torch.randn(300, small().size, generator=torch.Generator().manual_seed(1)).double()
    wild[0], wild[1], wild[2] = 0, 1e6, -1e6
    state = frame.decode(wild, 16)
    assert (state.transl[:, 2] > 0).all()
    rotations = torch.cat([state.global_orient, state.body_pose], 1)[3:]
    eye = torch.eye(3, dtype=torch.float64).expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.mT, eye, atol=1e-8, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(rotations.shape[:2]).double())
    assert all(torch.isfinite(part).all() for part in state.parts().values())


def test_people_look_alike_wherever_the_camera_is_turned() -> None:
    """A turn of the camera moves a person in the photo: but for the roll about the ray, the code stays."""
    frame, state = scenes(100)
    camera = replace(frame.camera, focal=frame.camera.focal[:, :1].expand(-1, 2))
    pixel = camera.project(state.transl[:, None])[:, 0]
    ray = torch.cat([(pixel - camera.center) / camera.focal, torch.ones(100, 1)], 1)
    turns = geometry.exp(0.25 * torch.randn(100, 3, generator=torch.Generator().manual_seed(2)).double())
    moved = (turns @ ray[..., None])[..., 0]
    ahead = moved[:, 2] > 0.3
    other = (moved / moved[:, 2:])[:, :2] * camera.focal + camera.center
    frames = []
    for place in (pixel, other):
        box = torch.cat([place - 50, torch.full((100, 2), 100.0).double()], 1)
        frames.append(Frame.of(Observation(camera, box=box)))
    turned = replace(
        state,
        global_orient=turns[:, None] @ state.global_orient,
        transl=(turns @ state.transl[..., None])[..., 0],
    )
    codes = [one.encode(each)[ahead] for one, each in zip(frames, (state, turned), strict=True)]
    before, after = (geometry.from_6d(code[:, :6]) for code in codes)
    roll = after @ before.mT
    axis = torch.tensor([0.0, 0, 1]).double()
    torch.testing.assert_close(roll @ axis, axis.expand(len(roll), 3))
    torch.testing.assert_close(
        codes[0][:, 6:-1], codes[1][:, 6:-1]
    )  # pose, shape and the middle of the square
    # The depth is along the optical axis, not along the ray.
    change = (turned.transl[:, 2] / state.transl[:, 2])[ahead].log()
    torch.testing.assert_close(codes[1][:, -1] - codes[0][:, -1], change)


def test_the_turn_takes_the_axis_to_the_ray_by_the_shortest_way() -> None:
    frame, _ = scenes(100)
    ray = torch.cat([(frame.center - frame.camera.center) / frame.camera.focal, torch.ones(100, 1)], 1)
    ray = torch.nn.functional.normalize(ray, dim=1)
    torch.testing.assert_close(frame.turn[:, :, 2], ray)
    angle = torch.acos(((frame.turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    torch.testing.assert_close(angle, torch.acos(ray[:, 2]))
    ahead = Camera.from_size(640, 480).to(torch.float64)
    middle = Frame.of(Observation(ahead, box=torch.tensor([[270.0, 140, 100, 200]]).double()))
    torch.testing.assert_close(middle.turn[0], torch.eye(3).double())


def test_the_view_is_the_crop_of_the_camera() -> None:
    frame, _ = scenes(50)
    crop = frame.camera.crop(frame.box, 1, 1)  # in sides of the square, from its corner
    view = frame.view()
    torch.testing.assert_close(view[:, 0], 1 - crop.focal[:, 0].log())
    torch.testing.assert_close(view[:, 1:3], (0.5 - crop.center) / crop.focal)
    low = ((0 - frame.center) / frame.size).clamp(-2, 0)
    high = ((torch.tensor([1200.0, 900.0]) - frame.center) / frame.size).clamp(0, 2)
    torch.testing.assert_close(view[:, 3:], torch.cat([low, high], 1))


def test_frames_of_nobody_and_of_one() -> None:
    frame, state = scenes(5)
    assert frame.select([]).encode(state.select([])).shape == (0, small().size)
    assert len(frame.select([]).decode(torch.zeros(0, small().size).double(), 16)) == 0
    code = frame.encode(state)
    for row in range(5):
        torch.testing.assert_close(frame.select(row).encode(state.select(row)), code[[row]])
    with pytest.raises(ValueError, match="without keypoints and boxes"):
        Frame.of(Observation(frame.camera))


def test_frames_lie_around_the_sure_points(people: MakePeople) -> None:
    _, observation = people(4)
    seen = observation.keypoints
    assert seen is not None
    frame = Frame.of(observation)
    for row in range(4):
        xy = seen.xy[row][seen.confidence[row] > 0.2]
        low, high = xy.amin(0), xy.amax(0)
        torch.testing.assert_close(frame.center[row], (low + high) / 2)
        torch.testing.assert_close(frame.size[row, 0], ROOM * (high - low).max())


# -- context -----------------------------------------------------------------------------------------------------


def context_of(observation: Observation) -> Context:
    return read_context(observation, Frame.of(observation))


def test_what_is_missing_is_zero(people: MakePeople) -> None:
    _, observation = people(3)
    box = observation.keypoints.box()  # type: ignore[union-attr]
    bare = context_of(Observation(observation.camera, box=box))
    for part in (bare.points, bare.directions, bare.picture):
        assert (part == 0).all()
    assert bare.points.dtype == torch.float32
    whole = context_of(observation)
    assert whole.points.shape == (3, len(POINTS), 3)
    assert whole.directions.shape == (3, len(BONES), 4)
    assert whole.picture.shape == (3, 16, PICTURE, PICTURE)
    assert len(context_of(observation.select([])).points) == 0


def test_points_and_bones_land_in_their_places(people: MakePeople) -> None:
    """By name, whatever the order of the set."""
    _, observation = people(2)
    seen, world, frame = observation.keypoints, observation.world, Frame.of(observation)
    assert seen is not None
    assert world is not None
    context = read_context(observation, frame)
    for place, name in enumerate(POINTS):
        row = seen.set.names.index(name)
        wanted = (seen.xy[:, row] - frame.center) / frame.size * (seen.confidence[:, row, None] > 0)
        torch.testing.assert_close(context.points[:, place, :2], wanted.float())
        torch.testing.assert_close(context.points[:, place, 2], seen.confidence[:, row].float())
    for place, (start, end) in enumerate(BONES):
        one, two = (world.set.names.index(name) for name in (start, end))
        along = torch.nn.functional.normalize(world.xyz[:, two] - world.xyz[:, one], dim=-1)
        sure = torch.minimum(world.confidence[:, one], world.confidence[:, two])
        wanted = (frame.turn.mT @ along[..., None])[..., 0] * (sure > 0)[:, None]
        torch.testing.assert_close(
            context.directions[:, place], torch.cat([wanted, sure[:, None]], 1).float()
        )


@pytest.mark.parametrize("name", ["coco17", "openpose25", "coco23", "h36m17", "lsp14"])
def test_other_sets_land_in_the_same_places(people: MakePeople, name: str) -> None:
    _, observation = people(2)
    seen = observation.keypoints
    assert seen is not None
    frame, points = Frame.of(observation), get_set(name)
    other = seen.convert(name)
    xyz = torch.randn(2, len(points), 3, generator=torch.Generator().manual_seed(0)).double()
    world = Keypoints3D(points, xyz, torch.ones(2, len(points)).double())
    whole = read_context(observation, frame)
    part = read_context(replace(observation, keypoints=other, world=world), frame)
    for place, point in enumerate(POINTS):
        wanted = whole.points[:, place] if point in points.names else torch.zeros(2, 3)
        torch.testing.assert_close(part.points[:, place], wanted)
    there = {(points.names[a], points.names[b]) for a, b in bones(points)}
    for place, pair in enumerate(BONES):
        known = part.directions[:, place, 3] > 0
        assert known.all() if pair in there else not known.any()


def test_unseen_points_say_nothing(people: MakePeople) -> None:
    """Wherever they are: through `Keypoints`, and if somebody built them otherwise."""
    _, observation = people(3)
    seen = observation.keypoints
    assert seen is not None
    unseen = replace(seen, confidence=seen.confidence * (torch.arange(33) % 3 > 0))
    before = context_of(replace(observation, keypoints=unseen))
    for place in (-1e9, 123.0, math.nan):
        xy = torch.where(unseen.confidence[..., None] > 0, unseen.xy, torch.full_like(unseen.xy, place))
        after = context_of(replace(observation, keypoints=replace(unseen, xy=xy)))
        torch.testing.assert_close(after.points, before.points)
        torch.testing.assert_close(after.picture, before.picture)
    assert before.points.abs().max() <= 2


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_masks_and_parts_land_in_their_quarter(across: bool, down: bool) -> None:
    camera = Camera.from_size(800, 600).to(torch.float64)
    box = torch.tensor([[200.0, 100, 320, 320]]).double()  # the square is 400 pixels, from (160, 60)
    mask = torch.zeros(1, 300, 400).double()
    x, y = 80 + 100 * across, 30 + 100 * down  # at half the photo's resolution
    mask[:, y : y + 100, x : x + 100] = 1
    rows = slice(12 * down, 12 * down + 12), slice(12 * across, 12 * across + 12)
    wanted = torch.zeros(PICTURE, PICTURE)
    wanted[rows] = 1
    seen = context_of(Observation(camera, box=box, mask=mask)).picture[0]
    torch.testing.assert_close(seen[0], wanted, atol=0.26, rtol=0)  # a bilinear sample at the edge
    assert (seen[1:-1] == 0).all()
    torch.testing.assert_close(seen[-1], torch.ones_like(wanted))

    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[0, 20 * down : 20 * down + 20, 20 * across : 20 * across + 20] = 9
    known = torch.ones(1, 40, 40).double()
    known[:, :, -10:] = 0
    parts = PartMap.from_labels(labels, torch.tensor([[160.0, 60, 400, 400]]).double(), known)
    seen = context_of(Observation(camera, box=box, parts=parts)).picture[0]
    certain = torch.ones(PICTURE, PICTURE)
    certain[:, 18:] = 0
    torch.testing.assert_close(seen[9], wanted * certain, atol=0.3, rtol=0)
    torch.testing.assert_close(seen[0], seen[9])
    others = [channel for channel in range(1, 15) if channel != 9]
    assert (seen[others] == 0).all()
    torch.testing.assert_close(seen[-1], certain, atol=0.3, rtol=0)


# -- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feedback", "heatmaps", "memory", "informed", "gradient"),
    [
        *product(FEEDBACK, [False], [True], [True], [False]),
        *product(["residuals", "none"], [True], [False, True], [False, True], [True]),
        ("values", True, False, False, True),
        ("tokens", False, False, True, True),
    ],
)
def test_every_network(
    body: BodyModel,
    people: MakePeople,
    tmp_path: Path,
    feedback: str,
    heatmaps: bool,
    memory: bool,
    informed: bool,
    gradient: bool,
) -> None:
    settings = small(
        feedback=feedback, heatmaps=heatmaps, memory=memory, informed=informed, gradient=gradient, stages=2
    )
    made = network(settings)
    problem = problem_of(body, people, mask=torch.ones(3, 20, 25).double())
    frame = Frame.of(problem.observation)
    code, numbers = made.begin(read_context(problem.observation, frame))
    recall, before = made.recall(3), None
    for _ in range(2):
        here = frame.decode(numbers.detach().double(), 16)
        before, values = look(settings, problem, frame, here, before)
        numbers, recall = made.stage(numbers, recall, before, code)
        assert values.shape == (3, len(TERMS))
    numbers.square().sum().backward()
    idle = {name for name, each in made.named_parameters() if each.grad is None or not each.grad.abs().any()}
    # An LSTM that forgets after every stage never reads what it has written.
    assert idle == (set() if memory else {"cell.weight_hh"})
    file = save_network(made, tmp_path / "net.safetensors")
    result = fitkit.fit(problem.observation, solver=HUND(file))
    assert result.status == (Outcome.FINISHED,) * 3
    assert torch.isfinite(result.energy).all()


def test_parameters_are_those_of_the_paper() -> None:
    """LSTM of U units that reads R numbers: 4 gates of U (R + U) weights and two biases."""
    settings = small(units=256, context=256)
    made = HundNetwork(settings)
    assert settings.size == 6 * 22 + 16 + 3 == 151
    reads = 151 + 32 + 96 + 256
    cell = sum(parameter.numel() for parameter in made.cell.parameters())
    assert cell == 4 * 256 * (reads + 256) + 2 * 4 * 256
    six = HundNetwork(small(heatmaps=True)).context.heatmaps
    assert six is not None
    kinds = [type(layer).__name__ for layer in six.layers]
    assert kinds.count("Conv2d") == 6
    assert kinds.count("MaxPool2d") == 3


def feedback_of(names: tuple[int, ...], values: Tensor, seed: int = 1) -> Feedback:
    draw = torch.Generator().manual_seed(seed)
    residuals = 0.1 * torch.randn(len(values), len(POINTS), 3, generator=draw)
    return Feedback(names, values, 1.3 * values, residuals)


@pytest.mark.parametrize("kind", ["residuals", "tokens", "values"])
def test_terms_may_come_in_any_order_and_number(kind: str) -> None:
    made = network(small(feedback=kind))
    values = torch.rand(4, len(TERMS), generator=torch.Generator().manual_seed(0)) * 50
    names = tuple(range(1, len(TERMS) + 1))
    draw = torch.Generator().manual_seed(3)
    state, code = torch.randn(4, made.settings.size, generator=draw), torch.randn(4, 16, generator=draw)

    def answer(names: tuple[int, ...], values: Tensor) -> Tensor:
        return made.stage(state, made.recall(4), feedback_of(names, values), code)[0]

    whole = answer(names, values)
    order = [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(answer(tuple(names[i] for i in order), values[:, order]), whole)
    more = torch.cat([values, 7 * values[:, :2]], 1)
    with_strangers = answer((*names, 0, 0), more)
    assert with_strangers.shape == whole.shape
    if kind == "values":
        torch.testing.assert_close(with_strangers, whole)
    else:
        assert (with_strangers - whole).abs().max() > 1e-5  # they are seen
        swapped = answer((*names, 0, 0), more[:, [*range(6), 7, 6]])
        torch.testing.assert_close(swapped, with_strangers)
    assert answer(names[:2], values[:, :2]).shape == whole.shape
    bad = values.clone()
    bad[0, 1] = torch.inf
    odd = answer(names, bad)
    assert torch.isfinite(odd).all()
    torch.testing.assert_close(odd[1:], whole[1:])


def test_an_open_loop_reads_no_objective_and_a_plain_one_no_memory() -> None:
    values = torch.rand(2, len(TERMS))
    names = tuple(range(1, len(TERMS) + 1))
    state, code = torch.zeros(2, small().size), torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    deaf = network(small(feedback="none"))
    first = deaf.stage(state, deaf.recall(2), feedback_of(names, values), code)
    again = deaf.stage(state, deaf.recall(2), feedback_of(names, 9 * values, 2), code)
    torch.testing.assert_close(first[0], again[0])
    for memory in (False, True):
        made = network(small(memory=memory))
        one = made.stage(state, made.recall(2), feedback_of(names, values), code)
        two = made.stage(state, one[1], feedback_of(names, values), code)
        assert torch.equal(one[0], two[0]) == (not memory)
    blind = network(small(informed=False))
    seen, unseen = (
        blind.stage(state, blind.recall(2), feedback_of(names, values), c)[0] for c in (code, 2 * code)
    )
    torch.testing.assert_close(seen, unseen)


def test_settings_that_cannot_be_are_refused() -> None:
    for changes in ({"feedback": "all"}, {"stages": 0}, {"units": 0}, {"joints": 0}):
        with pytest.raises(ValueError, match="expected"):
            small(**changes)
    settings = small(gradient=True)
    assert Settings.read(json.loads(json.dumps(asdict(settings)))) == settings


def test_slopes_are_those_of_the_energy(body: BodyModel, people: MakePeople) -> None:
    """Of log(1 + E) in the numbers, by differences."""
    problem = problem_of(body, people, 2)
    frame = Frame.of(problem.observation)
    state, _ = people(2)
    settings = small(gradient=True)
    slope = look(settings, problem, frame, state, None)[0].gradient
    assert slope is not None
    assert (slope.norm(dim=1) <= 1 + 1e-5).all()
    code = frame.encode(state)
    found = []
    for column in range(code.shape[1]):
        step = torch.zeros_like(code)
        step[:, column] = 1e-5
        ends = [problem.energy(frame.decode(code + sign * step, 16)).log1p() for sign in (1, -1)]
        found.append((ends[0] - ends[1]) / 2e-5)
    wanted = torch.stack(found, 1)
    wanted = wanted / wanted.norm(dim=1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(slope, wanted.float(), atol=2e-4, rtol=1e-3)


def test_residuals_are_those_of_the_photo(body: BodyModel, people: MakePeople) -> None:
    problem = problem_of(body, people, 2)
    seen, frame, (state, _) = problem.observation.keypoints, Frame.of(problem.observation), people(2)
    assert seen is not None
    residuals = look(small(), problem, frame, state, None)[0].residuals
    pixels = problem.observation.camera.project(body.keypoints(state, "mediapipe33"))
    for place, name in enumerate(POINTS):
        row = seen.set.names.index(name)
        away = ((pixels - seen.xy)[:, row] / frame.size).clamp(-1, 1) * seen.confidence[:, row, None]
        wanted = torch.cat([away, away.norm(dim=1, keepdim=True)], 1).float()
        torch.testing.assert_close(residuals[:, place], wanted)

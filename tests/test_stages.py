"""The picture of a fit step by step: which steps, where the bodies are, whom it leaves out, and its command."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fitkit
import fitkit.api
from fitkit._select import Rows
from fitkit.cli import main
from fitkit.keypoints import Keypoints, get_set
from fitkit.observation import Observation
from fitkit.problem import Problem
from fitkit.result import FitResult
from fitkit.show import draw_stages
from fitkit.show.stages import pick_steps
from fitkit.solver import Outcome, Solver, Status
from fitkit.solvers import LM
from fitkit.state import State

WIDTH, GAP = 100, 3
ABOVE, BELOW = 16, 13
GREY = 90


@dataclass(frozen=True)
class Nothing(Rows):
    """What the solver remembers."""

    count: Tensor

    def __len__(self) -> int:
        return len(self.count)


class March(Solver):
    """Stands in for a network: a body that walks 0.25 m to the right with every step, and never looks."""

    name = "march"

    def __init__(self, steps: int = 4) -> None:
        self.max_steps = steps

    def start(self, problem: Problem) -> State | None:
        people = len(problem)
        upright = torch.diag(torch.tensor([1.0, -1.0, -1.0])).double().expand(people, 1, 3, 3)
        place = torch.tensor([-0.5, 0.4, 4.0], dtype=torch.float64).repeat(people, 1)
        return replace(problem.body.neutral(people), global_orient=upright, transl=place)

    def init(self, problem: Problem, state: State) -> tuple[Nothing, Status]:
        values = torch.stack(list(problem.values(state).values()), 1)
        running = torch.full((len(state),), int(Outcome.RUNNING))
        return Nothing(running), Status(running, values.sum(1), values)

    def step(self, problem: Problem, state: State, memory: Nothing) -> tuple[State, Nothing, Status]:
        moved = replace(state, transl=state.transl + torch.tensor([0.25, 0, 0], dtype=torch.float64))
        return moved, memory, self.init(problem, moved)[1]


@pytest.fixture(scope="module")
def seen(body: Any) -> Observation:
    """Two people where the march ends, in a grey photo; the second is farther away."""
    end = torch.tensor([[0.5, 0.4, 4.0], [-0.5, 0.4, 6.0]], dtype=torch.float64)
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0])).double().expand(2, 1, 3, 3)
    state = replace(body.neutral(2), global_orient=upright, transl=end)
    camera = fitkit.Camera.from_size(1000, 800).expand(2).to(torch.float64)
    points = get_set("coco17")
    xy = camera.project(body.keypoints(state, "coco17"))
    sure = torch.ones(2, 17, dtype=torch.float64)
    return Observation(camera, Keypoints(points, xy, sure), image=np.full((800, 1000, 3), GREY, np.uint8))


@pytest.fixture(scope="module")
def result(seen: Observation) -> FitResult:
    return fitkit.fit(seen, solver=March(), states=True)


def _cells(picture: np.ndarray, columns: int = 8) -> list[np.ndarray]:
    """The cells of a sheet of one person."""
    assert picture.shape[1] == GAP + columns * (WIDTH + GAP)
    row = picture[ABOVE : -BELOW - GAP]
    return [row[:, GAP + column * (WIDTH + GAP) :][:, :WIDTH] for column in range(columns)]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 20, 51, 3000])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_steps_rise_from_the_start_to_the_last(count: int, steps: int) -> None:
    chosen = pick_steps(count, steps)
    assert (chosen[0], chosen[-1]) == (0, count - 1)
    assert len(chosen) == min(count, steps + 1)
    assert (np.diff(chosen) > 0).all()


def test_many_steps_lie_evenly_on_a_logarithmic_scale() -> None:
    assert np.allclose(np.diff(np.log(pick_steps(100_001, 6)[1:])), np.log(10), atol=1e-3)


def test_a_body_walks_through_the_cells(result: FitResult) -> None:
    picture = draw_stages(result[0], width=WIDTH)
    photo, *over, side, above = _cells(picture)
    assert (photo == GREY).all()
    masks = [(cell != photo).any(-1) for cell in over]
    middle = [np.nonzero(mask)[1].mean() for mask in masks if mask.any()]
    assert (np.diff(middle) > 5).all()
    for cell in (side, above):
        assert (cell.astype(int)[..., 2] - cell[..., 0] > 60).sum() > 50  # blue on paper
    # The last body stands where the person was seen, with room on all sides.
    rows, columns = np.nonzero(masks[-1])
    height = photo.shape[0]
    assert columns.mean() == pytest.approx(WIDTH / 2, abs=WIDTH / 8)
    assert 0 < rows.min() < 0.2 * height < 0.8 * height < rows.max() < height - 1


def test_a_row_for_each_person_in_their_colour(result: FitResult) -> None:
    first = draw_stages(result, people=1, width=WIDTH)
    failed = replace(result, status=(Outcome.NOT_FINITE, result.status[1]))
    second = draw_stages(failed, width=WIDTH)
    assert np.array_equal(draw_stages(result, width=WIDTH), np.concatenate([first, second[ABOVE:]]))
    assert np.array_equal(first, draw_stages(result[0], width=WIDTH))
    blue, orange = (_cells(one)[-2].astype(int) for one in (first, second))
    assert ((blue[..., 2] - blue[..., 0]) > 60).any()
    assert ((orange[..., 0] - orange[..., 2]) > 60).any()


def test_energies_are_written_below_the_bodies_only(result: FitResult) -> None:
    picture = draw_stages(result[0], width=WIDTH)
    below = picture[-BELOW - GAP : -GAP]
    inked = [(below[:, GAP + k * (WIDTH + GAP) :][:, :WIDTH] < 200).any() for k in range(8)]
    assert inked == [False, *[True] * 5, False, False]


def test_where_a_stage_begins_is_drawn_once(seen: Observation) -> None:
    result = fitkit.fit(seen.select(0), solver=fitkit.chain(March(2), LM(2)), states=True)
    assert result.trace is not None
    assert len(result.trace.states) == 6
    _cells(draw_stages(result, width=WIDTH), 1 + 5 + 2)


@pytest.mark.parametrize("kind", ["no photo", "edge", "astray", "no keypoints", "behind"])
def test_odd_people(result: FitResult, kind: str) -> None:
    one = result[0]
    seen, keypoints, trace = one.observation, one.observation.keypoints, one.trace
    assert keypoints is not None
    assert trace is not None
    states = trace.states
    if kind == "no photo":
        seen = replace(seen, image=None)
    elif kind == "edge":
        seen = replace(seen, keypoints=replace(keypoints, xy=keypoints.xy + 450))
    elif kind == "no keypoints":
        seen = replace(seen, keypoints=None)
    else:
        depth = 0.3 if kind == "astray" else -4.0
        states = tuple(replace(state, transl=state.transl * torch.tensor([1, 1, depth])) for state in states)
    trace.__dict__["states"] = states  # in the place of what was worked out when it was first asked for
    cells = _cells(draw_stages(replace(one, observation=seen), width=WIDTH))
    assert 0.7 * WIDTH < len(cells[0]) < 2.3 * WIDTH
    assert all(cell.std() > 1 for cell in cells[-2:])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda result: result[[]], {}, "nobody was fitted"),
        (lambda result: replace(result, trace=None), {}, r"keeps no states, expected.*states=True"),
        (lambda result: replace(result, status=(Outcome.NOT_FINITE,) * 2), {}, "nobody of the result"),
        (lambda result: result, {"people": 0}, "people is 0, expected 1"),
        (lambda result: result, {"steps": 0}, "steps is 0, expected 1"),
        (lambda result: result, {"width": 10}, "width is 10, expected 64"),
    ],
)
def test_refusals(
    result: FitResult, change: Callable[[FitResult], FitResult], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_stages(change(result), **options)


def test_without_states_there_is_nothing_to_draw(seen: Observation) -> None:
    with pytest.raises(ValueError, match="keeps no states"):
        draw_stages(fitkit.fit(seen, solver=March(1)))


# ---- the command


@pytest.fixture
def photos(seen: Observation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A photo in the current folder, and a `fit` of the two people that asks no detector; or what is put here."""
    answers: dict[str, Any] = {}
    real = fitkit.api.fit

    def fit(photo: Any, **options: Any) -> FitResult:
        known = {name: options[name] for name in ("states", "on_step")}
        return (
            answers["next"] if "next" in answers else real(answers.get("seen", seen), solver=March(), **known)
        )

    monkeypatch.setattr(fitkit.api, "fit", fit)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (100, 80)).save("a.png")
    return answers


def test_command(photos: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stages", "a.png", "--solver", "lm"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.fullmatch(r"a\.png: 2 people, solver lm, [\d.]+ s; fitkit-stages\.png\n", out)
    with Image.open("fitkit-stages.png") as image:
        assert image.width == 7 + 8 * (220 + 7)
        tall = image.height
    assert main("stages --rows 1 --steps 2 --solver lm --out x.png a.png".split()) == 0
    assert "2 people, the first 1 of them drawn, solver lm" in capsys.readouterr().out
    with Image.open("x.png") as image:
        assert image.width == 7 + 6 * (220 + 7)
        assert image.height < 0.6 * tall


def test_command_of_nobody_of_failed_people_and_without_states(
    photos: dict[str, Any], result: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "stages a.png --solver lm".split()
    for answer, message in (
        (result[[]], "a.png: nobody found; try --box"),
        (replace(result, status=(Outcome.NOT_ENOUGH_SEEN,) * 2), "a.png: person 0: failed: fewer than 4"),
        (replace(result, trace=None), "a.png: the trace keeps no states"),
    ):
        photos["next"] = answer
        assert main(line) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"fitkit: error: {message}")
        assert err.count("\n") == 1
        assert not Path("fitkit-stages.png").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no file was given, expected one PHOTO"),
        ("a.png b.png", "a.png b.png was given, expected one PHOTO"),
        ("a.png --out x.jpg", "ends in .png"),
        ("a.png --out gone/x.png", "no folder gone"),
        ("a.png --rows 0", "'0', expected a whole number from 1 to 9999"),
        ("a.png --steps some", "'some', expected a whole number"),
        ("a.png --solver newton", "unknown solver 'newton'"),
        ("a.png --opacity 1", "unrecognized arguments: --opacity"),
    ],
)
def test_wrong_use(
    photos: dict[str, Any], capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert main(["stages", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fitkit: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(path.name for path in Path().iterdir()) == ["a.png"]


def test_fit_saves_them_where_asked(photos: dict[str, Any], seen: Observation) -> None:
    photos["seen"] = seen.select(0)
    assert main(["fit", "a.png", "--stages", "--out", "o"]) == 0
    with Image.open("o/stages.png") as image:
        assert image.width == 7 + 8 * (220 + 7)
    assert "Step by step" in Path("o/report.html").read_text(encoding="utf-8")
    assert main(["fit", "a.png", "--out", "o"]) == 0
    assert not Path("o/stages.png").exists()
    assert "Step by step" not in Path("o/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("solver", ["hund", "lm"])
def test_a_real_photo(
    astronaut: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    solver: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(astronaut).save("astronaut.png")
    assert main(["stages", "astronaut.png", "--solver", solver]) == 0
    assert f"astronaut.png: 1 person, solver {solver}, " in capsys.readouterr().out
    with Image.open("fitkit-stages.png") as image:
        assert image.width == 7 + (9 if solver == "hund" else 10) * (220 + 7)

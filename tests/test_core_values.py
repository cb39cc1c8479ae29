"""Cameras, states, keypoint sets, observations, coordinates: the values that everything else is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fitkit import geometry
from fitkit.body import open_body
from fitkit.camera import Camera, translation_from_keypoints
from fitkit.coordinates import Coordinates, SixD, Tangent, retract
from fitkit.keypoints import Keypoints, get_set, set_names
from fitkit.observation import Observation
from fitkit.state import State

torch.manual_seed(0)


def random_state(people: int = 3, hands: bool = False) -> State:
    turn = lambda joints: geometry.exp(0.4 * torch.randn(people, joints, 3, dtype=torch.float64))  # noqa: E731
    state = replace(
        open_body().to(torch.float64).neutral(people),
        global_orient=turn(1),
        body_pose=turn(21),
        betas=torch.randn(people, 16, dtype=torch.float64),
        transl=torch.randn(people, 3, dtype=torch.float64) + torch.tensor([0.0, 0.0, 5.0]),
    )
    if not hands:
        return state
    return replace(
        state, left_hand_pose=turn(15), right_hand_pose=turn(15), expression=torch.randn(people, 10).double()
    )


def test_crop_camera_projects_like_the_full_one() -> None:
    camera = Camera.from_intrinsics(900.0, 950.0, 310.0, 250.0, 640, 480).to(torch.float64)
    points = torch.randn(1, 20, 3, dtype=torch.float64).clamp(-2, 2) + torch.tensor([0, 0, 4.0])
    box = torch.tensor([[100.0, 50.0, 240.0, 240.0]], dtype=torch.float64)
    full, crop = camera.project(points), camera.crop(box, 480, 480).project(points)
    torch.testing.assert_close(crop, (full - box[:, None, :2]) * 2)


def test_weak_perspective_round_trip() -> None:
    camera = Camera.from_size(640, 480).expand(2).to(torch.float64)
    transl = torch.tensor([[0.1, -0.2, 4.0], [1.0, 0.5, 9.0]], dtype=torch.float64)
    torch.testing.assert_close(camera.from_weak_perspective(camera.to_weak_perspective(transl)), transl)


def test_focal_length_in_millimetres_is_refused() -> None:
    with pytest.raises(ValueError, match=r"29.*millimetres"):
        Camera.from_size(4000, 3000, focal=29.0)
    with pytest.raises(ValueError, match="0 x 480"):
        Camera.from_size(0, 480)


def test_translation_is_exact_for_exact_keypoints() -> None:
    camera = Camera.from_size(640, 480).expand(3).to(torch.float64)
    points = torch.randn(3, 17, 3, dtype=torch.float64)
    transl = torch.tensor([[0.2, -0.1, 4.0], [-1.0, 0.3, 6.0], [0.0, 0.0, 12.0]], dtype=torch.float64)
    pixels = camera.project(points + transl[:, None])
    confidence = torch.rand(3, 17, dtype=torch.float64)
    torch.testing.assert_close(translation_from_keypoints(points, pixels, confidence, camera), transl)


def test_translation_of_an_unseen_person_is_finite_and_in_front() -> None:
    camera = Camera.from_size(640, 480).to(torch.float64)
    points = torch.randn(1, 17, 3, dtype=torch.float64)
    for confidence in (torch.zeros(1, 17), torch.nn.functional.one_hot(torch.tensor([3]), 17).float()):
        found = translation_from_keypoints(
            points, torch.zeros(1, 17, 2).double(), confidence.double(), camera
        )
        assert torch.isfinite(found).all()
        assert found[0, 2] > 0.3


@pytest.mark.parametrize("hands", [False, True])
def test_state_survives_a_file(tmp_path: Path, hands: bool) -> None:
    state = random_state(hands=hands)
    state.save(tmp_path / "params.npz")
    loaded = State.load(tmp_path / "params.npz")
    assert loaded.parts().keys() == state.parts().keys()
    for name, value in state.parts().items():
        torch.testing.assert_close(getattr(loaded, name), value)
    with np.load(tmp_path / "params.npz") as archive:
        assert archive["body_pose"].shape == (3, 63)


def test_state_file_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        State.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz"):
        State.load(tmp_path / "text.npz")
    np.savez(tmp_path / "less.npz", betas=np.zeros((1, 10)))
    with pytest.raises(ValueError, match=r"less\.npz.*global_orient"):
        State.load(tmp_path / "less.npz")


@pytest.mark.parametrize("name", set_names())
def test_flips_are_involutions(name: str) -> None:
    points = get_set(name)
    flip = points.flip
    assert [flip[flip[k]] for k in range(len(points))] == list(range(len(points)))
    assert len(set(points.names)) == len(points)


def test_unknown_set_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"coco71.*coco17"):
        get_set("coco71")


def test_nan_keypoints_become_unseen() -> None:
    xy = torch.rand(2, 17, 2)
    xy[0, 3, 0] = float("nan")
    confidence = torch.ones(2, 17)
    confidence[1, 5] = float("nan")
    confidence[1, 6] = -1.0
    seen = Keypoints(get_set("coco17"), xy, confidence)
    assert seen.confidence[0, 3] == seen.confidence[1, 5] == seen.confidence[1, 6] == 0
    assert torch.isfinite(seen.xy).all()
    with pytest.raises(ValueError, match=r"coco17.*\(2, 16, 2\)"):
        Keypoints(get_set("coco17"), xy[:, 1:], confidence[:, 1:])


def test_conversion_keeps_shared_names() -> None:
    seen = Keypoints(get_set("coco17"), torch.rand(1, 17, 2), torch.ones(1, 17))
    other = seen.convert("openpose25")
    assert other.confidence.sum() == 17
    torch.testing.assert_close(other.convert("coco17").xy, seen.xy)


def test_rows_are_selected_repeated_and_joined() -> None:
    camera = Camera.from_size(10, 10).expand(3)
    observation = Observation(camera, Keypoints(get_set("coco17"), torch.rand(3, 17, 2), torch.rand(3, 17)))
    assert observation.keypoints is not None
    assert len(observation.select(-1)) == 1
    assert len(observation.select(slice(0, 2))) == 2
    twice = observation.repeat(2)
    assert twice.keypoints is not None
    torch.testing.assert_close(twice.keypoints.xy[0], twice.keypoints.xy[1])
    with pytest.raises(IndexError, match=r"0\.\.2"):
        observation.select(3)
    with pytest.raises(ValueError, match="score is of 2 people"):
        Observation(camera, score=torch.ones(2))


@pytest.mark.parametrize("chart", [Tangent, SixD])
@pytest.mark.parametrize("free", [None, ("transl", "body_pose")])
def test_coordinates_go_there_and_back(chart: type[Coordinates], free: tuple[str, ...] | None) -> None:
    reference, state = random_state(), random_state()
    coordinates = chart(reference, free)
    decoded = coordinates.decode(coordinates.encode(state))
    for name, value in decoded.parts().items():
        wanted = state if free is None or name in free else reference
        torch.testing.assert_close(value, getattr(wanted, name))
    assert coordinates.size == sum(block.stop - block.start for block in coordinates.blocks.values())
    with pytest.raises(ValueError, match="left_hand_pose"):
        chart(reference, ("left_hand_pose",))


def test_retraction_agrees_with_the_chart_and_is_bounded() -> None:
    state = random_state()
    chart = Tangent(state)
    delta = 0.1 * torch.randn(3, chart.size, dtype=torch.float64)
    moved, decoded = retract(state, delta, chart.blocks), chart.decode(chart.encode(state) + delta)
    for name, value in moved.parts().items():
        torch.testing.assert_close(value, getattr(decoded, name))
    far = retract(state, 100 * delta, chart.blocks, trust=0.5)
    assert geometry.geodesic(far.body_pose, state.body_pose).max() < 0.5 + 1e-6

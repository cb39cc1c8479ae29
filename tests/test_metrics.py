"""Metrics against closed forms: what they must forgive, what they must not, and where their edges lie."""

from __future__ import annotations

import math

import pytest
import torch

from fitkit import geometry
from fitkit.keypoints import get_set
from fitkit.metrics import (
    COCO_SIGMAS,
    LIMBS,
    joint_angle_error,
    mask_iou,
    match_people,
    mpjpe,
    oks,
    pa_mpjpe,
    pck,
    procrustes,
    within,
)


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(4, 22, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture
def rotation() -> torch.Tensor:
    return geometry.exp(torch.randn(4, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64))


def test_nothing_is_wrong_with_the_truth(points: torch.Tensor, rotation: torch.Tensor) -> None:
    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(mpjpe(points, points), zero)
    torch.testing.assert_close(pa_mpjpe(points, points), zero, atol=1e-12, rtol=0)
    same = rotation[:, None].expand(4, 21, 3, 3)
    torch.testing.assert_close(joint_angle_error(same, same), zero)


def test_mpjpe_forgives_what_its_protocol_says(points: torch.Tensor) -> None:
    shift = torch.tensor([0.3, -0.4, 1.2], dtype=torch.float64)
    torch.testing.assert_close(mpjpe(points + shift, points, root=None), torch.full((4,), 1.3).double())
    torch.testing.assert_close(mpjpe(points + shift, points, root=(1, 2)), torch.zeros(4).double())
    moved = points.clone()
    moved[:, 5] += shift
    torch.testing.assert_close(mpjpe(moved, points), torch.full((4,), 1.3 / 22).double())
    torch.testing.assert_close(mpjpe(moved, points, joints=[5]), torch.full((4,), 1.3).double())
    # The root itself is the joint that is off: all the others pay for it.
    moved = points.clone()
    moved[:, 0] += shift
    torch.testing.assert_close(mpjpe(moved, points), torch.full((4,), 1.3 * 21 / 22).double())


def test_procrustes_finds_a_known_similarity(points: torch.Tensor, rotation: torch.Tensor) -> None:
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    shift = torch.arange(12, dtype=torch.float64).view(4, 3)
    target = scale[:, None, None] * points @ rotation.mT + shift[:, None]
    found = procrustes(points, target)
    for got, wanted in zip(found, (scale, rotation, shift), strict=True):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(pa_mpjpe(points, target), torch.zeros(4).double(), atol=1e-12, rtol=0)
    unscaled, turned, _ = procrustes(points, target, scaled=False)
    assert (unscaled == 1).all()
    torch.testing.assert_close(turned, rotation)


def test_procrustes_agrees_with_scipy(points: torch.Tensor) -> None:
    from scipy.spatial.transform import Rotation

    target = points.flip(1) + 0.1 * points
    _, rotation, _ = procrustes(points, target)
    for mine, first, second in zip(rotation, points, target, strict=True):
        oracle, _ = Rotation.align_vectors((second - second.mean(0)).numpy(), (first - first.mean(0)).numpy())
        torch.testing.assert_close(mine, torch.from_numpy(oracle.as_matrix()))


def test_a_mirror_image_is_not_the_original(points: torch.Tensor) -> None:
    mirrored = points * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    _, rotation, _ = procrustes(points, mirrored)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4).double())
    assert (pa_mpjpe(points, mirrored) > 0.1).all()


def test_angles_are_degrees_and_limbs_are_the_limbs() -> None:
    names = [get_set("smplx55").names[row + 1] for row in LIMBS]
    assert sorted(names) == sorted(
        f"{s}_{j}" for s in ("left", "right") for j in ("hip", "knee", "shoulder", "elbow")
    )
    rest = torch.eye(3, dtype=torch.float64).expand(2, 21, 3, 3)
    turned = rest.clone()
    turned[:, LIMBS[0]] = geometry.exp(torch.tensor([0.0, math.radians(80), 0.0], dtype=torch.float64))
    torch.testing.assert_close(joint_angle_error(turned, rest), torch.full((2,), 80 / 21).double())
    torch.testing.assert_close(joint_angle_error(turned, rest, LIMBS), torch.full((2,), 10.0).double())


def test_pck_counts_the_edge_the_annotated_and_the_missing() -> None:
    target = torch.zeros(1, 5, 2, dtype=torch.float64)
    xy = torch.tensor([[[10.0, 0], [10.01, 0], [0, 0], [float("nan"), 0], [3, 4]]], dtype=torch.float64)
    size = torch.tensor([100.0], dtype=torch.float64)
    assert within(xy, target, size, 0.1).tolist() == [[True, False, True, False, True]]
    seen = torch.tensor([[True, True, True, True, False]])
    assert float(pck(xy, target, seen, size, 0.1)) == 0.5
    assert float(pck(xy, target, seen, size, 0.05)) == 0.25
    assert math.isnan(float(pck(xy, target, ~(seen | True), size)))


def test_oks_follows_coco() -> None:
    assert len(COCO_SIGMAS) == len(get_set("coco17"))
    target = torch.zeros(1, 17, 2, dtype=torch.float64)
    area, seen = torch.tensor([400.0], dtype=torch.float64), torch.ones(1, 17, dtype=torch.bool)
    # Every point off by 2 sigma sqrt(area): each scores exp(-1/2), whatever its sigma.
    off = torch.tensor(COCO_SIGMAS, dtype=torch.float64) * 2 * 20
    xy = torch.stack([off, torch.zeros(17, dtype=torch.float64)], -1)[None]
    assert float(oks(xy, target, seen, area)) == pytest.approx(math.exp(-0.5))
    assert float(oks(target, target, seen, area)) == 1
    # A point without annotation does not count; one without prediction counts as wrong.
    xy[0, 3] = float("nan")
    assert float(oks(xy, target, seen, area)) == pytest.approx(math.exp(-0.5) * 16 / 17)
    seen[0, 3] = False
    assert float(oks(xy, target, seen, area)) == pytest.approx(math.exp(-0.5))
    # The hip is the most forgiving point, the eyes are the least.
    assert COCO_SIGMAS.index(max(COCO_SIGMAS)) == get_set("coco17").index("left_hip")
    assert COCO_SIGMAS.index(min(COCO_SIGMAS)) == get_set("coco17").index("left_eye")


def test_people_are_matched_one_to_one() -> None:
    similarity = torch.tensor([[0.6, 0.9, 0.0], [0.7, 0.8, 0.0], [0.55, 0.0, 0.5]])
    assert match_people(similarity, 0.5).tolist() == [1, 0, -1]
    assert match_people(similarity, 0.0).tolist() == [1, 0, 2]
    assert match_people(torch.zeros(0, 2)).tolist() == [-1, -1]
    assert match_people(torch.zeros(3, 0)).tolist() == []


def test_mask_iou() -> None:
    mask = torch.zeros(3, 4, 4)
    target = torch.zeros(3, 4, 4)
    mask[0, :2], target[0, 1:3] = 1.0, 1.0
    mask[1, :2], target[1, :2] = 0.9, 0.6
    assert mask_iou(mask, target).tolist() == pytest.approx([1 / 3, 1.0, 1.0])


@pytest.mark.parametrize(
    "call",
    [
        lambda: mpjpe(torch.zeros(2, 5, 3), torch.zeros(2, 6, 3)),
        lambda: joint_angle_error(torch.zeros(2, 5, 3, 3), torch.zeros(1, 5, 3, 3)),
        lambda: within(torch.zeros(2, 5, 2), torch.zeros(2, 5, 2), torch.zeros(1), 0.1),
        lambda: mask_iou(torch.zeros(1, 4, 4), torch.zeros(1, 8, 8)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    # Under the tests' type checks jaxtyping sees it first; without them the message is the metric's own.
    with pytest.raises(Exception, match=r"(?i)expected"):
        call()

"""What HUND learns from: meta-losses against numbers made by hand, losses with and without 3D labels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fitkit.body import BodyModel, open_body
from fitkit.objectives import Keypoints2D, Objective, Parts
from fitkit.problem import Problem
from fitkit.solvers.hund.context import POINTS
from fitkit.state import State
from fitkit.train.hund import Batch
from fitkit.train.hund_losses import META, BodyPoints, Target, meta_loss, self_supervised, supervised
from tests.hund_cases import batch_of, moved


@pytest.fixture(scope="module")
def single() -> BodyModel:
    return open_body()


# -- meta-losses -------------------------------------------------------------------------------------------------

UNITS = torch.tensor(
    [[8.0, 2.0], [5.0, 3.0], [6.0, 1.0], [4.0, 4.0]]
)  # initial state and three stages, two people
BY_HAND = {
    "sum": ((5 + 6 + 4) + (3 + 1 + 4)) / 2,
    "last": (4 + 4) / 2,
    "min": (4 + 1) / 2,
    "max": (6 + 4) / 2,
    # (5 - 8) + 0 + (4 - 5), and 0 + (1 - 2) + 0
    "improvement": (-4 - 1) / 2,
}


@pytest.mark.parametrize("kind", META)
def test_meta_losses_by_hand(kind: str) -> None:
    start = 0.5 * (8 + 2) / 2
    assert float(meta_loss(kind, UNITS)) == pytest.approx(BY_HAND[kind] + start)
    alone = torch.stack([meta_loss(kind, UNITS[:, [row]]) for row in range(2)])
    assert float(alone.mean()) == pytest.approx(BY_HAND[kind] + start)


@pytest.mark.parametrize("kind", META)
def test_meta_losses_pull_everything_down(kind: str) -> None:
    """No unit loss is better for being larger: also not the initial state's, beside which improvement looks good."""
    units = UNITS.clone().requires_grad_(True)
    meta_loss(kind, units).backward()
    assert units.grad is not None
    assert (units.grad[0] >= 0).all()
    assert (units.grad[0] > 0).all()
    if kind != "improvement":
        assert (units.grad >= 0).all()


def test_improvement_is_equation_8() -> None:
    units = torch.rand(6, 9, generator=torch.Generator().manual_seed(0)).double()
    total = 0.0
    for person in range(9):
        for i in range(1, 6):
            best = min(float(units[j, person]) for j in range(i))
            total += min(float(units[i, person]) - best, 0.0)
    wanted = total / 9 + 0.5 * float(units[0].mean())
    assert float(meta_loss("improvement", units)) == pytest.approx(wanted)


def test_another_meta_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"meta-loss 'mean'.*sum"):
        meta_loss("mean", UNITS)


# -- unit losses -------------------------------------------------------------------------------------------------


def test_points_of_training_are_those_of_the_body(single: BodyModel) -> None:
    scene = batch_of(single).scene
    joints, keypoints, vertices = BodyPoints(single)(scene.state)
    torch.testing.assert_close(joints, single.joints(scene.state)[:, :22], atol=1e-5, rtol=1e-5)
    from fitkit.keypoints import get_set

    rows = [get_set("mediapipe33").names.index(name) for name in POINTS]
    wanted = single.keypoints(scene.state, "mediapipe33")[:, rows]
    torch.testing.assert_close(keypoints, wanted, atol=1e-5, rtol=1e-5)
    anchors = single.anchors[::6]
    # The surface of training has no pose correctives: millimetres, and none at rest.
    assert (vertices - single.vertices(scene.state)[:, anchors]).norm(dim=-1).mean() < 2e-3
    rest = replace(single.neutral(2), betas=torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(
        BodyPoints(single)(rest)[2], single.vertices(rest)[:, anchors], atol=1e-5, rtol=1e-5
    )
    assert vertices.shape[1] > 30


def test_full_supervision_is_least_at_the_truth(single: BodyModel) -> None:
    batch, points = batch_of(single, 8), BodyPoints(single)
    target = Target.of(points, batch.scene, batch.frame.size[:, 0])
    losses = [supervised(points, moved(batch.scene.state, size), target) for size in (0.0, 0.03, 0.1, 0.3)]
    assert losses[0].shape == (8,)
    assert (losses[0] < 5e-3).all()
    for less, more in pairwise(losses):
        assert (less < more).all()
    behind = replace(batch.scene.state, transl=-batch.scene.state.transl)
    assert torch.isfinite(supervised(points, behind, target)).all()


def test_full_supervision_has_a_gradient_everywhere(single: BodyModel) -> None:
    """Also at the truth itself, where lengths have none."""
    batch, points = batch_of(single, 3), BodyPoints(single)
    target = Target.of(points, batch.scene, batch.frame.size[:, 0])
    for size in (0.0, 0.2):
        code = batch.frame.encode(moved(batch.scene.state, size)).requires_grad_(True)
        supervised(points, batch.frame.decode(code, 16), target).sum().backward()
        assert code.grad is not None
        assert torch.isfinite(code.grad).all()


def observed_loss(batch: Batch, state: State) -> Tensor:
    return self_supervised(batch.problem, state, batch.pictured)


def test_self_supervision_reads_what_was_seen_alone(single: BodyModel) -> None:
    batch = batch_of(single, supervision="SS", pictured=2)
    state = moved(batch.scene.state, 0.1)
    before = observed_loss(batch, state)
    elsewhere = replace(batch, scene=replace(batch.scene, state=moved(batch.scene.state, 1.0, 5)))
    assert torch.equal(observed_loss(elsewhere, state), before)
    observation = batch.problem.observation
    assert observation.keypoints is not None
    blind = replace(observation, world=None)
    objective: Objective = Keypoints2D()
    for term in batch.problem.objective.terms():
        objective = objective if term.name in ("keypoints_2d", "directions") else objective + term
    without = Problem(single, blind, objective)
    torch.testing.assert_close(self_supervised(without, state, batch.pictured), before)


@pytest.mark.parametrize("kind", [0, 1])
def test_self_supervision_falls_along_its_gradient(single: BodyModel, kind: int) -> None:
    batch = batch_of(single, 4, kind, supervision="SS", pictured=2, rendered=2)
    code = batch.frame.encode(moved(batch.scene.state, 0.15)).requires_grad_(True)
    loss = observed_loss(batch, batch.frame.decode(code, 16))
    loss.sum().backward()
    assert code.grad is not None
    assert (code.grad.norm(dim=1) > 0).all()
    fell = torch.zeros(4, dtype=torch.bool)
    for step in (1e-2, 3e-3, 1e-3, 3e-4):
        with torch.no_grad():
            unit = code.grad / code.grad.norm(dim=1, keepdim=True)
            fell |= observed_loss(batch, batch.frame.decode(code - step * unit, 16)) < loss
    assert fell.all()


def test_pictures_drawn_at_random_stand_for_all(single: BodyModel) -> None:
    """The mean over which rows are rendered is the loss with all of them rendered."""
    count = 4
    batch = batch_of(single, count, supervision="SS", pictured=count, rendered=count)
    state = moved(batch.scene.state, 0.1)
    whole = observed_loss(batch, state).sum()
    some = [self_supervised(batch.problem, state, torch.tensor([row])).sum() for row in range(count)]
    torch.testing.assert_close(torch.stack(some).mean(), whole)
    bare = self_supervised(batch.problem, state, torch.zeros(0, dtype=torch.long))
    drawn = Problem(single, batch.problem.observation, Parts(size=32)).energy(state)
    torch.testing.assert_close(whole - bare.sum(), 0.004 * drawn.sum())

"""Kinematics, skinned points and their Jacobian on random bodies: the textbook, one vertex and joint at a time."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fitkit.body import BodyData, BodyModel
from fitkit.geometry import exp
from fitkit.keypoints import get_set
from fitkit.state import State

VERTICES = 60
BODY = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19]
HANDS = [wrist if k == 0 else -1 for wrist in (20, 21) for _ in range(5) for k in range(3)]


def _parents(joints: int) -> np.ndarray:
    if joints == 24:
        return np.array([*BODY, 20, 21])
    tree = BODY + ([15, 15, 15] if joints == 55 else [])
    for parent in HANDS:
        tree.append(parent if parent >= 0 else len(tree) - 1)
    return np.array(tree)


def _random_body(joints: int, correctives: bool = False) -> BodyModel:
    """A body of random numbers: nothing about it is symmetric, sparse or small."""
    random = np.random.default_rng(joints)
    rows = random.random((23, VERTICES + joints)) ** 8
    rows[:12, VERTICES:] = (
        0  # some points of the surface, some of the joints, some of both, one that is missing
    )
    rows[:3, :VERTICES], rows[:3, VERTICES + 18 : VERTICES + 21] = 0, np.eye(3)
    rows[5] = 0
    weights = random.random((VERTICES, joints)) ** 12
    regressor = random.random((joints, VERTICES)) ** 6
    return BodyModel(
        BodyData(
            name="random",
            parents=_parents(joints),
            v_template=random.normal(size=(VERTICES, 3)),
            shapedirs=random.normal(size=(VERTICES, 3, 6)) * 0.1,
            exprdirs=random.normal(size=(VERTICES, 3, 4 if joints == 55 else 0)) * 0.1,
            posedirs=random.normal(size=(VERTICES, 3, 9 * (joints - 1))) * 0.05 * correctives,
            weights=weights / weights.sum(1, keepdims=True),
            J_regressor=regressor / regressor.sum(1, keepdims=True),
            faces=random.integers(0, VERTICES, (20, 3)),
            regressors={"coco23": rows / np.maximum(rows.sum(1, keepdims=True), 1e-9)},
        ),
        torch.float64,
    )


def _random_state(body: BodyModel, people: int, *extra: str, betas: int = 6, size: float = 0.7) -> State:
    generator = torch.Generator().manual_seed(people)

    def rotations(joints: int) -> Tensor:
        return exp(size * torch.randn(people, joints, 3, generator=generator, dtype=torch.float64))

    def normal(count: int) -> Tensor:
        return torch.randn(people, count, generator=generator, dtype=torch.float64)

    parts = {
        name: rotations(body.layout[name])
        for name in ("global_orient", "body_pose", *extra)
        if name in body.layout
    }
    if "expression" in extra:
        parts["expression"] = normal(body.num_expression)
    return State(betas=normal(betas), transl=normal(3), **parts)


def _textbook(body: BodyModel, state: State) -> tuple[np.ndarray, np.ndarray]:
    """SMPL's equations 2 to 10 in loops: joints (B, J, 3) and vertices (B, V, 3)."""
    data = body.data
    all_joints, all_vertices = [], []
    for person in range(len(state)):
        one = state.select(person)
        local = {
            name: np.stack([np.eye(3)] * count)
            if getattr(one, name) is None
            else getattr(one, name)[0].numpy()
            for name, count in body.layout.items()
        }
        rotations = np.concatenate([local[name] for name in body.layout])
        shaped = data.v_template + data.shapedirs[..., : one.betas.shape[1]] @ one.betas[0].numpy()
        if one.expression is not None:
            shaped = shaped + data.exprdirs[..., : one.expression.shape[1]] @ one.expression[0].numpy()
        rest = data.J_regressor @ shaped
        bent = shaped + data.posedirs @ (rotations[1:] - np.eye(3)).reshape(-1)
        world = np.zeros((len(rest), 4, 4))
        for joint, parent in enumerate(data.parents):
            step = np.eye(4)
            step[:3, :3] = rotations[joint]
            step[:3, 3] = rest[joint] - (rest[parent] if parent >= 0 else 0)
            world[joint] = step if parent < 0 else world[parent] @ step
        vertices = np.zeros_like(bent)
        for joint in range(len(rest)):
            moved = (bent - rest[joint]) @ world[joint, :3, :3].T + world[joint, :3, 3]
            vertices += data.weights[:, joint, None] * moved
        all_joints.append(world[:, :3, 3] + one.transl[0].numpy())
        all_vertices.append(vertices + one.transl[0].numpy())
    return np.stack(all_joints), np.stack(all_vertices)


class Case(NamedTuple):
    joints: int
    extra: tuple[str, ...]
    betas: int


CASES = [
    pytest.param(Case(24, (), 6), id="smpl"),
    pytest.param(Case(24, (), 3), id="smpl-fewer-betas"),
    pytest.param(Case(52, (), 6), id="smplh-folded"),
    pytest.param(Case(52, ("left_hand_pose", "right_hand_pose"), 6), id="smplh"),
    pytest.param(Case(55, (), 6), id="smplx-folded"),
    pytest.param(Case(55, (), 2), id="smplx-folded-fewer-betas"),
    pytest.param(Case(55, ("expression",), 4), id="smplx-folded-expression-fewer-betas"),
    pytest.param(Case(55, ("left_hand_pose", "jaw_pose"), 6), id="smplx-some-parts"),
    pytest.param(
        Case(
            55, ("expression", "jaw_pose", "leye_pose", "reye_pose", "left_hand_pose", "right_hand_pose"), 5
        ),
        id="smplx-everything",
    ),
]


@pytest.mark.parametrize("case", CASES)
def test_joints_vertices_and_keypoints_are_the_textbooks(case: Case) -> None:
    body = _random_body(case.joints)
    state = _random_state(body, 4, *case.extra, betas=case.betas)
    joints, vertices = _textbook(body, state)
    np.testing.assert_allclose(body.joints(state).numpy(), joints, atol=1e-12)
    np.testing.assert_allclose(body.vertices(state).numpy(), vertices, atol=1e-12)
    chosen = torch.tensor([7, 3, 50])
    np.testing.assert_allclose(body.vertices(state, chosen).numpy(), vertices[:, chosen], atol=1e-12)
    keypoints = body.data.regressors["coco23"] @ np.concatenate([vertices, joints], 1)
    np.testing.assert_allclose(body.keypoints(state, "coco23").numpy(), keypoints, atol=1e-9)
    assert body.available("coco23").tolist() == [k != 5 for k in range(23)]


@pytest.mark.parametrize("case", CASES)
def test_pose_correctives_move_the_surface_as_in_the_textbook(case: Case) -> None:
    body = _random_body(case.joints, correctives=True)
    state = _random_state(body, 3, *case.extra, betas=case.betas)
    np.testing.assert_allclose(body.vertices(state).numpy(), _textbook(body, state)[1], atol=1e-12)


@pytest.mark.parametrize("joints", [52, 55])
def test_hands_at_rest_are_hands_that_do_not_turn(joints: int) -> None:
    body = _random_body(joints, correctives=True)
    folded = _random_state(body, 3)
    hands = torch.eye(3, dtype=torch.float64).expand(3, 15, 3, 3)
    full = dataclasses.replace(folded, left_hand_pose=hands, right_hand_pose=hands)
    assert body.pose(folded).transforms.shape[1] == 22
    assert body.pose(full).transforms.shape[1] == joints
    for name in (get_set(body.joint_set.name).name, "coco23"):
        torch.testing.assert_close(
            body.keypoints(folded, name), body.keypoints(full, name), atol=1e-12, rtol=0
        )
    torch.testing.assert_close(body.vertices(folded), body.vertices(full), atol=1e-12, rtol=0)


def _automatic(body: BodyModel, state: State, name: str) -> Tensor:
    """d positions / d [right perturbations, shape, translation] by forward-mode differentiation, person by person."""
    rotations, shape = body.rotations(state), body.shape(state)
    skeleton, points = body._skeleton(rotations.shape[1]), body.points(name, rotations.shape[1])
    rows = []
    for person in range(len(state)):

        def at(x: Tensor, person: int = person) -> Tensor:
            turn, rest = x[: 3 * len(skeleton)].view(-1, 3), x[3 * len(skeleton) :]
            posed = skeleton.pose(
                (rotations[person] @ exp(turn))[None],
                (shape[person] + rest[:-3])[None],
                (state.transl[person] + rest[-3:])[None],
            )
            return points.positions(posed)[0]

        zero = rotations.new_zeros(3 * len(skeleton) + shape.shape[1] + 3)
        rows.append(torch.func.jacfwd(at)(zero))
    return torch.stack(rows)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["keypoints", "joints"])
def test_jacobian_is_the_derivative(case: Case, kind: str) -> None:
    body = _random_body(case.joints)
    state = _random_state(body, 2, *case.extra, betas=case.betas)
    name = "coco23" if kind == "keypoints" else body.joint_set.name
    posed = body.pose(state)
    points = body.points(name, posed.transforms.shape[1])
    positions, rotate, spread, move = points.jacobian(posed)
    assert spread is not None
    torch.testing.assert_close(positions, body.keypoints(state, name), atol=1e-12, rtol=0)
    jacobian = torch.cat([rotate, spread, move.expand(*rotate.shape[:3], 3)], -1)
    torch.testing.assert_close(jacobian, _automatic(body, state, name), atol=1e-9, rtol=0)
    _, some, nothing, _ = points.jacobian(posed, joints=9, shaped=False)
    torch.testing.assert_close(some, rotate[..., :27], atol=1e-14, rtol=0)
    assert nothing is None


def test_jacobian_is_the_finite_difference() -> None:
    """Once without any automatic differentiation, through the State."""
    body = _random_body(55)
    state = _random_state(body, 1, "expression")
    posed = body.pose(state)
    _, rotate, spread, move = body.points("coco23", 22).jacobian(posed)
    assert spread is not None
    step = 1e-6

    def difference(change: dict[str, Tensor], back: dict[str, Tensor]) -> Tensor:
        there = body.keypoints(dataclasses.replace(state, **change), "coco23")
        return ((there - body.keypoints(dataclasses.replace(state, **back), "coco23")) / (2 * step))[0]

    turn = torch.zeros(1, 21, 3, dtype=torch.float64)
    turn[0, 17, 1] = step  # the joint after the root is number 1
    found = difference(
        {"body_pose": state.body_pose @ exp(turn)}, {"body_pose": state.body_pose @ exp(-turn)}
    )
    torch.testing.assert_close(rotate[0, ..., 3 * 18 + 1], found, atol=1e-8, rtol=0)
    assert state.expression is not None
    face = torch.zeros_like(state.expression)
    face[0, 2] = step
    found = difference({"expression": state.expression + face}, {"expression": state.expression - face})
    torch.testing.assert_close(spread[0, ..., 6 + 2], found, atol=1e-8, rtol=0)
    torch.testing.assert_close(
        move[0],
        body.available("coco23").double()[:, None, None] * torch.eye(3),
        check_dtype=False,
    )


@pytest.mark.parametrize("case", CASES)
def test_one_person_is_a_person_of_a_batch(case: Case) -> None:
    body = _random_body(case.joints, correctives=True)
    state = _random_state(body, 5, *case.extra, betas=case.betas)
    everyone = (body.joints(state), body.keypoints(state, "coco23"), body.vertices(state))
    for person in (0, 3):
        one = state.select(person)
        alone = (body.joints(one), body.keypoints(one, "coco23"), body.vertices(one))
        for found, expected in zip(alone, everyone, strict=True):
            torch.testing.assert_close(found[0], expected[person], atol=1e-13, rtol=0)
    nobody = state.select(slice(0, 0))
    assert body.joints(nobody).shape == (0, case.joints, 3)
    posed = body.pose(nobody)
    derivatives = body.points("coco23", posed.transforms.shape[1]).jacobian(posed)[1:]
    assert all(derivative is not None and len(derivative) == 0 for derivative in derivatives)
    assert body.vertices(nobody).shape == (0, VERTICES, 3)


@pytest.mark.parametrize("joints", [24, 52, 55])
def test_gradients_are_finite_at_rest(joints: int) -> None:
    body = _random_body(joints, correctives=True)
    turn = torch.zeros(2, joints, 3, dtype=torch.float64, requires_grad=True)
    betas = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    rotations, parts, first = exp(turn), {}, 0
    for name, count in body.layout.items():
        parts[name] = rotations[:, first : first + count]
        first += count
    state = State(betas=betas, transl=torch.zeros(2, 3, dtype=torch.float64), **parts)
    loss = body.vertices(state).square().sum() + body.keypoints(state, "coco23").square().sum()
    for gradient in torch.autograd.grad(loss, (turn, betas)):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


def test_the_root_turns_about_its_own_joint_and_moves_with_the_translation() -> None:
    body = _random_body(55)
    rest = body.neutral(1)
    root = body.joints(rest)[:, :1]
    turn = exp(torch.tensor([[[0.3, -1.0, 0.5]]], dtype=torch.float64))
    moved = dataclasses.replace(rest, global_orient=turn, transl=torch.tensor([[1.0, 2.0, 3.0]]).double())
    expected = (body.vertices(rest) - root) @ turn[0].mT + root + moved.transl[:, None]
    torch.testing.assert_close(body.vertices(moved), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(body.joints(moved)[:, :1], root + moved.transl[:, None], atol=1e-12, rtol=0)


def test_regressors_may_subtract() -> None:
    """A row whose weights cancel on a joint still moves with it: the difference of two points is exact."""
    body = _random_body(24)
    row = np.zeros((1, VERTICES))
    row[0, 4], row[0, 9] = 1.5, -0.5
    twins = body.data.weights.copy()
    twins[[4, 9]] = 0
    twins[4, 18], twins[4, 3], twins[9, 18], twins[9, 5] = 0.25, 0.75, 0.75, 0.25
    body = BodyModel(dataclasses.replace(body.data, weights=twins), torch.float64)
    state = _random_state(body, 3)
    found = body.regressed(row, 24).positions(body.pose(state))
    torch.testing.assert_close(found, torch.as_tensor(row) @ body.vertices(state), atol=1e-12, rtol=0)


def test_what_is_not_of_this_body_is_refused() -> None:
    body = _random_body(24)
    state = body.neutral(2)
    with pytest.raises(ValueError, match="7 betas, expected at most 6"):
        body.check(dataclasses.replace(state, betas=torch.zeros(2, 7).double()))
    with pytest.raises(ValueError, match="has no jaw_pose"):
        body.check(dataclasses.replace(state, jaw_pose=state.global_orient))
    with pytest.raises(ValueError, match="body_pose has 21 entries, expected 23"):
        body.check(dataclasses.replace(state, body_pose=state.body_pose[:, :21]))
    with pytest.raises(ValueError, match=r"no keypoints 'coco17', expected one of \['coco23', 'smpl24'\]"):
        body.keypoints(state, "coco17")
    with pytest.raises(ValueError, match="regressor has 61 columns, expected 60 or 84"):
        body.regressed(np.zeros((1, VERTICES + 1)), 24)
    with pytest.raises(ValueError, match="16 joints, expected one of"):
        BodyModel(dataclasses.replace(body.data, parents=body.data.parents[:16]))
    # On a body with expressions, a beta too many would be taken for the first expression.
    talking = _random_body(55)
    with pytest.raises(ValueError, match="7 betas, expected at most 6"):
        talking.joints(dataclasses.replace(talking.neutral(1), betas=torch.zeros(1, 7).double()))

"""Kinematic jumps: the picture stays, depth turns, joints stay hinges, and a fit leaves the wrong basin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fitkit import geometry
from fitkit.body import BodyModel
from fitkit.camera import Camera
from fitkit.jumps import JUMPS, WORTHWHILE, evidence, kinematic_jumps
from fitkit.keypoints import Keypoints, get_set
from fitkit.metrics import mpjpe
from fitkit.objectives import Keypoints2D
from fitkit.observation import Observation
from fitkit.priors import JointLimits, ShapePrior, gaussian_prior
from fitkit.problem import Problem
from fitkit.solve import solve
from fitkit.solver import Stage
from fitkit.solvers import LM
from fitkit.state import State

NAMES = get_set("smplx55")
CHAINS = {"arm": ("shoulder", "elbow", "wrist"), "leg": ("hip", "knee", "ankle")}


def chain(jump: str) -> list[int]:
    """Joints of the limb that a jump is named after."""
    side, kind = jump.split("/")[0].split("_")
    return [NAMES.index(f"{side}_{joint}") for joint in CHAINS[kind]]


def posed(body: BodyModel, people: int, spread: float = 0.15, seed: int = 0) -> State:
    """People with well bent limbs, upright before the camera."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    bend = torch.zeros(21, 3, dtype=torch.float64)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        bend[NAMES.index(f"{side}_elbow") - 1, 1] = -0.9 * sign
        bend[NAMES.index(f"{side}_knee") - 1, 0] = 0.9
        bend[NAMES.index(f"{side}_hip") - 1, 0] = -0.4
        bend[NAMES.index(f"{side}_shoulder") - 1, 2] = -0.8 * sign
    noise = spread * normal(people, 21, 3)
    noise[:, [NAMES.index(f"{side}_{j}") - 1 for side in ("left", "right") for j in ("knee", "elbow")]] = 0
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    return replace(
        body.neutral(people),
        global_orient=upright @ geometry.exp(spread * normal(people, 1, 3)),
        body_pose=geometry.exp(bend + noise),
        betas=normal(people, body.num_betas),
        transl=0.3 * normal(people, 3) + torch.tensor([0.0, 0.0, 4.0]),
    )


def by_jump(body: BodyModel, state: State) -> Tensor:
    """`(13, B, J, 3)` joints of the candidates."""
    joints = body.joints(kinematic_jumps(body, state))
    return joints.unflatten(0, (len(state), len(JUMPS))).transpose(0, 1)


def pixels(points: Tensor) -> Tensor:
    return 1000 * points[..., :2] / points[..., 2:]


def reached(before: Tensor, after: Tensor, limb: list[int]) -> Tensor:
    """`(B,)` where the ray of the end passes the moved middle joint within the lower segment's length."""
    ray = torch.nn.functional.normalize(before[:, limb[2]], dim=-1)
    middle = after[:, limb[1]]
    away = (middle - (middle * ray).sum(-1, keepdim=True) * ray).norm(dim=-1)
    return away < (before[:, limb[2]] - before[:, limb[1]]).norm(dim=-1) - 1e-6


def test_the_first_candidate_is_the_state_itself(body: BodyModel) -> None:
    state = posed(body, 3)
    first = kinematic_jumps(body, state).select(slice(0, None, len(JUMPS)))
    for name, value in state.parts().items():
        assert torch.equal(getattr(first, name), value), name


def test_the_picture_of_the_limbs_stays(body: BodyModel) -> None:
    state = posed(body, 20)
    before, moved = body.joints(state), by_jump(body, state)
    seen = 0
    for after, jump in zip(moved[1:], JUMPS[1:], strict=True):
        limb = chain(jump)
        near = reached(before, after, limb)
        off = (pixels(after) - pixels(before)).norm(dim=-1)[:, limb]
        assert float(off[:, :2].max()) < 1e-6, jump
        assert float(off[near].max()) < 1e-6, jump
        seen += int(near.sum())
        others = [joint for joint in range(22) if joint not in (*limb, *below(limb))]
        torch.testing.assert_close(after[:, others], before[:, others], atol=1e-12, rtol=0)
    assert seen > 0.9 * 20 * (len(JUMPS) - 1)


def below(limb: list[int]) -> list[int]:
    """Joints of the hand or foot."""
    name = NAMES.names[limb[2]].replace("ankle", "foot")
    return [NAMES.index(name)]


def test_segments_are_mirrored_about_their_rays(body: BodyModel) -> None:
    state = posed(body, 20)
    before, moved = body.joints(state), by_jump(body, state)
    for after, jump in zip(moved[1:], JUMPS[1:], strict=True):
        limb = chain(jump)
        near = reached(before, after, limb)
        for segment, name in enumerate(("upper", "lower")):
            start, end = limb[segment], limb[segment + 1]
            ray = torch.nn.functional.normalize(before[:, end], dim=-1)
            old = ((before[:, end] - before[:, start]) * ray).sum(-1)
            new = ((after[:, end] - after[:, start]) * ray).sum(-1)
            turned = jump.split("/")[1] in (name, "both")
            if segment == 0:
                torch.testing.assert_close(new, -old if turned else old, atol=1e-9, rtol=0)
            else:  # from a moved elbow the ray is not as far as before
                assert bool(((new * old > 0) != turned)[near & (old.abs() > 1e-3)].all()), jump


def test_twice_is_back(body: BodyModel) -> None:
    state = posed(body, 20)
    before, moved = body.joints(state), by_jump(body, state)
    again = by_jump(body, kinematic_jumps(body, state)).unflatten(1, (20, len(JUMPS)))
    for place, jump in enumerate(JUMPS[1:], 1):
        limb = chain(jump)
        near = reached(before, moved[place], limb)
        torch.testing.assert_close(
            again[place, near, place][:, limb], before[near][:, limb], atol=1e-9, rtol=0
        )


def test_knees_and_elbows_stay_hinges(body: BodyModel) -> None:
    state = posed(body, 40)
    pose = kinematic_jumps(body, state).body_pose.unflatten(0, (40, len(JUMPS)))
    degrees = torch.rad2deg(geometry.twist(pose))
    for place, jump in enumerate(JUMPS[1:], 1):
        joint = chain(jump)[1]
        axis, sign = (
            (0, 1) if jump.startswith(("left_leg", "right_leg")) else (1, -1 if "left" in jump else 1)
        )
        turn = degrees[:, place, joint - 1]
        bend, beside = sign * turn[:, axis], turn[:, [1 - axis, 2]].abs().amax(1)
        bent = bend.abs() > 32
        assert float(bent.double().mean()) > 0.2, jump
        assert float(bend[bent].min()) > 0, jump
        assert float(bend.max()) < 160, jump
        assert float(beside[bent].max()) < 1e-6, jump
        # What is nearly straight may bend any way, by no more than the little that it is bent.
        assert float((turn.abs().amax(1) * ~bent).max()) < 40, jump


def test_a_straight_limb_keeps_its_twist(body: BodyModel) -> None:
    state = replace(body.neutral(1), transl=torch.tensor([[0.0, 0.0, 4.0]], dtype=torch.float64))
    pose = state.body_pose.clone()
    turn = torch.tensor([0.0, 0.0, -0.9], dtype=torch.float64)
    pose[:, NAMES.index("left_shoulder") - 1] = geometry.exp(turn)
    state = replace(state, body_pose=pose)
    both = kinematic_jumps(body, state).body_pose[JUMPS.index("left_arm/both")]
    change = geometry.geodesic(both, pose[0])
    assert float(change[NAMES.index("left_elbow") - 1]) < 0.2
    assert float(change[NAMES.index("left_shoulder") - 1]) < 0.6


def test_everybody_alone_is_everybody_together(body: BodyModel) -> None:
    state, count = posed(body, 4), len(JUMPS)
    together = kinematic_jumps(body, state).body_pose
    order = torch.tensor([2, 0, 3, 1])
    permuted = kinematic_jumps(body, state.select(order)).body_pose
    torch.testing.assert_close(permuted, together.view(4, count, 21, 3, 3)[order].flatten(0, 1))
    alone = kinematic_jumps(body, state.select(1)).body_pose
    torch.testing.assert_close(alone, together[count : 2 * count])
    single = kinematic_jumps(body.to(torch.float32), state.to(torch.float32)).body_pose
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), together, atol=2e-3, rtol=0)


def test_rotations_are_rotations_where_geometry_fails(body: BodyModel) -> None:
    """Limbs along the ray, stretched limbs, and a body so near that the other point lies behind the camera."""
    state = posed(body, 4)
    pose = state.body_pose.clone()
    pose[0] = torch.eye(3, dtype=torch.float64)
    raised = torch.tensor([[0.0, 1.5707963267948966, 0.0]], dtype=torch.float64)
    pose[1, NAMES.index("left_shoulder") - 1] = geometry.exp(-raised)[0]
    pose[1, NAMES.index("left_elbow") - 1] = torch.eye(3, dtype=torch.float64)
    transl = state.transl.clone()
    transl[2, 2] = 0.3
    moved = kinematic_jumps(body, replace(state, body_pose=pose, transl=transl)).body_pose
    eye = torch.eye(3, dtype=torch.float64).expand_as(moved)
    torch.testing.assert_close(moved.mT @ moved, eye, atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.linalg.det(moved), torch.ones_like(moved[..., 0, 0]))


def test_a_pose_of_23_joints(body: BodyModel) -> None:
    """SMPL's 24 joints begin like SMPL-X's 22; hands hang on the wrists as they did."""
    data = body.data
    parents = [*data.parents[:22].tolist(), 20, 21]
    columns = np.zeros((24, len(data.v_template)))
    columns[:22], columns[22:] = data.J_regressor[:22], data.J_regressor[[25, 40]]
    small = BodyModel(
        replace(
            data,
            parents=np.array(parents),
            weights=np.ascontiguousarray(data.weights[:, :24]),
            J_regressor=columns,
            posedirs=data.posedirs[..., :0],
            regressors={},
        ),
        torch.float64,
    )
    state = posed(body, 2)
    eye = torch.eye(3, dtype=torch.float64).expand(2, 2, 3, 3)
    large = replace(state, body_pose=torch.cat([state.body_pose, eye], 1))
    moved = kinematic_jumps(small, large).body_pose
    assert moved.shape == (2 * len(JUMPS), 23, 3, 3)
    torch.testing.assert_close(moved[:, :21], kinematic_jumps(body, state).body_pose, atol=1e-9, rtol=0)


def seen_exactly(body: BodyModel, truth: State) -> Problem:
    """The problem whose 22 joints are where this state has them in the picture."""
    people = len(truth)
    camera = Camera.from_size(1000, 1000).expand(people).to(torch.float64)
    confidence = torch.zeros(people, 55, dtype=torch.float64)
    confidence[:, :22] = 1
    keypoints = Keypoints(NAMES, camera.project(body.joints(truth)), confidence)
    objective = Keypoints2D(sigma=0.01) + gaussian_prior() + ShapePrior() + JointLimits()
    return Problem(body, Observation(camera, keypoints), objective)


def test_a_fit_leaves_the_wrong_basin(body: BodyModel) -> None:
    """From an arm on the wrong side in depth the solver alone stays there; with jumps it finds the other side."""
    truth = posed(body, 6).select([0, 5])
    problem = seen_exactly(body, truth)
    wrong = kinematic_jumps(body, truth, ("right_arm/both",))
    alone = solve(problem, LM(), wrong, [Stage(40)])
    candidates = kinematic_jumps(body, alone.state, WORTHWHILE)
    jumped = solve(problem, LM(), candidates, [Stage(5, keep=2), Stage(40)], starts=len(WORTHWHILE))
    assert bool((jumped.energy < 0.7 * alone.energy).all())
    assert bool((evidence(problem, jumped.state) < evidence(problem, alone.state)).all())
    right, left = (mpjpe(body.joints(s.state)[:, :22], body.joints(truth)[:, :22]) for s in (jumped, alone))
    assert bool((right < 0.8 * left).all())


def test_evidence_is_energy_and_half_the_log_determinant(body: BodyModel) -> None:
    problem = seen_exactly(body, posed(body, 2))
    state = posed(body, 2, 0.05)
    here = problem.linearize(state)
    floor = 1e-6 * torch.eye(here.hessian.shape[1], dtype=torch.float64)
    expected = here.energy + 0.5 * torch.logdet(here.hessian + floor)
    torch.testing.assert_close(evidence(problem, state), expected)
    single = Problem(body.to(torch.float32), problem.observation.to(torch.float32), problem.objective)
    close = evidence(single, state.to(torch.float32)).double()
    torch.testing.assert_close(close, expected, atol=0.05, rtol=1e-3)


def test_some_jumps_and_unknown_ones(body: BodyModel) -> None:
    state = posed(body, 2)
    every = kinematic_jumps(body, state).body_pose.unflatten(0, (2, len(JUMPS)))
    some = ("left_leg/both", "unchanged")
    chosen = kinematic_jumps(body, state, some).body_pose.unflatten(0, (2, 2))
    assert torch.equal(chosen, every[:, [JUMPS.index(jump) for jump in some]])
    with pytest.raises(ValueError, match="left_tail/both"):
        kinematic_jumps(body, state, ("left_tail/both",))


@pytest.mark.parametrize("count", [0, 1])
def test_nobody_and_one(body: BodyModel, count: int) -> None:
    assert len(kinematic_jumps(body, posed(body, 2).select(slice(0, count)))) == count * len(JUMPS)

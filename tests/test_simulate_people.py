"""People made on the fly, and what a simulated detector sees of them: shares, levels and extremes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from fitkit import geometry
from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.keypoints import get_set
from fitkit.objectives.keypoints import bones
from fitkit.observation import Observation
from fitkit.simulate import ANNOTATED, Crowd, Errors, Scene, Variety, detect, simulate_maps, simulate_parts
from fitkit.simulate.detector import _BINS, _GROSS, _NOISE, _WIDER

MANY = 1500
PLAIN = Variety(mixed=0.0, seated=0.0, shaken=0.0, tumbled=0.0, heavy=0.0, children=0.0, pitch=0.0, roll=0.0)
WHOLE = replace(PLAIN, largest=0.5)
SURE = Errors(spread=0.0, gross=0.0, dropped=0.0, swapped=0.0, behind=0.0, world=0.0)
MP = get_set("mediapipe33")
LEGS = [MP.index(f"{side}_{joint}") for side in ("left", "right") for joint in ("knee", "ankle")]


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def still(count: int = 1) -> Tensor:
    return torch.eye(3).expand(count, 24, 3, 3)


def near(share: Tensor, wanted: float, count: int = MANY) -> None:
    """A share within four standard deviations of what it should be."""
    assert abs(float(share.double().mean()) - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / count) + 1e-9


@cache
def crowd(body: BodyModel, variety: Variety = PLAIN, count: int = MANY, seed: int = 0) -> Scene:
    return Crowd(body, still(), variety=variety)(count, dice(seed))


def turned(rotations: Tensor) -> Tensor:
    """Angles, degrees."""
    return geometry.geodesic(rotations, torch.eye(3).to(rotations).expand_as(rotations)).rad2deg()


# -- people ------------------------------------------------------------------------------------------------------


def test_the_seed_decides(body: BodyModel) -> None:
    make = Crowd(body, still())
    one, two, other = make(20, dice(3)), make(20, dice(3)), make(20, dice(4))
    for name, part in one.state.parts().items():
        assert torch.equal(part, getattr(two.state, name))
        assert name == "expression" or not torch.equal(part, getattr(other.state, name))
    assert torch.equal(one.camera.focal, two.camera.focal)
    seen = [detect(body, one, dice(5), Errors()) for _ in range(2)]
    assert seen[0].keypoints is not None
    assert seen[1].keypoints is not None
    assert torch.equal(seen[0].keypoints.xy, seen[1].keypoints.xy)
    assert torch.equal(seen[0].keypoints.confidence, seen[1].keypoints.confidence)


def test_bodies_are_bodies_in_front_of_cameras(body: BodyModel) -> None:
    scene = crowd(body, Variety())
    rotations = torch.cat([scene.state.global_orient, scene.state.body_pose], 1)
    eye = torch.eye(3, dtype=torch.float64).expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.mT, eye, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), eye[..., 0, 0], atol=1e-6, rtol=0)
    joints = body.joints(scene.state)[:, :22]
    assert (joints.mean(1)[:, 2] >= 1.2 - 1e-6).all()
    assert (joints[..., 2].amin(1) > 0.2).double().mean() > 0.995
    camera = scene.camera
    pixels = camera.project(joints)
    inside = ((pixels >= 0) & (pixels <= torch.tensor([camera.width, camera.height]))).all(-1)
    assert 0.8 < inside.double().mean() < 0.95
    assert (inside.sum(1) >= 8).double().mean() > 0.95
    assert 0.1 < (~inside.all(1)).double().mean() < 0.6
    body.check(scene.state)
    assert max(camera.width, camera.height) == 1000


def test_the_middle_of_the_body_is_placed(body: BodyModel) -> None:
    """By the size of a standing person: from the smallest to the largest, evenly on a logarithmic scale."""
    scene = crowd(body, replace(PLAIN, focal=0.0))
    middle = body.joints(scene.state)[:, :22].mean(1)
    size = (1.75 * scene.camera.focal[:, 0] / middle[:, 2]) / 1000
    least, most = math.log(0.15), math.log(1.25)
    place = (size.log() - least) / (most - least)
    assert (place > -1e-6).all()
    assert (place < 1 + 1e-6).all()
    assert abs(float(place.mean()) - 0.5) < 0.04
    assert abs(float(place.std()) - 1 / math.sqrt(12)) < 0.02


def test_shares(body: BodyModel) -> None:
    """Each kind of variety alone, at its rate."""
    seated = crowd(body, replace(PLAIN, seated=0.3)).state.body_pose
    sits = turned(seated[:, :2]).amin(1) > 20
    near(sits, 0.3)
    assert (turned(seated[sits][:, [0, 1]]) < 150).all()
    knees = seated[sits][:, [3, 4]]
    assert (geometry.twist(knees)[..., 0] > 0).all()  # no knee bends forwards
    hips = geometry.twist(seated[sits][:, :2])[..., 0]
    assert (hips < 0).double().mean() > 0.99  # thighs go up in front
    assert (turned(seated[:, 5:]) < 1e-3).all()

    shaken = turned(crowd(body, replace(PLAIN, shaken=0.4)).state.body_pose)
    near(shaken.amax(1) > 1e-4, 0.4)
    assert (shaken.mean(1) < 0.15 * 3 * 57.3).all()

    lying = crowd(body, replace(PLAIN, tumbled=0.25)).state.global_orient[:, 0]
    up = lying @ torch.tensor([0.0, 1, 0]).double()
    near((up - torch.tensor([0.0, -1, 0])).norm(dim=1) > 1e-4, 0.25)

    heavy = crowd(body, replace(PLAIN, heavy=0.5)).state.betas
    assert float(heavy.square().mean()) == pytest.approx(0.5 * 2.25 + 0.5, rel=0.05)


def test_children_have_a_childs_height(body: BodyModel) -> None:
    readout = body.data.readouts["height_m"]
    slope = torch.as_tensor(readout[:-1]).double()

    def heights(variety: Variety) -> Tensor:
        return crowd(body, variety).state.betas @ slope + float(readout[-1])

    children = heights(replace(PLAIN, children=1.0))
    assert (children > 0.9 - 1e-6).all()
    assert (children < 1.5 + 1e-6).all()
    assert abs(float(children.mean()) - 1.2) < 0.03
    adults = heights(PLAIN)
    assert 1.4 < float(adults.mean()) < 1.9
    near(heights(replace(PLAIN, children=0.2)) < 1.5, 0.2 + 0.8 * float((adults < 1.5).double().mean()))


def test_arms_of_others(body: BodyModel) -> None:
    poses = torch.stack([still()[0], geometry.exp(torch.full((24, 3), 0.2))])
    scene = Crowd(body, poses, variety=replace(PLAIN, mixed=0.5))(MANY, dice())
    angle = turned(scene.state.body_pose)
    arms = torch.tensor([joint - 1 for joint in (13, 14, 16, 17, 18, 19, 20, 21)])
    rest = torch.tensor([joint for joint in range(21) if joint not in arms.tolist()])
    assert (angle[:, arms].std(1) < 1e-3).all()
    assert (angle[:, rest].std(1) < 1e-3).all()
    near((angle[:, arms[0]] - angle[:, rest[0]]).abs() > 1, 0.25)  # half of the mixed get the same frame


def test_weights_of_poses(body: BodyModel) -> None:
    poses = torch.stack([still()[0], geometry.exp(torch.full((24, 3), 0.2))])
    scene = Crowd(body, poses, torch.tensor([1.0, 4.0]), PLAIN)(MANY, dice())
    near(turned(scene.state.body_pose)[:, 0] > 1, 0.8)
    never = Crowd(body, poses, torch.tensor([1.0, 0.0]), PLAIN)(200, dice())
    assert (turned(never.state.body_pose) < 1e-3).all()


def test_cameras(body: BodyModel) -> None:
    focal = crowd(body, PLAIN).camera.focal
    assert torch.equal(focal[:, 0], focal[:, 1])
    assert float((focal[:, 0] / 1000).log().std()) == pytest.approx(0.3, rel=0.08)
    tilted = (
        crowd(body, replace(PLAIN, pitch=8.0)).state.global_orient[:, 0] @ torch.tensor([0.0, 1, 0]).double()
    )
    tilt = torch.atan2(tilted[:, 2], -tilted[:, 1]).rad2deg()
    assert float(tilt.std()) == pytest.approx(8 * math.sqrt(0.8 + 0.2 * 9), rel=0.12)
    rolled = (
        crowd(body, replace(PLAIN, roll=3.0)).state.global_orient[:, 0] @ torch.tensor([0.0, 1, 0]).double()
    )
    assert float(torch.atan2(rolled[:, 0], -rolled[:, 1]).rad2deg().std()) == pytest.approx(3, rel=0.1)
    heading = crowd(body, PLAIN).state.global_orient[:, 0] @ torch.tensor([0.0, 0, 1]).double()
    angle = torch.atan2(heading[:, 0], heading[:, 2])
    assert float(torch.stack([angle.cos(), angle.sin()]).mean(1).norm()) < 0.1
    shapes = {
        (s.camera.width, s.camera.height) for s in (Crowd(body, still())(1, dice(i)) for i in range(20))
    }
    assert len(shapes) > 15
    assert {width > height for width, height in shapes} == {True, False}


@pytest.mark.parametrize("poses", [torch.zeros(0, 24, 3, 3), torch.eye(3).expand(2, 12, 3, 3)])
def test_poses_that_do_not_fit(body: BodyModel, poses: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(M, 22, 3, 3\) or more"):
        Crowd(body, poses)


def test_nobody(body: BodyModel) -> None:
    scene = Crowd(body, still())(0, dice())
    assert len(scene) == len(scene.state) == 0
    for errors in (Errors(), ANNOTATED):
        assert len(detect(body, scene, dice(), errors)) == 0


# -- detector ----------------------------------------------------------------------------------------------------


def seen(
    body: BodyModel, errors: Errors, seed: int = 1, variety: Variety = WHOLE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Errors of the points in sizes of the person, their confidences, whether they are inside; true pixels."""
    scene = crowd(body, variety)
    observed = detect(body, scene, dice(seed), errors).keypoints
    assert observed is not None
    place = body.keypoints(scene.state, errors.points)
    pixels = scene.camera.project(place)
    frame = torch.tensor([scene.camera.width, scene.camera.height]).double()
    inside = ((pixels >= 0) & (pixels <= frame)).all(-1)
    whole = inside.all(1)
    size = (pixels.amax(1) - pixels.amin(1)).amax(1)
    away = (observed.xy - pixels) / size[:, None, None]
    return away[whole], observed.confidence[whole], inside[whole], pixels[whole]


def test_noise_is_that_of_its_confidence(body: BodyModel) -> None:
    away, confidence, *_ = seen(body, replace(SURE, scale=0.5))
    ends = (0.0, *_BINS)
    for number, wider in enumerate(_WIDER):
        for joint in ("knee", "ankle"):
            columns = [MP.index(f"{side}_{joint}") for side in ("left", "right")]
            there = (confidence[:, columns] > ends[number]) & (confidence[:, columns] <= ends[number + 1])
            # 1 % of all points are missing altogether: nothing is there to compare.
            some = away[:, columns][there]
            assert len(some) > 20
            level = 0.5 * wider * _NOISE[joint]
            assert float(some.std()) == pytest.approx(level, rel=4 / math.sqrt(len(some)))
    torso = [MP.index(f"{side}_{joint}") for side in ("left", "right") for joint in ("shoulder", "hip")]
    kept = confidence[:, torso] > 0
    assert (confidence[:, torso][kept] > 0.95).all()
    assert float(away[:, torso[:1]][kept[:, :1]].std()) == pytest.approx(0.5 * _NOISE["shoulder"], rel=0.1)


def test_confidences_are_spread_as_measured(body: BodyModel) -> None:
    _, confidence, *_ = seen(body, SURE)
    knees = confidence[:, LEGS]
    knees = knees[knees > 0]
    shares = (0.025, 0.075, 0.21, 0.27, 0.42)
    for low, high, share in zip((0.0, *_BINS), _BINS, shares, strict=False):
        near((knees > low) & (knees <= high), share, len(knees))


def test_points_of_a_limb_err_together(body: BodyModel) -> None:
    for together in (0.0, 0.6):
        away, confidence, *_ = seen(body, replace(SURE, together=together))
        knee, ankle = MP.index("left_knee"), MP.index("left_ankle")
        both = (confidence[:, [knee, ankle]] > 0.95).all(1)
        one, two = away[both][:, knee].flatten(), away[both][:, ankle].flatten()
        assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1]) - together) < 0.15


def test_gross_errors_are_as_many_as_they_say(body: BodyModel) -> None:
    """On average over people, of whom some are seen badly: half of e^(1.2 n) has a mean of 1.03."""
    away, confidence, *_ = seen(body, replace(SURE, scale=1e-6, gross=1.0))
    wrong = away.norm(dim=-1) > 1e-3
    knees = [MP.index("left_knee"), MP.index("right_knee")]
    for number, (low, high) in enumerate(zip((0.0, *_BINS), _BINS, strict=False)):
        there = (confidence[:, knees] > low) & (confidence[:, knees] <= high)
        share = float(wrong[:, knees][there].double().mean())
        wanted = 1.03 * _GROSS[number]
        # Errors of one person come together, so the share varies more than that of single tosses.
        assert abs(share - wanted) < 8 * math.sqrt(wanted / int(there.sum()))
    exact, confidence, *_ = seen(body, replace(SURE, scale=1e-6))
    assert float(exact.norm(dim=-1)[confidence > 0].max()) < 1e-3
    ankles = [MP.index("left_ankle"), MP.index("right_ankle")]
    follows = wrong[:, ankles][wrong[:, knees]]
    assert 0.6 < float(follows.double().mean()) < 0.95


def test_dropouts(body: BodyModel) -> None:
    for dropped in (0.0, 0.4):
        missing = seen(body, replace(SURE, dropped=dropped))[1] == 0
        assert float(missing.double().mean()) == pytest.approx(0.25 * dropped + 0.01, rel=0.15)
    many = missing.double().mean(1)
    assert many.max() <= 0.75
    assert (many > 0.08).double().mean() == pytest.approx(0.4 * 0.8, abs=0.1)


def test_what_the_photo_cuts_off_is_hardly_believed(body: BodyModel) -> None:
    scene = crowd(body, replace(PLAIN, smallest=0.9, largest=1.6))
    observed = detect(body, scene, dice(), SURE).keypoints
    assert observed is not None
    pixels = scene.camera.project(body.keypoints(scene.state, "mediapipe33"))
    frame = torch.tensor([scene.camera.width, scene.camera.height]).double()
    beyond = torch.maximum(-pixels, pixels - frame).amax(-1).clamp_min(0) / 1000
    out = beyond > 0
    assert out.sum() > 1000
    assert (observed.confidence[out] <= 0.8).all()
    assert float(observed.confidence[beyond > 0.2].median()) < 0.1
    limbs = observed.confidence[:, LEGS]
    assert float(limbs[~out[:, LEGS]].median()) > 0.7
    marked = detect(body, scene, dice(), ANNOTATED).keypoints
    assert marked is not None
    coco = scene.camera.project(body.keypoints(scene.state, "coco17"))
    gone = ((coco < 0) | (coco > frame)).any(-1)
    assert (marked.confidence[gone] == 0).all()


def test_sides_are_exchanged(body: BodyModel) -> None:
    errors = replace(SURE, scale=1e-7, swapped=0.2)
    away, confidence, _, pixels = seen(body, errors)
    size = (pixels.amax(1) - pixels.amin(1)).amax(1)[:, None, None]
    xy = pixels + away * size
    other = pixels[:, list(MP.flip)]
    there = (confidence[:, list(MP.flip)] > 0) & (confidence > 0)
    exchanged = ((xy - other).norm(dim=-1) < 1e-2) & ((xy - pixels).norm(dim=-1) > 1e-2)
    arm = [MP.index(f"left_{name}") for name in ("shoulder", "elbow", "wrist")]
    leg = [MP.index(f"left_{name}") for name in ("hip", "knee", "ankle")]
    arms, legs = ((exchanged | ~there)[:, part].all(1) for part in (arm, leg))
    for share, wanted in ((arms & legs, 0.2), (arms & ~legs, 0.2), (legs & ~arms, 0.2)):
        near(share, wanted, len(share))
    untouched = ((xy - pixels).norm(dim=-1) < 1e-2) | ~there
    assert (untouched.all(1) | arms | legs).all()


def test_annotators_mark_or_do_not(body: BodyModel) -> None:
    scene = crowd(body, Variety())
    observation = detect(body, scene, dice(), ANNOTATED)
    assert observation.world is None
    points = observation.keypoints
    assert points is not None
    assert points.set.name == "coco17"
    assert set(points.confidence.unique().tolist()) == {0.0, 1.0}
    assert 0.6 < float(points.confidence.mean()) < 0.95


def test_hidden_points_are_less_sure(body: BodyModel) -> None:
    open_, covered = (seen(body, replace(SURE, behind=share))[1][:, LEGS] for share in (0.0, 1.0))
    assert covered[covered > 0].mean() < open_[open_ > 0].mean() - 0.02


def test_directions_in_space_are_near(body: BodyModel) -> None:
    scene = crowd(body, PLAIN)
    world = detect(body, scene, dice(), replace(SURE, world=1.0)).world
    assert world is not None
    xyz = body.keypoints(scene.state, "mediapipe33")
    pairs = [pair for pair in bones(MP) if not {0, 7, 8} & set(pair)]
    start, end = [a for a, _ in pairs], [b for _, b in pairs]
    true = torch.nn.functional.normalize(xyz[:, end] - xyz[:, start], dim=-1)
    given, sure = world.directions(tuple(pairs))
    angle = torch.acos((true * given).sum(-1).clamp(-1, 1)).rad2deg()[sure > 0]
    assert 6 < float(angle.median()) < 20
    assert (angle > 60).double().mean() < 0.08
    assert float(world.xyz.mean(1).norm(dim=-1).max()) < 2  # around the root
    partly = detect(body, scene, dice(), replace(SURE, world=0.5)).world
    assert partly is not None
    near((partly.confidence > 0).any(1), 0.5)


@pytest.mark.parametrize("errors", [Errors(), ANNOTATED], ids=["network", "person"])
@pytest.mark.parametrize("case", ["behind", "at the camera", "beside", "tiny", "close"])
def test_extremes_are_finite(body: BodyModel, errors: Errors, case: str) -> None:
    scene = crowd(body, Variety(), 6)
    place = {
        "behind": (0.0, 0, -3),
        "at the camera": (0.0, 0, 0),
        "beside": (50.0, 0, 4),
        "tiny": (0.0, 0, 5000),
        "close": (0.0, 0, 0.4),
    }[case]
    scene = replace(scene, state=replace(scene.state, transl=torch.tensor([place]).double().expand(6, 3)))
    observed = detect(body, scene, dice(), errors)
    points, world = observed.keypoints, observed.world
    assert points is not None
    assert torch.isfinite(points.xy).all()
    assert ((points.confidence >= 0) & (points.confidence <= 1)).all()
    if world is not None:
        assert torch.isfinite(world.xyz).all()
    if case in ("behind", "beside") and errors.certain:
        assert (points.confidence == 0).all()


# -- parts -------------------------------------------------------------------------------------------------------


def test_parts_are_those_of_all_maps(body: BodyModel) -> None:
    scene = crowd(body, replace(PLAIN, smallest=0.5), 3)
    maps = simulate_maps(body, scene.state, Observation(scene.camera), 48).parts
    assert maps is not None
    parts = simulate_parts(body, scene.state, scene.camera, maps.box, 48)
    for name in ("probability", "box", "confidence", "open"):
        torch.testing.assert_close(getattr(parts, name), getattr(maps, name))
    assert (parts.probability[:, -1].sum((1, 2)) > 50).all()


def test_nothing_is_known_outside_of_the_photo(body: BodyModel) -> None:
    scene = crowd(body, PLAIN, 2)
    camera = Camera(scene.camera.focal, scene.camera.center, scene.camera.width, scene.camera.height)
    box = torch.tensor([[-500.0, 0, 1000, 1000]]).double().expand(2, 4)
    parts = simulate_parts(body, scene.state, camera, box, 20)
    assert (parts.confidence[:, :, :10] == 0).all()
    assert (parts.probability[:, :, :, :10] == 0).all()
    assert (parts.confidence[:, :10, 10:] == 1).all()

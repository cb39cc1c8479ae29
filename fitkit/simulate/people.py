"""People on the fly: poses of motion capture, varied, on random bodies in front of random cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit._select import Rows
from fitkit.body import BodyModel
from fitkit.camera import Camera
from fitkit.state import State

_STATURE = 1.75  # metres; sets how large somebody appears
_ARMS = tuple(joint - 1 for joint in (13, 14, 16, 17, 18, 19, 20, 21))  # of the body pose, collars to wrists
_HIPS, _KNEES = (0, 1), (3, 4)


@dataclass(frozen=True)
class Variety:
    """How people and cameras differ beyond what motion capture has. Shares are probabilities per person.

    Attributes:
        mixed: share whose arms are those of another frame.
        seated: share whose thighs and shins are those of somebody who sits or squats, drawn at random.
        shaken: share whose joints all turn a little further: normal angles, of a deviation drawn up to `shake` radians.
        shake: see above.
        tumbled: share turned any way at all.
        heavy: share of bodies at one and a half times the population's spread.
        children: share of bodies of a child's height, 0.9 to 1.5 m.
        pitch: standard deviation of the camera's tilt, degrees; a fifth of the cameras tilt three times as far.
        roll: the same of its roll.
        focal: standard deviation of the logarithm of the focal length over the photo's longer side.
        smallest: size of a standing person, of the photo's longer side; drawn evenly on a logarithmic scale.
        largest: see above; over 1 does not fit into the photo.
    """

    mixed: float = 0.25
    seated: float = 0.08
    shaken: float = 0.5
    shake: float = 0.15
    tumbled: float = 0.03
    heavy: float = 0.2
    children: float = 0.06
    pitch: float = 8.0
    roll: float = 3.0
    focal: float = 0.3
    smallest: float = 0.15
    largest: float = 1.25


@dataclass(frozen=True)
class Scene(Rows):
    """B people, each alone in front of a camera of their own.

    Attributes:
        state: the bodies, metres, camera frame.
        camera: of each.
    """

    state: State
    camera: Camera

    def __len__(self) -> int:
        return len(self.state)


class Crowd:
    """Draws people.

    Args:
        body: of the states.
        poses: `(M, 24, 3, 3)` SMPL's joints; joint 0 in a world with Y up, identity facing +Z.
        weight: `(M,)` how often each pose is drawn, up to a factor; None for evenly.
        variety: see there.

    Raises:
        ValueError: no poses, or of too few joints for the body.
    """

    def __init__(
        self,
        body: BodyModel,
        poses: Float[Tensor, "M J 3 3"],
        weight: Float[Tensor, " M"] | None = None,
        variety: Variety | None = None,
    ) -> None:
        joints = 1 + body.layout["body_pose"]
        if not len(poses) or poses.shape[1] < joints:
            raise ValueError(
                f"poses of shape {tuple(poses.shape)}, expected (M, {joints}, 3, 3) or more, M > 0"
            )
        self.body, self.variety = body, variety or Variety()
        self.poses = poses[:, :joints].to(body.device, body.dtype)
        even = torch.ones(len(poses)) if weight is None else weight
        # Drawn by the inverse of the cumulative sum: `multinomial` takes at most 2^24 and is slow on many rows.
        self._ladder = (even.double().cumsum(0) / even.double().sum()).to(body.device)

    def __call__(self, count: int, draw: torch.Generator) -> Scene:
        """`count` people.

        Args:
            count: of people.
            draw: of everything random, on the body's device.
        """
        dice = Dice(draw, self.body.dtype)
        pose = self._pose(count, dice)
        camera = _camera(count, dice, self.variety)
        orient = _seen(pose[:, 0], dice, self.variety)
        betas = self._betas(count, dice)
        state = State(orient[:, None], pose[:, 1:], betas, pose.new_zeros(count, 3))
        place = _place(camera, dice, self.variety)
        return Scene(replace(state, transl=place - self.body.joints(state)[:, :22].mean(1)), camera)

    def _frames(self, count: int, dice: Dice) -> Tensor:
        drawn = torch.searchsorted(self._ladder, dice.uniform(count).double())
        return self.poses[drawn.clamp_max(len(self.poses) - 1)]

    def _pose(self, count: int, dice: Dice) -> Tensor:
        variety, pose = self.variety, self._frames(count, dice).clone()
        body = pose[:, 1:]
        other = self._frames(count, dice)[:, 1:]
        mixed = dice.happens(variety.mixed, count)[:, None, None, None]
        body[:, _ARMS] = torch.where(mixed, other[:, _ARMS], body[:, _ARMS])
        seated = dice.happens(variety.seated, count)[:, None, None, None]
        thighs, shins = _seat(count, dice)
        body[:, _HIPS] = torch.where(seated, thighs, body[:, _HIPS])
        body[:, _KNEES] = torch.where(seated, shins, body[:, _KNEES])
        size = variety.shake * dice.uniform(count, 1, 1) * dice.happens(variety.shaken, count)[:, None, None]
        return torch.cat([pose[:, :1], body @ geometry.exp(size * dice.normal(count, body.shape[1], 3))], 1)

    def _betas(self, count: int, dice: Dice) -> Tensor:
        variety, body = self.variety, self.body
        betas = dice.normal(count, body.num_betas)
        betas = torch.where(dice.happens(variety.heavy, count)[:, None], 1.5 * betas, betas)
        readout = body.data.readouts.get("height_m")
        if readout is None:
            return betas
        # The smallest change of shape that gives the height: children of both builds, hips and heads.
        slope = torch.as_tensor(readout[:-1]).to(betas)
        height = betas @ slope + float(readout[-1])
        wanted = dice.between(0.9, 1.5, count)
        small = betas + ((wanted - height) / (slope @ slope))[:, None] * slope
        return torch.where(dice.happens(variety.children, count)[:, None], small, betas)


class Dice:
    """Random numbers of one generator, on its device.

    Args:
        draw: generator.
        dtype: of the numbers.
    """

    def __init__(self, draw: torch.Generator, dtype: torch.dtype) -> None:
        self.draw, self.dtype = draw, dtype

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1)."""
        return torch.rand(*shape, generator=self.draw, dtype=self.dtype, device=self.draw.device)

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """In [low, high)."""
        return low + (high - low) * self.uniform(*shape)

    def normal(self, *shape: int) -> Tensor:
        """Of mean 0 and standard deviation 1."""
        return torch.randn(*shape, generator=self.draw, dtype=self.dtype, device=self.draw.device)

    def happens(self, share: float | Tensor, *shape: int) -> Tensor:
        """True with a probability."""
        return self.uniform(*shape) < share


def _about(axis: int, angle: Tensor) -> Tensor:
    """Turns about a coordinate axis, radians."""
    unit = torch.zeros(3, dtype=angle.dtype, device=angle.device)
    unit[axis] = 1
    return geometry.exp(angle[..., None] * unit)


def _seat(count: int, dice: Dice) -> tuple[Tensor, Tensor]:
    """`(B, 2, 3, 3)` thighs and shins of people who sit or squat: bent alike, spread and turned a little apart."""
    radians = math.pi / 180
    bend = dice.between(55.0, 105.0, count, 1) + 10 * dice.normal(count, 2)
    knee = (dice.between(45.0, 125.0, count, 1) + 12 * dice.normal(count, 2)).clamp(5, 150)
    side = torch.tensor([1.0, -1.0], dtype=bend.dtype, device=bend.device)
    apart = side * (dice.between(-5.0, 30.0, count, 1) + 5 * dice.normal(count, 2))
    turn = 8 * dice.normal(count, 2)
    thighs = _about(1, radians * apart) @ _about(0, -radians * bend) @ _about(1, radians * turn)
    return thighs, _about(0, radians * knee)


def _camera(count: int, dice: Dice, variety: Variety) -> Camera:
    """Photos of one format for all, so that they are one batch; focal lengths of each."""
    ratio = float(dice.between(-0.6, 0.6, 1).exp())
    width, height = (1000, round(1000 / ratio)) if ratio > 1 else (round(1000 * ratio), 1000)
    focal = 1000 * (variety.focal * dice.normal(count, 1)).exp().clamp(0.5, 4).expand(count, 2)
    centre = torch.tensor([width / 2, height / 2], dtype=dice.dtype, device=focal.device)
    return Camera(focal, centre.expand(count, 2), width, height)


def _seen(pelvis: Tensor, dice: Dice, variety: Variety) -> Tensor:
    """Orientations in the camera's frame: any heading, the camera's tilt and roll, and some people turned any way."""
    count, radians = len(pelvis), math.pi / 180
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=pelvis.dtype, device=pelvis.device))
    turned = geometry.yaw(2 * math.pi * dice.uniform(count)) @ pelvis
    tilt = variety.pitch * radians * dice.normal(count)
    tilt = torch.where(dice.happens(0.2, count), 3 * tilt, tilt)
    view = _about(2, variety.roll * radians * dice.normal(count)) @ _about(0, tilt)
    orient = view @ upright @ turned
    anyhow = geometry.from_6d(dice.normal(count, 6))
    return torch.where(dice.happens(variety.tumbled, count)[:, None, None], anyhow, orient)


def _place(camera: Camera, dice: Dice, variety: Variety) -> Tensor:
    """`(B, 3)` metres: where the middle of each body is, mostly so that the person is in the photo."""
    count, longer = len(camera), max(camera.width, camera.height)
    size = longer * dice.between(math.log(variety.smallest), math.log(variety.largest), count, 1).exp()
    depth = (camera.focal[:, :1] * _STATURE / size).clamp_min(1.2)
    frame = camera.frame[:, 2:]
    room = (frame - 0.8 * size).clamp_min(0.0) + 0.15 * frame
    pixel = frame / 2 + (dice.uniform(count, 2) - 0.5) * room
    return torch.cat([(pixel - camera.center) / camera.focal * depth, depth], 1)

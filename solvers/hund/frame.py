"""Frame: the square of the photo that the network sees of a person, and states as numbers in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit._select import Rows
from fitkit.camera import Camera
from fitkit.coordinates import PoseLatent
from fitkit.observation import Observation
from fitkit.state import State

ROOM = 1.25  # side of the square in extents of the seen keypoints
_STATURE = 1.7  # metres; a person of this height fills the extent at the depth of code 0


@dataclass(frozen=True)
class Frame(Rows):
    """A square around each person, and the ray through its middle (HUND, section 2.1: crops and their intrinsics).

    What the network reads and writes is relative to it: pixels in sides of the square, orientations as seen along the
    ray, depth in that of a person who fills the square. So a person looks alike wherever they are in the photo, and
    what it writes is a State in the camera of the whole photo.

    Attributes:
        center: `(B, 2)` pixels of the photo.
        size: `(B, 1)` side, pixels.
        camera: of the photo.
        turn: `(B, 3, 3)` from the frame of the ray to that of the camera.
        pose: whose latent numbers stand for the body's pose; None for 6D rotations.
    """

    center: Float[Tensor, "B 2"]
    size: Float[Tensor, "B 1"]
    camera: Camera
    turn: Float[Tensor, "B 3 3"]
    pose: PoseLatent | None = None

    def __len__(self) -> int:
        return len(self.center)

    @staticmethod
    def of(observation: Observation, pose: PoseLatent | None = None) -> Frame:
        """The frame of what was seen of each person: around the surely seen keypoints, else around the box.

        Args:
            observation: of B people.
            pose: see `Frame`.

        Raises:
            ValueError: neither keypoints nor a box.
        """
        seen, camera = observation.keypoints, observation.camera
        if seen is not None:
            box, extent = seen.sure_box, seen.extent
        elif observation.box is not None:
            box, extent = observation.box, observation.box[:, 2:].amax(1).clamp_min(1.0)
        else:
            raise ValueError("hund: an observation without keypoints and boxes, expected one of them")
        center = box[:, :2] + box[:, 2:] / 2
        ray = torch.cat([(center - camera.center) / camera.focal, torch.ones_like(center[:, :1])], 1)
        return Frame(center, ROOM * extent[:, None], camera, _towards(ray), pose)

    @property
    def box(self) -> Float[Tensor, "B 4"]:
        """x, y, w, h, pixels of the photo."""
        return torch.cat([self.center - self.size / 2, self.size, self.size], 1)

    def inside(self, pixels: Float[Tensor, "B N 2"]) -> Float[Tensor, "B N 2"]:
        """Pixels in sides of the square, around its middle."""
        return (pixels - self.center[:, None]) / self.size[:, None]

    def view(self) -> Float[Tensor, "B 7"]:
        """The crop's intrinsics, and the edges of the photo: all that the square has lost."""
        camera = self.camera
        ray = (self.center - camera.center) / camera.focal
        corner = torch.tensor([camera.width, camera.height], dtype=ray.dtype, device=ray.device)
        low, high = -self.center / self.size, (corner - self.center) / self.size
        wide = (self.size / camera.focal[:, :1]).log() + 1
        return torch.cat([wide, ray, low.clamp(-2, 0), high.clamp(0, 2)], 1)

    def encode(self, state: State) -> Float[Tensor, "B D"]:
        """Numbers of a state: rotations as 6D, shape, and where the pelvis is: pixel and logarithm of the depth."""
        orient = self.turn.mT @ state.global_orient[:, 0]
        body = state.body_pose
        posed = geometry.to_6d(body).flatten(1) if self.pose is None else self.pose.encode(body)
        depth = state.transl[:, 2:].clamp_min(0.1)
        pixel = state.transl[:, :2] / depth * self.camera.focal + self.camera.center
        away = (depth / self._near()).log()
        return torch.cat(
            [geometry.to_6d(orient), posed, state.betas, self.inside(pixel[:, None])[:, 0], away], 1
        )

    def decode(self, code: Float[Tensor, "B D"], betas: int) -> State:
        """The state of the numbers of `encode`; rotations need not be orthonormal in them.

        Args:
            code: numbers.
            betas: how many of them are shape.
        """
        orient, posed, shape, place = code.split([6, code.shape[1] - betas - 9, betas, 3], 1)
        body = self._rotations(posed)
        depth = self._near() * place[:, 2:].clamp(-2.5, 2.5).exp()
        pixel = self.center + place[:, :2] * self.size
        transl = torch.cat([(pixel - self.camera.center) / self.camera.focal * depth, depth], 1)
        return State((self.turn @ geometry.from_6d(orient))[:, None], body, shape, transl)

    def _rotations(self, numbers: Tensor) -> Tensor:
        if self.pose is not None:
            return self.pose.decode(numbers)
        return geometry.from_6d(numbers.unflatten(1, (-1, 6)))

    def _near(self) -> Tensor:
        """`(B, 1)` metres: where a standing person fills the square."""
        return _STATURE * ROOM * self.camera.focal[:, 1:] / self.size


def _towards(ray: Tensor) -> Tensor:
    """`(B, 3, 3)` the least turn that takes the optical axis to a ray."""
    ray = torch.nn.functional.normalize(ray, dim=1)
    x, y, z = ray.unbind(1)
    axis = torch.stack([-y, x, torch.zeros_like(x)], 1)
    sine = axis.norm(dim=1, keepdim=True).clamp_min(1e-9)
    return geometry.exp(axis / sine * torch.atan2(sine, z[:, None]))

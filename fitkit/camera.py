"""Pinhole cameras in pixels of the full photo, and the translation that a set of keypoints implies."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows

# A lens' focal length in millimetres (29, 50) given as pixels is the commonest mistake of users of SMPLify-X;
# a view wider than 140 degrees would be needed to make such a number right for a photo of ordinary size.
_SHORTEST_FOCAL = 0.18


@dataclass(frozen=True)
class Camera(Rows):
    """Pinhole cameras, OpenCV axes (x right, y down, z forward), one per person.

    Attributes:
        focal: `(B, 2)` fx, fy in pixels.
        center: `(B, 2)` cx, cy in pixels.
        width: of the photo, pixels.
        height: of the photo, pixels.
    """

    focal: Float[Tensor, "B 2"]
    center: Float[Tensor, "B 2"]
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.focal.ndim != 2 or self.focal.shape[1] != 2 or self.center.shape != self.focal.shape:
            raise ValueError(
                f"camera: focal {tuple(self.focal.shape)} and center {tuple(self.center.shape)}, "
                "expected both (B, 2)"
            )

    def __len__(self) -> int:
        return len(self.focal)

    @staticmethod
    def from_size(width: int, height: int, focal: float | None = None) -> Camera:
        """The camera of a photo whose intrinsics are not known: f = max(H, W), centre of the photo (HUND, 2.1).

        Args:
            width: pixels of the full photo.
            height: pixels of the full photo.
            focal: pixels, where it is known.

        Raises:
            ValueError: an empty photo, or a focal length that cannot be in pixels.

        >>> Camera.from_size(640, 480).focal.tolist()
        [[640.0, 640.0]]
        """
        if width < 1 or height < 1:
            raise ValueError(f"camera: photo of {width} x {height} pixels, expected at least 1 x 1")
        pixels = float(max(width, height)) if focal is None else float(focal)
        return Camera.from_intrinsics(pixels, pixels, width / 2, height / 2, width, height)

    @staticmethod
    def from_intrinsics(fx: float, fy: float, cx: float, cy: float, width: int, height: int) -> Camera:
        """A calibrated camera, all in pixels of the full photo.

        Raises:
            ValueError: a focal length that cannot be in pixels (millimetres, zero, NaN).
        """
        for name, value in (("fx", fx), ("fy", fy)):
            shortest = _SHORTEST_FOCAL * max(width, height)
            if not shortest <= value < float("inf"):
                raise ValueError(
                    f"focal length {name} = {value:g} for a photo of {width} x {height} pixels: expected pixels, "
                    f"at least {shortest:.0f} (millimetres? pixels = mm / sensor width in mm * {width})"
                )
        if not (math.isfinite(cx) and math.isfinite(cy)):
            raise ValueError(f"principal point cx = {cx:g}, cy = {cy:g}: expected finite pixels")
        dtype = torch.get_default_dtype()
        return Camera(
            torch.tensor([[fx, fy]], dtype=dtype),
            torch.tensor([[cx, cy]], dtype=dtype),
            int(width),
            int(height),
        )

    @property
    def frame(self) -> Float[Tensor, "B 4"]:
        """x, y, w, h of the whole photo, pixels."""
        size = torch.tensor([0, 0, self.width, self.height], dtype=self.focal.dtype, device=self.focal.device)
        return size.expand(len(self), 4)

    def expand(self, people: int) -> Camera:
        """The same single camera for each of `people` people."""
        return replace(self, focal=self.focal.expand(people, 2), center=self.center.expand(people, 2))

    def project(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 2"]:
        """Pixels of points in metres, camera frame.

        Depth is clamped at 5 cm: a point behind the camera has no image, and the clamp keeps values and
        gradients finite while a solver is on its way back.
        """
        depth = points[..., 2:].clamp_min(0.05)
        return points[..., :2] / depth * self.focal[:, None] + self.center[:, None]

    def project_jacobian(
        self, points: Float[Tensor, "B N 3"], jacobian: Float[Tensor, "B N 3 D"]
    ) -> Float[Tensor, "B N 2 D"]:
        """Derivative of `project(points)`, from that of the points."""
        depth = points[..., 2:].clamp_min(0.05)
        flat = points[..., :2] / depth * (points[..., 2:] > 0.05)
        moved = jacobian[:, :, :2] - flat[..., None] * jacobian[:, :, 2:]
        return moved * (self.focal[:, None] / depth)[..., None]

    def crop(self, box: Float[Tensor, "B 4"], width: int, height: int) -> Camera:
        """The intrinsics of a crop resized to `width` x `height` (HUND, eq. 1).

        What is fitted with the crop's camera projects onto the full photo with this one: both are the same
        camera in space, and only the pixel grid changes.

        Args:
            box: `(B, 4)` x, y, w, h of the crop, pixels of this camera.
            width: of the resized crop, pixels.
            height: of the resized crop, pixels.
        """
        size = torch.tensor([width, height], dtype=self.focal.dtype, device=self.focal.device)
        scale = size / box[:, 2:]
        return Camera(self.focal * scale, (self.center - box[:, :2]) * scale, width, height)

    def to_weak_perspective(self, transl: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
        """Weak-perspective `(s, tx, ty)` of bodies at `transl`: x_px = s * (X + tx) + cx, in pixels per metre."""
        scale = self.focal[:, :1] / transl[:, 2:]
        return torch.cat([scale, transl[:, :2]], 1)

    def from_weak_perspective(self, weak: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
        """The translation in metres of a weak-perspective `(s, tx, ty)`; the inverse of `to_weak_perspective`."""
        return torch.cat([weak[:, 1:], self.focal[:, :1] / weak[:, :1]], 1)


def translation_from_keypoints(
    points: Float[Tensor, "B K 3"],
    pixels: Float[Tensor, "B K 2"],
    confidence: Float[Tensor, "B K"],
    camera: Camera,
) -> Float[Tensor, "B 3"]:
    """The translation that puts `points` onto `pixels`, by linear least squares.

    Zanfir et al. (ECCV 2020 supplement, eq. 2) relax the camera to weak perspective; the perspective equations
    x * (Z + tz) = X + tx are linear in the translation too, so nothing needs to be relaxed (27 mm off at the true
    pose). Where they have no solution in front of the camera (a start turned away from the person), the depth
    is taken from the apparent size, and the position from the centroid.

    Args:
        points: `(B, K, 3)` metres, around the body's own origin, camera axes.
        pixels: `(B, K, 2)` of the full photo.
        confidence: `(B, K)`, 0 = not seen.
        camera: of the same people.

    Returns:
        `(B, 3)` metres, camera frame; straight ahead at 3 m for a person with nothing seen.
    """
    rays = (pixels - camera.center[:, None]) / camera.focal[:, None]
    x, y, depth = rays[..., 0], rays[..., 1], points[..., 2]
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = torch.stack([torch.stack([one, zero, -x], -1), torch.stack([zero, one, -y], -1)], -2)
    right = torch.stack([x * depth - points[..., 0], y * depth - points[..., 1]], -1)
    rows = (rows * confidence[..., None, None]).flatten(1, 2)
    right = (right * confidence[..., None]).flatten(1)[..., None]
    ridge = 1e-9 * torch.eye(3, dtype=points.dtype, device=points.device)
    # A person of whom too little was seen has a singular matrix, and must not fail the others.
    solved = torch.linalg.solve_ex(rows.mT @ rows + ridge, rows.mT @ right)[0][..., 0]

    weight = confidence / confidence.sum(1, keepdim=True).clamp_min(1e-9)
    mean_ray, mean_point = (weight[..., None] * rays).sum(1), (weight[..., None] * points).sum(1)
    spread_rays = (weight[..., None] * (rays - mean_ray[:, None]) ** 2).sum((1, 2)).sqrt()
    spread_points = (weight[..., None] * (points[..., :2] - mean_point[:, None, :2]) ** 2).sum((1, 2)).sqrt()
    far = spread_points / spread_rays.clamp_min(1e-4)
    far = torch.where(spread_rays > 1e-4, far, torch.full_like(far, 3.0))
    far = far.clamp(0.5, 100.0)
    centred = torch.cat([mean_ray * far[:, None] - mean_point[:, :2], (far - mean_point[:, 2])[:, None]], 1)
    seen = (confidence > 0).sum(1) >= 3
    good = seen & torch.isfinite(solved).all(1) & (solved[:, 2] > 0.5) & (solved[:, 2] < 200.0)
    return torch.where(good[:, None], solved, centred)

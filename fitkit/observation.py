"""Observation: what was seen of each person in a photo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows
from fitkit.camera import Camera
from fitkit.keypoints import Keypoints, Keypoints3D
from fitkit.maps import Correspondences, IUVMap, IUVPoints, NormalMap, PartMap

T = TypeVar("T")


@dataclass(frozen=True)
class Observation(Rows):
    """What was seen of B people in one photo. Every part but the camera is optional.

    Attributes:
        camera: one per person, pixels of the full photo.
        keypoints: 2D keypoints with confidences.
        world: 3D keypoints around the root, camera axes, metres (a detector's world landmarks): their directions
            help, their lengths are not to be trusted.
        mask: `(B, h, w)` in [0, 1], covering the whole photo at any resolution.
        box: `(B, 4)` x, y, w, h in pixels.
        parts: which body part is seen at each pixel.
        iuv: place on the body's surface of every pixel, or of single points.
        normals: direction of the surface at each pixel.
        surface: points of the body's surface seen in the photo or in space.
        score: `(B,)` the detector's confidence that this is a person.
        image: `(H, W, 3)` uint8 RGB, shared by all people.
    """

    camera: Camera
    keypoints: Keypoints | None = None
    world: Keypoints3D | None = None
    mask: Float[Tensor, "B h w"] | None = None
    parts: PartMap | None = None
    iuv: IUVMap | IUVPoints | None = None
    normals: NormalMap | None = None
    surface: Correspondences | None = None
    box: Float[Tensor, "B 4"] | None = None
    score: Float[Tensor, " B"] | None = None
    image: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor | Rows) and len(value) != len(self.camera):  # type: ignore[arg-type]
                raise ValueError(
                    f"observation: {field.name} is of {len(value)} people, the camera of {len(self.camera)}"  # type: ignore[arg-type]
                )

    def __len__(self) -> int:
        return len(self.camera)

    def has(self, part: str) -> bool:
        """Whether a part, named as the attribute, was observed."""
        return getattr(self, part) is not None

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What an objective works out from what was seen, made once and kept with this very observation.

        Args:
            key: equal for equal results; any hashable.
            make: works it out.
        """
        made: dict[object, Any] = self.__dict__.setdefault("_made", {})
        if key not in made:
            made[key] = make()
        found: T = made[key]
        return found

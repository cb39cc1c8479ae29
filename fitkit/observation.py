"""Observation: what was seen of each person in a photo."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows
from fitkit.camera import Camera
from fitkit.keypoints import Keypoints, Keypoints3D


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
        score: `(B,)` the detector's confidence that this is a person.
        image: `(H, W, 3)` uint8 RGB, shared by all people.
    """

    camera: Camera
    keypoints: Keypoints | None = None
    world: Keypoints3D | None = None
    mask: Float[Tensor, "B h w"] | None = None
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

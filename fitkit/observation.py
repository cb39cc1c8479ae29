"""Observation: what was seen of each person in a photo."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Index, Rows, as_index
from fitkit.camera import Camera
from fitkit.keypoints import Keypoints, Keypoints3D
from fitkit.maps import Correspondences, IUVMap, IUVPoints, NormalMap, PartMap, check_range
from fitkit.state import State

T = TypeVar("T")


_KINDS: dict[str, tuple[type, ...]] = {
    "camera": (Camera,),
    "keypoints": (Keypoints,),
    "world": (Keypoints3D,),
    "mask": (Tensor,),
    "parts": (PartMap,),
    "iuv": (IUVMap, IUVPoints),
    "normals": (NormalMap,),
    "surface": (Correspondences,),
    "guess": (State,),
    "box": (Tensor,),
    "score": (Tensor,),
    "image": (np.ndarray,),
}


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
        guess: a network's (or anybody's) estimate of the body, metres, camera frame.
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
    guess: State | None = None
    box: Float[Tensor, "B 4"] | None = None
    score: Float[Tensor, " B"] | None = None
    image: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, _KINDS.get(field.name, (object,))):
                names = " or ".join(kind.__name__ for kind in _KINDS[field.name])
                raise ValueError(f"observation: {field.name} is {type(value).__name__}, expected {names}")
            if isinstance(value, Tensor | Rows) and len(value) != len(self.camera):  # type: ignore[arg-type]
                raise ValueError(
                    f"observation: {field.name} is of {len(value)} people, the camera of {len(self.camera)}"  # type: ignore[arg-type]
                )

    def __len__(self) -> int:
        return len(self.camera)

    def check(self) -> None:
        """Raise a ValueError that names the first part with values that cannot be meant.

        Not done for every selection: on a GPU each look at values waits for all that was queued.
        """
        if self.mask is not None:
            if self.mask.ndim != 3:
                raise ValueError(f"observation: mask of shape {tuple(self.mask.shape)}, expected (B, h, w)")
            check_range("mask", self.mask, 0.0, 1.0)
        for name in ("parts", "iuv", "normals", "surface"):
            part = getattr(self, name)
            if part is not None:
                part.check(name)
        for name, value in () if self.guess is None else self.guess.parts().items():
            if len(value) != len(self) or not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"observation: guess has {name} of shape {tuple(value.shape)} that is not finite or not of "
                    f"{len(self)} people, expected finite numbers for each person"
                )

    def has(self, part: str) -> bool:
        """Whether a part, named as the attribute, was observed."""
        return getattr(self, part) is not None

    def select(self, index: Index) -> Observation:
        """The chosen people, as a batch (an int gives a batch of one), with what was worked out about them."""
        chosen = super().select(index)
        rows = as_index(index, len(self))
        kept = {key: _rows_of(value, rows) for key, value in self.__dict__.get("_made", {}).items()}
        chosen.__dict__["_made"] = {key: value for key, value in kept.items() if value is not None}
        return chosen

    def without(self, parts: Iterable[str]) -> Observation:
        """The same people without some parts, named as the attributes, with what was worked out about them."""
        left: Observation = replace(self, **dict.fromkeys(parts))  # type: ignore[arg-type]
        left.__dict__["_made"] = self.__dict__.setdefault("_made", {})
        return left

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_made"}

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What an objective works out from what was seen, made once and kept with this very observation.

        Args:
            key: equal for equal results; any hashable.
            make: works it out. Tensors and `Rows` (and tuples of them) must have one row per person: they are
                selected with the people.
        """
        made: dict[object, Any] = self.__dict__.setdefault("_made", {})
        if key not in made:
            # Kept: neither a later gradient nor an earlier one has a part in it.
            with torch.inference_mode(False), torch.no_grad():
                made[key] = make()
        found: T = made[key]
        return found


def _rows_of(value: Any, rows: Tensor) -> Any:
    """Some people's share of what was worked out about all; None for what has no rows."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)]
    if isinstance(value, Rows):
        return value.select(rows)
    if isinstance(value, tuple):
        return tuple(_rows_of(part, rows) for part in value)
    return None

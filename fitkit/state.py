"""State: the unknowns of a batch of bodies, as a frozen value."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows
from fitkit.files import atomic_write

ROTATIONS = (
    "global_orient",
    "body_pose",
    "jaw_pose",
    "leye_pose",
    "reye_pose",
    "left_hand_pose",
    "right_hand_pose",
)
# Numbers per person in a file, where they are the same for every body.
_WIDTHS = {
    "global_orient": 3,
    "transl": 3,
    "jaw_pose": 3,
    "leye_pose": 3,
    "reye_pose": 3,
    "left_hand_pose": 45,
    "right_hand_pose": 45,
}
_REQUIRED = ("global_orient", "body_pose", "betas", "transl")


@dataclass(frozen=True)
class State(Rows):
    """The unknowns of B bodies, with SMPL-X names. Metres, camera frame, rotations parent-relative.

    A part that is None is at rest: hands, jaw and eyes that nothing observed cost nothing.

    Attributes:
        global_orient: `(B, 1, 3, 3)` the root in the camera frame.
        body_pose: `(B, J, 3, 3)`, J = 21 for SMPL-X bodies, 23 for SMPL.
        betas: `(B, S)` shape, unit normal in the population.
        transl: `(B, 3)` of the root's rest position, metres.
        expression: `(B, E)`.
        jaw_pose, leye_pose, reye_pose: `(B, 1, 3, 3)`.
        left_hand_pose, right_hand_pose: `(B, 15, 3, 3)`.
    """

    global_orient: Float[Tensor, "B 1 3 3"]
    body_pose: Float[Tensor, "B J 3 3"]
    betas: Float[Tensor, "B S"]
    transl: Float[Tensor, "B 3"]
    expression: Float[Tensor, "B E"] | None = None
    jaw_pose: Float[Tensor, "B 1 3 3"] | None = None
    leye_pose: Float[Tensor, "B 1 3 3"] | None = None
    reye_pose: Float[Tensor, "B 1 3 3"] | None = None
    left_hand_pose: Float[Tensor, "B 15 3 3"] | None = None
    right_hand_pose: Float[Tensor, "B 15 3 3"] | None = None

    def __len__(self) -> int:
        return len(self.transl)

    def parts(self) -> dict[str, Tensor]:
        """What is not None, by SMPL-X name."""
        return {name: value for name in _NAMES if (value := getattr(self, name)) is not None}

    def save(self, path: str | Path) -> None:
        """Write a plain `.npz` with SMPL-X names, rotations as axis-angle `(B, 3 * joints)` in radians."""
        import roma  # brings torch's compiler with it, which `import fitkit` should not wait for

        arrays: dict[str, Any] = {}
        for name, value in self.parts().items():
            tensor = roma.rotmat_to_rotvec(value).flatten(1) if name in ROTATIONS else value
            arrays[name] = tensor.detach().cpu().numpy()
        atomic_write(path, lambda file: np.savez_compressed(file, **arrays))

    @staticmethod
    def load(path: str | Path) -> State:
        """Read what `save` wrote (or any `.npz` of SMPL-X parameters in axis-angle).

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an `.npz`, a parameter missing or of the wrong shape.
        """
        import roma

        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (zipfile.BadZipFile, ValueError, EOFError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: not an .npz of body parameters ({error})") from error
        missing = [name for name in _REQUIRED if name not in arrays]
        if missing:
            raise ValueError(f"{path}: {missing} missing, found {sorted(arrays)}")
        tensors = {}
        for name, array in arrays.items():
            if name not in _NAMES:
                continue
            tensor = torch.as_tensor(array)
            if tensor.ndim == 1:
                tensor = tensor[None]
            width = _WIDTHS.get(name)
            if tensor.ndim != 2 or (width or tensor.shape[1]) != tensor.shape[1]:
                raise ValueError(f"{path}: {name} has shape {array.shape}, expected (B, {width or 'any'})")
            if name in ROTATIONS:
                if tensor.shape[1] % 3:
                    raise ValueError(
                        f"{path}: {name} has shape {array.shape}, expected (B, 3 * joints) axis-angle"
                    )
                tensor = roma.rotvec_to_rotmat(tensor.unflatten(1, (-1, 3)))
            tensors[name] = tensor
        people = {len(tensor) for tensor in tensors.values()}
        if len(people) > 1:
            raise ValueError(
                f"{path}: parameters of {sorted(people)} people in one file, expected one number"
            )
        return State(**tensors)


_NAMES = tuple(field.name for field in fields(State))

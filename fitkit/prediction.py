"""Prediction: one forward pass of a body, evaluated as far as somebody reads it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fitkit.body.kinematics import PointSet, Posed
from fitkit.body.model import BodyModel
from fitkit.body.surface import Skin
from fitkit.camera import Camera
from fitkit.state import State

T = TypeVar("T")


class Prediction:
    """What the body predicts at a state. Everything is lazy and cached: an objective pays only for what it reads.

    Args:
        body: of the state.
        state: of B people.
        camera: of the same people.
        blocks: the tangent columns of the parts that may move, when Jacobians will be read.
    """

    def __init__(
        self, body: BodyModel, state: State, camera: Camera, blocks: dict[str, slice] | None = None
    ) -> None:
        self.body, self.state, self.camera = body, state, camera
        self._blocks = blocks
        self._positions: dict[str, Tensor] = {}
        self._pixels: dict[str, Tensor] = {}
        self._jacobians: dict[str, Tensor] = {}
        self._found: dict[int, tuple[object, Any]] = {}

    def __len__(self) -> int:
        return len(self.state)

    # -- what the state says ----------------------------------------------------------------------------------

    @property
    def betas(self) -> Float[Tensor, "B S"]:
        """Shape coefficients."""
        return self.state.betas

    @property
    def body_pose(self) -> Float[Tensor, "B J 3 3"]:
        """Parent-relative rotations of the body's joints."""
        return self.state.body_pose

    @property
    def global_orient(self) -> Float[Tensor, "B 1 3 3"]:
        """Root orientation in the camera frame."""
        return self.state.global_orient

    @cached_property
    def posed(self) -> Posed:
        """Forward kinematics."""
        return self.body.pose(self.state)

    # -- points ----------------------------------------------------------------------------------------------

    def keypoints(self, name: str) -> Float[Tensor, "B K 3"]:
        """Points of a keypoint set, metres, camera frame."""
        if name not in self._positions:
            if self._blocks is None:
                self._positions[name] = self._points(name).positions(self.posed)
            else:
                self._linearize(name)
        return self._positions[name]

    def keypoints_2d(self, name: str) -> Float[Tensor, "B K 2"]:
        """Points of a keypoint set, pixels of the full photo."""
        if name not in self._pixels:
            self._pixels[name] = self.camera.project(self.keypoints(name))
        return self._pixels[name]

    @property
    def joints(self) -> Float[Tensor, "B J 3"]:
        """Kinematic joints, metres, camera frame."""
        return self.keypoints(self.body.joint_set.name)

    def joint(self, name: str) -> Float[Tensor, "B 3"]:
        """One kinematic joint by name, metres, camera frame.

        Raises:
            ValueError: no joint of that name; the message lists those there are.
        """
        return self.joints[:, self.body.joint_set.index(name)]

    @cached_property
    def vertices(self) -> Float[Tensor, "B V 3"]:
        """The full surface, metres, camera frame. Expensive: keypoint objectives do not need it."""
        return self.body.vertices(self.state)

    def skin(self, vertex: Int[Tensor, "B N K"], share: Float[Tensor, "B N K"]) -> Skin:
        """What moves points that hang on K vertices each; depends on no pose, so it may be kept."""
        return self.body.skin(vertex, share, self.posed.transforms.shape[1])

    def vertex_skin(self, vertex: Int[Tensor, "B N"]) -> Skin:
        """What moves these vertices."""
        return self.skin(vertex[..., None], torch.ones_like(vertex[..., None], dtype=self.body.dtype))

    def surface(self, skin: Skin) -> Float[Tensor, "B N 3"]:
        """Points of the surface, metres, camera frame; costs the points, not the mesh."""
        return skin.positions(self.posed)

    # -- derivatives -----------------------------------------------------------------------------------------

    @property
    def linearizing(self) -> bool:
        """Whether Jacobians will be read."""
        return self._blocks is not None

    def once(self, owner: object, make: Callable[[], T]) -> T:
        """What an objective computes for its rows and needs again for their derivatives: made once, then kept."""
        if id(owner) not in self._found:
            self._found[id(owner)] = owner, make()  # kept: an id is used again once its owner is gone
        found: T = self._found[id(owner)][1]
        return found

    @property
    def blocks(self) -> dict[str, slice]:
        """Columns of the Jacobians below, by block of the state: those that may move."""
        if self._blocks is None:
            raise ValueError("this prediction was not made for a linearisation: it has no Jacobian columns")
        return self._blocks

    def keypoints_jacobian(self, name: str) -> Float[Tensor, "B K 3 D"]:
        """Derivative of `keypoints(name)` with respect to a right perturbation of the state."""
        if name not in self._jacobians:
            self._linearize(name)
        return self._jacobians[name]

    def surface_jacobian(self, skin: Skin) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N 3 D"]]:
        """`surface`, and its derivative with respect to a right perturbation of the state."""
        place, rotate, spread = skin.jacobian(self.posed)
        eye = torch.eye(3, dtype=place.dtype, device=place.device)
        return place, self._columns(rotate, spread, eye.expand(*place.shape, 3))

    def _points(self, name: str) -> PointSet:
        return self.body.points(name, self.posed.transforms.shape[1])

    def _linearize(self, name: str) -> None:
        points = self._points(name)
        shaped = "betas" in self.blocks or "expression" in self.blocks
        joints = self._turning()
        self._positions[name], rotate, spread, move = points.jacobian(self.posed, joints, shaped)
        self._jacobians[name] = self._columns(rotate, spread, move)

    def _turning(self) -> int:
        """Joints up to the last that moves: in SMPL-X's order the root and the body come first."""
        parts = self.body.articulated(self.state)
        moving = [part for part in parts if part in self.blocks]
        return sum(self.body.layout[part] for part in parts[: parts.index(moving[-1]) + 1]) if moving else 0

    def _columns(self, rotate: Tensor, spread: Tensor | None, move: Tensor) -> Tensor:
        """Derivatives `(B, N, 3, ...)` in the order of the blocks."""
        columns, start = {"transl": move}, 0
        for part in self.body.articulated(self.state):
            stop = start + 3 * self.body.layout[part]
            columns[part], start = rotate[..., start:stop], stop
        if spread is not None:
            columns["betas"] = spread[..., : self.state.betas.shape[1]]
            columns["expression"] = spread[..., self.body.num_betas :]
        return torch.cat([columns[block] for block in self.blocks], -1)

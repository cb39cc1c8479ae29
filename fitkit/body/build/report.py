"""The acceptance figures of a finished asset."""

from __future__ import annotations

import numpy as np
import torch

from fitkit.body.build.anny import LOCAL_SD, People, Source
from fitkit.body.build.charts import signed_areas
from fitkit.body.build.keypoints import coco_points
from fitkit.body.build.mesh import LightMesh
from fitkit.body.build.pose import feature, hybrid_target, posed_by_anny, random_body_poses, skin
from fitkit.body.build.shape import ShapeSpace, decode, encode, height_of, mass_of, reconstruction_error
from fitkit.body.build.skeleton import JOINT, Array

SUBJECTS, POSES_EACH = 8, 16
Arrays = dict[str, np.ndarray]


def measure(
    source: Source,
    mesh: LightMesh,
    space: ShapeSpace,
    arrays: Arrays,
    adults: People,
    children: People,
    seed: int,
) -> dict[str, float]:
    """All figures of the model card, millimetres unless the name says otherwise; people here were never fitted."""
    out: dict[str, float] = {}
    out |= _shape(mesh, space, adults, children)
    out |= _population(mesh, arrays, children, seed)
    out |= _points(source, mesh, arrays, adults, children)
    out |= _skinning(source, mesh, arrays, (18.0, 80.0), "adults", seed + 77)
    out |= _skinning(source, mesh, arrays, (2.0, 12.0), "children", seed + 78)
    area = signed_areas(arrays["chart_uv"].astype(float))
    out["charts_flipped_triangles"] = int((area[arrays["charts"] > 0] <= 0).sum())
    out["expression_energy_at_10"] = float(arrays["expression_explained"])
    return {k: v if isinstance(v, int) else float(f"{v:.4g}") for k, v in out.items()}


def _shape(mesh: LightMesh, space: ShapeSpace, adults: People, children: People) -> dict[str, float]:
    out = {}
    for name, people in (("adults", adults), ("children", children)):
        for count in (10, 16):
            error = reconstruction_error(people.vertices, space.mean, space.directions, count)
            out[f"shape_{name}_{count}_mean"] = error.mean()
            out[f"shape_{name}_{count}_mean_of_max"] = error.max(1).mean()
            error = reconstruction_error(
                people.vertices[:, mesh.index], space.mean[mesh.index], space.directions[mesh.index], count
            )
            out[f"shape_{name}_{count}_mean_light_mesh"] = error.mean()
    return out


def _population(mesh: LightMesh, arrays: Arrays, children: People, seed: int) -> dict[str, float]:
    template, directions = arrays["v_template"], arrays["shapedirs"]
    betas = np.random.default_rng(seed).standard_normal((500, directions.shape[-1])).astype(np.float32)
    bodies = decode(betas, template, directions)
    height, mass = height_of(bodies), mass_of(bodies, mesh.faces)
    read = np.concatenate([betas, np.ones((len(betas), 1))], 1) @ arrays["readout"].T
    out = {
        "population_height_m_mean": height.mean(), "population_height_m_sd": height.std(),
        "population_mass_kg_mean": mass.mean(), "population_mass_kg_sd": mass.std(),
        "readout_height_mm_mean_error": np.abs(read[:, 0] - height).mean() * 1e3,
        "readout_mass_kg_mean_error": np.abs(read[:, 1] - mass).mean(),
    }  # fmt: skip
    norms = np.linalg.norm(encode(children.vertices[:, mesh.index], template, directions), axis=1)
    for low, high in ((2, 5), (5, 10), (10, 14), (14, 17)):
        out[f"children_{low}_to_{high}_norm_of_betas"] = norms[
            (children.age >= low) & (children.age < high)
        ].mean()
    return out


def _points(
    source: Source, mesh: LightMesh, arrays: Arrays, adults: People, children: People
) -> dict[str, float]:
    out = {}
    regressor = arrays["J_regressor"]
    for name, people in (("adults", adults), ("children", children)):
        error = _distance(np.einsum("jv,nvc->njc", regressor, people.vertices[:, mesh.index]), people.joints)
        out[f"joints_{name}_body"], out[f"joints_{name}_all"] = error[:, :22].mean(), error.mean()
    names = arrays["kp_coco23_names"].tolist()
    rows = np.zeros((len(names), len(mesh.index)))
    rows[arrays["kp_coco23_row"], arrays["kp_coco23_col"]] = arrays["kp_coco23_val"]
    points = np.einsum("kv,nvc->nkc", rows, adults.vertices[:, mesh.index])
    error = _distance(points, coco_points(source, adults)[:, [source.coco_names.index(n) for n in names]])
    out["coco23_adults_mean"], out["coco23_adults_worst_keypoint"] = error.mean(), error.mean(0).max()
    return out


def _skinning(
    source: Source, mesh: LightMesh, arrays: Arrays, ages: tuple[float, float], label: str, seed: int
) -> dict[str, float]:
    """Our skinning of people with their exact shape and joints, against Anny's posing of the same people."""
    count = SUBJECTS * POSES_EACH
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    rotations = random_body_poses(count, rng, wide_shoulders=0.2)
    phenotypes, _ = source.phenotypes(SUBJECTS, ages)
    changes = source.local_changes(SUBJECTS, LOCAL_SD).repeat_interleave(POSES_EACH, 0)
    phenotypes = {k: v.repeat_interleave(POSES_EACH, 0) for k, v in phenotypes.items()}
    people = phenotypes, changes
    still = np.tile(np.eye(3), (count, len(JOINT), 1, 1))
    shaped = posed_by_anny(source, mesh.index, still, people, "lbs")
    joints = source.posed(still, *people)[1]
    posedirs = arrays["posedirs"].astype(np.float32)
    offset = np.einsum("vcp,np->nvc", posedirs, feature(rotations).astype(np.float32))
    tallness = (height_of(shaped) / height_of(arrays["v_template"]))[:, None, None].astype(np.float32)
    targets = {
        "anny_lbs": posed_by_anny(source, mesh.index, rotations, people, "lbs"),
        "hybrid": hybrid_target(
            source, mesh, np.arange(len(mesh.index)), arrays["weights"], rotations, people
        ),
    }
    out: dict[str, float] = {}
    for how, added in (
        ("without_correctives", 0),
        ("with_correctives", offset),
        ("with_correctives_scaled_by_height", offset * tallness),
    ):
        posed = _blocks(shaped + added, joints, rotations, arrays["weights"])
        for name, target in targets.items():
            out |= _spread(f"skinning_{label}_vs_{name}_{how}", _distance(posed, target))
    return out


def _blocks(vertices: Array, joints: Array, rotations: Array, weights: Array) -> Array:
    parts = []
    for s in range(0, len(vertices), POSES_EACH):
        b = slice(s, s + POSES_EACH)
        parts.append(skin(vertices[b], joints[b], rotations[b], weights)[0].numpy())
    return np.concatenate(parts)


def _spread(name: str, error: Array) -> dict[str, float]:
    return {
        f"{name}_mean": error.mean(),
        f"{name}_p99": float(np.quantile(error, 0.99)),
        f"{name}_mean_of_max": error.max(1).mean(),
    }


def _distance(a: Array, b: Array) -> Array:
    return np.linalg.norm(a - b, axis=-1) * 1e3

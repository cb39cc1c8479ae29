"""Meshes for other programs: GLB and OBJ, in glTF axes (x right, y up, z towards the viewer), metres."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitkit.files import atomic_write
from fitkit.show.inputs import (
    ArrayLike,
    BodiesLike,
    FloatArray,
    IntArray,
    as_array,
    as_bodies,
    as_colors,
    as_faces,
    vertex_normals,
)

if TYPE_CHECKING:
    import trimesh

# From the camera frame (y down, z forward); a half turn about x, so windings stay as they are.
_TO_GLTF = np.array([1.0, -1.0, -1.0])


def write_glb(
    path: str | Path,
    vertices: ArrayLike,
    faces: ArrayLike,
    *,
    color: ArrayLike | None = None,
    name: str = "body",
) -> Path:
    """Write one body as binary glTF with smooth normals; vertices keep their order and number.

    Args:
        path: of the `.glb` file.
        vertices: `(V, 3)` metres, camera frame.
        faces: `(F, 3)`.
        color: `(3,)` for the whole body or `(V, 3)` for its parts; 0..255 integers or 0..1 floats.
        name: of the node and the mesh.

    Raises:
        ValueError: a shape is wrong or a coordinate is not finite.
        OSError: the folder is missing or cannot be written to.
    """
    return _write_scene(path, [_mesh(vertices, faces, color, 0)], [name])


def scene_glb(
    path: str | Path,
    vertices: BodiesLike,
    faces: ArrayLike,
    *,
    colors: ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Write all people of a photo into one `.glb`, each a node of its own, where they stand before the camera.

    Args:
        path: of the `.glb` file.
        vertices: `(B, V, 3)` or a list of `(V, 3)`, metres, camera frame.
        faces: `(F, 3)`, shared by all people.
        colors: `(B, 3)` RGB; else the palette.
        names: one per person; else person_0, person_1, ...

    Raises:
        ValueError: a shape is wrong, nobody is there, or a coordinate is not finite.
        OSError: the folder is missing or cannot be written to.
    """
    bodies = as_bodies(vertices)
    if not len(bodies):
        raise ValueError("a scene needs at least one body, got none")
    labels = [f"person_{k}" for k in range(len(bodies))] if names is None else list(names)
    if len(labels) != len(bodies) or len(set(labels)) != len(labels):
        raise ValueError(f"names must be {len(bodies)} different texts, got {labels}")
    paint = as_colors(colors, len(bodies))
    return _write_scene(path, [_mesh(body, faces, paint[k], k) for k, body in enumerate(bodies)], labels)


def write_obj(path: str | Path, vertices: ArrayLike, faces: ArrayLike, *, name: str = "body") -> Path:
    """Write one body as Wavefront OBJ with smooth normals; vertices keep their order and number.

    Args:
        path: of the `.obj` file.
        vertices: `(V, 3)` metres, camera frame.
        faces: `(F, 3)`.
        name: of the object.

    Raises:
        ValueError: a shape is wrong or a coordinate is not finite.
        OSError: the folder is missing or cannot be written to.
    """
    points, table, normals = _checked(vertices, faces)
    text = io.StringIO()
    text.write(f"# metres; x right, y up, z towards the viewer\no {'_'.join(name.split()) or 'body'}\n")
    np.savetxt(text, points, fmt="v %.6f %.6f %.6f")
    np.savetxt(text, normals, fmt="vn %.4f %.4f %.4f")
    np.savetxt(text, np.repeat(table + 1, 2, axis=1), fmt="f %d//%d %d//%d %d//%d")
    return atomic_write(path, text.getvalue().encode("utf-8", "replace"))


def _checked(vertices: ArrayLike, faces: ArrayLike) -> tuple[FloatArray, IntArray, FloatArray]:
    """Vertices and normals of one body in glTF axes, and its faces."""
    points, table = as_array(vertices), as_faces(faces)
    if points.ndim != 2 or points.shape[-1] != 3:
        raise ValueError(f"vertices of one body must have shape (V, 3), got {points.shape}")
    if table.size and not (0 <= table.min() and table.max() < len(points)):
        raise ValueError(f"faces must name vertices 0..{len(points) - 1}, got {table.min()}..{table.max()}")
    flipped = points.astype(np.float64) * _TO_GLTF
    if not np.isfinite(flipped).all():
        raise ValueError("vertices must be finite, got NaN or infinity")
    return flipped, table, vertex_normals(flipped[None], table)[0]


def _mesh(vertices: ArrayLike, faces: ArrayLike, color: ArrayLike | None, person: int) -> trimesh.Trimesh:
    import trimesh
    from trimesh.visual.material import PBRMaterial

    points, table, normals = _checked(vertices, faces)
    mesh = trimesh.Trimesh(points, table, vertex_normals=normals, process=False)
    paint = None if color is None else as_array(color)
    if paint is not None and paint.ndim == 2:
        shades = as_colors(paint, len(points))
        mesh.visual = trimesh.visual.ColorVisuals(
            mesh, vertex_colors=np.pad(shades, ((0, 0), (0, 1)), constant_values=255)
        )
        return mesh
    base = as_colors(paint, person + 1)[person]
    # glTF colours are linear light; trimesh writes the factor as it is given.
    linear = [*((base / 255.0) ** 2.2).tolist(), 1.0]
    material = PBRMaterial(baseColorFactor=linear, metallicFactor=0.0, roughnessFactor=0.75, doubleSided=True)
    mesh.visual = trimesh.visual.TextureVisuals(material=material)
    return mesh


def _write_scene(path: str | Path, meshes: Sequence[trimesh.Trimesh], names: Sequence[str]) -> Path:
    import trimesh

    scene = trimesh.Scene()
    for mesh, name in zip(meshes, names, strict=True):
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    data: Any = scene.export(file_type="glb", include_normals=True)
    return atomic_write(path, bytes(data))

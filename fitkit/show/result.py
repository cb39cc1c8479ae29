"""A FitResult as files: pictures, meshes, parameters, trace, report, and JSON for programs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitkit._version import __version__
from fitkit.files import atomic_write, output_folder
from fitkit.keypoints import get_set
from fitkit.show.files import write_json
from fitkit.show.inputs import Picture, person_colors
from fitkit.show.mesh import scene_glb, write_glb, write_obj
from fitkit.show.overlay import overlay, shrink
from fitkit.show.plots import trace_plot, write_trace_table
from fitkit.show.report import write_report
from fitkit.show.stages import draw_stages
from fitkit.show.views import side_view

if TYPE_CHECKING:
    from PIL.Image import Image

    from fitkit.result import FitResult


def save_result(result: FitResult, folder: str | Path) -> Path:
    """Write everything about a result to a folder; see `FitResult.save`."""
    import PIL.Image

    folder = output_folder(folder)
    result.state.save(folder / "params.npz")
    write_json(folder / "result.json", to_json(result))
    bodies, numbers = result[result.ok], result.ok.nonzero()[:, 0].tolist()
    _remove_stale(folder, numbers, result.trace is not None and bool(result.trace.states))
    vertices, faces = bodies.vertices().detach().cpu().numpy(), result.body.faces.cpu().numpy()
    colors = person_colors(len(result))[result.ok.numpy()]
    picture = _draw(bodies, vertices, faces, colors)
    _write_picture(folder / "overlay.png", PIL.Image.fromarray(picture))
    if len(bodies) == 0:
        return folder
    views = side_view(vertices, faces, colors=colors)
    _write_picture(folder / "views.png", PIL.Image.fromarray(views))
    for number, surface, color in zip(numbers, vertices, colors, strict=True):
        write_glb(folder / f"body_{number}.glb", surface, faces, color=color)
        write_obj(folder / f"body_{number}.obj", surface, faces)
    scene_glb(folder / "scene.glb", list(vertices), faces, colors=colors)
    if result.trace is not None:
        course = trace_arrays(result)
        trace_plot(folder / "trace.png", course)
        write_trace_table(folder / "trace.csv", course)
    stages = draw_stages(result) if result.trace is not None and result.trace.states else None
    if stages is not None:
        _write_picture(folder / "stages.png", PIL.Image.fromarray(stages))
    camera = result.observation.camera
    write_report(
        folder / "report.html",
        photo=_photo(result),
        vertices=vertices,
        faces=faces,
        focal=camera.focal.cpu(),
        center=camera.center.cpu(),
        title=Path(result.source).name or "fit",
        people=[_summary(person) for person in bodies],
        settings={
            "solver": result.solver,
            **({"network": ", ".join(result.networks)} if result.networks else {}),
            "body": result.body.name,
            "people": len(result),
        },
        overlay=picture,
        views=views,
        stages=stages,
        trace=folder / "trace.png" if result.trace is not None else None,
        colors=colors,
        names=[f"person {number}" for number in numbers],
    )
    return folder


def show_result(result: FitResult) -> Image:
    """The overlay as a Pillow image."""
    import PIL.Image

    bodies = result[result.ok]
    vertices, faces = bodies.vertices().detach().cpu().numpy(), result.body.faces.cpu().numpy()
    return PIL.Image.fromarray(_draw(bodies, vertices, faces, person_colors(len(result))[result.ok.numpy()]))


def to_json(result: FitResult) -> dict[str, Any]:
    """What programs read, as plain numbers: pixels of the full photo, metres, camera frame."""
    camera = result.observation.camera
    people = [_person(number, person) for number, person in enumerate(result)]
    return {
        "fitkit": __version__,
        "source": result.source,
        "width": camera.width,
        "height": camera.height,
        "people": people,
    }


def trace_arrays(result: FitResult) -> dict[str, Any]:
    """The trace as plain arrays: step, seconds, stage, values by term, energy."""
    trace = result.trace
    assert trace is not None
    values = trace.values.detach().cpu().numpy()
    return {
        "step": trace.step,
        "seconds": trace.seconds,
        "stage": trace.stage,
        "values": {name: values[..., column] for column, name in enumerate(trace.terms)},
        "energy": trace.energy.detach().cpu().numpy(),
    }


def _remove_stale(folder: Path, numbers: list[int], states: bool) -> None:
    """Files of an earlier save to the same folder that this one will not write again: they would tell of others."""
    keep = {f"body_{number}.{kind}" for number in numbers for kind in ("glb", "obj")}
    of_bodies = [path for kind in ("glb", "obj") for path in folder.glob(f"body_*.{kind}")]
    whole = ("views.png", "scene.glb", "trace.png", "trace.csv", "report.html")
    of_bodies += [] if numbers else [folder / name for name in whole]
    of_bodies += [] if numbers and states else [folder / "stages.png"]
    for path in of_bodies:
        if path.name not in keep:
            path.unlink(missing_ok=True)


def _person(number: int, person: FitResult) -> dict[str, Any]:
    seen, camera = person.observation.keypoints, person.observation.camera
    box, score = person.observation.box, person.observation.score
    points, joints = person.keypoints_2d("coco17")[0], person.keypoints("h36m17")[0]
    energy = {name: float(value[0]) for name, value in person.values.items()}
    margin = float(person.margin[0])
    observed = None
    if seen is not None:
        observed = {
            "set": seen.set.name,
            "names": list(seen.set.names),
            "pixels": seen.xy[0].tolist(),
            "confidence": seen.confidence[0].tolist(),
        }
    return {
        "index": number,
        "box": None if box is None else box[0].tolist(),
        "score": None if score is None else float(score[0]),
        "status": person.status[0].name.lower(),
        "message": person.status[0].message,
        "ok": not person.status[0].failed,
        "seconds": float(person.seconds[0]),
        "solver": person.solver,
        **({"networks": list(person.networks)} if person.networks else {}),
        "body": person.body.name,
        "energy": {**energy, "total": float(person.energy[0])},
        "margin": margin if math.isfinite(margin) else None,
        "readout": {name: float(value[0]) for name, value in person.body.readout(person.state).items()},
        "keypoints_observed": observed,
        "keypoints_2d": points.tolist(),
        "keypoints_2d_names": list(get_set("coco17").names),
        "joints_3d": dict(zip(get_set("h36m17").names, joints.tolist(), strict=True)),
        "camera": {
            "fx": float(camera.focal[0, 0]),
            "fy": float(camera.focal[0, 1]),
            "cx": float(camera.center[0, 0]),
            "cy": float(camera.center[0, 1]),
            "width": camera.width,
            "height": camera.height,
        },
    }


def _summary(person: FitResult) -> dict[str, object]:
    terms = {name.replace("_", " "): float(value[0]) for name, value in person.values.items()}
    height = person.body.readout(person.state).get("height_m")
    summary: dict[str, object] = {"status": person.status[0].message}
    if height is not None:
        summary["height (m)"] = float(height[0])
    return {
        **summary,
        "depth (m)": float(person.state.transl[0, 2]),
        "energy": float(person.energy[0]),
        "next best pose": f"{float(person.margin[0]):+.3g}"
        if math.isfinite(float(person.margin[0]))
        else "none found",
        **terms,
    }


def _draw(bodies: FitResult, vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> Picture:
    camera = bodies.observation.camera
    if len(bodies) == 0:
        return shrink(_photo(bodies), 1600)
    return overlay(_photo(bodies), vertices, faces, camera.focal.cpu(), camera.center.cpu(), colors=colors)


def _photo(result: FitResult) -> Picture:
    """The photo, or a grey page of its size where only keypoints were given."""
    if result.observation.image is not None:
        return result.observation.image
    camera = result.observation.camera
    return np.full((camera.height, camera.width, 3), 208, np.uint8)


def _write_picture(path: Path, picture: Image) -> None:
    atomic_write(path, lambda file: picture.save(file, "PNG"))

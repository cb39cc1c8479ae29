"""A fit as one HTML file that needs nothing else: pictures, 3D view, tables, settings."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from fitkit.files import atomic_write
from fitkit.show.files import plain
from fitkit.show.inputs import (
    ArrayLike,
    BodiesLike,
    Picture,
    as_bodies,
    as_colors,
    as_faces,
    as_pair,
    as_photo,
)
from fitkit.show.overlay import shrink
from fitkit.show.viewer import VIEWER_HTML, VIEWER_SCRIPT, viewer_data

# The photo behind the 3D view is only a backdrop; the overlay picture is the sharp one.
_BACKDROP_SIDE = 1280

_STYLE = """
:root { color-scheme: light dark;
  --page: #ffffff; --ink: #1d2329; --soft: #5c6670; --line: #dfe4e8; --panel: #f4f6f8; --link: #1c6fb8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181c; --ink: #e6eaee; --soft: #9aa5af; --line: #323a42; --panel: #1d2329; --link: #74b6f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 20px 16px 48px; max-width: 1160px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 2px; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 32px 0 10px; }
.lead { color: var(--soft); margin: 0 0 18px; }
.pair { display: grid; gap: 20px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
figure { margin: 0; min-width: 0; } figcaption { color: var(--soft); font-size: 0.85rem; margin-top: 6px; }
img.picture { display: block; width: min(100%, calc(78vh * var(--aspect))); height: auto;
  border-radius: 8px; border: 1px solid var(--line); }
/* On a phone a plot is slid sideways rather than shrunk until nothing can be read. */
.wide { width: fit-content; max-width: 100%; }
img.plot { display: block; background: #fff; }
.stage { position: relative; width: min(100%, calc(78vh * var(--aspect))); aspect-ratio: var(--aspect);
  border-radius: 8px; overflow: hidden;
  border: 1px solid var(--line); background: var(--panel); }
/* Up and down still scrolls the page under a finger; sideways turns the bodies. */
canvas { display: block; width: 100%; height: 100%; touch-action: pan-y; cursor: grab; }
canvas:active { cursor: grabbing; }
canvas:focus-visible { outline: 2px solid var(--link); outline-offset: -2px; }
.failed { position: absolute; inset: 0; margin: 0; padding: 24px; color: var(--soft); background: var(--panel); }
.failed[hidden] { display: none; }
.tools { display: flex; flex-wrap: wrap; gap: 6px 8px; align-items: center; margin-top: 8px; font-size: 0.88rem; }
button { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line); border-radius: 6px;
  padding: 6px 12px; cursor: pointer; }
button:hover { border-color: var(--link); }
label { display: inline-flex; gap: 5px; align-items: center; padding: 6px 2px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child > * { border-bottom: 0; } thead th { background: var(--panel); white-space: nowrap; }
tr > :first-child { text-align: left; font-weight: 500; color: var(--soft);
  position: sticky; left: 0; background: var(--page); }
thead tr > :first-child { background: var(--panel); }
@media (max-width: 480px) {
  th, td { padding: 7px; } table { font-size: 0.86rem; } thead th .swatch { display: block; margin: 2px 0 2px auto; }
}
table.settings td { text-align: left; overflow-wrap: anywhere; } table.settings th { width: 1%; white-space: nowrap; }
.swatch { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 50%; margin-right: 0.45em; }
"""


def write_report(
    path: str | Path,
    *,
    photo: ArrayLike,
    vertices: BodiesLike,
    faces: ArrayLike,
    focal: ArrayLike,
    center: ArrayLike,
    title: str,
    people: Sequence[Mapping[str, object]],
    settings: Mapping[str, object],
    overlay: ArrayLike | None = None,
    views: ArrayLike | None = None,
    stages: ArrayLike | None = None,
    trace: str | Path | bytes | None = None,
    colors: ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Write the report of a fit as a single file that works without a network.

    Args:
        path: of the `.html` file.
        photo: `(H, W, 3)` uint8 RGB.
        vertices: `(B, V, 3)` or a list of `(V, 3)`, metres, camera frame. Somebody with a coordinate that is not
            finite is left out of the 3D view.
        faces: `(F, 3)`, shared by all people.
        focal: `(2,)` pixels of the photo, or `(B, 2)` with equal rows.
        center: likewise the principal point.
        title: headline, such as the photo's file name.
        people: one mapping of label to value per person: status, energies, height, depth ...
        settings: label to value, such as the solver, the device, the version.
        overlay: picture made by `overlay`.
        views: picture made by `side_view`.
        stages: picture made by `draw_stages`.
        trace: PNG made by `trace_plot`: its path or its bytes.
        colors: `(B, 3)` RGB, those of the overlay; else the palette.
        names: one per person; else person 0, person 1, ...

    Raises:
        ValueError: a shape is wrong, or `people` does not have one entry per body.
        OSError: the folder is missing or cannot be written to.
    """
    picture, bodies, table = as_photo(photo), as_bodies(vertices), as_faces(faces)
    if len(people) != len(bodies):
        raise ValueError(f"people must have one entry per body, got {len(people)} for {len(bodies)} bodies")
    labels = [f"person {k}" for k in range(len(bodies))] if names is None else list(names)
    if len(labels) != len(bodies):
        raise ValueError(f"names must have one entry per body, got {len(labels)} for {len(bodies)} bodies")
    paint = as_colors(colors, len(bodies))
    height, width = picture.shape[:2]
    whole = np.isfinite(bodies).all((1, 2))
    scene = viewer_data(
        bodies[whole], table, paint[whole], as_pair(focal, "focal"), as_pair(center, "center"), width, height
    )
    count = len(bodies)
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="lead">{count} {"person" if count == 1 else "people"} in a photo of {width} × {height} pixels</p>',
        f'<div class="pair" style="--aspect: {width / height:.5f}">',
        _figure(overlay, "The fitted bodies over the photo.", "overlay"),
        VIEWER_HTML,
        "</div>",
        "<h2>People</h2>" + _people_table(people, labels, paint) if people else "",
        "<h2>From the side and from above</h2>"
        + _wide(_data_uri(as_photo(views)), "the bodies from the side and from above")
        if views is not None
        else "",
        "<h2>Step by step</h2>"
        + _wide(_data_uri(as_photo(stages)), "the bodies from the start to the last step", 1100)
        if stages is not None
        else "",
        _trace_section(trace),
        "<h2>Settings</h2>" + _settings_table(settings) if settings else "",
        f'<img id="photo" alt="" hidden src="{_data_uri(shrink(picture, _BACKDROP_SIDE))}">',
        f'<script type="application/json" id="scene">{scene}</script>',
        f"<script>{VIEWER_SCRIPT}</script>",
    ]
    page = _page(title, parts)
    return atomic_write(path, page.encode("utf-8", "replace"))


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    return escape(str(value), quote=True)


def _value(value: object) -> str:
    """A cell: numbers to four digits, a dash for nothing, lists and dicts in words."""
    value = plain(value)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _text(f"{value:.4g}") if math.isfinite(value) else "–"
    if isinstance(value, list):
        return ", ".join(_value(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{_text(key)} {_value(one)}" for key, one in value.items())
    return _text(value)


def _people_table(people: Sequence[Mapping[str, object]], names: Sequence[str], paint: Picture) -> str:
    """A column per person, so that the few people of a usual photo fit a phone; more scroll sideways."""
    labels = list(dict.fromkeys(label for person in people for label in person))
    heads = "".join(
        f'<th scope="col"><span class="swatch" style="background:rgb{tuple(color)}"></span>{_text(name)}</th>'
        for name, color in zip(names, paint.tolist(), strict=True)
    )
    rows = "".join(
        f'<tr><th scope="row">{_text(label)}</th>'
        + "".join(f"<td>{_value(person.get(label))}</td>" for person in people)
        + "</tr>"
        for label in labels
    )
    return f'<div class="scroll"><table><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _settings_table(settings: Mapping[str, object]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_text(label)}</th><td>{_value(value)}</td></tr>'
        for label, value in settings.items()
    )
    return f'<div class="scroll"><table class="settings"><tbody>{rows}</tbody></table></div>'


def _trace_section(trace: str | Path | bytes | None) -> str:
    if trace is None:
        return ""
    data = trace if isinstance(trace, bytes) else Path(trace).read_bytes()
    if not data.startswith(b"\x89PNG"):
        raise ValueError("trace must be a PNG picture: its path or its bytes")
    source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    return "<h2>Course of the fit</h2>" + _wide(source, "energy against steps and seconds")


def _wide(source: str, name: str, least: int = 620) -> str:
    """A picture as wide as the page, and at least so many pixels: slid sideways where the page is narrower."""
    style = f"max-width: max(100%, {least}px)"
    return f'<div class="scroll wide"><img class="plot" alt="{_text(name)}" style="{style}" src="{source}"></div>'


def _figure(picture: ArrayLike | None, caption: str, name: str) -> str:
    if picture is None:
        return ""
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    source = _data_uri(as_photo(picture))
    return f'<figure><img class="picture" alt="{_text(name)}" src="{source}">{below}</figure>'


def _data_uri(picture: Picture) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=86, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"

"""Bodies and keypoints drawn over the photo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fitkit.show.inputs import (
    ArrayLike,
    BodiesLike,
    Picture,
    as_array,
    as_bodies,
    as_colors,
    as_faces,
    as_pair,
    as_photo,
)
from fitkit.show.shade import shade


def overlay(
    photo: ArrayLike,
    vertices: BodiesLike,
    faces: ArrayLike,
    focal: ArrayLike,
    center: ArrayLike,
    *,
    colors: ArrayLike | None = None,
    opacity: float = 0.8,
    max_side: int = 1600,
) -> Picture:
    """Draw the bodies over the photo, shaded and antialiased, nearest in front.

    Args:
        photo: `(H, W, 3)` uint8 RGB.
        vertices: `(B, V, 3)`, `(V, 3)` or a list of `(V, 3)`, metres, camera frame.
        faces: `(F, 3)`, shared by all people.
        focal: `(2,)` pixels of the full photo, or `(B, 2)` with equal rows.
        center: likewise the principal point.
        colors: `(B, 3)` RGB, 0..255 integers or 0..1 floats; else one of the palette for each person.
        opacity: of the bodies, 0..1.
        max_side: a photo with a longer side is drawn smaller, pixels.

    Returns:
        `(h, w, 3)` uint8 RGB of the photo's shape, its longer side at most `max_side`.

    Raises:
        ValueError: a shape or a range is wrong.
    """
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity must lie in 0..1, got {opacity}")
    full = as_photo(photo)
    ground = shrink(full, max_side)
    height, width = ground.shape[:2]
    scale = np.array([width / full.shape[1], height / full.shape[0]])
    bodies = as_bodies(vertices)
    paint = as_colors(colors, len(bodies))
    f, c = as_pair(focal, "focal") * scale, as_pair(center, "center") * scale
    drawn = shade(bodies, as_faces(faces), paint, f, c, width, height)
    cover = drawn[..., 3:] * np.float32(opacity)
    mixed = ground * (1.0 - cover) + drawn[..., :3] * np.float32(opacity)
    return np.round(mixed).clip(0, 255).astype(np.uint8)


def shrink(photo: Picture, max_side: int) -> Picture:
    """The photo, reduced (never enlarged) until its longer side is at most `max_side` pixels.

    Raises:
        ValueError: `max_side` is less than one pixel.
    """
    if max_side < 1:
        raise ValueError(f"max_side must be at least 1 pixel, got {max_side}")
    height, width = photo.shape[:2]
    factor = max_side / max(height, width)
    if factor >= 1.0:
        return photo
    from PIL import Image

    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def draw_keypoints(
    photo: ArrayLike,
    xy: ArrayLike,
    confidence: ArrayLike,
    edges: Sequence[tuple[int, int]],
    *,
    colors: ArrayLike | None = None,
) -> Picture:
    """Draw keypoints and the bones between them; the less sure, the fainter; confidence 0 is not drawn.

    Args:
        photo: `(H, W, 3)` uint8 RGB.
        xy: `(B, K, 2)` or `(K, 2)` pixels of the photo.
        confidence: `(B, K)` or `(K,)`, 0..1 (larger counts as 1).
        edges: pairs of keypoint numbers, such as `KeypointSet.edges`.
        colors: `(B, 3)` RGB, one per person; else the palette.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: shapes that do not belong together, or an edge that names no keypoint.
    """
    from PIL import Image, ImageDraw

    ground = as_photo(photo)
    points = as_array(xy).astype(np.float64)
    sure = as_array(confidence).astype(np.float64)
    points, sure = (points[None], sure[None]) if points.ndim == 2 else (points, sure)
    if points.ndim != 3 or points.shape[-1] != 2 or sure.shape != points.shape[:2]:
        raise ValueError(f"xy must be (B, K, 2) and confidence (B, K), got {points.shape} and {sure.shape}")
    if any(not 0 <= k < points.shape[1] for edge in edges for k in edge):
        raise ValueError(f"edges must name keypoints 0..{points.shape[1] - 1}, got {list(edges)}")

    height, width = ground.shape[:2]
    fine = 2  # drawn twice as large, then reduced: Pillow's lines are not antialiased
    radius = max(2.0, min(height, width) / 160.0) * fine
    layer = Image.new("RGBA", (width * fine, height * fine), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    # Pillow draws with 32-bit integers; nothing farther away than this is seen.
    points = np.clip(points * fine, -1e6, 1e6)
    sure = np.where(np.isfinite(points).all(-1) & (sure > 0), np.clip(sure, 0.0, 1.0), 0.0)
    for person, color in enumerate(as_colors(colors, len(points)).tolist()):
        place, weight = points[person].tolist(), sure[person]
        for a, b in edges:
            if min(weight[a], weight[b]) > 0:
                ink = (*color, int(55 + 200 * min(weight[a], weight[b])))
                draw.line([tuple(place[a]), tuple(place[b])], fill=ink, width=max(1, round(radius * 0.8)))
        for (x, y), w in zip(place, weight, strict=True):
            if w > 0:
                alpha = int(55 + 200 * w)
                box = (x - radius, y - radius, x + radius, y + radius)
                draw.ellipse(box, fill=(*color, alpha), outline=(255, 255, 255, alpha), width=fine)
    small = layer.resize((width, height), Image.Resampling.BOX)
    return np.asarray(Image.alpha_composite(Image.fromarray(ground).convert("RGBA"), small).convert("RGB"))

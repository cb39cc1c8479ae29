"""Kernels of the soft rasteriser in Warp: one thread per picture and face, over the pixels the face can reach.

Sums over faces are atomic additions, so no order of the faces and no list of the nearest is needed, and the same
source runs on the CPU and on CUDA. What is delicate in float32 is worked out once per face in float64: barycentric
weights are planes over the pixels, counted from the first pixel that the face reaches.
"""

from __future__ import annotations

from typing import no_type_check

import warp as wp

# Backward is written by hand (`_backward`): Warp's own adjoint takes 3.5 times as long.
wp.set_module_options({"enable_backward": False})

# `no_type_check`: the annotations of kernels are Warp's own language.


@no_type_check
@wp.struct
class Face:
    """A face on the screen; lengths in pixels from the centre of the pixel in column `x0` and row `y0`."""

    x0: int  # the pixels it can reach, end exclusive
    x1: int
    y0: int
    y1: int
    a: wp.vec2
    b: wp.vec2
    c: wp.vec2
    right: wp.vec3  # weight of each corner = right * x + down * y + start
    down: wp.vec3
    start: wp.vec3
    height2: wp.vec3  # squared height of each corner above the edge opposite it
    depth: wp.vec3  # of each corner, in units of the depth softness, from the body's middle
    inverse: wp.vec3  # 1 / z of each corner, metres


@no_type_check
@wp.func
def _side(a: wp.vec3d, b: wp.vec3d, x: wp.float64, y: wp.float64):
    """Twice the area between an edge and a point."""
    return (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])


@no_type_check
@wp.func
def _length2(a: wp.vec3d, b: wp.vec3d):
    return (b[0] - a[0]) * (b[0] - a[0]) + (b[1] - a[1]) * (b[1] - a[1])


@no_type_check
@wp.func
def _first(low: wp.float64, size: int):
    """The first pixel whose centre is not before `low`."""
    return int(wp.clamp(wp.ceil(low - wp.float64(0.5)), wp.float64(0.0), wp.float64(size)))


@no_type_check
@wp.func
def _last(high: wp.float64, size: int):
    """One past the last pixel whose centre is not behind `high`."""
    return int(wp.clamp(wp.floor(high + wp.float64(0.5)), wp.float64(0.0), wp.float64(size)))


@no_type_check
@wp.kernel
def set_up(
    corners: wp.array2d(dtype=wp.vec3d),
    faces: wp.array(dtype=wp.vec3i),
    middle: wp.array(dtype=wp.float64),
    size: wp.vec2i,
    limits: wp.vec4d,
    per_metre: wp.float64,
    out: wp.array2d(dtype=Face),
    row: int,
    begin: int,
):
    """Everything about a face that does not depend on the pixel.

    `limits`: least depth, blur radius in pixels, pixels from the origin beyond which a corner is no use, squared
    least height of a face. `per_metre`: one over the depth softness.
    """
    i, f = wp.tid()
    i = i + row
    f = f + begin
    face = Face()
    near = limits[0]
    reach = limits[1]
    a = corners[i, faces[f][0]]
    b = corners[i, faces[f][1]]
    c = corners[i, faces[f][2]]
    low = wp.min(wp.min(a, b), c)
    high = wp.max(wp.max(a, b), c)
    area = _side(a, b, c[0], c[1])
    la = _length2(b, c)
    lb = _length2(c, a)
    lc = _length2(a, b)
    # The comparisons are false for what is not a number.
    usable = low[2] >= near and low[0] >= -limits[2] and low[1] >= -limits[2]
    usable = usable and high[0] <= limits[2] and high[1] <= limits[2]
    usable = usable and area * area > limits[3] * wp.max(wp.max(la, lb), lc)
    if usable:
        face.x0 = _first(low[0] - reach, size[0])
        face.x1 = _last(high[0] + reach, size[0])
        face.y0 = _first(low[1] - reach, size[1])
        face.y1 = _last(high[1] + reach, size[1])
        x = wp.float64(face.x0) + wp.float64(0.5)
        y = wp.float64(face.y0) + wp.float64(0.5)
        o = wp.float64(1.0) / area
        face.a = wp.vec2(float(a[0] - x), float(a[1] - y))
        face.b = wp.vec2(float(b[0] - x), float(b[1] - y))
        face.c = wp.vec2(float(c[0] - x), float(c[1] - y))
        face.right = wp.vec3(float((b[1] - c[1]) * o), float((c[1] - a[1]) * o), float((a[1] - b[1]) * o))
        face.down = wp.vec3(float((c[0] - b[0]) * o), float((a[0] - c[0]) * o), float((b[0] - a[0]) * o))
        face.start = wp.vec3(
            float(_side(b, c, x, y) * o), float(_side(c, a, x, y) * o), float(_side(a, b, x, y) * o)
        )
        face.height2 = wp.vec3(float(area * area / la), float(area * area / lb), float(area * area / lc))
        m = middle[i]
        face.depth = wp.vec3(
            float((a[2] - m) * per_metre), float((b[2] - m) * per_metre), float((c[2] - m) * per_metre)
        )
        one = wp.float64(1.0)
        face.inverse = wp.vec3(float(one / a[2]), float(one / b[2]), float(one / c[2]))
    out[i, f] = face


@no_type_check
@wp.func
def _edge(before: wp.vec2, behind: wp.vec2, weight: float, height2: float):
    """Squared distance from an edge's line to a pixel seen from its ends, without end where the foot is beyond them.

    The distance is the barycentric weight times the height, which has no cancellation however far the corners lie
    outside the picture.
    """
    along = before - behind
    return wp.where(
        wp.min(wp.dot(before, along), -wp.dot(behind, along)) > 0.0, weight * weight * height2, 1.0e30
    )


@no_type_check
@wp.func
def _outline(face: Face, w: wp.vec3, u: wp.vec2):
    """Squared distances to the edges opposite the corners, and to the corners."""
    ua = u - face.a
    ub = u - face.b
    uc = u - face.c
    edges = wp.vec3(
        _edge(ub, uc, w[0], face.height2[0]),
        _edge(uc, ua, w[1], face.height2[1]),
        _edge(ua, ub, w[2], face.height2[2]),
    )
    return edges, wp.vec3(wp.dot(ua, ua), wp.dot(ub, ub), wp.dot(uc, uc))


@no_type_check
@wp.func
def _distance2(face: Face, w: wp.vec3, u: wp.vec2):
    edges, corners = _outline(face, w, u)
    return wp.min(wp.min(edges), wp.min(corners))


@no_type_check
@wp.func
def _mix(face: Face, w: wp.vec3):
    """Clipped weights of the corners on the surface: perspective divides by z, and the sum is made one again.

    Of three weights that add up to one, one is at least a third, so the sum cannot vanish.
    """
    m = wp.cw_mul(wp.max(w, wp.vec3(0.0, 0.0, 0.0)), face.inverse)
    return m / (m[0] + m[1] + m[2])


@no_type_check
@wp.kernel
def cover(
    faces: wp.array2d(dtype=Face),
    width: int,
    first_row: int,
    last_row: int,
    scale: float,
    blur: float,
    log_clear: wp.array2d(dtype=float),
    nearest: wp.array2d(dtype=float),
    row: int,
):
    """First pass: log of what shines through, and the least depth, at every pixel."""
    i, f = wp.tid()
    i = i + row
    y0 = wp.max(faces[i, f].y0, first_row)
    y1 = wp.min(faces[i, f].y1, last_row)
    if y0 >= y1:
        return
    face = faces[i, f]
    for y in range(y0, y1):
        for x in range(face.x0, face.x1):
            u = wp.vec2(float(x - face.x0), float(y - face.y0))
            w = face.right * u[0] + face.down * u[1] + face.start
            d = _distance2(face, w, u)
            inside = wp.min(w) > 0.0
            if inside or d < blur:
                s = d * scale
                through = wp.log(1.0 + wp.exp(-s))
                if inside:
                    through = through + s
                wp.atomic_sub(log_clear, i, y * width + x, through)
                wp.atomic_min(nearest, i, y * width + x, wp.dot(_mix(face, w), face.depth))


@no_type_check
@wp.func
def _cover_of(inside: bool, d: float, scale: float):
    """D of equation 1 of SoftRas."""
    s = d * scale
    if inside:
        s = -s
    return 1.0 / (1.0 + wp.exp(s))


@no_type_check
@wp.kernel
def blend(
    faces: wp.array2d(dtype=Face),
    index: wp.array(dtype=wp.vec3i),
    labels: wp.array(dtype=int),
    values: wp.array3d(dtype=float),
    width: int,
    first_row: int,
    last_row: int,
    scale: float,
    blur: float,
    nearest: wp.array2d(dtype=float),
    total: wp.array2d(dtype=float),
    sums: wp.array3d(dtype=float),
    row: int,
):
    """Second pass: sums of the weights and of the weighted attributes. Without `values` a face has one label."""
    i, f = wp.tid()
    i = i + row
    y0 = wp.max(faces[i, f].y0, first_row)
    y1 = wp.min(faces[i, f].y1, last_row)
    if y0 >= y1:
        return
    face = faces[i, f]
    label = -1
    if not values:
        label = labels[f]
    at = index[f]
    for y in range(y0, y1):
        for x in range(face.x0, face.x1):
            u = wp.vec2(float(x - face.x0), float(y - face.y0))
            w = face.right * u[0] + face.down * u[1] + face.start
            d = _distance2(face, w, u)
            inside = wp.min(w) > 0.0
            if inside or d < blur:
                p = y * width + x
                c = _mix(face, w)
                q = nearest[i, p] - wp.dot(c, face.depth)
                if q > -30.0:
                    weight = wp.exp(q) * _cover_of(inside, d, scale)
                    wp.atomic_add(total, i, p, weight)
                    if label >= 0:
                        wp.atomic_add(sums, i, p, label, weight)
                    if values:
                        for k in range(sums.shape[2]):
                            value = (
                                c[0] * values[i, at[0], k]
                                + c[1] * values[i, at[1], k]
                                + c[2] * values[i, at[2], k]
                            )
                            wp.atomic_add(sums, i, p, k, weight * value)


@no_type_check
@wp.func
def _outline_point(face: Face, w: wp.vec3, u: wp.vec2, edges: wp.vec3, corners: wp.vec3, d: float):
    """Weights of the corners in the point of the outline that is nearest to the pixel, and the way from there."""
    ua = u - face.a
    ub = u - face.b
    uc = u - face.c
    edge0 = edges[0] == d
    edge1 = edges[1] == d
    before = wp.where(edge0, ub, wp.where(edge1, uc, ua))
    behind = wp.where(edge0, uc, wp.where(edge1, ua, ub))
    along = before - behind
    t = wp.dot(before, along) / wp.dot(along, along)
    k = wp.where(edge0, 0, wp.where(edge1, 1, 2))
    height = w[k] * face.height2[k]
    way = wp.vec2(height * face.right[k], height * face.down[k])
    share = wp.where(
        edge0, wp.vec3(0.0, 1.0 - t, t), wp.where(edge1, wp.vec3(t, 0.0, 1.0 - t), wp.vec3(1.0 - t, t, 0.0))
    )
    if wp.min(corners) == d:
        share = wp.vec3(0.0, 0.0, 1.0)
        way = uc
        if corners[0] == d:
            share = wp.vec3(1.0, 0.0, 0.0)
            way = ua
        elif corners[1] == d:
            share = wp.vec3(0.0, 1.0, 0.0)
            way = ub
    return share, way


@no_type_check
@wp.func
def _pull_mix(face: Face, w: wp.vec3, c: wp.vec3, g: wp.vec3):
    """From the gradient to the mixed weights: that to the barycentric weights, and that to the corners' z."""
    v = wp.max(w, wp.vec3(0.0, 0.0, 0.0))
    over = 1.0 / wp.dot(v, face.inverse)
    m = wp.dot(g, c)
    gm = wp.vec3(g[0] - m, g[1] - m, g[2] - m) * over
    gw = wp.cw_mul(gm, face.inverse)
    gz = -wp.cw_mul(wp.cw_mul(gw, v), face.inverse)
    zero = 0.0
    return wp.vec3(
        wp.where(w[0] > 0.0, gw[0], zero),
        wp.where(w[1] > 0.0, gw[1], zero),
        wp.where(w[2] > 0.0, gw[2], zero),
    ), gz


@no_type_check
@wp.kernel
def differentiate(
    faces: wp.array2d(dtype=Face),
    index: wp.array(dtype=wp.vec3i),
    labels: wp.array(dtype=int),
    values: wp.array3d(dtype=float),
    width: int,
    scale: float,
    blur: float,
    per_metre: float,
    nearest: wp.array2d(dtype=float),
    g_clear: wp.array2d(dtype=float),
    g_color: wp.array3d(dtype=float),
    g_mean: wp.array2d(dtype=float),
    g_corners: wp.array3d(dtype=wp.vec3),
    g_values: wp.array4d(dtype=float),
    row: int,
    begin: int,
):
    """Backward: every face gathers from the pictures what its three corners get; nothing is written twice.

    `g_clear`: gradient to the silhouette times what shines through. `g_color`: gradient to the attributes over the
    sum of the weights. `g_mean`: `g_color` times the attributes, summed over the channels.
    """
    i, f = wp.tid()
    i = i + row
    f = f + begin
    gx = wp.vec3(0.0, 0.0, 0.0)
    gy = wp.vec3(0.0, 0.0, 0.0)
    gz = wp.vec3(0.0, 0.0, 0.0)
    face = faces[i, f]
    label = -1
    if g_color and not values:
        label = labels[f]
    at = index[f]
    for y in range(face.y0, face.y1):
        for x in range(face.x0, face.x1):
            u = wp.vec2(float(x - face.x0), float(y - face.y0))
            w = face.right * u[0] + face.down * u[1] + face.start
            edges, ends = _outline(face, w, u)
            d = wp.min(wp.min(edges), wp.min(ends))
            inside = wp.min(w) > 0.0
            if inside or d < blur:
                p = y * width + x
                cover = _cover_of(inside, d, scale)
                g_inward = g_clear[i, p] * cover
                if g_color:
                    c = _mix(face, w)
                    q = nearest[i, p] - wp.dot(c, face.depth)
                    if q > -30.0:
                        front = wp.exp(q)
                        weight = front * cover
                        g_weight = -g_mean[i, p]
                        g = wp.vec3(0.0, 0.0, 0.0)
                        if label >= 0:
                            g_weight = g_weight + g_color[i, p, label]
                        if values:
                            for k in range(g_color.shape[2]):
                                gk = g_color[i, p, k]
                                g = g + gk * wp.vec3(
                                    values[i, at[0], k], values[i, at[1], k], values[i, at[2], k]
                                )
                                for j in range(3):
                                    g_values[i, f, j, k] = g_values[i, f, j, k] + weight * c[j] * gk
                            g_weight = g_weight + wp.dot(c, g)
                        g_inward = g_inward + g_weight * weight * (1.0 - cover)
                        g_depth = -g_weight * weight
                        gz = gz + g_depth * per_metre * c
                        gw, gz_mix = _pull_mix(face, w, c, weight * g + g_depth * face.depth)
                        gz = gz + gz_mix
                        # A corner that moves by m moves the weights as the pixel does that moves by -w m.
                        gx = gx - wp.dot(gw, face.right) * w
                        gy = gy - wp.dot(gw, face.down) * w
                pull = g_inward * scale
                if not inside:
                    pull = -pull
                share, way = _outline_point(face, w, u, edges, ends, d)
                gx = gx - (2.0 * pull * way[0]) * share
                gy = gy - (2.0 * pull * way[1]) * share
    g_corners[i, f, 0] = wp.vec3(gx[0], gy[0], gz[0])
    g_corners[i, f, 1] = wp.vec3(gx[1], gy[1], gz[1])
    g_corners[i, f, 2] = wp.vec3(gx[2], gy[2], gz[2])

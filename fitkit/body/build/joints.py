"""Sparse nonnegative regressors from shaped vertices to joints and other points."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from fitkit.body.build.skeleton import JOINT, JOINT_MIRROR, JOINT_NAMES, Array

MOST = 32
SUM_WEIGHT = 20.0  # metres: pulls the weights' sum to 1 before the exact normalisation


def joint_regressor(
    vertices: Array, joints: Array, weights: Array, moved: np.ndarray, mirror: np.ndarray, seed: int
) -> Array:
    """(55,V) nonnegative rows, <= 32 entries each, summing to 1, exact mirror images left and right.

    vertices (N,V,3) and joints (N,55,3) are sampled people; `moved` (V,) marks vertices that facial actions
    move, which joints must not follow. Eyes are regressed from the eyeballs alone.
    """
    out = np.zeros((len(JOINT_NAMES), vertices.shape[1]))
    mean, centre = vertices.mean(0), joints.mean(0)
    owner = weights.argmax(1)
    eyes = np.isin(owner, [JOINT["left_eye"], JOINT["right_eye"]])
    for j, name in enumerate(JOINT_NAMES):
        if JOINT_MIRROR[j] < j:
            out[j, mirror] = out[JOINT_MIRROR[j]]
            continue
        if name.endswith("_eye"):
            usable = owner == j
        else:
            radius = 0.12 if j >= 25 else 0.5
            usable = ~eyes & ~moved & (np.linalg.norm(mean - centre[j], axis=1) < radius)
        candidates = np.nonzero(usable)[0]
        middle = JOINT_MIRROR[j] == j
        if middle:
            candidates = candidates[mean[candidates, 0] >= 0]
        if len(candidates) > 900:
            candidates = np.sort(np.random.default_rng(seed + j).choice(candidates, 900, replace=False))
        out[j] = fit_row(vertices, joints[:, j], candidates, mirror if middle else None)
    return out


def fit_row(
    vertices: Array,
    targets: Array,
    candidates: np.ndarray,
    mirror: np.ndarray | None = None,
    most: int = MOST,
) -> Array:
    """(V,) nonnegative weights over `candidates`, at most `most` of them, summing to 1.

    vertices (N,V,3), targets (N,3). With `mirror`, every candidate stands for itself and its mirror vertex in
    equal parts, so the point stays in the middle plane.
    """
    columns = vertices[:, candidates].astype(np.float64)
    if mirror is not None:
        columns = (columns + vertices[:, mirror[candidates]]) / 2 * [0, 1, 1]
        targets = targets * np.array([0, 1, 1])
        most //= 2
    origin = targets.mean(0)
    a = (columns - origin).transpose(0, 2, 1).reshape(-1, len(candidates))
    a = np.vstack([a, np.full(len(candidates), SUM_WEIGHT)])
    b = np.r_[(targets - origin).ravel(), SUM_WEIGHT]
    value = _nnls(a, b)
    chosen = np.argsort(-value)[:most]
    chosen = chosen[value[chosen] > 0]
    value = _nnls(a[:, chosen], b)
    out = np.zeros(vertices.shape[1])
    if mirror is None:
        out[candidates[chosen]] = value
    else:
        np.add.at(out, candidates[chosen], value / 2)
        np.add.at(out, mirror[candidates[chosen]], value / 2)
    return out / out.sum()


def _nnls(a: Array, b: Array) -> Array:
    """Nonnegative least squares; the tall system is first reduced to its triangular factor."""
    q, r = np.linalg.qr(a) if len(a) > a.shape[1] else (None, a)
    return nnls(r, b if q is None else q.T @ b, maxiter=60 * a.shape[1])[0]

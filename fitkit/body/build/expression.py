"""Ten expression directions from the 38 facial actions that joints do not already perform."""

from __future__ import annotations

import dataclasses

import numpy as np

from fitkit.body.build.skeleton import FLIP, Array, mirrored_name

NUM_EXPRESSIONS = 10
# The jaw and eye joints turn what these do; mouthClose only corrects an open jaw and would dominate.
DONE_BY_JOINTS = ("jaw", "eyeLook", "tongue", "mouthClose")
# Random activations: each action is on with probability 1/4, uniformly strong.
FIRST_MOMENT = 0.25 / 2
SECOND_MOMENT = 0.25 / 3


@dataclasses.dataclass(frozen=True)
class Expressions:
    """directions (V,3,10), parity (10,) +1/-1 under mirroring, explained share of the energy."""

    directions: Array
    parity: np.ndarray
    explained: float


def fit_expressions(actions: Array, names: list[str], mirror: np.ndarray) -> Expressions:
    """Uncentred PCA (zero stays neutral) of random activations, each component even or odd.

    actions (A,V,3) must be symmetric as left-right pairs. The activations' second moment commutes with
    mirroring, so even and odd combinations are analysed apart and merged by energy.
    """
    rows = [i for i, n in enumerate(names) if not n.startswith(DONE_BY_JOINTS)]
    labels = [names[i] for i in rows]
    moves = actions[rows].reshape(len(rows), -1).astype(np.float64)
    moment = np.full((len(rows),) * 2, FIRST_MOMENT**2)
    np.fill_diagonal(moment, SECOND_MOMENT)
    found: list[tuple[float, int, Array]] = []
    for parity in (1, -1):
        basis = _combinations(labels, parity)
        factor = np.linalg.cholesky(basis @ moment @ basis.T)
        _, scale, components = np.linalg.svd(factor.T @ (basis @ moves), full_matrices=False)
        found += [(float(s), parity, s * c) for s, c in zip(scale, components, strict=True)]
    found.sort(key=lambda item: -item[0])
    energy = np.array([s * s for s, _, _ in found])
    best = found[:NUM_EXPRESSIONS]
    parities = np.array([p for _, p, _ in best], np.int8)
    out: Array = np.stack([c.reshape(-1, 3) * np.sign(c[np.abs(c).argmax()]) for _, _, c in best]).astype(
        np.float32
    )
    # The components are even or odd up to rounding; averaging makes them so exactly.
    out = (out + parities[:, None, None] * out[:, mirror] * FLIP) / 2
    explained = float(energy[:NUM_EXPRESSIONS].sum() / energy.sum())
    return Expressions(np.ascontiguousarray(out.transpose(1, 2, 0)), parities, explained)


def _combinations(labels: list[str], parity: int) -> Array:
    """Orthonormal rows spanning the activations that mirroring leaves alone (+1) or negates (-1)."""
    rows = []
    for i, name in enumerate(labels):
        j = labels.index(mirrored_name(name))
        row = np.zeros(len(labels))
        if i == j and parity == 1:
            row[i] = 1.0
        elif i < j:
            row[i], row[j] = np.sqrt(0.5), parity * np.sqrt(0.5)
        else:
            continue
        rows.append(row)
    return np.stack(rows)

"""The shape space: 16 betas, spanned by adults and children, scaled by adults."""

from __future__ import annotations

import dataclasses

import numpy as np

from fitkit.body.build.anny import People
from fitkit.body.build.skeleton import FLIP, Array

NUM_BETAS = 16
FIRST = 10  # betas that must do alone where a model is fitted with ten
DENSITY = 980.0  # kg per cubic metre of a living body, lungs half full
# Adult stature, mean and sd in metres (men, women): a world-wide mixed population. Anny's sampler is
# calibrated on growth tables but is too wide for adults.
STATURE = ((1.76, 0.07), (1.63, 0.065))
READOUTS = ("height_m", "mass_kg", "gender")


@dataclasses.dataclass(frozen=True)
class ShapeSpace:
    """mean (V,3), directions (V,3,16) per unit-normal beta, readout (3,17): height, mass, gender."""

    mean: Array
    directions: Array
    readout: Array


def symmetrised(points: Array, mirror: np.ndarray) -> Array:
    """(..., V, 3) averaged with its own mirror image: exactly symmetric, to the bit."""
    return ((points + points[..., mirror, :] * FLIP) / np.float32(2)).astype(np.float32)


def height_of(vertices: Array) -> Array:
    """(N,) metres, from sole to crown of bodies (N,V,3) in the T-pose."""
    return np.ptp(vertices[..., 1], axis=-1)


def mass_of(vertices: Array, faces: np.ndarray) -> Array:
    """(N,) kilograms from the enclosed volume; the small openings behind the eyes do not matter."""
    a, b, c = (vertices[:, faces[:, k]].astype(np.float64) for k in range(3))
    return (np.cross(a, b) * c).sum((1, 2)) / 6 * DENSITY


def population_weights(height: Array, gender: Array) -> Array:
    """Importance of each sampled adult so that height follows STATURE within each sex; sums to 1.

    The proposal is the sample's own normal fit per sex. Its spread exceeds the target's, so the weights are
    bounded; they are clipped at 4 times their mean for the odd tail.
    """
    out = np.zeros(len(height))
    for sex, (mean, sd) in zip((gender <= 0.5, gender > 0.5), STATURE, strict=True):
        h = height[sex]
        log = -0.5 * ((h - mean) / sd) ** 2 + 0.5 * ((h - h.mean()) / h.std()) ** 2
        w = np.exp(log - log.max())
        w = np.minimum(w, 4 * w.mean())
        out[sex] = 0.5 * w / w.sum()
    return out


def fit_shape_space(adults: People, children: People, faces: np.ndarray, mirror: np.ndarray) -> ShapeSpace:
    """PCA over adults and children for the span; inside it, adult mean and whitened adult covariance."""
    grown, young = adults.vertices, children.vertices
    height = height_of(grown)
    weights = population_weights(height, adults.gender)
    mean = np.einsum("n,nvc->vc", weights, grown)
    span = _principal(np.concatenate([grown[:2500], young]), mirror)
    coefficients = (grown - mean).reshape(len(grown), -1) @ span.T
    covariance = np.einsum("n,ni,nj->ij", weights, coefficients, coefficients)
    directions: Array = _whitening(covariance, FIRST) @ span
    directions = symmetrised(directions.reshape(NUM_BETAS, *mean.shape).astype(np.float32), mirror)
    # Positive first beta is taller, positive others by their largest displacement: a fixed sign per build.
    tall = height_of(mean + directions[0]) - height_of(mean - directions[0])
    signs = np.sign([tall] + [d.ravel()[np.abs(d).argmax()] for d in directions[1:]]).astype(np.float32)
    directions = (directions * signs[:, None, None]).transpose(1, 2, 0)
    mean = symmetrised(mean.astype(np.float32), mirror)
    betas = encode(grown, mean, directions)
    measures = np.stack([height, mass_of(grown, faces), adults.gender], 1)
    root = np.sqrt(weights)[:, None]
    rows = np.concatenate([betas, np.ones((len(betas), 1))], 1)
    readout = np.linalg.lstsq(rows * root, measures * root, rcond=None)[0].T
    return ShapeSpace(mean, np.ascontiguousarray(directions), readout.astype(np.float32))


def _whitening(covariance: Array, first: int) -> Array:
    """(K,K) rows: one unit of each beta in span coordinates, so that `covariance` becomes the identity.

    The first betas span exactly the first coordinates (which serve adults and children alike), ordered by adult
    variance; each later beta also carries what it foretells of the first coordinates.
    """
    rest = covariance[first:, first:]
    foretold = np.linalg.solve(rest, covariance[first:, :first])
    inner = covariance[:first, :first] - foretold.T @ covariance[first:, :first]
    out = np.zeros_like(covariance)
    for block, rows in ((inner, slice(0, first)), (rest, slice(first, None))):
        variance, axes = np.linalg.eigh(block)
        out[rows, rows] = (axes * np.sqrt(variance))[:, ::-1].T
    out[first:, :first] = out[first:, first:] @ foretold
    return out


def _principal(people: Array, mirror: np.ndarray) -> Array:
    """(16, 3V) orthonormal principal directions of symmetric bodies, through the small Gram matrix of one half."""
    # Bodies are symmetric, so the left half (the middle counted once, at half weight) has the same Gram matrix.
    vertex = np.arange(len(mirror))
    side = np.where(mirror == vertex, np.sqrt(0.5), 1.0) * (vertex <= mirror)
    rows = np.nonzero(side)[0]
    mean = people.mean(0)
    half = ((people[:, rows] - mean[rows]) * side[rows, None].astype(np.float32)).reshape(len(people), -1)
    value, vector = np.linalg.eigh((half @ half.T).astype(np.float64))
    top = vector[:, np.argsort(-value)[:NUM_BETAS]]
    span = np.einsum("nk,nvc->kvc", top, people, optimize=True) - top.sum(0)[:, None, None] * mean
    span = span.reshape(NUM_BETAS, -1)
    return span / np.linalg.norm(span, axis=1, keepdims=True)


def encode(vertices: Array, mean: Array, directions: Array) -> Array:
    """(N,K) least-squares betas of bodies (N,V,3)."""
    basis = directions.reshape(-1, directions.shape[-1]).astype(np.float64)
    offsets = (vertices - mean).reshape(len(vertices), -1)
    return np.linalg.solve(basis.T @ basis, basis.T @ offsets.T).T


def decode(betas: Array, mean: Array, directions: Array) -> Array:
    """(N,V,3) bodies of betas (N,K)."""
    return mean + np.einsum("vck,nk->nvc", directions[..., : betas.shape[-1]], betas)


def reconstruction_error(vertices: Array, mean: Array, directions: Array, count: int) -> Array:
    """(N,V) millimetres between bodies and their best fit with the first `count` betas."""
    betas = encode(vertices, mean, directions[..., :count])
    return np.linalg.norm(vertices - decode(betas, mean, directions), axis=-1) * 1e3

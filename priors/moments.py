"""Priors that need no training: their parameters are statistics of the motion."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit import geometry
from fitkit.priors.density import Gaussian
from fitkit.priors.mixture import GaussianMixture
from fitkit.priors.poses import Poses

PARTS = 4
# Each part's covariance counts as if it had seen so many poses of everybody beside its own: parts of few subjects
# would otherwise know their motions by heart.
SHARED_POSES = 4000
ROUNDS = 12
UPRIGHT_NOISE = 0.15


def moments(x: Float[Tensor, "N D"], noise: float) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]]:
    """Mean, and covariance with isotropic noise added, in float64."""
    x = x.double()
    return x.mean(0), torch.cov(x.mT) + noise**2 * torch.eye(x.shape[1], dtype=x.dtype)


def fit_gaussian(x: Float[Tensor, "N D"], noise: float, diagonal: bool = False) -> Gaussian:
    """The normal distribution of vectors with noise.

    Args:
        x: numbers of poses.
        noise: standard deviation added to every number: motion capture has joints that never move, whose likelihood
            would otherwise be infinite.
        diagonal: whether correlations are dropped.
    """
    mean, covariance = moments(x, noise)
    return Gaussian.of(mean, torch.diag(covariance.diagonal()) if diagonal else covariance)


def fit_mixture(x: Float[Tensor, "N D"], noise: float, parts: int = PARTS) -> GaussianMixture:
    """Mixture of Gaussians by expectation maximisation, each covariance shrunk towards that of everybody.

    Args:
        x: numbers of poses.
        noise: see `fit_gaussian`.
        parts: K.

    Raises:
        ValueError: fewer different poses than parts.
    """
    if len(x.unique(dim=0)) < parts:
        raise ValueError(f"{len(x)} poses for {parts} parts, expected at least one pose for each")
    x = x.double()
    mean, whole = moments(x, noise)
    added = noise**2 * torch.eye(x.shape[1], dtype=x.dtype)
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.eigh(whole)[1][:, -20:]  # where poses differ most
    flat = (x - mean) @ basis
    centres = flat[torch.randperm(len(flat), generator=draw)[:parts]]
    for _ in range(ROUNDS):
        nearest = torch.cdist(flat, centres).argmin(1)
        found = [flat[nearest == part] for part in range(parts)]
        centres = torch.stack(
            [own.mean(0) if len(own) else old for own, old in zip(found, centres, strict=True)]
        )
    share = torch.nn.functional.one_hot(nearest, parts).to(x)
    for _ in range(ROUNDS):
        count = share.sum(0)
        means = share.mT @ x / count[:, None]
        covariances = []
        for part in range(parts):
            away = (x - means[part]) * share[:, part, None].sqrt()
            seen = away.mT @ away + SHARED_POSES * (whole - added)
            covariances.append(seen / (count[part] + SHARED_POSES) + added)
        mixture = GaussianMixture.of(count / count.sum(), means, torch.stack(covariances))
        white = torch.cat([mixture.heights(rows) for rows in x.split(4096)])
        share = torch.softmax(white, 1)
    return mixture


def fit_upright(
    poses: Poses, folds: int = 4, noise: float = UPRIGHT_NOISE, joints: int = 21
) -> dict[str, Tensor]:
    """Regression of the world's up in the pelvis' frame on the 6D numbers of the pose.

    The covariance is that of the errors on subjects that the regression did not see: on its own it is far smaller.

    Args:
        poses: of people in a world with Y up.
        folds: of subjects, for the covariance.
        noise: standard deviation added to the numbers, which keeps the slope small.
        joints: the first ones after the pelvis.
    """
    slope, offset = _regression(*_stand(poses, None, joints), noise)
    errors = []
    for rows in poses.folds(folds):
        others, base = _regression(*_stand(poses, ~rows, joints), noise)
        numbers, up = _stand(poses, rows, joints)
        errors.append(up - numbers @ others.mT - base)
    left = torch.cat(errors)
    return {
        "slope": slope.float().contiguous(),
        "offset": offset.float(),
        "covariance": (left.mT @ left / len(left)).float(),
    }


def _stand(poses: Poses, rows: Tensor | None, joints: int) -> tuple[Tensor, Tensor]:
    """6D numbers `(M, D)` and the world's up in the pelvis' frame `(M, 3)`."""
    rotations = poses.rotations(rows).double()
    return geometry.to_6d(rotations[:, 1 : joints + 1]).flatten(1), rotations[:, 0, 1]  # R^T e_y


def _regression(numbers: Tensor, up: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    mean, covariance = moments(numbers, noise)
    away = up - up.mean(0)
    slope = torch.linalg.solve(covariance, (numbers - mean).mT @ away / len(away)).mT
    return slope, up.mean(0) - slope @ mean

"""Errors along the surface of the body: whether a pixel was put where it belongs on the skin."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Metres; a point 30 cm off then counts half (Güler et al., DensePose, CVPR 2018, section 2.3).
GPS_KAPPA = 0.255


def gps(
    distance: Float[Tensor, "*batch N"], kappa: float | Float[Tensor, "*batch N"] = GPS_KAPPA
) -> Float[Tensor, "*batch"]:
    """Geodesic point similarity: the mean over a person's points of `exp(-g^2 / (2 kappa^2))` (DensePose, eq. 1).

    Args:
        distance: `(..., N)` metres along the surface from where each annotated point was put to where it belongs
            (`fitkit.body.geodesic.geodesic_distances`); infinite or NaN for a point that was put nowhere, which
            scores 0.
        kappa: metres; or one for each point, where parts of the body are held to scales of their own.

    Returns:
        `(...)` from 0 to 1, 1 is perfect; NaN where there are no points.

    Raises:
        ValueError: a negative distance, or a kappa that is not positive.

    >>> gps(torch.tensor([0.0, 0.3, torch.inf])).item()
    0.5001...
    """
    if distance.ndim < 1:
        raise ValueError("distance is a single number, expected (..., N)")
    if bool((distance < 0).any()):
        raise ValueError(f"distance of {float(distance.nan_to_num(0).min()):g} m, expected none below 0")
    scale = torch.as_tensor(kappa, dtype=distance.dtype, device=distance.device)
    if not bool((scale > 0).all()):
        raise ValueError(f"kappa {kappa}, expected metres, more than 0")
    return torch.exp(-((distance / scale) ** 2) / 2).nan_to_num(nan=0.0).mean(-1)


def gpsm(similarity: Float[Tensor, "*batch"], iou: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Masked geodesic point similarity: `sqrt(GPS * IoU)`, which also asks for the right silhouette.

    GPS alone is taken at annotated points only, so a prediction that covers the whole photo loses nothing by it; the
    evaluation of DensePose-COCO since 2020 counts this instead.

    Args:
        similarity: `(...)` see `gps`.
        iou: `(...)` of the masks, see `mask_iou`.

    Raises:
        ValueError: numbers outside of 0..1, or shapes that differ.
    """
    if similarity.shape != iou.shape:
        raise ValueError(f"GPS {tuple(similarity.shape)} with IoU {tuple(iou.shape)}, expected one shape")
    for name, value in (("GPS", similarity), ("IoU", iou)):
        if bool(((value < 0) | (value > 1)).any()):
            raise ValueError(f"{name} outside of 0..1: {float(value.min()):g}..{float(value.max()):g}")
    return (similarity * iou).sqrt()

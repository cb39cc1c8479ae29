"""Errors in the photo: keypoints, who is whom, silhouettes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# How far annotators disagree about each point, as a fraction of the square root of a person's area; the order is
# that of the keypoint set "coco17" (COCO keypoint evaluation, cocoeval.py).
COCO_SIGMAS: tuple[float, ...] = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
# COCO's area is that of the segment; where only a box is known, its usual share of the box (xtcocotools).
BOX_FILL = 0.53


def within(
    xy: Float[Tensor, "B K 2"],
    target: Float[Tensor, "B K 2"],
    size: Float[Tensor, " B"],
    threshold: float,
) -> Bool[Tensor, "B K"]:
    """Which keypoints lie within `threshold * size` of their targets, the edge included.

    Args:
        xy: `(B, K, 2)` pixels; NaN where nothing was predicted, which is never within.
        target: `(B, K, 2)` pixels.
        size: `(B,)` pixels that the threshold is a fraction of.
        threshold: such as 0.1.

    Raises:
        ValueError: shapes that do not fit.
    """
    if xy.shape != target.shape or xy.ndim != 3 or xy.shape[-1] != 2 or size.shape != xy.shape[:1]:
        raise ValueError(
            f"keypoints {tuple(xy.shape)} against {tuple(target.shape)}, sizes {tuple(size.shape)}: "
            "expected (B, K, 2) twice and (B,)"
        )
    return (xy - target).norm(dim=-1) <= threshold * size[:, None]


def pck(
    xy: Float[Tensor, "B K 2"],
    target: Float[Tensor, "B K 2"],
    seen: Bool[Tensor, "B K"],
    size: Float[Tensor, " B"],
    threshold: float = 0.1,
) -> Float[Tensor, ""]:
    """Share of the annotated keypoints of all people that are within a fraction of the person's size (PCK).

    "PCK@0.1 of the box" takes the longer side of the annotated box as size (Yang & Ramanan, PAMI 2013), PCKh half
    of the head's. All keypoints count alike, so a person with more of them counts more.

    Args:
        xy: `(B, K, 2)` pixels; NaN for missing predictions, which are wrong.
        target: `(B, K, 2)` pixels.
        seen: `(B, K)` which are annotated; the others do not count.
        size: `(B,)` pixels.
        threshold: fraction of the size.

    Returns:
        Between 0 and 1; NaN where nothing is annotated.

    Raises:
        ValueError: shapes that do not fit.
    """
    right = within(xy, target, size, threshold) & seen
    return right.sum().to(xy.dtype) / seen.sum()


def oks(
    xy: Float[Tensor, "P K 2"],
    target: Float[Tensor, "T K 2"],
    seen: Bool[Tensor, "T K"],
    area: Float[Tensor, " T"],
    sigmas: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, "P T"]:
    """Object keypoint similarity of every output with every annotated person (COCO keypoint evaluation).

    The mean over the annotated points of `exp(-d^2 / (2 area (2 sigma)^2))`: 1 is perfect, COCO counts a person as
    found from 0.5 on.

    Args:
        xy: `(P, K, 2)` pixels of P outputs; NaN for missing points, which score 0.
        target: `(T, K, 2)` pixels of T annotated people.
        seen: `(T, K)` which points are annotated.
        area: `(T,)` square pixels of the person; `BOX_FILL` of the box where there is no segment.
        sigmas: `(K,)` of the points; `COCO_SIGMAS` by default, for coco17.

    Returns:
        `(P, T)`; 0 with a person of whom nothing is annotated.

    Raises:
        ValueError: sigmas that do not fit the points.
    """
    spread = torch.tensor(COCO_SIGMAS, dtype=xy.dtype, device=xy.device) if sigmas is None else sigmas.to(xy)
    if spread.shape != (target.shape[1],):
        raise ValueError(
            f"OKS of {target.shape[1]} points with {tuple(spread.shape)} sigmas: expected one each"
        )
    square = (xy[:, None] - target[None]).square().sum(-1)
    scale = 2 * area[:, None].clamp_min(1e-9) * (2 * spread) ** 2
    similar = torch.nan_to_num(torch.exp(-square / scale), nan=0.0) * seen
    return similar.sum(-1) / seen.sum(-1).clamp_min(1)


def box_iou(first: Float[Tensor, "P 4"], second: Float[Tensor, "T 4"]) -> Float[Tensor, "P T"]:
    """Intersection over union of boxes x, y, w, h; 0 of empty ones."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, :2] + first[:, None, 2:], second[None, :, :2] + second[None, :, 2:])
    both = (high - low).clamp_min(0).prod(-1)
    return both / (first[:, 2:].prod(1)[:, None] + second[:, 2:].prod(1)[None] - both).clamp_min(1e-9)


def match_people(similarity: Float[Tensor, "P T"], threshold: float = 0.5) -> Int[Tensor, " T"]:
    """Which output is which annotated person: one to one, the most similar pair first.

    Args:
        similarity: `(P, T)` such as `oks`.
        threshold: pairs at or below it are not matched.

    Returns:
        `(T,)` position of the output, -1 for people that were not found.

    >>> match_people(torch.tensor([[0.9, 0.8], [0.7, 0.1]]), threshold=0.5)
    tensor([ 0, -1])
    """
    left = similarity.clone()
    found = torch.full((similarity.shape[1],), -1, dtype=torch.long, device=similarity.device)
    while left.numel():
        output, person = divmod(int(left.argmax()), left.shape[1])
        if not float(left[output, person]) > threshold:
            break
        found[person] = output
        left[output], left[:, person] = -torch.inf, -torch.inf
    return found


def mask_iou(mask: Float[Tensor, "B h w"], target: Float[Tensor, "B h w"]) -> Float[Tensor, " B"]:
    """Intersection over union of masks, where a pixel over 0.5 is inside (Pascal VOC).

    Args:
        mask: `(B, h, w)` in [0, 1].
        target: `(B, h, w)` in [0, 1], at the same resolution.

    Returns:
        `(B,)`; 1 for two empty masks.

    Raises:
        ValueError: shapes that differ.
    """
    if mask.shape != target.shape or mask.ndim != 3:
        raise ValueError(
            f"masks {tuple(mask.shape)} against {tuple(target.shape)}: expected one shape (B, h, w)"
        )
    inside, wanted = mask > 0.5, target > 0.5
    both, either = (inside & wanted).sum((1, 2)), (inside | wanted).sum((1, 2))
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))

"""Pictures to be drawn by two back ends of the soft rasteriser, and how they are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fitkit import geometry
from fitkit.body.model import BodyModel
from fitkit.camera import Camera
from fitkit.render import FaceLabels, SoftImages, available_backends, soft_rasterize

F64 = torch.float64
OURS = ("torch", "warp")
needs_warp = pytest.mark.skipif(
    "warp" not in available_backends(), reason="warp-lang is not installed: pip install warp-lang"
)
each_of_ours = pytest.mark.parametrize("backend", ["torch", pytest.param("warp", marks=needs_warp)])


@dataclass(frozen=True)
class Case:
    """A picture to be drawn by two back ends."""

    vertices: Tensor
    faces: Tensor
    camera: Camera
    attributes: Tensor | FaceLabels | None
    softness: float
    depth_softness: float


KINDS = (
    "whole body",
    "in the picture",
    "partly outside",
    "partly behind the camera",
    "wholly behind the camera",
    "one pixel tall",
    "degenerate faces",
    "vertices that are not finite",
    "very near",
    "very far",
)


def make_case(body: BodyModel, seed: int) -> Case:
    draw = torch.Generator().manual_seed(seed)
    kind = KINDS[seed % len(KINDS)]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=F64)

    distance = {
        "partly behind the camera": 0.1,
        "wholly behind the camera": -3.0,
        "very near": 0.9,
        "very far": 150.0,
    }.get(kind, uniform(2.5, 5.0))
    state = replace(
        body.neutral(1),
        global_orient=geometry.exp(normal(1, 1, 3)),
        body_pose=geometry.exp(0.3 * normal(1, 21, 3)),
        betas=normal(1, body.num_betas),
        transl=0.15 * normal(1, 3) + torch.tensor([0, 0, distance]),
    )
    vertices, faces = body.vertices(state)[0], body.faces
    if kind != "whole body":  # the oracle is slow
        faces = faces[torch.randperm(len(faces), generator=draw)[:1200]]
    if kind == "partly outside":
        vertices = vertices + torch.tensor([0.25, 0.15, 0.0]) * distance
    if kind == "degenerate faces":
        faces = torch.cat([faces[:, [0, 0, 1]][:50], faces, faces[:, [2, 2, 2]][:50]])
        vertices[faces[200:230, 0]] = vertices[faces[200:230, 1]].clone()
    if kind == "vertices that are not finite":
        vertices[::97] = torch.nan
        vertices[5::97, 1] = torch.inf
        vertices[9::97, 2] = -torch.inf
    size = [int(uniform(20, 56)), int(uniform(20, 56))]
    size = size if kind != "whole body" else [24, 24]
    focal = 1.0 * distance if kind == "one pixel tall" else max(size) * uniform(0.7, 1.8)
    focal = 60 * max(size) if kind == "very far" else focal
    x, y = uniform(0.4, 0.6) * size[0], uniform(0.4, 0.6) * size[1]
    intrinsics = torch.tensor([[focal, 1.1 * focal]], dtype=F64), torch.tensor([[x, y]], dtype=F64)
    parts = torch.as_tensor(body.data.parts).long()
    labels = parts if kind == "whole body" else torch.randint(-1, 15, (len(faces),), generator=draw)
    attributes = (FaceLabels(labels, 15), normal(len(vertices), 3), None)[seed // len(KINDS) % 3]
    return Case(
        vertices.to(torch.float32)[None],
        faces.long(),
        Camera(*intrinsics, *size),
        attributes,
        uniform(0.3, 0.6 if kind == "whole body" else 1.5),
        0.01 if seed % 4 else 0.05,
    )


def drawn(case: Case, backend: str, dtype: torch.dtype) -> tuple[SoftImages, list[Tensor]]:
    """The pictures, and the gradients of random linear functions of them to everything that has gradients."""
    leaves = [case.vertices, case.camera.focal, case.camera.center]
    leaves = [leaf.detach().clone().to(dtype).requires_grad_() for leaf in leaves]
    attributes = case.attributes
    if isinstance(attributes, Tensor):
        attributes = attributes.detach().clone().to(dtype).requires_grad_()
        leaves.append(attributes)
    camera = replace(case.camera, focal=leaves[1], center=leaves[2])
    images = soft_rasterize(
        leaves[0], case.faces, camera, attributes, case.softness, case.depth_softness, backend=backend
    )
    draw = torch.Generator().manual_seed(0)
    loss = images.silhouette.new_zeros(())
    for image in (images.silhouette, images.attributes):
        loss = loss + (image * torch.randn(image.shape, generator=draw, dtype=F64).to(image)).sum()
    return images, list(torch.autograd.grad(loss, leaves))


def cosine(one: Tensor, two: Tensor) -> float:
    one, two = one.detach().flatten().to(F64), two.detach().flatten().to(F64)
    if float(one.norm()) < 1e-9 and float(two.norm()) < 1e-9:
        return 1.0
    return float(torch.nn.functional.cosine_similarity(one, two, 0, eps=1e-30))


@pytest.fixture
def crowd(body: BodyModel) -> Case:
    """Three people in pictures of three cameras."""
    one = [make_case(body, seed) for seed in (1, 11, 21)]
    camera = Camera(
        torch.cat([c.camera.focal for c in one]), torch.cat([c.camera.center for c in one]), 40, 30
    )
    values = torch.randn(3, one[0].vertices.shape[1], 2, generator=torch.Generator().manual_seed(3))
    return Case(torch.cat([c.vertices for c in one]), one[0].faces, camera, values, 0.7, 0.01)

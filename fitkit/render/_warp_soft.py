"""The soft rasteriser in Warp: memory, threads and autograd around the kernels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from fitkit.render import _warp_soft_kernels as kernels
from fitkit.render._warp_launch import Launcher, array, structs
from fitkit.render.scene import BACKGROUND, FARTHEST_PIXEL, THINNEST, Scene


def render(scene: Scene) -> tuple[Tensor, Tensor]:
    """Silhouette `(B, H, W)` and attributes `(B, H, W, C)`, float32."""
    values = None if scene.values is None else scene.values.to(torch.float32)
    silhouette, attributes = _Soft.apply(scene.corners.to(torch.float64), values, scene)
    return silhouette, attributes


class _Soft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, corners: Tensor, values: Tensor | None, scene: Scene) -> tuple[Tensor, Tensor]:
        work = _Work(corners, values, scene)
        clear, nearest = work.cover()
        total, sums = work.blend(nearest)
        sums /= total[..., None]
        ctx.work = work
        ctx.save_for_backward(clear, nearest, total, sums)
        shape = (len(corners), scene.height, scene.width)
        return (1 - clear).view(shape), sums.view(*shape, scene.channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_silhouette: Tensor, g_attributes: Tensor) -> tuple[Tensor, Tensor | None, None]:
        clear, nearest, total, attributes = ctx.saved_tensors
        g_clear = g_silhouette.reshape(clear.shape) * clear
        g_color = g_attributes.reshape(attributes.shape) / total[..., None]
        g_mean = (g_color * attributes).sum(-1)
        g_corners, g_values = ctx.work.differentiate(nearest, g_clear, g_color, g_mean)
        return g_corners, g_values, None


class _Work:
    """The faces set up on the screen, and the passes over them; the backward pass takes it over as it is."""

    def __init__(self, corners: Tensor, values: Tensor | None, scene: Scene) -> None:
        self.scene, self.device = scene, corners.device
        self.pictures, self.vertices = corners.shape[:2]
        self.launch = Launcher(kernels, corners.device)
        self.index = scene.faces.to(torch.int32).contiguous()
        self.labels = None if scene.labels is None else scene.labels.labels.to(torch.int32).contiguous()
        self.values = None if values is None else values.detach().contiguous()
        self.bands = self._bands(corners)
        self.faces, self.memory = structs(kernels.Face, (self.pictures, len(self.index)), corners.device)
        self._set_up(corners.detach().contiguous())

    def cover(self) -> tuple[Tensor, Tensor]:
        """What shines through (B, H W), and the least depth in units of the depth softness (B, H W)."""
        log_clear, nearest = self._pixels(0.0), self._pixels(math.inf)
        pixels = [array(log_clear), array(nearest)]
        self._passes(kernels.cover, [self.faces], pixels)
        return log_clear.exp_(), nearest

    def blend(self, nearest: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the weights (B, H W) and of the weighted attributes (B, H W, C)."""
        total = self._pixels(BACKGROUND)
        sums = torch.zeros(*total.shape, self.scene.channels, device=self.device)
        if self.scene.channels:
            pixels = [array(nearest), array(total), array(sums)]
            self._passes(kernels.blend, [self.faces, *self._table()], pixels)
        return total, sums

    def differentiate(
        self, nearest: Tensor, g_clear: Tensor, g_color: Tensor, g_mean: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients to the corners on the screen (B, V, 3) float64, and to the values (B, V, C)."""
        scene, faces = self.scene, len(self.index)
        g_corners = torch.empty(self.pictures, faces, 3, 3, device=self.device)
        g_values = None
        if self.values is not None:
            g_values = torch.zeros(self.pictures, faces, 3, scene.channels, device=self.device)
        shared = [
            self.faces,
            *self._table(),
            scene.width,
            1 / scene.softness**2,
            scene.blur2,
            1 / scene.depth_softness,
            *[array(x) for x in (nearest, g_clear, g_color if scene.channels else None, g_mean)],
            array(g_corners, wp.vec3),
            array(g_values),
        ]
        self.launch.each(
            kernels.differentiate,
            [((n, end - begin), [*shared, row, begin]) for row, n, begin, end in self._shares()],
        )
        return self._to_vertices(g_corners).to(torch.float64), (
            None if g_values is None else self._to_vertices(g_values)
        )

    def _set_up(self, corners: Tensor) -> None:
        scene = self.scene
        middle = corners[..., 2].clamp_min(scene.near).median(dim=1).values
        shared = [
            array(corners, wp.vec3d),
            array(self.index, wp.vec3i),
            array(middle),
            wp.vec2i(scene.width, scene.height),
            wp.vec4d(scene.near, math.sqrt(scene.blur2), FARTHEST_PIXEL, THINNEST**2),
            1 / scene.depth_softness,
            self.faces,
        ]
        self.launch.each(
            kernels.set_up,
            [((n, end - begin), [*shared, row, begin]) for row, n, begin, end in self._shares()],
        )

    def _passes(self, kernel: Any, faces: list[Any], pixels: list[Any]) -> None:
        scale, blur = 1 / self.scene.softness**2, self.scene.blur2
        self.launch.each(
            kernel,
            [
                ((n, len(self.index)), [*faces, self.scene.width, low, high, scale, blur, *pixels, row])
                for row, n, low, high in self.bands
            ],
        )

    def _table(self) -> list[Any]:
        return [array(self.index, wp.vec3i), array(self.labels), array(self.values)]

    def _pixels(self, value: float) -> Tensor:
        return torch.full((self.pictures, self.scene.height * self.scene.width), value, device=self.device)

    def _shares(self) -> list[tuple[int, int, int, int]]:
        """First picture, pictures, and faces from .. to of every piece whose faces do not depend on each other."""
        faces, threads = len(self.index), self.launch.threads
        if threads == 1:
            return [(0, self.pictures, 0, faces)]
        if self.pictures >= threads:
            return [(picture, 1, 0, faces) for picture in range(self.pictures)]
        cuts = [faces * k // threads for k in range(threads + 1)]
        return [(p, 1, *cut) for p in range(self.pictures) for cut in itertools.pairwise(cuts)]

    def _bands(self, corners: Tensor) -> list[tuple[int, int, int, int]]:
        """First picture, pictures, and rows from .. to of every piece whose pixels are its own."""
        height, threads = self.scene.height, self.launch.threads
        if threads == 1:
            return [(0, self.pictures, 0, height)]
        if self.pictures >= threads:
            return [(picture, 1, 0, height) for picture in range(self.pictures)]
        # As many vertices in each band, which is nearly as many faces.
        rows = corners.detach()[..., 1].clamp(0, height).sort(1).values
        bands = []
        for picture in range(self.pictures):
            inner = [int(rows[picture, self.vertices * k // threads]) for k in range(1, threads)]
            bands += [(picture, 1, *cut) for cut in itertools.pairwise([0, *inner, height])]
        return bands

    def _to_vertices(self, per_corner: Tensor) -> Tensor:
        """Sum (B, F, 3, C) over the faces around every vertex: (B, V, C)."""
        channels = per_corner.shape[-1]
        start = torch.arange(self.pictures, device=self.device)[:, None] * self.vertices
        to = (start + self.index.reshape(1, -1)).reshape(-1)
        out = torch.zeros(self.pictures * self.vertices, channels, device=self.device)
        return out.index_add_(0, to, per_corner.view(-1, channels)).view(self.pictures, -1, channels)

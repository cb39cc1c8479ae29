"""Objectives on the rendered body: its parts, its silhouette and the directions of its surface.

Each is one number per person, compared in a small window around them (`view`); gradients come through the soft
rasteriser. Softness is in pixels of that window; stages that widen robust kernels widen it alike.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.coordinates import Tangent
from fitkit.maps import PART_NAMES, window
from fitkit.objectives.base import Objective, Residual, row_weights
from fitkit.objectives.view import View, mask_in_view, softened, view_of
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.render import FaceLabels, SoftImages, backend_names, soft_rasterize, vertex_normals

R = TypeVar("R", bound="Rendered")
# Pixels; sharper than that no neighbouring pixel is reached, and numbers begin to underflow.
_SHARPEST = 0.01


@dataclass(frozen=True)
class _Derived:
    """A misfit `(B,)`, its gradient `(B, D)` and curvature `(B, D, D)`, without the weight."""

    energy: Tensor
    gradient: Tensor
    hessian: Tensor


class Rendered(Objective):
    """A term that compares pictures.

    Args:
        size: of the window, pixels, None for the term's `usual_size`; it is 1.4 times as large as the person.
        softness: of the rasteriser, pixels of the window.
        sigma: share of the person's area that is expected not to fit, None for the term's `usual_sigma`; the value
            is that share / sigma.
        backend: of the rasteriser, by name (`fitkit.render.backend_names()`); None for the best one installed.
    """

    dense = True
    usual_size = 64
    # These, the sizes and the softness were chosen on motion of training subjects (benchmarks/dense.py --motion).
    usual_sigma = 0.01

    def __init__(
        self,
        size: int | None = None,
        softness: float = 0.35,
        sigma: float | None = None,
        backend: str | None = None,
    ) -> None:
        size = self.usual_size if size is None else size
        if isinstance(size, bool) or not (isinstance(size, int) and 8 <= size <= 1024):
            raise ValueError(
                f"objective {self.name}: size is {size}, expected a whole number of pixels, 8..1024"
            )
        sigma = self.usual_sigma if sigma is None else sigma
        if not 0 < sigma < float("inf"):
            raise ValueError(f"objective {self.name}: sigma is {sigma}, expected a positive number")
        if not _SHARPEST <= softness <= size / 16:
            raise ValueError(
                f"objective {self.name}: softness is {softness}, expected {_SHARPEST} to {size / 16} pixels (a "
                "sixteenth of the window)"
            )
        if backend is not None and backend not in backend_names():
            raise ValueError(f"objective {self.name}: backend {backend!r}, expected one of {backend_names()}")
        self.size, self.softness, self.sigma, self.backend = size, softness, sigma, backend

    def widened(self: R, factor: float | None) -> R:
        """The same term, rendered that much softer: its pull reaches farther."""
        wider = super().widened(factor)
        if factor is None:
            return wider
        return wider._with(softness=min(max(self.softness * factor, _SHARPEST), self.size / 16))

    @abstractmethod
    def misfit(self, pred: Prediction, obs: Observation) -> Float[Tensor, " B"]:
        """Share of the person that does not fit; 0 for somebody of whom nothing is known."""

    def residual(self, pred: Prediction, obs: Observation) -> Tensor:
        if pred.linearizing:
            return pred.once(self, lambda: self._derive(pred, obs)).energy
        return self._energy(pred, obs)

    def closed_normal(
        self, pred: Prediction, obs: Observation, residual: Residual
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D D"]]:
        """The exact gradient, and a curvature that takes the place of Gauss-Newton's.

        A picture has thousands of rows, whose derivatives nobody can afford. What a solver needs of the curvature is
        how far it may go: the gradient on each patch of the surface falls off within about a pixel and the softness
        (an L1 misfit grows linearly from there on, as iteratively reweighted least squares has it), so the patch a
        with gradient g_a, which the state moves by J_a, counts `(J_a' g_a)(J_a' g_a)' / (reach |g_a|)`.
        """
        here = pred.once(self, lambda: self._derive(pred, obs))
        scale = row_weights(self, residual)
        return scale * here.gradient, scale[..., None] * here.hessian

    def _energy(self, pred: Prediction, obs: Observation) -> Tensor:
        # A body that is nowhere leaves the picture empty, which is a picture like any other.
        somewhere = torch.isfinite(pred.vertices).flatten(1).all(1)
        return torch.where(somewhere, self.misfit(pred, obs) / self.sigma, torch.nan)

    def _draw(self, pred: Prediction, view: View, attributes: Tensor | FaceLabels | None) -> SoftImages:
        return soft_rasterize(
            pred.vertices,
            pred.body.faces,
            view.camera,
            attributes,
            softness=self.softness,
            backend=self.backend,
        )

    def _derive(self, pred: Prediction, obs: Observation) -> _Derived:
        chart = Tangent(pred.state, tuple(pred.blocks))
        x = chart.encode(pred.state).detach().requires_grad_(True)
        with torch.enable_grad():
            moved = Prediction(pred.body, chart.decode(x), pred.camera)
            energy = self._energy(moved, obs)
            gradient, pull = torch.autograd.grad(energy.sum(), (x, moved.vertices))
        body, (part,) = pred.body, self.requires
        view = view_of(obs, part, self.size)
        anchors = obs.once(
            ("anchors", body, pred.posed.transforms.shape[1]),
            lambda: pred.vertex_skin(body.anchors.expand(len(pred), -1)),
        )
        place, jacobian = pred.surface_jacobian(anchors)
        patch = torch.zeros_like(place).index_add_(1, body.nearest_anchor, pull)
        size = patch.norm(dim=-1)
        pixel = place[..., 2].clamp_min(0.05) / view.camera.focal[:, :1]  # of the view, metres at that depth
        reach = (1 + self.softness) * pixel
        along = (patch[..., None] * jacobian).sum(2)
        scale = torch.where(size > 0, 1 / (reach * size).clamp_min(1e-30), torch.zeros_like(size))
        hessian = (along * scale[..., None]).mT @ along
        return _Derived(energy.detach(), gradient, hessian)


class Parts(Rendered):
    """Body parts and visibility against a part map, L1 per pixel (HUND, eq. 5).

    The rasteriser's 14 part shares, times the silhouette, and the silhouette itself, are compared with the map's
    15 channels; the sum over the window is divided by twice the person's area in the map (eq. 5: by the picture's),
    so that it does not depend on the size of the window. Parts that the map leaves open cost nothing. Visibility is
    that of the map as the rasteriser would draw it (`view.softened`).
    """

    name = "parts"
    requires = frozenset({"parts"})
    usual_size = 96  # borders between parts are finer than the outline
    usual_sigma = 0.02

    def misfit(self, pred: Prediction, obs: Observation) -> Tensor:
        if pred.body.data.parts is None:
            raise ValueError(f"objective {self.name}: body {pred.body.name} has no parts")
        faces = len(pred.body.faces)
        wanted, weight, area = obs.once(
            ("parts", self.size, self.softness, faces), lambda: self._wanted(obs, faces)
        )
        labels = FaceLabels(pred.body.face_parts - 1, len(PART_NAMES))
        drawn = _channels(self._draw(pred, view_of(obs, "parts", self.size), labels))
        return ((drawn - wanted).abs() * weight).sum((1, 2, 3)) / area

    def _wanted(self, obs: Observation, faces: int) -> tuple[Tensor, Tensor, Tensor]:
        """Channels `(B, 15, S, S)`, the weight of each, and twice the person's area; of what is known."""
        seen, dtype = obs.parts, obs.camera.focal.dtype
        assert seen is not None  # checked by Problem: `requires`
        box = view_of(obs, "parts", self.size).box
        sure = seen.confidence[:, None].to(dtype)
        share = window(sure, seen.box, box, self.size)
        stack = torch.cat([seen.probability, seen.open], 1).to(dtype) * sure
        mixed = window(stack, seen.box, box, self.size) / share.clamp_min(1e-9)
        wanted, free = mixed.chunk(2, 1)
        visible = wanted[:, -1:]
        area = 2 * (visible * share).sum((1, 2, 3))
        # Outside of the person the parts' shares add up to the silhouette: there it alone is compared, for both.
        weight = torch.cat([visible * (1 - free[:, :-1]), 2 - visible], 1) * share
        fine = torch.cat([seen.probability[:, -1:].to(dtype) * sure, sure], 1)
        shown, known = window(fine, seen.box, box, 2 * self.size).unbind(1)
        soft = softened(shown / known.clamp_min(1e-9), known, self.size, self.softness, faces)
        wanted = torch.cat([wanted[:, :-1], soft[:, None]], 1)
        return wanted, weight * (area > 0)[:, None, None, None], area.clamp_min(1)


class Silhouette(Rendered):
    """One minus the soft intersection over union of the body's silhouette and the person's mask.

    The mask is softened as the rasteriser softens the body (`view.softened`).
    """

    name = "silhouette"
    requires = frozenset({"mask"})

    def misfit(self, pred: Prediction, obs: Observation) -> Tensor:
        view, faces = view_of(obs, "mask", self.size), len(pred.body.faces)
        mask = obs.once(("silhouette", self.size, self.softness, faces), lambda: self._wanted(obs, faces))
        drawn = self._draw(pred, view, None).silhouette * view.known
        both = (drawn * mask).sum((1, 2))
        either = (drawn + mask - drawn * mask).sum((1, 2))
        return (1 - both / either.clamp_min(1e-6)) * (mask.sum((1, 2)) > 0)

    def _wanted(self, obs: Observation, faces: int) -> Tensor:
        fine = 2 * self.size
        shown, known = mask_in_view(obs, fine), view_of(obs, "mask", fine).known
        soft = softened(shown, known, self.size, self.softness, faces)
        there = (shown > 0.5).flatten(1).any(1)
        return soft * view_of(obs, "mask", self.size).known * there[:, None, None]


class Normals(Rendered):
    """Directions of the surface against a map of normals: the mean of `1 - n . n'` where both see the body.

    Where the body is not drawn a pixel of the map counts 1, so that shrinking the body away is no way out.
    """

    name = "normals"
    requires = frozenset({"normals"})

    def misfit(self, pred: Prediction, obs: Observation) -> Tensor:
        wanted, weight = obs.once(("normals", self.size), lambda: self._wanted(obs))
        normals = vertex_normals(pred.vertices, pred.body.faces)
        images = self._draw(pred, view_of(obs, "normals", self.size), normals)
        drawn = torch.nn.functional.normalize(images.attributes, dim=-1, eps=1e-6)
        differ = 1 - (drawn * wanted).sum(-1) * images.silhouette
        return (differ * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1)

    def _wanted(self, obs: Observation) -> tuple[Tensor, Tensor]:
        """Unit normals `(B, S, S, 3)` and their weight `(B, S, S)`."""
        seen, dtype = obs.normals, obs.camera.focal.dtype
        assert seen is not None  # checked by Problem: `requires`
        box = view_of(obs, "normals", self.size).box
        sure = seen.confidence[:, None].to(dtype)
        share = window(sure, seen.box, box, self.size)[:, 0]
        mixed = window(seen.normal.to(dtype) * sure, seen.box, box, self.size).movedim(1, -1)
        return torch.nn.functional.normalize(mixed, dim=-1, eps=1e-6), share


def _channels(images: SoftImages) -> Tensor:
    """Visible part shares and the silhouette, `(B, 15, S, S)`."""
    shown = images.attributes * images.silhouette[..., None]
    return torch.cat([shown, images.silhouette[..., None]], -1).movedim(-1, 1)

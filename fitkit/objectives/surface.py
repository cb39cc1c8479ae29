"""Objectives on points of the surface: DensePose's IUV, and any other correspondence of body and photo.

Nothing is rendered: a pixel whose place on the body is known is a keypoint like any other, with an analytic Jacobian.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.body.charts import Charts
from fitkit.body.surface import Skin
from fitkit.maps import Correspondences, extent
from fitkit.objectives.base import Objective, Residual
from fitkit.objectives.kernels import GMoF, Kernel
from fitkit.observation import Observation
from fitkit.prediction import Prediction

# Neighbouring pixels err together: all the points of a person weigh as much as this many keypoints, at most.
EFFECTIVE_POINTS = 30.0


class SurfaceTerm(Objective):
    """Distance of points of the surface from where they were seen; subclasses say which points.

    Rows are pixels / (sigma * extent), where the extent is the longer side of the person's box where the observation
    has one, or of the box of the points where that is larger; for points seen in space they are metres / sigma_metres.

    Args:
        sigma: noise of a point in the photo, as a fraction of the extent.
        kernel: in units of sigma.
        sigma_metres: noise of a point in space.
    """

    def __init__(
        self, sigma: float = 0.02, kernel: Kernel | None = GMoF(5.0), sigma_metres: float = 0.02
    ) -> None:
        for name, value in (("sigma", sigma), ("sigma_metres", sigma_metres)):
            if not 0 < value < float("inf"):
                raise ValueError(f"objective {self.name}: {name} is {value}, expected a positive number")
        self.sigma, self.kernel, self.sigma_metres = sigma, kernel, sigma_metres

    @abstractmethod
    def correspondences(self, pred: Prediction, obs: Observation) -> Correspondences:
        """The points, on the body of the prediction."""

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        _, _, target, weight, _ = self._seen(pred, obs)
        points = pred.surface(self._skin(pred, obs))
        place = points if target.shape[-1] == 3 else obs.camera.project(points)
        return Residual((place - target) / self._scale(pred, obs), weight)

    def jacobian(self, pred: Prediction, obs: Observation) -> Float[Tensor, "B N d D"]:
        points, jacobian = pred.surface_jacobian(self._skin(pred, obs))
        if self._seen(pred, obs)[2].shape[-1] == 2:
            jacobian = obs.camera.project_jacobian(points, jacobian)
        return jacobian / self._scale(pred, obs)[..., None]

    def _scale(self, pred: Prediction, obs: Observation) -> Tensor:
        _, _, target, _, extent = self._seen(pred, obs)
        return extent * (self.sigma if target.shape[-1] == 2 else self.sigma_metres)

    def _skin(self, pred: Prediction, obs: Observation) -> Skin:
        vertex, share, *_ = self._seen(pred, obs)
        key = (*self._key(pred), pred.posed.transforms.shape[1])
        return obs.once(key, lambda: pred.skin(vertex, share))

    def _seen(self, pred: Prediction, obs: Observation) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Corners `(B, N, 3)` and their shares, targets `(B, N, d)`, weights `(B, N)` and extents `(B, 1, 1)`."""

        def prepare() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
            points, dtype = self.correspondences(pred, obs), pred.body.dtype
            there = points.confidence > 0
            share = (EFFECTIVE_POINTS / there.sum(1, keepdim=True).clamp_min(1)).clamp_max(1)
            target = points.target.to(dtype).masked_fill(~there[..., None], 0)
            corners, weight = pred.body.faces[points.face], (points.confidence * share).to(dtype)
            return corners, points.barycentric.to(dtype), target, weight, _extent(target, there, obs)

        return obs.once(self._key(pred), prepare)

    def _key(self, pred: Prediction) -> tuple[object, ...]:
        # Not by settings of the noise, which a stage may change, but by what the points depend on.
        return type(self), self._chosen(), pred.body

    def _chosen(self) -> object:
        """What else the points depend on."""
        return None


class SurfacePoints(SurfaceTerm):
    """Reprojection error of points of the body's surface (or their distance in space), of `Observation.surface`.

    For correspondences of any kind: pixels matched to vertices by an embedding, markers on a suit, points of a scan.
    """

    name = "surface"
    requires = frozenset({"surface"})

    def correspondences(self, pred: Prediction, obs: Observation) -> Correspondences:
        seen = obs.surface
        assert seen is not None  # checked by Problem: `requires`
        if seen.body != pred.body.name:
            raise ValueError(
                f"objective {self.name}: points on body {seen.body!r}, but the fit is of {pred.body.name!r}"
            )
        faces = len(pred.body.faces)
        if seen.face.numel() and not (0 <= int(seen.face.min()) and int(seen.face.max()) < faces):
            raise ValueError(
                f"objective {self.name}: points on faces {int(seen.face.min())} to {int(seen.face.max())}, "
                f"expected 0 to {faces - 1}"
            )
        return seen


class IUV(SurfaceTerm):
    """Every pixel whose place on the body is known lies where that place projects to (DensePose, section 2).

    Dense maps are read at `count` pixels of the person, evenly spread; annotated points as they are. The pixel was
    seen, so its place is visible, and nothing needs to be rendered. Charts must be those of the body: official
    DensePose U, V fit SMPL with `fitkit.body.charts.with_densepose_charts`, the open body has charts of its own; of
    an IUV map in other charts the parts can be used (`Parts`).

    Args:
        count: most pixels of a dense map.
        sigma: noise as a fraction of the person's size.
        kernel: in units of sigma.
    """

    name = "iuv"
    requires = frozenset({"iuv"})

    def __init__(self, count: int = 200, sigma: float = 0.02, kernel: Kernel | None = GMoF(5.0)) -> None:
        if isinstance(count, bool) or not (isinstance(count, int) and count >= 1):
            raise ValueError(f"objective {self.name}: count is {count}, expected a whole number from 1 on")
        super().__init__(sigma, kernel)
        self.count = count

    def correspondences(self, pred: Prediction, obs: Observation) -> Correspondences:
        assert obs.iuv is not None  # checked by Problem: `requires`
        charts, seen = Charts.of(pred.body), obs.iuv.points(self.count)
        if seen.charts != charts.name:
            raise ValueError(
                f"objective {self.name}: U, V in the charts of {seen.charts!r}, but body {pred.body.name!r} has those "
                f"of {charts.name!r}; use Parts, which needs no U and V, or a body with these charts"
            )
        place = charts.decode(seen.chart, seen.uv)
        confidence = seen.confidence * place.valid
        return Correspondences(place.face, place.barycentric, seen.xy, confidence, pred.body.name)

    def _chosen(self) -> object:
        return self.count


def _extent(target: Tensor, there: Tensor, obs: Observation) -> Tensor:
    """`(B, 1, 1)`: size of a person in pixels, at least 1; 1 for points in space."""
    if target.shape[-1] == 3:
        return torch.ones_like(target[:, :1, :1])
    size = extent(target, there)
    if obs.box is not None:  # a few points, or those of one limb, span little of a person
        size = torch.maximum(size, obs.box[:, 2:].amax(1).to(size))
    return size[:, None, None]

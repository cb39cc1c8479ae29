"""Soft rasterisation: silhouettes and attribute pictures whose every pixel has a gradient to the vertices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows
from fitkit.camera import Camera
from fitkit.render.backends import get_backend
from fitkit.render.scene import FARTHEST, FaceLabels, Scene


@dataclass(frozen=True)
class SoftImages(Rows):
    """Pictures of B bodies, each alone in its picture.

    Attributes:
        silhouette: `(B, H, W)` in 0..1.
        attributes: `(B, H, W, C)`, C = 0 where none were asked for; not multiplied by the silhouette, and 0 where no
            face is within reach.
    """

    silhouette: Float[Tensor, "B H W"]
    attributes: Float[Tensor, "B H W C"]

    def __len__(self) -> int:
        return len(self.silhouette)


def soft_rasterize(
    vertices: Tensor,
    faces: Tensor,
    camera: Camera,
    attributes: Tensor | FaceLabels | None = None,
    softness: float = 0.6,
    depth_softness: float = 0.01,
    near: float = 0.05,
    backend: str | None = None,
) -> SoftImages:
    """Draw every body softly, as SoftRas does (Liu et al., ICCV 2019, eq. 1-4), over all faces.

    With d the distance in pixels from a pixel's centre to the outline of face j on the screen, s the softness, and
    z the depth of the face's point nearest to the pixel in clipped, perspective-correct barycentric weights b:

        D_j = sigmoid(+-d^2 / s^2), + inside, - outside; faces with D_j < 1e-4 are out of reach
        silhouette = 1 - prod_j (1 - D_j)
        w_j = D_j exp((z_least - z_j) / depth_softness)
        attributes = sum_j w_j c_j / (sum_j w_j + 1e-10), c_j = the corners' attributes weighed by b

    The centre of the pixel in column `i` and row `j` is at `(i + 0.5, j + 0.5)`. Left out are faces that reach nearer
    than `near`, that have a corner that is not finite (or 1000 km away, or 10^7 pixels outside), and that are seen so
    exactly from the side that they are less than 10^-4 pixels high: their derivatives are rounding, and pytorch3d's
    explode there. Both sides of a face are seen. Gradients flow to the vertices, to the attributes and to the camera;
    values and gradients are finite for any vertices. With "warp" there are first derivatives only.

    This is pytorch3d's `SoftSilhouetteShader` and `softmax_rgb_blend` on a black background with, for pictures
    whose shorter side has S pixels, `sigma = (2 softness / S)^2`, `blur_radius = log(1 / 1e-4 - 1) sigma`,
    `gamma = depth_softness / (zfar - znear)`, `perspective_correct=True`, `clip_barycentric_coords=True`, and
    `faces_per_pixel` large enough: hundreds of a body's faces are within reach of one pixel, and those that pytorch3d
    leaves out make holes.

    Back ends: "warp" computes in float32 with the delicate parts in float64, within 1e-4 of float64 for bodies
    (attributes within 5e-4 where a face spans metres of depth); "torch" in the dtype of the vertices; "pytorch3d" keeps
    the nearest 50 faces of a pixel; "nvdiffrast" sees only the nearest face and softens edges over one pixel, so that
    `softness` and `depth_softness` have no effect.

    Args:
        vertices: `(B, V, 3)` metres, camera frame (x right, y down, z forward), float32 or float64.
        faces: `(F, 3)`, shared by all bodies.
        camera: B rows; its width and height are those of the pictures.
        attributes: `(V, C)` or `(B, V, C)` at the vertices, or the faces' labels (one channel each), or None.
        softness: of the outlines, pixels.
        depth_softness: metres by which a surface must lie behind another to weigh 1/e of it.
        near: metres, at least 0.05, where `Camera.project` ends.
        backend: one of `backend_names()`; None takes Warp where it is installed, and plain torch elsewhere.

    Returns:
        The pictures, in the dtype of the vertices.

    Raises:
        ValueError: a shape, a dtype or a number is wrong, or there is no such back end. Whether faces name vertices
            that exist is checked on the CPU only: a GPU would have to be waited for.
        RuntimeError: the back end is not installed.

    >>> from fitkit.camera import Camera
    >>> triangle = torch.tensor([[[-1.0, -1.0, 2.0], [1.0, -1.0, 2.0], [0.0, 1.0, 2.0]]])
    >>> soft_rasterize(triangle, torch.tensor([[0, 1, 2]]), Camera.from_size(8, 6), backend="torch").silhouette.shape
    torch.Size([1, 6, 8])
    """
    _check_numbers(softness=softness, depth_softness=depth_softness)
    if softness < 1e-3:
        raise ValueError(f"softness must be at least 0.001 pixels, got {softness}")
    if not 0.05 <= near < FARTHEST:
        raise ValueError(f"near must be at least 0.05 m, got {near}")
    _check_mesh(vertices, faces, camera)
    labels, values = None, None
    if isinstance(attributes, FaceLabels):
        labels = _checked_labels(attributes, faces)
    elif attributes is not None:
        if not isinstance(attributes, Tensor):
            raise ValueError(f"attributes must be a tensor or FaceLabels, got {type(attributes).__name__}")
        values = _checked_values(attributes, vertices)
    scene = Scene(
        _corners(vertices, camera, near),
        faces,
        values,
        labels,
        camera.width,
        camera.height,
        float(softness),
        float(depth_softness),
        float(near),
        vertices.dtype,
    )
    silhouette, colors = get_backend(backend, vertices.device)(scene)
    return SoftImages(silhouette.to(vertices.dtype), colors.to(vertices.dtype))


def _corners(vertices: Tensor, camera: Camera, near: float) -> Tensor:
    """Pixels and depth of every vertex; one that cannot be drawn lies at the origin, and gets no gradient."""
    usable = (vertices.abs() < FARTHEST).all(-1, keepdim=True)
    points = torch.where(usable, vertices, torch.zeros_like(vertices)).to(torch.float64)
    return torch.cat([camera.to(torch.float64).project(points), points[..., 2:]], -1)


def _checked_values(attributes: Tensor, vertices: Tensor) -> Tensor:
    """(B, V, C) from what is the same for all bodies or not."""
    pictures, count = vertices.shape[:2]
    if attributes.ndim not in (2, 3) or not attributes.is_floating_point():
        shape = tuple(attributes.shape)
        raise ValueError(
            f"attributes must be floats of shape (V, C) or (B, V, C), got {shape} {attributes.dtype}"
        )
    if attributes.device != vertices.device:
        raise ValueError(f"attributes on {attributes.device}, but the vertices are on {vertices.device}")
    values = attributes if attributes.ndim == 3 else attributes.expand(pictures, *attributes.shape)
    if tuple(values.shape[:2]) != (pictures, count):
        raise ValueError(
            f"attributes of shape {tuple(attributes.shape)} for vertices {tuple(vertices.shape)}"
        )
    return values


def _check_numbers(**pixels_or_metres: float) -> None:
    for name, value in pixels_or_metres.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _check_mesh(vertices: Tensor, faces: Tensor, camera: Camera) -> None:
    if vertices.ndim != 3 or vertices.shape[-1] != 3 or vertices.dtype not in (torch.float32, torch.float64):
        shape = tuple(vertices.shape)
        raise ValueError(
            f"vertices must be float32 or float64 of shape (B, V, 3), got {shape} {vertices.dtype}"
        )
    if vertices.shape[1] == 0:
        raise ValueError("vertices must be at least one per body, got none")
    if faces.ndim != 2 or faces.shape[-1] != 3 or faces.is_floating_point() or faces.dtype == torch.bool:
        raise ValueError(f"faces must be integers of shape (F, 3), got {tuple(faces.shape)} {faces.dtype}")
    if len(camera) != len(vertices):
        raise ValueError(
            f"camera of {len(camera)} rows for {len(vertices)} bodies: expected as many (Camera.expand)"
        )
    if camera.width < 1 or camera.height < 1:
        raise ValueError(f"camera of {camera.width} x {camera.height} pixels, expected at least 1 x 1")
    for name, tensor in (("faces", faces), ("camera.focal", camera.focal), ("camera.center", camera.center)):
        if tensor.device != vertices.device:
            raise ValueError(f"{name} on {tensor.device}, but the vertices are on {vertices.device}")
    if vertices.device.type != "cpu":
        return
    count = vertices.shape[1]
    if faces.numel() and not (0 <= int(faces.min()) and int(faces.max()) < count):
        raise ValueError(
            f"faces must name vertices 0..{count - 1}, got {int(faces.min())}..{int(faces.max())}"
        )
    if not bool(torch.isfinite(camera.focal).all() and torch.isfinite(camera.center).all()):
        raise ValueError("camera: focal and center must be finite pixels")


def _checked_labels(labels: FaceLabels, faces: Tensor) -> FaceLabels:
    if len(labels.labels) != len(faces):
        raise ValueError(f"labels of {len(labels.labels)} faces for a mesh of {len(faces)}")
    if labels.labels.device != faces.device:
        raise ValueError(f"labels on {labels.labels.device}, but the faces are on {faces.device}")
    return labels

"""Photos of any kind -> upright 8-bit RGB, and the focal length the camera wrote down."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import PIL.Image
    import torch

MAX_PIXELS = 200_000_000
"""Largest photo accepted, in pixels (width x height): a small file can claim a picture that fills the memory."""

DIAGONAL_35MM = 43.27  # millimetres, the diagonal of the 36 x 24 mm frame

_FOCAL_LENGTH, _FOCAL_LENGTH_35MM = 0x920A, 0xA405
_PIXEL_X_DIMENSION, _PLANE_X_RESOLUTION, _PLANE_RESOLUTION_UNIT = 0xA002, 0xA20E, 0xA210
_EXIF_IFD = 0x8769
_UNIT_MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}

_open_lock = threading.Lock()


@dataclass(frozen=True)
class Photo:
    """One upright photo.

    pixels: (H, W, 3) uint8 RGB, contiguous. focal: pixels of this photo, from EXIF, or None when unknown.
    source: the path, or what kind of object it came from; used in messages.
    """

    pixels: np.ndarray
    focal: float | None
    source: str

    @property
    def height(self) -> int:
        """Rows, in pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns, in pixels."""
        return int(self.pixels.shape[1])


def load_image(source: str | Path | np.ndarray | PIL.Image.Image | torch.Tensor | Photo) -> Photo:
    """Read a photo from a file, an array or a Pillow image as upright 8-bit RGB.

    Files and Pillow images: the EXIF rotation is applied, animations give their first frame, transparency is
    composited on white, 16-bit pictures are scaled (not clipped) to 8 bits, CMYK and palettes are converted.
    Arrays are RGB, never BGR: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of uint8, uint16 or floats in [0, 1].
    Torch tensors: (H, W, 3) uint8 only.

    Focal length in pixels: `FocalLengthIn35mmFilm / 43.27 mm * diagonal of the photo in pixels`; without that
    tag, `FocalLength * FocalPlaneXResolution`, scaled when the photo was resized. A cropped photo keeps the
    tags of the uncropped one, which nothing in the file gives away.

    Errors: FileNotFoundError, IsADirectoryError, and ValueError for anything that is not a readable photo of
    at most `MAX_PIXELS` pixels; each names the source, what came and what was expected.
    """
    if isinstance(source, Photo):
        return source
    if isinstance(source, (str, Path)):
        return _from_file(source)
    if isinstance(source, np.ndarray):
        name = "array"
        return Photo(_from_array(source, name), None, name)
    module = type(source).__module__.split(".")[0]
    if module == "torch":
        return Photo(_from_tensor(source), None, "torch tensor")
    if module == "PIL" or hasattr(source, "getexif"):
        return _from_pillow(source, str(getattr(source, "filename", "") or "Pillow image"))
    raise ValueError(
        f"image: got {type(source).__name__}; expected a path, an RGB array (H, W, 3) or a Pillow image"
    )


def _from_file(source: str | Path) -> Photo:
    from PIL import Image

    if str(source) == "":
        raise ValueError("image: got an empty path; expected the path of a photo")
    path = Path(source).expanduser()
    if not path.exists():
        hint = " (an address on the web: download it first)" if "://" in str(source) else ""
        raise FileNotFoundError(f"image {str(source)!r}: no such file{hint}")
    if path.is_dir():
        raise IsADirectoryError(f"image {str(source)!r}: is a folder; expected a photo")
    if not path.is_file():
        raise ValueError(f"image {str(source)!r}: is not a regular file; expected a photo")
    if path.stat().st_size == 0:
        raise ValueError(f"image {str(source)!r}: the file is empty (0 bytes); expected a photo")
    name = str(source)
    try:
        # Pillow's own limit is a global that warns at 89 and fails at 179 million pixels; ours is checked next.
        with _open_lock:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # broken headers make Pillow's plugins raise almost anything
        raise ValueError(_not_readable(name, path, error)) from error
    with image:
        return _from_pillow(image, name)


def _not_readable(name: str, path: Path, error: Exception) -> str:
    hint = " (HEIC photos need `pip install pillow-heif` and `pillow_heif.register_heif_opener()`)"
    return (
        f"image {name!r}: not a photo that Pillow can read; expected JPEG, PNG, WebP, TIFF ..."
        f"{hint if path.suffix.lower() in ('.heic', '.heif') else ''} [{type(error).__name__}: {error}]"
    )


def _from_pillow(image: Any, name: str) -> Photo:
    from PIL import ImageOps

    width, height = image.size
    _check_size(width, height, name)
    try:
        image.seek(0)  # of an animation; loads the header of the first frame only
        image.load()
        focal = _exif_focal(image)
        pixels = _to_rgb(ImageOps.exif_transpose(image), name)
    except MemoryError:
        raise
    except Exception as error:  # of a damaged file: OSError, SyntaxError, struct.error, zlib.error ...
        if isinstance(error, ValueError) and str(error).startswith("image "):
            raise
        raise ValueError(
            f"image {name!r}: damaged or cut off, decoding failed; expected a complete photo "
            f"[{type(error).__name__}: {error}]"
        ) from error
    return Photo(pixels, focal, name)


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"image {name!r}: size {width} x {height}; expected at least 1 x 1 pixel")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"image {name!r}: {width} x {height} = {width * height / 1e6:.0f} million pixels; expected at most "
            f"{MAX_PIXELS / 1e6:.0f} million (shrink it, or raise fitkit.observe.image.MAX_PIXELS)"
        )


def _to_rgb(image: Any, name: str) -> np.ndarray:
    """Any Pillow mode -> (H, W, 3) uint8; wide modes are scaled by hand because Pillow clips them."""
    mode = image.mode
    if mode == "F" or mode == "I" or mode.startswith("I;"):
        values = np.asarray(image)
        if mode != "F":
            low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
            if low < 0 or high > 65535:
                raise ValueError(
                    f"image {name!r}: integer values {low} ... {high} (mode {mode}); expected 8 or 16 bits"
                )
            values = values.astype(np.uint16)
        return _from_array(values, name)
    if image.has_transparency_data:
        if mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
        return _on_white(np.asarray(image.convert("RGBA")))
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.uint16)
    colour = rgba[..., :3].astype(np.uint16)
    mixed = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    return np.ascontiguousarray(mixed.astype(np.uint8))


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    expected = "expected RGB of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if channels not in (1, 3, 4):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last: use np.moveaxis(image, 0, -1)"
        elif array.ndim == 4:
            hint = "; one photo at a time"
        raise ValueError(f"image {name!r}: shape {tuple(array.shape)}; {expected}{hint}")
    _check_size(array.shape[1], array.shape[0], name)
    eight = _to_eight_bits(array, name)
    if channels == 4:
        return _on_white(eight)
    if channels == 1:
        eight = np.repeat(eight.reshape(*eight.shape[:2], 1), 3, axis=2)
    return np.array(eight, order="C")  # a copy: the caller may go on drawing into theirs


def _to_eight_bits(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        # The nearest 8-bit value: 65535 / 255 = 257.
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also false for NaN
            hint = "; convert 0 ... 255 with image.astype(np.uint8)" if 1 < high <= 255 and low >= 0 else ""
            raise ValueError(
                f"image {name!r}: {array.dtype} values from {low:g} to {high:g}; expected floats in [0, 1]{hint}"
            )
        return np.rint(np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8)
    raise ValueError(f"image {name!r}: dtype {array.dtype}; expected uint8, uint16 or floats in [0, 1]")


def _from_tensor(tensor: Any) -> np.ndarray:
    if str(tensor.dtype) != "torch.uint8" or tensor.ndim != 3 or tensor.shape[-1] != 3:
        hint = "; use tensor.permute(1, 2, 0)" if tensor.ndim == 3 and tensor.shape[0] == 3 else ""
        raise ValueError(
            f"image 'torch tensor': shape {tuple(tensor.shape)} of {tensor.dtype}; expected (H, W, 3) of "
            f"torch.uint8{hint}"
        )
    return _from_array(tensor.detach().cpu().numpy(), "torch tensor")


def _exif_focal(image: Any) -> float | None:
    """Focal length in pixels of the stored picture, or None when the tags are absent, zero or absurd."""
    try:
        tags = image.getexif().get_ifd(_EXIF_IFD)
    except Exception:  # damaged EXIF is no reason to refuse a photo whose pixels are fine
        return None
    width, height = image.size
    diagonal = math.hypot(width, height)
    focal = _number(tags.get(_FOCAL_LENGTH_35MM)) / DIAGONAL_35MM * diagonal
    if not focal > 0:
        millimetres = _UNIT_MILLIMETRES.get(int(_number(tags.get(_PLANE_RESOLUTION_UNIT)) or 2), 25.4)
        per_millimetre = _number(tags.get(_PLANE_X_RESOLUTION)) / millimetres
        taken = _number(tags.get(_PIXEL_X_DIMENSION))
        resized = width / taken if taken > 0 else 1.0
        focal = _number(tags.get(_FOCAL_LENGTH)) * per_millimetre * resized
    # From 9 mm (35 mm equivalent; anything wider is a fisheye, no pinhole) to 4 m: outside, the tags are wrong.
    return float(focal) if 0.2 * diagonal < focal < 100 * diagonal else None


def _number(tag: Any) -> float:
    """A tag as a finite float; 0 when missing, malformed or a division by zero."""
    try:
        value = float(tag)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return value if math.isfinite(value) else 0.0

"""Photos of every kind in, upright 8-bit RGB out; everything else is refused with a message that helps."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fitkit.observe import image as image_module
from fitkit.observe import load_image

RED = (220, 30, 40)


def _picture(width: int = 40, height: int = 24) -> np.ndarray:
    """A smooth picture, so that JPEG hardly changes it, without any symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, (x + y) * 2], -1).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp"])
def test_common_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(_picture()).save(path, quality=95)
    for source in (path, str(path)):
        photo = load_image(source)
        assert (photo.width, photo.height, photo.focal) == (40, 24, None)
        assert photo.pixels.dtype == np.uint8
        assert photo.pixels.flags.c_contiguous
        assert np.abs(photo.pixels.astype(int) - _picture()).mean() < 6
        assert photo.source == str(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(_picture())
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that store it turned
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    np.testing.assert_array_equal(load_image(path).pixels, _picture())
    opened = Image.open(path)
    np.testing.assert_array_equal(load_image(opened).pixels, _picture())


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({0xA405: 26}, 26 / 43.27 * 50.0),
        ({0xA405: 0, 0x920A: 4.0, 0xA20E: 1000.0, 0xA210: 3}, 4 * 1000 / 10),
        # the same lens, but the photo was taken twice as wide as it now is
        ({0x920A: 4.0, 0xA20E: 1000.0, 0xA210: 3, 0xA002: 80}, 4 * 1000 / 10 / 2),
        ({0x920A: 4.0}, None),
        ({0xA405: 1}, None),
        ({}, None),
    ],
)
def test_focal_length_from_exif(tmp_path: Path, tags: dict[int, float], expected: float | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: the diagonal is the same
    exif.get_ifd(0x8769).update(tags)
    path = tmp_path / "photo.jpg"
    Image.fromarray(_picture(40, 30)).save(path, exif=exif)
    photo = load_image(path)
    assert (photo.width, photo.height) == (30, 40)
    assert photo.focal == (None if expected is None else pytest.approx(expected))


def test_modes_of_pillow() -> None:
    expected = np.full((5, 7, 3), RED, np.uint8)
    flat = Image.fromarray(expected)
    for mode in ("RGB", "RGBA", "CMYK", "YCbCr", "HSV"):
        assert np.abs(load_image(flat.convert(mode)).pixels.astype(int) - expected).max() <= 4, mode
    assert (load_image(flat.quantize(4)).pixels == expected).all()
    grey = Image.new("L", (7, 5), 77)
    for mode in ("L", "LA"):
        assert (load_image(grey.convert(mode)).pixels == 77).all(), mode
    assert (load_image(Image.new("1", (7, 5), 1)).pixels == 255).all()
    assert (load_image(Image.new("F", (7, 5), 0.5)).pixels == 128).all()


def test_transparency_is_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 3), (*RED, 0))
    clear.putpixel((0, 0), (*RED, 255))
    path = tmp_path / "clear.png"
    clear.save(path)
    palette = tmp_path / "palette.png"
    clear.quantize(4).save(palette)
    for source in (path, palette, clear, np.asarray(clear), clear.convert("RGBa")):
        pixels = load_image(source).pixels
        assert tuple(pixels[0, 0]) == RED
        assert (pixels[1:] == 255).all()


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 12 * 9).astype(np.uint16).reshape(9, 12)
    expected = np.rint(wide / 257)
    path = tmp_path / "wide.png"
    Image.fromarray(wide).save(path)
    for source in (path, wide, wide.astype(">u2")):
        np.testing.assert_array_equal(load_image(source).pixels[..., 1], expected)
    with pytest.raises(ValueError, match="8 or 16 bits"):
        load_image(Image.fromarray(np.full((2, 2), 70000, np.int32)))


def test_animations_give_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, (0, 0, 255))]
    for suffix in ("gif", "webp", "png", "tiff"):
        path = tmp_path / f"moving.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert tuple(load_image(path).pixels[3, 3]) == RED, suffix


def test_arrays() -> None:
    rgb = _picture()
    for source in (rgb, rgb / 255, (rgb / 255).astype(np.float32), torch.from_numpy(rgb), rgb[::-1][::-1]):
        np.testing.assert_array_equal(load_image(source).pixels, rgb)
    grey = rgb[..., 0]
    for flat in (grey, grey[..., None]):
        np.testing.assert_array_equal(load_image(flat).pixels, np.repeat(grey[..., None], 3, 2))
    assert load_image(np.zeros((1, 1), np.uint8)).pixels.shape == (1, 1, 3)
    photo = load_image(rgb)
    before = photo.pixels.copy()
    rgb[:] = 0  # the caller's array is not the photo's
    np.testing.assert_array_equal(photo.pixels, before)
    assert load_image(photo) is photo


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "at least 1 x 1"),
        (np.zeros((5, 5, 2), np.uint8), r"\(5, 5, 2\)"),
        (np.zeros((3, 50, 40), np.uint8), "channels come last"),
        (np.zeros((1, 5, 5, 3), np.uint8), "one photo at a time"),
        (np.zeros(7, np.uint8), r"\(7,\)"),
        (np.zeros((5, 5, 3), np.int64), "int64"),
        (np.zeros((5, 5, 3), bool), "bool"),
        (np.zeros((5, 5, 3), complex), "complex"),
        (np.full((5, 5, 3), "a"), "expected uint8"),
        (np.full((5, 5, 3), 200.0), r"\[0, 1\].*astype"),
        (np.full((5, 5, 3), np.nan), "nan"),
        (np.full((5, 5, 3), -1.0), r"\[0, 1\]"),
        (torch.zeros(3, 5, 4, dtype=torch.uint8), "permute"),
        (torch.zeros(5, 4, 3), "float32"),
        (Image.new("RGB", (0, 0)), "0 x 0"),
        (None, "NoneType"),
        (17, "int"),
        ("", "empty path"),
    ],
)
def test_refused_objects(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(source)  # type: ignore[arg-type]


def test_refused_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        load_image(tmp_path / "nowhere.jpg")
    with pytest.raises(FileNotFoundError, match="download"):
        load_image("https://example.org/photo.jpg")
    with pytest.raises(IsADirectoryError, match="folder"):
        load_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"empty\.jpg.*0 bytes"):
        load_image(tmp_path / "empty.jpg")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text\.png.*expected JPEG"):
        load_image(tmp_path / "text.png")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(ValueError, match="pillow-heif"):
        load_image(tmp_path / "phone.heic")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "gif", "bmp"])
def test_cut_off_and_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for keep in (0.02, 0.3, 0.8):
        path.write_bytes(whole[: int(len(whole) * keep)])
        with pytest.raises(ValueError, match=r"photo\."):
            load_image(path)
    messages: list[str] = []
    for seed in range(20):  # damage may pass unnoticed in the pixels, but nothing else may come out
        damaged = np.frombuffer(whole, np.uint8).copy()
        generator = np.random.default_rng(seed)
        where = generator.integers(0, min(len(damaged), 400), 8)
        damaged[where] = generator.integers(0, 256, 8)
        path.write_bytes(damaged.tobytes())
        try:
            load_image(path)
        except ValueError as error:
            messages.append(str(error))
    assert all("photo." in message for message in messages)


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 20_000, 10_001)  # the header's width and height, then its checksum
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match=r"bomb\.png.*200 million"):
        load_image(path)
    assert Image.MAX_IMAGE_PIXELS == limit
    monkeypatch.setattr(image_module, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="20 x 10"):
        load_image(np.zeros((10, 20, 3), np.uint8))

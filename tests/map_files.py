"""Small map files that the tests of their readers share: two people in a photo of 40 x 30 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 30)
"""Of the photo, width and height."""
FACE, LEFT_ARM, PANTS = 13, 14, 9
"""Labels of LIP."""


def label_map() -> np.ndarray:
    """Two people side by side: face over trousers, the second with a left arm."""
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[5:10, 5:12] = labels[5:10, 22:30] = FACE
    labels[10:25, 5:12] = labels[10:25, 22:30] = PANTS
    labels[10:14, 30:34] = LEFT_ARM
    return labels


def instance_map() -> np.ndarray:
    owner = np.zeros(SIZE[::-1], np.uint8)
    owner[5:25, 5:12], owner[5:25, 22:34] = 3, 7
    return owner


def save(path: Path, array: np.ndarray) -> Path:
    """A picture, with a colourful palette where it is called so, or an array file."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, array)
    else:
        image = Image.fromarray(array)
        if path.stem == "palette":
            image.putpalette([(37 * k) % 256 for k in range(768)])
        image.save(path)
    return path

"""A small picture of what a model makes of an image while it learns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from segdesk.io.atomic import atomic_write_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

#: Longest side of the image in a picture, in pixels.
LONGEST = 320
OPACITY = 0.45


def colour_image(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return a scaled image (Y, X, C) in 0..1 as RGB."""
    channels = image.shape[-1]
    chosen = image[..., :3] if channels >= 3 else image[..., [0, 0, 0]]
    return (np.clip(chosen, 0, 1) * 255).astype(np.uint8)


def with_labels(
    picture: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], colors: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """Lay the classes' colours over an RGB picture; the first class is left clear."""
    table = np.zeros((256, 3), np.float32)
    for value, color in enumerate(colors):
        table[value] = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    is_seen = ((labels > 0) & (labels < len(colors)))[..., None]
    mixed = picture * (1 - OPACITY) + table[labels] * OPACITY
    return np.where(is_seen, mixed, picture).astype(np.uint8)


def write_preview(
    path: Path,
    image: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    colors: Sequence[str],
) -> None:
    """Write image and image with mask, side by side, as PNG.

    Parameters
    ----------
    image
        float32 (Y, X, C) in 0..1.
    labels
        uint8 (Y, X).
    """
    step = max(1, -(-max(labels.shape) // LONGEST))
    small = colour_image(image[::step, ::step])
    pair = np.concatenate((small, with_labels(small, labels[::step, ::step], colors)), 1)
    write_png(path, pair)


def write_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write a picture; a reader never sees half of it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())

"""Images as arrays with channels last, their thumbnails and hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from segdesk.core.errors import InputError
from segdesk.io.atomic import explain_os_errors
from segdesk.io.rasters import IMAGE_SUFFIXES, Raster, read_raster

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageData",
    "ImageInfo",
    "hash_file",
    "probe_image",
    "read_image",
    "thumbnail",
]


#: The largest Zarr that is read whole, in bytes of memory.
MOST_BYTES: Final = 2 * 2**30


@dataclass(frozen=True, slots=True)
class ImageData:
    """An image in memory.

    Attributes
    ----------
    data
        (Y, X, C) or (Z, Y, X, C), C at least 1, values as on disk; alpha
        dropped, float64 as float32, 1-bit as uint8 0 and 1.
    axes
        ``YXC`` or ``ZYXC``.
    dtype
        numpy name of the pixel type on disk.
    """

    data: npt.NDArray[Any]
    axes: str
    dtype: str

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """(Y, X) or (Z, Y, X)."""
        return self.data.shape[:-1]

    @property
    def channels(self) -> int:
        """Number of channels, alpha not counted."""
        return int(self.data.shape[-1])


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a :class:`~segdesk.core.sample.Sample` keeps of an image.

    Attributes
    ----------
    shape
        (Y, X) or (Z, Y, X).
    channels
        Number of channels, alpha not counted.
    dtype
        numpy name of the pixel type on disk.
    note
        What a user should know of it, in a sentence; empty as a rule.
    """

    shape: tuple[int, ...]
    channels: int
    dtype: str
    note: str = ""


def read_image(path: Path | str) -> ImageData:
    """Read PNG, JPEG, BMP, GIF (first frame), TIFF or OME-TIFF, or a Zarr's finest level.

    EXIF orientation is applied, a palette becomes RGB, and all axes of a TIFF
    besides Y, X and the channels are flattened into one stack axis.
    ``path`` may be an address of a Zarr; see :func:`segdesk.io.sources.open_source`.

    Raises
    ------
    InputError
        The file is missing, empty, damaged, not an image, of a kind SegDesk
        does not read, or holds complex numbers, NaN or infinity; or a Zarr is over
        2 GiB, which is to be read in pieces.
    """
    from segdesk.io import sources  # which read all but Zarr with this module

    if sources.is_zarr(path):
        return _read_zarr(path)
    path = Path(path)
    raster = read_raster(path)
    data = to_numbers(_colors(raster), path.name)
    return ImageData(data, "YXC" if data.ndim == 3 else "ZYXC", raster.dtype)


def probe_image(path: Path | str) -> ImageInfo:
    """Read an image whole, so that a damaged one is found now, and tell its form.

    Raises
    ------
    InputError
        As :func:`read_image`.
    """
    image = read_image(path)
    return ImageInfo(image.spatial_shape, image.channels, image.dtype)


def thumbnail(image: ImageData, size: int = 96) -> npt.NDArray[np.uint8]:
    """Make a small picture of the middle plane.

    Values are stretched from the 1st to the 99.8th percentile over all shown
    channels; grey is repeated, and of more than three channels the first
    three are shown.

    Returns
    -------
    numpy.ndarray
        uint8 (h, w, 3), the longer side at most ``size`` pixels.
    """
    plane = image.data[len(image.data) // 2] if image.data.ndim == 4 else image.data
    plane = plane[..., :3]
    # Two thousand pixels a side tell the percentiles and the look well enough.
    step = max(1, min(plane.shape[:2]) // 2000)
    plane = plane[::step, ::step].astype(np.float32)
    low, high = np.percentile(plane, (1, 99.8))
    stretched = np.clip((plane - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.uint8)
    if stretched.shape[-1] == 1:
        stretched = np.repeat(stretched, 3, axis=-1)
    elif stretched.shape[-1] == 2:
        stretched = np.pad(stretched, ((0, 0), (0, 0), (0, 1)))
    height, width = stretched.shape[:2]
    scale = min(1.0, size / max(height, width))
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(stretched).resize(target, Image.Resampling.BOX)
    return np.array(small, np.uint8)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the file's bytes, hexadecimal.

    Raises
    ------
    InputError
        The file is missing or may not be read.
    """
    path = Path(path)
    with explain_os_errors(path, reading=True), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _colors(raster: Raster) -> npt.NDArray[Any]:
    return raster.data if raster.palette is None else show_colors(raster.data, raster.palette)


def _read_zarr(address: Path | str) -> ImageData:
    from segdesk.io.sources import open_source

    with open_source(address) as source:
        if source.nbytes > MOST_BYTES:
            raise InputError(
                f"{source.name} is too large to be opened whole ({source.nbytes / 2**30:.1f} GiB); "
                f"predict it in pieces with 'segdesk predict {address} --out FOLDER'."
            )
        data = source.read_level()
        return ImageData(data, "YXC" if data.ndim == 3 else "ZYXC", source.dtype)


def show_colors(indices: npt.NDArray[Any], palette: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Turn palette indices, (..., 1), into their colours, uint8 (..., 3).

    An index beyond a short palette is black, as Pillow shows it.
    """
    table = np.zeros((max(len(palette), int(indices.max()) + 1), 3), np.uint8)
    table[: len(palette)] = palette
    return np.take(table, indices[..., 0], axis=0)


def to_numbers(data: npt.NDArray[Any], what: str) -> npt.NDArray[Any]:
    """Give values of a kind read from disk the one they have in memory.

    float64 and float16 become float32; ``what`` names the image, and the place in it,
    in the error.

    Raises
    ------
    InputError
        There are NaN or infinite values.
    """
    if data.dtype.kind != "f":
        return data
    with np.errstate(over="ignore"):
        data = data.astype(np.float32, copy=False)
    finite = np.isfinite(data)
    if finite.all():
        return data
    bad_pixels = ~finite.all(axis=-1)
    nans = int(np.isnan(data).any(axis=-1).sum())
    infinite = int(bad_pixels.sum()) - nans
    kinds = [f"{n} {kind}" for n, kind in ((nans, "NaN"), (infinite, "infinite")) if n]
    noun = "pixel" if nans + infinite == 1 else "pixels"
    raise InputError(
        f"{what} contains {' and '.join(kinds)} {noun}; "
        "replace them with numbers and save the file again."
    )

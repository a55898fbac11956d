"""Pixels out of PNG, JPEG, BMP, GIF and TIFF files, values as they are on disk."""

from __future__ import annotations

import io
import logging
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from segdesk.core.errors import InputError
from segdesk.io.atomic import explain_os_errors

Pixels = npt.NDArray[Any]

#: Names of the files SegDesk reads, lower case.
IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")

TIFF_SIGNATURES: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PLUGINS: Final[dict[bytes, type[ImageFile]]] = {
    b"\x89PNG": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
}

#: The last chunk of every PNG, with its checksum.
PNG_END: Final = b"IEND\xae\x42\x60\x82"

#: What decoders raise on damaged bytes.
DECODE_ERRORS: Final = (
    tifffile.TiffFileError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


#: An unnamed last axis this short holds channels: no image is so narrow.
MOST_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class Raster:
    """Pixels of one file.

    Attributes
    ----------
    data
        (Y, X, C) or (Z, Y, X, C), native byte order, alpha dropped; palette
        indices with C = 1 where there is a palette.
    dtype
        numpy name of the pixel type on disk, ``bool`` for 1-bit files.
    palette
        uint8 (N, 3) colours of the indices, None for files without.
    lossy
        Whether the file is a JPEG, so that its values are not to be trusted
        one by one.
    """

    data: Pixels
    dtype: str
    palette: npt.NDArray[np.uint8] | None = None
    lossy: bool = False

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """(Y, X) or (Z, Y, X)."""
        return self.data.shape[:-1]


def read_raster(path: Path) -> Raster:
    """Read a file by its content; the extension only tells whether to try.

    Raises
    ------
    InputError
        The file is missing, empty, damaged, of no pixels, of complex numbers,
        or of a kind SegDesk does not read.
    """
    path = Path(path)
    start = _signature(path)
    try:
        if start.startswith(TIFF_SIGNATURES):
            raster = _read_tiff(path)
        else:
            raster = _read_picture(path, start)
    except MemoryError as error:
        raise InputError(
            f"{path.name} does not fit into memory; cut it into smaller images."
        ) from error
    except DECODE_ERRORS as error:
        raise InputError(
            f"{path.name} is damaged or cut short and cannot be read; "
            "copy it again from where it came from."
        ) from error
    if raster.data.size == 0:
        raise InputError(f"{path.name} holds no pixels; export it again.")
    if raster.data.dtype.kind not in "uif":
        raise InputError(
            f"{path.name} holds {raster.dtype} values; save it as whole or real numbers."
        )
    return raster


def _signature(path: Path) -> bytes:
    if path.suffix.lower() not in IMAGE_SUFFIXES and not path.is_dir():
        raise InputError(
            f"{path.name} is not of a kind SegDesk reads ({', '.join(IMAGE_SUFFIXES)}); "
            "convert it to one of these."
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder; name an image file.")
    with explain_os_errors(path, reading=True), path.open("rb") as stream:
        start = stream.read(32)
    if not start:
        raise InputError(f"{path.name} is empty (0 bytes); copy it again from where it came from.")
    return start


def _read_picture(path: Path, start: bytes) -> Raster:
    plugin = _plugin(path, start)
    with explain_os_errors(path, reading=True):
        content = path.read_bytes()
    # Pillow takes a PNG whose pixels happen to be there although its end is cut off.
    if plugin is PngImageFile and PNG_END not in content:
        raise EOFError("the last chunk is missing")
    depth, kind = (start[24], start[25]) if plugin is PngImageFile else (8, 0)
    if depth == 16 and kind != 0:
        return _read_deep_png(content, kind)
    image = plugin(io.BytesIO(content))
    image.load()
    picture = ImageOps.exif_transpose(image)
    if picture.mode == "P":
        colors = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return Raster(np.array(picture)[..., None], "uint8", colors)
    if picture.mode in ("CMYK", "YCbCr", "LAB"):
        picture = picture.convert("RGB")
    elif picture.mode == "PA":
        picture = picture.convert("RGBA")
    data = np.array(picture)
    if depth in (2, 4) and kind == 0:
        data //= 255 // (2**depth - 1)  # Pillow stretched them to 0..255
    if picture.mode in ("RGBA", "RGBX", "LA"):
        data = data[..., :-1]
    return _raster(data.reshape((*data.shape[:2], -1)), lossy=plugin is JpegImageFile)


def _plugin(path: Path, start: bytes) -> type[ImageFile]:
    # The plug-ins themselves: Image.open refuses pictures above a size that
    # is global to the process, and microscopes make larger ones.
    for signature, plugin in PLUGINS.items():
        if start.startswith(signature):
            return plugin
    raise InputError(
        f"{path.name} is not an image although its name says so; export it again as "
        "PNG, JPEG or TIFF."
    )


def _read_deep_png(content: bytes, kind: int) -> Raster:
    """Read 16-bit colours, which Pillow would cut to 8 bits."""
    data = np.asarray(imagecodecs.png_decode(content))
    data = data.reshape((*data.shape[:2], -1))
    return _raster(data[..., :-1] if kind in (4, 6) else data)


def _read_tiff(path: Path) -> Raster:
    with tiff_complaints() as complaints, tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        layout = tiff_layout(path, series)
        data = np.asarray(series.asarray())
        is_jpeg = series.keyframe.compression == tifffile.COMPRESSION.JPEG
    if complaints:
        raise ValueError(complaints[0])
    if layout.alpha:
        data = np.delete(data, layout.alpha, layout.axes.index("S"))
    return _raster(_channels_last(data, layout.axes), layout.palette, lossy=is_jpeg)


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """What the axes and values of a TIFF series mean.

    Attributes
    ----------
    axes
        A letter per axis: Y, X, channels C and S (samples); all others are stacked.
    alpha
        Indices along S that hold transparency.
    palette
        uint8 (N, 3) colours of the indices, None for files without.
    """

    axes: str
    alpha: tuple[int, ...]
    palette: npt.NDArray[np.uint8] | None


def tiff_layout(path: Path, series: tifffile.TiffPageSeries) -> TiffLayout:
    """Check that a series is a whole image, and say how it lies.

    Raises
    ------
    InputError
        It refers to files that are not there, or has no Y or X.
    ValueError
        The file is cut short.
    """
    size = path.stat().st_size
    for frame in series.pages:
        if frame is None:
            raise InputError(
                f"{path.name} refers to other files that are not beside it; copy those too."
            )
        segments = zip(frame.dataoffsets, frame.databytecounts, strict=True)
        if any(offset + count > size for offset, count in segments):
            raise ValueError("pixels beyond the end of the file")
    page, axes, shape = series.keyframe, series.axes.upper(), series.shape
    if "Y" not in axes or "X" not in axes:
        raise InputError(f"{path.name} has axes {axes} and so is not an image; export it again.")
    if axes == "QYX" and shape[2] <= MOST_CHANNELS < min(shape[:2]):
        axes = "YXC"  # saved from a (Y, X, C) array without a word on its axes
    alpha: tuple[int, ...] = ()
    if "S" in axes:
        first = shape[axes.index("S")] - len(page.extrasamples)
        kinds = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
        alpha = tuple(first + i for i, s in enumerate(page.extrasamples) if s in kinds)
    colors = None
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        colors = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
    return TiffLayout(axes, alpha, colors)


def _channels_last(data: Pixels, axes: str) -> Pixels:
    """Put samples and channels last and flatten all that is not Y or X into a stack."""
    channels = [i for i, a in enumerate(axes) if a in "CS"]
    plane = [axes.index("Y"), axes.index("X")]
    stack = [i for i in range(len(axes)) if i not in (*channels, *plane)]
    data = data.transpose([*stack, *plane, *channels])
    size = data.shape[len(stack) : len(stack) + 2]
    planes = math.prod(data.shape[: len(stack)])
    depth = math.prod(data.shape[len(stack) + 2 :])
    return data.reshape((*size, depth) if planes == 1 else (planes, *size, depth))


def _raster(
    data: Pixels, palette: npt.NDArray[np.uint8] | None = None, *, lossy: bool = False
) -> Raster:
    name = data.dtype.name
    if data.dtype.kind == "b":
        # Pillow's true bytes are 255, and a cast alone may keep them.
        data = (data.view(np.uint8) != 0).astype(np.uint8)
    native = np.ascontiguousarray(data, data.dtype.newbyteorder("="))
    return Raster(native, name, palette, lossy)


@contextmanager
def tiff_complaints() -> Iterator[list[str]]:
    """Collect what tifffile logs as an error: it returns fewer pages instead of raising."""
    found: list[str] = []
    thread = threading.get_ident()

    def take(record: logging.LogRecord) -> bool:
        is_ours = record.thread == thread and record.levelno >= logging.ERROR
        if is_ours:
            found.append(record.getMessage())
        return not is_ours

    logger = logging.getLogger("tifffile")
    logger.addFilter(take)
    try:
        yield found
    finally:
        logger.removeFilter(take)

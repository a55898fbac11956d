"""Images by file name, folder or address, read a piece at a time where they can be large.

OME-Zarr 0.1 to 0.5 and plain Zarr arrays, in a folder, a ``.zip`` or at an address
that fsspec knows; large TIFF and OME-TIFF files; everything else is read whole by
:mod:`segdesk.io.images`, whose values and shapes these have too.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segdesk.core.address import Address, is_remote, local_path
from segdesk.core.errors import InputError
from segdesk.io.atomic import explain_os_errors
from segdesk.io.boxes import ImageSource, WholeImage
from segdesk.io.images import ImageData, ImageInfo, hash_file, read_image, thumbnail
from segdesk.io.tiffs import is_tiff, open_tiff

__all__ = [
    "ImageSource",
    "hash_source",
    "is_zarr",
    "level_shapes",
    "open_source",
    "probe_source",
    "read_thumbnail",
]

#: A TIFF of fewer decoded bytes than this is read whole.
WHOLE_BYTES: Final = 64 * 2**20

#: A thumbnail is made from a level of at most this many pixels a side, or from its middle.
THUMBNAIL_SOURCE: Final = 2048

METADATA_NAMES: Final = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


def open_source(address: Address, *, whole_below: int = WHOLE_BYTES) -> ImageSource:
    """Open an image for reading it in pieces.

    Parameters
    ----------
    address
        A file; an OME-Zarr or Zarr folder, or one zipped; or an address such as
        ``s3://bucket/image.ome.zarr`` (fsspec's package for it must be installed).
    whole_below
        TIFF files of fewer decoded bytes are read whole at once.

    Raises
    ------
    InputError
        There is no image, or none that SegDesk reads; of a file that is read whole,
        also what :func:`~segdesk.io.images.read_image` raises.
    """
    if is_zarr(address):
        from segdesk.io.zarrs import open_zarr  # takes half a second, and few need it

        return open_zarr(str(address) if is_remote(address) else local_path(address))
    if is_remote(address):
        raise InputError(
            f"{address} does not end in .zarr; of addresses SegDesk reads OME-Zarr and Zarr only."
        )
    path = local_path(address)
    source = open_tiff(path, whole_below) if is_tiff(path) else None
    return source or WholeImage(path.name, read_image(path))


def level_shapes(address: Address) -> list[tuple[int, ...]]:
    """Return the shape of each resolution level, finest first, without reading pixels.

    (Y, X) or (Z, Y, X), where Z may shrink as well; nothing of what is read whole.

    Raises
    ------
    InputError
        As :func:`open_source`.
    """
    if is_zarr(address):
        source: ImageSource | None = open_source(address)
    else:
        path = local_path(address)
        source = open_tiff(path, WHOLE_BYTES) if is_tiff(path) else None
    if source is None:
        return []
    with source:
        return [source.level_shape(level) for level in range(source.levels)]


def probe_source(address: Address) -> ImageInfo:
    """Tell an image's form, and find now what is wrong with it.

    What is not lazy is read whole for that; of a large image one box in the middle.
    The note says which share of a Zarr folder's chunks is missing.

    Raises
    ------
    InputError
        As :func:`open_source` and reading a box.
    """
    with open_source(address) as source:
        if source.is_lazy:
            _middle(source, level=0, side=1)
        note = ""
        if is_zarr(address) and not is_remote(address):
            from segdesk.io.zarrs import describe_gaps

            note = describe_gaps(local_path(address))
        return ImageInfo(source.shape, source.channels, source.dtype, note)


def read_thumbnail(address: Address, size: int = 96) -> npt.NDArray[np.uint8]:
    """Make a small picture of the middle plane; see :func:`~segdesk.io.images.thumbnail`.

    It is made from the coarsest level that is large enough; a very large level
    without coarser ones is shown by the 2048 x 2048 pixels in its middle.

    Raises
    ------
    InputError
        The image cannot be read.
    """
    with open_source(address) as source:
        fine = [n for n in range(source.levels) if max(source.level_shape(n)[-2:]) >= size]
        plane = _middle(source, level=max(fine, default=0), side=THUMBNAIL_SOURCE)
        return thumbnail(ImageData(plane, "YXC", source.dtype), size)


def _middle(source: ImageSource, level: int, side: int) -> npt.NDArray[Any]:
    """Read the middle of the middle plane, at most ``side`` pixels a side."""
    *stack, height, width = source.level_shape(level)
    high, wide = min(height, side), min(width, side)
    y, x = (height - high) // 2, (width - wide) // 2
    z = stack[0] // 2 if stack else 0
    return source.read(z, slice(y, y + high), slice(x, x + wide), level)


def is_zarr(address: Address) -> bool:
    """Tell whether this names a Zarr group or array, by its name or what lies in it."""
    text = str(address).rstrip("/\\")
    if text.endswith((".zarr", ".zarr.zip")):
        return True
    if is_remote(address):
        return ".zarr/" in text
    path = local_path(address)
    return path.is_dir() and any((path / name).is_file() for name in METADATA_NAMES)


def hash_source(address: Address) -> str:
    """Return a SHA-256 that changes with the image, hexadecimal.

    Of a file, its bytes. Of a Zarr folder, the names and bytes of its files in sorted
    order, without the masks in its ``labels`` folder. Of an address, its metadata
    documents and, where the server lists them, each chunk's name, size and entity tag, or
    else some of its pixels: a server without a listing hides changes in the others.

    Raises
    ------
    InputError
        The image is missing or may not be read; of pixels at an address, also what reading
        a box raises.
    """
    if is_remote(address):
        from segdesk.io.zarrs import hash_remote

        return hash_remote(str(address))
    path = local_path(address)
    if not path.is_dir():
        return hash_file(path)
    digest = hashlib.sha256()
    with explain_os_errors(path, reading=True):
        for file in _files_of(path):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while part := stream.read(2**20):
                    digest.update(part)
    return digest.hexdigest()


def _files_of(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name != "labels"]
        found += [Path(parent, name) for name in files]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())

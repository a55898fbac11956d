"""Label files: zlib TIFFs that any TIFF reader opens."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tifffile

from segdesk.core.errors import SegDeskError
from segdesk.io.atomic import atomic_stream, atomic_write_bytes, explain_os_errors
from segdesk.io.rasters import DECODE_ERRORS

Labels = npt.NDArray[np.uint8]

PLANES = ("labels", "supervision")

#: Labels of more pixels than this are written and read tile by tile: no second copy of them
#: is made, and a blank tile costs neither time nor memory.
WHOLE_PIXELS: Final = 16 * 2**20
TILE: Final = 512
#: Rows that are written at a time where an array is never whole in memory.
BAND: Final = 512
THREADS: Final = 2


def write_labels(path: Path, labels: Labels, supervision: Labels) -> None:
    """Write labels and supervision as the two channels of one TIFF, atomically.

    Parameters
    ----------
    path
        The file to write or replace.
    labels, supervision
        uint8, (Y, X) or (Z, Y, X), of one shape.

    Raises
    ------
    InputError
        The disk is full, read-only, or the user may not write there.
    ValueError
        The arrays differ in shape or are not uint8.
    """
    if labels.shape != supervision.shape or {labels.dtype, supervision.dtype} != {np.dtype("u1")}:
        raise ValueError("labels and supervision must be uint8 arrays of one shape")
    axes = {2: "CYX", 3: "CZYX"}[labels.ndim]
    about = {"axes": axes, "planes": list(PLANES)}
    if labels.size > WHOLE_PIXELS:
        _write_tiles(path, (labels, supervision), about)
    else:
        _write(path, np.stack((labels, supervision)), about)


def read_labels(path: Path) -> tuple[Labels, Labels]:
    """Read what :func:`write_labels` wrote.

    Returns
    -------
    labels, supervision
        uint8, (Y, X) or (Z, Y, X); yours to write to.

    Raises
    ------
    SegDeskError
        The file is missing or damaged.
    """
    large = _read_tiles(path)
    if large is not None:
        return large
    stack = _read(path)
    if stack.dtype != np.uint8 or stack.ndim not in (3, 4) or len(stack) != len(PLANES):
        raise _damaged(path)
    return stack[0].copy(), stack[1].copy()


def write_plane(path: Path, array: npt.NDArray[Any]) -> None:
    """Write one array, (Y, X) or (Z, Y, X), uint8 or float32, atomically.

    Raises
    ------
    InputError
        The disk is full, read-only, or the user may not write there.
    """
    _write(path, array, {"axes": {2: "YX", 3: "ZYX"}[array.ndim]})


def write_bands(
    path: Path, shape: tuple[int, ...], dtype: str, bands: Iterator[npt.NDArray[Any]]
) -> None:
    """Write an array that is never whole in memory, as :func:`write_plane` does.

    Parameters
    ----------
    shape
        (Y, X) or (Z, Y, X).
    dtype
        uint8 or float32.
    bands
        The array from top to bottom, plane after plane: (:data:`BAND`, X), at the end of
        each plane what is left.

    Raises
    ------
    InputError
        As :func:`write_plane`.
    """
    is_real = np.dtype(dtype).kind == "f"
    with atomic_stream(path) as stream:
        tifffile.imwrite(
            stream,
            (band.tobytes() if is_real else zlib.compress(band.tobytes(), 1) for band in bands),
            shape=shape,
            dtype=dtype,
            photometric="minisblack",
            compression=None if is_real else "zlib",
            rowsperstrip=None if is_real else BAND,
            metadata={"axes": {2: "YX", 3: "ZYX"}[len(shape)]},
        )


def read_plane(path: Path) -> npt.NDArray[Any]:
    """Read what :func:`write_plane` or :func:`write_bands` wrote.

    Raises
    ------
    SegDeskError
        The file is missing or damaged.
    """
    return _read(path)


def _write(path: Path, array: npt.NDArray[Any], metadata: dict[str, Any]) -> None:
    stream = io.BytesIO()
    is_real = array.dtype.kind == "f"
    # tifffile puts the metadata into the image description as JSON.
    tifffile.imwrite(
        stream,
        array,
        photometric="minisblack",
        # Of real numbers it would save 7 % and take 20 times as long as leaving them.
        compression=None if is_real else "zlib",
        compressionargs=None
        if is_real
        else {"level": 1},  # 6, the usual, takes three times as long
        metadata=metadata,
    )
    atomic_write_bytes(path, stream.getvalue())


def _write_tiles(path: Path, planes: tuple[Labels, Labels], metadata: dict[str, Any]) -> None:
    with ThreadPoolExecutor(THREADS) as pool, atomic_stream(path) as stream:
        tifffile.imwrite(
            stream,
            _packed_tiles(planes, pool),
            shape=(len(planes), *planes[0].shape),
            dtype="uint8",
            photometric="minisblack",
            tile=(TILE, TILE),
            compression="zlib",
            metadata=metadata,
        )


def _packed_tiles(planes: tuple[Labels, Labels], pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """Yield compressed tiles, row by row; those of one value are compressed once."""
    plain: dict[int, bytes] = {}

    def pack(tile: Labels) -> bytes:
        value = int(tile[0, 0])
        if not (tile == value).all():
            whole = np.zeros((TILE, TILE), np.uint8)
            whole[: tile.shape[0], : tile.shape[1]] = tile
            return zlib.compress(whole.tobytes(), 1)
        if value not in plain:
            plain[value] = zlib.compress(bytes([value]) * TILE**2, 1)
        return plain[value]

    for array in planes:
        for page in array if array.ndim == 3 else (array,):
            for y in range(0, page.shape[0], TILE):
                row = [page[y : y + TILE, x : x + TILE] for x in range(0, page.shape[1], TILE)]
                yield from pool.map(pack, row)


def _read_tiles(path: Path) -> tuple[Labels, Labels] | None:
    """Read labels and supervision tile by tile; None where they were written whole."""
    try:
        with explain_os_errors(path, reading=True), tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            if not tiff.pages.first.is_tiled:
                return None
            if (
                series.dtype != np.uint8
                or series.ndim not in (3, 4)
                or series.shape[0] != len(PLANES)
            ):
                raise ValueError("not labels and supervision")
            # What stays blank of these is never given memory by the system.
            planes = np.zeros(series.shape, np.uint8)
            pages = planes.reshape(-1, *series.shape[-2:])
            for page, out in zip(series.pages, pages, strict=True):
                if page is None:
                    raise ValueError("a page is missing")
                for tile, at, _ in page.segments(maxworkers=THREADS):
                    if tile is not None and tile.any():
                        inside = out[at[2] : at[2] + TILE, at[3] : at[3] + TILE]
                        inside[:] = tile[0, : inside.shape[0], : inside.shape[1], 0]
    except DECODE_ERRORS as error:
        raise _damaged(path) from error
    return planes[0], planes[1]


def _read(path: Path) -> npt.NDArray[Any]:
    with explain_os_errors(path, reading=True):
        content = Path(path).read_bytes()
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            return np.asarray(tiff.series[0].asarray())
    except DECODE_ERRORS as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> SegDeskError:
    return SegDeskError(
        f"The label file {path} is damaged and cannot be read; restore it from a backup."
    )

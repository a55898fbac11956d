"""Large TIFF and OME-TIFF files, read in tiles, strips or rows."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from segdesk.io.atomic import explain_os_errors
from segdesk.io.boxes import (
    BLOCK_BYTES,
    BLOCK_SIDE,
    ChunkedArray,
    ChunkedImage,
    ImageSource,
    Layout,
    Pixels,
    guarded,
)
from segdesk.io.rasters import TIFF_SIGNATURES, tiff_complaints, tiff_layout


class _Rows:
    """An uncompressed array that lies in a file in one piece; reads whole rows.

    A memory map would do, but a file cut short under it kills the process.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any],
                 row_axis: int) -> None:  # fmt: skip
        self._path, self._offset, self._rows = path, offset, row_axis
        self.shape, self.dtype = shape, dtype
        row = math.prod(shape[row_axis + 1 :])
        some = max(1, min(BLOCK_SIDE, BLOCK_BYTES // max(1, row * dtype.itemsize)))
        self.chunks = (*(1 for _ in shape[:row_axis]), some, *shape[row_axis + 1 :])

    def __getitem__(self, box: tuple[slice, ...]) -> Pixels:
        lead, rows, rest = box[: self._rows], box[self._rows], box[self._rows + 1 :]
        tail = self.shape[self._rows + 1 :]
        count = (rows.stop - rows.start) * math.prod(tail)
        out = []
        with self._path.open("rb") as stream:
            for index in np.ndindex(*(part.stop - part.start for part in lead)):
                at = [part.start + i for part, i in zip(lead, index, strict=True)]
                first = int(np.ravel_multi_index([*at, rows.start], self.shape[: self._rows + 1]))
                stream.seek(self._offset + first * math.prod(tail) * self.dtype.itemsize)
                out.append(np.frombuffer(stream.read(count * self.dtype.itemsize), self.dtype))
        shape = [part.stop - part.start for part in (*lead, rows)]
        data = np.concatenate(out).reshape(*shape, *tail)
        return data[(*(slice(None) for _ in shape), *rest)]


def is_tiff(path: Path) -> bool:
    """Tell from a file's first bytes; what is no readable file is explained by read_image."""
    if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
        return False
    with explain_os_errors(path, reading=True), path.open("rb") as stream:
        return stream.read(4).startswith(TIFF_SIGNATURES)


def open_tiff(path: Path, whole_below: int) -> ImageSource | None:
    """Open a TIFF for reading in pieces; None for a small one."""
    guard = guarded(path.name, path)
    with guard(""), ExitStack() as stack:
        with tiff_complaints() as complaints:
            tiff = stack.enter_context(tifffile.TiffFile(path))
            series = tiff.series[0]
            layout = tiff_layout(path, series)
            levels = [s for s in series.levels if len(s.shape) == len(layout.axes)]
            for smaller in levels[1:]:
                tiff_layout(path, smaller)
        if complaints:
            raise ValueError(complaints[0])
        if math.prod(series.shape) * series.dtype.itemsize < whole_below:
            return None
        whole = Layout(layout.axes, layout.alpha, layout.palette)
        arrays = [
            _tiff_array(path, tiff, series.levels.index(part), part, whole) for part in levels
        ]
        return ChunkedImage(path.name, arrays, whole, guard, stack.pop_all())
    raise AssertionError("the guard lets no error pass")


def _tiff_array(
    path: Path, tiff: tifffile.TiffFile, level: int, series: tifffile.TiffPageSeries, layout: Layout
) -> ChunkedArray:
    import zarr

    if series.dataoffset is not None:
        dtype = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
        first = min(layout.plane)
        return _Rows(path, series.dataoffset, tuple(series.shape), dtype, first)
    store = tiff.series[0].aszarr(level=level, maxworkers=1)
    array: zarr.Array[Any] = zarr.open_array(store, mode="r", zarr_format=2)
    return array

"""Boxes of an image's pixels: from memory, or from chunks read when they are asked for."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from segdesk.core.errors import InputError
from segdesk.io.atomic import explain_os_errors
from segdesk.io.images import ImageData, show_colors, to_numbers
from segdesk.io.rasters import DECODE_ERRORS

Pixels = npt.NDArray[Any]
Guard = Callable[[str], AbstractContextManager[None]]

#: Decoded pieces kept, in bytes: two rows of tiles of a 16,384 pixel wide RGB image.
CACHE_BYTES: Final = 64 * 2**20
#: The largest piece put together from several chunks, in bytes.
BLOCK_BYTES: Final = CACHE_BYTES // 16
#: Smaller chunks are read together, so that a tile takes a few reads and not hundreds.
BLOCK_SIDE: Final = 256


class ImageSource(ABC):
    """An image whose pixels are read in boxes; a context manager.

    Boxes may be read from several threads.

    Attributes
    ----------
    name
        What errors call it.
    shape
        (Y, X) or (Z, Y, X) in pixels; time and depth are flattened into one stack axis.
    channels
        Number of channels, alpha not counted.
    dtype
        numpy name of the pixel type on disk.
    levels
        Number of resolution levels, finest first; 1 for plain images.
    is_lazy
        Whether pixels are read when asked for; otherwise they are in memory.
    """

    name: str
    shape: tuple[int, ...]
    channels: int
    dtype: str
    levels: int = 1
    is_lazy: bool = True

    @abstractmethod
    def level_shape(self, level: int) -> tuple[int, ...]:
        """Return the shape of a level, (Y, X) or (Z, Y, X); Z may shrink as well."""

    @abstractmethod
    def read(self, z: int, rows: slice, columns: slice, level: int = 0) -> Pixels:
        """Return the pixels of a box of one plane, (h, w, C), as :func:`read_image` has them.

        Parameters
        ----------
        z
            The plane, from 0; 0 for an image of one plane.
        rows, columns
            Ranges with start and stop inside the level's shape.

        Raises
        ------
        InputError
            The pixels cannot be read, or are NaN or infinite; the sentence names the place.
        IndexError
            The box leaves the image.
        """

    def expect_rows(self, height: int) -> None:  # noqa: B027  most have nothing to forget
        """Keep no more pixels in memory than boxes need that come row by row.

        Parameters
        ----------
        height
            Rows of the highest box, in pixels.
        """

    def close(self) -> None:  # noqa: B027  most have nothing to close
        """Close the files; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def planes(self) -> int:
        """Number of planes Z, 1 for (Y, X)."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def nbytes(self) -> int:
        """Size of the finest level in memory, in bytes."""
        size = np.dtype("uint8" if self.dtype == "bool" else self.dtype).itemsize
        return math.prod(self.shape) * self.channels * min(size, 4)

    def read_level(self, level: int = 0) -> Pixels:
        """Return a whole level, (Y, X, C) or (Z, Y, X, C).

        Raises
        ------
        InputError
            As :meth:`read`, or it does not fit into memory.
        """
        *stack, height, width = self.level_shape(level)
        box = (slice(0, height), slice(0, width))
        try:
            if not stack:
                return self.read(0, *box, level)
            return np.stack([self.read(z, *box, level) for z in range(stack[0])])
        except MemoryError as error:
            raise InputError(
                f"{self.name} does not fit into memory; cut it into smaller images."
            ) from error


# In memory ------------------------------------------------------------------


class WholeImage(ImageSource):
    """An image that was read whole."""

    is_lazy = False

    def __init__(self, name: str, image: ImageData) -> None:
        self.name = name
        self.shape, self.channels, self.dtype = image.spatial_shape, image.channels, image.dtype
        self._data = image.data

    def level_shape(self, level: int) -> tuple[int, ...]:
        """See :class:`ImageSource`."""
        return (self.shape,)[level]

    def read(self, z: int, rows: slice, columns: slice, level: int = 0) -> Pixels:
        """See :class:`ImageSource`."""
        _check_box(self.level_shape(level), z, rows, columns)
        return (self._data[z] if len(self.shape) == 3 else self._data)[rows, columns]

    def read_level(self, level: int = 0) -> Pixels:
        """Return the image itself, not a copy."""
        del level
        return self._data


def _check_box(shape: tuple[int, ...], z: int, rows: slice, columns: slice) -> None:
    *stack, height, width = shape
    inside = 0 <= z < (stack[0] if stack else 1)
    inside &= 0 <= rows.start < rows.stop <= height
    inside &= 0 <= columns.start < columns.stop <= width
    if not inside:
        raise IndexError(f"plane {z}, rows {rows}, columns {columns} lie outside of {shape}")


def _cut(wanted: slice, start: int) -> slice:
    """Return the part of a block that begins at ``start`` as a range inside it."""
    return slice(max(wanted.start - start, 0), wanted.stop - start)


# In chunks ------------------------------------------------------------------


class ChunkedArray(Protocol):
    """What pieces are read from: a Zarr array, or rows of a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of its axes."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """The box that is best read at a time."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """As on disk."""

    def __getitem__(self, box: tuple[slice, ...], /) -> Any: ...


@dataclass(frozen=True)
class _Level:
    """One resolution: an array, and the box of it that is read at a time."""

    array: ChunkedArray
    block: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Which axis of the arrays is what, and what their values mean.

    ``axes`` has a letter per axis, as in :class:`~segdesk.io.rasters.TiffLayout`.
    """

    axes: str
    alpha: tuple[int, ...] = ()
    palette: npt.NDArray[np.uint8] | None = None

    @property
    def stack(self) -> list[int]:
        """Axes that are stacked, in order."""
        return [i for i, a in enumerate(self.axes) if a not in "YXCS"]

    @property
    def plane(self) -> tuple[int, int]:
        """Axes Y and X."""
        return self.axes.index("Y"), self.axes.index("X")

    @property
    def colors(self) -> list[int]:
        """Axes that together make the channels."""
        return [i for i, a in enumerate(self.axes) if a in "CS"]

    def spatial_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return (Y, X) or (Z, Y, X) of an array of this layout."""
        planes = math.prod(shape[i] for i in self.stack)
        size = tuple(shape[i] for i in self.plane)
        return size if planes == 1 else (planes, *size)

    def channels(self, shape: Sequence[int]) -> int:
        """Return the number of channels of an array of this layout."""
        if self.palette is not None:
            return 3
        sizes = [shape[i] - len(self.alpha) * (self.axes[i] == "S") for i in self.colors]
        return math.prod(sizes)

    def arrange(self, data: Pixels) -> Pixels:
        """Return part of an array as (stack ..., Y, X, C), C without alpha, 1-bit as 0 and 1."""
        if self.alpha:
            data = np.delete(data, self.alpha, self.axes.index("S"))
        data = data.transpose(*self.stack, *self.plane, *self.colors)
        data = data.reshape((*data.shape[: len(self.stack) + 2], -1))
        if data.dtype.kind == "b":
            data = data.astype(np.uint8)
        if self.palette is not None:
            data = show_colors(data, self.palette)
        return np.ascontiguousarray(data, data.dtype.newbyteorder("="))


class ChunkedImage(ImageSource):
    """An image in chunks, of which the last used stay in memory.

    Parameters
    ----------
    guard
        Turns what goes wrong while reading into an InputError that names the given place.
    """

    def __init__(
        self,
        name: str,
        arrays: Sequence[ChunkedArray],
        layout: Layout,
        guard: Guard,
        resources: ExitStack,
    ) -> None:
        finest = arrays[0]
        self.name = name
        self.shape = layout.spatial_shape(finest.shape)
        self.channels = layout.channels(finest.shape)
        self.dtype = finest.dtype.name
        self.levels = len(arrays)
        self._layout = layout
        self._guard = guard
        self._resources = resources
        self._kept: OrderedDict[tuple[int, ...], Pixels] = OrderedDict()
        self._most_kept = CACHE_BYTES
        self._lock = threading.Lock()
        if 0 in finest.shape or not self.channels:
            raise InputError(f"{name} holds no pixels; export it again.")
        if finest.dtype.kind not in "buif":
            raise InputError(
                f"{name} holds {finest.dtype.name} values; save it as whole or real numbers."
            )
        self._levels = [_Level(array, _block(array, layout)) for array in arrays]

    def expect_rows(self, height: int) -> None:
        """See :class:`ImageSource`."""
        array, block = self._levels[0].array, self._levels[0].block
        if any(block[i] > 1 for i in self._layout.stack):
            return  # what is decoded for one plane serves the next
        y, x = self._layout.plane
        across = -(-array.shape[x] // block[x])
        # A box need not begin where a piece does.
        down = 1 + -(-height // block[y])
        piece = math.prod(block) * min(array.dtype.itemsize, 4)
        self._most_kept = min(CACHE_BYTES, down * across * piece)

    def close(self) -> None:
        """See :class:`ImageSource`."""
        self._kept.clear()
        self._resources.close()

    def level_shape(self, level: int) -> tuple[int, ...]:
        """See :class:`ImageSource`."""
        planes = self._layout.spatial_shape(self._levels[level].array.shape)
        return planes if len(self.shape) == len(planes) else (1, *planes)

    def read(self, z: int, rows: slice, columns: slice, level: int = 0) -> Pixels:
        """See :class:`ImageSource`."""
        shape = self.level_shape(level)
        _check_box(shape, z, rows, columns)
        layout, entry = self._layout, self._levels[level]
        lengths = [entry.array.shape[i] for i in layout.stack]
        at = [int(i) for i in np.unravel_index(z, lengths)] if lengths else []
        high, wide = (entry.block[i] for i in layout.plane)
        pieces = [
            [self._piece(level, at, (y, x))[_cut(rows, y * high), _cut(columns, x * wide)]
             for x in range(columns.start // wide, -(-columns.stop // wide))]
            for y in range(rows.start // high, -(-rows.stop // high))
        ]  # fmt: skip
        box: Pixels = np.concatenate([np.concatenate(row, 1) for row in pieces], 0)
        return box

    def _piece(self, level: int, at: list[int], place: tuple[int, int]) -> Pixels:
        """Return a block's pixels of the plane at ``at`` along the stack axes, (h, w, C)."""
        block = self._levels[level].block
        steps = [block[i] for i in self._layout.stack]
        key = (level, *(a // s for a, s in zip(at, steps, strict=True)), *place)
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                found = self._load(level, key[1:])
                self._kept[key] = found
                total = sum(piece.nbytes for piece in self._kept.values())
                while total > self._most_kept and len(self._kept) > 1:
                    total -= self._kept.popitem(last=False)[1].nbytes
            self._kept.move_to_end(key)
        plane: Pixels = found[tuple(a % s for a, s in zip(at, steps, strict=True))]
        return plane

    def _load(self, level: int, index: tuple[int, ...]) -> Pixels:
        array, block = self._levels[level].array, self._levels[level].block
        axes = [*self._layout.stack, *self._layout.plane]
        box = [slice(0, length) for length in array.shape]
        for axis, i in zip(axes, index, strict=True):
            box[axis] = slice(i * block[axis], min((i + 1) * block[axis], array.shape[axis]))
        place = self._place(array.shape, box)
        with self._guard(place):
            data = self._layout.arrange(np.asarray(array[tuple(box)]))
        return to_numbers(data, self.name + place)

    def _place(self, shape: Sequence[int], box: Sequence[slice]) -> str:
        """Say where a box lies: the words that follow the image's name."""
        rows, columns = (box[i] for i in self._layout.plane)
        words = [
            f"rows {rows.start} to {rows.stop - 1}",
            f"columns {columns.start} to {columns.stop - 1}",
        ]
        stack = self._layout.stack
        if math.prod(shape[i] for i in stack) > 1:
            first = np.ravel_multi_index([box[i].start for i in stack], [shape[i] for i in stack])
            words.insert(0, f"plane {first}")
        return f" ({', '.join(words)})"


def _block(array: ChunkedArray, layout: Layout) -> tuple[int, ...]:
    """Choose the box to read at a time: whole chunks, all channels, few reads per tile.

    Several planes at once only where chunks hold several and a block stays small:
    what is decoded for one plane then serves the next.
    """
    block = [min(c, s) for c, s in zip(array.chunks, array.shape, strict=True)]
    for i in layout.colors:
        block[i] = array.shape[i]
    if math.prod(block) * array.dtype.itemsize > BLOCK_BYTES:
        for i in layout.stack:
            block[i] = 1
    for i in layout.plane:
        grown = block[i] * -(-BLOCK_SIDE // block[i])
        if math.prod(block) // block[i] * grown * array.dtype.itemsize <= BLOCK_BYTES:
            block[i] = grown
    return tuple(block)


def guarded(name: str, path: Path | None) -> Guard:
    """Make a context that turns failures of reading into sentences about ``name``.

    The context takes where in the image it reads, as words that follow the name.

    Parameters
    ----------
    path
        The file or folder; None for an address.
    """
    # What the file systems of fsspec raise is their own affair.
    kinds = (*DECODE_ERRORS, BadZipFile) if path is not None else (Exception,)

    @contextmanager
    def guard(place: str) -> Iterator[None]:
        try:
            with explain_os_errors(path or Path(name), reading=True):
                yield
        except InputError as error:
            is_gone = path is None and isinstance(error.__cause__, FileNotFoundError)
            if is_gone and place:  # it was there when it was opened
                raise InputError(
                    f"{name}{place} cannot be read because the image is not at its address any "
                    "more; check the connection and the server, and try again."
                ) from error
            raise
        except MemoryError as error:
            raise InputError(
                f"{name} does not fit into memory; cut it into smaller images."
            ) from error
        except kinds as error:
            is_disk = isinstance(error, OSError) and error.errno is not None
            if is_disk or path is None:
                raise InputError(
                    f"{name}{place} cannot be read ({_reason(error)}); "
                    "check the disk or the connection and try again."
                ) from error
            raise InputError(
                f"{name}{place} is damaged or cut short and cannot be read; "
                "copy it again from where it came from."
            ) from error

    return guard


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    line = text.strip().split("\n")[0].rstrip(".")  # asyncio's TimeoutError says nothing
    return f"{type(error).__name__}: {line}" if line else type(error).__name__

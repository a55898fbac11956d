"""Large images on screen: what is looked at is read in the background, block by block."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segdesk.core.errors import SegDeskError
from segdesk.io.pyramids import Patch, Pyramid

if TYPE_CHECKING:
    import numpy.typing as npt

    Pixels = npt.NDArray[Any]
    Look = Callable[[Pixels], Pixels]

#: Side of a block, in pixels of its level.
BLOCK: Final = 512
#: Blocks kept, in bytes: a few screens.
CACHE_BYTES: Final = 192 * 2**20
#: So long a drawing waits for blocks that are nearly there, in seconds: less than is noticed.
GRACE: Final = 0.03
#: What was asked for so much before the last question is not looked at any more, in seconds.
STALE: Final = 1.0
#: A block that could not be read is tried again after so many seconds.
RETRY: Final = 5.0
THREADS: Final = 2


@dataclass(frozen=True, order=True)
class _Place:
    """A block of a plane of a level."""

    level: int
    z: int
    row: int
    column: int


class TileLoader:
    """Reads blocks of a pyramid that are on screen; the newest question counts.

    Until a block is there, coarser ones are shown in its place.

    Parameters
    ----------
    look
        Turns pixels (h, w, C) into what is shown, (h, w) or (h, w, 3).
    news, trouble
        Called on a reading thread: new blocks are there; one cannot be read.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        look: Look,
        news: Callable[[], None] = lambda: None,
        trouble: Callable[[SegDeskError], None] = lambda error: None,
    ) -> None:
        self.pyramid = pyramid
        self._look, self._news, self._trouble = look, news, trouble
        sample = look(np.zeros((1, 1, pyramid.source.channels), _dtype_of(pyramid)))
        self.dtype, self.colors = sample.dtype, sample.shape[2:]
        self._kept: OrderedDict[_Place, Pixels] = OrderedDict()
        self._wanted: dict[_Place, float] = {}
        self._failed: dict[_Place, float] = {}
        self._has_told = False  # once an image is enough
        self._lock = threading.Condition()
        self._readers = 0
        self._busy: set[_Place] = set()
        self._is_closed = False
        #: The coarsest level of a single plane, in memory; zeros where it is not made yet.
        self.overview: Pixels | None = None
        if len(pyramid.shapes[-1]) == 2:
            self.overview = np.zeros((*pyramid.shapes[-1], *self.colors), self.dtype)

    @property
    def levels(self) -> list[LazyLevel | Pixels]:
        """What napari is given, finest first."""
        lazy: list[LazyLevel | Pixels] = [
            LazyLevel(self, number) for number in range(len(self.pyramid.shapes))
        ]
        if self.overview is not None:
            lazy[-1] = self.overview  # napari reads the last level once and keeps it
        return lazy

    def fill_overview(self, patch: Patch | None = None) -> None:
        """Read what there is of the coarsest level, or of a patch of it; on any thread.

        Raises
        ------
        InputError
            The pixels cannot be read.
        """
        if self.overview is None:
            return
        last = len(self.pyramid.shapes) - 1
        for box in self.pyramid.boxes(last, patch):
            found = self.pyramid.read(0, *box, last)
            if found is not None:
                self.overview[box] = self._look(found)

    def box(self, level: int, z: int, rows: slice, columns: slice) -> Pixels:
        """Return what is there of a box, coarse where it is still being read."""
        places = _places(level, z, rows, columns)
        if self._ask(places):
            self._wait_for(places)
        out = np.zeros((rows.stop - rows.start, columns.stop - columns.start, *self.colors),
                       self.dtype)  # fmt: skip
        for place in places:
            top, left = place.row * BLOCK, place.column * BLOCK
            inner = (
                slice(max(rows.start, top), min(rows.stop, top + BLOCK)),
                slice(max(columns.start, left), min(columns.stop, left + BLOCK)),
            )
            there = tuple(
                slice(i.start - o.start, i.stop - o.start)
                for i, o in zip(inner, (rows, columns), strict=True)
            )
            block = self._kept.get(place)
            if block is None:
                self._fill_coarsely(out[there], place, *inner)
            else:
                y, x = inner
                out[there] = block[y.start - top : y.stop - top, x.start - left : x.stop - left]
        return out

    def close(self) -> None:
        """Ask for no more; what is being read ends in the background, see :meth:`wait`."""
        with self._lock:
            self._is_closed = True
            self._wanted.clear()
            self._kept.clear()
            self._lock.notify_all()

    def wait(self) -> None:
        """Wait until nothing is being read any more, after :meth:`close`."""
        with self._lock:
            while self._readers:
                self._lock.wait()

    # How ---------------------------------------------------------------------

    def _ask(self, places: list[_Place]) -> bool:
        """Want these blocks; return whether some are missing and may come."""
        now = time.monotonic()
        with self._lock:
            self._wanted = {p: t for p, t in self._wanted.items() if now - t < STALE}
            missing = 0
            for place in places:
                if place in self._kept:
                    self._kept.move_to_end(place)
                elif now - self._failed.get(place, -RETRY) >= RETRY:
                    self._wanted[place] = now
                    missing += 1
            while missing and not self._is_closed and self._readers < THREADS:
                self._readers += 1
                # The end of the program does not wait for a store that does not answer.
                threading.Thread(target=self._work, name="segdesk-tiles", daemon=True).start()
            return bool(missing) and not self._is_closed

    def _wait_for(self, places: list[_Place]) -> None:
        until = time.monotonic() + GRACE
        with self._lock:
            while any(p in self._wanted for p in places):
                left = until - time.monotonic()
                if left <= 0 or not self._lock.wait(left):
                    return

    def _work(self) -> None:
        """Read wanted blocks until there are none, the coarse ones first."""
        place = None
        try:
            while (place := self._next(place)) is not None:
                self._read(place)
        finally:
            if place is not None:  # a fault of ours: the next question starts another thread
                with self._lock:
                    self._done_with(place)
                    self._readers -= 1
                    self._lock.notify_all()

    def _next(self, done: _Place | None) -> _Place | None:
        """Return what to read after ``done``; None: nothing, and the thread counts no more."""
        with self._lock:
            if done is not None:
                self._done_with(done)
            free = [place for place in self._wanted if place not in self._busy]
            if not free or self._is_closed:
                self._readers -= 1
                self._lock.notify_all()
                return None
            newest = max(self._wanted[place] for place in free)
            place = max(p for p in free if self._wanted[p] >= newest - STALE / 10)
            self._busy.add(place)
            return place

    def _done_with(self, place: _Place) -> None:
        self._busy.discard(place)
        self._wanted.pop(place, None)
        self._lock.notify_all()

    def _read(self, place: _Place) -> None:
        height, width = self.pyramid.shapes[place.level][-2:]
        top, left = place.row * BLOCK, place.column * BLOCK
        rows, columns = (slice(top, min(top + BLOCK, height)),
                         slice(left, min(left + BLOCK, width)))  # fmt: skip
        try:
            found = self.pyramid.read(place.z, rows, columns, place.level)
        except SegDeskError as error:
            with self._lock:
                is_first, self._has_told = not self._has_told, True
                self._failed[place] = time.monotonic()
                is_wanted = is_first and not self._is_closed
            if is_wanted:
                self._trouble(error)
            return
        if found is None:  # not made yet; who makes it tells of it
            return
        shown = self._look(found)
        with self._lock:
            if self._is_closed:
                return
            self._failed.pop(place, None)
            self._kept[place] = shown
            total = sum(block.nbytes for block in self._kept.values())
            while total > CACHE_BYTES and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1].nbytes
        self._news()

    def _fill_coarsely(self, out: Pixels, place: _Place, rows: slice, columns: slice) -> None:
        """Show the finest that is there of coarser levels."""
        here = self.pyramid.shapes[place.level][-2:]
        for level in range(place.level + 1, len(self.pyramid.shapes)):
            there = self.pyramid.shapes[level][-2:]
            y, x = (
                np.arange(part.start, part.stop) * n // m
                for part, n, m in zip((rows, columns), there, here, strict=True)
            )
            if level == len(self.pyramid.shapes) - 1 and self.overview is not None:
                out[:] = self.overview[y[:, None], x[None]]
                return
            row, column = int(y[0]) // BLOCK, int(x[0]) // BLOCK
            block = self._kept.get(_Place(level, place.z, row, column))
            if block is not None:
                y, x = y - row * BLOCK, x - column * BLOCK
                y, x = y[y < block.shape[0]], x[x < block.shape[1]]
                out[: len(y), : len(x)] = block[y[:, None], x[None]]
                return


class LazyLevel:
    """One level as an array for napari: (Y, X), (Z, Y, X), or either with colours last.

    Only what an index asks for is read.
    """

    def __init__(
        self, loader: TileLoader, level: int, box: tuple[slice, ...] | None = None
    ) -> None:
        self._loader, self._level = loader, level
        whole = loader.pyramid.shapes[level]
        self._box = box or tuple(slice(0, n) for n in whole)
        self.dtype = loader.dtype
        self.shape: tuple[int, ...] = (*(s.stop - s.start for s in self._box), *loader.colors)
        self.chunks = (*((1,) * (len(whole) - 2)), BLOCK, BLOCK, *loader.colors)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys[at : at + 1] = [slice(None)] * (self.ndim - len(keys) + 1)
        keys += [slice(None)] * (self.ndim - len(keys))
        axes = len(self._box)
        steps, box = [], []
        for part, side in zip(keys, self._box, strict=False):
            if isinstance(part, slice):
                start, stop, step = part.indices(side.stop - side.start)
                stop = max(stop, start)
            else:
                start = int(part) + (side.stop - side.start if part < 0 else 0)
                stop, step = start + 1, 1
            box.append(slice(side.start + start, side.start + stop))
            steps.append(step)
        rest = tuple(keys[axes:])
        is_stack = axes == 3 and isinstance(keys[0], slice) and box[0].stop - box[0].start > 1
        if is_stack and set(steps) == {1} and all(r == slice(None) for r in rest):
            return LazyLevel(self._loader, self._level, tuple(box))  # napari asks in two steps
        planes = self._planes(box)
        drop = tuple(slice(None, None, s) if isinstance(k, slice) else 0
                     for k, s in zip(keys, steps, strict=False))  # fmt: skip
        return planes[(*drop, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        del copy
        return np.asarray(self._planes(list(self._box)), dtype)

    def _planes(self, box: list[slice]) -> Pixels:
        *stack, rows, columns = box
        if 0 in (rows.stop - rows.start, columns.stop - columns.start):
            shape = (*(s.stop - s.start for s in box), *self._loader.colors)
            return np.zeros(shape, self.dtype)
        if not stack:
            return self._loader.box(self._level, 0, rows, columns)
        planes = range(stack[0].start, stack[0].stop)
        return np.stack([self._loader.box(self._level, z, rows, columns) for z in planes])


def _dtype_of(pyramid: Pyramid) -> np.dtype[Any]:
    """Return the type of pixels in memory: float64 and 1-bit are changed by reading."""
    told = np.dtype(pyramid.source.dtype).newbyteorder("=")
    if told.kind == "b":
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if told.kind == "f" else told


def _places(level: int, z: int, rows: slice, columns: slice) -> list[_Place]:
    return [
        _Place(level, z, row, column)
        for row in range(rows.start // BLOCK, -(-rows.stop // BLOCK))
        for column in range(columns.start // BLOCK, -(-columns.stop // BLOCK))
    ]

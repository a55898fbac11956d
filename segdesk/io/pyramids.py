"""Coarser levels of large images that come with none or too few, for looking at them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segdesk.core.address import Address, is_remote, local_path
from segdesk.core.errors import SegDeskError
from segdesk.io.atomic import explain_os_errors
from segdesk.io.boxes import ImageSource
from segdesk.io.sources import open_source

if TYPE_CHECKING:
    import numpy.typing as npt
    import zarr

    Pixels = npt.NDArray[Any]

#: A level of at most so many pixels a side shows a whole image on one screen.
OVERVIEW_SIDE: Final = 1024
#: The first level that is kept is so many times coarser than the file's last: the one
#: between is averaged when it is looked at, which saves three quarters of the disk.
FIRST_KEPT: Final = 4
#: Side of what is averaged at a time, in pixels of the file; every kept level up to it
#: gets whole pixels of it.
PATCH: Final = 2048
CHUNK: Final = 512


@dataclass(frozen=True)
class Patch:
    """First corner of what was averaged, in pixels of the file's last level, and the share done."""

    top: int
    left: int
    share: float


@dataclass(frozen=True)
class _Level:
    """One level: of the file, averaged from such a one, or kept on disk."""

    shape: tuple[int, ...]
    own: int
    factor: int = 1
    kept: int | None = None


class Pyramid:
    """All levels of an image, each about half of the one before; the last is small.

    The file's own levels come first. A single plane without small ones gets more: they are
    averaged once by :meth:`make` and kept in a folder. Planes of a stack are averaged
    when they are looked at.

    Parameters
    ----------
    open_again
        Opens the image a second time, for :meth:`make`, so that looking need not wait for it.
    folder
        Where to keep the levels; found there again.
    """

    def __init__(
        self, source: ImageSource, open_again: Callable[[], ImageSource], folder: Path
    ) -> None:
        self.source = source
        self._open_again = open_again
        self._folder = folder
        self._levels = _plan(source)
        self._arrays: list[zarr.Array[Any]] = []
        #: Patches of the file's last level that are averaged, row by column.
        self._done = np.zeros((0, 0), bool)
        kept = self._kept
        if kept:
            rows, columns = self._levels[kept[0].own].shape
            self._done = np.zeros((-(-rows // PATCH), -(-columns // PATCH)), bool)
            with suppress(OSError, ValueError, KeyError):
                self._open_kept(folder)
                self._done[:] = True

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """(Y, X) or (Z, Y, X) of each level, finest first."""
        return [level.shape for level in self._levels]

    @property
    def is_whole(self) -> bool:
        """Whether every level can be read everywhere."""
        return bool(self._done.all())

    def read(self, z: int, rows: slice, columns: slice, level: int) -> Pixels | None:
        """Return a box of a plane, (h, w, C); None where it is not averaged yet.

        Raises
        ------
        InputError
            The pixels cannot be read.
        """
        told = self._levels[level]
        if told.kept is None:
            return _averaged(self.source, z, rows, columns, told)
        side = PATCH // told.factor
        across = slice(columns.start // side, -(-columns.stop // side))
        down = slice(rows.start // side, -(-rows.stop // side))
        if not self._arrays or not self._done[down, across].all():
            return None
        with explain_os_errors(self._folder, reading=True):
            return np.asarray(self._arrays[told.kept][rows, columns])

    def make(self, check: Callable[[], None] = lambda: None) -> Iterator[Patch]:
        """Average the levels that are missing; call from a thread of its own.

        What is done when ``check`` raises is kept and gone on with the next time.

        Yields
        ------
        Patch
            Each part as it is there.

        Raises
        ------
        InputError
            The image cannot be read, or the disk is full or read-only.
        """
        if self.is_whole:
            return
        beside = self._folder.with_name(f"{self._folder.name}.part")
        with explain_os_errors(self._folder), self._open_again() as source:
            self._start(beside, source)
            try:
                for y, x in np.argwhere(~self._done).tolist():
                    check()
                    self._make_patch(source, y, x)
                    yield Patch(y * PATCH, x * PATCH, float(self._done.mean()))
            except BaseException:
                with suppress(OSError):
                    np.save(beside / "done.npy", self._done)
                raise
            (beside / "done.npy").unlink(missing_ok=True)
            self._replace_older(beside)

    def boxes(self, level: int, patch: Patch | None = None) -> list[tuple[slice, slice]]:
        """Return the parts that a level is made in, or that of one patch."""
        told = self._levels[level]
        height, width = told.shape[-2:]
        side = max(1, PATCH // told.factor) if told.factor > 1 else max(height, width)
        corners = [(y, x) for y in range(0, height, side) for x in range(0, width, side)]
        if patch is not None:
            corners = [(patch.top // told.factor, patch.left // told.factor)]
        return [
            (slice(y, min(y + side, height)), slice(x, min(x + side, width)))
            for y, x in corners
            if y < height and x < width
        ]

    def close(self) -> None:
        """Close the image."""
        self.source.close()

    # How ---------------------------------------------------------------------

    @property
    def _kept(self) -> list[_Level]:
        return [level for level in self._levels if level.kept is not None]

    def _open_kept(self, folder: Path) -> None:
        import zarr  # takes half a second, and few need it

        arrays = [zarr.open_array(str(folder / str(level.kept)), mode="r+") for level in self._kept]
        if [array.shape[:-1] for array in arrays] != [level.shape for level in self._kept]:
            raise ValueError("made for another image")
        self._arrays = arrays

    def _start(self, beside: Path, source: ImageSource) -> None:
        try:
            self._open_kept(beside)
            self._done[:] = np.load(beside / "done.npy")
        except (OSError, ValueError, KeyError):
            import zarr
            from zarr.codecs import BloscCodec

            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            dtype = source.read(0, slice(0, 1), slice(0, 1)).dtype
            for level in self._kept:
                zarr.create_array(
                    store=str(beside / str(level.kept)),
                    shape=(*level.shape, source.channels),
                    chunks=(CHUNK, CHUNK, source.channels),
                    dtype=dtype,
                    compressors=BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"),
                )
            self._open_kept(beside)

    def _make_patch(self, source: ImageSource, y: int, x: int) -> None:
        first = self._kept[0]
        height, width = self._levels[first.own].shape
        rows = slice(y * PATCH, min((y + 1) * PATCH, height))
        columns = slice(x * PATCH, min((x + 1) * PATCH, width))
        shown = source.read(0, rows, columns, first.own)
        factor = 1
        for level, array in zip(self._kept, self._arrays, strict=True):
            shown = shrink(shown, level.factor // factor)
            factor = level.factor
            top, left = y * PATCH // factor, x * PATCH // factor
            inside = shown[: level.shape[0] - top, : level.shape[1] - left]
            array[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        self._done[y, x] = True

    def _replace_older(self, beside: Path) -> None:
        """Put the levels where they are found again; those of older files are of no use."""
        for older in self._folder.parent.iterdir():
            if older != beside:
                shutil.rmtree(older, ignore_errors=True)
        os.replace(beside, self._folder)
        self._open_kept(self._folder)


def open_pyramid(address: Address, sha256: str, cache: Path) -> Pyramid:
    """Open an image for looking at it.

    Parameters
    ----------
    sha256
        Hash of the image, from when it was added.
    cache
        Folder for the levels of this image.

    Raises
    ------
    InputError
        As :func:`~segdesk.io.sources.open_source`.
    """
    key = hashlib.sha256(f"{sha256} {_stamp(address)}".encode()).hexdigest()[:16]

    def opened() -> ImageSource:
        return open_source(address)

    return Pyramid(opened(), opened, cache / key)


def shrink(data: Pixels, factor: int) -> Pixels:
    """Average squares of ``factor`` pixels, (h, w, C); what is left at the edges counts too."""
    if factor == 1:
        return data
    height, width = data.shape[:2]
    down, across = -(-height // factor) * factor, -(-width // factor) * factor
    if (down, across) != (height, width):
        data = np.pad(data, ((0, down - height), (0, across - width), (0, 0)), mode="edge")
    while factor % 2 == 0:  # pair by pair: several times as fast as a mean over squares
        kind = np.float32 if data.dtype.kind == "f" else np.int64
        wide: Pixels = data.astype(np.uint16 if data.dtype == np.uint8 else kind)
        total = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
        data = (total / 4 if data.dtype.kind == "f" else (total + 2) // 4).astype(data.dtype)
        factor //= 2
    return data


def _plan(source: ImageSource) -> list[_Level]:
    depth = source.level_shape(0)[:-2]
    own = [n for n in range(source.levels) if source.level_shape(n)[:-2] == depth]
    levels = [_Level(source.level_shape(n), n) for n in own]
    last = levels[-1]
    factor, kept = 1, 0
    while max(levels[-1].shape[-2:]) > OVERVIEW_SIDE:
        factor *= 2
        sides = tuple(-(-side // factor) for side in last.shape[-2:])
        is_kept = not depth and FIRST_KEPT <= factor <= PATCH
        levels.append(_Level((*depth, *sides), last.own, factor, kept if is_kept else None))
        kept += is_kept
    return levels


def _averaged(source: ImageSource, z: int, rows: slice, columns: slice, level: _Level) -> Pixels:
    """Read a box of a level of the file and average it."""
    height, width = source.level_shape(level.own)[-2:]
    factor = level.factor
    down = slice(rows.start * factor, min(rows.stop * factor, height))
    across = slice(columns.start * factor, min(columns.stop * factor, width))
    return shrink(source.read(z, down, across, level.own), factor)


def _stamp(address: Address) -> str:
    """Return what changes when the image is written; nothing for what cannot be asked."""
    if is_remote(address):
        return ""
    path = local_path(address)
    try:
        status = path.stat()
        inside = [entry.stat() for entry in os.scandir(path)] if path.is_dir() else []
    except OSError as error:
        with explain_os_errors(path, reading=True):
            raise
        raise SegDeskError(str(error)) from error
    return " ".join(f"{s.st_size} {s.st_mtime_ns}" for s in (status, *inside))

"""Results on disk while they come in, chunk by chunk, so that no finished one is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from segdesk.core.errors import InputError
from segdesk.inference.regions import Region, find_regions, find_regions_of_stack
from segdesk.inference.tiling import Box
from segdesk.inference.uncertainty import unsure_pixels
from segdesk.io.labels import BAND, write_bands

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

#: Side of a chunk, in pixels.
CHUNK: Final = 512
#: Results of more pixels than this stay Zarr: whoever opens a TIFF of them reads it whole.
TIFF_PIXELS: Final = 64 * 2**20
#: The most uncertain places: how many are kept, and how many of a chunk can be among them.
REGIONS: Final = "regions.json"
MOST_REGIONS: Final = 10
REGIONS_OF_CHUNK: Final = 3
_ORDER, _DONE = "order.json", "done.txt"

#: Plane, and the chunk's row and column.
Place = tuple[int, int, int]


class ResultWriter:
    """Labels, uncertainty and probabilities of an image in a folder.

    A chunk is written when all its pixels are there. A folder that was left before its
    end is gone on with where it was, if it was made for the same order.

    Parameters
    ----------
    folder
        Where to write; made if it is missing.
    shape
        (Z, Y, X) of the image.
    lookup
        uint8 (K,): the label value of each of the model's classes.
    order
        What decides the result, plain data.
    block
        Plane and part of it, in whole chunks: write only these, into a folder that
        another process has made and keeps the record of.

    Raises
    ------
    OSError
        The folder cannot be written to.
    InputError
        The folder that another process has made is not there.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, int, int],
        lookup: npt.NDArray[np.uint8],
        order: dict[str, Any],
        block: tuple[int, Box] | None = None,
    ) -> None:
        self.folder = folder
        self.shape = shape
        #: Chunks that this writer has written, and how many unsure pixels each has.
        self.written: dict[Place, int] = {}
        self._lookup = lookup
        self._block = block
        #: Chunks on disk, and how many unsure pixels each has.
        self._done: dict[Place, int] = {}
        self._open: dict[Place, _Chunk] = {}
        self._start(json.dumps(order, sort_keys=True))

    @property
    def chunks(self) -> tuple[int, int]:
        """Chunks that are finished, and all."""
        depth, height, width = self.shape
        return len(self._done), depth * -(-height // CHUNK) * -(-width // CHUNK)

    @property
    def unsure(self) -> float:
        """Share of unsure pixels of the finished chunks."""
        return sum(self._done.values()) / int(np.prod(self.shape))

    def is_done(self, z: int, box: Box) -> bool:
        """Whether all chunks that a part of a plane meets are finished, or not asked for."""
        return not any(self._is_wanted((z, y, x)) for y, x in _chunks_of(box))

    def take(self, z: int, box: Box, maps: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
        """Take a part of a plane; return its labels (uint8) and uncertainty, (h, w).

        Parameters
        ----------
        maps
            float32 (K + 1, h, w): probabilities, and the uncertainty last.
        """
        probabilities, unsure = maps[:-1], maps[-1]
        labels = self._lookup[_best(probabilities)]
        for y, x in _chunks_of(box):
            place = z, y, x
            if not self._is_wanted(place):
                continue
            if place not in self._open:
                self._open[place] = _Chunk(self._box(y, x), len(probabilities))
            chunk = self._open[place]
            if chunk.take(box, labels, unsure, probabilities):
                self._write(place, chunk)
                del self._open[place]
        return labels, unsure

    def leave(self, z: int) -> None:
        """Forget the unfinished chunks of a plane: its tiles will come again."""
        for place in [place for place in self._open if place[0] == z]:
            del self._open[place]

    def record(self, written: Mapping[Place, int]) -> None:
        """Note chunks that are on disk, each with its unsure pixels; a second time is ignored."""
        new = {place: unsure for place, unsure in written.items() if place not in self._done}
        with (self.folder / _DONE).open("a", encoding="utf-8") as done:
            done.writelines(f"{z} {y} {x} {unsure}\n" for (z, y, x), unsure in new.items())
        self._done |= new

    def finish(self, *, is_flat: bool, as_tiff: bool) -> None:
        """Turn what is there into the files of a prediction.

        Parameters
        ----------
        is_flat
            The image is (Y, X) and not a stack.
        as_tiff
            Write labels and uncertainty as TIFF; they stay Zarr arrays otherwise.
        """
        names = ("labels", "uncertainty") if as_tiff else ()
        with ThreadPoolExecutor(2, "segdesk-finish") as threads:  # packing lets others run
            made = [threads.submit(self._to_tiff, name, is_flat=is_flat) for name in names]
            regions = self._regions(as_whole=as_tiff)
            text = json.dumps([region.as_dict() for region in regions])
            (self.folder / REGIONS).write_text(text + "\n", "utf-8")
            for future in made:
                future.result()
            for name in (_ORDER, _DONE):  # from here on it cannot be gone on with
                (self.folder / name).unlink()
            list(threads.map(shutil.rmtree, map(self._path, names)))

    # How ---------------------------------------------------------------------

    def _to_tiff(self, name: str, *, is_flat: bool) -> None:
        """Turn a Zarr array into a TIFF, a band of rows at a time."""
        array = zarr.open_array(str(self._path(name)), mode="r")
        depth, height, _ = self.shape

        def bands() -> Iterator[npt.NDArray[Any]]:
            for z in range(depth):
                for y in range(0, height, BAND):
                    yield np.asarray(array[z, y : y + BAND])

        shape = self.shape[1:] if is_flat else self.shape
        write_bands(self.folder / f"{name}.tif", shape, array.dtype.name, bands())

    def _regions(self, *, as_whole: bool) -> list[Region]:
        """Find the most uncertain places; chunk by chunk where the image is too large."""
        if as_whole:
            planes = (_Plane(self._unsure, z) for z in range(self.shape[0]))
            return find_regions_of_stack(planes, MOST_REGIONS)
        found: list[Region] = []
        for z, y, x in sorted(self._done):
            box = self._box(y, x)
            here = find_regions(np.asarray(self._unsure[z, *box.slices]), REGIONS_OF_CHUNK, z=z)
            found += [replace(r, y=r.y + box.top, x=r.x + box.left) for r in here]
            found = sorted(found, key=lambda region: region.total, reverse=True)[:MOST_REGIONS]
        return found

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.zarr"

    def _start(self, order: str) -> None:
        if not self._resumes(order):
            if self._block is not None:
                raise InputError(
                    f"{self.folder} is not there, or was made for another prediction; all workers "
                    "must see the folder of the results under the same path."
                )
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._make(order)
        self._labels, self._unsure, self._maps = (
            zarr.open_array(str(self._path(name)), mode="r+")
            for name in ("labels", "uncertainty", "probabilities")
        )

    def _resumes(self, order: str) -> bool:
        """Read what an earlier try has finished, if it was for the same order."""
        try:
            if (self.folder / _ORDER).read_text("utf-8") != order:
                return False
            text = (self.folder / _DONE).read_text("utf-8")
            whole = text[: text.rfind("\n") + 1]
            for line in whole.splitlines():
                z, y, x, unsure = map(int, line.split())
                self._done[z, y, x] = unsure
            if whole != text and self._block is None:  # the power went in the middle of a line
                (self.folder / _DONE).write_text(whole, "utf-8")
        except (OSError, ValueError):
            self._done.clear()
            return False
        return True

    def _make(self, order: str) -> None:
        depth, height, width = self.shape
        classes = len(self._lookup)
        sides = min(CHUNK, height), min(CHUNK, width)
        for name, dtype, front in (
            ("labels", "uint8", ()),
            ("uncertainty", "float32", ()),
            ("probabilities", "float16", (classes,)),
        ):
            zarr.create_array(
                store=str(self._path(name)),
                shape=(*front, depth, height, width),
                chunks=(*front, 1, *sides),
                dtype=dtype,
                # zstd, the usual one, takes a tenth of the time of a small model.
                compressors=BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"),
                dimension_names=(*("class" for _ in front), "z", "y", "x"),
            )
        (self.folder / _DONE).touch()
        (self.folder / _ORDER).write_text(order, "utf-8")

    def _is_wanted(self, place: Place) -> bool:
        if place in self._done or place in self.written:
            return False
        if self._block is None:
            return True
        z, box = self._block
        return place[0] == z and box.meets(self._box(*place[1:]))

    def _box(self, y: int, x: int) -> Box:
        _, height, width = self.shape
        top, left = y * CHUNK, x * CHUNK
        return Box(top, min(top + CHUNK, height), left, min(left + CHUNK, width))

    def _write(self, place: Place, chunk: _Chunk) -> None:
        z, rows, columns = place[0], *chunk.box.slices
        self._labels[z, rows, columns] = chunk.labels
        self._unsure[z, rows, columns] = chunk.unsure
        self._maps[:, z, rows, columns] = chunk.maps
        self.written[place] = chunk.unsure_pixels
        if self._block is None:
            self.record({place: chunk.unsure_pixels})


@dataclass(frozen=True)
class _Plane:
    """A plane of a Zarr array (Z, Y, X), read in boxes."""

    array: zarr.Array[Any]
    z: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[1:]

    def __getitem__(self, box: tuple[slice, slice]) -> Floats:
        return np.asarray(self.array[self.z, *box])


class _Chunk:
    """A chunk that is being filled."""

    def __init__(self, box: Box, classes: int) -> None:
        self.box = box
        shape = box.bottom - box.top, box.right - box.left
        self.labels = np.empty(shape, np.uint8)
        self.unsure = np.empty(shape, np.float32)
        self.maps = np.empty((classes, *shape), np.float16)
        self.unsure_pixels = 0
        self._missing = box.area

    def take(self, box: Box, labels: npt.NDArray[np.uint8], unsure: Floats, maps: Floats) -> bool:
        """Copy what lies in the chunk; return whether it is full."""
        top, left = max(box.top, self.box.top), max(box.left, self.box.left)
        bottom, right = min(box.bottom, self.box.bottom), min(box.right, self.box.right)
        here = (slice(top - self.box.top, bottom - self.box.top),
                slice(left - self.box.left, right - self.box.left))  # fmt: skip
        there = slice(top - box.top, bottom - box.top), slice(left - box.left, right - box.left)
        self.labels[here] = labels[there]
        self.unsure[here] = unsure[there]
        self.maps[:, *here] = maps[:, *there]
        self.unsure_pixels += int(unsure_pixels(maps[:, *there]).sum())
        self._missing -= (bottom - top) * (right - left)
        return self._missing == 0


def _best(probabilities: Floats) -> npt.NDArray[Any]:
    """Return the most probable class, (h, w); of a tie the first."""
    if len(probabilities) == 2:  # ten times as fast as argmax
        second: npt.NDArray[Any] = probabilities[1] > probabilities[0]
        return second.view(np.uint8)
    best: npt.NDArray[Any] = probabilities.argmax(0)
    return best


def _chunks_of(box: Box) -> list[tuple[int, int]]:
    """Return row and column of the chunks that a part of a plane meets."""
    return [
        (y, x)
        for y in range(box.top // CHUNK, (box.bottom - 1) // CHUNK + 1)
        for x in range(box.left // CHUNK, (box.right - 1) // CHUNK + 1)
    ]

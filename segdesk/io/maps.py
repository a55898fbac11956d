"""Maps of a prediction, TIFF or Zarr, read whole or a box at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from segdesk.core.errors import SegDeskError
from segdesk.core.prediction import Prediction
from segdesk.io.labels import read_plane
from segdesk.io.rasters import DECODE_ERRORS

if TYPE_CHECKING:
    import numpy.typing as npt

    Box = slice | tuple[slice, ...]


def is_zarr(prediction: Prediction) -> bool:
    """Whether labels and uncertainty are Zarr arrays, the image being very large."""
    return (prediction.folder / "labels.zarr").is_dir()


class PredictedMap:
    """Labels or uncertainty of a prediction, for an index of slices; any thread may read.

    What was predicted at a coarser level of the image is repeated up to the image's shape.

    Parameters
    ----------
    name
        ``labels`` or ``uncertainty``.
    shape
        (Y, X) or (Z, Y, X) of the image.

    Raises
    ------
    SegDeskError
        The file is missing, damaged, or of another number of planes.
    """

    def __init__(self, prediction: Prediction, name: str, shape: tuple[int, ...]) -> None:
        self._file = prediction.folder / f"{name}.zarr"
        self.shape = shape
        if self._file.is_dir():
            import zarr  # takes half a second, and few need it

            try:
                self._array: Any = zarr.open_array(str(self._file), mode="r")
            except DECODE_ERRORS as error:
                raise self._damaged() from error
        else:
            self._array = read_plane(prediction.folder / f"{name}.tif")
        told = tuple(self._array.shape)
        self._lead: tuple[int, ...] = () if len(told) == len(shape) else (0,)
        self._own = told[len(self._lead) :]
        if len(self._own) != len(shape) or self._own[:-2] != shape[:-2]:
            raise SegDeskError(
                f"The prediction in {prediction.folder} has another size than the image; predict "
                "that image again."
            )

    def __getitem__(self, box: Box) -> npt.NDArray[Any]:
        sides = box if isinstance(box, tuple) else (box,)
        sides += (slice(None),) * (len(self.shape) - len(sides))
        ranges = [range(*side.indices(n)) for side, n in zip(sides, self.shape, strict=True)]
        if self._own == self.shape:
            return self._read(tuple(slice(r.start, r.stop, r.step) for r in ranges))
        places = [
            np.arange(r.start, r.stop, r.step) * own // whole
            for r, own, whole in zip(ranges, self._own, self.shape, strict=True)
        ]
        if any(not len(place) for place in places):
            return np.zeros([len(place) for place in places], self._array.dtype)
        found = self._read(tuple(slice(int(p[0]), int(p[-1]) + 1) for p in places))
        for axis, place in enumerate(places):
            found = np.take(found, place - place[0], axis)
        return found

    def _read(self, box: tuple[slice, ...]) -> npt.NDArray[Any]:
        try:
            return np.asarray(self._array[(*self._lead, *box)])
        except DECODE_ERRORS as error:
            raise self._damaged() from error

    def _damaged(self) -> SegDeskError:
        return SegDeskError(
            f"The prediction in {self._file.parent} is damaged and cannot be read; predict that "
            "image again."
        )

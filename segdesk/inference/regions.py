"""Where in a plane the model is most uncertain: boxes to look at, the worst first.

No torch: the window may use this too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

#: Side of a box, in pixels: an object or two with their surroundings.
SIDE: Final = 64
#: Places are found to so many pixels: the mean of a cell this large is one number.
CELL: Final = 8
#: Rows of cells that are read at a time.
BAND: Final = 64
#: A place with less than this share of the worst one's uncertainty is none.
LEAST: Final = 0.1


class Values(Protocol):
    """A plane of uncertainty, float32 (Y, X), 0 to 1: an array, or one that is read in boxes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width."""

    def __getitem__(self, box: tuple[slice, slice], /) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Region:
    """An uncertain place.

    Attributes
    ----------
    z, y, x
        Plane, first row and first column.
    height, width
        Of the box, in pixels.
    mean
        Mean uncertainty in the box, 0 to 1.
    """

    z: int
    y: int
    x: int
    height: int
    width: int
    mean: float

    @property
    def pixels(self) -> int:
        """How many pixels the box has."""
        return self.height * self.width

    @property
    def total(self) -> float:
        """The sum of the uncertainty in the box."""
        return self.mean * self.pixels

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def find_regions(
    uncertainty: Values, count: int = 10, *, side: int = SIDE, z: int = 0
) -> list[Region]:
    """Return the most uncertain places of a plane, by total uncertainty, the largest first.

    Boxes of one size that do not overlap. Each is placed where the uncertainty, smoothed
    over the box, is largest among what the boxes before it left over. Boxes and not
    connected pixels: where the outlines of all objects are uncertain and touch, those are
    one piece as large as the image.

    Parameters
    ----------
    uncertainty
        float32 (Y, X), 0 to 1; read a band of rows at a time, and each place found.
    count
        How many at most; fewer where the rest is not uncertain (see :data:`LEAST`).
    side
        Height and width of a box, in pixels; less where the plane is smaller.
    z
        Number of the plane, for the result.
    """
    from scipy.ndimage import gaussian_filter  # slow to import, and the window starts without

    shape = uncertainty.shape
    cell = max(1, min(CELL, side // 4, *shape))
    cells = _cell_means(uncertainty, cell)
    box = [min(-(-side // cell), n) for n in cells.shape]
    smooth = gaussian_filter(cells, [b / 4 for b in box], mode="constant")
    # The corner of the box whose middle a cell is; boxes at the border move inwards.
    room = [n - b + 1 for n, b in zip(cells.shape, box, strict=True)]
    shift = [b // 2 for b in box]
    score = smooth[shift[0] : shift[0] + room[0], shift[1] : shift[1] + room[1]].copy()
    found: list[Region] = []
    for _ in range(count):
        row, column = (int(i) for i in np.unravel_index(score.argmax(), score.shape))
        if not score[row, column] > 0:
            break
        found.append(_region(uncertainty, row, column, box, cell, z))
        top, left = max(0, row - box[0] + 1), max(0, column - box[1] + 1)
        score[top : row + box[0], left : column + box[1]] = -1.0
    found.sort(key=lambda region: region.total, reverse=True)
    return [region for region in found if region.total >= LEAST * found[0].total]


def find_regions_of_stack(planes: Iterable[Values], count: int = 10) -> list[Region]:
    """Return the most uncertain places of all planes of an image."""
    found = [region for z, plane in enumerate(planes) for region in find_regions(plane, count, z=z)]
    return sorted(found, key=lambda region: region.total, reverse=True)[:count]


def _cell_means(plane: Values, cell: int) -> Floats:
    """Return the sum over each cell, over a whole cell's area; border cells may be cut."""
    height, width = plane.shape
    means = []
    for top in range(0, height, BAND * cell):
        band = plane[top : min(top + BAND * cell, height), :width]
        if any(n % cell for n in band.shape):
            band = np.pad(band, [(0, -n % cell) for n in band.shape])
        rows = band.reshape(-1, cell, band.shape[1]).sum(1)  # a quarter of the time of reduceat
        sums = rows.reshape(len(rows), -1, cell).sum(2)
        means.append((sums / cell**2).astype(np.float32))
    return np.concatenate(means)


def _region(
    uncertainty: Values, row: int, column: int, box: list[int], cell: int, z: int
) -> Region:
    y, x = row * cell, column * cell
    part = uncertainty[y : y + box[0] * cell, x : x + box[1] * cell]
    height, width = part.shape
    return Region(z, y, x, height, width, round(float(part.mean(dtype=np.float64)), 6))

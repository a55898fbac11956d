"""Cutting a plane into overlapping tiles and blending them again: geometry only.

Tiles lie on a regular grid that reaches over the plane's borders, where the image is
mirrored (overlap-tile, Ronneberger et al., MICCAI 2015). Where tiles overlap, their
maps are averaged with Gaussian weights (Isensee et al., Nature Methods 18, 203, 2021):
a network knows least about the pixels at a tile's edge. Along each axis the weights of
all tiles over a pixel sum to one, so a part of the plane is finished as soon as its own
tiles are, and only the strips where tiles meet have to be kept: memory grows with the
side of a plane, and not with its area.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from segdesk.core.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

#: Standard deviation of the Gaussian, as a share of a tile's side.
SIGMA = 0.125


class Box(NamedTuple):
    """Part of a plane: rows ``top`` up to ``bottom``, columns ``left`` up to ``right``."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the part in the plane's array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    def meets(self, other: Box) -> bool:
        """Whether the two have pixels in common."""
        return (
            self.top < other.bottom
            and other.top < self.bottom
            and self.left < other.right
            and other.left < self.right
        )


class Tile(NamedTuple):
    """Place of a tile in the grid: row and column, counted from 0."""

    row: int
    column: int


@dataclass(frozen=True)
class Sides:
    """What sides a network's tiles may have, in pixels.

    Attributes
    ----------
    stride
        Sides are ``smallest`` plus a multiple of this.
    smallest
        Least side of the result.
    context
        Pixels that the network needs around its result on each side: above 0 for
        unpadded convolutions, whose tiles are not blended, for they are exact.
    """

    stride: int
    smallest: int = 1
    context: int = 0

    def up(self, length: int) -> int:
        """Return the least side from ``length`` on."""
        least = self.smallest if self.context else -(-self.smallest // self.stride) * self.stride
        return least + max(0, -(-(length - least) // self.stride)) * self.stride

    def down(self, length: int) -> int:
        """Return the largest side up to ``length``, or the least there is."""
        up = self.up(length)
        return up if up <= length else max(self.up(1), up - self.stride)


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis of a plane.

    Attributes
    ----------
    length
        Pixels of the plane.
    size
        Pixels of a tile's result.
    used
        How many of them are used: all, or with unpadded convolutions as many as tiles
        lie apart.
    starts
        First pixel of each tile's result; below 0 lies the mirror image.
    """

    length: int
    size: int
    used: int
    starts: tuple[int, ...]

    def span(self, index: int) -> tuple[int, int]:
        """Return the first pixel of the plane that a tile decides, and the one after the last."""
        start = self.starts[index]
        used = self.used if index < len(self.starts) - 1 else self.size
        return max(0, start), min(self.length, start + used)

    @cached_property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """Pieces of the axis, each under the same tiles from end to end."""
        ends = {end for index in range(len(self.starts)) for end in self.span(index)}
        return tuple(pairwise(sorted(ends)))

    @cached_property
    def tiles_over(self) -> tuple[int, ...]:
        """How many tiles lie over each cell."""
        spans = [self.span(index) for index in range(len(self.starts))]
        return tuple(sum(a <= start and stop <= b for a, b in spans) for start, stop in self.cells)

    @cached_property
    def cells_under(self) -> tuple[range, ...]:
        """The cells under each tile."""
        found = []
        for index in range(len(self.starts)):
            a, b = self.span(index)
            under = [n for n, (start, stop) in enumerate(self.cells) if a <= start and stop <= b]
            found.append(range(under[0], under[-1] + 1))
        return tuple(found)

    @cached_property
    def weights(self) -> tuple[Floats, ...]:
        """Weight of each tile's pixels, (size,); over a pixel of the plane they sum to one."""
        offset = np.arange(self.size) - (self.size - 1) / 2
        # In single precision it is 0 at no offset within a tile: exp(-8) at its edge.
        bell = np.exp(-0.5 * (offset / (self.size * SIGMA)) ** 2)
        first = self.starts[0]
        total = np.zeros(self.starts[-1] + self.size - first)
        for start in self.starts:
            total[start - first : start - first + self.size] += bell
        return tuple(
            (bell / total[start - first : start - first + self.size]).astype(np.float32)
            for start in self.starts
        )


@dataclass(frozen=True)
class TilePlan:
    """How a plane is cut.

    Attributes
    ----------
    rows, columns
        The tiles along each axis.
    context
        See :class:`Sides`.
    """

    rows: Axis
    columns: Axis
    context: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the plane, in pixels."""
        return self.rows.length, self.columns.length

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a tile's result, in pixels."""
        return self.rows.size, self.columns.size

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what the network is given, in pixels."""
        height, width = self.size
        return height + 2 * self.context, width + 2 * self.context

    @property
    def tiles(self) -> list[Tile]:
        """All tiles, in reading order."""
        return [
            Tile(row, column)
            for row in range(len(self.rows.starts))
            for column in range(len(self.columns.starts))
        ]

    def box(self, tile: Tile) -> Box:
        """Return the part of the plane a tile's result lies over."""
        return Box(*self.rows.span(tile.row), *self.columns.span(tile.column))

    def input_box(self, tile: Tile) -> Box:
        """Return what the network is given; it may reach over the plane's borders."""
        top = self.rows.starts[tile.row] - self.context
        left = self.columns.starts[tile.column] - self.context
        height, width = self.input_size
        return Box(top, top + height, left, left + width)

    def nearest_first(self, tiles: Iterable[Tile], view: Box) -> list[Tile]:
        """Sort tiles: those over ``view`` first, and from its middle outwards."""
        middle = (view.top + view.bottom) / 2, (view.left + view.right) / 2

        def rank(tile: Tile) -> tuple[bool, float]:
            box = self.box(tile)
            down, right = (box.top + box.bottom) / 2, (box.left + box.right) / 2
            return not box.meets(view), math.hypot(down - middle[0], right - middle[1])

        return sorted(tiles, key=rank)


def plan(shape: tuple[int, int], tile_size: int, overlap: int, sides: Sides) -> TilePlan:
    """Plan tiles that cover a plane.

    There are as few tiles as ``tile_size`` allows; they are then made as small as still
    covers the plane with the wished overlap and, where that costs no further tile, half
    of it beyond the borders. Tiles begin at multiples of the stride, so that a network
    halves all of them at the same places, whatever their size.

    Raises
    ------
    InputError
        ``tile_size`` does not fit the network (the nearest one is named), or the
        overlap leaves no room to move on.
    """
    if sides.up(tile_size) != tile_size and not sides.context:
        nearest = min(sides.up(tile_size), sides.down(tile_size), key=lambda n: abs(n - tile_size))
        why = (
            f"is too small for this model: it needs at least {sides.up(1)}"
            if tile_size < sides.up(1)
            else f"does not fit this model: it needs multiples of {sides.stride}; the nearest is "
            f"{nearest}"
        )
        raise InputError(f"A tile of {tile_size} pixels {why}.")
    size = sides.down(tile_size)
    shared = size % sides.stride if sides.context else overlap
    if size - shared < sides.stride:
        raise InputError(
            f"An overlap of {overlap} pixels leaves nothing of tiles of {tile_size}; choose at "
            f"most {tile_size // 2}."
        )
    axes = [_plan_axis(length, size, shared, sides) for length in shape]
    return TilePlan(axes[0], axes[1], sides.context)


def _plan_axis(length: int, most: int, overlap: int, sides: Sides) -> Axis:
    def step_of(size: int) -> int:
        return (size - overlap) // sides.stride * sides.stride

    count = max(1, -(-(length - most) // step_of(most)) + 1)
    beyond = 0
    if not sides.context:
        slack = most + (count - 1) * step_of(most) - length
        beyond = min(overlap // 2, slack // 2) // sides.stride * sides.stride
    size = sides.up(-(-(length + 2 * beyond + (count - 1) * overlap) // count))
    while size < most and size + (count - 1) * step_of(size) < length + 2 * beyond:
        size += sides.stride  # steps are rounded down to the stride
    size = min(size, most)
    step = step_of(size) if count > 1 else 0
    used = step if step and sides.context else size
    return Axis(length, size, used, tuple(i * step - beyond for i in range(count)))


def mirrored(
    read: Callable[[slice, slice], npt.NDArray[Any]], shape: tuple[int, int], box: Box
) -> npt.NDArray[Any]:
    """Read a part of a plane that may reach over its borders, where it is mirrored.

    The border pixel itself is not repeated; a plane smaller than what lies beyond it
    is mirrored again and again, like a room between two mirrors.

    Parameters
    ----------
    read
        Returns (h, w, C) of rows and columns within the plane.
    shape
        Height and width of the plane.
    """
    rows = _reflect(np.arange(box.top, box.bottom), shape[0])
    columns = _reflect(np.arange(box.left, box.right), shape[1])
    top, left = int(rows.min()), int(columns.min())
    block = read(slice(top, int(rows.max()) + 1), slice(left, int(columns.max()) + 1))
    is_within = top == box.top and left == box.left
    if is_within and block.shape[:2] == (len(rows), len(columns)):
        return block
    return block[rows - top][:, columns - left]


def _reflect(place: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    period = max(1, 2 * (length - 1))
    place = place % period
    return np.minimum(place, period - place) if length > 1 else np.zeros_like(place)


class Blender:
    """Puts tiles together and hands on each part of the plane when it is finished.

    Parameters
    ----------
    tiling
        The plan the tiles come from.
    emit
        Called with a part of the plane and its maps, float32 (K, h, w); every pixel
        comes exactly once. The maps may be a view of what :meth:`add` was given.
    """

    def __init__(self, tiling: TilePlan, emit: Callable[[Box, Floats], None]) -> None:
        self._tiling = tiling
        self._emit = emit
        self._open: dict[tuple[int, int], tuple[Floats, int]] = {}

    def add(self, tile: Tile, maps: Floats) -> None:
        """Take one tile's maps, float32 (K, h, w)."""
        rows, columns = self._tiling.rows, self._tiling.columns
        for i in rows.cells_under[tile.row]:
            for j in columns.cells_under[tile.column]:
                self._add_cell(tile, i, j, maps)

    def _add_cell(self, tile: Tile, i: int, j: int, maps: Floats) -> None:
        rows, columns = self._tiling.rows, self._tiling.columns
        (top, bottom), (left, right) = rows.cells[i], columns.cells[j]
        box = Box(top, bottom, left, right)
        y, x = rows.starts[tile.row], columns.starts[tile.column]
        inside = slice(top - y, bottom - y), slice(left - x, right - x)
        part = maps[:, inside[0], inside[1]]
        needed = rows.tiles_over[i] * columns.tiles_over[j]
        if needed == 1:
            self._emit(box, part)
            return
        weight = np.multiply.outer(
            rows.weights[tile.row][inside[0]], columns.weights[tile.column][inside[1]]
        )
        total, seen = self._open.pop((i, j), (np.zeros(part.shape, np.float32), 0))
        total += part * weight
        if seen + 1 == needed:
            self._emit(box, total)
        else:
            self._open[i, j] = (total, seen + 1)

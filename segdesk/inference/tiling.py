"""Cutting an image into overlapping tiles and blending them again: geometry only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segdesk.core.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile's corner in the padded image, in pixels."""

    y: int
    x: int


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How a plane is padded and cut.

    Attributes
    ----------
    shape
        Height and width of the plane, in pixels.
    size
        Height and width of every tile; multiples of the stride.
    margin
        Mirrored pixels in front of the plane on both axes.
    padded
        Height and width after padding on all sides.
    tiles
        Corners, in reading order.
    """

    shape: tuple[int, int]
    size: tuple[int, int]
    margin: int
    padded: tuple[int, int]
    tiles: tuple[Tile, ...]


def plan(
    shape: tuple[int, int], tile_size: int, overlap: int, stride: int, min_size: int = 1
) -> TilePlan:
    """Plan tiles that cover a plane and its mirrored border.

    A plane that fits is one tile of its own size, rounded up to the stride and to
    ``min_size``, the smallest side the model takes.

    Raises
    ------
    InputError
        ``tile_size`` is no multiple of ``stride`` (the nearest one is named), or
        the overlap leaves no room to move on.
    """
    if tile_size % stride:
        nearest = max(stride, round(tile_size / stride) * stride)
        raise InputError(
            f"A tile of {tile_size} pixels does not fit this model: it needs multiples of "
            f"{stride}; the nearest is {nearest}."
        )
    if tile_size < min_size:
        nearest = -(-min_size // stride) * stride
        raise InputError(
            f"A tile of {tile_size} pixels is too small for this model: it needs at least "
            f"{nearest}."
        )
    if overlap >= tile_size:
        raise InputError(
            f"An overlap of {overlap} pixels leaves nothing of tiles of {tile_size}; choose at "
            f"most {tile_size // 2}."
        )
    margin = overlap // 2
    least = -(-min_size // stride) * stride
    axes = [_plan_axis(length, tile_size, overlap, margin, stride, least) for length in shape]
    (height, starts_y), (width, starts_x) = axes
    return TilePlan(
        shape=shape,
        size=(height, width),
        margin=margin,
        padded=(starts_y[-1] + height, starts_x[-1] + width),
        tiles=tuple(Tile(y, x) for y in starts_y for x in starts_x),
    )


def _plan_axis(
    length: int, tile_size: int, overlap: int, margin: int, stride: int, least: int
) -> tuple[int, list[int]]:
    needed = length + 2 * margin
    if needed <= tile_size:
        return max(-(-needed // stride) * stride, least), [0]
    step = tile_size - overlap
    count = -(-(needed - tile_size) // step) + 1
    return tile_size, [i * step for i in range(count)]


def pad(plane: npt.NDArray[np.float32], tiling: TilePlan) -> npt.NDArray[np.float32]:
    """Mirror a plane's borders; (Y, X, C) float32 in, padded (Y', X', C) out.

    The mirror repeats for planes smaller than the margin, down to one pixel.
    """
    after = [
        total - length - tiling.margin
        for total, length in zip(tiling.padded, tiling.shape, strict=True)
    ]
    widths = [(tiling.margin, after[0]), (tiling.margin, after[1]), (0, 0)]
    return np.pad(plane, widths, mode="reflect")


def window(size: tuple[int, int], sigma_fraction: float = 0.125) -> npt.NDArray[np.float32]:
    """Return a Gaussian weight per tile pixel, largest in the middle, never 0.

    A network knows least about the pixels at a tile's edge; sigma is 1/8 of the
    side, as nnU-Net has it (Isensee et al., Nature Methods 18, 203, 2021).
    """
    axes = []
    for length in size:
        distance = np.arange(length) - (length - 1) / 2
        axes.append(np.exp(-0.5 * (distance / (length * sigma_fraction)) ** 2))
    weights: npt.NDArray[np.float32] = np.maximum(np.outer(*axes), 1e-4).astype(np.float32)
    return weights


class Blender:
    """Adds weighted tiles up; ``result`` gives their weighted mean.

    Parameters
    ----------
    tiling
        The plan the tiles come from.
    channels
        Number of maps K per tile.
    """

    def __init__(self, tiling: TilePlan, channels: int) -> None:
        self._tiling = tiling
        self._window = window(tiling.size)
        self._sum = np.zeros((channels, *tiling.padded), np.float32)
        self._weight = np.zeros(tiling.padded, np.float32)

    def add(self, tile: Tile, maps: npt.NDArray[np.float32]) -> None:
        """Add one tile's maps, float32 (K, h, w)."""
        height, width = self._tiling.size
        box = (slice(tile.y, tile.y + height), slice(tile.x, tile.x + width))
        self._sum[(slice(None), *box)] += maps * self._window
        self._weight[box] += self._window

    def result(self) -> npt.NDArray[np.float32]:
        """Return the blended maps of the plane, float32 (K, Y, X)."""
        margin = self._tiling.margin
        box = tuple(slice(margin, margin + length) for length in self._tiling.shape)
        blended: npt.NDArray[np.float32] = self._sum[(slice(None), *box)] / self._weight[box]
        return blended

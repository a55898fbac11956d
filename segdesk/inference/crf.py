"""The fully connected CRF: every pixel of a plane is tied to every other one.

Model and mean-field inference: Kraehenbuehl & Koltun, *Efficient inference in fully
connected CRFs with Gaussian edge potentials*, NIPS 2011. Filter: Adams, Baek & Davis,
*Fast high-dimensional filtering using the permutohedral lattice*, Eurographics 2010.

As in the authors' own program, kernels are normalised symmetrically, and a pixel also
counts among its own neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array

from segdesk.config.refinement import CrfConfig
from segdesk.jobs.cancel import CancelToken

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

#: Side, in pixels, of the largest plane of three channels that is worked in one piece.
BLOCK = 1024
#: Most pixels that neighbouring blocks of a larger plane see of each other.
HALO = 128
#: No class is ruled out for good: probabilities count as at least this.
LEAST_PROBABILITY = 1e-5
#: Classes filtered together; more only takes more memory.
GROUP = 8


def _ignore(done: int, total: int) -> None:
    del done, total


class Lattice:
    """A permutohedral lattice: Gaussian filtering of points in many dimensions.

    Built once for the points, used for any number of filterings. The result is that of
    a Gaussian of standard deviation one up to a factor common to all points, which
    symmetric normalisation takes out.

    Parameters
    ----------
    features
        float32 (N, D), coordinates divided by the standard deviations.
    """

    def __init__(self, features: Floats) -> None:
        count, dimensions = features.shape
        self._corners = dimensions + 1
        # A lattice point is looked up by a hash that is linear in its coordinates, so that
        # a step along an axis adds a constant. Of ten million points, two share one of the
        # 2**64 values once in some hundred thousand images.
        random = np.random.default_rng(0)
        factors = random.integers(0, 2**64, dimensions, np.uint64) | np.uint64(1)
        keys, weights = _simplices(features, factors)
        points, index = np.unique(keys, return_inverse=True)
        self._size = len(points)
        starts = np.arange(0, count * self._corners + 1, self._corners)
        self._slice = csr_array(
            (weights.reshape(-1), index.reshape(-1).astype(np.int32), starts),
            shape=(count, self._size),
        )
        self._splat = self._slice.T.tocsr()
        self._neighbours = [self._along(points, step) for step in _steps(factors)]

    def filter(self, values: Floats) -> Floats:
        """Filter float32 (N, K) and return the same shape."""
        field = np.zeros((self._size + 1, values.shape[1]), np.float32)  # the last row stays 0
        field[:-1] = self._splat @ values
        for before, after in self._neighbours:
            blurred = field[before]
            blurred += field[after]
            blurred *= np.float32(0.5)
            field[:-1] += blurred
        result: Floats = self._slice @ field[:-1]
        return result

    def _along(
        self, points: npt.NDArray[np.uint64], step: np.uint64
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return for each point the row of the one before and after it along an axis."""
        wanted = points + step
        place = np.searchsorted(points, wanted)
        place[place == self._size] = 0
        here = np.flatnonzero(points[place] == wanted).astype(np.int32)
        there = place[here].astype(np.int32)
        after = np.full(self._size, self._size, np.int32)
        before = after.copy()
        after[here] = there
        before[there] = here
        return before, after


def _steps(factors: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return what a step along each of the D + 1 lattice axes adds to a hash."""
    steps = np.zeros(len(factors) + 1, np.uint64)
    steps[:-1] = factors * np.uint64(len(steps))
    steps -= factors.sum(dtype=np.uint64)
    return steps


def _simplices(
    features: Floats, factors: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], Floats]:
    """Find the simplex around each point: hashes of its corners and barycentric weights.

    Returns
    -------
    keys, weights
        uint64 and float32, (N, D + 1).
    """
    count, dimensions = features.shape
    corners = dimensions + 1
    elevated = _elevate(features)
    base = np.rint(elevated / np.float32(corners)).astype(np.int32)  # nearest 0-coloured point
    excess = base.sum(0)
    base *= corners
    rest = elevated - base
    rank = np.zeros(base.shape, np.int32)
    for i in range(corners):
        for j in range(i + 1, corners):
            is_less = rest[i] < rest[j]
            rank[i] += is_less
            rank[j] += ~is_less
    # Where the coordinates do not sum to zero, the outermost ones move by one cell.
    rank += excess
    base[rank < 0] += corners
    base[rank >= corners] -= corners
    rank %= corners
    rest = (elevated - base) / np.float32(corners)
    # Sorted by rank, largest first: the weights are the gaps between neighbours.
    ordered = np.empty_like(rest)
    np.put_along_axis(ordered, rank.astype(np.int64), rest, 0)
    weights = np.empty((count, corners), np.float32)
    weights[:, 0] = 1 + ordered[-1] - ordered[0]
    for color in range(1, corners):
        weights[:, color] = ordered[dimensions - color] - ordered[corners - color]
    keys = np.empty((count, corners), np.uint64)
    for color in range(corners):
        point = base[:-1] + np.where(rank[:-1] <= dimensions - color, color, color - corners)
        # Negative coordinates wrap round, and so does the sum: both are meant.
        keys[:, color] = (point.astype(np.int64).view(np.uint64) * factors[:, None]).sum(0)
    return keys, weights


def _elevate(features: Floats) -> Floats:
    """Put points on the plane in D + 1 dimensions whose coordinates sum to zero, (D + 1, N).

    Scaled such that the blur of the lattice has a standard deviation of one.
    """
    dimensions = features.shape[1]
    elevated = np.empty((dimensions + 1, len(features)), np.float32)
    total = np.zeros(len(features), np.float32)
    for axis in range(dimensions, 0, -1):
        scale = (dimensions + 1) * np.sqrt(2 / 3) / np.sqrt(axis * (axis + 1))
        value = features[:, axis - 1] * np.float32(scale)
        elevated[axis] = total - axis * value
        total += value
    elevated[0] = total
    return elevated


def refine(
    probabilities: Floats,
    grey: Floats,
    config: CrfConfig,
    token: CancelToken | None = None,
    progress: Callable[[int, int], None] = _ignore,
) -> Floats:
    """Return the class probabilities of a plane after mean-field inference.

    A plane of more than 1024 pixels a side is worked in blocks of at most that (smaller
    ones where there are more than three channels). Each sees 128 pixels of its neighbours,
    less where both reaches are small; beyond that, pixels of different blocks are not tied.
    So what is needed beside the maps themselves does not grow with the plane: about 1 GB.

    Parameters
    ----------
    probabilities
        float32 (K, Y, X), summing to one over K.
    grey
        float32 (Y, X, C), any C, in grey levels of 0 to 255.
    token
        Looked at before every iteration.
    progress
        Called with iterations done and iterations in all.

    Raises
    ------
    CanceledError
        ``token`` was set.
    """
    result = np.empty(probabilities.shape, np.float32)
    blocks = list(_blocks(grey.shape, config))
    total = len(blocks) * config.iterations
    for number, (seen, kept, inside) in enumerate(blocks):
        first = number * config.iterations
        field = _MeanField(probabilities[(slice(None), *seen)], grey[seen], config)
        for iteration in range(config.iterations):
            if token is not None:
                token.check()
            progress(first + iteration, total)
            field.step()
        result[(slice(None), *kept)] = field.marginals[(slice(None), *inside)]
    progress(total, total)
    return result


Box = tuple[slice, slice]


def _blocks(shape: tuple[int, ...], config: CrfConfig) -> Iterator[tuple[Box, Box, Box]]:
    """Cut a plane: what a block sees, what is kept of it, and where that lies inside it."""
    *sides, channels = shape
    # The lattice of N pixels takes up to N times the square of the number of dimensions.
    side = min(BLOCK, BLOCK * 6 // (channels + 3))
    reach = 2 * max(config.appearance_px, config.smoothness_px)
    halo = min(HALO, side // 4, int(np.ceil(reach)))
    rows, columns = (_spans(length, side, halo) for length in sides)
    for seen_y, kept_y, inside_y in rows:
        for seen_x, kept_x, inside_x in columns:
            yield (seen_y, seen_x), (kept_y, kept_x), (inside_y, inside_x)


def _spans(length: int, side: int, halo: int) -> list[tuple[slice, slice, slice]]:
    if length <= side:
        return [(slice(0, length),) * 3]
    count = -(-length // (side - 2 * halo))
    bounds = [round(i * length / count) for i in range(count + 1)]
    spans = []
    for start, stop in pairwise(bounds):
        low, high = max(0, start - halo), min(length, stop + halo)
        spans.append((slice(low, high), slice(start, stop), slice(start - low, stop - low)))
    return spans


class _MeanField:
    """The marginals of one block, and a step that updates all of them at once."""

    def __init__(self, probabilities: Floats, grey: Floats, config: CrfConfig) -> None:
        self._config = config
        self._logs = np.log(np.maximum(probabilities, np.float32(LEAST_PROBABILITY)))
        self.marginals = _softmax(self._logs.copy())
        shape = probabilities.shape[1:]
        ones = np.ones((1, *shape), np.float32)
        self._lattice = Lattice(_features(grey, config)) if config.appearance_weight else None
        self._near = _inverse_root(self._blur(ones))
        self._alike = _inverse_root(self._filter(ones)) if self._lattice else ones

    def step(self) -> None:
        """Do one iteration."""
        logs = self._logs.copy()
        for start in range(0, len(logs), GROUP):
            group = slice(start, start + GROUP)
            if self._config.smoothness_weight:
                message = self._near * self._blur(self._near * self.marginals[group])
                logs[group] += np.float32(self._config.smoothness_weight) * message
            if self._lattice:
                message = self._alike * self._filter(self._alike * self.marginals[group])
                logs[group] += np.float32(self._config.appearance_weight) * message
        self.marginals = _softmax(logs)

    def _blur(self, maps: Floats) -> Floats:
        """Apply the smoothness kernel, which has two dimensions only, without a lattice."""
        sigma = (0.0, self._config.smoothness_px, self._config.smoothness_px)
        blurred: Floats = gaussian_filter(maps, sigma, mode="constant")
        return blurred

    def _filter(self, maps: Floats) -> Floats:
        """Apply the appearance kernel to float32 (K, Y, X)."""
        if self._lattice is None:
            return maps
        points = np.ascontiguousarray(maps.reshape(len(maps), -1).T)
        return self._lattice.filter(points).T.reshape(maps.shape)


def _features(grey: Floats, config: CrfConfig) -> Floats:
    """Return position and grey values in units of their sigmas, float32 (Y * X, 2 + C)."""
    height, width, channels = grey.shape
    features = np.empty((height, width, 2 + channels), np.float32)
    features[..., 0] = np.arange(height, dtype=np.float32)[:, None] / config.appearance_px
    features[..., 1] = np.arange(width, dtype=np.float32) / config.appearance_px
    features[..., 2:] = grey / np.float32(config.appearance_grey)
    return features.reshape(height * width, -1)


def _inverse_root(total: Floats) -> Floats:
    root: Floats = 1 / np.sqrt(total + np.float32(1e-20))
    return root


def _softmax(logs: Floats) -> Floats:
    """Turn logarithms (K, Y, X) into probabilities, in place."""
    logs -= logs.max(0)
    np.exp(logs, out=logs)
    logs /= logs.sum(0)
    return logs

"""Images that are the same picture: saved anew, scaled, brightened, turned, shifted, cut a little.

Small grey versions are compared, in which wide structure, which images of a kind share, is taken
away and what is left counts alike wherever it lies: else a black frame, or a single dark spot,
would outweigh all the rest. A coarse look sorts out nearly all pairs: each picture turned, scaled
and shifted in all ways that leave it the same, against versions of 16 pixels. The few pairs left
are registered: scale and shift along both sides are refined until what both show correlates best,
at 32 pixels and then at 64. What is found, and what wrongly, is in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image
from scipy import ndimage

if TYPE_CHECKING:
    import numpy.typing as npt

    Picture = npt.NDArray[np.float32]
    Numbers = npt.NDArray[np.intp]

#: Side of the small grey versions, in pixels, and how many planes of a stack have one.
SIDE: Final = 64
MOST_PLANES: Final = 64

#: Structure wider than this (in pixels of the small version) is common to many images of a
#: kind, such as a dark corner, and says nothing; finer than the other, it differs between two
#: files of one picture.
WIDE_SIGMA: Final = 4.0
NOISE_SIGMA: Final = 0.7

#: Where a picture has less contrast than this share of its own, it is not raised to all of it.
LEAST_CONTRAST: Final = 0.3

#: Side of the versions that sort out nearly all pairs.
COARSE_SIDE: Final = 16

#: Correlations that let a pair pass at 16 and at 32 pixels, and that make it the same picture at
#: 64. Different pictures stay below 0.76 there, copies that were cut and saved anew above 0.9.
COARSE_LIKE: Final = 0.6
MIDDLE_LIKE: Final = 0.6
FINE_LIKE: Final = 0.8

#: What the coarse look tries along each side: scales, and shifts in parts of the side.
SCALES: Final = (0.93, 1.0, 1.07)
SHIFTS: Final = (-0.06, -0.02, 0.02, 0.06)

#: What registration may come to; a copy cut by five percent at each edge lies within.
MOST_SCALE: Final = 1.16
MOST_SHIFT: Final = 0.12

#: Rounds of registration on each side, and how far one goes at most.
ROUNDS: Final = 5
FARTHEST: Final = 0.03

#: Planes, and pairs of them, that are taken on at once: their arrays stay small.
PLANES: Final = 1024
PAIRS: Final = 32


def shrink(data: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Return small grey versions of an image's planes.

    Parameters
    ----------
    data
        (Y, X, C) or (Z, Y, X, C), finite.

    Returns
    -------
    numpy.ndarray
        float16 (n, 64, 64), mean 0 and standard deviation 1 each, or all 0 for a plane of
        one value. Of a stack of more than 64 planes, 64 evenly spaced.
    """
    planes = data[None] if data.ndim == 3 else data
    chosen = np.unique(np.linspace(0, len(planes) - 1, min(len(planes), MOST_PLANES)).astype(int))
    return np.stack([_shrink_plane(planes[z]) for z in chosen]).astype(np.float16)


def _shrink_plane(plane: npt.NDArray[Any]) -> Picture:
    # A thousand pixels a side tell as much, and a large image would take seconds.
    step = max(1, min(plane.shape[:2]) // 1000)
    grey = plane[::step, ::step].astype(np.float32).mean(axis=-1)
    return _unit(_resize(grey, SIDE)) * SIDE


def _resize(grey: Picture, side: int) -> Picture:
    small = Image.fromarray(grey).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def _unit(picture: Picture) -> Picture:
    """Return it with mean 0 and length 1; 0 everywhere if it has one value only."""
    centered = picture - picture.mean()
    length = float(np.linalg.norm(centered))
    flat = 1e-5 * (1 + float(np.abs(picture).max())) * picture.shape[0]
    return centered / length if length > flat else np.zeros_like(picture)


class LookAlikes:
    """Finds among many images those that show what another one shows.

    Parameters
    ----------
    pictures
        What :func:`shrink` returns, one array for each image.
    """

    def __init__(self, pictures: list[npt.NDArray[np.float16]]) -> None:
        self._owners = np.repeat(np.arange(len(pictures)), [len(p) for p in pictures])
        none = np.zeros((0, SIDE, SIDE), np.float16)
        self._planes = np.concatenate([none, *pictures])
        still = _sampler(1.0, 0.0)
        parts = (self._planes[at : at + PLANES] for at in range(0, len(self._planes), PLANES))
        self._coarse = [_units(still @ _structure(part) @ still.T) for part in parts]

    def of(
        self, picture: npt.NDArray[np.float16], check: Callable[[], None] = lambda: None
    ) -> dict[int, float]:
        """Return the images that look like this one: number to likeness, 0.8 to 1.

        ``check`` is called before each plane, and may raise to call the search off.
        """
        found: dict[int, float] = {}
        for plane in _structure(picture):
            check()
            turned = np.stack(list(_orientations(plane)))
            numbers, lying, places = self._candidates(turned)
            for at in range(0, len(numbers), PAIRS):
                some = slice(at, at + PAIRS)
                others = _structure(self._planes[numbers[some]])
                likeness = _likeness(others, turned[lying[some]], places[some])
                for number, like in zip(numbers[some], likeness, strict=True):
                    if like > FINE_LIKE:
                        owner = int(self._owners[number])
                        found[owner] = max(float(like), found.get(owner, 0.0))
        return found

    def _candidates(self, turned: Picture) -> tuple[Numbers, Numbers, Picture]:
        """Return planes that may show what a plane shows: numbers, how it lies, and where.

        The last is (n, 2, 2): scale and shift, first along Y.
        """
        ways, samplers = _coarse_ways()
        count = len(ways)
        tried = np.concatenate(
            [
                _units(
                    (samplers @ plane @ samplers.T)
                    .reshape(count, COARSE_SIDE, count, COARSE_SIDE)
                    .transpose(0, 2, 1, 3)
                    .reshape(count**2, COARSE_SIDE, COARSE_SIDE)
                )
                for plane in turned
            ]
        )
        numbers, how = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
        for part, coarse in enumerate(self._coarse):
            likeness = coarse @ tried.T
            best = likeness.argmax(1)
            near = np.flatnonzero(likeness[np.arange(len(best)), best] > COARSE_LIKE)
            numbers.append(near + part * PLANES)
            how.append(best[near])
        lying, place = np.divmod(np.concatenate(how), count**2)
        return np.concatenate(numbers), lying, ways[np.stack(np.divmod(place, count), 1)]


# Planes, and what is compared of them ----------------------------------------------


def _orientations(plane: Picture) -> Iterator[Picture]:
    """Yield the eight ways a square can lie: turned by 90 degrees, and mirrored."""
    for turns in range(4):
        turned = np.rot90(plane, turns)
        yield turned
        yield turned[:, ::-1]


def _structure(planes: npt.NDArray[np.float16]) -> Picture:
    """Return what tells pictures apart, (n, 64, 64): no wide structure, contrast alike."""
    narrow, wide = _smoother(NOISE_SIGMA), _smoother(WIDE_SIGMA)
    grey = planes.astype(np.float32)
    band = narrow @ grey @ narrow.T - wide @ grey @ wide.T
    power = band**2
    around = np.maximum(wide @ power @ wide.T, 0)
    least = LEAST_CONTRAST**2 * power.mean((1, 2), keepdims=True) + 1e-6
    structure: Picture = band / np.sqrt(around + least)
    return structure


@cache
def _smoother(sigma: float) -> Picture:
    """Return the matrix that smooths the columns of a plane: on both sides it is quick."""
    return np.asarray(ndimage.gaussian_filter1d(np.eye(SIDE), sigma, axis=0), np.float32)


def _units(squares: npt.NDArray[Any]) -> Picture:
    """Return them as rows with mean 0 and length 1; 0 for those of one value."""
    rows = squares.reshape(len(squares), -1)
    rows = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    units: Picture = np.where(length > 1e-3, rows / np.maximum(length, 1e-3), 0)
    return units


def _centers(number: int) -> Picture:
    """Return where the pixels of a side lie, from -0.5 to 0.5."""
    return ((np.arange(number) + 0.5) / number - 0.5).astype(np.float32)


def _sampler(scale: float, shift: float) -> Picture:
    """Return the matrix that makes a column of 16 pixels of one of 64, scaled and shifted.

    Each is the mean of four places; beyond the edges there is 0.
    """
    fine = _interpolation(np.array([scale]), np.array([shift]), _centers(4 * COARSE_SIDE), SIDE)
    mean: Picture = fine.reshape(COARSE_SIDE, 4, SIDE).mean(1)
    return mean


@cache
def _coarse_ways() -> tuple[Picture, Picture]:
    """Return scales and shifts along one side, (n, 2), and what makes them, (16 n, 64)."""
    ways = [(scale, shift) for scale in SCALES for shift in SHIFTS]
    return np.array(ways, np.float32), np.concatenate([_sampler(*way) for way in ways])


def _interpolation(scale: Picture, shift: Picture, at: Picture, side: int) -> Picture:
    """Return the matrices that read columns at ``scale * at + shift``, (n, len(at), side)."""
    place = (scale[:, None] * at + shift[:, None] + 0.5) * side - 0.5
    distance = np.abs(place[:, :, None] - np.arange(side, dtype=np.float32))
    weights: Picture = np.maximum(0, 1 - distance)
    return weights


# Registration ------------------------------------------------------------------------


def _likeness(planes: Picture, others: Picture, places: Picture) -> Picture:
    """Return the correlations of pairs of planes, (n,), where they agree best."""
    likeness, places = _register(_halved(planes), _halved(others), places)
    near = np.flatnonzero(likeness > MIDDLE_LIKE)
    found = np.zeros(len(planes), np.float32)
    if len(near):
        found[near], _ = _register(planes[near], others[near], places[near])
    return found


def _halved(planes: Picture) -> Picture:
    half = SIDE // 2
    halved: Picture = planes.reshape(len(planes), half, 2, half, 2).mean((2, 4))
    return halved


def _register(planes: Picture, others: Picture, places: Picture) -> tuple[Picture, Picture]:
    """Scale and shift ``others`` until they agree with ``planes`` best.

    The steps are those of Evangelidis and Psarakis (enhanced correlation coefficient, 2008):
    what matters is the correlation alone, so brightness and contrast may differ.

    Returns
    -------
    tuple
        The correlations of what both show, (n,), and the places where they are highest.
    """
    at = _centers(planes.shape[1])
    best, best_places = np.full(len(planes), -1, np.float32), places
    for number in range(ROUNDS + 1):
        moved, shown = _moved(others, places, at)
        area = np.maximum(shown.sum((1, 2)), 1)[:, None]
        mine, _ = _normalised((planes * shown).reshape(len(planes), -1), shown, area)
        theirs, length = _normalised((moved * shown).reshape(len(planes), -1), shown, area)
        likeness = (mine * theirs).sum(1)
        is_better = likeness > best
        best = np.where(is_better, likeness, best)
        best_places = np.where(is_better[:, None, None], places, best_places)
        if number < ROUNDS:
            slopes = _slopes(moved, shown, area, at) / length[:, :, None]
            slopes -= (slopes @ theirs[:, :, None]) * theirs[:, None]
            places = _step(places, slopes, mine, likeness)
    return best, best_places


def _moved(others: Picture, places: Picture, at: Picture) -> tuple[Picture, Picture]:
    """Return planes scaled and shifted, and 1 where they have something to show."""
    side = len(at)
    rows, columns = (
        _interpolation(places[:, axis, 0], places[:, axis, 1], at, side) for axis in (0, 1)
    )
    inside = [weights.sum(2) > 0.99 for weights in (rows, columns)]
    shown = (inside[0][:, :, None] & inside[1][:, None, :]).astype(np.float32)
    moved: Picture = np.matmul(np.matmul(rows, others), columns.transpose(0, 2, 1))
    return moved, shown


def _normalised(rows: Picture, shown: Picture, area: Picture) -> tuple[Picture, Picture]:
    """Return rows with mean 0 and length 1 where something is shown, and their lengths."""
    centered = (rows - rows.sum(1, keepdims=True) / area) * shown.reshape(rows.shape)
    length: Picture = np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-3)
    units: Picture = centered / length
    return units, length


def _slopes(moved: Picture, shown: Picture, area: Picture, at: Picture) -> Picture:
    """Return how pixels change with scale and shift along Y and X, (n, 4, pixels), mean 0."""
    along_y, along_x = (np.gradient(moved, 1 / len(at), axis=axis) * shown for axis in (1, 2))
    slopes = np.stack([along_y * at[:, None], along_y, along_x * at, along_x], 1)
    flat = slopes.reshape(len(moved), 4, -1)
    mask = shown.reshape(len(moved), 1, -1)
    centered: Picture = flat - mask * (flat.sum(2) / area)[:, :, None]
    return centered


def _step(places: Picture, slopes: Picture, mine: Picture, likeness: Picture) -> Picture:
    """Return the places after one step of Gauss and Newton towards a higher correlation."""
    square = slopes @ slopes.transpose(0, 2, 1)
    # A picture without structure in one direction has no place there: it stays where it is.
    damping = 1e-3 * np.trace(square, axis1=1, axis2=2)[:, None, None] / 4 + 1e-6
    towards = slopes @ mine[:, :, None] / np.maximum(likeness, 0.3)[:, None, None]
    step = np.linalg.solve(square + damping * np.eye(4, dtype=np.float32), towards)
    moved = places + np.clip(step.reshape(-1, 2, 2), -FARTHEST, FARTHEST)
    least = np.array([1 / MOST_SCALE, -MOST_SHIFT], np.float32)
    most = np.array([MOST_SCALE, MOST_SHIFT], np.float32)
    inside: Picture = np.clip(moved, least, most)
    return inside

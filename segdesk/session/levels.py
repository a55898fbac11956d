"""Resolution levels of multiscale images: which there are, and which one is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Final

from segdesk.core.address import Address, is_remote
from segdesk.core.errors import InputError
from segdesk.core.sample import Sample
from segdesk.io.sources import level_shapes
from segdesk.jobs.cancel import CancelToken

Shape = tuple[int, ...]
#: Path, hash and shape: the hash changes with the image.
_Key = tuple[Address, str, Shape]
#: What was found out; no levels of an image that could not be read: that is tried again
#: where it is shown or predicted, but not at each look at what a prediction costs.
_known: Final[dict[_Key, tuple[Shape, ...]]] = {}


def levels_of(sample: Sample) -> tuple[Shape, ...]:
    """Return the shapes of the levels that an image can be predicted at, finest first.

    (Y, X) or (Z, Y, X); one for plain images. Levels with fewer planes than the image do
    not count. Reads no pixels; any thread may call it.

    Raises
    ------
    InputError
        The image cannot be read.
    """
    key = _key(sample)
    found = _known.get(key)
    if not found:
        try:
            shapes = level_shapes(sample.path)
        except InputError:
            _known[key] = ()
            raise
        alike = takewhile(lambda level: level[:-2] == sample.shape[:-2], shapes)
        found = _known[key] = tuple(alike) or (sample.shape,)
    return found


def learn_levels(samples: Sequence[Sample], token: CancelToken) -> None:
    """Find out the levels of images, until called off; any thread may.

    :func:`known_shape_at` tells them afterwards.
    """
    for sample in samples:
        token.check()
        with suppress(InputError):
            levels_of(sample)


def known_shape_at(sample: Sample, level: int) -> Shape | None:
    """Return :func:`shape_at` without opening the image; None while that is not known."""
    levels = _known.get(_key(sample)) if level else (sample.shape,)
    if levels is None:
        return None
    return levels[min(level, len(levels) - 1)] if levels else sample.shape


def shape_at(sample: Sample, level: int) -> Shape:
    """Return the shape that an image has at a level: its coarsest, where it has fewer.

    That of the image itself where the levels cannot be read: predicting it says why.
    """
    return _at(sample, level)[1]


def level_at(sample: Sample, level: int) -> int:
    """Return the level that is predicted where ``level`` is asked for; see :func:`shape_at`."""
    return _at(sample, level)[0]


def _at(sample: Sample, level: int) -> tuple[int, Shape]:
    if level == 0:
        return 0, sample.shape
    if is_remote(sample.path) and _known.get(_key(sample)) == ():
        return level, sample.shape  # its server was asked, and is not to be waited for here
    try:
        levels = levels_of(sample)
    except InputError:
        return level, sample.shape
    found = min(level, len(levels) - 1)
    return found, levels[found]


def _key(sample: Sample) -> _Key:
    return sample.path, sample.sha256, sample.shape

"""Resolution levels of multiscale images: which there are, and which one is predicted."""

from __future__ import annotations

from functools import lru_cache
from itertools import takewhile
from pathlib import Path

from segdesk.core.errors import InputError
from segdesk.core.sample import Sample
from segdesk.io.sources import level_shapes

Shape = tuple[int, ...]


def levels_of(sample: Sample) -> tuple[Shape, ...]:
    """Return the shapes of the levels that an image can be predicted at, finest first.

    (Y, X) or (Z, Y, X); one for plain images. Levels with fewer planes than the image do
    not count. Reads no pixels; any thread may call it.

    Raises
    ------
    InputError
        The image cannot be read.
    """
    return _levels(sample.path, sample.sha256, sample.shape)


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
    try:
        levels = levels_of(sample)
    except InputError:
        return level, sample.shape
    found = min(level, len(levels) - 1)
    return found, levels[found]


# The hash changes with the image. Asked again at each look at what a prediction costs.
@lru_cache(maxsize=4096)
def _levels(path: Path, sha256: str, shape: Shape) -> tuple[Shape, ...]:
    del sha256
    found = level_shapes(path)
    return tuple(takewhile(lambda level: level[:-2] == shape[:-2], found)) or (shape,)

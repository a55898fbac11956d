"""What is in the labels that a run would learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import ndimage

from segdesk.core.annotation import Annotation, Supervision
from segdesk.core.classes import UNLABELLED

if TYPE_CHECKING:
    import numpy.typing as npt

#: A piece is tiny if it has at most so many pixels, and is so many times smaller than half
#: of the pieces of its class in the project: where all objects are small, none is a slip.
#: Pieces of the first class, the background, are gaps between objects and do not count.
TINY_PIXELS: Final = 9
TINY_RATIO: Final = 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A connected piece of one class: its class, size in pixels, and a pixel of it."""

    value: int
    pixels: int
    place: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """Labels of one sample, as far as a person spoke about them.

    Attributes
    ----------
    counts
        int64 (256,): labelled pixels of each value, the unlabelled left out.
    has_accepted
        Whether pixels were accepted, and not only painted.
    areas
        int64 (n, 2): class and size of every connected piece in accepted labels.
    small
        The pieces of at most :data:`TINY_PIXELS` pixels among them.
    """

    counts: npt.NDArray[np.int64]
    has_accepted: bool
    areas: npt.NDArray[np.int64]
    small: tuple[Piece, ...]

    @property
    def values(self) -> set[int]:
        """The classes that occur."""
        return {int(value) for value in np.flatnonzero(self.counts)}


def find_facts(annotation: Annotation, *, is_accepted: bool) -> LabelFacts:
    """Look through the labels of a sample; pieces are sought in accepted ones only."""
    known = annotation.supervision != Supervision.UNSEEN
    counts = np.bincount(annotation.labels[known], minlength=256)
    counts[UNLABELLED] = 0
    has_accepted = bool((annotation.supervision == Supervision.ACCEPTED).any())
    areas, small = _pieces(annotation.labels) if is_accepted else (np.zeros((0, 2), np.int64), ())
    return LabelFacts(counts, has_accepted, areas, small)


def _pieces(
    labels: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.int64], tuple[Piece, ...]]:
    """Return class and size of all connected pieces, and the small ones by themselves."""
    areas: list[npt.NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    small: list[Piece] = []
    neighbours = np.ones((3,) * labels.ndim)
    for value in np.unique(labels):
        if value in (0, UNLABELLED):
            continue
        numbers, count = ndimage.label(labels == value, neighbours)
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        areas.append(np.stack([np.full(count, value, np.int64), sizes], axis=1))
        tiny = np.flatnonzero(sizes <= TINY_PIXELS)
        boxes = ndimage.find_objects(numbers) if tiny.size else []
        for number in tiny.tolist():
            inside = np.argwhere(numbers[boxes[number]] == number + 1)[0]
            corner = [side.start for side in boxes[number]]
            place = tuple(int(a + b) for a, b in zip(corner, inside, strict=True))
            small.append(Piece(int(value), int(sizes[number]), place))
    return np.concatenate(areas), tuple(small)


def tiny_pieces(all_facts: Sequence[LabelFacts]) -> list[list[Piece]]:
    """Return, for each sample, the pieces that look like slips of the brush."""
    areas = [facts.areas for facts in all_facts if len(facts.areas)]
    if not areas:
        return [[] for _ in all_facts]
    together = np.concatenate(areas)
    # Slips would drag the median down where there are many: they do not count.
    whole = together[together[:, 1] > TINY_PIXELS]
    usual = {int(v): float(np.median(whole[whole[:, 0] == v, 1])) for v in np.unique(whole[:, 0])}
    return [
        [p for p in facts.small if p.pixels * TINY_RATIO < usual.get(p.value, 0.0)]
        for facts in all_facts
    ]

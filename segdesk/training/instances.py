"""Scores of objects and of their topology: panoptic quality, Rand and warping error.

Connected means: by sides and corners; the background by sides only. No torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from segdesk.core.classes import UNLABELLED
from segdesk.training.metrics import scored_classes

if TYPE_CHECKING:
    import numpy.typing as npt

    Mask = npt.NDArray[np.bool_]
    Objects = npt.NDArray[np.int64]

#: Two objects are the same when they share more than this of what they cover together.
SAME = 0.5


def find_objects(mask: Mask) -> Objects:
    """Return a number for each connected piece of a mask, (Y, X); 0 is no object."""
    from scipy import ndimage

    numbered, _ = ndimage.label(mask, np.ones((3, 3)))
    result: Objects = numbered.astype(np.int64)
    return result


# Panoptic quality --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Matches:
    """Objects found and not found, which add up over images.

    Attributes
    ----------
    overlap
        Sum of IoU over the objects found.
    found, false_alarms, missed
        Numbers of objects.
    """

    overlap: float = 0.0
    found: int = 0
    false_alarms: int = 0
    missed: int = 0

    def __add__(self, other: Matches) -> Matches:
        return Matches(
            self.overlap + other.overlap,
            self.found + other.found,
            self.false_alarms + other.false_alarms,
            self.missed + other.missed,
        )

    def segmentation_quality(self) -> float | None:
        """Return SQ, the mean IoU of the objects found; None where none is."""
        return self.overlap / self.found if self.found else None

    def recognition_quality(self) -> float | None:
        """Return RQ = TP / (TP + FP/2 + FN/2); None without any object."""
        whole = self.found + (self.false_alarms + self.missed) / 2
        return self.found / whole if whole else None

    def panoptic_quality(self) -> float | None:
        """Return PQ = SQ x RQ; None without any object, 0 where none is found."""
        whole = self.found + (self.false_alarms + self.missed) / 2
        return self.overlap / whole if whole else None


def match_objects(truth: Objects, predicted: Objects, known: Mask | None = None) -> Matches:
    """Match objects that overlap by more than half (IoU > 0.5), which no two others can.

    Kirillov et al., Panoptic Segmentation, CVPR 2019.

    Parameters
    ----------
    truth, predicted
        Number of the object at each pixel, 0 for none; any numbers, any order.
    known
        Pixels that count. A predicted object that lies mostly elsewhere is no false
        alarm.
    """
    counts = np.ones(truth.shape, bool) if known is None else known
    size_truth = _sizes(truth[counts])
    size_predicted = _sizes(predicted[counts])
    size_anywhere = _sizes(predicted)
    both = counts & (truth > 0) & (predicted > 0)
    pairs, shared = np.unique(np.stack((truth[both], predicted[both])), axis=1, return_counts=True)
    overlap, matched = 0.0, set()
    for (a, b), common in zip(pairs.T.tolist(), shared.tolist(), strict=True):
        iou = common / (size_truth[a] + size_predicted[b] - common)
        if iou > SAME:
            overlap += iou
            matched.add(b)
    alarms = [b for b, size in size_predicted.items() if size / size_anywhere[b] >= SAME]
    false_alarms = len(set(alarms) - matched)
    return Matches(overlap, len(matched), false_alarms, len(size_truth) - len(matched))


def _sizes(objects: npt.NDArray[np.int64]) -> dict[int, int]:
    numbers, sizes = np.unique(objects[objects > 0], return_counts=True)
    return dict(zip(numbers.tolist(), sizes.tolist(), strict=True))


# Rand error --------------------------------------------------------------------------


def rand_error(truth: Objects, predicted: Objects, known: Mask | None = None) -> float | None:
    """Return 1 - F-score of pairs of pixels, one object or two, in truth and prediction.

    Only pixels of true objects count ("foreground-restricted"); what is predicted as
    background there counts as one object. This is the adapted Rand error of SNEMI3D, and
    1 - "maximal Rand F-score" of ISBI 2012 (Arganda-Carreras et al. 2015) but for the
    maximum over thresholds of a probability map, which masks do not have. None where no
    two true pixels belong to one object.
    """
    from skimage.metrics import adapted_rand_error

    counted = truth if known is None else np.where(known, truth, 0)
    if max(_sizes(counted).values(), default=0) < 2:
        return None
    # Precision, which is not asked for, is 0/0 where every predicted object is one pixel.
    with np.errstate(invalid="ignore"):
        error, _, _ = adapted_rand_error(counted, predicted)  # type: ignore[no-untyped-call]
    return float(error)


# Warping error -----------------------------------------------------------------------


def warping_mistakes(truth: Mask, predicted: Mask, known: Mask | None = None) -> int:
    """Return the number of pixels that are wrong in a way that changes the topology.

    The truth is warped towards the prediction: pixels where they differ are flipped as
    long as that neither joins, splits, makes nor removes objects or holes ("simple
    points"). What still differs then is returned: a bridge between two objects costs about
    its width, an object missed one pixel, an object or hole made up its whole area,
    and outlines that are merely shifted nothing. Flips go row by row, and on to what each
    of them sets free, so that the result is always the same; another order might
    leave some pixels fewer.

    Jain et al., Boundary Learning by Optimization with Topological Constraints, CVPR
    2010; without their limit on how far outlines may move. Outside the image is
    background.
    """
    target = predicted if known is None else np.where(known, predicted, truth)
    width = truth.shape[1] + 2
    # Bytes in a row: single pixels are read far faster than from an array.
    now = bytearray(np.pad(truth.astype(np.uint8), 1).tobytes())
    goal = np.pad(target.astype(np.uint8), 1).tobytes()
    around = (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1)
    simple = _simple_points()
    waiting = deque(i for i, (a, b) in enumerate(zip(now, goal, strict=True)) if a != b)
    is_waiting = set(waiting)
    while waiting:
        here = waiting.popleft()
        is_waiting.discard(here)
        if not simple[sum(now[here + step] << bit for bit, step in enumerate(around))]:
            continue
        now[here] = goal[here]
        for step in around:
            near = here + step
            if now[near] != goal[near] and near not in is_waiting:
                waiting.append(near)
                is_waiting.add(near)
    return sum(a != b for a, b in zip(now, goal, strict=True))


@cache
def _simple_points() -> tuple[bool, ...]:
    """Return for each of the 256 surroundings whether its middle may be flipped.

    It may where the eight neighbours hold one piece of object, and one piece of
    background that touches the middle by a side. Bit i is the i-th neighbour, row by row.
    """
    from scipy import ndimage

    sides = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    table = []
    for code in range(256):
        bits = [bool(code >> i & 1) for i in range(8)]
        objects = np.array([*bits[:4], False, *bits[4:]]).reshape(3, 3)
        background = ~objects
        background[1, 1] = False
        _, pieces = ndimage.label(objects, np.ones((3, 3)))
        beside = ndimage.label(background)[0][sides]
        table.append(pieces == 1 and len(set(beside[beside > 0])) == 1)
    return tuple(table)


# All of it, over images --------------------------------------------------------------


class ObjectScores:
    """Collects the scores of objects over images.

    An object is a connected piece of a class other than the background; a mask cannot
    tell touching objects of one class apart.

    Parameters
    ----------
    names
        Of the classes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._classes = {value: names[value] for value in scored_classes(names)}
        self._matches = dict.fromkeys(self._classes, Matches())
        self._rand: dict[int, list[float | None]] = {value: [] for value in self._classes}
        self._mistakes = dict.fromkeys(self._classes, 0)
        self._wrong = self._pixels = 0

    def add(
        self,
        truth: npt.NDArray[np.uint8],
        predicted: npt.NDArray[np.uint8],
        known: Mask | None = None,
    ) -> None:
        """Take in an image, or a plane of one: label values (Y, X), and what counts."""
        counts = truth != UNLABELLED
        if known is not None:
            counts &= known
        self._pixels += int(counts.sum())
        self._wrong += int((truth != predicted)[counts].sum())
        for value in self._classes:
            true, found = (truth == value) & counts, predicted == value
            objects, guessed = find_objects(true), find_objects(found)
            self._matches[value] += match_objects(objects, guessed, counts)
            self._rand[value].append(rand_error(objects, guessed, counts))
            self._mistakes[value] += warping_mistakes(true, found, counts)

    def summary(self) -> dict[str, Any]:
        """Return the scores as plain data, None where there is nothing to score.

        ``per_class`` holds, and the other keys are means over classes of:
        ``panoptic_quality``, ``segmentation_quality`` and ``recognition_quality`` (of
        all objects of all images), ``rand_error`` (mean over images) and
        ``warping_error`` (wrong pixels over all). ``pixel_error`` is the share of
        wrong pixels, whatever the class.
        """
        per_class = {
            name: {
                "panoptic_quality": self._matches[value].panoptic_quality(),
                "segmentation_quality": self._matches[value].segmentation_quality(),
                "recognition_quality": self._matches[value].recognition_quality(),
                "rand_error": _mean(self._rand[value]),
                "warping_error": self._mistakes[value] / self._pixels if self._pixels else None,
                "objects": self._matches[value].found + self._matches[value].missed,
            }
            for value, name in self._classes.items()
        }
        means = {
            key: _mean([scores[key] for scores in per_class.values()])
            for key in ("panoptic_quality", "segmentation_quality", "recognition_quality",
                        "rand_error", "warping_error")
        }  # fmt: skip
        wrong = self._wrong / self._pixels if self._pixels else None
        return {**means, "pixel_error": wrong, "per_class": per_class}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None

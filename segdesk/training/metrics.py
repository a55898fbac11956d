"""Scores from confusion matrices. No torch: the window may recompute them.

Conventions, also shown where a score is: the Dice of an image is the mean over
the classes other than ``background`` that occur in its truth or its prediction;
an image where none does counts as 1. ``dice`` and ``iou`` are means over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segdesk.core.classes import UNLABELLED

if TYPE_CHECKING:
    import numpy.typing as npt

    Counts = npt.NDArray[np.int64]


def confusion(
    truth: npt.NDArray[np.uint8],
    predicted: npt.NDArray[np.uint8],
    classes: int,
    known: npt.NDArray[np.bool_] | None = None,
) -> Counts:
    """Return the matrix of pixel counts, int64 (K, K), truth by row.

    Parameters
    ----------
    truth, predicted
        uint8 label values of the same shape.
    known
        Pixels that count; unlabelled ones never do.
    """
    counted = truth != UNLABELLED
    if known is not None:
        counted &= known
    index = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """True positives, pixels in truth and pixels in prediction, per class."""

    hit: Counts
    truth: Counts
    predicted: Counts

    @classmethod
    def of(cls, matrix: Counts) -> ClassCounts:
        """Take the three from a confusion matrix."""
        return cls(np.diagonal(matrix), matrix.sum(1), matrix.sum(0))

    def dice(self) -> npt.NDArray[np.float64]:
        """Return Dice per class; NaN where a class occurs nowhere."""
        return _ratio(2 * self.hit, self.truth + self.predicted)

    def iou(self) -> npt.NDArray[np.float64]:
        """Return intersection over union per class; NaN as above."""
        return _ratio(self.hit, self.truth + self.predicted - self.hit)


def _ratio(part: Counts, whole: Counts) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def scored_classes(names: Sequence[str]) -> list[int]:
    """Return the classes a mean is taken over: all but ``background``."""
    chosen = [i for i, name in enumerate(names) if name.lower() != "background"]
    return chosen or list(range(len(names)))


def _mean_over(values: npt.NDArray[np.float64], chosen: Sequence[int]) -> float:
    present = values[list(chosen)]
    present = present[~np.isnan(present)]
    return float(present.mean()) if present.size else 1.0


def summarize(
    matrices: Sequence[Counts], names: Sequence[str], images: Sequence[str]
) -> dict[str, Any]:
    """Return the scores of a set of images as plain data.

    Keys: ``dice``, ``iou`` (means over images), ``pixel_accuracy`` (over all
    pixels), ``per_class`` (over all pixels), ``per_image``, ``n``, ``classes``
    (what the means are over). Images without a labelled pixel are left out; with
    none left, ``n`` is 0 and scores are None.
    """
    chosen = scored_classes(names)
    over = [names[i] for i in chosen]
    counted = [(m, i) for m, i in zip(matrices, images, strict=True) if m.any()]
    matrices, images = [m for m, _ in counted], [i for _, i in counted]
    if not matrices:
        return {"dice": None, "iou": None, "pixel_accuracy": None, "per_class": {},
                "per_image": [], "n": 0, "classes": over}  # fmt: skip
    per_image = []
    for image, matrix in zip(images, matrices, strict=True):
        counts = ClassCounts.of(matrix)
        total = int(matrix.sum())
        per_image.append(
            {
                "image": image,
                "dice": _mean_over(counts.dice(), chosen),
                "iou": _mean_over(counts.iou(), chosen),
                "pixel_accuracy": float(counts.hit.sum() / total) if total else 1.0,
            }
        )
    whole = np.sum(matrices, axis=0)
    counts = ClassCounts.of(whole)
    dice, iou = counts.dice(), counts.iou()
    return {
        "dice": float(np.mean([entry["dice"] for entry in per_image])),
        "iou": float(np.mean([entry["iou"] for entry in per_image])),
        "pixel_accuracy": float(counts.hit.sum() / max(1, whole.sum())),
        "per_class": {
            name: {"dice": _plain(dice[i]), "iou": _plain(iou[i]), "pixels": int(counts.truth[i])}
            for i, name in enumerate(names)
        },
        "per_image": per_image,
        "n": len(per_image),
        "classes": over,
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

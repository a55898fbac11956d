"""Scores from confusion matrices. No torch: the window may recompute them.

Conventions, also shown where a score is. Two of them are in use, and their figures
differ on the same masks:

- Per image: the Dice of an image is the mean over the classes other than
  ``background`` that occur in its truth or its prediction; an image where none does
  counts as 1. ``dice`` and ``iou`` are means over images.
- Over the dataset, as papers on semantic segmentation report: the pixels of all
  images are counted in one matrix first, and means are over *all* classes, the
  background included, that occur (see :class:`ClassCounts`).

Scores of objects are in :mod:`segdesk.training.instances`.
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
    """True positives, pixels in truth and pixels in prediction, per class.

    With n_ij pixels of class i predicted as j, and t_i = sum_j n_ij, the single figures
    are those of Long, Shelhamer and Darrell (CVPR 2015). Their means are over all
    classes, the background included, but those that occur nowhere.
    """

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

    def pixel_accuracy(self) -> float:
        """Return sum n_ii / sum t_i; 1 without pixels."""
        return float(self.hit.sum() / self.truth.sum()) if self.truth.any() else 1.0

    def mean_accuracy(self) -> float:
        """Return the mean of n_ii / t_i, over the classes in the truth."""
        return _mean(_ratio(self.hit, self.truth))

    def mean_iou(self) -> float:
        """Return the mean IoU, over the classes in the truth or the prediction."""
        return _mean(self.iou())

    def frequency_weighted_iou(self) -> float:
        """Return the mean IoU in which a class counts by its share of the truth."""
        occurs = self.truth > 0
        if not occurs.any():
            return 1.0
        return float((self.truth * self.iou())[occurs].sum() / self.truth.sum())

    def mean_dice(self) -> float:
        """Return the mean Dice, over the classes in the truth or the prediction."""
        return _mean(self.dice())

    def all_classes(self) -> dict[str, float]:
        """Return the five figures that papers report."""
        return {
            "pixel_accuracy": self.pixel_accuracy(),
            "mean_accuracy": self.mean_accuracy(),
            "mean_iou": self.mean_iou(),
            "frequency_weighted_iou": self.frequency_weighted_iou(),
            "mean_dice": self.mean_dice(),
        }


def _ratio(part: Counts, whole: Counts) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def scored_classes(names: Sequence[str]) -> list[int]:
    """Return the classes a mean is taken over: all but ``background``."""
    chosen = [i for i, name in enumerate(names) if name.lower() != "background"]
    return chosen or list(range(len(names)))


def _mean(values: npt.NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else 1.0


def summarize(
    matrices: Sequence[Counts], names: Sequence[str], images: Sequence[str]
) -> dict[str, Any]:
    """Return the scores of a set of images as plain data.

    Keys:

    - ``dice``, ``iou``: means over images, over the classes ``classes`` (all but the
      background); ``per_image`` holds the images' own.
    - ``pixel_accuracy``: over all pixels.
    - ``per_class``: each class, over all pixels.
    - ``dataset``: what papers report, over all pixels of all images together and over
      all classes, the background included: ``pixel_accuracy``, ``mean_accuracy``,
      ``mean_iou``, ``frequency_weighted_iou``, ``mean_dice``.
    - ``image_means``: the same five, of each image by itself; then the mean over images.
    - ``n``: how many images.

    Images without a labelled pixel are left out; with none left, ``n`` is 0 and scores
    are None.
    """
    chosen = scored_classes(names)
    over = [names[i] for i in chosen]
    counted = [(m, i) for m, i in zip(matrices, images, strict=True) if m.any()]
    matrices, images = [m for m, _ in counted], [i for _, i in counted]
    if not matrices:
        return {"dice": None, "iou": None, "pixel_accuracy": None, "per_class": {},
                "dataset": None, "image_means": None, "per_image": [], "n": 0,
                "classes": over}  # fmt: skip
    per_image, per_image_all = [], []
    for image, matrix in zip(images, matrices, strict=True):
        counts = ClassCounts.of(matrix)
        per_image.append(
            {
                "image": image,
                "dice": _mean(counts.dice()[chosen]),
                "iou": _mean(counts.iou()[chosen]),
                "pixel_accuracy": counts.pixel_accuracy(),
            }
        )
        per_image_all.append(counts.all_classes())
    counts = ClassCounts.of(np.sum(matrices, axis=0))
    dice, iou = counts.dice(), counts.iou()
    return {
        "dice": float(np.mean([entry["dice"] for entry in per_image])),
        "iou": float(np.mean([entry["iou"] for entry in per_image])),
        "pixel_accuracy": counts.pixel_accuracy(),
        "per_class": {
            name: {"dice": _plain(dice[i]), "iou": _plain(iou[i]), "pixels": int(counts.truth[i])}
            for i, name in enumerate(names)
        },
        "dataset": counts.all_classes(),
        "image_means": {
            key: float(np.mean([entry[key] for entry in per_image_all])) for key in per_image_all[0]
        },
        "per_image": per_image,
        "n": len(per_image),
        "classes": over,
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

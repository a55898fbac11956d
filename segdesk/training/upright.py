"""Whether images have an up and a down, which mirroring and turning would hide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np

from segdesk.config.training import Augmentation
from segdesk.training.dataset import Item

#: An image tells where its classes lie if so much of it is labelled; strokes alone do not.
LEAST_LABELLED: Final = 0.5

#: Classes one above the other lie so far apart, in heights of the image and on average.
LEAST_DISTANCE: Final = 0.1

#: How likely it may be that images without an up and a down look as if they had.
CHANCE: Final = 0.01


def find_order(items: Sequence[Item], classes: int) -> tuple[int, int, int] | None:
    """Find two classes of which one lies above the other in every image that has both.

    Parameters
    ----------
    items
        Labelled planes; those of one image (with one name) count as one.
    classes
        Number of classes.

    Returns
    -------
    tuple of int or None
        The upper class, the lower one and in how many images; None where there is no such
        pair, or so few images that chance explains it: were either as likely as the other,
        n images would agree with a probability of 2^(1 - n) for each pair of classes.
    """
    places: dict[str, list[np.ndarray]] = {}
    for item in items:
        if (item.weights > 0).mean() >= LEAST_LABELLED:
            places.setdefault(item.name, []).append(_mean_rows(item, classes))
    if not places:
        return None
    # A class may lie in some planes of a stack only.
    rows = np.ma.masked_invalid(
        [np.ma.masked_invalid(p).mean(0).filled(np.nan) for p in places.values()]
    )
    found: list[tuple[float, int, int, int]] = []
    pairs = list(combinations(range(classes), 2))
    for one, other in pairs:
        lower = (rows[:, other] - rows[:, one]).compressed()
        if len(pairs) * 2.0 ** (1 - len(lower)) > CHANCE:
            continue
        distance = float(lower.mean())
        if abs(distance) >= LEAST_DISTANCE and (np.sign(lower) == np.sign(distance)).all():
            upper, under = (one, other) if distance > 0 else (other, one)
            found.append((abs(distance), upper, under, len(lower)))
    if not found:
        return None
    _, upper, under, count = max(found)
    return upper, under, count


def choose_augmentation(
    asked: Augmentation, items: Sequence[Item], classes: Sequence[str]
) -> tuple[Augmentation, str]:
    """Settle what *auto* means for these images; also return words for the user, or none."""
    if asked is not Augmentation.AUTO:
        return asked, ""
    order = find_order(items, len(classes))
    if order is None:
        return Augmentation.FULL, ""
    upper, under, count = order
    return Augmentation.UPRIGHT, (
        f"In all {count} images that have both, {classes[upper]} lies above {classes[under]}, so "
        "crops are not turned upside down. Set Augment to full if that means nothing."
    )


def _mean_rows(item: Item, classes: int) -> np.ndarray:
    """Return the mean height of each class, 0 at the top to 1; NaN for those not there."""
    known = np.where(item.weights > 0, item.labels, classes)
    counts = np.stack([np.bincount(row, minlength=256)[:classes] for row in known])
    total = counts.sum(0)
    heights = (np.arange(len(counts)) + 0.5) / len(counts)
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, heights @ counts / total, np.nan)

"""Two models on the same images, from predictions that are stored already; no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from segdesk.core.annotation import BAND_PIXELS, Supervision
from segdesk.core.classes import UNLABELLED
from segdesk.core.errors import InputError
from segdesk.core.prediction import Prediction
from segdesk.core.sample import Sample, Split
from segdesk.io.maps import PredictedMap
from segdesk.io.packages import hash_weights
from segdesk.io.store import ProjectStore
from segdesk.jobs.cancel import CancelToken
from segdesk.session.models import (
    ModelEntry,
    current_model,
    find_model,
    list_models,
    previous_model,
)
from segdesk.session.predicting import read_provenance
from segdesk.training.metrics import confusion, summarize

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.uint8]


class Change(IntEnum):
    """What became of a pixel from the first model to the second."""

    NONE = 0
    FIXED = 1
    BROKEN = 2
    STILL_WRONG = 3


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on one image.

    Attributes
    ----------
    first, second
        uint8 label values of each, spatial shape of the sample.
    changes
        uint8 values of :class:`Change`, the same shape; 0 where nobody has spoken.
    row
        The same in numbers.
    """

    first: Labels
    second: Labels
    changes: Labels
    row: ComparedImage


@dataclass(frozen=True, slots=True)
class ComparedImage:
    """Two models on one image, in numbers.

    Attributes
    ----------
    labelled, fixed, broken, still_wrong
        Pixels: on which a person has spoken, and what became of them.
    dice
        Of either model, the mean over the classes other than the background; None
        where nobody has spoken.
    was_learnt
        Whether either model learnt from the image, which flatters it.
    """

    sample: str
    name: str
    split: Split
    labelled: int
    fixed: int
    broken: int
    still_wrong: int
    dice: tuple[float, float] | None
    was_learnt: bool = False

    @property
    def difference(self) -> float:
        """Dice of the second model less that of the first; 0 where there is none."""
        return self.dice[1] - self.dice[0] if self.dice is not None else 0.0


@dataclass(frozen=True)
class Ranking:
    """The labelled images, those that got worse first.

    Attributes
    ----------
    missing
        By model, the ids of labelled images it has not predicted; they are in no row.
    """

    first: str
    second: str
    rows: tuple[ComparedImage, ...]
    missing: dict[str, tuple[str, ...]]

    @property
    def dice(self) -> tuple[float, float] | None:
        """Mean of the images' Dice for either model; None without an image."""
        scores = [row.dice for row in self.rows if row.dice is not None]
        if not scores:
            return None
        return float(np.mean([s[0] for s in scores])), float(np.mean([s[1] for s in scores]))


def find_changes(truth: Labels, supervision: Labels, first: Labels, second: Labels) -> Labels:
    """Return what became of each pixel, uint8 values of :class:`Change`.

    Only pixels count that a person has corrected or accepted.

    Parameters
    ----------
    truth, supervision
        uint8 label values, and values of :class:`~segdesk.core.annotation.Supervision`.
    first, second
        uint8 label values of the two models, all of the same shape.
    """
    known = _is_known(truth, supervision)
    was_right, is_right = first == truth, second == truth
    changes = np.zeros(truth.shape, np.uint8)
    changes[known & ~was_right & is_right] = Change.FIXED
    changes[known & was_right & ~is_right] = Change.BROKEN
    changes[known & ~was_right & ~is_right] = Change.STILL_WRONG
    return changes


def _is_known(truth: Labels, supervision: Labels) -> npt.NDArray[np.bool_]:
    """Return where a person has corrected or accepted a label."""
    known: npt.NDArray[np.bool_] = (supervision != Supervision.UNSEEN) & (truth != UNLABELLED)
    return known


def compare(store: ProjectStore, first: str, second: str, sample_id: str) -> Comparison:
    """Compare the stored predictions of two models on an image.

    Raises
    ------
    InputError
        There is no such model or image, both models are the same, or one of them has not
        predicted it; see :func:`find_missing`.
    """
    return _compare(store, store.sample(sample_id), _find_both(store, first, second))


def find_missing(
    store: ProjectStore, first: str, second: str, extra: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Return, by model, the images it has yet to predict before the two can be compared.

    These are the labelled ones, and ``extra``: the one on screen, which may be unlabelled.

    Raises
    ------
    InputError
        There is no such model, or both are the same.
    """
    asked = [s for s in store.samples() if s.head or s.id == extra]
    return _missing(store, _find_both(store, first, second), asked)


def rank(
    store: ProjectStore,
    first: str,
    second: str,
    token: CancelToken | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ranking:
    """Compare two models on every labelled image that both have predicted.

    Raises
    ------
    InputError
        There is no such model, or both are the same.
    CanceledError
        ``token`` was set; looked at before every image.
    """
    both = _find_both(store, first, second)
    labelled = [sample for sample in store.samples() if sample.head]
    missing = _missing(store, both, labelled)
    lacking = {sample for samples in missing.values() for sample in samples}
    rows = []
    for done, sample in enumerate(labelled):
        if token is not None:
            token.check()
        if sample.id not in lacking:
            check = token.check if token is not None else lambda: None
            rows.append(_compare(store, sample, both, check).row)
        progress(done + 1, len(labelled))
    counted = worst_first([row for row in rows if row.labelled])
    return Ranking(both[0].name, both[1].name, tuple(counted), missing)


def worst_first(rows: Iterable[ComparedImage]) -> list[ComparedImage]:
    """Sort images by how much worse the second model is."""
    return sorted(rows, key=lambda row: (row.difference, row.fixed - row.broken, row.name))


def suggest(store: ProjectStore) -> tuple[str, str] | None:
    """Return the two models that are worth comparing first; None with fewer than two.

    The one in use before and the one in use; else the one in use, or the newest of the
    project's own, with the one it was made from.
    """
    names = [entry.name for entry in list_models(store)]
    current = current_model(store)
    before = previous_model(store)
    if current is not None and before not in (None, current.name):
        return str(before), current.name
    own = [entry for entry in list_models(store) if not entry.is_bundled]
    if own and (current is None or current.card.base_model not in names):
        current = own[-1]
    if current is None:
        return None
    base = current.card.base_model
    others = [base] if base in names else [n for n in reversed(names) if n != current.name]
    return (others[0], current.name) if others else None


# How -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """A model and the hash of its weights, which takes reading all of them."""

    entry: ModelEntry
    weights: str

    @property
    def name(self) -> str:
        return self.entry.name

    def prediction(self, store: ProjectStore, sample: Sample) -> Prediction | None:
        return store.prediction(sample.id, self.name, self.weights)


_Both = tuple[_Known, _Known]


def _predictions(
    store: ProjectStore, both: _Both, sample: Sample
) -> tuple[Prediction | None, Prediction | None]:
    """Return what both models predicted of an image, None for what cannot be compared.

    Of predictions at different resolution levels that is the coarser one: it would be
    blamed for what it never saw.
    """
    first, second = (model.prediction(store, sample) for model in both)
    if first is None or second is None:
        return first, second
    levels = [int(read_provenance(found).get("level") or 0) for found in (first, second)]
    if levels[0] == levels[1]:
        return first, second
    return (None, second) if levels[0] > levels[1] else (first, None)


def _find_both(store: ProjectStore, first: str, second: str) -> _Both:
    one, other = (
        _Known(entry, hash_weights(entry.folder))
        for entry in (find_model(first, store), find_model(second, store))
    )
    if one.name == other.name:
        raise InputError(f"{one.name} cannot be compared with itself; choose another model.")
    return one, other


def _missing(store: ProjectStore, both: _Both, samples: list[Sample]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {model.name: [] for model in both}
    for sample in samples:
        for model, prediction in zip(both, _predictions(store, both, sample), strict=True):
            if prediction is None:
                found[model.name].append(sample.id)
    return {name: tuple(lacking) for name, lacking in found.items() if lacking}


def _compare(
    store: ProjectStore, sample: Sample, both: _Both, check: Callable[[], None] = lambda: None
) -> Comparison:
    """Compare band by band: beside the masks themselves, a large image takes little memory."""
    predictions = zip(both, _predictions(store, both, sample), strict=True)
    maps = [_open(sample, model, prediction) for model, prediction in predictions]
    annotation = store.annotation(sample.id)
    names = store.classes.names
    try:
        first, second, changes = (np.zeros(sample.shape, np.uint8) for _ in range(3))
        counts = np.zeros(len(Change), np.int64)
        right = np.zeros((2, len(names), len(names)), np.int64)
        rows = max(1, BAND_PIXELS * sample.shape[0] // math.prod(sample.shape))
        for start in range(0, sample.shape[0], rows):
            check()
            band = slice(start, start + rows)
            masks = first[band], second[band]
            for mask, found in zip(masks, maps, strict=True):
                mask[:] = found[band]
            if annotation is None:
                continue
            truth, supervision = annotation.labels[band], annotation.supervision[band]
            changes[band] = find_changes(truth, supervision, *masks)
            known = _is_known(truth, supervision)
            counts += np.bincount(changes[band][known], minlength=len(Change))
            for matrix, mask in zip(right, masks, strict=True):
                matrix += confusion(truth, mask, len(names), known)
    except MemoryError as error:
        raise InputError(
            f"There is not enough memory to compare the predictions of {sample.name}; compare "
            "smaller images, such as parts of this one."
        ) from error
    row = ComparedImage(
        sample=sample.id,
        name=sample.name,
        split=sample.split,
        labelled=int(counts.sum()),
        fixed=int(counts[Change.FIXED]),
        broken=int(counts[Change.BROKEN]),
        still_wrong=int(counts[Change.STILL_WRONG]),
        dice=(_dice(right[0], names), _dice(right[1], names)) if counts.any() else None,
        was_learnt=any(sample.sha256 in model.entry.card.trained_ids for model in both),
    )
    return Comparison(first, second, changes, row)


def _dice(matrix: npt.NDArray[np.int64], names: tuple[str, ...]) -> float:
    """Return the Dice of pixel counts as everywhere else (see :mod:`segdesk.training.metrics`)."""
    return float(summarize([matrix], names, [""])["dice"])


def _open(sample: Sample, model: _Known, prediction: Prediction | None) -> PredictedMap:
    if prediction is None:
        raise InputError(
            f"{model.name} has not predicted {sample.name} yet, or at a coarser level than the "
            "other model; press Compare in the Compare panel, which predicts what is missing."
        )
    return PredictedMap(prediction, "labels", sample.shape)

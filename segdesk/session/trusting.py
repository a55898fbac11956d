"""Whether a model can be trusted, from predictions that are stored already; no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdesk.core.annotation import Supervision
from segdesk.core.calibration import Calibration
from segdesk.core.classes import UNLABELLED
from segdesk.core.errors import CanceledError, InputError, SegDeskError
from segdesk.core.prediction import ONE_PASS, Prediction
from segdesk.core.sample import Sample, Split
from segdesk.inference.calibration import apply_temperature
from segdesk.inference.findings import Findings, ImageCounts, share_of
from segdesk.io.calibrations import read_calibration, write_calibration
from segdesk.io.packages import hash_weights
from segdesk.io.store import ProjectStore
from segdesk.jobs.cancel import CancelToken
from segdesk.session.models import ModelEntry, current_model, find_model, list_models

if TYPE_CHECKING:
    import numpy.typing as npt
    import zarr

    from segdesk.inference.findings import Pixels


class Scope(StrEnum):
    """Which images are looked at."""

    HELD_BACK = "held back"
    LABELLED = "labelled"


@dataclass(frozen=True, eq=False)
class Answer:
    """What the stored predictions of a model say.

    Attributes
    ----------
    model, weights_sha256
        The model, and its weights; empty where there is none.
    findings
        None where nothing can be said yet; ``reason`` says why then.
    missing
        Ids of images that would count if the model had predicted them.
    unlabelled
        How many images of the scope nobody has spoken about.
    kept
        What is kept for this model already.
    others
        Names of the models that it can be compared with.
    """

    model: str = ""
    weights_sha256: str = ""
    findings: Findings | None = None
    missing: tuple[str, ...] = ()
    unlabelled: int = 0
    kept: Calibration | None = None
    others: tuple[str, ...] = ()
    reason: str = ""


def keep(project: Path, model: str, weights_sha256: str, findings: Findings) -> Calibration:
    """Keep a temperature and the evidence; predictions of the model use it from now on.

    Raises
    ------
    InputError
        No temperature fits, or the project cannot be written to.
    """
    calibration = findings.as_calibration(model, weights_sha256)
    write_calibration(project, calibration)
    return calibration


class TrustReader:
    """Counts pixels of stored predictions; an image is read again only when it changed.

    For one thread at a time, and not the one of the window: images are read from disk.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[object, ImageCounts | None]] = {}
        self._concluded: dict[tuple[str, str], tuple[list[ImageCounts], Findings]] = {}

    def ask(
        self, project: Path, model: str | None, scope: Scope, token: CancelToken | None = None
    ) -> Answer:
        """Say what can be said of a model, by default the one in use.

        Raises
        ------
        SegDeskError
            The project cannot be read, or there is no such model.
        CanceledError
            ``token`` was set; looked at before every image.
        """
        with ProjectStore.open(project, read_only=True) as store:
            entry = find_model(model, store) if model else current_model(store)
            if entry is None:
                return Answer(reason="Choose a model in the Predict panel first.")
            weights = hash_weights(entry.folder)
            if entry.card.classes != store.classes.names:
                reason = (
                    f"{entry.name} knows {', '.join(entry.card.classes)}, and the project has "
                    f"{', '.join(store.classes.names)}: they cannot be compared."
                )
                return Answer(entry.name, weights, reason=reason)
            return self._judge(store, entry, weights, scope, token or CancelToken())

    def _judge(
        self,
        store: ProjectStore,
        entry: ModelEntry,
        weights: str,
        scope: Scope,
        token: CancelToken,
    ) -> Answer:
        samples = [s for s in store.samples() if _is_within(s, scope)]
        predictions = {s.id: store.prediction(s.id, entry.name, weights) for s in samples}
        missing = tuple(sample for sample, found in predictions.items() if found is None)
        labelled = [s for s in samples if s.head]
        said: dict[str, Any] = {
            "missing": missing,
            "unlabelled": len(samples) - len(labelled),
            "kept": read_calibration(store.folder, entry.name, weights),
            "others": tuple(
                other.name
                for other in list_models(store)
                if other.name != entry.name and other.card.classes == entry.card.classes
            ),
        }
        counts = []
        try:
            for sample in labelled:
                token.check()
                found = predictions[sample.id]
                if found is not None:
                    share = share_of(len(labelled))
                    counts.append(self._count(store, sample, found, entry, weights, share))
            known = [c for c in counts if c is not None]
            if known:
                said["findings"] = self._conclude(known, entry)
            else:
                said["reason"] = _why_nothing(samples, labelled, missing, scope, entry.name)
        except CanceledError:
            raise
        except SegDeskError as error:
            said["reason"] = error.message
        return Answer(entry.name, weights, **said)

    def _conclude(self, counts: list[ImageCounts], entry: ModelEntry) -> Findings:
        """Return the findings; those from the very same counts are kept."""
        key = (str(entry.folder), entry.name)
        before, findings = self._concluded.get(key, ([], None))
        if findings is None or [*map(id, before)] != [*map(id, counts)]:
            findings = Findings.of(counts, entry.card.classes)
            self._concluded[key] = counts, findings
        return findings

    def _count(
        self,
        store: ProjectStore,
        sample: Sample,
        prediction: Prediction,
        entry: ModelEntry,
        weights: str,
        share: int,
    ) -> ImageCounts | None:
        """Return the counts of an image; None where no pixel of it is labelled."""
        key = (str(store.folder), sample.id, entry.name, weights)
        state = (
            (prediction.folder / "provenance.json").stat().st_mtime_ns,
            sample.head,
            tuple(edit.time for edit in store.edits(sample.id)),
            share,
        )
        read = partial(read_labelled, store, sample, prediction)
        before, counts = self._known.get(key, (None, None))
        if before != state:
            planes = list(read())
            counts = None
            if planes:
                counts = ImageCounts.count(
                    planes,
                    len(entry.card.classes),
                    ONE_PASS,
                    share,
                    read,
                    has_taught=sample.sha256 in entry.card.trained_ids,
                )
            self._known[key] = state, counts
        if counts is not None:
            counts.read = read  # the store it was counted from is closed by now
        return counts


def read_labelled(store: ProjectStore, sample: Sample, prediction: Prediction) -> Iterator[Pixels]:
    """Yield the labelled pixels of each plane of a stored prediction that has some.

    The probabilities are those before the temperature they were stored with.

    Raises
    ------
    InputError
        The prediction is damaged, or its probabilities are no numbers.
    """
    annotation = store.annotation(sample.id)
    if annotation is None:
        return
    temperature, stored = _open(prediction)
    depth = (-1, *sample.shape[-2:])
    labels, spoken = annotation.labels.reshape(depth), annotation.supervision.reshape(depth)
    for z in range(len(labels)):
        known = (spoken[z] != Supervision.UNSEEN) & (labels[z] != UNLABELLED)
        if known.any():
            # Of a coarser level a pixel stands for several of the image.
            rows, columns = (
                place * own // whole
                for place, own, whole in zip(
                    np.nonzero(known), stored.shape[-2:], known.shape, strict=True
                )
            )
            pixels = np.asarray(stored[:, z])[:, rows, columns]
            if not np.isfinite(pixels).all():
                raise InputError(
                    f"The model {prediction.model!r} gives no numbers for {sample.name}, so its "
                    "weights are damaged; copy the model again, or choose another one."
                )
            yield apply_temperature(from_half(pixels), 1.0 / temperature), labels[z][known]


def from_half(stored: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Return probabilities (K, n) that sum to one again.

    Half precision rounds what is near 1 most: what the others leave tells it better.
    """
    values = stored.astype(np.float32)
    best = values.argmax(0)[None]
    others = values.sum(0) - np.take_along_axis(values, best, 0)[0]
    np.put_along_axis(values, best, 1.0 - others[None], 0)
    return values


def _open(prediction: Prediction) -> tuple[float, zarr.Array[Any]]:
    import zarr  # slow to import, and the window starts without

    try:
        text = (prediction.folder / "provenance.json").read_text("utf-8")
        temperature = float(json.loads(text).get("temperature", 1.0))
        return temperature, zarr.open_array(str(prediction.probabilities_path), mode="r")
    except (OSError, ValueError, AttributeError):
        raise InputError(
            f"The prediction in {prediction.folder} is damaged; predict that image again."
        ) from None


def _is_within(sample: Sample, scope: Scope) -> bool:
    return sample.split is Split.VALIDATION if scope is Scope.HELD_BACK else sample.head > 0


def _why_nothing(
    samples: list[Sample],
    labelled: list[Sample],
    missing: tuple[str, ...],
    scope: Scope,
    model: str,
) -> str:
    """Say what to do when no pixel can be judged."""
    if scope is Scope.LABELLED and not samples:
        return "No image is labelled yet: predict some, correct them, and accept them."
    if not samples:
        return (
            "No image of this project is held back to check the model; look at all labelled "
            "images instead, or add more images."
        )
    if labelled and missing:
        return f"{model} has not predicted the labelled images yet."
    return (
        "Nobody has said yet what is right on the images held back: open those marked “held "
        "back” in the Project panel, correct them, and accept them."
    )

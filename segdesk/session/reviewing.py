"""What to look at next, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from segdesk.core.enlarging import span
from segdesk.core.prediction import Prediction
from segdesk.core.sample import Sample, Split, Status
from segdesk.inference.regions import Region, find_regions_of_stack
from segdesk.io.labels import read_plane
from segdesk.session.predicting import current_prediction, read_provenance
from segdesk.session.session import Session

#: What the writer of a prediction may have left beside its uncertainty.
REGIONS_FILE: Final = "regions.json"
#: Added to why an image that is held back comes first.
CHECKS: Final = ", and it is held back: with one of those labelled, new models can be judged"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """An image to look at and the reason, in words."""

    sample: Sample
    reason: str


def next_samples(session: Session, count: int = 1, skip: str = "") -> list[Suggestion]:
    """Return the images most worth a look, the most uncertain first.

    Accepted images are done. Images without a prediction come last. Where some are labelled
    to learn from and none of those held back, these come first: without one, nobody can tell
    whether a new model is better.

    Parameters
    ----------
    skip
        Id of the image already on screen.
    """
    samples = session.store.samples()
    labelled = {s.split for s in samples if s.status in (Status.CORRECTED, Status.ACCEPTED)}
    wanted = Split.VALIDATION if labelled == {Split.TRAIN} else None

    def rank(sample: Sample) -> tuple[bool, float]:
        return sample.split is wanted, -1.0 if sample.score is None else sample.score

    open_ = [s for s in samples if s.status is not Status.ACCEPTED and s.id != skip]
    open_.sort(key=rank, reverse=True)
    return [Suggestion(s, _why(s) + (CHECKS if s.split is wanted else "")) for s in open_[:count]]


def read_regions(prediction: Prediction, shape: tuple[int, ...]) -> list[Region]:
    """Return the most uncertain places of a predicted image, the worst first.

    From ``regions.json`` in the prediction's folder where it is there, else from the
    uncertainty itself. Reads files only: any thread may call it.

    Parameters
    ----------
    shape
        (Y, X) or (Z, Y, X) of the image, whose pixels the places are told in also where a
        coarser level was predicted.

    Raises
    ------
    SegDeskError
        The uncertainty cannot be read.
    """
    found = _stored_regions(prediction)
    rows, columns = (read_provenance(prediction).get("shape") or shape)[-2:]
    if (rows, columns) == shape[-2:]:
        return found
    enlarged = []
    for region in found:
        top, bottom = span(region.y, region.y + region.height, rows, shape[-2])
        left, right = span(region.x, region.x + region.width, columns, shape[-1])
        enlarged.append(Region(region.z, top, left, bottom - top, right - left, region.mean))
    return enlarged


def _stored_regions(prediction: Prediction) -> list[Region]:
    try:
        stored = json.loads((prediction.folder / REGIONS_FILE).read_text("utf-8"))
        return [Region(**entry) for entry in stored]
    except (OSError, ValueError, TypeError):
        unsure = read_plane(prediction.uncertainty_path)
        return find_regions_of_stack(unsure if unsure.ndim == 3 else unsure[None])


def regions(session: Session, sample: Sample) -> list[Region]:
    """Return :func:`read_regions` for the model in use; empty before it was asked."""
    prediction = current_prediction(session, sample.id)
    return read_regions(prediction, sample.shape) if prediction is not None else []


def next_region(session: Session, sample: Sample, after: Region | None = None) -> Region | None:
    """Return the uncertain place that comes after one, and after the last the first again.

    None where there is none.
    """
    return region_after(regions(session, sample), after)


def region_after(found: list[Region], after: Region | None) -> Region | None:
    """Return the place behind ``after`` in a list, the first behind the last."""
    if not found:
        return None
    return found[(found.index(after) + 1) % len(found)] if after in found else found[0]


def region_words(region: Region, *, is_stack: bool = False) -> str:
    """Say where a place is and why to look at it."""
    plane = f"plane {region.z + 1}, " if is_stack else ""
    return (
        f"{plane}x {region.x} to {region.x + region.width}, "
        f"y {region.y} to {region.y + region.height}: mean uncertainty {region.mean:.1%}"
    )


def _why(sample: Sample) -> str:
    if sample.score is None:
        return "not predicted yet"
    return f"the model is unsure of {sample.score:.1%} of its pixels"

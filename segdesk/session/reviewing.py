"""What to look at next, and why."""

from __future__ import annotations

from dataclasses import dataclass

from segdesk.core.sample import Sample, Status
from segdesk.session.session import Session


@dataclass(frozen=True, slots=True)
class Suggestion:
    """An image to look at and the reason, in words."""

    sample: Sample
    reason: str


def next_samples(session: Session, count: int = 1, skip: str = "") -> list[Suggestion]:
    """Return the images most worth a look, the most uncertain first.

    Accepted images are done. Images without a prediction come last.

    Parameters
    ----------
    skip
        Id of the image already on screen.
    """
    open_ = [s for s in session.store.samples() if s.status is not Status.ACCEPTED and s.id != skip]
    open_.sort(key=lambda s: -1.0 if s.score is None else s.score, reverse=True)
    return [Suggestion(s, _why(s)) for s in open_[:count]]


def _why(sample: Sample) -> str:
    if sample.score is None:
        return "not predicted yet"
    return f"the model is unsure of {sample.score:.1%} of its pixels"

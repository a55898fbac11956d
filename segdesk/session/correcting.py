"""Correcting labels: strokes into the journal, undo, accept."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from segdesk.core.annotation import Annotation, Edit, Supervision
from segdesk.core.errors import InputError
from segdesk.core.sample import Sample, Status
from segdesk.session.predicting import (
    current_prediction,
    read_prediction,
    starting_annotation,
)
from segdesk.session.session import Session

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.uint8]
    Mask = npt.NDArray[np.bool_]


class Correction:
    """The labels of one sample while they are being corrected.

    ``annotation`` always equals what reopening the project would give, except
    that a prediction may have filled unseen pixels since.

    Parameters
    ----------
    session, sample
        Whose labels.
    """

    def __init__(self, session: Session, sample: Sample) -> None:
        self._session = session
        self._id = sample.id
        prediction = current_prediction(session, sample.id)
        self._prediction: Labels | None = read_prediction(prediction)[0] if prediction else None
        #: Whether the newest revision and the strokes on it give ``annotation``.
        self._is_based = False
        self.annotation: Annotation = starting_annotation(session, sample).copy()

    @property
    def sample(self) -> Sample:
        """The sample as it stands now."""
        return self._session.store.sample(self._id)

    def stroke(
        self, start: tuple[int, ...], after: Labels, tool: str, seen: Mask | None = None
    ) -> Edit | None:
        """Record that the box at ``start`` now holds the labels ``after``.

        The stroke is on disk when this returns. None if nothing changed.

        Parameters
        ----------
        start
            First corner of the box, in pixels.
        after
            uint8 labels of the whole box.
        seen
            Pixels of the box whose labels a person has confirmed, though they may
            be what they were.

        Raises
        ------
        InputError
            A label outside the classes, or the disk is full: the stroke is not
            recorded and ``annotation`` keeps what was there.
        """
        stop = tuple(s + n for s, n in zip(start, after.shape, strict=True))
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        before = self.annotation.labels[box]
        supervision = self.annotation.supervision[box]
        changed = before != after
        told = (
            changed if seen is None else changed | (seen & (supervision != Supervision.CORRECTED))
        )
        if not told.any():
            return None
        self._check_values(after[told])
        spoken = np.where(told, np.uint8(Supervision.CORRECTED), supervision)
        edit = Edit(
            start,
            stop,
            np.stack((before, supervision)),
            np.stack((after, spoken)),
            tool,
            time.time(),
        )
        self._ensure_base()
        self._session.store.append_edit(self._id, edit)
        self.annotation.apply(edit)
        self._set_status(Status.CORRECTED)
        return edit

    def confirm(self, start: tuple[int, ...], mask: Mask) -> Edit | None:
        """Record that a person says the labels under ``mask``, a box at ``start``, are right.

        On disk and undone like a stroke. None if they had been said to be before.
        """
        box = tuple(slice(s, s + n) for s, n in zip(start, mask.shape, strict=True))
        return self.stroke(start, self.annotation.labels[box].copy(), "confirm", mask)

    def replace(self, labels: Labels, tool: str) -> Edit | None:
        """Record a change of all labels at once."""
        return self.stroke((0,) * labels.ndim, labels, tool)

    def take_prediction(self, labels: Labels) -> None:
        """Show a new prediction's labels wherever no person has spoken."""
        self._prediction = labels
        self._is_based = False
        self.annotation = self.annotation.refreshed(labels).copy()

    def take_part(self, start: tuple[int, ...], labels: Labels) -> tuple[Labels, Labels]:
        """Show a part of a prediction that is under way wherever no person has spoken.

        Parameters
        ----------
        start
            First corner of the part, in pixels.
        labels
            uint8, as many axes as the sample.

        Returns
        -------
        before, after
            What the part showed until now, and what it shows now.
        """
        box = tuple(slice(s, s + n) for s, n in zip(start, labels.shape, strict=True))
        before = self.annotation.labels[box].copy()
        unseen = self.annotation.supervision[box] == Supervision.UNSEEN
        np.copyto(self.annotation.labels[box], labels, where=unseen)
        return before, self.annotation.labels[box]

    def undo(self) -> Edit | None:
        """Take the last stroke back; None if there is none to take back."""
        edit = self._session.store.undo_edit(self._id)
        if edit is None:
            return None
        self._apply(edit, undo=True)
        self._step_back()
        return edit

    def redo(self) -> Edit | None:
        """Do the stroke again that was taken back last."""
        edit = self._session.store.redo_edit(self._id)
        if edit is not None:
            self._apply(edit)
            self._set_status(Status.CORRECTED)
        return edit

    def accept(self) -> None:
        """Say that all labels are right as they are, and write a revision."""
        self._write(self.annotation.accepted(), "accepted", Status.ACCEPTED)

    def take_back(self) -> None:
        """Withdraw the acceptance; corrected pixels stay corrected."""
        old = self.annotation
        supervision = np.where(
            old.supervision == Supervision.ACCEPTED, np.uint8(Supervision.UNSEEN), old.supervision
        )
        without = Status.NEW if self.sample.score is None else Status.PREDICTED
        status = Status.CORRECTED if supervision.any() else without
        annotation = Annotation(self._id, old.revision, old.labels, supervision)
        if self._prediction is not None:  # may be newer than what was accepted
            annotation = annotation.refreshed(self._prediction)
        self._write(annotation, "taken back", status)

    # How ---------------------------------------------------------------------

    def _apply(self, edit: Edit, *, undo: bool = False) -> None:
        self.annotation.apply(edit, undo=undo)
        if self._prediction is not None:  # may be newer than what the stroke was painted on
            unseen = self.annotation.supervision[edit.box] == Supervision.UNSEEN
            self.annotation.labels[edit.box][unseen] = self._prediction[edit.box][unseen]

    def _check_values(self, values: Labels) -> None:
        top = len(self._session.store.classes) - 1
        worst = int(values.max())
        if worst > top:
            raise InputError(
                f"The label {worst} is outside this project's classes 0 to {top}; choose a class "
                "in the Correct panel."
            )

    def _ensure_base(self) -> None:
        """Strokes lie on a revision; the first one makes it from what is shown.

        So does the first one after a prediction has changed unseen pixels.
        """
        if self._is_based:
            return
        stored = self._session.store.annotation(self._id)
        if stored is None:
            self._write(self.annotation, "started")
        elif not np.array_equal(stored.labels, self.annotation.labels):
            self._write(self.annotation, "predicted again")
        self._is_based = True

    def _write(self, annotation: Annotation, origin: str, status: Status | None = None) -> None:
        self.annotation = self._session.store.write_revision(
            self._id,
            annotation.labels.copy(),
            annotation.supervision.copy(),
            origin=origin,
            status=status,
        )
        self._is_based = True
        if status is not None:
            self._session.events.sample_changed.emit(self.sample)

    def _step_back(self) -> None:
        """With its last stroke undone, a sample is not a corrected one any more."""
        sample = self.sample
        if sample.status is Status.CORRECTED and not self.annotation.supervision.any():
            status = Status.NEW if sample.score is None else Status.PREDICTED
            self._session.put_sample(replace(sample, status=status))

    def _set_status(self, status: Status) -> None:
        sample = self.sample
        is_step_back = sample.status is Status.ACCEPTED and status is Status.CORRECTED
        if sample.status is not status and not is_step_back:
            self._session.put_sample(replace(sample, status=status))

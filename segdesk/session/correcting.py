"""Correcting labels: strokes into the journal, undo, accept."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segdesk.core.annotation import Annotation, Edit, Supervision
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.sample import Sample, Status
from segdesk.io.labels import write_labels
from segdesk.io.maps import PredictedMap
from segdesk.session.predicting import Start, find_start
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
    start
        Its labels, where they are read already.
    """

    def __init__(self, session: Session, sample: Sample, start: Start | None = None) -> None:
        self._session = session
        self._id = sample.id
        start = start or find_start(session, sample)()
        self._prediction: Labels | PredictedMap | None = start.prediction
        #: Whether the newest revision and the strokes on it give ``annotation``.
        self._is_based = start.is_based
        self.annotation: Annotation = start.annotation
        #: Counts what happens to the labels: a file written meanwhile is not of them.
        self._changes = 0
        #: Whether the journal alone says that the labels are accepted.
        self._is_noted = False
        self._base: _Base | None = None
        session.store.forget_drafts(sample.id)

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
        self._changes += 1
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
        self._changes += 1
        self._prediction = labels
        self._is_based = False
        self.annotation = self.annotation.refreshed(labels)

    def know_prediction(self, labels: PredictedMap) -> None:
        """Take note of a prediction whose labels have come by :meth:`take_part`."""
        self._prediction = labels
        self._is_based = False

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
        self._changes += 1
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
        self._writing(is_back=False)()()

    def take_back(self) -> None:
        """Withdraw the acceptance; corrected pixels stay corrected."""
        self._writing(is_back=True)()()

    # Large labels, written on another thread ---------------------------------------

    def prepare(self) -> Callable[[], None] | None:
        """Return what writes the revision that the first stroke will lie on; None without need.

        Any thread may call that. A stroke made before its end waits for it.
        """
        if self._is_based:
            return None
        self._drop_base()
        labels, supervision = self.annotation.labels, self.annotation.supervision
        draft = self._session.store.new_draft(self._id)
        stored = self._session.store.annotation_reader(self._id)
        future: Future[bool] = Future()
        self._base = _Base(draft, self._changes, future)

        def write() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                is_same = _is_same(stored(), labels)
                if not is_same:
                    write_labels(draft, labels, supervision)
                future.set_result(is_same)
            except SegDeskError as error:  # the stroke tells of it
                future.set_exception(error)

        return write

    def accept_soon(self) -> Callable[[], Callable[[], bool]]:
        """Do :meth:`accept`, but let another thread write the revision.

        That the labels are accepted is on disk when this returns. What it returns writes the
        revision in two steps; see :meth:`take_back_soon`. Without it nothing is lost.
        """
        self._ensure_base()
        self._session.store.accept_soon(self._id)
        self.annotation.accept()
        self._is_noted = True
        self._session.events.sample_changed.emit(self.sample)
        return self._writing(is_back=False)

    def take_back_soon(self) -> Callable[[], Callable[[], bool]]:
        """Return what does :meth:`take_back`, in two steps.

        The first writes the labels; any thread may call it. The second, which it returns,
        puts them in force, on this thread; False where labels were changed in between:
        then all is to be done again.
        """
        return self._writing(is_back=True)

    # How ---------------------------------------------------------------------------

    def _writing(self, *, is_back: bool) -> Callable[[], Callable[[], bool]]:
        store, changes, present = self._session.store, self._changes, self.annotation
        point = store.point(self._id)
        draft, sample, prediction = store.new_draft(self._id), self.sample, None
        if is_back:
            prediction = self._prediction  # may be newer than what was accepted

        def write() -> Callable[[], bool]:
            if is_back:
                supervision = present.supervision.copy()
                supervision[supervision == Supervision.ACCEPTED] = Supervision.UNSEEN
                without = Status.NEW if sample.score is None else Status.PREDICTED
                status = Status.CORRECTED if supervision.any() else without
                annotation = replace(present, supervision=supervision)
                if prediction is not None:
                    annotation = annotation.refreshed(prediction)
            else:
                annotation, status = present.accepted(), Status.ACCEPTED
            write_labels(draft, annotation.labels, annotation.supervision)
            return lambda: commit(annotation, status)

        def commit(annotation: Annotation, status: Status) -> bool:
            # Strokes on it may also come from a correction that was begun since.
            if self._changes != changes or store.point(self._id) != point:
                draft.unlink(missing_ok=True)
                return False
            origin = "taken back" if is_back else "accepted"
            number = store.adopt_draft(self._id, draft, origin=origin, status=status)
            self._drop_base()
            self.annotation = replace(annotation, revision=number)
            self._is_based = True
            self._is_noted = False
            self._session.events.sample_changed.emit(self.sample)
            return True

        return write

    def _apply(self, edit: Edit, *, undo: bool = False) -> None:
        self._changes += 1
        self.annotation.apply(edit, undo=undo)
        if self._is_noted:
            said = self.annotation.supervision[edit.box]
            said[said == Supervision.UNSEEN] = Supervision.ACCEPTED
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
        store, base = self._session.store, self._base
        if base is not None and base.changes == self._changes:
            is_same, draft = base.future.result(), base.draft
        else:
            is_same, draft = _is_same(store.annotation(self._id), self.annotation.labels), None
            self._drop_base()
        if is_same:  # another revision would end what can be undone
            self._base, self._is_based = None, True
            return
        if draft is None:
            draft = store.new_draft(self._id)
            write_labels(draft, self.annotation.labels, self.annotation.supervision)
        self._base = None
        origin = "predicted again" if self.sample.head else "started"
        number = store.adopt_draft(self._id, draft, origin=origin)
        self.annotation = replace(self.annotation, revision=number)
        self._is_based = True

    def _drop_base(self) -> None:
        """Do without the file in the making."""
        base, self._base = self._base, None
        if base is not None and not base.future.cancel():
            wait([base.future])
            base.draft.unlink(missing_ok=True)

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


@dataclass(frozen=True, slots=True)
class _Base:
    """A label file in the making, of the labels as they were after so many changes.

    ``future`` tells whether the project holds these labels already; then there is no file.
    """

    draft: Path
    changes: int
    future: Future[bool]


def _is_same(stored: Annotation | None, labels: Labels) -> bool:
    return stored is not None and np.array_equal(stored.labels, labels)

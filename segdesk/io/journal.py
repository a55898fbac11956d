"""Revisions and strokes: the part of the project store that holds the user's work."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from segdesk.core.annotation import Annotation, Edit
from segdesk.core.errors import InputError
from segdesk.core.sample import Sample, Status
from segdesk.io.atomic import explain_os_errors, sync_folder
from segdesk.io.database import Database
from segdesk.io.labels import read_labels, write_labels
from segdesk.io.schema import edit_of, edit_values, sample_of, stored_path

if TYPE_CHECKING:
    from segdesk.core.annotation import LabelArray

#: Key of a setting, with a sample's id behind: its labels are accepted, though no revision
#: says so yet.
ACCEPTED: Final = "accepted:"


@dataclass(frozen=True, slots=True)
class Revision:
    """One saved state of a sample's labels.

    Attributes
    ----------
    number
        Counts up from 1 for each sample.
    file
        Its label file, absolute.
    origin
        What made it: a model's name, an import, an acceptance.
    time
        Seconds since the epoch, UTC.
    """

    sample_id: str
    number: int
    file: Path
    origin: str
    time: float


class Journal:
    """Labels of the samples as saved revisions with strokes on top.

    A stroke is *active*, or *undone* until the next stroke makes it *dropped*,
    or *merged* once a revision contains it. Labels are those of the newest
    revision with the active strokes replayed.

    Parameters
    ----------
    database
        The project's database, open.
    folder
        The project's folder, absolute.
    read_only
        Whether to refuse every change.
    """

    def __init__(self, database: Database, folder: Path, *, read_only: bool) -> None:
        self.folder = folder
        self._database = database
        self._is_read_only = read_only

    def write_revision(
        self,
        sample_id: str,
        labels: LabelArray,
        supervision: LabelArray,
        *,
        origin: str,
        status: Status | None = None,
    ) -> Annotation:
        """Save labels as the sample's newest revision.

        Its active strokes become part of it; undone ones can no longer be
        redone, since they belong to the labels before.

        Parameters
        ----------
        labels, supervision
            uint8 arrays of the sample's spatial shape.
        status
            The sample's new status, set in the same transaction.

        Raises
        ------
        InputError
            No such sample, or the disk is full or read-only.
        ValueError
            An array has another shape or type.
        """
        self._check_writable()
        sample = self._sample(sample_id)
        if {labels.shape, supervision.shape} != {sample.shape}:
            raise ValueError(f"{sample_id} is {sample.shape}, the labels are {labels.shape}")
        number = self._next_revision(sample_id)
        # A file no row names yet is invisible: a crash before the commit
        # below leaves the old revision in force, and this number is used again.
        write_labels(self.revision_file(sample_id, number), labels, supervision)
        self._commit_revision(sample_id, number, origin, status)
        return Annotation(sample_id, number, labels.copy(), supervision.copy())

    def new_draft(self, sample_id: str) -> Path:
        """Return where another thread may write labels for :meth:`adopt_draft`."""
        self._check_writable()
        folder = self.revision_file(sample_id, 1).parent
        return folder / f".draft-{secrets.token_hex(4)}.tif"

    def forget_drafts(self, sample_id: str) -> None:
        """Delete drafts that nobody adopted, the program having been killed."""
        for draft in self.revision_file(sample_id, 1).parent.glob(".draft-*.tif"):
            with suppress(OSError):
                draft.unlink()

    def adopt_draft(
        self, sample_id: str, draft: Path, *, origin: str, status: Status | None = None
    ) -> int:
        """Make a label file the newest revision; see :meth:`write_revision`.

        Returns
        -------
        int
            Its number.
        """
        number = self._next_revision(sample_id)
        file = self.revision_file(sample_id, number)
        with explain_os_errors(file):
            os.replace(draft, file)
            sync_folder(file.parent)
        self._commit_revision(sample_id, number, origin, status)
        return number

    def accept_soon(self, sample_id: str) -> None:
        """Note that the labels are accepted as they are; on disk when this returns.

        The next revision with a status says it for every pixel. Until then whoever reads
        the labels gets those that nobody had looked at as accepted.
        """
        self._check_writable()
        with self._database.transaction() as connection:
            _set_status(connection, sample_id, Status.ACCEPTED)
            connection.execute(
                "INSERT OR REPLACE INTO settings VALUES (?, ?)", (ACCEPTED + sample_id, "true")
            )

    def point(self, sample_id: str) -> tuple[int, ...]:
        """Return what tells one state of the labels from another: the revision and the strokes."""
        rows = self._database.rows(
            "SELECT id FROM edits WHERE sample_id = ? AND state = 'active' ORDER BY id", sample_id
        )
        return (self._sample(sample_id).head, *(int(row["id"]) for row in rows))

    def _next_revision(self, sample_id: str) -> int:
        return max((r.number for r in self.revisions(sample_id)), default=0) + 1

    def _commit_revision(
        self, sample_id: str, number: int, origin: str, status: Status | None
    ) -> None:
        with self._database.transaction() as connection:
            self._insert_revision(connection, sample_id, number, origin)
            if status is not None:
                _set_status(connection, sample_id, status)
                connection.execute("DELETE FROM settings WHERE key = ?", (ACCEPTED + sample_id,))
            _move(connection, sample_id, "active", "merged")
            _move(connection, sample_id, "undone", "dropped")

    def annotation(self, sample_id: str) -> Annotation | None:
        """Return the newest labels with the active strokes on top, None before the first.

        The arrays are the caller's to write to.

        Raises
        ------
        InputError
            No such sample.
        SegDeskError
            The label file is gone or damaged.
        """
        return self.annotation_reader(sample_id)()

    def annotation_reader(self, sample_id: str) -> Callable[[], Annotation | None]:
        """Return what does :meth:`annotation`; any thread may call that, it reads files only.

        Raises
        ------
        InputError
            No such sample.
        """
        head = self._sample(sample_id).head
        if head == 0:
            return lambda: None
        file, edits = self.revision_file(sample_id, head), self.edits(sample_id)
        is_accepted = self._database.row(
            "SELECT key FROM settings WHERE key = ?", ACCEPTED + sample_id
        )

        def read() -> Annotation:
            annotation = Annotation(sample_id, head, *read_labels(file))
            for edit in edits:
                annotation.apply(edit)
            if is_accepted is not None:
                annotation.accept()
            return annotation

        return read

    def revisions(self, sample_id: str) -> list[Revision]:
        """Return the sample's revisions, oldest first."""
        rows = self._database.rows(
            "SELECT * FROM revisions WHERE sample_id = ? ORDER BY number", sample_id
        )
        return [
            Revision(sample_id, r["number"], self.folder / r["file"], r["origin"], r["time"])
            for r in rows
        ]

    def revision_file(self, sample_id: str, number: int) -> Path:
        """Return where a revision's labels are or will be."""
        return self.folder / "labels" / sample_id / f"r{number:04d}.tif"

    def append_edit(self, sample_id: str, edit: Edit) -> int:
        """Put a stroke into the journal; it is on disk when this returns.

        Returns
        -------
        int
            Number of the stroke, unique in the project.

        Raises
        ------
        InputError
            No such sample, or the disk is full or read-only.
        ValueError
            The stroke lies outside the labels, or there are none to draw on.
        """
        self._check_writable()
        _check_edit(edit, self._sample(sample_id))
        with self._database.transaction() as connection:
            _move(connection, sample_id, "undone", "dropped")
            cursor = connection.execute(
                "INSERT INTO edits (sample_id, start, stop, before, after, tool, time, state)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 'active')",
                (sample_id, *edit_values(edit)),
            )
            return int(cursor.lastrowid or 0)

    def undo_edit(self, sample_id: str) -> Edit | None:
        """Take back the newest active stroke and return it, None where there is none."""
        return self._step(sample_id, "max(id)", "active", "undone")

    def redo_edit(self, sample_id: str) -> Edit | None:
        """Bring back the stroke undone last and return it, None where there is none."""
        return self._step(sample_id, "min(id)", "undone", "active")

    def edit_counts(self, sample_id: str) -> tuple[int, int]:
        """Return how many strokes can be undone and how many redone."""
        rows = self._database.rows(
            "SELECT state, count(*) FROM edits WHERE sample_id = ? GROUP BY state", sample_id
        )
        counts = {row[0]: int(row[1]) for row in rows}
        return counts.get("active", 0), counts.get("undone", 0)

    def edits(self, sample_id: str) -> list[Edit]:
        """Return the active strokes, oldest first."""
        rows = self._database.rows(
            "SELECT * FROM edits WHERE sample_id = ? AND state = 'active' ORDER BY id", sample_id
        )
        return [edit_of(row) for row in rows]

    def stroke_times(self, sample_id: str) -> list[float]:
        """Return when each stroke was made, undone ones too, in seconds since the epoch."""
        rows = self._database.rows(
            "SELECT time FROM edits WHERE sample_id = ? ORDER BY time", sample_id
        )
        return [float(row["time"]) for row in rows]

    def _step(self, sample_id: str, choice: str, state: str, target: str) -> Edit | None:
        self._check_writable()
        row = self._database.row(
            "SELECT * FROM edits WHERE id ="
            f" (SELECT {choice} FROM edits WHERE sample_id = ? AND state = ?)",
            sample_id,
            state,
        )
        if row is None:
            return None
        with self._database.transaction() as connection:
            connection.execute("UPDATE edits SET state = ? WHERE id = ?", (target, row["id"]))
        return edit_of(row)

    def _insert_revision(
        self, connection: sqlite3.Connection, sample_id: str, number: int, origin: str
    ) -> None:
        path = stored_path(self.revision_file(sample_id, number), self.folder)
        connection.execute(
            "INSERT INTO revisions VALUES (?, ?, ?, ?, ?)",
            (sample_id, number, path, origin, time.time()),
        )
        connection.execute("UPDATE samples SET head = ? WHERE id = ?", (number, sample_id))

    def _sample(self, sample_id: str) -> Sample:
        row = self._database.row("SELECT * FROM samples WHERE id = ?", sample_id)
        if row is None:
            raise InputError(f"The project has no sample {sample_id}; add its image first.")
        return sample_of(row, self.folder)

    def _check_writable(self) -> None:
        if self._is_read_only:
            raise InputError(
                f"{self.folder.name} is open for reading only; open it for writing to change it."
            )


def _set_status(connection: sqlite3.Connection, sample_id: str, status: Status) -> None:
    connection.execute("UPDATE samples SET status = ? WHERE id = ?", (str(status), sample_id))


def _move(connection: sqlite3.Connection, sample_id: str, state: str, target: str) -> None:
    connection.execute(
        "UPDATE edits SET state = ? WHERE sample_id = ? AND state = ?", (target, sample_id, state)
    )


def _check_edit(edit: Edit, sample: Sample) -> None:
    if sample.head == 0:
        raise ValueError(f"{sample.id} has no labels to draw on yet; write a revision first")
    corners = zip(edit.start, edit.stop, sample.shape, strict=True)
    if not all(0 <= start < stop <= size for start, stop, size in corners):
        raise ValueError(f"box {edit.start} to {edit.stop} is not inside {sample.shape}")
    shape = (2, *(b - a for a, b in zip(edit.start, edit.stop, strict=True)))
    for side in (edit.before, edit.after):
        if side.shape != shape or side.dtype != np.uint8:
            raise ValueError(f"a stroke of this box needs uint8 arrays of {shape}")

"""The project folder: ``project.db`` is the one source of truth about state."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import sqlite3
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from segdesk.core.classes import ClassDef, ClassMap
from segdesk.core.errors import InputError
from segdesk.core.prediction import Prediction
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Sample
from segdesk.io.atomic import atomic_folder, explain_os_errors
from segdesk.io.database import Database
from segdesk.io.journal import ACCEPTED, Journal, Revision
from segdesk.io.labels import write_labels
from segdesk.io.lock import ProjectLock
from segdesk.io.schema import (
    APPLICATION_ID,
    SAMPLE_COLUMNS,
    SCHEMA_VERSION,
    TABLES,
    prediction_of,
    run_of,
    run_values,
    sample_of,
    sample_values,
    stored_path,
)

if TYPE_CHECKING:
    from segdesk.core.annotation import LabelArray

__all__ = [
    "DATABASE_NAME",
    "SCHEMA_VERSION",
    "SUFFIX",
    "FirstLabels",
    "ProjectStore",
    "Revision",
]

SUFFIX = ".segdesk"
DATABASE_NAME = "project.db"

#: Names Windows keeps for devices, whatever their extension.
DEVICE_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)$")


@dataclass(frozen=True, slots=True)
class FirstLabels:
    """Labels that a new sample comes with; arrays as in :meth:`Journal.write_revision`."""

    labels: LabelArray
    supervision: LabelArray
    origin: str


class ProjectStore(Journal):
    """A project on disk, for the one thread that opened it.

    Made by :meth:`create` or :meth:`open`; a context manager. Paths inside the
    project folder are stored relative to it, so that it can be moved, and are
    returned absolute.

    Attributes
    ----------
    folder
        The project's folder, absolute.
    classes
        The classes, fixed when the project was made.
    """

    def __init__(
        self, folder: Path, classes: ClassMap, database: Database, lock: ProjectLock | None
    ) -> None:
        super().__init__(database, folder, read_only=lock is None)
        self.classes = classes
        self._lock = lock

    @classmethod
    def create(cls, folder: Path, classes: ClassMap) -> ProjectStore:
        """Make a new project and open it.

        Parameters
        ----------
        folder
            Must be missing or empty; ``.segdesk`` is added to its name.

        Raises
        ------
        InputError
            The folder holds something, or cannot be written to.
        """
        folder = _with_suffix(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} exists already; open it, or choose another name for the new project."
            )
        with atomic_folder(folder) as beside:
            database = Database(beside / DATABASE_NAME, folder.name, create=True)
            try:
                _fill(database, classes)
            finally:
                database.close()
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path, *, read_only: bool = False) -> ProjectStore:
        """Open a project, also one whose process was killed.

        Parameters
        ----------
        read_only
            Look only: takes no lock, and works on a read-only disk.

        Raises
        ------
        InputError
            Not a project, made by a newer SegDesk, damaged, open in another
            window, or in a folder that cannot be written to.
        """
        folder = _existing(folder)
        lock = None if read_only else ProjectLock(folder)
        database = None
        try:
            database = Database(folder / DATABASE_NAME, folder.name, read_only=read_only)
            _check_format(database, folder)
            rows = database.rows("SELECT * FROM classes ORDER BY id")
            classes = ClassMap(tuple(ClassDef(r["id"], r["name"], r["color"]) for r in rows))
        except BaseException:
            if database:
                database.close()
            if lock:
                lock.release()
            raise
        return cls(folder, classes, database, lock)

    def close(self) -> None:
        """Close the files and let other windows in; a second call does nothing."""
        try:
            self._database.close()
        finally:
            if self._lock:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let the block, which only reads, see the project as it is now.

        For a store of its own in a thread: revisions and strokes that are read one after the
        other belong together, though the user goes on painting.
        """
        with self._database.snapshot():
            yield

    def samples(self) -> list[Sample]:
        """Return all samples in the order they were added."""
        rows = self._database.rows("SELECT * FROM samples ORDER BY position")
        return [sample_of(row, self.folder) for row in rows]

    def sample(self, sample_id: str) -> Sample:
        """Return the sample of this id, or of this image name if only one has it.

        Raises
        ------
        InputError
            There is none, or several have this name.
        """
        rows = self._database.rows("SELECT * FROM samples WHERE id = ?", sample_id)
        rows = rows or self._database.rows("SELECT * FROM samples WHERE name = ?", sample_id)
        if len(rows) == 1:
            return sample_of(rows[0], self.folder)
        if rows:
            ids = ", ".join(row["id"] for row in rows)
            raise InputError(
                f"{len(rows)} images are called {sample_id}; use one of the ids {ids}."
            )
        known = [n for row in self._database.rows("SELECT id, name FROM samples") for n in row]
        nearest = difflib.get_close_matches(sample_id, known, 1, 0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else "add its image first."
        raise InputError(f"The project has no image {sample_id}; {hint}")

    def add_samples(
        self, samples: Sequence[Sample], labels: Mapping[str, FirstLabels] | None = None
    ) -> None:
        """Add all samples, or none of them after an error.

        Parameters
        ----------
        labels
            Labels that some of them come with, by sample id: their first revision.

        Raises
        ------
        ValueError
            An id is taken, or a sample claims a revision it cannot have yet.
        InputError
            The disk is full or read-only.
        """
        self._check_writable()
        if any(sample.head for sample in samples):
            raise ValueError("a new sample has no revision; its head must be 0")
        marks = ", ".join("?" * len(SAMPLE_COLUMNS.split(",")))
        try:
            with self._first_files(labels or {}), self._database.transaction() as connection:
                connection.executemany(
                    f"INSERT INTO samples ({SAMPLE_COLUMNS}) VALUES ({marks})",
                    [sample_values(sample, self.folder) for sample in samples],
                )
                for sample_id, first in (labels or {}).items():
                    self._insert_revision(connection, sample_id, 1, first.origin)
        except sqlite3.IntegrityError as error:
            raise ValueError(f"a sample cannot be added: {error}") from error

    def replace_sample(self, sample: Sample) -> None:
        """Store the sample's new state; ``head`` is left to :meth:`write_revision`.

        Raises
        ------
        ValueError
            Its split or hash differ: an image never changes sides, and another
            image is another sample.
        InputError
            No such sample, or the disk is full or read-only.
        """
        self._check_writable()
        old = self._sample(sample.id)
        if (old.split, old.sha256) != (sample.split, sample.sha256):
            raise ValueError(f"split and image of {sample.id} are chosen once and stay")
        with self._database.transaction() as connection:
            connection.execute(
                f"UPDATE samples SET ({SAMPLE_COLUMNS}) = "
                f"({', '.join('?' * len(SAMPLE_COLUMNS.split(',')))}) WHERE id = ?",
                (*sample_values(sample, self.folder), sample.id),
            )

    def remove_sample(self, sample_id: str) -> Path | None:
        """Forget a sample; its labels are moved to ``removed/`` and the image is left.

        Returns
        -------
        Path or None
            Where its labels lie now; None if it had none.

        Raises
        ------
        InputError
            No such sample, or the disk is full or read-only.
        """
        self._check_writable()
        sample = self.sample(sample_id)
        with self._database.transaction() as connection:
            for table in ("edits", "revisions", "predictions"):
                connection.execute(f"DELETE FROM {table} WHERE sample_id = ?", (sample.id,))
            connection.execute("DELETE FROM settings WHERE key = ?", (ACCEPTED + sample.id,))
            connection.execute("DELETE FROM samples WHERE id = ?", (sample.id,))
        with explain_os_errors(self.folder):
            shutil.rmtree(self.folder / "predictions" / sample.id, ignore_errors=True)
            labels = self.revision_file(sample.id, 1).parent
            if not labels.is_dir():
                return None
            # A name of its own: the same image may be added and removed again.
            kept = self.folder / "removed" / f"{sample.id}-{time.time_ns()}"
            kept.parent.mkdir(exist_ok=True)
            labels.rename(kept)
            return kept

    def new_sample_id(self, name: str, taken: set[str]) -> str:
        """Make a folder name from an image's name.

        Lower case ASCII, since some disks take ``A`` and ``a`` for one name.

        Parameters
        ----------
        taken
            Ids given out but not yet added; left as it is.
        """
        stem = name.split("/")[-1].removesuffix(Path(name).suffix)
        plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
        slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or "image"
        if DEVICE_NAMES.match(slug):
            slug = f"image-{slug}"
        candidate, number = slug, 1
        while candidate in taken or self._database.row(
            "SELECT 1 FROM samples WHERE id = ?", candidate
        ):
            number += 1
            candidate = f"{slug}-{number}"
        return candidate

    def record_prediction(self, prediction: Prediction, weights_sha256: str) -> None:
        """Make this the current prediction of its sample and model."""
        self._check_writable()
        folder = stored_path(prediction.folder, self.folder)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO predictions VALUES (?, ?, ?, ?, ?)",
                (prediction.sample_id, prediction.model, weights_sha256, folder, prediction.score),
            )

    def prediction(
        self, sample_id: str, model: str, weights_sha256: str | None = None
    ) -> Prediction | None:
        """Return the current prediction.

        None where there is none, where it comes from other weights than asked
        for, and where its folder is gone.
        """
        row = self._database.row(
            "SELECT * FROM predictions WHERE sample_id = ? AND model = ?", sample_id, model
        )
        if row is None or weights_sha256 not in (None, row["weights_sha256"]):
            return None
        prediction = prediction_of(row, self.folder)
        return prediction if prediction.folder.is_dir() else None

    def put_run(self, run: Run) -> None:
        """Add a run or store its new state.

        Raises
        ------
        ValueError
            The run has ended and would end another way, or one that came to its end would
            go on. One that did not may wait for its turn again.
        """
        self._check_writable()
        row = self._database.row("SELECT state FROM runs WHERE id = ?", run.id)
        old = RunState(row["state"]) if row else run.state
        is_resumed = run.state is RunState.QUEUED and old is not RunState.COMPLETED
        if old.is_terminal and run.state is not old and not is_resumed:
            raise ValueError(f"run {run.id} has ended as {old}, not {run.state}")
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO runs (id, folder, base_model, state, new_model, reason,"
                " scores_before, scores_after) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET folder = excluded.folder,"
                " base_model = excluded.base_model, state = excluded.state,"
                " new_model = excluded.new_model, reason = excluded.reason,"
                " scores_before = excluded.scores_before, scores_after = excluded.scores_after",
                run_values(run, self.folder),
            )

    def runs(self) -> list[Run]:
        """Return all runs in the order they were added."""
        rows = self._database.rows("SELECT * FROM runs ORDER BY position")
        return [run_of(row, self.folder) for row in rows]

    def get(self, key: str, default: Any = None) -> Any:
        """Return a setting, ``default`` where it was never set."""
        row = self._database.row("SELECT value FROM settings WHERE key = ?", key)
        return default if row is None else json.loads(row["value"])

    def set(self, key: str, value: Any) -> None:
        """Store a setting: numbers, text, lists and dictionaries of them.

        Raises
        ------
        TypeError
            JSON cannot hold the value.
        """
        self._check_writable()
        text = json.dumps(value)
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, text))

    @contextmanager
    def _first_files(self, labels: Mapping[str, FirstLabels]) -> Iterator[None]:
        """Write the label files, and remove them again should the block fail."""
        written: list[Path] = []
        taken = {row["id"] for row in self._database.rows("SELECT id FROM samples")}
        if clash := taken.intersection(labels):
            raise ValueError(f"a sample cannot be added: {min(clash)} is taken")
        try:
            for sample_id, first in labels.items():
                written.append(self.revision_file(sample_id, 1))
                write_labels(written[-1], first.labels, first.supervision)
            yield
        except BaseException:
            for file in written:
                shutil.rmtree(file.parent, ignore_errors=True)
            with suppress(OSError):  # it holds others
                (self.folder / "labels").rmdir()
            raise


def _with_suffix(folder: Path) -> Path:
    folder = Path(folder).absolute()
    return folder if folder.suffix == SUFFIX else folder.with_name(folder.name + SUFFIX)


def _existing(folder: Path) -> Path:
    """Find the project the user means: its folder, that without suffix, or its database."""
    given = Path(folder).absolute()
    if given.name == DATABASE_NAME and given.is_file():
        return given.parent
    for candidate in (given, _with_suffix(given)):
        if (candidate / DATABASE_NAME).is_file():
            return candidate
    if not given.exists():
        raise InputError(f"{given} does not exist; check the path, or make a new project.")
    raise InputError(
        f"{given} is not a SegDesk project: it holds no {DATABASE_NAME}; choose a folder whose "
        f"name ends in {SUFFIX}."
    )


def _fill(database: Database, classes: ClassMap) -> None:
    with database.transaction() as connection:
        for statement in filter(str.strip, TABLES.split(";")):
            connection.execute(statement)
        connection.executemany(
            "INSERT INTO classes VALUES (?, ?, ?)",
            [(c.id, c.name, c.color) for c in classes.classes],
        )
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _check_format(database: Database, folder: Path) -> None:
    mark = database.rows("PRAGMA application_id")[0][0]
    version = database.rows("PRAGMA user_version")[0][0]
    if mark != APPLICATION_ID:
        raise InputError(
            f"{folder / DATABASE_NAME} was not made by SegDesk; choose another folder."
        )
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{folder.name} was made by a newer SegDesk (format {version}, this one reads up to "
            f"{SCHEMA_VERSION}); update SegDesk."
        )
    if database.rows("PRAGMA quick_check(1)")[0][0] != "ok":
        raise InputError(
            f"The database {folder / DATABASE_NAME} is damaged; restore it from a backup."
        )

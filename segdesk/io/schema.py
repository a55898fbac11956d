"""Tables of ``project.db`` and how their rows become nouns."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segdesk.core.address import Address, is_remote
from segdesk.core.annotation import Edit
from segdesk.core.prediction import Prediction
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Sample, Split, Status

if TYPE_CHECKING:
    from segdesk.core.annotation import LabelArray

#: Format of the project folder, kept in the database's ``user_version``.
SCHEMA_VERSION: Final = 1

#: Marks a database as SegDesk's: "SegD" in ASCII.
APPLICATION_ID: Final = 0x53656744

TABLES: Final = """
CREATE TABLE classes (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    color TEXT NOT NULL
);
CREATE TABLE samples (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    shape TEXT NOT NULL,
    channels INTEGER NOT NULL,
    dtype TEXT NOT NULL,
    split TEXT NOT NULL CHECK (split IN ('train', 'validation')),
    status TEXT NOT NULL,
    grouping TEXT NOT NULL,
    head INTEGER NOT NULL DEFAULT 0,
    score REAL,
    reference TEXT
);
CREATE INDEX samples_by_name ON samples (name);
CREATE TABLE revisions (
    sample_id TEXT NOT NULL REFERENCES samples (id),
    number INTEGER NOT NULL,
    file TEXT NOT NULL,
    origin TEXT NOT NULL,
    time REAL NOT NULL,
    PRIMARY KEY (sample_id, number)
);
CREATE TABLE edits (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sample_id TEXT NOT NULL REFERENCES samples (id),
    start TEXT NOT NULL,
    stop TEXT NOT NULL,
    before BLOB NOT NULL,
    after BLOB NOT NULL,
    tool TEXT NOT NULL,
    time REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'undone', 'merged', 'dropped'))
);
CREATE INDEX edits_by_sample ON edits (sample_id, state, id);
CREATE TABLE predictions (
    sample_id TEXT NOT NULL REFERENCES samples (id),
    model TEXT NOT NULL,
    weights_sha256 TEXT NOT NULL,
    folder TEXT NOT NULL,
    score REAL NOT NULL,
    PRIMARY KEY (sample_id, model)
);
CREATE TABLE runs (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    folder TEXT NOT NULL,
    base_model TEXT NOT NULL,
    state TEXT NOT NULL,
    new_model TEXT NOT NULL,
    reason TEXT NOT NULL,
    scores_before TEXT NOT NULL,
    scores_after TEXT NOT NULL
);
CREATE TABLE settings (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
"""

SAMPLE_COLUMNS: Final = (
    "id, name, path, sha256, shape, channels, dtype, split, status, grouping, score, reference"
)


def stored_path(path: Address, folder: Path) -> str:
    """Name a path relative to the project where it lies inside, absolute otherwise.

    A relative path is one inside the project; an address is left as it is.
    """
    if is_remote(path):
        return str(path)
    whole = Path(os.path.abspath(folder / path))
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


def sample_values(sample: Sample, folder: Path) -> tuple[object, ...]:
    """Return the values of :data:`SAMPLE_COLUMNS`."""
    return (
        sample.id,
        sample.name,
        stored_path(sample.path, folder),
        sample.sha256,
        json.dumps(sample.shape),
        sample.channels,
        sample.dtype,
        sample.split.value,
        sample.status.value,
        sample.group,
        sample.score,
        None if sample.reference is None else stored_path(sample.reference, folder),
    )


def sample_of(row: sqlite3.Row, folder: Path) -> Sample:
    """Make a sample with absolute paths from a row."""
    return Sample(
        id=row["id"],
        name=row["name"],
        path=row["path"] if is_remote(row["path"]) else folder / row["path"],
        sha256=row["sha256"],
        shape=tuple(json.loads(row["shape"])),
        channels=row["channels"],
        dtype=row["dtype"],
        split=Split(row["split"]),
        status=Status(row["status"]),
        group=row["grouping"],
        head=row["head"],
        score=row["score"],
        reference=None if row["reference"] is None else folder / row["reference"],
    )


def edit_values(edit: Edit) -> tuple[object, ...]:
    """Return start, stop, before, after, tool and time for a row."""
    return (
        json.dumps([int(i) for i in edit.start]),
        json.dumps([int(i) for i in edit.stop]),
        zlib.compress(np.ascontiguousarray(edit.before).tobytes(), 1),
        zlib.compress(np.ascontiguousarray(edit.after).tobytes(), 1),
        edit.tool,
        float(edit.time),
    )


def edit_of(row: sqlite3.Row) -> Edit:
    """Make an edit from a row."""
    start, stop = tuple(json.loads(row["start"])), tuple(json.loads(row["stop"]))
    shape = (2, *(b - a for a, b in zip(start, stop, strict=True)))

    def array(column: str) -> LabelArray:
        return np.frombuffer(zlib.decompress(row[column]), np.uint8).reshape(shape)

    return Edit(start, stop, array("before"), array("after"), row["tool"], row["time"])


def prediction_of(row: sqlite3.Row, folder: Path) -> Prediction:
    """Make a prediction with an absolute folder from a row."""
    return Prediction(row["sample_id"], row["model"], folder / row["folder"], row["score"])


def run_values(run: Run, folder: Path) -> tuple[object, ...]:
    """Return the values of a run's row, position left out."""
    return (
        run.id,
        stored_path(run.folder, folder),
        run.base_model,
        run.state.value,
        run.new_model,
        run.reason,
        json.dumps(run.before),
        json.dumps(run.after),
    )


def run_of(row: sqlite3.Row, folder: Path) -> Run:
    """Make a run with an absolute folder from a row."""
    before: dict[str, Any] | None = json.loads(row["scores_before"])
    after: dict[str, Any] | None = json.loads(row["scores_after"])
    return Run(
        row["id"],
        folder / row["folder"],
        row["base_model"],
        RunState(row["state"]),
        row["new_model"],
        row["reason"],
        before,
        after,
    )

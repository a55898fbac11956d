"""SQLite with its failures explained and its transactions whole."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from segdesk.core.errors import InputError, SegDeskError
from segdesk.io.atomic import free_bytes

#: What SQLite needs beside a database to open it.
MIN_FREE_BYTES: Final = 64 * 1024

#: Seconds to wait for another program that reads the file.
BUSY_TIMEOUT: Final = 5.0


class Database:
    """One connection, for the thread that made it.

    Parameters
    ----------
    path
        The database file.
    name
        What error sentences call it.
    create
        Make it where it is missing.
    read_only
        Only look, also on a disk that cannot be written to.

    Raises
    ------
    SegDeskError
        It cannot be opened.
    """

    def __init__(
        self, path: Path, name: str, *, create: bool = False, read_only: bool = False
    ) -> None:
        self._path, self._name = path, name
        self._leaves_log = read_only and not self._log.exists()
        with self._explained():
            if read_only:
                self._connection = self._connect_read_only()
            else:
                self._connection = self._connect("mode=rwc" if create else "mode=rw")
        try:
            with self._explained():
                if create:  # kept in the file from then on
                    self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = FULL")
                self._connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._explained():
            self._connection.close()
        if self._leaves_log:
            self._leaves_log = False
            self._sweep()

    @property
    def _log(self) -> Path:
        return self._path.with_name(f"{self._path.name}-wal")

    def _sweep(self) -> None:
        """Remove the empty log that looking has left: a connection that may not write cannot.

        SQLite does it when the last connection that may write is closed, and so not while
        another program has the database open.
        """
        with suppress(OSError, sqlite3.Error):
            if self._log.exists() and not self._log.stat().st_size:
                with closing(self._connect("mode=rw")) as connection:
                    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()

    def rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        with self._explained():
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: object) -> sqlite3.Row | None:
        """Return the first row of a query, None where there is none."""
        with self._explained():
            row: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
            return row

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit the block's writes to disk as one, or none of them after an error."""
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk makes SQLite roll back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let the block read the database as it is now, whatever others write meanwhile."""
        with self._explained():
            self._connection.execute("BEGIN")
            try:
                self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _connect(self, query: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?{query}",
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
        )
        connection.row_factory = sqlite3.Row
        return connection

    def _connect_read_only(self) -> sqlite3.Connection:
        connection = self._connect("mode=ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            # WAL needs an index file beside the database; without one, only a
            # database with an empty log reads true.
            if self._log.exists() and self._log.stat().st_size:
                raise InputError(
                    f"{self._name} was not closed properly and its disk is read-only; "
                    "copy the folder to a disk you can write to and open it there."
                ) from None
            return self._connect("immutable=1")
        return connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            sentence = self._sentence(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            if sentence is None:
                raise
            raise sentence from error

    def _sentence(self, code: int) -> SegDeskError | None:
        path = self._path
        is_disk_trouble = code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
        # Without room for its index, SQLite says "I/O error" and not "full".
        has_no_room = is_disk_trouble and free_bytes(path) < MIN_FREE_BYTES
        if code == sqlite3.SQLITE_FULL or has_no_room:
            return InputError(f"The disk holding {path} is full; free some space and try again.")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return InputError(
                f"{path} cannot be written to because it is read-only; "
                "copy the project to a folder you can write to."
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return InputError(
                f"The database {path} is damaged and cannot be read; restore it from a backup."
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return InputError(f"{path} is in use by another program; close that program.")
        if is_disk_trouble:
            return SegDeskError(
                f"{path} cannot be read or written by the disk it is on; check that the disk is "
                "connected, in order, and has space left."
            )
        return None

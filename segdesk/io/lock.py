"""One window per project: a lock the operating system frees when its holder dies."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from segdesk.core.errors import InputError
from segdesk.io.atomic import atomic_write_text, explain_os_errors


class ProjectLock:
    """Hold ``folder`` for this process.

    Parameters
    ----------
    folder
        The project's folder.

    Raises
    ------
    InputError
        Another window holds it, or the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._owner = folder / ".lock-owner"
        self._lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
        try:
            with explain_os_errors(folder):
                self._lock.acquire()
        except Timeout as error:
            raise InputError(
                f"{folder.name} is open in another SegDesk window ({self._holder()}); "
                "close it there first."
            ) from error
        try:
            atomic_write_text(self._owner, f"{os.getpid()}\n")
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let others have it; a second call does nothing."""
        if self._lock.is_locked:
            with suppress(OSError):
                self._owner.unlink()
            self._lock.release()

    def _holder(self) -> str:
        try:
            return f"process {int(self._owner.read_text('utf-8'))}"
        except (OSError, ValueError):
            return "process unknown"

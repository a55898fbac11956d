"""When the program itself fails: a log with what happened, and no lost work."""

from __future__ import annotations

import faulthandler
import sys
import threading
import traceback
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO


class CrashLog:
    """Writes unhandled errors and fatal signals to a file.

    Strokes are in the project's journal already, so nothing has to be rescued here.

    Parameters
    ----------
    path
        The log; made with its folder.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)
        self._before = (sys.excepthook, threading.excepthook)

    def install(self) -> None:
        """Start writing; what was told of errors before is still told."""
        faulthandler.enable(self._file)
        sys.excepthook = self._on_error
        threading.excepthook = self._on_thread_error

    def remove(self) -> None:
        """Put things back as they were and close the file."""
        faulthandler.disable()
        sys.excepthook, threading.excepthook = self._before
        self._file.close()

    def _on_error(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        self._write(kind, error, trace)
        self._before[0](kind, error, trace)

    def _on_thread_error(self, arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            self._write(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        self._before[1](arguments)

    def _write(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        self._file.write(f"--- {datetime.now().astimezone().isoformat(timespec='seconds')}\n")
        traceback.print_exception(kind, error, trace, file=self._file)

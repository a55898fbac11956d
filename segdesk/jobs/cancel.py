"""Calling work off."""

from __future__ import annotations

import threading

from segdesk.core.errors import CanceledError


class CancelToken:
    """Set by whoever calls the work off, looked at by whoever does it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask for the work to end at its next step."""
        self._event.set()

    @property
    def is_canceled(self) -> bool:
        """Whether the work was called off."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise CanceledError if the work was called off."""
        if self._event.is_set():
            raise CanceledError

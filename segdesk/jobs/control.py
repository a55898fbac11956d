"""What a user may ask of a run that is under way: wait, go on, end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from segdesk.jobs.cancel import CancelToken


class RunControl(CancelToken):
    """A token with a gate; a run that waits at the gate can still be called off."""

    def __init__(self) -> None:
        super().__init__()
        self._gate = threading.Event()
        self._gate.set()

    def pause(self, is_paused: bool) -> None:
        """Close the gate or open it."""
        if is_paused:
            self._gate.clear()
        else:
            self._gate.set()

    def wait(self, on_change: Callable[[bool], None]) -> float:
        """Wait while the gate is closed; returns the seconds that took.

        Parameters
        ----------
        on_change
            Called with True when the wait begins and False when it is over.
        """
        if self._gate.is_set():
            return 0.0
        on_change(True)
        waited = 0.0
        while not self._gate.wait(0.1) and not self.is_canceled:
            waited += 0.1
        on_change(False)
        return waited

"""How late a window's event loop is, by a timer that should come every 10 ms."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np
from napari.qt import get_qapp
from qtpy.QtCore import Qt, QTimer

TICK: Final = 0.01


class Lateness:
    """Lets the event loop run, and counts."""

    def __init__(self) -> None:
        self._application: Any = get_qapp()
        self._late: list[float] = []
        self._last = 0.0
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)

    def settle(self, seconds: float) -> None:
        """Let the loop run uncounted."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            self._application.processEvents()
            time.sleep(0.005)

    def begin(self) -> None:
        """Count from here on."""
        self._late.clear()
        self._last = time.perf_counter()
        self._timer.start(round(TICK * 1000))

    def run(self, seconds: float) -> None:
        """Let the loop run and count."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            self._application.processEvents()
            time.sleep(0.0005)

    def end(self) -> dict[str, float]:
        """Return how late it was, in ms: median, 99th percentile and most."""
        self._timer.stop()
        found = 1000 * np.percentile(self._late, (50, 99, 100))
        return dict(zip(("median", "p99", "most"), found.round(1).tolist(), strict=True))

    def _tick(self) -> None:
        now = time.perf_counter()
        self._late.append(now - self._last - TICK)
        self._last = now

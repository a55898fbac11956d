"""How often something that changes all the time is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QWidget

#: Time between two frames, in ms, where drawing one costs next to nothing, and else.
QUICK, SLOW = 250, 2500

#: A frame that keeps other things waiting for longer than this, in ms, is felt by somebody
#: who paints.
FELT: Final = 8.0

#: So long after a frame it is asked how long that took, in ms: plots paint themselves only
#: when the event loop comes to them.
PROBE: Final = 5


class Pace:
    """Draws soon after something has changed, and no more often than the machine bears.

    Beside an image that OpenGL draws, Qt puts the whole window together anew whenever
    any widget changes. A graphics card does that at once; without one it takes some 20 ms
    each time, in which no stroke is taken in. So everything is drawn in one frame, and a
    frame that took long is followed by a longer pause.

    Parameters
    ----------
    draw
        Brings the widgets up to date.
    widget
        What holds them.
    """

    def __init__(self, draw: Callable[[], None], widget: QWidget) -> None:
        self._draw = draw
        self._widget = widget
        self._last = 0.0
        self._timer = QTimer(widget)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self.draw_now)
        self.interval = QUICK

    def soon(self) -> None:
        """Draw as soon as the pace allows."""
        if not self._timer.isActive():
            since = 1000 * (time.monotonic() - self._last)
            self._timer.start(max(0, round(self.interval - since)))

    def draw_now(self) -> None:
        """Draw without waiting."""
        self._timer.stop()
        began = time.monotonic()
        self._draw()
        QTimer.singleShot(PROBE, self._widget, lambda: self._learn(began))
        self._last = began

    def _learn(self, began: float) -> None:
        """Choose how often to draw from how long this frame kept the event loop."""
        took = 1000 * (time.monotonic() - began) - PROBE
        self.interval = QUICK if took < FELT else SLOW

    def stop(self) -> None:
        """Draw nothing any more until the next change."""
        self._timer.stop()

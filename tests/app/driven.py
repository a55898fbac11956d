"""The app in a process of its own that does something by itself: to be killed at any moment."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from segdesk.app.window import DesktopWindow


def say(text: str) -> None:
    """Tell whoever started this process, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def drive(project: Path, every: int, begin: Callable[[DesktopWindow], Callable[[], bool]]) -> None:
    """Open the window on ``project``; every so many ms, do what ``begin`` returned.

    When that says that it is done, the window is closed.
    """
    from napari.qt import get_qapp
    from qtpy.QtCore import QTimer

    application = get_qapp()
    window = DesktopWindow()
    window.open_project(project)
    act = begin(window)

    def go_on() -> None:
        if act():
            timer.stop()
            window.main.close()

    timer = QTimer()
    timer.timeout.connect(go_on)
    timer.start(every)
    application.exec()

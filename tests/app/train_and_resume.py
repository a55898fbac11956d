"""The app with a run: begins one, or resumes the one it finds; to be killed at any moment.

Prints ``began``, ``found STATE``, ``resumed`` and, if it comes so far, ``ended STATE``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from segdesk.config.training import TrainingConfig

CONFIG = TrainingConfig(
    steps=300, batch_size=2, crop_size=32, evaluate_every=5, device="cpu", learning_rate=1e-2
)


def main(project: Path) -> None:
    """Open the window on ``project`` and see its run through."""
    from napari.qt import get_qapp
    from qtpy.QtCore import QTimer

    from segdesk.app.window import DesktopWindow
    from segdesk.session import training

    application = get_qapp()
    window = DesktopWindow()
    window.open_project(project)
    window.workbench.raise_panel("Train")
    panel: Any = window.workbench.panels["Train"]
    is_ours = False

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def look() -> None:
        nonlocal is_ours
        session = window.workbench.session
        if session is None:
            return
        runs = session.store.runs()
        if not runs:
            training.start(session, CONFIG)
            is_ours = True
            say("began")
        elif runs[-1].state.is_terminal and not is_ours:
            say(f"found {runs[-1].state}")
            panel.control.resume.click()
            is_ours = True
            say("resumed")
        elif runs[-1].state.is_terminal:
            say(f"ended {runs[-1].state}")
            timer.stop()
            window.main.close()

    timer = QTimer()
    timer.timeout.connect(look)
    timer.start(20)
    application.exec()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

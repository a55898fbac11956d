"""The app with a run: begins one, or resumes the one it finds; to be killed at any moment.

Prints ``began``, ``found STATE``, ``resumed`` and, if it comes so far, ``ended STATE``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from driven import drive, say

from segdesk.app.window import DesktopWindow
from segdesk.config.training import TrainingConfig
from segdesk.session import training

CONFIG = TrainingConfig(
    steps=300, batch_size=2, crop_size=32, evaluate_every=5, device="cpu", learning_rate=1e-2
)


def see_through(window: DesktopWindow) -> Callable[[], bool]:
    """Begin or resume the project's run and see it to its end."""
    window.workbench.raise_panel("Train")
    panel: Any = window.workbench.panels["Train"]
    is_ours = False

    def look() -> bool:
        nonlocal is_ours
        session = window.workbench.session
        if session is None:
            return False
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
            return True
        return False

    return look


if __name__ == "__main__":
    drive(Path(sys.argv[1]), 20, see_through)

"""Buttons for the run on show: pause and go on, stop, stop now, resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QHBoxLayout, QWidget

from segdesk.core.run import Run, RunState
from segdesk.session import training
from segdesk.ui.widgets import ActionButton

if TYPE_CHECKING:
    from segdesk.session.session import Session
    from segdesk.ui.workbench import Workbench

STOPPING = "The run was asked to end; it does so at its next step."


class RunControl(QWidget):
    """What can be asked of a run, as it stands."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self._run: Run | None = None
        self._is_paused = False
        self._is_stopping = False
        self.pause = ActionButton(
            "Pause", self._pause, "Wait before the next step, and leave the processor to others."
        )
        self.stop = ActionButton(
            "Stop", self._stop, "End the run at its next step; its checkpoint is kept."
        )
        self.stop_now = ActionButton(
            "Stop now",
            self._stop_now,
            "End the run's process at once; what it learnt since its last checkpoint is lost.",
        )
        self.resume = ActionButton(
            "Resume", self._resume, "Let the run go on from its last checkpoint."
        )
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for button in (self.pause, self.stop, self.stop_now, self.resume):
            row.addWidget(button)
        self.show_run(None)

    @property
    def is_paused(self) -> bool:
        """Whether the run waits because it was asked to."""
        return self._is_paused

    @property
    def is_stopping(self) -> bool:
        """Whether the run was asked to end and has not yet."""
        return self._is_stopping

    def show_run(self, run: Run | None) -> None:
        """Offer what can be asked of ``run``."""
        if run is None or self._run is None or run.id != self._run.id or run.state.is_terminal:
            self._is_paused = self._is_stopping = False
        self._run = run
        self._update()

    def set_paused(self, *, is_paused: bool) -> None:
        """Take in that the run waits now, or goes on."""
        self._is_paused = is_paused
        self._update()

    def _update(self) -> None:
        run = self._run
        is_running = run is not None and run.state is RunState.RUNNING
        for button in (self.pause, self.stop, self.stop_now):
            button.setVisible(is_running)
        self.resume.setVisible(run is not None and training.can_resume(run))
        self.pause.setText("Go on" if self._is_paused else "Pause")
        self.pause.set_reason(STOPPING if self._is_stopping else "")
        self.stop.set_reason(STOPPING if self._is_stopping else "")

    def _asked(self) -> tuple[Session, str] | None:
        session = self._workbench.session
        return (session, self._run.id) if session is not None and self._run is not None else None

    def _pause(self) -> None:
        if (asked := self._asked()) is not None:
            training.pause(*asked, not self._is_paused)

    def _stop(self) -> None:
        if (asked := self._asked()) is not None:
            self._is_stopping = True
            self._update()
            training.stop(*asked)

    def _stop_now(self) -> None:
        if (asked := self._asked()) is not None:
            self._is_stopping = True
            self._update()
            training.stop_now(*asked)

    def _resume(self) -> None:
        if (asked := self._asked()) is not None:
            training.resume(*asked)

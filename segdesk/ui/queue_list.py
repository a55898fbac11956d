"""Runs that wait for the one under way to end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QGridLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from segdesk.core.run import Run, RunState
from segdesk.ui.widgets import clear, heading


class QueueList(QWidget):
    """A row for each waiting run, with a button that takes it out.

    ``unwanted`` gives the id of the run whose button was pressed.
    """

    unwanted = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._shown: list[str] = []
        self.buttons: dict[str, QPushButton] = {}
        self._grid = QGridLayout()
        self._grid.setColumnStretch(0, 1)
        self._grid.setVerticalSpacing(2)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(heading("Runs that wait"))
        column.addLayout(self._grid)
        self.hide()

    def show_runs(self, runs: Sequence[Run]) -> None:
        """Show those of the runs that wait, in the order in which they will start."""
        waiting = [run for run in runs if run.state is RunState.QUEUED]
        if [run.id for run in waiting] != self._shown:
            self._shown = [run.id for run in waiting]
            self._fill(waiting)
        self.setVisible(bool(waiting))

    def _fill(self, waiting: Sequence[Run]) -> None:
        clear(self._grid)
        self.buttons = {}
        for number, run in enumerate(waiting):
            words = QLabel(f"{number + 1}. {run.base_model} into {run.new_model}")
            words.setToolTip(f"<qt>{run.id}<br>Starts when the runs before it have ended.</qt>")
            button = QPushButton("Remove")
            button.setAccessibleName(f"Remove {run.new_model} from the queue")
            button.clicked.connect(partial(self._remove, run.id))
            self.buttons[run.id] = button
            self._grid.addWidget(words, number, 0)
            self._grid.addWidget(button, number, 1)

    def _remove(self, run_id: str, _checked: bool = False) -> None:
        self.unwanted.emit(run_id)

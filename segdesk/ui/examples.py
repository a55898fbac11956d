"""How augmentation varies an image: pictures, on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QGridLayout, QWidget

from segdesk.config.training import TrainingConfig
from segdesk.core.errors import InputError
from segdesk.core.run import RunState
from segdesk.jobs.messages import Finished, Varied
from segdesk.session import training
from segdesk.session.session import Session
from segdesk.ui.bridge import notify, reporting
from segdesk.ui.picture import Picture
from segdesk.ui.widgets import ActionButton, Hint

if TYPE_CHECKING:
    from segdesk.ui.workbench import Workbench

COLUMNS: Final = 3
#: Width of a picture, in pixels.
WIDTH: Final = 220


class ExamplesButton(ActionButton):
    """Asks for examples of the settings that the form shows, and shows them.

    Parameters
    ----------
    settings
        Reads the form; may raise InputError.
    """

    def __init__(self, workbench: Workbench, settings: Callable[[], TrainingConfig]) -> None:
        super().__init__(
            "Show examples", self._ask, "See how these settings vary the image on screen."
        )
        self._workbench = workbench
        self._settings = settings
        self._job = ""
        self.dialog: ExamplesDialog | None = None

    def listen(self, session: Session) -> None:
        """Take the answers of a project that was opened."""
        self._done()
        session.events.varied.connect(self._on_varied)
        session.events.job_finished.connect(self._on_finished)

    def _ask(self) -> None:
        session, shown = self._workbench.session, self._workbench.current_sample_id
        if session is None or shown is None:
            raise InputError("Click an image in the Project panel first; it is what is varied.")
        self._job = training.vary(session, self._settings(), shown)
        self.set_reason("The examples are being made.")

    @reporting()
    def _on_varied(self, event: Varied) -> None:
        if event.job == self._job:
            if self.dialog is None:
                self.dialog = ExamplesDialog(self._workbench, self)
            self.dialog.show_pictures(event.pictures)

    @reporting()
    def _on_finished(self, event: Finished) -> None:
        if event.job == self._job:
            self._done()
            if event.state in (RunState.FAILED, RunState.CRASHED):
                notify(event.reason, "warning")

    def _done(self) -> None:
        self._job = ""
        self.set_reason("")


class ExamplesDialog(QDialog):
    """A few pictures beside each other; the first is the image itself."""

    def __init__(self, workbench: Workbench, parent: QWidget) -> None:
        super().__init__(parent)
        self._workbench = workbench
        self.setWindowTitle("What the model gets to see")
        self.pictures: list[Picture] = []
        self._grid = QGridLayout(self)
        words = Hint("The image itself comes first, then as augmentation varies it.")
        self._grid.addWidget(words, 0, 0, 1, COLUMNS)

    def show_pictures(self, paths: Sequence[Path]) -> None:
        """Show these files instead of those before, and come to the front."""
        for picture in self.pictures:
            self._grid.removeWidget(picture)
            picture.deleteLater()
        self.pictures = []
        for number, path in enumerate(paths):
            name = f"Example {number}" if number else "The image itself"
            picture = Picture(self._workbench, name)
            picture.setFixedWidth(WIDTH)
            self._grid.addWidget(
                picture, 1 + number // COLUMNS, number % COLUMNS, Qt.AlignmentFlag.AlignTop
            )
            self.pictures.append(picture)
            picture.show_file(path)
        self.show()
        self.raise_()

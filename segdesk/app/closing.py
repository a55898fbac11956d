"""Asking what becomes of a fine-tuning run when its window is closed."""

from __future__ import annotations

from typing import Final

from qtpy.QtWidgets import QCheckBox, QMessageBox, QPushButton, QWidget

from segdesk.config.app import OnClose

TEXT: Final = "A fine-tuning run is under way. What shall become of it?"
MORE: Final = (
    "It can go on without the window, and shows again when the project is opened. Stopped, its "
    "checkpoint is kept and it can be resumed. Runs that wait for it are dropped."
)


class ClosingDialog(QMessageBox):
    """Offers to go on without the window, to stop the run, or to stay.

    Attributes
    ----------
    go_on, stop, stay
        The buttons.
    always
        Whether the answer is to be kept and not asked for again.
    """

    def __init__(self, parent: QWidget | None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Fine-tuning is under way")
        self.setIcon(QMessageBox.Icon.Question)
        self.setText(TEXT)
        self.setInformativeText(MORE)
        self.go_on = self._button("Go on without the window", QMessageBox.ButtonRole.AcceptRole)
        self.stop = self._button("Stop it", QMessageBox.ButtonRole.DestructiveRole)
        self.stay = self._button("Cancel", QMessageBox.ButtonRole.RejectRole)
        self.setDefaultButton(self.go_on)
        self.setEscapeButton(self.stay)
        self.always = QCheckBox("Do this from now on")
        self.setCheckBox(self.always)

    def ask(self) -> OnClose | None:
        """Wait for the answer; None for staying."""
        self.exec()
        answers = {self.go_on: OnClose.GO_ON, self.stop: OnClose.STOP}
        clicked = self.clickedButton()
        return next((answer for button, answer in answers.items() if button is clicked), None)

    def _button(self, text: str, role: QMessageBox.ButtonRole) -> QPushButton:
        button = self.addButton(text, role)
        assert isinstance(button, QPushButton)
        return button

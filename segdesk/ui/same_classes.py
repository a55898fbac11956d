"""The dialog that asks which class of a model is which of the project."""

from __future__ import annotations

from typing import Final

from qtpy.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from segdesk.session.class_names import ClassQuestion, written
from segdesk.ui.widgets import ElidingCombo, Hint

NEW: Final = "a new class, learnt from nothing"


class SameClassesDialog(QDialog):
    """A row for each class that the model lacks, with the model's own to choose from.

    Attributes
    ----------
    choices
        By the project's class: what the model calls it, or that it is new.
    accept_button
        Off while two classes are said to be the same one of the model.
    """

    def __init__(self, question: ClassQuestion, accept: str, parent: QWidget | None) -> None:
        super().__init__(parent)
        self._question = question
        self.setWindowTitle("Which class is which?")
        self.setMinimumWidth(440)
        self.choices: dict[str, ElidingCombo] = {}
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for name in question.unknown:
            self.choices[name] = self._choice(name)
            form.addRow(f"{name} is", self.choices[name])
        self.note = Hint()
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel)
        self.accept_button = QPushButton(accept)
        buttons.addButton(self.accept_button, QDialogButtonBox.ButtonRole.AcceptRole)
        self.cancel_button = buttons.button(QDialogButtonBox.StandardButton.Cancel)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        column = QVBoxLayout(self)
        column.addWidget(
            Hint(
                f"{question.model} has no class called {' or '.join(question.unknown)}. What it "
                "knows under another name is taken over, if you say which it is."
            )
        )
        column.addLayout(form)
        column.addWidget(self.note)
        column.addWidget(buttons)
        self._check()

    @property
    def text(self) -> str:
        """What is chosen, as the setting *Same classes* takes it."""
        return written({ours: theirs for ours, theirs in self._chosen().items() if theirs})

    def _choice(self, name: str) -> ElidingCombo:
        choice = ElidingCombo()
        choice.setAccessibleName(f"What the model calls {name}")
        choice.addItem(NEW, "")
        for known in self._question.free:
            choice.addItem(f"{known}, as the model calls it", known)
        choice.setCurrentIndex(max(0, choice.findData(self._question.answers.get(name, ""))))
        choice.currentIndexChanged.connect(lambda: self._check())
        return choice

    def _chosen(self) -> dict[str, str]:
        return {name: str(choice.currentData()) for name, choice in self.choices.items()}

    def _check(self) -> None:
        """Say what follows from the choice, or why it cannot be."""
        taken = [theirs for theirs in self._chosen().values() if theirs]
        twice = next((theirs for theirs in taken if taken.count(theirs) > 1), "")
        self.accept_button.setEnabled(not twice)
        lost = [name for name in self._question.free if name not in taken]
        if twice:
            self.note.say(f"{twice} can be one class only; choose another for the rest.")
        elif lost:
            self.note.say(f"The new model will not know {', '.join(lost)} any more.")
        else:
            self.note.say("")

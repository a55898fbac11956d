"""Choosing what a run starts from: the model in use, or a new, untrained one."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QVBoxLayout, QWidget

from segdesk.config.model import NewModelConfig
from segdesk.jobs.messages import Architecture
from segdesk.session.training import NewModel
from segdesk.ui.forms import KnobsForm
from segdesk.ui.widgets import ElidingCombo, Hint, heading

IN_USE = "The model in use"
NO_LABELS = "It learns from the images alone, without labels."


class StartFrom(QWidget):
    """A choice of the model in use and every architecture, with the options of the latter."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._architectures: dict[str, Architecture] = {}
        self.choice = ElidingCombo()
        self.choice.setAccessibleName("Start from")
        self.choice.setToolTip(
            "<qt>Fine-tune the model in use, or train a new one from nothing, which takes more "
            "images and time.</qt>"
        )
        self.note = Hint()
        self.form: KnobsForm[NewModelConfig] = KnobsForm(NewModelConfig)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (heading("Start from"), self.choice, self.note, self.form):
            column.addWidget(widget)
        self.choice.currentIndexChanged.connect(lambda: self._on_choice())
        self.offer((), "")

    def offer(self, architectures: tuple[Architecture, ...], in_use: str) -> None:
        """Offer the model in use (its name, or nothing) and these architectures."""
        chosen = self.choice.currentData()
        self._architectures = {a.name: a for a in architectures}
        self.choice.blockSignals(True)
        self.choice.clear()
        self.choice.addItem(f"{IN_USE} ({in_use})" if in_use else IN_USE, "")
        for known in architectures:
            self.choice.addItem(f"New {known.title} ({known.year})", known.name)
            if not known.needs_labels:
                last = self.choice.count() - 1
                self.choice.setItemData(last, NO_LABELS, Qt.ItemDataRole.ToolTipRole)
        self.choice.setCurrentIndex(max(0, self.choice.findData(chosen)))
        self.choice.blockSignals(False)
        self._on_choice()

    @property
    def architecture(self) -> Architecture | None:
        """The architecture of the new model; None to go on with the one in use."""
        return self._architectures.get(str(self.choice.currentData() or ""))

    def value(self) -> NewModel | None:
        """Return the new model to start from; None for the one in use."""
        chosen = self.architecture
        if chosen is None:
            return None
        return NewModel(chosen.name, self.form.value(), needs_labels=chosen.needs_labels)

    def _on_choice(self) -> None:
        chosen = self.architecture
        self.form.setVisible(chosen is not None)
        if chosen is None:
            self.note.say("")
        else:
            text = "Starts from nothing, so it takes more images and time."
            self.note.say(text if chosen.needs_labels else f"{NO_LABELS} {text}")
        self.changed.emit()

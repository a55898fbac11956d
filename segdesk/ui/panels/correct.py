"""The Correct panel: paint, undo, accept, next."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from napari.layers import Labels
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSlider,
)

from segdesk.core.sample import Status
from segdesk.inference.regions import Region
from segdesk.session import predicting, reviewing
from segdesk.session.session import Session
from segdesk.ui.bridge import reporting
from segdesk.ui.legend import swatch
from segdesk.ui.widgets import ActionButton, Hint, Panel, heading

if TYPE_CHECKING:
    from segdesk.ui.workbench import Workbench

NO_PROJECT = "Open a project first."
NOT_PREDICTED = "Predict this image first, in the Predict panel."
WRITING = "The labels of this large image are being written."
NO_SAMPLE = "Click an image in the Project panel first."

#: napari's mode, name and explanation of each tool.
TOOLS: Final = (
    ("paint", "Brush", "Paint the class chosen above: hold the mouse button and drag."),
    ("erase", "Eraser", "Paint background: hold the mouse button and drag."),
    ("fill", "Fill", "Give the class chosen above to the whole area that you click."),
    ("pan_zoom", "Move", "Drag the image, and zoom with the wheel; nothing is painted."),
)


class CorrectPanel(Panel):
    """Drives napari's Labels layer, and follows it when it is driven elsewhere."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self._layer: Labels | None = None
        self.name = Hint()
        self.reason = Hint()
        self.classes = QButtonGroup(self)
        self.classes.idClicked.connect(self._choose_class)
        self._class_rows = QGridLayout()
        self.tools = QButtonGroup(self)
        self.brush = QSlider(Qt.Orientation.Horizontal)
        self.brush.setRange(1, 80)
        self.brush.setAccessibleName("Brush size in pixels")
        self.brush.valueChanged.connect(self._choose_size)
        self.brush_text = QLabel()
        self.undo = ActionButton("Undo", self._undo, "Take the last stroke back (Ctrl+Z).")
        self.redo = ActionButton("Redo", self._redo, "Do it again (Ctrl+Shift+Z).")
        self.saved = Hint()
        self.accept = ActionButton("Accept image", self._accept)
        self.place = ActionButton(
            "Next uncertain place",
            self._next_place,
            "Move to the next of the places in this image where the model is least sure.",
        )
        self.place_hint = Hint()
        self._place: Region | None = None
        self.next = ActionButton("Next most uncertain image", self._next)
        self.next_hint = Hint()
        self.reference = QCheckBox("Show reference mask (green outline)")
        self.reference.toggled.connect(self._show_reference)
        self._lay_out()
        workbench.session_opened.connect(self._on_opened)
        workbench.session_closed.connect(self._on_closed)
        workbench.sample_opening.connect(self._update)
        workbench.sample_shown.connect(self._on_shown)
        workbench.strokes_changed.connect(self._update)
        self._update()

    def _lay_out(self) -> None:
        self.column.addWidget(self.name)
        self.column.addWidget(self.reason)
        self.column.addWidget(heading("Class to paint"))
        self.column.addLayout(self._class_rows)
        self.column.addWidget(heading("Tool"))
        self.column.addLayout(self._make_tools())
        brush = QHBoxLayout()
        brush.addWidget(QLabel("Brush size"))
        brush.addWidget(self.brush, 1)
        brush.addWidget(self.brush_text)
        self.column.addLayout(brush)
        strokes = QHBoxLayout()
        strokes.addWidget(self.undo)
        strokes.addWidget(self.redo)
        self.column.addLayout(strokes)
        self.column.addWidget(self.saved)
        self.column.addWidget(heading("This image"))
        self.column.addWidget(self.accept)
        self.column.addWidget(self.reference)
        self.column.addWidget(self.place)
        self.column.addWidget(self.place_hint)
        self.column.addWidget(heading("Then"))
        self.column.addWidget(self.next)
        self.column.addWidget(self.next_hint)
        self.column.addStretch(1)

    def _make_tools(self) -> QGridLayout:
        grid = QGridLayout()
        for index, (mode, title, tip) in enumerate(TOOLS):
            button = QPushButton(title)
            button.setCheckable(True)
            button.setToolTip(tip)
            button.setProperty("mode", mode)
            self.tools.addButton(button, index)
            grid.addWidget(button, index // 2, index % 2)
        self.tools.idClicked.connect(self._choose_tool)
        return grid

    # What comes in -------------------------------------------------------------

    @reporting()
    def _on_opened(self, session: Session) -> None:
        session.events.sample_changed.connect(self._update)
        session.events.samples_added.connect(self._update)
        for button in self.classes.buttons():
            self.classes.removeButton(button)
            button.deleteLater()
        for entry in session.store.classes.classes:
            button = QPushButton(swatch(entry.color, is_background=entry.id == 0), entry.name)
            button.setCheckable(True)
            self.classes.addButton(button, entry.id)
            self._class_rows.addWidget(button, entry.id // 2, entry.id % 2)
        self._update()

    @reporting()
    def _on_closed(self) -> None:
        self._follow(None)
        self._update()

    @reporting()
    def _on_shown(self, _sample_id: str) -> None:
        self._place = None  # another image, or another prediction of this one
        self.place_hint.say("")
        layers = self._workbench.layers
        self._follow(layers.labels if layers is not None else None)
        if layers is not None and layers.reference is not None:
            layers.reference.visible = self.reference.isChecked()
        self._update()

    def _follow(self, layer: Labels | None) -> None:
        """Listen to the layer that is painted on."""
        if layer is self._layer:
            return
        if self._layer is not None:
            for event in ("mode", "selected_label", "brush_size"):
                getattr(self._layer.events, event).disconnect(self._show_layer_state)
        self._layer = layer
        if layer is not None:
            for event in ("mode", "selected_label", "brush_size"):
                getattr(layer.events, event).connect(self._show_layer_state)
        self._show_layer_state()

    def _show_layer_state(self, _event: object = None) -> None:
        layer = self._layer
        if layer is None:
            return
        for button in self.tools.buttons():
            if button.property("mode") == str(layer.mode):
                button.setChecked(True)
        chosen = self.classes.button(int(layer.selected_label))
        if chosen is not None:
            chosen.setChecked(True)
        size = round(layer.brush_size)
        self.brush.blockSignals(True)
        self.brush.setValue(size)
        self.brush.blockSignals(False)
        self.brush_text.setText(f"{size} px")

    # What goes out -------------------------------------------------------------

    def _choose_class(self, label: int) -> None:
        if self._layer is not None:
            self._layer.selected_label = label
            if str(self._layer.mode) not in ("paint", "fill"):
                self._layer.mode = "paint"

    def _choose_tool(self, index: int) -> None:
        if self._layer is not None:
            self._workbench.viewer.layers.selection.active = self._layer
            self._layer.mode = TOOLS[index][0]

    def _choose_size(self, size: int) -> None:
        if self._layer is not None:
            self._layer.brush_size = size

    def _undo(self) -> None:
        if self._workbench.strokes is not None:
            self._workbench.strokes.undo()

    def _redo(self) -> None:
        if self._workbench.strokes is not None:
            self._workbench.strokes.redo()

    def _accept(self) -> None:
        self._workbench.accept()
        self._update()

    def _next(self) -> None:
        suggestion = self._suggestion()
        if suggestion is not None:
            self._workbench.show_sample(suggestion.sample.id)

    def _next_place(self) -> None:
        session, sample_id = self._workbench.session, self._workbench.current_sample_id
        if session is None or sample_id is None:
            return
        prediction = predicting.current_prediction(session, sample_id)
        if prediction is not None:
            shape = session.store.sample(sample_id).shape
            self._workbench.in_background(
                partial(reviewing.read_regions, prediction, shape),
                partial(self._show_place, sample_id),
            )

    def _show_place(self, sample_id: str, found: list[Region]) -> None:
        correction = self._workbench.current_correction
        if correction is None or correction.sample.id != sample_id:
            return  # another image was opened meanwhile
        place = reviewing.region_after(found, self._place)
        if place is None:
            self.place_hint.say("The model is sure of the whole image.")
            return
        self._place = place
        self._workbench.look_at(place)
        where = reviewing.region_words(place, is_stack=correction.sample.is_stack)
        self.place_hint.say(f"Place {found.index(place) + 1} of {len(found)}, {where}.")

    def _show_reference(self, is_on: bool) -> None:
        layers = self._workbench.layers
        if layers is not None and layers.reference is not None:
            layers.reference.visible = is_on

    # How -----------------------------------------------------------------------

    def _suggestion(self) -> reviewing.Suggestion | None:
        session = self._workbench.session
        if session is None:
            return None
        shown = self._workbench.current_sample_id or ""
        return next(iter(reviewing.next_samples(session, 1, skip=shown)), None)

    @reporting()
    def _update(self, _: object = None) -> None:
        session, correction = self._workbench.session, self._workbench.current_correction
        reason = NO_PROJECT if session is None else ""
        if session is not None and correction is None:
            reason = "Opening the image…" if self._workbench.current_sample_id else NO_SAMPLE
        self.reason.say(reason)
        self.name.say("" if correction is None else f"<b>{correction.sample.name}</b>")
        for group in (self.classes, self.tools):
            for button in group.buttons():
                button.setEnabled(not reason)
        self.brush.setEnabled(not reason)
        self._update_strokes(session, reason)
        self._update_acceptance(reason)
        self._update_place(reason)
        self._update_next(reason if session is None else "")
        layers = self._workbench.layers
        has_reference = layers is not None and layers.reference is not None
        self.reference.setVisible(correction is not None and has_reference)

    def _update_strokes(self, session: Session | None, reason: str) -> None:
        sample_id = self._workbench.current_sample_id
        if session is None or reason or sample_id is None:
            self.undo.set_reason(reason)
            self.redo.set_reason(reason)
            self.saved.say("")
            return
        undoable, redoable = session.store.edit_counts(sample_id)
        self.undo.set_reason("" if undoable else "There is no stroke to take back.")
        self.redo.set_reason("" if redoable else "There is no stroke to do again.")
        count = f"{undoable} stroke{'' if undoable == 1 else 's'} saved"
        always = "Every stroke is saved as you make it."
        is_open = session.store.sample(sample_id).status is Status.CORRECTED
        learnt = " Only what you painted is learnt from, until you accept the image."
        self.saved.say((f"{count}. {always}" if undoable else always) + learnt * is_open)

    def _update_acceptance(self, reason: str) -> None:
        correction = self._workbench.current_correction
        is_accepted = correction is not None and correction.sample.status is Status.ACCEPTED
        self.accept.setText("Take acceptance back" if is_accepted else "Accept image")
        tip = "All labels of this image are right as they are; the model may learn from them."
        if is_accepted:
            tip = "The labels you did not paint yourself are open again."
        reason = reason or (WRITING if self._workbench.is_accepting else "")
        self.accept.set_reason(reason)
        self.accept.setToolTip(reason or tip)

    def _update_place(self, reason: str) -> None:
        layers = self._workbench.layers
        is_predicted = layers is not None and layers.uncertainty is not None
        self.place.set_reason(reason or ("" if is_predicted else NOT_PREDICTED))

    def _update_next(self, reason: str) -> None:
        suggestion = None if reason else self._suggestion()
        if suggestion is None:
            reason = reason or "Every other image is accepted."
            self.next_hint.say(reason)
        else:
            self.next_hint.say(f"{suggestion.sample.name}: {suggestion.reason}.")
        self.next.set_reason(reason)

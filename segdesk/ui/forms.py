"""Forms made from a config class: every knob is declared once, in its field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QValidator
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QLabel,
    QLineEdit,
    QSpinBox,
    QStyle,
    QVBoxLayout,
    QWidget,
)

from segdesk.config.knobs import Knobs, extra
from segdesk.ui.widgets import ElidingCombo, Hint, folded

Config = TypeVar("Config", bound=Knobs)

#: Smallest value of a log-scale knob that must be above zero.
SMALLEST = 1e-8


class ScientificSpinBox(QDoubleSpinBox):
    """A spin box for a log scale: shows 1e-4 as 1e-4 and steps 1, 2, 5, 10."""

    def __init__(self) -> None:
        super().__init__()
        self.setDecimals(12)

    def textFromValue(self, value: float) -> str:
        """Write a value the short way."""
        if value == 0 or 0.01 <= abs(value) < 1000:
            return f"{value:g}"
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"

    def valueFromText(self, text: str) -> float:
        """Read what a user typed."""
        try:
            return float(text.replace(",", "."))
        except ValueError:
            return self.value()

    def validate(self, text: str, pos: int) -> tuple[QValidator.State, str, int]:
        """Accept numbers, and beginnings of numbers while typing."""
        try:
            value = float(text.replace(",", "."))
        except ValueError:
            is_beginning = all(c in "0123456789.,eE+-" for c in text)
            state = QValidator.State.Intermediate if is_beginning else QValidator.State.Invalid
            return state, text, pos
        inside = self.minimum() <= value <= self.maximum()
        return (QValidator.State.Acceptable if inside else QValidator.State.Intermediate), text, pos

    def stepBy(self, steps: int) -> None:
        """Go to the next of 1, 2, 5 times a power of ten."""
        for _ in range(abs(steps)):
            self.setValue(_next_on_log_scale(self.value(), up=steps > 0))


def _next_on_log_scale(value: float, *, up: bool) -> float:
    if value <= 0:
        return SMALLEST if up else 0.0
    decade = math.floor(math.log10(value))
    scale = [m * 10.0**d for d in range(decade - 1, decade + 2) for m in (1, 2, 5)]
    if up:
        return min(s for s in scale if s > value * 1.0001)
    return max(s for s in scale if s < value * 0.9999)


class WholeSpinBox(QSpinBox):
    """A spin box that keeps to multiples of ``unit``."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self._unit = unit
        self.setSingleStep(unit)
        self.editingFinished.connect(self._snap)

    def value(self) -> int:
        """Return the nearest multiple of what stands in the box."""
        return round(super().value() / self._unit) * self._unit

    def _snap(self) -> None:
        self.setValue(self.value())


class WheelGuard(QObject):
    """Keeps the mouse wheel from changing a value that one only scrolls past."""

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Swallow the wheel over widgets without focus."""
        is_wheel = event.type() == QEvent.Type.Wheel
        if is_wheel and isinstance(watched, QWidget) and not watched.hasFocus():
            event.ignore()
            return True
        return False


class Editor:
    """One knob's widget with its getter and setter, and a line about what is chosen.

    ``annotate``, of choices, writes a few words beside some of the values.
    """

    def __init__(
        self,
        widget: QWidget,
        read: Callable[[], Any],
        write: Callable[[Any], None],
        note: QWidget | None = None,
        annotate: Callable[[Mapping[Any, str]], None] | None = None,
    ) -> None:
        self.widget = widget
        self.note = note
        self.annotate = annotate
        self.read = read
        self.write = write


class KnobsForm(QWidget, Generic[Config]):
    """A form for ``kind``; the basic knobs on top, the others folded away.

    Parameters
    ----------
    kind
        The config class. All its fields need defaults.
    """

    changed = Signal()

    def __init__(self, kind: type[Config]) -> None:
        super().__init__()
        self._kind = kind
        self._guard = WheelGuard(self)
        self.editors: dict[str, Editor] = {}
        self._layouts: dict[str, QFormLayout] = {}
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        basic, more = _form_layout(), _form_layout()
        for name, field in kind.model_fields.items():
            editor = self._make_editor(field)
            self.editors[name] = editor
            rows = basic if extra(field).get("basic") else more
            rows.addRow(_label(name, field), editor.widget)
            self._layouts[name] = rows
            if editor.note is not None:
                rows.addRow(editor.note)
        column.addLayout(basic)
        if more.rowCount():
            inside = QWidget()
            inside.setLayout(more)
            column.addWidget(folded("More settings", inside))
        self.set_value(kind())

    def value(self) -> Config:
        """Return the config that the form shows.

        Raises
        ------
        InputError
            The values do not go together.
        """
        return self._kind.from_user({name: e.read() for name, e in self.editors.items()})

    def set_value(self, config: Config) -> None:
        """Show ``config``."""
        for name, editor in self.editors.items():
            editor.write(getattr(config, name))

    def annotate(self, name: str, words: Mapping[Any, str]) -> None:
        """Write words beside some values of a choice, and nothing beside the others."""
        annotate = self.editors[name].annotate
        if annotate is None:
            raise TypeError(f"{name} is not a choice")
        annotate(words)

    def add_below(self, name: str, widget: QWidget) -> None:
        """Put a widget under a knob's own."""
        rows, knob = self._layouts[name], self.editors[name].widget
        for row in range(rows.rowCount()):
            item = rows.itemAt(row, QFormLayout.ItemRole.FieldRole)
            if item is not None and item.widget() is knob:
                rows.insertRow(row + 1, "", widget)
                return

    def _make_editor(self, field: FieldInfo) -> Editor:
        editor = _editor_of(field, self.changed.emit)
        widget = editor.widget
        widget.setToolTip(f"<qt>{field.description or field.title or ''}</qt>")
        widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        widget.installEventFilter(self._guard)
        if isinstance(widget, QAbstractSpinBox):
            widget.setKeyboardTracking(False)
        return editor


def _form_layout() -> QFormLayout:
    rows = QFormLayout()
    rows.setContentsMargins(0, 0, 0, 0)
    rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return rows


def _label(name: str, field: FieldInfo) -> QLabel:
    label = QLabel(field.title or name)
    label.setToolTip(f"<qt>{field.description or ''}</qt>")
    return label


def _editor_of(field: FieldInfo, changed: Callable[[], None]) -> Editor:
    kind = field.annotation
    if kind is bool:
        return _check_box(changed)
    if get_origin(kind) is Literal:
        return _combo_box([(str(v), v) for v in get_args(kind)], changed)
    if isinstance(kind, type) and issubclass(kind, Enum):
        help_of = extra(field).get("choices", {})
        return _combo_box([(str(v.value), v) for v in kind], changed, help_of)
    if kind is int:
        return _whole_number(field, changed)
    if kind is float:
        return _number(field, changed)
    if kind is str:
        return _text(field, changed)
    raise TypeError(f"no editor for a knob of type {kind}")


def _check_box(changed: Callable[[], None]) -> Editor:
    box = QCheckBox()
    box.toggled.connect(lambda: changed())
    return Editor(box, box.isChecked, box.setChecked)


def _combo_box(
    choices: list[tuple[str, Any]],
    changed: Callable[[], None],
    help_of: Mapping[str, str] | None = None,
) -> Editor:
    """Return a choice; ``help_of`` gives a line to show for what is chosen."""
    box = ElidingCombo()
    values = [value for _, value in choices]
    box.addItems([text for text, _ in choices])
    note = Hint() if help_of else None

    def show_note() -> None:
        if note is not None and help_of is not None:
            note.say(help_of.get(choices[box.currentIndex()][0], ""))

    def on_choice() -> None:
        show_note()
        changed()

    def annotate(words: Mapping[Any, str]) -> None:
        for number, (text, value) in enumerate(choices):
            box.setItemText(number, f"{text}: {words[value]}" if value in words else text)

    box.currentIndexChanged.connect(lambda: on_choice())
    show_note()
    return Editor(
        box,
        lambda: values[box.currentIndex()],
        lambda value: box.setCurrentIndex(values.index(value)),
        note,
        annotate,
    )


def _text(field: FieldInfo, changed: Callable[[], None]) -> Editor:
    line = QLineEdit()
    line.setClearButtonEnabled(True)
    line.setPlaceholderText(str(extra(field).get("empty", "")))
    line.editingFinished.connect(lambda: changed())
    if extra(field).get("file"):
        icon = line.style().standardIcon(QStyle.StandardPixmap.SP_DirOpenIcon)
        browse = line.addAction(icon, QLineEdit.ActionPosition.TrailingPosition)
        browse.setToolTip("Choose a file")

        def choose() -> None:
            path, _ = QFileDialog.getOpenFileName(line, field.title or "")
            if path:
                line.setText(path)
                changed()

        browse.triggered.connect(lambda: choose())
    return Editor(line, lambda: line.text().strip(), line.setText)


def _whole_number(field: FieldInfo, changed: Callable[[], None]) -> Editor:
    low, high, unit = _bounds(field)
    box = WholeSpinBox(int(unit or 1))
    box.setRange(math.ceil(low), int(min(high, 2**31 - 1)))
    box.setSuffix(_suffix(field))
    box.valueChanged.connect(lambda: changed())
    return Editor(box, box.value, box.setValue)


def _number(field: FieldInfo, changed: Callable[[], None]) -> Editor:
    low, high, unit = _bounds(field)
    is_log = bool(extra(field).get("log"))
    box = ScientificSpinBox() if is_log else QDoubleSpinBox()
    if not is_log:
        box.setDecimals(3)
        box.setSingleStep(unit or (0.05 if high <= 1 else 0.5))
    box.setRange(low, high)
    box.setSuffix(_suffix(field))
    box.valueChanged.connect(lambda: changed())
    return Editor(box, lambda: float(f"{box.value():.10g}"), box.setValue)


def _suffix(field: FieldInfo) -> str:
    unit = extra(field).get("unit")
    return f" {unit}" if unit else ""


def _bounds(field: FieldInfo) -> tuple[float, float, float | None]:
    """Return lowest, highest and unit of a number's field."""
    low, high, unit = -1e9, 1e9, None
    for mark in field.metadata:
        if isinstance(mark, annotated_types.Ge):
            low = float(str(mark.ge))
        elif isinstance(mark, annotated_types.Gt):
            low = float(str(mark.gt)) + SMALLEST
        elif isinstance(mark, annotated_types.Le):
            high = float(str(mark.le))
        elif isinstance(mark, annotated_types.Lt):
            high = float(str(mark.lt)) - SMALLEST
        elif isinstance(mark, annotated_types.MultipleOf):
            unit = float(str(mark.multiple_of))
    return low, high, unit

"""What the colours mean: classes and uncertainty."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QRect, Qt
from qtpy.QtGui import QColor, QIcon, QLinearGradient, QPainter, QPaintEvent, QPixmap
from qtpy.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from segdesk.core.classes import UNLABELLED, ClassMap
from segdesk.session.comparing import Change
from segdesk.ui.widgets import clear

#: Uncertainty 0 to 1 as RGBA: nothing where the model is sure, then yellow, then
#: red. No class of the default palette has these colours.
UNCERTAINTY_STOPS: Final = (0.0, 0.15, 0.55, 1.0)
UNCERTAINTY_RGBA: Final = (
    (1.0, 0.95, 0.35, 0.0),
    (1.0, 0.95, 0.35, 0.15),
    (1.0, 0.62, 0.10, 0.85),
    (0.90, 0.05, 0.10, 1.0),
)
UNLABELLED_COLOR: Final = "#9a9a9a"
REFERENCE_COLOR: Final = "#7CFC00"
REFINED_COLOR: Final = "#00FFFF"
#: Of Okabe and Ito's palette, told apart with every kind of colour blindness.
CHANGE_COLORS: Final = {
    Change.FIXED: "#56b4e9",
    Change.BROKEN: "#d55e00",
    Change.STILL_WRONG: "#f0e442",
}
CHANGE_WORDS: Final = {
    Change.FIXED: "fixed",
    Change.BROKEN: "broken",
    Change.STILL_WRONG: "still wrong",
}


def class_colors(classes: ClassMap) -> dict[int | None, npt.NDArray[np.float32]]:
    """Return RGBA by label value; the first class, the background, is transparent."""
    colors: dict[int | None, npt.NDArray[np.float32]] = {
        None: _rgba(UNLABELLED_COLOR),
        UNLABELLED: _rgba(UNLABELLED_COLOR),
    }
    for entry in classes.classes:
        colors[entry.id] = _rgba(entry.color) if entry.id else np.zeros(4, np.float32)
    return colors


def _rgba(color: str) -> npt.NDArray[np.float32]:
    return np.array(QColor(color).getRgbF(), np.float32)


def swatch(color: str, *, is_background: bool = False, size: int = 14) -> QIcon:
    """Draw a square of a class's colour; the transparent background is crossed out."""
    pixmap = QPixmap(size, size)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    if is_background:
        painter.setPen(QColor("#b0b0b0"))
        painter.drawRect(0, 0, size - 1, size - 1)
        painter.drawLine(0, size - 1, size - 1, 0)
    else:
        painter.fillRect(0, 0, size, size, QColor(color))
    painter.end()
    return QIcon(pixmap)


class UncertaintyBar(QWidget):
    """A colour bar from *sure* to *guessing*, on the grey of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.setFixedHeight(14)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Colours of the uncertainty, from sure to guessing")

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the bar."""
        painter = QPainter(self)
        rectangle = QRect(0, 0, self.width(), self.height())
        painter.fillRect(rectangle, QColor("#555555"))
        gradient = QLinearGradient(0, 0, self.width(), 0)
        for stop, rgba in zip(UNCERTAINTY_STOPS, UNCERTAINTY_RGBA, strict=True):
            gradient.setColorAt(stop, QColor.fromRgbF(*rgba))
        painter.fillRect(rectangle, gradient)
        painter.end()


class Legend(QWidget):
    """Class swatches and the uncertainty bar, with words."""

    def __init__(self) -> None:
        super().__init__()
        self._classes = QGridLayout()
        self._classes.setHorizontalSpacing(12)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(QLabel("<b>What the colours mean</b>"))
        column.addWidget(_title("Layer Labels: what each pixel is"))
        column.addLayout(self._classes)
        column.addWidget(_title("Layer Uncertainty: how sure the model is"))
        column.addWidget(UncertaintyBar())
        words = QHBoxLayout()
        for text, side in (
            ("sure (clear)", Qt.AlignmentFlag.AlignLeft),
            ("unsure", Qt.AlignmentFlag.AlignHCenter),
            ("guessing", Qt.AlignmentFlag.AlignRight),
        ):
            label = QLabel(text)
            label.setAlignment(side)
            words.addWidget(label)
        column.addLayout(words)

    def set_classes(self, classes: ClassMap) -> None:
        """Show these classes."""
        clear(self._classes)
        for index, entry in enumerate(classes.classes):
            row = QWidget()
            line = QHBoxLayout(row)
            line.setContentsMargins(0, 0, 0, 0)
            picture = QLabel()
            icon = swatch(entry.color, is_background=entry.id == 0)
            picture.setPixmap(icon.pixmap(14, 14))
            text = f"{entry.name} (not coloured)" if entry.id == 0 else entry.name
            line.addWidget(picture)
            line.addWidget(QLabel(text), 1)
            self._classes.addWidget(row, index // 2, index % 2)


class ChangeLegend(QWidget):
    """What the colours of the layer *Changes* mean, with the share of either in the image."""

    def __init__(self) -> None:
        super().__init__()
        self._words: dict[Change, QLabel] = {}
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for change, color in CHANGE_COLORS.items():
            picture, words = QLabel(), QLabel(CHANGE_WORDS[change])
            picture.setPixmap(swatch(color).pixmap(14, 14))
            self._words[change] = words
            row.addWidget(picture)
            row.addWidget(words)
        row.addStretch(1)

    def show_shares(self, counts: dict[Change, int], labelled: int) -> None:
        """Say how many of the ``labelled`` pixels each is; only the words with none."""
        for change, label in self._words.items():
            share = f" {counts[change] / labelled:.1%}" if labelled else ""
            label.setText(f"{CHANGE_WORDS[change]}{share}")

    @property
    def texts(self) -> list[str]:
        """What stands beside the colours."""
        return [label.text() for label in self._words.values()]


def _title(text: str) -> QLabel:
    label = QLabel(text)
    label.setProperty("muted", True)
    return label

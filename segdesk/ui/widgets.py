"""Small widgets that every panel is made of."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QEvent, QObject, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QHideEvent, QPaintEvent, QShowEvent
from qtpy.QtWidgets import (
    QComboBox,
    QDockWidget,
    QFrame,
    QLabel,
    QLayout,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from segdesk.ui.bridge import reporting

#: Width of a panel in pixels, in which the hints read well.
MINIMUM_WIDTH = 330


class Hint(QLabel):
    """A sentence for the user; takes no room when it is empty."""

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.setWordWrap(True)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        policy = QSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        self.say(text)

    def say(self, text: str) -> None:
        """Show ``text``."""
        self.setText(text)
        self.setVisible(bool(text))


class ActionButton(QPushButton):
    """A button that says why when it cannot be used.

    Parameters
    ----------
    action
        Called without arguments; a SegDeskError it raises is shown to the user.
    tip
        What the button does.
    """

    def __init__(self, text: str, action: Callable[[], object], tip: str = "") -> None:
        super().__init__(text)
        self._tip = tip
        self.setToolTip(tip)

        @reporting()
        def act() -> None:
            action()

        self.clicked.connect(lambda: act())

    def set_reason(self, reason: str) -> None:
        """Disable the button for a reason, or enable it when there is none."""
        self.setEnabled(not reason)
        self.setToolTip(reason or self._tip)


class CalmBar(QProgressBar):
    """A progress bar that is painted with everything else.

    Qt's own paints itself within each call, and with it, beside an image that OpenGL draws,
    the whole window: twice in a frame in which anything else has changed.
    """

    def show_progress(self, done: int, total: int) -> None:
        """Show how much is done, at the next frame."""
        if (done, total) != (self.value(), self.maximum()):
            self.setUpdatesEnabled(False)
            self.setRange(0, total)
            self.setValue(done)
            self.setUpdatesEnabled(True)


class ElidingCombo(QComboBox):
    """A choice whose text ends in dots where there is no room for it."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(16)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw it with the text shortened."""
        painter = QStylePainter(self)
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        field = self.style().subControlRect(
            QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self
        )
        text = self.currentText() if self.currentIndex() >= 0 else self.placeholderText()
        option.currentText = self.fontMetrics().elidedText(
            text, Qt.TextElideMode.ElideRight, field.width() - 4
        )
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)


class Panel(QScrollArea):
    """A column of widgets that scrolls when the window is low.

    ``seen`` tells when it comes into view, and when it is hidden or another tab covers it.
    """

    seen = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self._dock: QDockWidget | None = None
        self._was_seen = False
        self._width = 0
        self._settled = QTimer(self)  # where things are is known once the layout is done
        self._settled.setSingleShot(True)
        self._settled.timeout.connect(self._tell_seen)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        inside = QWidget()
        self.column = QVBoxLayout(inside)
        self.column.setContentsMargins(8, 8, 8, 8)
        self.column.setSpacing(6)
        self._inside = inside
        self.setWidget(inside)
        inside.installEventFilter(self)

    def minimumSizeHint(self) -> QSize:
        """Return a size at which nothing is cut off at the right."""
        bar = self.verticalScrollBar().sizeHint().width()
        width = max(MINIMUM_WIDTH, self._inside.minimumSizeHint().width() + bar)
        return QSize(width, 120)

    def sizeHint(self) -> QSize:
        """Return the width of the contents; the height is what there is."""
        return QSize(self.minimumSizeHint().width(), 400)

    @property
    def is_seen(self) -> bool:
        """Whether any of it is to be seen; Qt calls a tab in the background visible too."""
        return self.isVisible() and not self.visibleRegion().isEmpty()

    def showEvent(self, event: QShowEvent) -> None:
        """Notice that it may be seen now, and from now on which tab is in front."""
        super().showEvent(event)
        dock = self.parent()
        while dock is not None and not isinstance(dock, QDockWidget):
            dock = dock.parent()
        if dock is not None and dock is not self._dock:  # the one before is gone with its signal
            dock.visibilityChanged.connect(lambda _: self._settled.start(0))
            self._dock = dock
        self._settled.start(0)

    def hideEvent(self, event: QHideEvent) -> None:
        """Notice that it cannot be seen any more."""
        super().hideEvent(event)
        self._settled.start(0)

    def _tell_seen(self) -> None:
        if self.is_seen is not self._was_seen:
            self._was_seen = self.is_seen
            self.seen.emit(self._was_seen)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Grow with the contents."""
        if event.type() == QEvent.Type.LayoutRequest:
            width = self._inside.minimumSizeHint().width()
            if width != self._width:  # or else the whole window is laid out for every word
                self._width = width
                self.updateGeometry()
        return super().eventFilter(watched, event)


def heading(text: str) -> QLabel:
    """Return a bold line over a group of widgets."""
    label = QLabel(f"<b>{text}</b>")
    label.setContentsMargins(0, 6, 0, 0)
    return label


def clear(layout: QLayout) -> None:
    """Take everything out of a layout; its widgets go once nothing is under way in them."""
    while (item := layout.takeAt(0)) is not None:
        widget = item.widget()
        if widget is not None:
            widget.deleteLater()


def folded(title: str, inside: QWidget) -> QCollapsible:
    """Fold a widget away under a title that unfolds it."""
    fold = QCollapsible(title, expandedIcon="▼", collapsedIcon="▶")
    fold.setDuration(0)
    fold.addWidget(inside)
    return fold

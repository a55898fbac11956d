"""What a user sees before a project is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QPixmap
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from segdesk import __version__

CARD_WIDTH = 620
MARGIN = 32
SHOWN_RECENT = 5

STYLE = """
StartPage { background: #18202c; }
QFrame#card { background: #222c3a; border-radius: 12px; }
QLabel { color: #e8edf3; background: transparent; }
QLabel#title { font-size: 30px; font-weight: 600; }
QLabel#hint { color: #9fb0c3; }
QLabel#busy { font-size: 15px; margin: 12px 0px; }
QLabel#problem { font-size: 14px; color: #ffb4a8; margin: 6px 0px; }
QLabel#section { color: #9fb0c3; font-weight: 600; margin-top: 10px; }
QPushButton {
    text-align: left; padding: 12px 16px; border-radius: 8px; border: 1px solid #3a4a5f;
    background: #2b3848; color: #e8edf3; font-size: 14px;
}
QPushButton:hover { background: #35465a; border-color: #56b4e9; }
QPushButton:focus { border-color: #56b4e9; }
QPushButton#primary { background: #1f6f9f; border-color: #56b4e9; }
QPushButton#primary:hover { background: #2784bb; }
QPushButton#recent { padding: 7px 16px; font-size: 13px; }
"""


class StartPage(QWidget):
    """Covers the viewer until a project is open.

    Parameters
    ----------
    cover
        The widget it lies over and whose size it follows.
    icon
        Path of the program's picture.
    """

    sample_wanted = Signal()
    new_wanted = Signal()
    open_wanted = Signal()
    project_wanted = Signal(object)  # Path

    def __init__(self, cover: QWidget, icon: Path) -> None:
        super().__init__(cover)
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground, True)
        self.setStyleSheet(STYLE)
        card = QFrame()
        card.setObjectName("card")
        card.setFixedWidth(CARD_WIDTH)
        outer = QVBoxLayout(self)
        outer.addStretch(1)
        outer.addWidget(card, 0, Qt.AlignmentFlag.AlignHCenter)
        outer.addStretch(2)
        layout = QVBoxLayout(card)
        layout.setContentsMargins(MARGIN, 28, MARGIN, 28)
        layout.setSpacing(10)
        layout.addLayout(_heading(icon))
        self.busy = QLabel()
        self.busy.setObjectName("busy")
        self.busy.setWordWrap(True)
        self.busy.hide()
        layout.addWidget(self.busy)
        self.problem = QLabel()
        self.problem.setObjectName("problem")
        self.problem.setWordWrap(True)
        self.problem.hide()
        layout.addWidget(self.problem)
        self.sample_button = _button(
            "Open the sample project",
            "18 images of cell nuclei: from first mask to better model in minutes",
            self.sample_wanted.emit,
        )
        self.sample_button.setObjectName("primary")
        self.new_button = _button(
            "New project…", "Name your classes, then add your own images", self.new_wanted.emit
        )
        self.open_button = _button(
            "Open a project…", "A folder whose name ends in .segdesk", self.open_wanted.emit
        )
        for button in (self.sample_button, self.new_button, self.open_button):
            layout.addWidget(button)
        self._recent = QVBoxLayout()
        self._recent.setSpacing(6)
        layout.addLayout(self._recent)
        cover.installEventFilter(self)
        self.setGeometry(cover.rect())

    @property
    def is_busy(self) -> bool:
        """Whether something is waited for."""
        return bool(self.busy.text())

    def say_busy(self, text: str) -> None:
        """Say what is waited for, instead of offering something; nothing to offer it again."""
        _say(self.busy, text)
        for part in (*self.findChildren(QPushButton), *self.findChildren(QLabel, "section")):
            part.setVisible(not text)

    def say_problem(self, text: str) -> None:
        """Say what went wrong: napari's messages lie under this page. Nothing for no text."""
        _say(self.problem, text)

    def show_recent(self, projects: Sequence[Path]) -> None:
        """List the projects opened last; those that are gone are left out."""
        while (item := self._recent.takeAt(0)) is not None:
            widget = item.widget()
            if widget is not None:
                widget.deleteLater()
        there = [path for path in projects if path.is_dir()][:SHOWN_RECENT]
        if there:
            heading = QLabel("Recent")
            heading.setObjectName("section")
            self._recent.addWidget(heading)
        for path in there:
            button = QPushButton(f"{path.stem}   —   {path.parent}")
            button.setObjectName("recent")
            button.setToolTip(str(path))
            button.clicked.connect(lambda _=False, path=path: self.project_wanted.emit(path))
            self._recent.addWidget(button)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Follow the size of what is covered."""
        if event.type() == QEvent.Type.Resize:
            parent = self.parentWidget()
            if parent is not None:
                self.setGeometry(parent.rect())
        return super().eventFilter(watched, event)


def _say(label: QLabel, text: str) -> None:
    label.setText(text)
    # The card is laid out without a thought for lines that wrap.
    label.setMinimumHeight(label.heightForWidth(CARD_WIDTH - 2 * MARGIN) if text else 0)
    label.setVisible(bool(text))


def _heading(icon: Path) -> QHBoxLayout:
    row = QHBoxLayout()
    picture = QLabel()
    pixmap = QPixmap(str(icon))
    picture.setPixmap(pixmap.scaledToHeight(72, Qt.TransformationMode.SmoothTransformation))
    row.addWidget(picture)
    words = QVBoxLayout()
    title = QLabel("SegDesk")
    title.setObjectName("title")
    hint = QLabel(
        "Get a mask, see where it is probably wrong, correct it,\n"
        f"and watch the model get better.   Version {__version__}"
    )
    hint.setObjectName("hint")
    words.addWidget(title)
    words.addWidget(hint)
    row.addLayout(words)
    row.addStretch(1)
    return row


def _button(title: str, hint: str, clicked: Callable[[], object]) -> QPushButton:
    button = QPushButton(f"{title}\n{hint}")
    button.clicked.connect(lambda: clicked())
    return button

"""What is drawn of a run under way costs a frame only where something has changed."""

from __future__ import annotations

from pytestqt.qtbot import QtBot
from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QApplication, QMainWindow, QWidget

from segdesk.jobs.messages import Stepped
from segdesk.ui.plots import Curves
from segdesk.ui.widgets import CalmBar, Hint, Panel


class Counter(QObject):
    """Counts what happens to widgets: that they are painted, or laid out."""

    def __init__(self, *widgets: QWidget, kind: QEvent.Type = QEvent.Type.Paint) -> None:
        super().__init__()
        self.count = 0
        self._kind = kind
        for one in widgets:
            one.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        self.count += event.type() == self._kind
        return super().eventFilter(watched, event)


def settle() -> None:
    for _ in range(5):
        QApplication.processEvents()


def step(number: int) -> Stepped:
    return Stepped(
        job="r", step=number, total=90, loss=1 / number, learning_rate=1e-3, seconds_left=9
    )


def test_curves_that_have_not_changed_are_left_alone(qtbot: QtBot) -> None:
    curves = Curves()
    qtbot.addWidget(curves)
    curves.show()
    qtbot.waitUntil(curves.isVisible)
    curves.add_steps([step(1), step(2)])
    curves.add_evaluation(2, {"dice": 0.5})
    curves.draw()
    settle()
    paints = Counter(*curves.findChildren(QWidget))
    curves.draw()
    settle()
    assert paints.count == 0
    curves.add_steps([step(3)])
    curves.draw()
    settle()
    assert paints.count > 0
    assert curves.points == (3, 1, 0)


def test_a_bar_waits_for_the_next_frame(qtbot: QtBot) -> None:
    bar = CalmBar()
    qtbot.addWidget(bar)
    bar.show()
    qtbot.waitUntil(bar.isVisible)
    settle()
    paints = Counter(bar)
    bar.show_progress(3, 9)
    assert (paints.count, bar.value(), bar.maximum()) == (0, 3, 9)
    settle()
    assert paints.count == 1
    bar.show_progress(3, 9)
    settle()
    assert paints.count == 1


def test_words_do_not_lay_the_window_out_and_wide_things_do(qtbot: QtBot) -> None:
    window, panel, words, wide = QMainWindow(), Panel(), Hint("Step 1"), QWidget()
    qtbot.addWidget(window)
    for part in (words, wide):
        panel.column.addWidget(part)
    window.setCentralWidget(panel)
    window.show()
    qtbot.waitUntil(window.isVisible)
    settle()
    inside = Counter(panel.widget(), kind=QEvent.Type.LayoutRequest)
    outside = Counter(window, kind=QEvent.Type.LayoutRequest)
    words.say("Step 2")
    settle()
    assert inside.count > 0
    assert outside.count == 0
    wide.setMinimumWidth(700)
    settle()
    assert panel.minimumSizeHint().width() >= 700
    assert panel.width() >= 700

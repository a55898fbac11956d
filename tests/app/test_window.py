"""The main job in the real window, as a user does it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, Qt
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QLabel, QPushButton

from segdesk.app.window import DesktopWindow
from segdesk.config.training import TrainingConfig
from segdesk.core.annotation import Supervision
from segdesk.core.classes import ClassMap
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Status
from segdesk.io.store import ProjectStore
from segdesk.jobs.messages import Stepped
from segdesk.session import training
from segdesk.session.models import current_model
from segdesk.session.session import Session
from segdesk.ui.panels.correct import CorrectPanel
from segdesk.ui.panels.predict import PredictPanel
from segdesk.ui.panels.train import TrainPanel

SHORT = TrainingConfig(steps=4, batch_size=2, crop_size=64, evaluate_every=4)
LONG = TrainingConfig(steps=5000, batch_size=2, crop_size=64, evaluate_every=5000)
STAINED = "stained-01"


def is_worker(process: psutil.Process) -> bool:
    return any(part.startswith("segdesk.") for part in process.cmdline())


def open_sample(window: DesktopWindow, qtbot: QtBot) -> Session:
    QTest.mouseClick(window.start_page.sample_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: window.workbench.current_correction is not None, timeout=30_000)
    assert not window.start_page.isVisible()
    session = window.workbench.session
    assert session is not None
    return session


def show(window: DesktopWindow, qtbot: QtBot, sample_id: str) -> None:
    window.workbench.show_sample(sample_id)
    qtbot.waitUntil(lambda: window.workbench.current_correction is not None, timeout=30_000)
    assert window.workbench.current_sample_id == sample_id


def paint_with_mouse(window: DesktopWindow, qtbot: QtBot, label: int, offset: int) -> None:
    """Drag the brush over the image, ``offset`` pixels below its middle."""
    labels = window.viewer.layers["Labels"]
    window.viewer.layers.selection.active = labels
    labels.selected_label = label
    labels.brush_size = 9
    labels.mode = "paint"
    canvas = window.main.findChild(QOpenGLWidget)
    assert canvas is not None
    middle = canvas.rect().center() + QPoint(0, offset)
    button, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    QTest.mouseMove(canvas, middle - QPoint(60, 0))
    QTest.mousePress(canvas, button, none, middle - QPoint(60, 0))
    for step in range(-60, 61, 12):
        QTest.mouseMove(canvas, middle + QPoint(step, 0))
        qtbot.wait(5)
    QTest.mouseRelease(canvas, button, none, middle + QPoint(60, 0))


def predict_current(window: DesktopWindow, qtbot: QtBot, session: Session) -> None:
    done: list[object] = []
    session.events.prediction_ready.connect(done.append)
    predict = panels_of(window)[0]
    click(window, qtbot, "Predict", predict.one)
    qtbot.waitUntil(lambda: bool(done), timeout=120_000)
    session.events.prediction_ready.disconnect(done.append)


def click(window: DesktopWindow, qtbot: QtBot, name: str, button: QPushButton) -> None:
    """Click a button of the panel ``name``, which is brought to the front first."""
    window.workbench.raise_panel(name)
    qtbot.waitUntil(lambda: button.isVisible() and button.isEnabled(), timeout=10_000)
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)


def panels_of(window: DesktopWindow) -> tuple[PredictPanel, CorrectPanel, TrainPanel]:
    panels = window.workbench.panels
    predict, correct, train = panels["Predict"], panels["Correct"], panels["Train"]
    assert isinstance(predict, PredictPanel)
    assert isinstance(correct, CorrectPanel)
    assert isinstance(train, TrainPanel)
    return predict, correct, train


def start_run(window: DesktopWindow, qtbot: QtBot, session: Session) -> Run:
    """Press Start, and wait until the look at the project is done that comes first."""
    before = len(session.store.runs())
    click(window, qtbot, "Train", panels_of(window)[2].start)
    qtbot.waitUntil(lambda: len(session.store.runs()) > before, timeout=30_000)
    return session.store.runs()[-1]


def run_now(session: Session, run: Run) -> Run:
    return next(r for r in session.store.runs() if r.id == run.id)


@pytest.mark.slow
def test_the_main_job_in_the_window(window: DesktopWindow, qtbot: QtBot) -> None:
    session = open_sample(window, qtbot)
    show(window, qtbot, STAINED)

    # Predict: mask and uncertainty appear.
    blank = window.viewer.layers["Labels"].data.copy()
    assert not blank.any()
    predict_current(window, qtbot, session)
    qtbot.waitUntil(lambda: window.viewer.layers["Labels"].data.any(), timeout=20_000)
    qtbot.waitUntil(lambda: "Uncertainty" in window.viewer.layers, timeout=20_000)
    first_mask = window.viewer.layers["Labels"].data.copy()
    uncertainty = window.viewer.layers["Uncertainty"].data
    assert uncertainty.shape == first_mask.shape
    assert 0 <= uncertainty.min() < uncertainty.max() <= 1
    assert session.store.sample(STAINED).status is Status.PREDICTED

    # A stroke with the mouse is in the journal at once; accept.
    other = 0 if first_mask[128, 160] else 1
    paint_with_mouse(window, qtbot, other, 0)
    qtbot.waitUntil(lambda: session.store.edit_counts(STAINED)[0] == 1, timeout=10_000)
    stored = session.store.annotation(STAINED)
    assert stored is not None
    assert np.array_equal(stored.labels, window.viewer.layers["Labels"].data)
    changed = stored.labels != first_mask
    assert changed.any()
    assert (stored.supervision[changed] == Supervision.CORRECTED).all()
    assert session.store.sample(STAINED).status is Status.CORRECTED
    _, correct, train = panels_of(window)
    click(window, qtbot, "Correct", correct.accept)
    assert session.store.sample(STAINED).status is Status.ACCEPTED

    # Fine-tune; go on painting while it runs; stop that run.
    steps: list[Stepped] = []
    session.events.run_stepped.connect(steps.append)
    train.form.set_value(LONG)
    long_run = start_run(window, qtbot, session)
    qtbot.waitUntil(lambda: bool(steps), timeout=120_000)
    before = session.store.edit_counts(STAINED)[0]
    paint_with_mouse(window, qtbot, 1, 40)
    paint_with_mouse(window, qtbot, 0, 55)
    qtbot.waitUntil(lambda: session.store.edit_counts(STAINED)[0] > before, timeout=10_000)
    assert run_now(session, long_run).state is RunState.RUNNING
    click(window, qtbot, "Train", train.stop)
    qtbot.waitUntil(lambda: run_now(session, long_run).state.is_terminal, timeout=60_000)
    assert run_now(session, long_run).state is RunState.CANCELED
    assert (long_run.folder / "checkpoints" / "last.safetensors").is_file()

    # Let another one end, switch to its model, predict again, go back.
    train.form.set_value(SHORT)
    short_run = start_run(window, qtbot, session)
    qtbot.waitUntil(lambda: run_now(session, short_run).state.is_terminal, timeout=180_000)
    ended = run_now(session, short_run)
    assert (ended.state, ended.reason) == (RunState.COMPLETED, "")
    old = current_model(session.store)
    assert old is not None
    show(window, qtbot, "stained-02")
    click(window, qtbot, "Train", train.use)
    new = current_model(session.store)
    assert new is not None
    assert new.name == ended.new_model != old.name
    qtbot.waitUntil(
        lambda: session.store.prediction("stained-02", new.name) is not None, timeout=60_000
    )
    click(window, qtbot, "Train", train.back)
    back = current_model(session.store)
    assert back is not None
    assert back.name == old.name

    # Close: no process, no lock, everything on disk.
    pids = [child.pid for child in psutil.Process().children() if is_worker(child)]
    assert pids
    folder = session.store.folder
    on_screen = session.store.annotation(STAINED)
    window.main.close()
    qtbot.waitUntil(lambda: not any(map(psutil.pid_exists, pids)), timeout=20_000)
    with ProjectStore.open(folder) as store:
        reopened = store.annotation(STAINED)
        assert reopened is not None
        assert on_screen is not None
        assert np.array_equal(reopened.labels, on_screen.labels)
        assert np.array_equal(reopened.supervision, on_screen.supervision)


@pytest.mark.slow
def test_a_killed_training_process_is_told_of_within_two_seconds(
    window: DesktopWindow, qtbot: QtBot, slowness: Callable[[], float]
) -> None:
    session = open_sample(window, qtbot)
    show(window, qtbot, STAINED)
    labels = window.viewer.layers["Labels"]
    labels.paint((20, 20), 1)
    steps: list[Stepped] = []
    session.events.run_stepped.connect(steps.append)
    run = training.start(session, LONG)
    qtbot.waitUntil(lambda: bool(steps), timeout=120_000)
    trainer = next(
        child
        for child in psutil.Process().children()
        if is_worker(child) and "segdesk.training" in child.cmdline()
    )
    strokes = session.store.edit_counts(STAINED)[0]
    before = slowness()
    killed = time.monotonic()
    trainer.kill()
    qtbot.waitUntil(lambda: run_now(session, run).state is RunState.CRASHED)
    qtbot.waitUntil(lambda: "The training process" in _train_text(window))
    assert time.monotonic() - killed < 2 * max(before, slowness())
    assert "training process" in run_now(session, run).reason

    # Nothing else happened: painting goes on, and so does prediction.
    labels.paint((60, 60), 1)
    assert session.store.edit_counts(STAINED)[0] == strokes + 1
    predict_current(window, qtbot, session)


def _train_text(window: DesktopWindow) -> str:
    panel = window.workbench.panels["Train"]
    return " ".join(label.text() for label in panel.findChildren(QLabel))


def test_recent_projects_are_remembered(window: DesktopWindow, qtbot: QtBot) -> None:
    session = open_sample(window, qtbot)
    folder = session.store.folder
    window.close_project()
    assert window.start_page.isVisible()
    assert window.workbench.session is None
    window.main.close()
    again = DesktopWindow()
    try:
        opened: list[object] = []
        again.start_page.project_wanted.connect(opened.append)
        again.start_page.project_wanted.emit(folder)
        assert opened == [folder]
        assert again.workbench.session is not None
        assert again.workbench.session.store.folder == folder
    finally:
        again.main.close()


def test_what_cannot_be_opened_is_said_on_the_start_page(
    window: DesktopWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    page = window.start_page
    other = ProjectStore.create(tmp_path / "other.segdesk", ClassMap.from_names(["a", "b"]))
    try:
        window.open_project(other.folder)
        assert page.problem.isVisible()
        assert "other.segdesk" in page.problem.text()
        assert page.rect().contains(page.problem.mapTo(page, page.problem.rect().bottomRight()))
    finally:
        other.close()
    open_sample(window, qtbot)
    window.close_project()
    qtbot.waitUntil(page.isVisible)
    assert not page.problem.isVisible(), "it is over"


def test_a_project_in_use_elsewhere_is_refused_and_the_open_one_stays(
    window: DesktopWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    session = open_sample(window, qtbot)
    other = ProjectStore.create(tmp_path / "other", ClassMap.from_names(["a", "b"]))
    try:
        window.open_project(other.folder)
        assert window.workbench.session is session
    finally:
        other.close()


OPEN_AND_LIST = """
import gc
import sys
from qtpy.QtCore import QEventLoop, QTimer
from qtpy.QtWidgets import QApplication, QTabBar
import segdesk.app.window as module

class Window(module.DesktopWindow):
    def __init__(self):
        super().__init__()
        self.timer = QTimer()
        self.timer.timeout.connect(self.look)
        self.timer.start(100)

    def look(self):
        if self.workbench.current_correction is not None:
            heavy = [m for m in ("torch", "torchvision") if m in sys.modules]
            print("shown", heavy)
            self.timer.stop()
            QTimer.singleShot(300, self.count_tabs)

    def count_tabs(self):
        bars = [bar for bar in self.main.findChildren(QTabBar) if bar.isVisible()]
        print("tabs", sorted(bar.tabText(0) for bar in bars))
        self.main.close()

module.DesktopWindow = Window
from segdesk.app.main import run_app
run_app(sample=True)
gc.collect()
loop = QEventLoop()
QTimer.singleShot(500, loop.quit)
loop.exec()  # what is to be deleted goes in it
print("left", [type(widget).__name__ for widget in QApplication.topLevelWidgets()])
"""


@pytest.mark.slow
def test_a_real_start_loads_no_torch_has_every_tab_once_and_leaves_no_widget(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AND_LIST], capture_output=True, text=True, timeout=600
    )
    assert "shown []" in done.stdout, done.stderr
    assert "tabs ['Predict', 'layer controls']" in done.stdout
    assert "left []" in done.stdout

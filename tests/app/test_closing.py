"""Closing the window while a run is under way: it goes on, or stops, or the window stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from segdesk.app.closing import ClosingDialog
from segdesk.app.settings import load_settings
from segdesk.app.window import DesktopWindow
from segdesk.config.app import OnClose
from segdesk.config.training import TrainingConfig
from segdesk.core.classes import ClassMap
from segdesk.core.run import RunState
from segdesk.core.sample import Split
from segdesk.io.store import ProjectStore
from segdesk.session import training
from segdesk.session.correcting import Correction
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session
from segdesk.session.workers import WorkerBackend


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which runs were left to go on; the processes themselves are not started."""
    runs: list[str] = []
    for name in ("warm", "train", "prepare"):
        monkeypatch.setattr(WorkerBackend, name, lambda *_: None)
    monkeypatch.setattr(WorkerBackend, "leave", lambda _, run_id: runs.append(run_id))
    return runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with one labelled image."""
    store = ProjectStore.create(tmp_path / "p.segdesk", ClassMap.from_names(["no", "yes"]))
    session = Session(store)
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(tmp_path / "a.png")
    new = NewImage(tmp_path / "a.png", split=Split.TRAIN)
    Correction(session, add_images(session, [new]).samples[0]).accept()
    session.close()
    return store.folder


def start_run(window: DesktopWindow, folder: Path) -> str:
    session = window.workbench.open_project(folder)
    return training.start(session, TrainingConfig(), "nuclei-unet").id


def when_asked(answer: Callable[[ClosingDialog], Any]) -> None:
    """Answer the dialog once it is on the screen."""

    def look() -> None:
        dialog = QApplication.activeModalWidget()
        if isinstance(dialog, ClosingDialog):
            answer(dialog)
        else:
            QTimer.singleShot(20, look)

    QTimer.singleShot(0, look)


def state_of(folder: Path, run: str) -> RunState:
    with ProjectStore.open(folder, read_only=True) as store:
        return next(r.state for r in store.runs() if r.id == run)


def test_the_user_says_what_becomes_of_a_run(
    left: list[str], window: DesktopWindow, folder: Path, qtbot: QtBot
) -> None:
    run = start_run(window, folder)
    when_asked(lambda dialog: dialog.stay.click())
    window.close_project()
    assert window.workbench.session is not None
    when_asked(lambda dialog: dialog.stop.click())
    window.close_project()
    assert window.workbench.session is None
    assert left == []
    assert state_of(folder, run) is RunState.CANCELED
    run = start_run(window, folder)

    def go_on_always(dialog: ClosingDialog) -> None:
        dialog.always.setChecked(True)
        dialog.go_on.click()

    when_asked(go_on_always)
    window.main.close()
    qtbot.waitUntil(lambda: window.is_closed)
    assert left == [run]
    assert state_of(folder, run) is RunState.RUNNING  # it goes on, and is found again
    assert load_settings().habits.on_close is OnClose.GO_ON


def test_without_a_run_nothing_is_asked(
    left: list[str], window: DesktopWindow, folder: Path, qtbot: QtBot
) -> None:
    window.workbench.open_project(folder)
    window.main.close()
    qtbot.waitUntil(lambda: window.is_closed)
    assert left == []


def test_the_window_goes_on_painting_while_its_processes_end(
    window: DesktopWindow, folder: Path, qtbot: QtBot
) -> None:
    window.workbench.open_project(folder)
    looks: list[tuple[bool, str]] = []
    timer = QTimer()
    timer.timeout.connect(
        lambda: looks.append((window.start_page.isVisible(), window.start_page.busy.text()))
    )
    timer.start(10)
    window.close_project()  # the prediction process has to leave
    timer.stop()
    assert looks
    assert looks[0] == (True, "Closing the project…")
    assert window.start_page.busy.isHidden()
    assert window.start_page.open_button.isVisible()
    window.workbench.open_project(folder)
    QTimer.singleShot(0, window.main.close)  # while the project is being closed
    window.close_project()
    assert not window.is_closed
    qtbot.waitUntil(lambda: window.is_closed)

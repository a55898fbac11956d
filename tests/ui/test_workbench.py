from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from napari.utils.notifications import notification_manager
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from segdesk.core.classes import ClassMap
from segdesk.core.errors import InputError
from segdesk.core.run import Run, RunState
from segdesk.io.store import ProjectStore
from segdesk.session.workers import WorkerBackend
from segdesk.ui import workbench as workbench_module
from segdesk.ui.workbench import Workbench

SECONDS = 1000


def pids_of(workbench: Workbench) -> list[int]:
    assert workbench.session is not None
    backend = workbench.session.backend
    assert isinstance(backend, WorkerBackend)
    return backend.pids()


def test_the_real_engine_fills_layers_status_and_words(
    workbench: Workbench, shown: str, qtbot: QtBot
) -> None:
    predict, session, layers = workbench.panels["Predict"], workbench.session, workbench.layers
    assert session is not None
    assert layers is not None
    assert layers.uncertainty is None
    labels = layers.labels
    assert labels is not None
    labels.mode = "paint"
    labels.brush_size = 4
    labels.paint((2, 2), 1)  # spoken about: a prediction leaves it
    data, zoom = labels.data, workbench.viewer.scene.camera.zoom
    qtbot.mouseClick(predict.one, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: layers.uncertainty is not None, timeout=60 * SECONDS)
    qtbot.waitUntil(lambda: not session.jobs, timeout=10 * SECONDS)
    assert layers.labels is labels
    assert labels.data is data
    assert (data[8:, 8:] == 1).any()
    assert data[2, 2] == 1
    assert 0 <= layers.uncertainty.data.min() < layers.uncertainty.data.max() <= 1
    assert workbench.viewer.scene.camera.zoom == zoom
    assert (str(labels.mode), labels.brush_size) == ("paint", 4)
    assert workbench.viewer.layers.selection.active is labels
    sample = session.store.sample(shown)
    assert sample.score is not None
    assert "1 image predicted" in predict.progress.text()
    assert predict.device.text().startswith("Computes on: ")
    # A stroke on top of the prediction, undone, gives the prediction back.
    kept = data.copy()
    labels.paint((40, 40), 1 - data[40, 40])
    assert not np.array_equal(data, kept)
    assert workbench.strokes is not None
    workbench.strokes.undo()
    np.testing.assert_array_equal(data, kept)


def test_opening_does_not_wait_for_the_file_and_the_newest_wins(
    workbench: Workbench, project: list[str], qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, read = threading.Event(), workbench_module.read_image

    def slow(path: Path) -> object:
        assert gate.wait(20)
        return read(path)

    monkeypatch.setattr(workbench_module, "read_image", slow)
    shown: list[str] = []
    workbench.sample_shown.connect(shown.append)
    workbench.show_sample(project[0])
    workbench.show_sample(project[1])
    assert workbench.current_correction is None
    assert workbench.panels["Correct"].reason.text() == "Opening the image…"
    gate.set()
    qtbot.waitUntil(lambda: bool(shown), timeout=10 * SECONDS)
    assert shown == [project[1]]
    assert workbench.current_sample_id == project[1]


def test_an_image_that_is_gone_is_told_and_the_next_one_opens(
    workbench: Workbench, project: list[str], qtbot: QtBot, tmp_path: Path
) -> None:
    (tmp_path / "image0.png").unlink()
    before = len(notification_manager.records)
    workbench.show_sample(project[0])
    qtbot.waitUntil(lambda: len(notification_manager.records) > before, timeout=10 * SECONDS)
    assert "image0.png" in notification_manager.records[before].message
    workbench.show_sample(project[1])
    qtbot.waitUntil(lambda: workbench.current_correction is not None, timeout=10 * SECONDS)


def test_closing_leaves_nothing_behind_and_may_be_repeated(
    workbench: Workbench, shown: str
) -> None:
    workbench.predict([shown])
    workbench.viewer.add_image(np.zeros((8, 8)), name="mine")
    session = workbench.session
    assert session is not None
    pids = pids_of(workbench)
    assert pids
    folder = session.store.folder
    closed: list[bool] = []
    workbench.session_closed.connect(lambda: closed.append(True))
    workbench.close()
    workbench.close()
    assert closed == [True]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not [t for t in threading.enumerate() if t.name.startswith("segdesk")]
    assert [layer.name for layer in workbench.viewer.layers] == ["mine"]
    with ProjectStore.open(folder):  # the lock is free
        pass


def test_a_run_left_by_a_killed_program_is_told_on_opening(
    workbench: Workbench, tmp_path: Path
) -> None:
    with ProjectStore.create(tmp_path / "old.segdesk", ClassMap.from_names(("a", "b"))) as store:
        run = Run("r1", store.folder / "runs" / "r1", "base", RunState.RUNNING, "base-r1")
        store.put_run(run)
    before = len(notification_manager.records)
    session = workbench.open_project(tmp_path / "old.segdesk")
    assert [r.state for r in session.store.runs()] == [RunState.CRASHED]
    assert "r1" in notification_manager.records[before].message
    assert "unexpectedly" in workbench.panels["Train"].state.text()


def test_the_sample_project_is_made_once_and_then_opened(
    workbench: Workbench, tmp_path: Path
) -> None:
    session = workbench.open_sample_project(tmp_path / "sample.segdesk")
    sample = session.store.samples()[0]
    session.put_sample(replace(sample, score=0.5))
    workbench.close()
    again = workbench.open_sample_project(tmp_path / "sample.segdesk")
    assert again.store.sample(sample.id).score == 0.5


def test_what_needs_a_project_says_so(workbench: Workbench) -> None:
    with pytest.raises(InputError, match="Open a project"):
        workbench.show_sample("x")
    with pytest.raises(InputError, match="Open a project"):
        workbench.predict([])

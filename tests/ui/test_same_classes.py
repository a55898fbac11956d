"""A model whose classes are called otherwise: the window asks, and a run does as it was told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from segdesk.core.classes import ClassMap
from segdesk.core.sample import Split
from segdesk.session.models import use_model
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session
from segdesk.session.workers import WorkerBackend
from segdesk.ui.workbench import Workbench
from tests.ui.conftest import nuclei, show

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def session(
    workbench: Workbench, tmp_path: Path, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> Session:
    """A project that calls nuclei otherwise than the model in use, and has a class of its own.

    Its training processes are not started.
    """
    monkeypatch.setattr(WorkerBackend, "train", lambda *_: None)
    classes = ClassMap.from_names(("background", "Nuclei", "dirt"))
    session = workbench.new_project(tmp_path / "p.segdesk", classes)
    Image.fromarray(nuclei(0)).save(tmp_path / "a.png")
    (sample,) = add_images(session, [NewImage(tmp_path / "a.png", split=Split.TRAIN)]).samples
    show(workbench, sample.id, qtbot)
    assert workbench.current_correction is not None
    labels = np.zeros((64, 64), np.uint8)
    labels[:20], labels[40:] = 1, 2
    workbench.current_correction.replace(labels, "truth")
    workbench.current_correction.accept()
    use_model(session, "nuclei-unet")
    return session


def test_a_start_asks_which_class_is_which(
    workbench: Workbench, session: Session, qtbot: QtBot
) -> None:
    panel: Any = workbench.panels["Train"]
    qtbot.mouseClick(panel.start, LEFT)
    qtbot.waitUntil(lambda: panel.starter.dialog is not None)
    dialog = panel.starter.dialog
    assert {name: box.currentData() for name, box in dialog.choices.items()} == {
        "Nuclei": "nucleus", "dirt": "",
    }  # fmt: skip
    # One class of the model cannot be two of the project.
    dirt = dialog.choices["dirt"]
    dirt.setCurrentIndex(dirt.findData("nucleus"))
    assert not dialog.accept_button.isEnabled()
    assert "nucleus can be one class only" in dialog.note.text()
    # Canceled, nothing has happened.
    qtbot.mouseClick(dialog.cancel_button, LEFT)
    assert panel.form.value().same_classes == ""
    assert not session.store.runs()
    # Answered, the run takes the class over under its new name.
    qtbot.mouseClick(panel.start, LEFT)
    qtbot.waitUntil(lambda: panel.starter.dialog is not None)
    qtbot.mouseClick(panel.starter.dialog.accept_button, LEFT)
    qtbot.waitUntil(lambda: len(session.store.runs()) == 1)
    (run,) = session.store.runs()
    config = json.loads((run.folder / "config.json").read_text("utf-8"))
    assert config["same_classes"] == "Nuclei=nucleus"
    assert panel.form.value().same_classes == "Nuclei=nucleus"


def test_what_was_answered_is_not_asked_again(
    workbench: Workbench, session: Session, qtbot: QtBot
) -> None:
    """Also where the answer is that every class is new, which leaves the form empty."""
    panel: Any = workbench.panels["Train"]
    qtbot.mouseClick(panel.start, LEFT)
    qtbot.waitUntil(lambda: panel.starter.dialog is not None)
    panel.starter.dialog.choices["Nuclei"].setCurrentIndex(0)
    assert "will not know nucleus any more" in panel.starter.dialog.note.text()
    qtbot.mouseClick(panel.starter.dialog.accept_button, LEFT)
    qtbot.waitUntil(lambda: len(session.store.runs()) == 1)
    qtbot.waitUntil(panel.start.isEnabled)
    qtbot.mouseClick(panel.start, LEFT)
    qtbot.waitUntil(lambda: len(session.store.runs()) == 2)
    assert panel.starter.dialog is None
    assert panel.form.value().same_classes == ""


def test_the_look_beforehand_leads_to_the_question(
    workbench: Workbench, session: Session, qtbot: QtBot
) -> None:
    panel: Any = workbench.panels["Train"]
    workbench.raise_panel("Train")

    def link() -> Any:
        return next((h for h in panel.checks.hints if "Say which is which" in h.text()), None)

    qtbot.waitUntil(lambda: link() is not None)
    assert "Nuclei=nucleus" in link().text()  # for who would rather write it
    link().linkActivated.emit("go")
    qtbot.mouseClick(panel.starter.dialog.accept_button, LEFT)
    assert panel.form.value().same_classes == "Nuclei=nucleus"
    assert not session.store.runs()
    qtbot.waitUntil(lambda: link() is None)  # asked and answered

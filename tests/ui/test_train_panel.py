"""Run control, pre-flight, estimates and examples of the Train panel, in a real window.

The events are those that a training process sends; nothing computes here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox

from past_rounds import put_round, saturating
from segdesk.config.training import Recipe
from segdesk.core.run import Run, RunState
from segdesk.io.packages import CARD, bundled_packages, install_package, read_card
from segdesk.jobs.messages import (
    Estimated,
    EstimateOrder,
    Evaluated,
    Finished,
    Paused,
    Previewed,
    Stepped,
    Varied,
    VaryOrder,
)
from segdesk.session.session import Session
from segdesk.session.workers import WorkerBackend
from segdesk.ui.bridge import Bridge
from segdesk.ui.workbench import Workbench
from tests.ui.conftest import show

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the backend was asked for: its processes are not started."""
    calls: list[tuple[Any, ...]] = []
    for name in ("train", "pause", "cancel", "kill", "prepare", "predict", "leave"):
        monkeypatch.setattr(
            WorkerBackend, name, lambda _, *given, name=name: calls.append((name, *given))
        )
    return calls


@pytest.fixture
def session(
    asked: list[tuple[Any, ...]], workbench: Workbench, project: list[str], qtbot: QtBot
) -> Session:
    """A project of which two images are accepted, half of each nucleus; one is held back."""
    assert workbench.session is not None
    for sample in (project[3], project[0]):
        show(workbench, sample, qtbot)
        assert workbench.current_correction is not None
        labels = np.zeros((64, 64), np.uint8)
        labels[:32] = 1
        workbench.current_correction.replace(labels, "truth")
        workbench.current_correction.accept()
    return workbench.session


def step(job: str, number: int) -> Stepped:
    return Stepped(
        job=job, step=number, total=9, loss=0.5, learning_rate=1e-3 / number, seconds_left=90
    )


def finish(session: Session, bridge: Bridge, run: Run) -> None:
    """End a run as its process would, with a copy of the shipped model as the new one."""
    made = run.folder / "model"
    install_package(bundled_packages()["nuclei-unet"], made)
    card = read_card(made).model_copy(update={"name": run.new_model})
    (made / CARD).write_text(card.model_dump_json())
    result: dict[str, Any] = {
        key: {"dice": dice, "per_image": [{"image": str(n), "dice": dice} for n in range(5)]}
        for key, dice in (("before", 0.5), ("after", 0.8))
    }
    bridge.put(Finished(job=run.id, state=RunState.COMPLETED, result=result))


def test_a_run_is_paused_stopped_and_resumed_while_another_waits(
    session: Session, asked: list[tuple[Any, ...]], workbench: Workbench, qtbot: QtBot,
    tmp_path: Path,
) -> None:  # fmt: skip
    panel: Any = workbench.panels["Train"]
    control = panel.control
    assert workbench.bridge is not None
    put = workbench.bridge.put
    qtbot.mouseClick(panel.start, LEFT)
    qtbot.waitUntil(lambda: len(session.store.runs()) == 1)
    (run,) = session.store.runs()
    assert panel.start.text() == "Queue another run"
    # Curves and a picture that changes as the model learns.
    Image.fromarray(np.zeros((700, 1400, 3), np.uint8)).save(tmp_path / "preview.png")
    put(step(run.id, 1))
    put(step(run.id, 2))
    scores = {"dice": 0.5, "per_class": {"background": {"dice": 0.9}, "nucleus": {"dice": 0.4}}}
    put(Evaluated(job=run.id, step=2, scores=scores, is_best=True))
    put(Previewed(job=run.id, step=2, sample="image0", picture=tmp_path / "preview.png"))
    workbench.raise_panel("Train")
    qtbot.waitUntil(lambda: panel.curves.drawn == ["images held back", "nucleus"])
    assert panel.curves.rates == [1e-3, 5e-4]
    qtbot.waitUntil(panel.preview.isVisible)
    assert (panel.preview.shown.width(), panel.preview.shown.height()) == (512, 256)
    # Pause, and go on.
    qtbot.mouseClick(control.pause, LEFT)
    assert asked[-1] == ("pause", run.id, True)
    put(Paused(job=run.id, is_paused=True))
    qtbot.waitUntil(lambda: control.pause.text() == "Go on")
    assert panel.progress.text() == "Paused."
    qtbot.mouseClick(control.pause, LEFT)
    assert asked[-1] == ("pause", run.id, False)
    put(Paused(job=run.id, is_paused=False))
    qtbot.waitUntil(lambda: control.pause.text() == "Pause")
    # Two more wait; one of them is taken out.
    for count in (2, 3):
        qtbot.mouseClick(panel.start, LEFT)
        qtbot.waitUntil(lambda n=count: len(session.store.runs()) == n)
    _, second, third = session.store.runs()
    assert list(panel.queue.buttons) == [second.id, third.id]
    assert run.new_model in panel.state.text()
    assert panel.bar.value() == 2  # what is shown of the run under way has not changed
    qtbot.mouseClick(panel.queue.buttons[second.id], LEFT)
    assert list(panel.queue.buttons) == [third.id]
    # Stopped: the next one starts and is shown.
    qtbot.mouseClick(control.stop, LEFT)
    assert asked[-1] == ("cancel", run.id)
    assert not control.stop.isEnabled()
    assert control.stop_now.isEnabled()
    put(Finished(job=run.id, state=RunState.CANCELED))
    qtbot.waitUntil(lambda: asked[-1][:2] == ("train", third.id))
    assert third.new_model in panel.state.text()
    assert panel.queue.isHidden()
    assert panel.curves.points == (0, 0, 0)
    qtbot.mouseClick(control.stop_now, LEFT)
    assert asked[-1] == ("kill", third.id)
    put(Finished(job=third.id, state=RunState.CRASHED, reason="It was killed."))
    qtbot.waitUntil(control.resume.isVisible)
    assert control.pause.isHidden()
    qtbot.mouseClick(control.resume, LEFT)
    assert asked[-1][:2] == ("train", third.id)
    assert control.resume.isHidden()
    assert third.new_model in panel.state.text()
    # One is completed while the next waits: its model stays on offer.
    qtbot.mouseClick(panel.start, LEFT)
    qtbot.waitUntil(lambda: len(session.store.runs()) == 4)
    fourth = session.store.runs()[-1]
    finish(session, workbench.bridge, third)
    qtbot.waitUntil(lambda: fourth.new_model in panel.state.text())
    assert panel.use.text() == f"Use the new model {third.new_model}"
    assert f"{third.new_model}: better" in panel.verdict.text()


def test_what_a_look_beforehand_finds_is_a_click_away(
    session: Session, asked: list[tuple[Any, ...]], workbench: Workbench, project: list[str],
    tmp_path: Path, qtbot: QtBot,
) -> None:  # fmt: skip
    panel: Any = workbench.panels["Train"]
    workbench.raise_panel("Train")
    # A plain picture of the image in another file: a copy is held back.
    qtbot.waitUntil(lambda: bool(panel.checks.hints), timeout=20_000)
    assert panel.start.isEnabled()
    # Estimates come in as they are found out, and stand in the choice of recipes.
    recipe = panel.form.editors["recipe"].widget
    qtbot.waitUntil(lambda: bool(asked), timeout=5_000)
    name, order = asked[-1]
    assert name == "prepare"
    assert isinstance(order, EstimateOrder)
    assert workbench.bridge is not None
    for kind, seconds in ((Recipe.QUICK, 8.2), (Recipe.STANDARD, 125)):
        workbench.bridge.put(
            Estimated(job=order.job, recipe=kind, seconds=seconds, memory_bytes=600_000_000)
        )
    workbench.bridge.put(Finished(job=order.job, state=RunState.COMPLETED))
    qtbot.waitUntil(lambda: recipe.itemText(1) == "standard: about 2 min, 0.6 GB")
    assert recipe.itemText(0) == "quick: about 8 s, 0.6 GB"
    # An image that is gone cannot be learnt from.
    (tmp_path / "image0.png").unlink()
    habit = panel.form.editors["steps"]
    habit.write(habit.read() + 1)
    qtbot.waitUntil(lambda: not panel.start.isEnabled(), timeout=20_000)
    first = panel.checks.hints[0]
    assert "Cannot start" in first.text()
    assert "image0.png" in panel.start.toolTip()
    show(workbench, project[3], qtbot)
    first.linkActivated.emit("go")
    assert workbench.current_sample_id == project[0]


def test_what_more_images_bring_is_said_once_the_rounds_can_tell(
    session: Session, workbench: Workbench, qtbot: QtBot
) -> None:
    panel: Any = workbench.panels["Train"]
    for images in (4, 8, 16):
        put_round(session.store, images, saturating(images))
    workbench.raise_panel("Train")
    qtbot.waitUntil(lambda: "10 more labelled images would change" in panel.outlook.text())


def test_examples_of_augmentation_are_shown(
    session: Session, asked: list[tuple[Any, ...]], workbench: Workbench, tmp_path: Path,
    qtbot: QtBot,
) -> None:  # fmt: skip
    panel: Any = workbench.panels["Train"]
    panel.examples.click()
    name, order = asked[-1]
    assert name == "prepare"
    assert isinstance(order, VaryOrder)
    assert not panel.examples.isEnabled()
    pictures = tuple(tmp_path / f"example{number}.png" for number in range(4))
    for path in pictures:
        Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(path)
    assert workbench.bridge is not None
    workbench.bridge.put(Varied(job=order.job, pictures=pictures))
    workbench.bridge.put(Finished(job=order.job, state=RunState.COMPLETED))
    qtbot.waitUntil(panel.examples.isEnabled)
    dialog = panel.examples.dialog
    assert dialog.isVisible()
    qtbot.waitUntil(lambda: all(p.shown.width() == 64 for p in dialog.pictures))
    assert len(dialog.pictures) == 4
    # Habits are kept by whoever keeps settings.
    kept: list[Any] = []
    workbench.habits_changed.connect(kept.append)
    box = panel.habits.editors["use_better"].widget
    assert isinstance(box, QCheckBox)
    box.setChecked(True)
    assert [habits.use_better for habits in kept] == [True]
    dialog.close()


def test_painting_goes_on_while_a_run_is_prepared_and_it_can_be_called_off(
    session: Session, workbench: Workbench, project: list[str], qtbot: QtBot
) -> None:
    panel: Any = workbench.panels["Train"]
    qtbot.mouseClick(panel.start, LEFT)
    # The click is over, and the labels of the project are still being read.
    assert panel.start.text() == "Getting ready…"
    assert not panel.start.isEnabled()
    assert "Reading the labels" in panel.reason.text()
    assert not session.store.runs()
    qtbot.mouseClick(panel.starter.cancel, LEFT)
    assert panel.start.text() == "Start fine-tuning"
    assert panel.start.isEnabled()
    qtbot.mouseClick(panel.start, LEFT)
    assert workbench.current_correction is not None
    workbench.current_correction.stroke((0, 0), np.full((4, 4), 0, np.uint8), "paint")
    qtbot.waitUntil(lambda: bool(session.store.runs()))
    assert panel.start.text() == "Queue another run"
    assert panel.starter.cancel.isHidden()
    (run,) = session.store.runs()
    # What was called off left nothing.
    qtbot.waitUntil(lambda: list((session.store.folder / "runs").iterdir()) == [run.folder])


def test_what_keeps_a_run_from_starting_is_told_and_the_button_comes_back(
    session: Session, workbench: Workbench, project: list[str], qtbot: QtBot
) -> None:
    panel: Any = workbench.panels["Train"]
    annotation = session.store.annotation(project[0])
    assert annotation is not None
    session.store.revision_file(project[0], annotation.revision).unlink()
    before = len(notification_manager.records)
    qtbot.mouseClick(panel.start, LEFT)
    qtbot.waitUntil(lambda: len(notification_manager.records) > before)
    assert project[0] in notification_manager.records[before].message
    assert panel.start.isEnabled()
    assert not session.store.runs()

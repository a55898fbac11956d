from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from napari.utils.notifications import notification_manager
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, Qt

from segdesk.core.run import RunState
from segdesk.core.sample import Status
from segdesk.core.verdict import judge
from segdesk.io.packages import CARD, bundled_packages, install_package, read_card
from segdesk.jobs.messages import Evaluated, Finished, Progressed, Stepped
from segdesk.session.models import current_model, find_model
from segdesk.session.session import Session
from segdesk.session.workers import WorkerBackend
from segdesk.ui.bridge import Bridge
from segdesk.ui.panels.predict import outcome_words
from segdesk.ui.panels.project import ProjectPanel
from segdesk.ui.words import (
    device_words,
    learning_words,
    model_dice,
    score_rows,
    verdict_words,
    why_not_train,
)
from segdesk.ui.workbench import Workbench
from tests.ui.conftest import nuclei, show

LEFT = Qt.MouseButton.LeftButton


def scores(dice: float | None, remembered: float | None) -> dict[str, Any]:
    """Scores as a run reports them, of five images held back."""
    number = 0 if dice is None else 5
    return {
        "dice": dice, "iou": dice, "n": number, "remembered": {"dice": remembered},
        "per_image": [{"image": f"s{n}", "dice": dice} for n in range(number)],
        "dataset": {"pixel_accuracy": 0.9, "frequency_weighted_iou": dice} if number else None,
    }  # fmt: skip


@pytest.fixture
def parts(
    workbench: Workbench, shown: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Session, Bridge]:
    """Session and bridge; runs and predictions are ordered but nothing computes."""
    monkeypatch.setattr(WorkerBackend, "train", lambda *_: None)
    monkeypatch.setattr(WorkerBackend, "predict", lambda *_: None)
    assert workbench.session is not None
    assert workbench.bridge is not None
    return workbench.session, workbench.bridge


def is_in_view(panel: Any, widget: Any) -> bool:
    """Whether the whole of a widget is to be seen without scrolling."""
    port = panel.viewport()
    top = widget.mapTo(port, QPoint(0, 0)).y()
    return widget.isVisible() and top >= 0 and top + widget.height() <= port.height()


def start_run(workbench: Workbench, session: Session, qtbot: QtBot) -> str:
    assert workbench.current_correction is not None
    workbench.current_correction.accept()
    before = len(session.store.runs())
    qtbot.mouseClick(workbench.panels["Train"].start, LEFT)
    qtbot.waitUntil(lambda: len(session.store.runs()) > before)
    return session.store.runs()[-1].id


def finish(session: Session, bridge: Bridge, before: dict[str, Any], after: dict[str, Any]) -> None:
    """End the last run as its process would, with a copy of the shipped model as the new one."""
    run = session.store.runs()[-1]
    made = run.folder / "model"
    install_package(bundled_packages()["nuclei-unet"], made)
    card = read_card(made).model_copy(update={"name": run.new_model})
    (made / CARD).write_text(card.model_dump_json())
    result = {"before": before, "after": after}
    bridge.put(Finished(job=run.id, state=RunState.COMPLETED, result=result))


def test_without_a_project_every_panel_says_what_to_do_first(workbench: Workbench) -> None:
    panels: Any = workbench.panels
    assert "No project is open" in panels["Project"].hint.text()
    for name, button in (("Predict", "one"), ("Predict", "all"), ("Correct", "accept"),
                         ("Correct", "next"), ("Train", "start")):  # fmt: skip
        assert not getattr(panels[name], button).isEnabled()
        assert "project" in getattr(panels[name], button).toolTip()
        assert "project" in panels[name].reason.text()


def test_before_an_image_is_chosen_the_reason_is_visible(
    workbench: Workbench, project: list[str]
) -> None:
    predict: Any = workbench.panels["Predict"]
    assert predict.all.isEnabled()
    assert not predict.one.isEnabled()
    assert "Click an image" in predict.reason.text()
    assert predict.reason.text() == predict.one.toolTip()


def test_a_click_in_the_list_opens_the_image(
    workbench: Workbench, project: list[str], qtbot: QtBot
) -> None:
    panel: Any = workbench.panels["Project"]
    place = panel.list.visualRect(panel.order.index(2, 0)).center()
    qtbot.mouseClick(panel.list.viewport(), LEFT, pos=place)
    qtbot.waitUntil(lambda: workbench.current_correction is not None)
    assert workbench.current_sample_id == project[2]


def test_the_list_filters_sorts_and_gets_thumbnails(
    workbench: Workbench, project: list[str], qtbot: QtBot
) -> None:
    panel: Any = workbench.panels["Project"]
    session = workbench.session
    assert session is not None

    def listed() -> list[str]:
        return [panel.order.index(i, 0).data() for i in range(panel.order.rowCount())]

    for number, score in ((0, 0.1), (1, 0.3), (2, 0.2)):
        sample = session.store.sample(project[number])
        session.put_sample(replace(sample, score=score, status=Status.PREDICTED))
    panel.sorting.setCurrentIndex(1)
    assert listed() == ["image1.png", "image2.png", "image0.png", "image3.png"]
    panel.status.setCurrentIndex(panel.status.findText("new"))
    assert listed() == ["image3.png"]
    panel.status.setCurrentIndex(0)
    panel.filter.setText("IMAGE2")
    assert listed() == ["image2.png"]
    panel.filter.setText("nothing like it")
    assert "No image fits" in panel.hint.text()
    panel.filter.setText("")
    icon = Qt.ItemDataRole.DecorationRole
    qtbot.waitUntil(lambda: panel.model.data(panel.model.index(0), icon) is not None)
    assert "Held back" in panel.model.data(panel.model.index(3), Qt.ItemDataRole.ToolTipRole)


def test_adding_reports_what_cannot_be_used_and_takes_the_rest(
    workbench: Workbench, project: list[str], tmp_path: Path
) -> None:
    good, bad = tmp_path / "new.png", tmp_path / "bad.png"
    Image.fromarray(nuclei(9)).save(good)
    bad.write_bytes(b"not an image")
    before = len(notification_manager.records)
    panel: Any = workbench.panels["Project"]
    added = panel.add([bad, good])
    assert [sample.name for sample in added.samples] == ["new.png"]
    messages = [record.message for record in notification_manager.records[before:]]
    assert "1 image was added." in messages
    assert any("bad.png" in message for message in messages)
    assert panel.model.rowCount() == 5
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "slide.czi").write_text("x")
    Image.fromarray(nuclei(10)).save(scans / "another.png")
    panel.add([scans])
    assert panel.model.rowCount() == 6
    last = notification_manager.records[-1].message
    assert last == "scans: 1 file is not of a kind SegDesk reads and passed over (.czi)."


def test_the_correct_panel_and_the_layer_follow_each_other(
    workbench: Workbench, shown: str, qtbot: QtBot
) -> None:
    correct: Any = workbench.panels["Correct"]
    assert workbench.layers is not None
    layer = workbench.layers.labels
    assert layer is not None
    qtbot.mouseClick(correct.tools.button(2), LEFT)
    assert str(layer.mode) == "fill"
    qtbot.mouseClick(correct.classes.button(0), LEFT)
    assert layer.selected_label == 0
    correct.brush.setValue(33)
    assert layer.brush_size == 33
    layer.mode, layer.selected_label, layer.brush_size = "erase", 1, 7
    assert correct.tools.checkedButton().text() == "Eraser"
    assert correct.classes.checkedId() == 1
    assert correct.brush_text.text() == "7 px"


def test_accepting_and_taking_back(workbench: Workbench, shown: str, qtbot: QtBot) -> None:
    correct: Any = workbench.panels["Correct"]
    assert workbench.session is not None
    qtbot.mouseClick(correct.accept, LEFT)
    assert workbench.session.store.sample(shown).status == "accepted"
    assert "back" in correct.accept.text()
    qtbot.mouseClick(correct.accept, LEFT)
    assert workbench.session.store.sample(shown).status == "new"
    assert correct.accept.text() == "Accept image"


def test_next_goes_to_the_most_uncertain_and_says_why(
    workbench: Workbench, project: list[str], shown: str, qtbot: QtBot
) -> None:
    assert workbench.session is not None
    sample = workbench.session.store.sample(project[2])
    workbench.session.put_sample(replace(sample, score=0.25))
    correct: Any = workbench.panels["Correct"]
    assert "image2.png" in correct.next_hint.text()
    assert "25.0%" in correct.next_hint.text()
    qtbot.mouseClick(correct.next, LEFT)
    qtbot.waitUntil(lambda: workbench.current_correction is not None)
    assert workbench.current_sample_id == project[2]


def test_progress_of_several_images_in_words(
    workbench: Workbench, parts: tuple[Session, Bridge], qtbot: QtBot
) -> None:
    session, bridge = parts
    predict: Any = workbench.panels["Predict"]
    qtbot.mouseClick(predict.all, LEFT)
    jobs = list(session.jobs)
    assert len(jobs) == 4
    assert not predict.cancel.isHidden()
    bridge.put(Finished(job=jobs[0], state=RunState.COMPLETED))
    bridge.put(Progressed(job=jobs[1], done=1, total=4))
    qtbot.waitUntil(lambda: predict.progress.text() == "Image 2 of 4, tile 2 of 4")
    assert (predict.bar.value(), predict.bar.maximum()) == (125, 400)
    bridge.put(Finished(job=jobs[1], state=RunState.CRASHED, reason="It was killed."))
    for job in jobs[2:]:
        bridge.put(Finished(job=job, state=RunState.COMPLETED))
    qtbot.waitUntil(predict.bar.isHidden)
    assert predict.progress.text() == (
        "Done: 3 images predicted. 1 could not be predicted: It was killed."
    )
    assert predict.cancel.isHidden()


def test_a_model_of_other_classes_cannot_predict_and_says_why(
    workbench: Workbench, tmp_path: Path, qtbot: QtBot
) -> None:
    from segdesk.core.classes import ClassMap
    from segdesk.session.models import use_model
    from segdesk.session.projects import NewImage, add_images

    session = workbench.new_project(
        tmp_path / "roads.segdesk", ClassMap.from_names(("background", "road"))
    )
    image = tmp_path / "road.png"
    Image.fromarray(nuclei(1)).save(image)
    (sample,) = add_images(session, [NewImage(image)]).samples
    show(workbench, sample.id, qtbot)
    predict: Any = workbench.panels["Predict"]
    assert predict.reason.text() == "Choose a model above first."
    use_model(session, "nuclei-unet")
    assert not predict.one.isEnabled()
    assert not predict.all.isEnabled()
    assert predict.reason.text() == (
        "This model knows other classes (nucleus). Fine-tune it on some labelled images first, "
        "in the Train panel."
    )


def test_training_is_offered_only_when_there_is_something_to_learn_from(
    workbench: Workbench, project: list[str], shown: str, qtbot: QtBot
) -> None:
    train: Any = workbench.panels["Train"]
    assert not train.start.isEnabled()
    assert "Correct or accept" in train.reason.text()
    show(workbench, project[3], qtbot)
    assert workbench.current_correction is not None
    workbench.current_correction.accept()
    assert "held back" in train.reason.text()
    assert not train.start.isEnabled()
    show(workbench, project[0], qtbot)
    workbench.current_correction.accept()
    assert train.start.isEnabled()
    assert train.source.text() == (
        "Learns from 1 corrected or accepted image; 1 more held back to check the model."
    )


def test_a_run_is_followed_while_painting_goes_on(
    workbench: Workbench, parts: tuple[Session, Bridge], shown: str, qtbot: QtBot
) -> None:
    session, bridge = parts
    train: Any = workbench.panels["Train"]
    run = start_run(workbench, session, qtbot)
    workbench.raise_panel("Train")
    assert not train.stop.isHidden()
    assert "into nuclei-unet-r1" in train.state.text()
    for number in range(1, 6):
        bridge.put(Stepped(job=run, step=number, total=9, loss=1 / number, learning_rate=1e-3,
                           seconds_left=90))  # fmt: skip
    bridge.put(Evaluated(job=run, step=5, scores=scores(None, 0.9), is_best=True))
    qtbot.waitUntil(lambda: train.curves.points == (5, 0, 1))
    qtbot.waitUntil(lambda: train.bar.value() == 5)
    assert train.progress.text() == "Step 5 of 9, 2 min left"
    assert workbench.layers is not None
    assert workbench.layers.labels is not None
    workbench.layers.labels.paint((20, 20), 1)
    assert session.store.edit_counts(shown) == (1, 0)


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        (RunState.CANCELED, "", "Stopped. The model in use has not changed."),
        (RunState.FAILED, "The loss became nan", "failed: The loss became nan. The model in use"),
        (RunState.FAILED, "Fine-tuning failed (X: y).", "Fine-tuning failed (X: y). The model in"),
        (RunState.CRASHED, "It was killed.", "unexpectedly: It was killed. The model in use has"),
    ],
)
def test_every_end_but_the_good_one_in_words(
    workbench: Workbench,
    parts: tuple[Session, Bridge],
    qtbot: QtBot,
    state: RunState,
    reason: str,
    words: str,
) -> None:
    session, bridge = parts
    train: Any = workbench.panels["Train"]
    run = start_run(workbench, session, qtbot)
    bridge.put(Evaluated(job=run, step=0, scores=scores(0.5, 0.9), is_best=False))
    bridge.put(Finished(job=run, state=state, reason=reason))
    qtbot.waitUntil(lambda: words in train.state.text())
    assert train.start.isEnabled()
    assert train.stop.isHidden()
    assert train.use.isHidden()
    assert train.curves.isHidden()  # there was no step to see
    assert train.state.text().count("Fine-tuning") <= 1
    log = str(session.store.runs()[-1].folder / "log.txt")
    assert (log in train.state.text()) == (state is not RunState.CANCELED)


def test_the_new_model_is_compared_used_and_left_again(
    workbench: Workbench, parts: tuple[Session, Bridge], shown: str, qtbot: QtBot
) -> None:
    session, bridge = parts
    train: Any = workbench.panels["Train"]
    start_run(workbench, session, qtbot)
    finish(session, bridge, scores(0.2, 0.9), scores(0.75, 0.89))
    qtbot.waitUntil(lambda: not train.use.isHidden())
    assert [text for text in train.scores.texts if text[0] in "+-"] == ["+0.550"] * 2 + ["-0.010"]
    whole = train.scores.whole_texts
    weighted = whole.index("Frequency-weighted IoU")
    assert whole[weighted : weighted + 4] == ["Frequency-weighted IoU", "0.200", "0.750", "+0.550"]
    assert "is better" in train.verdict.text()
    window = train.window()
    workbench.raise_panel("Train")
    window.resize(1280, 720)
    for seen in (train.state, train.scores, train.use):
        qtbot.waitUntil(lambda w=seen: is_in_view(train, w))
    assert (current := current_model(session.store)) is not None
    assert current.name == "nuclei-unet"  # nothing changes by itself
    qtbot.mouseClick(train.use, LEFT)
    assert (current := current_model(session.store)) is not None
    assert current.name == "nuclei-unet-r1"
    assert list(session.jobs.values()) == [shown]  # the image on screen is predicted anew
    assert workbench.panels["Predict"].model.currentText() == "nuclei-unet-r1"
    assert train.back.text() == "Go back to nuclei-unet"
    qtbot.mouseClick(train.back, LEFT)
    assert (current := current_model(session.store)) is not None
    assert current.name == "nuclei-unet"
    # Every other model is a click away too.
    dice = model_dice(find_model("nuclei-unet"))
    assert train.models.texts == [
        ("nuclei-unet-r1", "Dice 0.750, better"),
        ("<b>nuclei-unet</b>", f"Dice {dice:.3f}, shipped"),
    ]
    assert not train.models.buttons["nuclei-unet"].isEnabled()
    qtbot.mouseClick(train.models.buttons["nuclei-unet-r1"], LEFT)
    assert (current := current_model(session.store)) is not None
    assert current.name == "nuclei-unet-r1"
    assert train.models.texts[0][0] == "<b>nuclei-unet-r1</b>"


def test_a_better_model_is_used_by_itself_only_where_that_was_asked_for(
    workbench: Workbench, parts: tuple[Session, Bridge], qtbot: QtBot
) -> None:
    session, bridge = parts
    train: Any = workbench.panels["Train"]
    habit = train.habits.editors["use_better"].widget
    assert not habit.isChecked()
    habit.setChecked(True)
    assert workbench.habits.use_better
    for number, (after, used) in enumerate(((0.5, "nuclei-unet"), (0.8, "nuclei-unet-r2")), 1):
        start_run(workbench, session, qtbot)
        finish(session, bridge, scores(0.5, 0.9), scores(after, 0.9))
        name = f"nuclei-unet-r{number}"
        qtbot.waitUntil(lambda n=name: n in train.use.text())
        assert (current := current_model(session.store)) is not None
        assert current.name == used
    assert "is better" in train.verdict.text()


def test_words_without_a_score_say_why() -> None:
    rows = score_rows(scores(None, None), scores(0.5, 0.9))
    assert [row[1:] for row in rows] == [("\N{EN DASH}", "0.500", "")] * 2
    assert "no score can be given" in verdict_words(judge(None, None), "base-r1")
    five = verdict_words(judge(scores(0.5, 0.9), scores(0.8, 0.5)), "base-r1")
    assert five.startswith("<b>base-r1: better</b>")
    assert "better on the 5 images held back: Dice +0.300" in five
    assert "It has forgotten part of what it knew" in five


def test_words_of_devices_and_outcomes() -> None:
    assert device_words("the processor: no card") == "the processor (no card)"
    assert device_words("the graphics card X") == "the graphics card X"
    ends = [Finished(job=str(n), state=s) for n, s in
            enumerate((RunState.COMPLETED, RunState.CANCELED, RunState.CANCELED))]  # fmt: skip
    assert outcome_words(ends) == "Stopped: 1 of 3 images predicted."
    assert outcome_words(ends[1:2]) == "Stopped: 0 of 1 image predicted."
    assert why_not_train([]) == "Correct or accept at least one image in the Correct panel first."
    assert learning_words([]) == "Nothing to learn from yet."


def test_an_image_taken_out_leaves_the_list_and_keeps_its_labels(
    workbench: Workbench, shown: str, qtbot: QtBot
) -> None:
    session = workbench.session
    assert session is not None
    workbench.viewer.layers["Labels"].paint((10, 10), 1)
    panel = workbench.panels["Project"]
    assert isinstance(panel, ProjectPanel)
    count = panel.model.rowCount()
    panel.remove(shown)
    assert panel.model.rowCount() == count - 1
    assert shown not in {s.id for s in session.store.samples()}
    qtbot.waitUntil(lambda: workbench.current_correction is not None, timeout=20_000)
    assert workbench.current_sample_id != shown
    assert list((session.store.folder / "removed").glob(f"{shown}-*/r0001.tif"))

"""The Trust panel in a real window, on stored predictions of real small models."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from segdesk.cli import run
from segdesk.config.inference import InferenceConfig
from segdesk.core.classes import ClassMap
from segdesk.core.sample import Split
from segdesk.io.store import ProjectStore
from segdesk.session.correcting import Correction
from segdesk.session.predicting import request
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session
from segdesk.training.inline import InlineBackend
from segdesk.ui.workbench import Workbench

SECONDS = 1000
COUNT = 4
LEFT = Qt.MouseButton.LeftButton


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    discs: Callable[..., tuple[np.ndarray, np.ndarray]],
    make_model: Callable[..., Path],
) -> Path:
    """A project of four labelled images, three held back; tiny has predicted, other has not."""
    tmp_path = tmp_path_factory.mktemp("trust")
    session = Session(
        ProjectStore.create(tmp_path / "p.segdesk", ClassMap.from_names(["background", "nucleus"]))
    )
    for seed, name in enumerate(("tiny", "other")):
        make_model(session.store.folder / "models" / name, seed=seed + 2)
    new = []
    for seed in range(COUNT):
        path = tmp_path / f"cell{seed}.png"
        Image.fromarray(discs(seed)[0]).save(path)
        new.append(NewImage(path, split=Split.VALIDATION if seed else Split.TRAIN))
    for seed, sample in enumerate(add_images(session, new).samples):
        correction = Correction(session, sample)
        correction.replace(discs(seed)[1], "truth")
        correction.accept()
    session.store.set("current_model", "tiny")
    session.attach(InlineBackend(session.handle))
    request(session, session.store.samples(), InferenceConfig(device="cpu"))
    session.close()
    return tmp_path / "p.segdesk"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "p.segdesk"))


@pytest.fixture
def panel(workbench: Workbench, folder: Path, qtbot: QtBot) -> Any:
    """The panel with its first answer."""
    workbench.open_project(folder)
    trust: Any = workbench.panels["Trust"]
    workbench.raise_panel("Trust")
    qtbot.waitUntil(lambda: "3 images" in trust.summary.text(), timeout=20 * SECONDS)
    return trust


def choose(box: Any, text: str) -> None:
    box.setCurrentIndex(box.findText(text))
    box.activated.emit(box.currentIndex())


def command_line(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    capsys.readouterr()
    assert run(["trust", str(folder), "--device", "cpu", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def percents(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) %", text)]


def test_without_a_project_it_says_what_to_do_first(workbench: Workbench) -> None:
    trust: Any = workbench.panels["Trust"]
    assert trust.reason.text() == "Open a project first."
    assert not trust.scope.isEnabled()
    assert trust.predict.isHidden()
    assert trust.keep.isVisible() is False


def test_the_numbers_are_those_of_the_command_line(
    panel: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = command_line(folder, capsys)
    numbers = dict(panel.figures.texts)
    calibration, margin = said["calibration"], said["uncertainty"]["margin"]
    assert numbers["Images"] == "3"
    for title, expected in (
        ("Calibration error, points", 100 * calibration["ece_before"]),
        ("… with the temperature", 100 * calibration["ece_after"]),
        ("Temperature", calibration["temperature"]),
        ("margin: AUROC", margin["auroc"]),
        ("margin: area under risk and coverage", margin["aurc"]),
    ):
        assert float(numbers[title]) == pytest.approx(expected, abs=0.1, rel=0.01), title
    shares = percents(panel.band.text())
    assert shares == [
        pytest.approx(100 * said["band"]["wrong"], abs=1),
        pytest.approx(100 * said["band"]["right"], abs=1),
    ]
    counts = said["histograms"]["all"]
    for curve, key in ((panel.histograms[0].right, "right"), (panel.histograms[0].wrong, "wrong")):
        expected = np.sqrt(np.array(counts[key]) / sum(counts[key]))
        np.testing.assert_allclose(curve.getData()[1], expected, atol=0.03)


def test_moving_the_band_and_choosing_a_class_change_the_sentence(
    panel: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = panel.band.text()
    assert "between 0.20 and 0.80" in first
    panel.histograms[0].region.setRegion((0.4, 0.6))
    said = command_line(folder, capsys, "--band", "0.4,0.6")
    assert "between 0.40 and 0.60" in panel.band.text()
    assert percents(panel.band.text())[0] == pytest.approx(100 * said["band"]["wrong"], abs=1)
    assert [row[0] for row in panel.figures.texts if row[0].startswith("Wrong pixels from")] == [
        "Wrong pixels from 0.40 to 0.60"
    ]
    choose(panel.true_class, "Pixels that are truly nucleus")
    nucleus = said["histograms"]["classes"]["nucleus"]
    assert "that are truly nucleus" in panel.band.text()
    assert percents(panel.band.text())[0] == pytest.approx(100 * nucleus["wrong_within"], abs=1)
    # The band is about a half, whatever is pulled.
    panel.histograms[0].region.setRegion((0.6, 0.9))
    low, high = panel.histograms[0].band
    assert low < 0.5 < high


def test_a_temperature_is_kept_and_still_there_another_day(
    panel: Any, workbench: Workbench, folder: Path, qtbot: QtBot,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert panel.keep.isEnabled()
    assert panel.kept.isHidden()
    panel.ensureWidgetVisible(panel.keep)
    qtbot.mouseClick(panel.keep, LEFT)
    assert "Kept on" in panel.kept.text()
    assert not panel.keep.isEnabled()
    assert panel.keep.toolTip() == "This temperature is kept already."
    assert run(["models", "show", "tiny", "--project", str(folder), "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)["calibration"]
    assert f"temperature {kept['temperature']:.2f}" in panel.kept.text()
    workbench.close()
    assert panel.summary.text() == ""
    workbench.open_project(folder)
    qtbot.waitUntil(lambda: "Kept on" in panel.kept.text(), timeout=20 * SECONDS)


def test_another_model_is_asked_for_what_is_missing_and_compared(
    panel: Any, folder: Path, qtbot: QtBot, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real prediction process: its results come in by themselves."""
    choose(panel.other, "other")
    qtbot.waitUntil(panel.predict.isVisible, timeout=20 * SECONDS)
    assert panel.reason.text() == "other has not predicted the labelled images yet."
    assert panel.predict.text() == "Predict the missing 3 images with other"
    assert panel.histograms[1].isHidden()
    qtbot.mouseClick(panel.predict, LEFT)
    assert panel.predict.toolTip() == "They are being predicted."
    qtbot.waitUntil(
        lambda: panel.predict.isHidden() and panel.figures.texts[0] == ["", "tiny", "other"],
        timeout=120 * SECONDS,
    )
    assert panel.histograms[1].isVisible()
    said = command_line(folder, capsys, "--against", "other")
    rows = {row[0]: row[1:] for row in panel.figures.texts}
    temperatures = [r["calibration"]["temperature"] for r in (said, said["against"])]
    assert [float(t) for t in rows["Temperature"]] == [
        pytest.approx(t, rel=0.02) for t in temperatures
    ]
    # One band for both, whichever is pulled.
    panel.histograms[1].region.setRegion((0.3, 0.7))
    assert panel.histograms[0].band == (0.3, 0.7)
    assert panel.band.text().count("between 0.30 and 0.70") == 2
    choose(panel.other, "No other model")
    qtbot.waitUntil(panel.histograms[1].isHidden, timeout=20 * SECONDS)


def test_an_accepted_image_counts_at_once_and_images_learnt_from_are_named(
    panel: Any, workbench: Workbench, qtbot: QtBot
) -> None:
    session = workbench.session
    assert session is not None
    last = session.store.samples()[-1]
    Correction(session, last).take_back()
    correction = Correction(session, session.store.sample(last.id))
    before = panel.summary.text()
    correction.replace(1 - correction.annotation.labels, "turned over")
    correction.accept()
    qtbot.waitUntil(lambda: panel.summary.text() != before, timeout=20 * SECONDS)
    assert "3 images" in panel.summary.text()
    assert panel.warning.isHidden()
    choose(panel.scope, "All labelled images")
    qtbot.waitUntil(lambda: "4 images" in panel.summary.text(), timeout=20 * SECONDS)
    assert "flattered by images it learnt from" in panel.warning.text()


def test_a_project_nobody_labelled_says_what_to_do(
    workbench: Workbench, project: list[str], qtbot: QtBot
) -> None:
    trust: Any = workbench.panels["Trust"]
    workbench.raise_panel("Trust")
    qtbot.waitUntil(lambda: "accept them" in trust.reason.text(), timeout=20 * SECONDS)
    assert trust.predict.text() == "Predict the missing 1 image with nuclei-unet"
    assert trust.predict.isEnabled()
    choose(trust.scope, "All labelled images")
    qtbot.waitUntil(lambda: "No image is labelled yet" in trust.reason.text())
    assert trust.predict.isHidden()

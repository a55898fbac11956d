"""Starting a run from a new, untrained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from segdesk.core.classes import ClassMap
from segdesk.jobs.messages import Architecture, Ready
from segdesk.session.projects import NewImage, add_images
from segdesk.session.workers import WorkerBackend
from segdesk.ui.workbench import Workbench
from tests.ui.conftest import nuclei

READY = Ready(
    device="cpu",
    reason="",
    architectures=(
        Architecture(name="unet", title="U-Net", year=2015),
        Architecture(name="wnet", title="W-Net", year=2017, needs_labels=False),
    ),
)


def choose(panel: Any, name: str) -> None:
    panel.origin.choice.setCurrentIndex(panel.origin.choice.findData(name))


@pytest.fixture
def manifests(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What runs are given; nothing computes."""
    found: list[dict[str, Any]] = []

    def train(self: WorkerBackend, run_id: str, folder: Path) -> None:
        found.append(json.loads((folder / "manifest.json").read_text()))

    monkeypatch.setattr(WorkerBackend, "train", train)
    return found


def test_a_new_model_is_built_as_the_form_says(
    workbench: Workbench, shown: str, qtbot: QtBot, manifests: list[dict[str, Any]], tmp_path: Path
) -> None:
    panel: Any = workbench.panels["Train"]
    workbench.raise_panel("Train")
    assert panel.origin.form.isHidden()
    assert workbench.session is not None
    workbench.session.handle(READY)
    texts = [panel.origin.choice.itemText(i) for i in range(panel.origin.choice.count())]
    assert texts == ["The model in use (nuclei-unet)", "New U-Net (2015)", "New W-Net (2017)"]
    choose(panel, "unet")
    assert not panel.origin.form.isHidden()
    assert panel.form.value().steps == 1000
    assert panel.start.text() == "Start training"
    editors = panel.origin.form.editors
    editors["head"].widget.setCurrentText("B")
    assert "every class" in editors["head"].note.text()
    editors["activation"].widget.setCurrentText("selu")
    editors["variant"].widget.setCurrentText("paper")
    editors["encoder_weights"].widget.setText(str(tmp_path / "weights.safetensors"))
    assert workbench.current_correction is not None
    workbench.current_correction.replace(np.eye(64, dtype=np.uint8), "truth")
    workbench.current_correction.accept()
    qtbot.mouseClick(panel.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: bool(manifests))  # the project is looked at first
    (manifest,) = manifests
    assert manifest["base_folder"] is None
    assert manifest["architecture"] == "unet"
    assert manifest["variant"] == "paper"
    assert manifest["options"] == {"head": "B", "activation": "selu"}
    assert manifest["encoder_weights"] == str(tmp_path / "weights.safetensors")
    assert manifest["channels"] == 3
    assert manifest["new_model"] == "unet-r1"


def test_one_that_needs_no_labels_starts_without(
    workbench: Workbench, shown: str, qtbot: QtBot, manifests: list[dict[str, Any]]
) -> None:
    panel: Any = workbench.panels["Train"]
    workbench.raise_panel("Train")
    assert workbench.session is not None
    workbench.session.handle(READY)
    choose(panel, "unet")
    assert not panel.start.isEnabled()
    choose(panel, "wnet")
    assert "without labels" in panel.origin.note.text()
    assert panel.start.isEnabled()
    qtbot.mouseClick(panel.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: bool(manifests))  # the project is looked at first
    (manifest,) = manifests
    # The image held back for validation is not learnt from, labelled or not.
    assert [(s["labels"], s["split"]) for s in manifest["samples"]] == [(None, "train")] * 3


def test_images_of_other_channels_are_refused_by_name(
    workbench: Workbench, tmp_path: Path, qtbot: QtBot, manifests: list[dict[str, Any]]
) -> None:
    session = workbench.new_project(
        tmp_path / "mixed.segdesk", ClassMap.from_names(("background", "nucleus"))
    )
    Image.fromarray(nuclei(0)).save(tmp_path / "rgb.png")
    five = np.zeros((64, 64, 5), np.uint8)
    five[:32] = 200
    tifffile.imwrite(tmp_path / "five.tif", five, metadata={"axes": "YXS"})
    added = add_images(session, [NewImage(tmp_path / n) for n in ("rgb.png", "five.tif")])
    assert not added.refused
    session.handle(READY)
    panel: Any = workbench.panels["Train"]
    workbench.raise_panel("Train")
    choose(panel, "wnet")
    qtbot.mouseClick(panel.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: bool(panel.checks.hints))
    assert not panel.start.isEnabled()
    assert manifests == []
    said = panel.start.toolTip()
    assert said in panel.checks.hints[0].text()
    assert "rgb.png has 3 channels" in said or "five.tif has 5 channels" in said


def test_the_suggested_steps_leave_a_chosen_number_alone(workbench: Workbench, shown: str) -> None:
    panel: Any = workbench.panels["Train"]
    assert workbench.session is not None
    workbench.session.handle(READY)
    choose(panel, "unet")
    choose(panel, "")
    assert panel.form.value().steps == 200
    panel.form.editors["steps"].write(77)
    choose(panel, "unet")
    assert panel.form.value().steps == 77


def test_a_loss_says_when_to_use_it(workbench: Workbench) -> None:
    panel: Any = workbench.panels["Train"]
    loss = panel.form.editors["loss"]
    assert "good for most images" in loss.note.text()
    loss.widget.setCurrentText("border_cross_entropy")
    assert "Narrow gaps" in loss.note.text()

"""Uncertain places, the colours of small uncertainties and the cost, in the real window."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from segdesk.config.inference import InferenceConfig
from segdesk.core.prediction import Prediction, UncertaintyKind
from segdesk.core.sample import Status
from segdesk.io.labels import write_plane
from segdesk.io.packages import hash_weights
from segdesk.session.models import current_model
from segdesk.session.projects import NewImage, add_images
from segdesk.ui.workbench import Workbench
from tests.ui.conftest import nuclei, show

LEFT = Qt.MouseButton.LeftButton
SIZE = 320
SCORE = 0.01


@pytest.fixture
def predicted(workbench: Workbench, project: list[str], tmp_path: Path) -> str:
    """An image with two uncertain places, predicted in 30 s by eight passes of dropout."""
    session = workbench.session
    assert session is not None
    path = tmp_path / "large.png"
    Image.fromarray(nuclei(9, SIZE)).save(path)
    (sample,) = add_images(session, [NewImage(path)]).samples
    entry = current_model(session.store)
    assert entry is not None
    folder = session.store.folder / "predictions" / sample.id / "p"
    folder.mkdir(parents=True)
    values = np.zeros((SIZE, SIZE), np.float32)
    values[40:80, 40:80], values[230:260, 200:230] = 0.004, 0.002
    write_plane(folder / "uncertainty.tif", values)
    write_plane(folder / "labels.tif", np.zeros((SIZE, SIZE), np.uint8))
    config = InferenceConfig(uncertainty=UncertaintyKind.DROPOUT, passes=8)
    made = {"config": config.model_dump(mode="json"), "seconds": 30.0}
    (folder / "provenance.json").write_text(json.dumps(made), "utf-8")
    prediction = Prediction(sample.id, entry.name, folder, SCORE)
    session.store.record_prediction(prediction, hash_weights(entry.folder))
    session.put_sample(replace(sample, status=Status.PREDICTED, score=SCORE))
    return sample.id


def middle(workbench: Workbench) -> tuple[float, float]:
    y, x = workbench.viewer.scene.camera.center[-2:]
    return float(y), float(x)


def test_the_button_goes_from_place_to_place_and_round_again(
    workbench: Workbench, project: list[str], predicted: str, qtbot: QtBot
) -> None:
    panel: Any = workbench.panels["Correct"]
    show(workbench, project[0], qtbot)
    assert not panel.place.isEnabled()
    assert "Predict this image first" in panel.place.toolTip()
    show(workbench, predicted, qtbot)
    camera = workbench.viewer.scene.camera
    whole = camera.zoom
    for words, place in (("Place 1 of 2", (60, 60)), ("Place 2 of 2", (245, 215)),
                         ("Place 1 of 2", (60, 60))):  # fmt: skip
        qtbot.mouseClick(panel.place, LEFT)
        qtbot.waitUntil(lambda words=words: words in panel.place_hint.text())  # type: ignore[misc]
        assert np.allclose(middle(workbench), place, atol=12)
        assert camera.zoom > 1.5 * whole
    assert "mean uncertainty 0." in panel.place_hint.text()
    show(workbench, project[0], qtbot)
    assert panel.place_hint.text() == ""


def test_small_uncertainties_of_several_passes_are_seen(
    workbench: Workbench, predicted: str, qtbot: QtBot
) -> None:
    show(workbench, predicted, qtbot)
    assert workbench.layers is not None
    layer = workbench.layers.uncertainty
    assert layer is not None
    low, high = layer.contrast_limits
    assert low == 0
    # The worst hundredth, which is in the first place, is drawn as unsure or worse.
    assert (layer.data >= high / 2).mean() >= SCORE
    assert layer.data.max() == pytest.approx(0.004)


def test_the_cost_stands_beside_the_buttons_before_it_runs(
    workbench: Workbench, predicted: str, qtbot: QtBot
) -> None:
    panel: Any = workbench.panels["Predict"]
    show(workbench, predicted, qtbot)
    panel.form.set_value(InferenceConfig(uncertainty=UncertaintyKind.DROPOUT, passes=8))
    assert "About 30 s for this image, 8 passes." in panel.cost.text()
    assert "for 5 images, 8 passes each" in panel.cost.text()
    panel.form.set_value(InferenceConfig(uncertainty=UncertaintyKind.DROPOUT, passes=16))
    assert "About 1 min for this image, 16 passes." in panel.cost.text()
    panel.form.set_value(InferenceConfig(uncertainty=UncertaintyKind.ENSEMBLE))
    assert "has no other rounds here" in panel.cost.text()


def test_before_the_first_prediction_the_cost_is_not_known(
    workbench: Workbench, shown: str
) -> None:
    panel: Any = workbench.panels["Predict"]
    assert panel.cost.text().startswith("1 pass for each image")
    assert "known after the first prediction" in panel.cost.text()

"""Refining the image on screen, with the real engine process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from segdesk.config.refinement import CrfConfig
from segdesk.session.projects import NewImage, add_images
from segdesk.ui.layers import REFINED
from segdesk.ui.workbench import Workbench
from tests.ui.conftest import nuclei, show

LEFT = Qt.MouseButton.LeftButton
SECONDS = 1000


@pytest.fixture
def box(workbench: Workbench) -> Any:
    made = workbench.panels["Predict"].refine
    made.fold.expand(animate=False)
    return made


@pytest.fixture
def predict(workbench: Workbench, qtbot: QtBot) -> Callable[[], np.ndarray]:
    def order() -> np.ndarray:
        session = workbench.session
        assert session is not None
        told: list[str] = []
        workbench.sample_shown.connect(told.append)
        qtbot.mouseClick(workbench.panels["Predict"].one, LEFT)
        qtbot.waitUntil(lambda: bool(told) and not session.jobs, timeout=60 * SECONDS)
        workbench.sample_shown.disconnect(told.append)
        return labels(workbench).copy()

    return order


def labels(workbench: Workbench) -> np.ndarray:
    assert workbench.layers is not None
    assert workbench.layers.labels is not None
    return workbench.layers.labels.data


def preview(workbench: Workbench, box: Any, qtbot: QtBot) -> np.ndarray:
    qtbot.mouseClick(box.preview, LEFT)
    assert not box.preview.isEnabled()
    qtbot.waitUntil(lambda: REFINED in workbench.viewer.layers, timeout=60 * SECONDS)
    qtbot.waitUntil(box.use.isVisible, timeout=10 * SECONDS)
    return workbench.viewer.layers[REFINED].data


def files(workbench: Workbench) -> list[str]:
    assert workbench.session is not None
    folder = workbench.session.store.folder / "predictions"
    return sorted(p.name for p in folder.glob("*/*") if "crf" in p.name)


@pytest.mark.slow
def test_a_preview_is_dropped_or_used_and_left_again(
    workbench: Workbench, shown: str, box: Any, qtbot: QtBot, predict: Callable[[], np.ndarray]
) -> None:
    assert not box.preview.isEnabled()
    assert box.reason.text() == "Predict this image first."
    assert workbench.layers is not None
    layer = workbench.layers.labels
    assert layer is not None
    layer.mode, layer.brush_size = "paint", 2
    layer.paint((2, 2), 1)  # spoken about: refining leaves it
    own = predict()
    assert box.preview.isEnabled()
    # A strong smoothing, so that there is something to see.
    box.form.set_value(CrfConfig(smoothness_px=4, smoothness_weight=40))

    refined = preview(workbench, box, qtbot).copy()
    assert (refined != own).any()
    assert refined[2, 2] == 0
    np.testing.assert_array_equal(labels(workbench), own)  # nothing changes by itself
    assert workbench.viewer.layers.selection.active is layer
    assert "% of the pixels would change" in box.state.text()
    qtbot.mouseClick(box.drop, LEFT)
    assert REFINED not in workbench.viewer.layers
    assert not box.use.isVisible()
    assert files(workbench) == []
    np.testing.assert_array_equal(labels(workbench), own)

    preview(workbench, box, qtbot)
    qtbot.mouseClick(box.use, LEFT)
    qtbot.waitUntil(lambda: not np.array_equal(labels(workbench), own), timeout=10 * SECONDS)
    changed = labels(workbench)
    assert changed[2, 2] == 1
    assert workbench.current_correction is not None
    unseen = workbench.current_correction.annotation.supervision == 0
    np.testing.assert_array_equal(changed[unseen], refined[unseen])
    np.testing.assert_array_equal(changed[~unseen], own[~unseen])
    assert REFINED not in workbench.viewer.layers
    (folder,) = files(workbench)
    assert folder.endswith("-crf")

    qtbot.waitUntil(box.back.isVisible)
    qtbot.mouseClick(box.back, LEFT)
    qtbot.waitUntil(lambda: np.array_equal(labels(workbench), own), timeout=10 * SECONDS)
    qtbot.waitUntil(lambda: not box.back.isVisible())


def test_a_preview_is_called_off_or_left_behind(
    workbench: Workbench, project: list[str], box: Any, qtbot: QtBot, tmp_path: Path,
    predict: Callable[[], np.ndarray],
) -> None:  # fmt: skip
    assert workbench.session is not None
    Image.fromarray(nuclei(7, 300)).save(tmp_path / "large.png")
    (large,) = add_images(workbench.session, [NewImage(tmp_path / "large.png")]).samples
    show(workbench, large.id, qtbot)
    own = predict()
    box.form.set_value(CrfConfig(iterations=50))
    qtbot.mouseClick(box.preview, LEFT)
    qtbot.waitUntil(lambda: box.bar.value() > 0, timeout=60 * SECONDS)
    qtbot.mouseClick(box.cancel, LEFT)
    qtbot.waitUntil(lambda: box.state.text() == "Stopped.", timeout=60 * SECONDS)
    assert box.preview.isEnabled()
    assert not box.cancel.isVisible()
    assert files(workbench) == []
    np.testing.assert_array_equal(labels(workbench), own)

    # Another image is opened over it: its outlines go, and so do its files.
    box.form.set_value(CrfConfig(iterations=1))
    preview(workbench, box, qtbot)
    show(workbench, project[0], qtbot)
    assert REFINED not in workbench.viewer.layers
    assert not box.use.isVisible()
    assert files(workbench) == []

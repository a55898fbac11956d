"""The Compare panel in a real window, on predictions stored in a real project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from napari import Viewer
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from segdesk.core.classes import ClassMap
from segdesk.core.prediction import Prediction
from segdesk.core.run import RunState
from segdesk.core.sample import Split
from segdesk.io.labels import write_plane
from segdesk.io.packages import CARD, bundled_packages, hash_weights, install_package, read_card
from segdesk.jobs.messages import Finished, PredictionReady, PredictOrder
from segdesk.session.comparing import ComparedImage, Comparison
from segdesk.session.models import find_model
from segdesk.session.session import Session
from segdesk.session.workers import WorkerBackend
from segdesk.ui.comparison_layers import LINE, ComparisonLayers
from segdesk.ui.workbench import Workbench
from tests.ui.conftest import show

LEFT = Qt.MouseButton.LeftButton
SIZE = 64
FIRST, SECOND = "nuclei-unet", "nuclei-unet-r1"


def half(columns: int) -> np.ndarray:
    """A mask whose left columns are nucleus."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, :columns] = 1
    return mask


TRUTH = half(32)


@pytest.fixture
def pair(workbench: Workbench, project: list[str], qtbot: QtBot) -> Session:
    """Two models in the project; its first two images are accepted."""
    session = workbench.session
    assert session is not None
    folder = session.store.folder / "models" / SECOND
    install_package(bundled_packages()[FIRST], folder)
    card = read_card(folder).model_copy(update={"name": SECOND, "base_model": FIRST})
    (folder / CARD).write_text(card.model_dump_json())
    for sample in project[1::-1]:
        show(workbench, sample, qtbot)
        assert workbench.current_correction is not None
        workbench.current_correction.replace(TRUTH, "truth")
        workbench.current_correction.accept()
    session.events.models_added.emit(SECOND)
    return session


def store(session: Session, model: str, sample: str, mask: np.ndarray) -> PredictionReady:
    """Write what a model says of an image, and return the event that tells of it."""
    weights = hash_weights(find_model(model, session.store).folder)
    folder = session.store.folder / "predictions" / sample / f"{model}-{weights[:8]}"
    folder.mkdir(parents=True)
    prediction = Prediction(sample, model, folder, 0.1)
    write_plane(prediction.labels_path, mask)
    write_plane(prediction.uncertainty_path, mask.astype(np.float32))
    session.store.record_prediction(prediction, weights)
    return PredictionReady(
        job="", sample=sample, model=model, weights_sha256=weights, folder=folder, score=0.1
    )


def test_two_models_are_compared_and_swiped_and_the_worst_image_is_a_click_away(
    workbench: Workbench, pair: Session, project: list[str], qtbot: QtBot
) -> None:
    for sample, first, second in ((project[0], half(16), TRUTH), (project[1], TRUTH, half(48))):
        store(pair, FIRST, sample, first)
        store(pair, SECOND, sample, second)
    panel: Any = workbench.panels["Compare"]
    layers = workbench.viewer.layers
    workbench.raise_panel("Compare")
    assert (panel.first.currentText(), panel.second.currentText()) == (FIRST, SECOND)
    qtbot.mouseClick(panel.compare, LEFT)
    qtbot.waitUntil(lambda: "Changes" in layers)
    assert panel.rows.sample_of(0) == project[1]
    assert "1 got better, 1 got worse" in panel.summary.text()
    np.testing.assert_array_equal(np.unique(layers["Changes"].data[:, 16:32]), [1])
    assert not layers["Changes"].data[:, :16].any()
    assert panel.legend.texts == ["fixed 25.0%", "broken 0.0%", "still wrong 0.0%"]
    assert not layers["Labels"].visible
    assert layers.selection.active is layers["Labels"]
    # A swipe between the two masks.
    panel.choice.setCurrentIndex(1)
    panel.choice.activated.emit(1)
    assert "Changes" not in layers
    panel.slider.setValue(20)
    qtbot.waitUntil(
        lambda: (
            layers["Swipe"].data[0].tolist() == [1] * 16 + [0] * 4 + [LINE] + [1] * 11 + [0] * 32
        )
    )
    panel.slider.setValue(SIZE)
    qtbot.waitUntil(lambda: np.array_equal(layers["Swipe"].data, half(16)))
    panel.slider.setValue(0)
    qtbot.waitUntil(lambda: np.array_equal(layers["Swipe"].data, TRUTH))
    # The image that got worse is a click away, and what is painted there counts at once.
    panel.choice.setCurrentIndex(0)
    place = panel.table.visualRect(panel.rows.index(0, 0)).center()
    qtbot.mouseClick(panel.table.viewport(), LEFT, pos=place)
    qtbot.waitUntil(lambda: "Changes" in layers and panel.legend.texts[1] == "broken 25.0%")
    assert workbench.current_sample_id == project[1]
    correction = workbench.current_correction
    assert correction is not None
    correction.replace(half(48), "second thoughts")
    workbench.strokes_changed.emit()
    qtbot.waitUntil(lambda: panel.legend.texts[:2] == ["fixed 25.0%", "broken 0.0%"])
    assert "2 got better, 0 got worse" in panel.summary.text()
    # Another panel: the image is as it was.
    workbench.raise_panel("Correct")
    qtbot.waitUntil(lambda: "Changes" not in layers)
    assert layers["Labels"].visible
    workbench.raise_panel("Compare")
    qtbot.waitUntil(lambda: "Changes" in layers)
    workbench.close()
    assert "Changes" not in layers
    assert panel.reason.text() == "Open a project first."


def test_what_is_missing_is_predicted_first_and_can_be_called_off(
    workbench: Workbench, pair: Session, project: list[str], qtbot: QtBot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    orders: list[PredictOrder] = []
    canceled: list[str] = []
    monkeypatch.setattr(WorkerBackend, "predict", lambda _, order: orders.append(order))
    monkeypatch.setattr(WorkerBackend, "cancel", lambda _, job: canceled.append(job))
    assert workbench.bridge is not None
    store(pair, FIRST, project[0], TRUTH)
    panel: Any = workbench.panels["Compare"]
    workbench.raise_panel("Compare")
    qtbot.mouseClick(panel.compare, LEFT)
    qtbot.waitUntil(lambda: len(orders) == 3)
    asked = {(order.model, order.sample) for order in orders}
    assert asked == {(FIRST, project[1]), (SECOND, project[0]), (SECOND, project[1])}
    assert "Predicting: 0 of 3" in panel.progress.text()
    qtbot.mouseClick(panel.cancel, LEFT)
    assert canceled == [order.job for order in orders]
    for order in orders:
        workbench.bridge.put(Finished(job=order.job, state=RunState.CANCELED))
    qtbot.waitUntil(lambda: panel.reason.text() == "Canceled.")
    assert panel.compare.isEnabled()
    orders.clear()
    qtbot.mouseClick(panel.compare, LEFT)
    qtbot.waitUntil(lambda: len(orders) == 3)
    for order in orders:
        event = store(pair, order.model, order.sample, half(16))
        workbench.bridge.put(event.model_copy(update={"job": order.job}))
        workbench.bridge.put(Finished(job=order.job, state=RunState.COMPLETED))
    qtbot.waitUntil(lambda: "Dice over 2 images" in panel.summary.text())
    assert panel.bar.isHidden()


def test_one_model_is_not_enough(workbench: Workbench, project: list[str]) -> None:
    panel: Any = workbench.panels["Compare"]
    assert "one model only" in panel.reason.text()
    assert not panel.compare.isEnabled()


@pytest.mark.parametrize("planes", [(), (3,)])
def test_a_moved_swipe_looks_as_if_drawn_anew(
    make_napari_viewer: Callable[..., Viewer], planes: tuple[int, ...]
) -> None:
    """Only the columns passed over go to the screen; what is there is right all the same."""
    viewer = make_napari_viewer(show=True)
    random = np.random.default_rng(0)
    first, second = random.integers(0, 3, (2, *planes, 300, 900), np.uint8)
    viewer.add_image(np.zeros((*planes, 300, 900), np.uint8))
    layers = ComparisonLayers(viewer, ClassMap.from_names(("background", "a", "b")))
    row = ComparedImage("x", "x", Split.TRAIN, 0, 0, 0, 0, None)
    layers.show_swipe(Comparison(first, second, first, row), 450, ())
    assert layers.swipe is not None
    if planes:
        viewer.dims.set_current_step(0, 1)
    uploaded: list[int] = []
    layers.swipe.events.labels_update.connect(lambda event: uploaded.append(event.data.size))
    for column in (470, 200, 0, 900, 640):
        layers.move_swipe(column)
        moved = viewer.screenshot(flash=False)
        layers.swipe.refresh()
        assert (viewer.screenshot(flash=False) == moved).all(), column
    line = layers.swipe.data[..., 639:641]
    assert (line == LINE).all()
    assert (layers.swipe.data[..., :639] == first[..., :639]).all()
    assert (layers.swipe.data[..., 641:] == second[..., 641:]).all()
    assert uploaded[0] < 300 * 30  # not the 270,000 pixels of the layer


def test_a_large_image_is_compared_with_views_that_get_coarser(
    make_napari_viewer: Callable[..., Viewer], qtbot: QtBot
) -> None:
    viewer = make_napari_viewer(show=True)
    side = 4200
    viewer.add_image(np.zeros((side, side), np.uint8))
    first, second = np.zeros((side, side), np.uint8), np.ones((side, side), np.uint8)
    layers = ComparisonLayers(viewer, ClassMap.from_names(("background", "a")))
    row = ComparedImage("x", "x", Split.TRAIN, 0, 0, 0, 0, None)
    found = Comparison(first, second, second, row)

    def is_drawn(column: int) -> bool:
        """Tell whether a column in the middle row of the image is covered."""
        viewer.scene.camera.center = (0, side / 2, column)
        shot = viewer.screenshot(flash=False)
        return bool(shot[shot.shape[0] // 2, shot.shape[1] // 2, :3].any())

    layers.show_swipe(found, side // 2, ())
    assert layers.swipe is not None
    assert layers.swipe.multiscale
    assert np.shares_memory(layers.swipe.data[0], layers.swipe.data[1])
    for column in (side // 2, 1000, 3200):
        layers.move_swipe(column)
        for zoom in (0.1, 1.0):
            viewer.scene.camera.zoom = zoom
            qtbot.waitUntil(lambda c=column: is_drawn(c + 200) and not is_drawn(c - 200))
    layers.show_changes(found, ())
    assert layers.changes is not None
    assert layers.changes.multiscale
    qtbot.waitUntil(lambda: is_drawn(500))

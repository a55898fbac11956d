"""A prediction that shows while it is being made: a real engine, a real window."""

from __future__ import annotations

import time
from pathlib import Path

import napari
import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QWidget

from segdesk.config.inference import InferenceConfig
from segdesk.core.annotation import Supervision
from segdesk.core.classes import ClassMap
from segdesk.core.run import RunState
from segdesk.jobs.messages import Finished, PartsPredicted
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session
from segdesk.ui.workbench import Workbench

SECONDS = 1000
SIDE = 1200


class Heard:
    """Parts and ends of predictions, in the order they came."""

    def __init__(self, session: Session) -> None:
        self.parts: list[PartsPredicted] = []
        self.ends: list[Finished] = []
        session.events.parts_predicted.connect(self.parts.append)
        session.events.job_finished.connect(self.ends.append)

    def boxes(self) -> list[tuple[int, int, int]]:
        """Plane and middle of each part."""
        return [
            (event.z, part.top + part.height // 2, part.left + part.width // 2)
            for event in self.parts
            for part in event.parts
        ]


@pytest.fixture
def large(workbench: Workbench, tmp_path: Path, qtbot: QtBot) -> list[str]:
    """A project of a large image, on screen, and a stack; small tiles."""
    session = workbench.new_project(
        tmp_path / "p.segdesk", ClassMap.from_names(("background", "nucleus"))
    )
    random = np.random.default_rng(0)
    pixels = random.integers(0, 30, (SIDE, SIDE)).astype(np.uint8)
    pixels[SIDE // 2 :, SIDE // 2 :] += 200
    Image.fromarray(pixels).save(tmp_path / "large.png")
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([pixels[:300, :300]] * 6))
    new = [NewImage(tmp_path / name) for name in ("large.png", "stack.tif")]
    workbench.inference = InferenceConfig(tile_size=96, overlap=16)
    ids = [sample.id for sample in add_images(session, new).samples]
    bring(workbench, ids[0], qtbot)
    return ids


def canvas_of(viewer: napari.Viewer) -> QWidget:
    """The widget that the mouse paints on, found by public Qt means."""
    window = viewer.window.dock_widgets["Correct"].window()
    (canvas,) = [w for w in window.findChildren(QWidget) if "CanvasBackend" in type(w).__name__]
    return canvas


def cpu_seconds(process: psutil.Process) -> float:
    """What a process has computed so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def bring(workbench: Workbench, sample_id: str, qtbot: QtBot) -> None:
    workbench.show_sample(sample_id)
    qtbot.waitUntil(lambda: workbench.current_correction is not None, timeout=10 * SECONDS)
    qtbot.wait(50)  # drawn once, so that the layer knows its corners


@pytest.mark.slow
def test_parts_come_first_where_the_user_looks_and_a_stroke_stays(
    workbench: Workbench, large: list[str], qtbot: QtBot
) -> None:
    session, layers = workbench.session, workbench.layers
    assert session is not None
    assert layers is not None
    assert layers.labels is not None
    heard = Heard(session)
    # What is on screen: the lower right corner.
    workbench.viewer.scene.camera.zoom = 4
    workbench.viewer.scene.camera.center = (0, 1100, 1100)
    qtbot.wait(100)
    workbench.predict([large[0]])
    qtbot.waitUntil(lambda: len(heard.parts) > 1, timeout=60 * SECONDS)
    first = heard.boxes()[0]
    assert first[1] > 900
    assert first[2] > 900
    qtbot.waitUntil(lambda: layers.uncertainty is not None, timeout=10 * SECONDS)
    assert not heard.ends
    # A stroke while parts come in.
    layers.labels.mode = "paint"
    layers.labels.brush_size = 20
    layers.labels.paint((30, 30), 1)
    layers.labels.paint((30, 60), 0)
    # Elsewhere now: what is left there comes next.
    before = len(heard.boxes())
    workbench.viewer.scene.camera.center = (0, 100, 1100)
    qtbot.waitUntil(lambda: bool(heard.ends), timeout=120 * SECONDS)
    later = heard.boxes()[before:]
    top_right = [i for i, (_, y, x) in enumerate(later) if y < 200 and x > 1000]
    top_left = [i for i, (_, y, x) in enumerate(later) if y < 200 and x < 200]
    assert np.median(top_right) < np.median(top_left)
    assert heard.ends[0].state is RunState.COMPLETED
    qtbot.wait(500)
    labels = layers.labels.data
    folder = next((session.store.folder / "predictions" / large[0]).iterdir())
    predicted = tifffile.imread(folder / "labels.tif")
    told = np.zeros(labels.shape, bool)
    told[18:43, 18:73] = True
    np.testing.assert_array_equal(labels[~told], predicted[~told])
    assert labels[30, 30] == 1
    correction = workbench.current_correction
    assert correction is not None
    np.testing.assert_array_equal(correction.annotation.labels, labels)


@pytest.mark.slow
def test_parts_wait_while_a_stroke_is_drawn_and_come_after_it(
    workbench: Workbench, large: list[str], qtbot: QtBot
) -> None:
    session, layers = workbench.session, workbench.layers
    assert session is not None
    assert layers is not None
    assert layers.labels is not None
    heard = Heard(session)
    workbench.predict([large[0]])
    qtbot.waitUntil(lambda: layers.uncertainty is not None, timeout=60 * SECONDS)
    assert layers.uncertainty is not None
    layers.labels.mode, layers.labels.brush_size, layers.labels.selected_label = "paint", 9, 1
    canvas = canvas_of(workbench.viewer)
    middle, left = canvas.rect().center(), Qt.MouseButton.LeftButton
    QTest.mouseMove(canvas, middle)
    QTest.mousePress(canvas, left, pos=middle)
    assert workbench.is_painting
    qtbot.wait(300)  # what was on its way when the button went down
    drawn: list[object] = []
    layers.uncertainty.events.set_data.connect(drawn.append)
    before, known = len(heard.parts), layers.uncertainty.data.copy()
    (engine,) = (
        child for child in psutil.Process().children() if "segdesk.inference" in child.cmdline()
    )
    began, used = time.monotonic(), cpu_seconds(engine)
    for step in range(20):
        QTest.mouseMove(canvas, middle + QPoint(step, step // 2))
        qtbot.wait(50)
    assert cpu_seconds(engine) - used < 0.3 * (time.monotonic() - began), "it gives way"
    assert not heard.ends, "the prediction ended before the stroke"
    assert (len(heard.parts), drawn) == (before, [])
    np.testing.assert_array_equal(layers.uncertainty.data, known)
    QTest.mouseRelease(canvas, left, pos=middle)
    qtbot.waitUntil(lambda: len(heard.parts) > before and bool(drawn), timeout=10 * SECONDS)
    assert not workbench.is_painting
    correction = workbench.current_correction
    assert correction is not None
    assert (correction.annotation.supervision == Supervision.CORRECTED).any()
    qtbot.waitUntil(lambda: bool(heard.ends), timeout=120 * SECONDS)
    qtbot.wait(500)
    np.testing.assert_array_equal(correction.annotation.labels, layers.labels.data)
    folder = next((session.store.folder / "predictions" / large[0]).iterdir())
    told = correction.annotation.supervision != Supervision.UNSEEN
    predicted = tifffile.imread(folder / "labels.tif")
    np.testing.assert_array_equal(layers.labels.data[~told], predicted[~told])


def test_the_plane_on_screen_comes_first(
    workbench: Workbench, large: list[str], qtbot: QtBot
) -> None:
    session = workbench.session
    assert session is not None
    bring(workbench, large[1], qtbot)
    heard = Heard(session)
    workbench.viewer.dims.set_current_step(0, 4)
    qtbot.wait(100)
    workbench.predict([large[1]])
    qtbot.waitUntil(lambda: bool(heard.parts), timeout=60 * SECONDS)
    assert heard.parts[0].z == 4
    workbench.viewer.dims.set_current_step(0, 1)
    qtbot.waitUntil(lambda: bool(heard.ends), timeout=60 * SECONDS)
    order = list(dict.fromkeys(event.z for event in heard.parts))
    assert order.index(1) < order.index(0)
    assert sorted(order) == list(range(6))


@pytest.mark.slow
def test_another_image_calls_the_prediction_off_and_the_next_order_goes_on(
    workbench: Workbench, large: list[str], qtbot: QtBot
) -> None:
    session = workbench.session
    assert session is not None
    heard = Heard(session)
    workbench.predict([large[0]])
    qtbot.waitUntil(lambda: len(heard.boxes()) > 720, timeout=90 * SECONDS)
    bring(workbench, large[1], qtbot)
    qtbot.waitUntil(lambda: bool(heard.ends), timeout=10 * SECONDS)
    assert heard.ends[0].state is RunState.CANCELED
    bring(workbench, large[0], qtbot)
    heard.ends.clear()
    progress: list[int] = []
    session.events.job_progressed.connect(lambda event: progress.append(event.done))
    workbench.predict([large[0]])
    qtbot.waitUntil(lambda: bool(heard.ends), timeout=120 * SECONDS)
    assert heard.ends[0].state is RunState.COMPLETED
    assert progress[0] > 10  # of those finished before

"""Predicting multiscale images at a coarser level: real files, the real window and engine."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from napari.utils.notifications import notification_manager
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from segdesk.config.inference import InferenceConfig
from segdesk.core.annotation import BAND_PIXELS, Supervision
from segdesk.core.classes import ClassMap
from segdesk.core.prediction import UncertaintyKind
from segdesk.inference.live import pack, unpack
from segdesk.jobs.messages import Part
from segdesk.session.models import use_model
from segdesk.session.projects import NewImage, add_images
from segdesk.ui.live import unpack_parts
from segdesk.ui.panels.predict import PredictPanel
from segdesk.ui.workbench import Workbench

SECONDS = 1000
#: Of the finest level; no multiple of the reduction.
ROWS, COLUMNS = 203, 302


def write_levels(folder: Path, image: np.ndarray, steps: Sequence[int]) -> Path:
    """Write every n-th pixel of an image for each n, as OME-Zarr."""
    group = zarr.open_group(str(folder), mode="w")
    for level, step in enumerate(steps):
        group.create_array(str(level), data=image[::step, ::step], chunks=(512, 512))
    axes = [{"name": name, "type": "space"} for name in "yx"]
    datasets = [{"path": str(level)} for level in range(len(steps))]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return folder


def noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (rows, columns), np.uint8)


@pytest.fixture
def opened(
    workbench: Workbench, tmp_path: Path, make_model: Callable[..., Path], qtbot: QtBot
) -> Callable[..., list[str]]:
    """Makes a project of images with a tiny model, and brings the first on screen."""

    def bring(*paths: Path) -> list[str]:
        classes = ClassMap.from_names(("background", "nucleus"))
        session = workbench.new_project(tmp_path / "p.segdesk", classes)
        make_model(session.store.folder / "models" / "tiny", channels=1)
        use_model(session, "tiny")
        samples = add_images(session, [NewImage(path) for path in paths]).samples
        show(workbench, samples[0].id, qtbot)
        return [sample.id for sample in samples]

    return bring


def show(workbench: Workbench, sample_id: str, qtbot: QtBot) -> None:
    workbench.show_sample(sample_id)
    qtbot.waitUntil(lambda: workbench.current_correction is not None)


def panel_of(workbench: Workbench) -> PredictPanel:
    panel = workbench.panels["Predict"]
    assert isinstance(panel, PredictPanel)
    return panel


def choose(panel: PredictPanel, number: int) -> None:
    panel.level.setCurrentIndex(number)
    panel.level.activated.emit(number)


def press(workbench: Workbench, button: str, qtbot: QtBot) -> None:
    """Press a button of the Predict panel and wait for all that it orders."""
    workbench.raise_panel("Predict")
    ends: list[object] = []
    session = workbench.session
    assert session is not None
    session.events.job_finished.connect(ends.append)
    qtbot.mouseClick(getattr(panel_of(workbench), button), Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: bool(ends) and not session.jobs)
    session.events.job_finished.disconnect(ends.append)


def stored(workbench: Workbench, sample_id: str) -> tuple[np.ndarray, dict[str, object]]:
    """Return the labels of a prediction as they are on disk, and its provenance."""
    session = workbench.session
    assert session is not None
    prediction = session.store.prediction(sample_id, "tiny")
    assert prediction is not None
    made = json.loads((prediction.folder / "provenance.json").read_text("utf-8"))
    return tifffile.imread(prediction.labels_path), made


def enlarged(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, values.shape, strict=True))
    return values[rows][:, columns]


def test_a_level_is_chosen_predicted_shown_in_place_and_corrected(
    workbench: Workbench, opened: Callable[..., list[str]], tmp_path: Path, qtbot: QtBot
) -> None:
    image = noise(ROWS, COLUMNS)
    path = write_levels(tmp_path / "levels.ome.zarr", image, (1, 2, 4))
    Image.fromarray(image[:64, :64]).save(tmp_path / "plain.png")
    sample, plain = opened(path, tmp_path / "plain.png")
    panel = panel_of(workbench)
    assert [panel.level.itemText(n) for n in range(panel.level.count())] == [
        "Full size: 302 x 203 pixels",
        "1: 151 x 102 pixels, 2 times smaller",
        "2: 76 x 51 pixels, 4 times smaller",
    ]
    assert panel.level.currentIndex() == 0  # full size unless asked
    choose(panel, 2)
    assert "brought to full size" in panel.level_hint.text()
    press(workbench, "one", qtbot)
    labels, made = stored(workbench, sample)
    assert labels.shape == (51, 76)
    assert (made["level"], made["shape"]) == (2, [1, 51, 76])
    expected = enlarged(labels, image.shape)
    assert 0 < expected.mean() < 1
    layers, correction = workbench.layers, workbench.current_correction
    assert layers is not None
    assert correction is not None
    qtbot.waitUntil(lambda: bool((correction.annotation.labels == expected).all()))
    assert layers.labels is not None
    assert layers.uncertainty is not None
    qtbot.waitUntil(lambda: bool((layers.labels.data == expected).all()))
    for layer in (layers.labels, layers.uncertainty):
        np.testing.assert_array_equal(layer.extent.world[1], layers.all()[0].extent.world[1])
    assert layers.uncertainty.data.shape == image.shape
    layers.labels.mode, layers.labels.brush_size = "paint", 6
    layers.labels.paint((101, 150), 1 - int(expected[101, 150]))
    assert correction.annotation.supervision[101, 150] == Supervision.CORRECTED

    show(workbench, plain, qtbot)  # has no levels: the choice goes, and full size is meant
    assert panel.level.isHidden()
    press(workbench, "one", qtbot)
    assert stored(workbench, plain)[1]["level"] == 0
    show(workbench, sample, qtbot)
    assert panel.level.currentIndex() == 2
    kept = workbench.current_correction
    assert kept is not None
    assert kept.annotation.labels[101, 150] == 1 - int(expected[101, 150])
    press(workbench, "all", qtbot)
    assert stored(workbench, sample)[1]["level"] == 2
    assert stored(workbench, plain)[1]["level"] == 0
    correct = workbench.panels["Correct"]
    qtbot.mouseClick(correct.place, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "Place 1" in correct.place_hint.text())


@pytest.mark.slow
def test_a_large_image_fills_in_place_at_a_coarser_level_while_it_is_predicted(
    workbench: Workbench, opened: Callable[..., list[str]], tmp_path: Path, qtbot: QtBot
) -> None:
    image = np.kron(noise(375, 375), np.ones((16, 16), np.uint8))  # 36 million pixels
    sample = opened(write_levels(tmp_path / "large.ome.zarr", image, (1, 2, 4)))[0]
    workbench.inference = InferenceConfig(tile_size=256, overlap=32, device="cpu")
    choose(panel_of(workbench), 2)
    session, correction = workbench.session, workbench.current_correction
    assert session is not None
    assert correction is not None
    early: list[np.ndarray] = []
    session.events.parts_predicted.connect(
        lambda _: early.append(correction.annotation.labels[::7, ::7].copy())
    )
    press(workbench, "one", qtbot)
    labels, made = stored(workbench, sample)
    assert (labels.shape, made["level"]) == ((1500, 1500), 2)
    expected = enlarged(labels, image.shape)
    qtbot.waitUntil(lambda: bool((correction.annotation.labels == expected).all()))
    # What was shown before the end was in its place already.
    shown = [some for some in early if some.any()]
    assert shown
    assert ((shown[-1] == expected[::7, ::7]) | (shown[-1] == 0)).all()
    assert workbench.layers is not None
    window = workbench.layers.window
    assert window is not None
    layer = workbench.layers.labels
    assert layer is not None
    qtbot.waitUntil(lambda: bool((layer.data == expected[window.box]).all()))


def test_an_order_that_is_refused_leaves_the_prediction_under_way_in_place(
    workbench: Workbench, opened: Callable[..., list[str]], tmp_path: Path, qtbot: QtBot
) -> None:
    image = np.kron(noise(300, 300), np.ones((4, 4), np.uint8))
    opened(write_levels(tmp_path / "levels.ome.zarr", image, (1, 2, 4)))
    gentle = InferenceConfig(tile_size=96, overlap=16, device="cpu")
    workbench.inference = gentle
    session, correction = workbench.session, workbench.current_correction
    assert session is not None
    assert correction is not None
    parts: list[Part] = []
    ends: list[object] = []
    session.events.parts_predicted.connect(lambda event: parts.extend(event.parts))
    session.events.job_finished.connect(ends.append)
    panel = panel_of(workbench)
    qtbot.mouseClick(panel.one, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: bool(parts))
    choose(panel, 2)
    workbench.inference = gentle.model_copy(update={"uncertainty": UncertaintyKind.ENSEMBLE})
    with notification_manager:  # the model has no other round
        qtbot.mouseClick(panel.one, Qt.MouseButton.LeftButton)
        assert "further models" in str(notification_manager.records[-1].message)
    known = len(parts)
    qtbot.waitUntil(lambda: len(parts) > known + 20)
    assert not ends, "the prediction ended before the refused order"
    labels = correction.annotation.labels

    def is_in_place(part: Part) -> bool:
        box = np.s_[part.top : part.top + part.height, part.left : part.left + part.width]
        return bool((labels[box] == unpack(part)[0]).all())

    assert any(unpack(part)[0].any() for part in parts[known : known + 10])
    qtbot.waitUntil(lambda: all(map(is_in_place, parts[known : known + 10])), timeout=5000)
    assert not ends, "the prediction ended before its parts were looked at"


@pytest.mark.skipif(os.name == "nt", reason="named pipes in a folder are not for Windows")
def test_choosing_a_level_does_not_wait_for_images_that_are_slow_to_open(
    workbench: Workbench, opened: Callable[..., list[str]], tmp_path: Path, qtbot: QtBot
) -> None:
    images = [noise(64, 64 + n) for n in range(3)]
    paths = [write_levels(tmp_path / f"{n}.ome.zarr", i, (1, 2)) for n, i in enumerate(images)]
    opened(*paths)
    panel = panel_of(workbench)
    press(workbench, "one", qtbot)
    qtbot.waitUntil(lambda: "3 images" in panel.cost.text())
    slow, copy, is_due = paths[1] / "zarr.json", tmp_path / "copy", threading.Event()
    copy.write_bytes(slow.read_bytes())
    slow.unlink()
    os.mkfifo(slow)
    (paths[2] / "zarr.json").write_text("damaged")

    def answer() -> None:
        is_due.wait(10)
        with slow.open("wb") as pipe:  # waits for who reads it
            pipe.write(copy.read_bytes())
            copy.replace(slow)

    threading.Thread(target=answer, daemon=True).start()
    choose(panel, 1)
    assert slow.is_fifo(), "the window waited for it"
    assert panel.one.isEnabled()
    assert not panel.all.isEnabled()
    assert "this image" in panel.cost.text()
    assert "3 images" not in panel.cost.text()
    is_due.set()
    qtbot.waitUntil(panel.all.isEnabled)  # that one image is damaged is said when it is predicted
    assert "3 images" in panel.cost.text()


def test_parts_come_piece_by_piece_however_large_the_image_is() -> None:
    part = pack(noise(256, 256))
    whole = Part(top=0, left=0, height=256, width=256, labels=part, uncertainty=part)
    tracemalloc.start()
    count = sum(maps[0].size for _, *maps in unpack_parts((whole,), (256, 256), (16384, 16384)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 16384**2
    assert peak < 8 * BAND_PIXELS  # bytes; of all labels and uncertainties 128 times those pixels


def test_parts_of_a_level_cover_the_image_once() -> None:
    labels, unsure = noise(51, 76), noise(51, 76)
    parts = [
        Part(
            top=top,
            left=left,
            height=part.shape[0],
            width=part.shape[1],
            labels=pack(part),
            uncertainty=pack(unsure[top : top + 20, left : left + 30]),
        )
        for top in range(0, 51, 20)
        for left in range(0, 76, 30)
        for part in [labels[top : top + 20, left : left + 30]]
    ]
    whole = (ROWS, COLUMNS)
    count, found = np.zeros(whole, int), np.zeros((2, *whole), np.uint8)
    for (row, column), *maps in unpack_parts(tuple(parts), labels.shape, whole):
        height, width = maps[0].shape
        box = slice(row, row + height), slice(column, column + width)
        count[box] += 1
        found[:, *box] = maps
    assert (count == 1).all()
    np.testing.assert_array_equal(found[0], enlarged(labels, whole))
    np.testing.assert_array_equal(found[1], enlarged(unsure, whole))

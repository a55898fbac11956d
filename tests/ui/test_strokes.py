from __future__ import annotations

from typing import Any

import napari
import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QWidget

from segdesk.core.annotation import Supervision
from segdesk.core.errors import InputError
from segdesk.io.store import ProjectStore
from segdesk.ui.strokes import footprint, painted_box, write_atoms
from segdesk.ui.workbench import Workbench


def canvas_of(viewer: napari.Viewer) -> QWidget:
    """The widget that the mouse paints on, found by public Qt means."""
    window = viewer.window.dock_widgets["Correct"].window()
    (canvas,) = [w for w in window.findChildren(QWidget) if "CanvasBackend" in type(w).__name__]
    return canvas


def drag(canvas: QWidget, start: QPoint, stop: QPoint) -> None:
    left = Qt.MouseButton.LeftButton
    QTest.mouseMove(canvas, start)
    QTest.mousePress(canvas, left, pos=start)
    for part in range(1, 11):
        QTest.qWait(20)  # napari takes moves that come faster for one
        QTest.mouseMove(canvas, start + (stop - start) * part / 10)
    QTest.mouseRelease(canvas, left, pos=stop)


def labels_of(workbench: Workbench) -> Any:
    assert workbench.layers is not None
    assert workbench.layers.labels is not None
    return workbench.layers.labels


def store_of(workbench: Workbench) -> ProjectStore:
    assert workbench.session is not None
    return workbench.session.store


def test_a_stroke_by_mouse_is_on_disk_and_counts_as_corrected(
    workbench: Workbench, shown: str, qtbot: QtBot
) -> None:
    correct = workbench.panels["Correct"]
    qtbot.mouseClick(correct.tools.button(0), Qt.MouseButton.LeftButton)
    canvas = canvas_of(workbench.viewer)
    middle = canvas.rect().center()
    drag(canvas, middle, middle + QPoint(40, 20))
    store = store_of(workbench)
    qtbot.waitUntil(lambda: store.edit_counts(shown) == (1, 0))
    annotation = store.annotation(shown)
    assert annotation is not None
    painted = labels_of(workbench).data == 1
    assert painted.any()
    np.testing.assert_array_equal(annotation.labels == 1, painted)
    np.testing.assert_array_equal(annotation.supervision == Supervision.CORRECTED, painted)
    assert store.sample(shown).status == "corrected"
    assert "1 stroke saved" in correct.saved.text()


@pytest.mark.parametrize("tool", [0, 1])
def test_brushing_over_what_is_right_already_confirms_it(
    workbench: Workbench, shown: str, qtbot: QtBot, tool: int
) -> None:
    correct = workbench.panels["Correct"]
    layer, store = labels_of(workbench), store_of(workbench)
    qtbot.mouseClick(correct.classes.button(0), Qt.MouseButton.LeftButton)
    qtbot.mouseClick(correct.tools.button(tool), Qt.MouseButton.LeftButton)
    layer.brush_size = 9
    canvas = canvas_of(workbench.viewer)
    middle = canvas.rect().center()
    drag(canvas, middle, middle + QPoint(40, 20))
    qtbot.waitUntil(lambda: store.edit_counts(shown) == (1, 0))
    annotation = store.annotation(shown)
    assert annotation is not None
    assert not annotation.labels.any()
    said = annotation.supervision == Supervision.CORRECTED
    assert 100 < said.sum() < 400
    assert store.sample(shown).status == "corrected"
    assert "1 stroke saved" in correct.saved.text()
    drag(canvas, middle, middle)  # nothing new is said
    qtbot.wait(50)
    assert store.edit_counts(shown) == (1, 0)
    correct.undo.click()
    annotation = store.annotation(shown)
    assert annotation is not None
    assert not annotation.supervision.any()
    assert store.sample(shown).status == "new"


def test_a_stroke_that_changes_some_pixels_confirms_the_rest_in_one_step(
    workbench: Workbench, shown: str, qtbot: QtBot
) -> None:
    layer, store = labels_of(workbench), store_of(workbench)
    correction = workbench.current_correction
    assert correction is not None
    half = np.zeros(layer.data.shape, np.uint8)
    half[:, 32:] = 1
    correction.take_prediction(half)
    layer.data = half.copy()
    correct = workbench.panels["Correct"]
    qtbot.mouseClick(correct.tools.button(0), Qt.MouseButton.LeftButton)
    layer.selected_label, layer.brush_size = 1, 9
    canvas = canvas_of(workbench.viewer)
    middle = canvas.rect().center()
    drag(canvas, middle - QPoint(80, 0), middle + QPoint(80, 0))
    qtbot.waitUntil(lambda: store.edit_counts(shown) == (1, 0))
    qtbot.wait(50)
    assert store.edit_counts(shown) == (1, 0)
    annotation = store.annotation(shown)
    assert annotation is not None
    said = annotation.supervision == Supervision.CORRECTED
    assert said[:, :32].any()
    assert said[:, 32:].any()
    assert (annotation.labels[said] == 1).all()
    np.testing.assert_array_equal(annotation.labels, layer.data)


def test_a_stroke_whose_end_was_lost_holds_nothing_back_for_long(
    workbench: Workbench, shown: str, qtbot: QtBot
) -> None:
    correct = workbench.panels["Correct"]
    qtbot.mouseClick(correct.tools.button(0), Qt.MouseButton.LeftButton)
    canvas = canvas_of(workbench.viewer)
    middle = canvas.rect().center()
    QTest.mouseMove(canvas, middle)
    QTest.mousePress(canvas, Qt.MouseButton.LeftButton, pos=middle)
    assert workbench.is_painting
    qtbot.wait(500)
    assert workbench.is_painting  # the user may rest a moment
    qtbot.waitUntil(lambda: not workbench.is_painting)  # a dialog took the release
    QTest.mouseMove(canvas, middle + QPoint(20, 10))
    assert workbench.is_painting  # it was not lost after all
    QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=middle)
    store = store_of(workbench)
    qtbot.waitUntil(lambda: store.edit_counts(shown) == (1, 0))
    qtbot.waitUntil(lambda: not workbench.is_painting)


def test_the_footprint_is_what_napari_paints(workbench: Workbench, shown: str) -> None:
    layer = labels_of(workbench)
    for size, spot in ((1, (20.4, 30.2)), (8, (33.0, 2.0)), (9, (61.0, 40.0))):
        layer.data = np.zeros((64, 64), np.uint8)
        layer.brush_size = size
        layer.paint(spot, 1)
        covered = footprint([spot], size, (0, 1), (64, 64))
        assert covered is not None
        box, mask = covered
        mine = np.zeros((64, 64), bool)
        mine[box] = mask
        np.testing.assert_array_equal(mine, layer.data == 1)


def test_the_footprint_on_a_stack_is_on_its_slice() -> None:
    covered = footprint([(2.0, 5.0, 5.0), (2.0, 5.0, 25.0)], 5, (1, 2), (4, 20, 30))
    assert covered is not None
    box, mask = covered
    assert box == (slice(2, 3), slice(3, 8), slice(3, 28))
    assert mask[0, 2].all()
    assert footprint([(2.0, -50.0, 5.0)], 5, (1, 2), (4, 20, 30)) is None


def test_an_edit_that_napari_tells_of_before_writing_is_kept(
    workbench: Workbench, shown: str
) -> None:
    layer = labels_of(workbench)
    layer.paint_polygon([[10, 10], [10, 30], [30, 30], [30, 10]], 1)
    layer.data_setitem((np.array([50, 51]), np.array([3, 4])), 1)
    store = store_of(workbench)
    assert store.edit_counts(shown) == (2, 0)
    annotation = store.annotation(shown)
    assert annotation is not None
    np.testing.assert_array_equal(annotation.labels, layer.data)
    assert annotation.labels[20, 20] == annotation.labels[51, 4] == 1


def test_undo_and_redo_by_key_are_on_disk(workbench: Workbench, shown: str, qtbot: QtBot) -> None:
    layer, store = labels_of(workbench), store_of(workbench)
    layer.paint((20, 20), 1)
    layer.paint((40, 40), 1)
    canvas = canvas_of(workbench.viewer)
    control = Qt.KeyboardModifier.ControlModifier
    qtbot.keyClick(canvas, Qt.Key.Key_Z, control)
    assert store.edit_counts(shown) == (1, 1)
    assert (layer.data[40, 40], layer.data[20, 20]) == (0, 1)
    qtbot.keyClick(canvas, Qt.Key.Key_Z, control)
    assert not layer.data.any()
    assert store.sample(shown).status == "new"
    qtbot.keyClick(canvas, Qt.Key.Key_Z, control | Qt.KeyboardModifier.ShiftModifier)
    assert store.edit_counts(shown) == (1, 1)
    assert layer.data[20, 20] == 1
    kept = store.annotation(shown)
    assert kept is not None
    np.testing.assert_array_equal(kept.labels, layer.data)


def test_a_label_outside_the_classes_is_wiped_off_and_told(
    workbench: Workbench, shown: str, qtbot: QtBot
) -> None:
    layer = labels_of(workbench)
    before = len(notification_manager.records)
    layer.paint((20, 20), 7)
    qtbot.waitUntil(lambda: not layer.data.any())
    assert store_of(workbench).edit_counts(shown) == (0, 0)
    assert "label 7" in notification_manager.records[before].message


def test_a_stroke_the_disk_refuses_is_wiped_off_and_told(
    workbench: Workbench, shown: str, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = labels_of(workbench)
    layer.paint((20, 20), 1)
    kept = layer.data.copy()

    def full(*_: object) -> int:
        raise InputError("The disk is full.")

    monkeypatch.setattr(store_of(workbench), "append_edit", full)
    before = len(notification_manager.records)
    layer.paint((40, 40), 1)
    qtbot.waitUntil(lambda: np.array_equal(layer.data, kept))
    assert [r.message for r in notification_manager.records[before:]] == ["The disk is full."]


class Atom:
    def __init__(self, key: tuple[slice, ...], mask: Any, new: int) -> None:
        self.slice_key, self.mask, self.new_value = key, mask, new


def test_the_box_holds_all_atoms_of_a_stroke() -> None:
    shown = np.zeros((20, 30), np.uint8)
    atoms = [
        Atom((slice(2, 5), slice(7, 9)), None, 1),
        (np.array([10, 11]), np.array([3, 4])),  # no index of the array's dimensions
    ]
    assert painted_box(atoms[:1], shown, shown) == (slice(2, 5), slice(7, 9))
    atoms[1] = ((np.array([10, 11]), np.array([3, 4])), None, 1)
    assert painted_box(atoms, shown, shown) == (slice(2, 12), slice(3, 9))


def test_atoms_nobody_knows_make_the_arrays_be_compared() -> None:
    kept = np.zeros((20, 30), np.uint8)
    shown = kept.copy()
    shown[4:6, 8] = 1
    assert painted_box(["?"], shown, kept) == (slice(4, 6), slice(8, 9))
    assert painted_box(["?"], kept, kept) is None


def test_atoms_are_written_into_the_region_at_their_place() -> None:
    region = np.zeros((6, 6), np.uint8)
    mask = np.eye(2, dtype=bool)
    write_atoms([Atom((slice(12, 14), slice(11, 13)), mask, 3)], region, (10, 10))
    assert [tuple(p) for p in np.argwhere(region == 3)] == [(2, 1), (3, 2)]

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
from segdesk.ui.strokes import painted_box, write_atoms
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
    QTest.mouseMove(canvas, (start + stop) / 2)
    QTest.mouseMove(canvas, stop)
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

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import napari
import numpy as np
import psutil
import pytest
from npe2 import PluginManifest
from pytestqt.qtbot import QtBot

from napari_segdesk import _widgets
from napari_segdesk._start import StartWidget, classes_of, layer_pixels
from segdesk.app.settings import data_folder
from segdesk.core.errors import InputError
from segdesk.session.models import list_models
from segdesk.ui.workbench import Workbench
from tests.ui.conftest import nuclei

SECONDS = 1000


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., napari.Viewer]) -> Iterator[napari.Viewer]:
    viewer = make_napari_viewer(show=True)
    yield viewer
    for key in list(_widgets.workbenches):
        _widgets.workbenches.pop(key).close()


def start_of(bench: Workbench) -> StartWidget:
    (start,) = bench.panels["Project"].findChildren(StartWidget)
    return start


def test_the_manifest_is_valid_and_names_what_exists() -> None:
    manifest = PluginManifest.from_distribution("segdesk")
    assert [w.display_name for w in manifest.contributions.widgets or []] == [
        "Segment and correct", "Project", "Predict", "Correct", "Train", "Compare",
        "Trust"]  # fmt: skip
    for command in manifest.contributions.commands or []:
        assert command.python_name is not None
        name = command.python_name.split(":")[1]
        assert issubclass(getattr(_widgets, name), _widgets.Docked)


def test_an_open_image_layer_becomes_a_project_that_can_be_corrected(
    viewer: napari.Viewer, qtbot: QtBot
) -> None:
    viewer.window.add_plugin_dock_widget("segdesk", "Segment and correct")
    bench = _widgets.workbench_of(viewer)
    start = start_of(bench)
    assert not start.use.isEnabled()
    assert "Open an image" in start.hint.text()
    pixels = nuclei(1)
    mine = viewer.add_image(pixels, name="my cells/1")
    assert "my cells/1" in start.use.text()
    start.use.click()
    qtbot.waitUntil(lambda: bench.current_correction is not None, timeout=20 * SECONDS)
    assert bench.session is not None
    folder = bench.session.store.folder
    assert folder == data_folder() / "projects" / "my-cells-1.segdesk"
    assert bench.session.store.classes.names == ("background", "nucleus")
    np.testing.assert_array_equal(viewer.layers["Image"].data, pixels)
    assert not mine.visible
    assert bench.layers is not None
    assert bench.layers.labels is not None
    bench.layers.labels.paint((20, 20), 1)
    (sample,) = bench.session.store.samples()
    assert bench.session.store.edit_counts(sample.id) == (1, 0)
    assert start.use.isHidden()  # nothing is left to add
    # A second layer goes into the same project.
    viewer.add_image(nuclei(2)[..., 0], name="other")
    start.use.click()
    qtbot.waitUntil(lambda: len(bench.session.store.samples()) == 2, timeout=20 * SECONDS)
    assert bench.session.store.folder == folder


def test_docks_share_a_workbench_and_give_panels_back_when_closed(
    viewer: napari.Viewer, qtbot: QtBot
) -> None:
    dock, _ = viewer.window.add_plugin_dock_widget("segdesk", "Predict")
    viewer.window.add_plugin_dock_widget("segdesk", "Train")
    bench = _widgets.workbench_of(viewer)
    assert list(_widgets.workbenches.values()) == [bench]
    panel: Any = bench.panels["Predict"]
    qtbot.waitUntil(panel.isVisible)
    viewer.window.remove_dock_widget(dock)
    assert panel.parent() is None
    viewer.window.add_plugin_dock_widget("segdesk", "Predict")
    qtbot.waitUntil(panel.isVisible)
    assert panel.reason.text() == "Open a project first."


def test_closing_the_viewer_ends_the_workers(
    viewer: napari.Viewer, qtbot: QtBot, tmp_path: Path
) -> None:
    viewer.window.add_plugin_dock_widget("segdesk", "Predict")
    bench = _widgets.workbench_of(viewer)
    qtbot.waitUntil(bench.panels["Predict"].isVisible)
    session = bench.new_project(tmp_path / "p.segdesk", classes_of(list_models()[0]))
    backend: Any = session.backend
    backend._ensure_engine()  # noqa: SLF001  as opening does outside of these tests
    pids = backend.pids()
    assert pids
    del session
    viewer.close()
    qtbot.waitUntil(lambda: not _widgets.workbenches, timeout=20 * SECONDS)
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize(
    ("data", "dtype"),
    [(np.zeros((4, 5), bool), "uint8"), (np.zeros((2, 4, 5), np.int64), "float32"),
     (np.zeros((4, 5), np.float64), "float32"), (np.zeros((4, 5), np.uint16), "uint16")],
)  # fmt: skip
def test_pixels_are_turned_into_what_a_tiff_holds(data: Any, dtype: str) -> None:
    pixels = layer_pixels(napari.layers.Image(data))
    assert (pixels.dtype, pixels.shape) == (np.dtype(dtype), data.shape)


def test_more_axes_than_a_stack_are_refused_in_words() -> None:
    with pytest.raises(InputError, match="4 axes"):
        layer_pixels(napari.layers.Image(np.zeros((2, 2, 4, 5)), name="x"))

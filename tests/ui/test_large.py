"""Images too large to be read whole: real files, a real window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from napari.utils.notifications import notification_manager
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from segdesk.config.inference import InferenceConfig
from segdesk.core.annotation import Supervision
from segdesk.core.classes import ClassMap
from segdesk.core.sample import Status
from segdesk.io.store import ProjectStore
from segdesk.session.models import use_model
from segdesk.session.projects import NewImage, add_images
from segdesk.ui.workbench import Workbench

SECONDS = 1000
SIDE = 6144
#: A bright square: its first corner and its side.
TOP, LEFT, SQUARE = 5000, 1000, 200


def pixels() -> np.ndarray:
    image = np.full((SIDE, SIDE), 40, np.uint8)
    image[TOP : TOP + SQUARE, LEFT : LEFT + SQUARE] = 240
    image[:600, :600] = 140
    return image


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OME-Zarr with its own levels, one array without, and a stack."""
    folder = tmp_path_factory.mktemp("large")
    image = pixels()
    group = zarr.open_group(str(folder / "own.ome.zarr"), mode="w")
    for level in range(4):
        part = image[:: 2**level, :: 2**level]
        group.create_array(str(level), data=part, chunks=(512, 512))
    axes = [{"name": name, "type": "space"} for name in "yx"]
    datasets = [{"path": str(level)} for level in range(4)]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets}],
    }
    zarr.save_array(str(folder / "plain.zarr"), image)
    stack = np.zeros((40, 1024, 1024), np.uint8)
    stack[7, 300:500, 300:500] = 250
    zarr.create_array(str(folder / "stack.zarr"), data=stack, chunks=(1, 512, 512))
    return folder


@pytest.fixture
def opened(workbench: Workbench, tmp_path: Path, files: Path, qtbot: QtBot) -> Callable[..., str]:
    """Opens one of the files in a new project and waits until it is on screen."""

    def bring(name: str) -> str:
        session = workbench.session
        if session is None:
            classes = ClassMap.from_names(("background", "nucleus"))
            session = workbench.new_project(tmp_path / "p.segdesk", classes)
        sample = add_images(session, [NewImage(files / name)]).samples[0]
        show(workbench, sample.id, qtbot)
        return sample.id

    return bring


def show(workbench: Workbench, sample_id: str, qtbot: QtBot) -> None:
    workbench.show_sample(sample_id)
    qtbot.waitUntil(lambda: workbench.current_correction is not None, timeout=10 * SECONDS)


def look(workbench: Workbench, y: float, x: float, zoom: float) -> None:
    workbench.viewer.scene.camera.zoom = zoom
    workbench.viewer.scene.camera.center = (0, y, x)


def middle(workbench: Workbench) -> int:
    """Return the brightness in the middle of the canvas."""
    shot = workbench.viewer.screenshot(flash=False)
    return int(shot[shot.shape[0] // 2, shot.shape[1] // 2, :3].mean())


def paint(workbench: Workbench, y: int, x: int, label: int = 1, z: int | None = None) -> None:
    """Paint at a pixel of the image with the brush."""
    layer = labels_of(workbench)
    layer.mode, layer.brush_size = "paint", 10
    place = (y, x) if z is None else (z, y, x)
    layer.paint(tuple(layer.world_to_data(place)), label)


def labels_of(workbench: Workbench) -> Any:
    assert workbench.layers is not None
    assert workbench.layers.labels is not None
    return workbench.layers.labels


def kept(workbench: Workbench, sample_id: str) -> np.ndarray:
    """Return the labels as the project on disk has them."""
    assert workbench.session is not None
    annotation = workbench.session.store.annotation(sample_id)
    assert annotation is not None
    return annotation.labels


def assert_accepted(store: ProjectStore, sample_id: str) -> None:
    """Check that the image is accepted, with the stroke at (5100, 1100) in it."""
    assert store.sample(sample_id).status is Status.ACCEPTED
    annotation = store.annotation(sample_id)
    assert annotation is not None
    assert annotation.labels[5100, 1100] == 1
    assert annotation.supervision[5100, 1100] == Supervision.CORRECTED
    assert annotation.supervision[0, 0] == Supervision.ACCEPTED


def test_what_is_looked_at_sharpens_and_memory_holds_no_whole_image(
    workbench: Workbench, opened: Callable[..., str], qtbot: QtBot
) -> None:
    opened("own.ome.zarr")
    layer = workbench.viewer.layers["Image"]
    assert [level.shape for level in layer.data] == [(SIDE // 2**n,) * 2 for n in range(4)]
    look(workbench, 300, 300, zoom=0.1)
    qtbot.waitUntil(lambda: middle(workbench) > 100)  # from a coarse level
    look(workbench, TOP + SQUARE / 2, LEFT + SQUARE / 2, zoom=2)
    qtbot.waitUntil(lambda: middle(workbench) > 200)
    look(workbench, 3000, 3000, zoom=2)
    qtbot.waitUntil(lambda: middle(workbench) < 100)
    # The labels' layer holds what is in view, and lies where the image does.
    assert labels_of(workbench).data.size < SIDE**2 / 4


def test_missing_levels_are_made_once_and_said(
    workbench: Workbench, opened: Callable[..., str], tmp_path: Path, qtbot: QtBot
) -> None:
    said: list[str] = []
    workbench.levels_progressed.connect(said.append)
    sample = opened("plain.zarr")
    qtbot.waitUntil(lambda: bool(said) and said[-1] == "")
    assert any("plain.zarr has no small levels" in text and "%" in text for text in said)
    look(workbench, 300, 300, zoom=0.1)
    qtbot.waitUntil(lambda: middle(workbench) > 100)
    said.clear()
    other = opened("stack.zarr")
    show(workbench, sample, qtbot)
    look(workbench, 300, 300, zoom=0.1)
    qtbot.waitUntil(lambda: middle(workbench) > 100)
    assert not any(said)
    folders = list((tmp_path / "p.segdesk" / "cache" / "levels").glob("*/*"))
    assert [folder.parent.name for folder in folders] == [sample]
    assert other != sample


def test_strokes_lie_where_they_are_painted_and_are_undone_out_of_view(
    workbench: Workbench, opened: Callable[..., str], qtbot: QtBot
) -> None:
    sample = opened("own.ome.zarr")
    look(workbench, 5100, 1100, zoom=2)
    qtbot.waitUntil(lambda: middle(workbench) > 200)
    paint(workbench, 5100, 1100)
    assert kept(workbench, sample)[5100, 1100] == 1
    assert kept(workbench, sample).sum() < 200
    look(workbench, 200, 5000, zoom=1)
    qtbot.wait(300)
    paint(workbench, 200, 5000)
    assert kept(workbench, sample)[200, 5000] == 1
    assert workbench.strokes is not None
    look(workbench, 5100, 1100, zoom=2)
    qtbot.wait(300)
    layer = labels_of(workbench)
    here = tuple(np.round(layer.world_to_data((5100, 1100))).astype(int))
    assert layer.data[here] == 1
    workbench.strokes.undo()  # the one elsewhere
    assert kept(workbench, sample)[200, 5000] == 0
    assert layer.data[here] == 1
    workbench.strokes.undo()
    assert layer.data[here] == 0
    assert not kept(workbench, sample).any()


def test_from_afar_a_stroke_covers_all_that_a_pixel_stands_for_or_is_refused(
    workbench: Workbench, opened: Callable[..., str], qtbot: QtBot
) -> None:
    sample = opened("own.ome.zarr")
    window = workbench.layers.window if workbench.layers is not None else None
    assert window is not None
    look(workbench, 3000, 3000, zoom=0.35)
    qtbot.waitUntil(lambda: window.step == 2)
    paint(workbench, 3000, 3000)
    near = kept(workbench, sample)[2990:3010, 2990:3010]
    assert near[5:15, 5:15].all()  # no gaps between the pixels that were on screen
    before = kept(workbench, sample)
    look(workbench, 3000, 3000, zoom=0.05)
    qtbot.waitUntil(lambda: window.step == 8)
    with notification_manager:
        paint(workbench, 4000, 4000)
        qtbot.wait(50)
        assert "zoom in and paint again" in str(notification_manager.records[-1].message)
    np.testing.assert_array_equal(kept(workbench, sample), before)


def test_accepting_is_written_beside_and_closing_the_window_keeps_it(
    workbench: Workbench, opened: Callable[..., str], tmp_path: Path, qtbot: QtBot
) -> None:
    sample = opened("own.ome.zarr")
    look(workbench, 5100, 1100, zoom=2)
    qtbot.wait(300)
    paint(workbench, 5100, 1100)
    correct = workbench.panels["Correct"]
    qtbot.mouseClick(correct.accept, Qt.MouseButton.LeftButton)
    assert not correct.accept.isEnabled()
    workbench.close()
    with ProjectStore.open(tmp_path / "p.segdesk") as store:
        assert_accepted(store, sample)
    left = list((tmp_path / "p.segdesk" / "labels" / sample).glob(".*"))
    assert not left


def test_an_acceptance_is_on_disk_before_its_revision_is_written(
    workbench: Workbench, opened: Callable[..., str], tmp_path: Path, qtbot: QtBot
) -> None:
    sample = opened("own.ome.zarr")
    look(workbench, 5100, 1100, zoom=2)
    qtbot.wait(300)
    paint(workbench, 5100, 1100)
    workbench.accept()
    assert workbench.is_accepting
    # What somebody else reads now is what is left if the program is killed now.
    with ProjectStore.open(tmp_path / "p.segdesk", read_only=True) as store:
        assert_accepted(store, sample)
    show(workbench, sample, qtbot)  # at once again: nothing is lost, and strokes lie on it
    look(workbench, 200, 200, zoom=2)
    qtbot.wait(300)
    paint(workbench, 200, 200)
    labels = kept(workbench, sample)
    assert labels[5100, 1100] == 1
    assert labels[200, 200] == 1


@pytest.mark.slow
def test_planes_stacks_and_small_images_follow_each_other(
    workbench: Workbench, opened: Callable[..., str], tmp_path: Path, qtbot: QtBot
) -> None:
    plane, stack = opened("own.ome.zarr"), opened("stack.zarr")
    session = workbench.session
    assert session is not None
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "colour.png")
    tifffile.imwrite(
        tmp_path / "few.tif", np.zeros((5, 64, 64), np.uint8), metadata={"axes": "ZYX"}
    )
    new = [NewImage(tmp_path / name) for name in ("colour.png", "few.tif")]
    colour, few = (sample.id for sample in add_images(session, new).samples)
    labels_of(workbench).brush_size = 17
    order = [plane, few, colour, stack, colour, few, plane, stack, few, stack, plane, colour, plane]
    for sample in order:
        show(workbench, sample, qtbot)
        qtbot.wait(60)
        workbench.viewer.screenshot(flash=False)
        assert workbench.layers is not None
        assert workbench.viewer.dims.ndim == len(session.store.sample(sample).shape)
        assert labels_of(workbench).brush_size == 17
        names = [layer.name for layer in workbench.viewer.layers]
        assert names == ["Image", "Labels"]


def test_a_store_that_is_gone_while_it_is_shown_is_said_once(
    workbench: Workbench, opened: Callable[..., str], files: Path, tmp_path: Path, qtbot: QtBot
) -> None:
    copy = tmp_path / "gone.ome.zarr"
    shutil.copytree(files / "own.ome.zarr", copy)
    opened(str(copy))
    qtbot.wait(300)
    for chunk in copy.rglob("c/*/*"):
        chunk.write_bytes(b"not a chunk")
    with notification_manager:
        said = len(notification_manager.records)
        for y in (1000, 2000, 3000, 4000):
            look(workbench, y, 3000, zoom=2)
            qtbot.wait(300)
        new = [str(record.message) for record in notification_manager.records[said:]]
        assert len(new) == 1
        assert "gone.ome.zarr" in new[0]
    paint(workbench, 4000, 3000)
    assert workbench.current_sample_id is not None
    assert kept(workbench, workbench.current_sample_id)[4000, 3000] == 1


def test_a_stroke_during_accepting_is_accepted_too(
    workbench: Workbench, opened: Callable[..., str], qtbot: QtBot
) -> None:
    sample = opened("own.ome.zarr")
    look(workbench, 5100, 1100, zoom=2)
    qtbot.wait(300)
    workbench.accept()
    paint(workbench, 5100, 1100)
    session = workbench.session
    assert session is not None
    qtbot.waitUntil(lambda: session.store.sample(sample).status is Status.ACCEPTED)
    annotation = session.store.annotation(sample)
    assert annotation is not None
    assert annotation.labels[5100, 1100] == 1
    assert (annotation.supervision != Supervision.UNSEEN).all()
    qtbot.waitUntil(lambda: not workbench.is_accepting)
    workbench.accept()  # takes it back
    qtbot.waitUntil(lambda: session.store.sample(sample).status is Status.CORRECTED)
    assert kept(workbench, sample)[5100, 1100] == 1


@pytest.mark.slow
def test_a_prediction_comes_in_parts_and_is_whole_at_the_end(
    workbench: Workbench,
    opened: Callable[..., str],
    make_model: Callable[..., Path],
    qtbot: QtBot,
) -> None:
    sample = opened("own.ome.zarr")
    session, layers = workbench.session, workbench.layers
    assert session is not None
    assert layers is not None
    make_model(session.store.folder / "models" / "tiny", channels=1)
    use_model(session, "tiny")
    look(workbench, 5100, 1100, zoom=1)
    qtbot.wait(300)
    paint(workbench, 5100, 1100)
    workbench.inference = InferenceConfig(tile_size=512, overlap=32, device="cpu")
    job = workbench.predict([sample])[0]
    qtbot.waitUntil(lambda: layers.uncertainty is not None, timeout=60 * SECONDS)
    assert job in session.jobs  # shown while the rest is computed
    qtbot.waitUntil(lambda: not session.jobs, timeout=300 * SECONDS)
    assert layers.uncertainty is not None
    assert layers.uncertainty.data[0].dtype == np.uint8
    correction = workbench.current_correction
    assert correction is not None
    prediction = session.store.prediction(sample, "tiny")
    assert prediction is not None
    expected = tifffile.imread(prediction.labels_path)
    spoken = correction.annotation.supervision == Supervision.CORRECTED
    expected[spoken] = 1

    def is_taken() -> bool:
        return bool((correction.annotation.labels == expected).all())

    qtbot.waitUntil(is_taken, timeout=60 * SECONDS)
    window = layers.window
    assert window is not None
    qtbot.waitUntil(lambda: bool((labels_of(workbench).data == expected[window.box]).all()))


def test_a_stack_shows_the_plane_in_the_slider_and_is_painted_on_there(
    workbench: Workbench, opened: Callable[..., str], qtbot: QtBot
) -> None:
    sample = opened("stack.zarr")
    look(workbench, 400, 400, zoom=1)
    workbench.viewer.dims.set_current_step(0, 7)
    qtbot.waitUntil(lambda: middle(workbench) > 100)
    workbench.viewer.dims.set_current_step(0, 9)
    qtbot.waitUntil(lambda: middle(workbench) < 50)
    paint(workbench, 400, 400, z=9)
    labels = kept(workbench, sample)
    assert labels[9, 400, 400] == 1
    assert not np.delete(labels, 9, 0).any()
    workbench.viewer.dims.set_current_step(0, 7)
    qtbot.waitUntil(lambda: middle(workbench) > 100)
    assert not labels_of(workbench).data.any()

"""Images in stores that are slow to answer, or go away: a real server, a real window."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import zarr
from napari.utils.notifications import notification_manager
from PIL import Image
from pytestqt.qtbot import QtBot
from qtpy.QtWidgets import QProgressDialog

from segdesk.core.classes import ClassMap
from segdesk.core.errors import InputError
from segdesk.io.pyramids import open_pyramid
from segdesk.session.projects import NewImage, add_images
from segdesk.ui.large import LargeImage
from segdesk.ui.panels.project import ProjectPanel
from segdesk.ui.workbench import LEAVE_SECONDS, Workbench
from slow_server import SlowServer, serving

SIDE = 6144
CHUNKS = (512, 512, 3)
#: A store that is slow keeps a reader for so long, in seconds;
DELAY = 4.0
#: on an idle machine the window is free again after so long.
AT_ONCE = 0.5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a multiscale image, ``a.zarr``, and one without levels, ``plain.zarr``."""
    folder = tmp_path_factory.mktemp("images")
    image = np.full((SIDE, SIDE, 3), 120, np.uint8)  # of colours nothing is read beforehand
    group = zarr.open_group(str(folder / "a.zarr"), mode="w")
    for level in range(4):
        group.create_array(str(level), data=image[:: 2**level, :: 2**level], chunks=CHUNKS)
    axes = [{"name": name, "type": "space"} for name in "yx"]
    axes.append({"name": "c", "type": "channel"})
    datasets = [{"path": str(level)} for level in range(4)]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    zarr.create_array(str(folder / "plain.zarr"), data=image, chunks=CHUNKS)
    return folder


@pytest.fixture
def server(images: Path) -> Iterator[SlowServer]:
    with serving(images) as server:
        yield server


@pytest.fixture
def far(
    workbench: Workbench, server: SlowServer, tmp_path: Path
) -> Callable[[str], tuple[LargeImage, list[str]]]:
    """Puts an image from the server on screen; returns it and what is said of its levels."""
    workbench.new_project(tmp_path / "p.segdesk", ClassMap.from_names(("background", "nucleus")))

    def bring(name: str) -> tuple[LargeImage, list[str]]:
        layers, bridge = workbench.layers, workbench.bridge
        assert layers is not None
        assert bridge is not None
        said: list[str] = []
        pyramid = open_pyramid(f"{server.address}/{name}", "0", tmp_path / "levels")
        large = LargeImage(name, pyramid, (0.0, 255.0), layers, bridge, said.append)
        layers.show_large(large.loader.levels, None, np.zeros((SIDE, SIDE), np.uint8))
        large.start()
        return large, said

    return bring


def look(workbench: Workbench, y: float, x: float, zoom: float) -> None:
    workbench.viewer.scene.camera.zoom = zoom
    workbench.viewer.scene.camera.center = (0, y, x)


def threads() -> list[str]:
    """Names of SegDesk's threads that read images."""
    ours = ("segdesk-tiles", "segdesk-levels", "segdesk-leaving")
    return [t.name for t in threading.enumerate() if t.name in ours]


@pytest.mark.parametrize("name", ["a.zarr", "plain.zarr"])
def test_leaving_an_image_in_a_slow_store_does_not_wait_for_it(
    workbench: Workbench,
    server: SlowServer,
    far: Callable[[str], tuple[LargeImage, list[str]]],
    slowness: Callable[[], float],
    qtbot: QtBot,
    name: str,
) -> None:
    large, said = far(name)
    if name == "a.zarr":
        qtbot.waitUntil(lambda: "segdesk-levels" not in threads())  # the overview is there
    server.delay = DELAY
    before = len(server.chunks)
    look(workbench, 3000, 3000, zoom=2)
    qtbot.waitUntil(lambda: len(server.chunks) > before)
    began = time.monotonic()
    left = large.close()
    assert time.monotonic() - began < AT_ONCE * slowness()
    assert left.is_alive  # reads on in the background
    asked = len(server.chunks)
    qtbot.waitUntil(lambda: not left.is_alive)
    assert threads() == []
    assert len(server.chunks) - asked <= 16  # the block, or the patch, that was begun
    asked, told = len(server.chunks), len(said)
    qtbot.wait(300)
    assert (len(server.chunks), len(said)) == (asked, told)


def test_an_image_that_was_left_is_not_kept_in_memory(
    far: Callable[[str], tuple[LargeImage, list[str]]], qtbot: QtBot
) -> None:
    large, _ = far("a.zarr")
    qtbot.waitUntil(lambda: threads() == [])
    left, kept = large.close(), weakref.ref(large)
    del large
    other, _ = far("plain.zarr")
    qtbot.waitUntil(lambda: not left.is_alive and threads() == [])

    def is_free() -> bool:
        gc.collect()
        return kept() is None

    qtbot.waitUntil(is_free)
    assert not left.is_alive  # it itself is kept
    other.close().join()


@pytest.mark.skipif(os.name == "nt", reason="named pipes in a folder are not for Windows")
def test_another_image_is_shown_while_the_disk_of_the_last_does_not_answer(
    workbench: Workbench,
    images: Path,
    tmp_path: Path,
    slowness: Callable[[], float],
    qtbot: QtBot,
) -> None:
    copy = tmp_path / "stuck.zarr"
    shutil.copytree(images / "a.zarr", copy)
    session = workbench.new_project(
        tmp_path / "p.segdesk", ClassMap.from_names(("background", "nucleus"))
    )
    new = [NewImage(copy), NewImage(images / "plain.zarr")]
    stuck, other = (sample.id for sample in add_images(session, new).samples)
    show(workbench, stuck, qtbot)
    qtbot.waitUntil(lambda: threads() == [])
    with pipes(copy / "0" / "c"):
        look(workbench, 3000, 3000, zoom=2)
        qtbot.waitUntil(lambda: "segdesk-tiles" in threads())
        qtbot.wait(300)
        began = time.monotonic()
        workbench.show_sample(other)
        assert time.monotonic() - began < AT_ONCE * slowness()
        show(workbench, other, qtbot)
        qtbot.waitUntil(lambda: "segdesk-levels" not in threads())  # its levels are made
        assert "segdesk-leaving" in threads()
        workbench.show_sample(stuck)  # and again, while the last reads still hang
        show(workbench, other, qtbot)
    workbench.close()  # waits for the last reads
    assert threads() == []


@contextmanager
def pipes(folder: Path) -> Iterator[None]:
    """Put pipes in the place of chunks while the block lasts: who reads them waits for it."""
    chunks = {folder / str(y) / str(x) / "0": b"" for y in range(3, 9) for x in range(3, 9)}
    for pipe in chunks:
        chunks[pipe] = pipe.read_bytes()
        pipe.unlink()
        os.mkfifo(pipe)
    try:
        yield
    finally:
        is_over = threading.Event()

        def answer() -> None:
            while not is_over.wait(0.02):
                for pipe, content in chunks.items():
                    with suppress(OSError):  # nobody reads it
                        end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                        os.write(end, content)
                        os.close(end)

        answering = threading.Thread(target=answer)
        answering.start()
        until = time.monotonic() + 60
        while threads() and time.monotonic() < until:
            time.sleep(0.05)
        is_over.set()
        answering.join()


def show(workbench: Workbench, sample_id: str, qtbot: QtBot) -> None:
    workbench.show_sample(sample_id)
    qtbot.waitUntil(lambda: workbench.current_correction is not None)


@pytest.mark.parametrize("how", ["off", "empty"])
def test_a_server_that_goes_away_is_said_once_and_the_window_goes_on(
    workbench: Workbench,
    images: Path,
    tmp_path: Path,
    far: Callable[[str], tuple[LargeImage, list[str]]],
    server: SlowServer,
    qtbot: QtBot,
    how: str,
) -> None:
    large, _ = far("a.zarr")
    qtbot.waitUntil(lambda: "segdesk-levels" not in threads())
    look(workbench, 1000, 1000, zoom=2)
    qtbot.waitUntil(lambda: middle(workbench) > 100)
    if how == "off":
        server.vanish()
    else:  # it answers, but knows nothing of the image any more
        server.is_empty = True
    with notification_manager:
        said = len(notification_manager.records)
        for y in (2000, 3000, 4000, 5000):
            look(workbench, y, 3000, zoom=2)
            qtbot.wait(300)
        qtbot.waitUntil(lambda: len(notification_manager.records) > said)
        qtbot.wait(300)
        (sentence,) = [str(r.message) for r in notification_manager.records[said:]]
    assert "a.zarr" in sentence
    assert "connection" in sentence
    look(workbench, 1000, 1000, zoom=2)
    qtbot.waitUntil(lambda: middle(workbench) > 100)  # what was read is still there
    left = large.close()
    qtbot.waitUntil(lambda: not left.is_alive)


def middle(workbench: Workbench) -> int:
    """Return the brightness in the middle of the canvas."""
    shot = workbench.viewer.screenshot(flash=False)
    return int(shot[shot.shape[0] // 2, shot.shape[1] // 2, :3].mean())


def project_panel(workbench: Workbench, tmp_path: Path) -> ProjectPanel:
    workbench.new_project(tmp_path / "p.segdesk", ClassMap.from_names(("background", "nucleus")))
    panel = workbench.panels["Project"]
    assert isinstance(panel, ProjectPanel)
    return panel


def names(workbench: Workbench) -> list[str]:
    assert workbench.session is not None
    return [sample.name for sample in workbench.session.store.samples()]


def test_an_image_on_a_slow_server_is_added_while_the_window_goes_on(
    workbench: Workbench, server: SlowServer, tmp_path: Path, qtbot: QtBot
) -> None:
    panel = project_panel(workbench, tmp_path)
    server.delay = 0.1
    with notification_manager:
        said = len(notification_manager.records)
        panel.add_from([f"{server.address}/{name}.zarr" for name in ("plain", "none", "a")])
        assert not names(workbench)
        (dialog,) = panel.findChildren(QProgressDialog)
        qtbot.waitUntil(dialog.isVisible)
        qtbot.waitUntil(lambda: names(workbench) == ["plain.zarr", "a.zarr"], timeout=60_000)
        told = [str(r.message) for r in notification_manager.records[said:]]
    assert any("none.zarr is not there" in sentence for sentence in told)
    server.delay = 0.0
    show(workbench, "a", qtbot)
    look(workbench, 3000, 3000, zoom=1)
    qtbot.waitUntil(lambda: middle(workbench) > 100)
    workbench.close()
    workbench.open_project(tmp_path / "p.segdesk")
    show(workbench, "plain", qtbot)


def test_asking_a_server_that_does_not_answer_can_be_cancelled(
    workbench: Workbench, server: SlowServer, tmp_path: Path, qtbot: QtBot
) -> None:
    panel = project_panel(workbench, tmp_path)
    server.delay = DELAY
    panel.add_from([f"{server.address}/plain.zarr"])
    with pytest.raises(InputError, match="being asked already"):
        panel.add_from([f"{server.address}/a.zarr"])
    (dialog,) = panel.findChildren(QProgressDialog)
    dialog.canceled.emit()  # what its button does
    server.delay = 0.0
    panel.add_from([f"{server.address}/a.zarr"])
    qtbot.waitUntil(lambda: names(workbench) == ["a.zarr"], timeout=60_000)
    qtbot.waitUntil(lambda: "segdesk-asking" not in [t.name for t in threading.enumerate()],
                    timeout=60_000)  # fmt: skip
    assert names(workbench) == ["a.zarr"]


def test_a_server_that_cannot_be_reached_is_named(
    workbench: Workbench, server: SlowServer, tmp_path: Path, qtbot: QtBot
) -> None:
    panel = project_panel(workbench, tmp_path)
    server.vanish()
    with notification_manager:
        said = len(notification_manager.records)
        panel.add_from([f"{server.address}/plain.zarr"])
        qtbot.waitUntil(lambda: len(notification_manager.records) > said, timeout=60_000)
        (sentence,) = [str(r.message) for r in notification_manager.records[said:]]
    assert "plain.zarr cannot be read" in sentence
    assert "connection" in sentence
    assert not names(workbench)
    with pytest.raises(InputError, match="is no address of a server"):
        panel.add_from(["cells.zarr"])


def test_a_server_that_does_not_answer_holds_up_no_other_image_nor_the_end(
    workbench: Workbench, server: SlowServer, tmp_path: Path, qtbot: QtBot
) -> None:
    panel = project_panel(workbench, tmp_path)
    panel.add_from([f"{server.address}/{name}.zarr" for name in ("plain", "a")])
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(tmp_path / "near.png")
    panel.add([tmp_path / "near.png"])
    qtbot.waitUntil(lambda: len(names(workbench)) == 3, timeout=60_000)
    workbench.close()
    server.delay = 60.0
    workbench.open_project(tmp_path / "p.segdesk")
    asked = len(server.chunks)
    for name in ("plain", "a"):  # as a click, and the list for its thumbnails
        workbench.show_sample(name)
    qtbot.waitUntil(lambda: len(server.chunks) > asked)
    began = time.monotonic()
    show(workbench, "near", qtbot)
    assert time.monotonic() - began < server.delay / 3
    began = time.monotonic()
    workbench.close()
    assert time.monotonic() - began < LEAVE_SECONDS + server.delay / 3
    server.delay = 0.0

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import napari
import numpy as np
import pytest
from PIL import Image
from pytestqt.qtbot import QtBot

from segdesk.core.classes import ClassMap
from segdesk.core.sample import Split
from segdesk.session.projects import NewImage, add_images
from segdesk.session.workers import WorkerBackend
from segdesk.ui.workbench import Workbench

SECONDS = 1000


@pytest.fixture(autouse=True)
def _cold_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the engine at the first prediction: most tests ask for none.

    Nor does a training process start to time steps, whenever the Train panel is seen.
    """
    monkeypatch.setattr(WorkerBackend, "warm", lambda _: None)
    monkeypatch.setattr(WorkerBackend, "prepare", lambda *_: None)


@pytest.fixture(autouse=True)
def _quick_garbage_collection(frozen_modules: None) -> None:
    pass


@pytest.fixture(autouse=True)
def _settings_of_no_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGDESK_HOME", str(tmp_path / "home"))


@pytest.fixture
def workbench(
    make_napari_viewer: Callable[..., napari.Viewer], qtbot: QtBot
) -> Iterator[Workbench]:
    """A workbench whose panels are docked in a real, visible viewer."""
    bench = Workbench(make_napari_viewer(show=True))
    bench.dock()
    yield bench
    bench.close()


def nuclei(seed: int, size: int = 64) -> np.ndarray:
    """An RGB image with bright discs."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    image = random.integers(0, 30, (size, size, 3))
    for row, column in random.integers(8, size - 8, (4, 2)):
        image[(rows - row) ** 2 + (columns - column) ** 2 < 25] = 200
    return image.astype(np.uint8)


@pytest.fixture
def project(workbench: Workbench, tmp_path: Path) -> list[str]:
    """An open project of four images; the last is held back. Returns the ids."""
    session = workbench.new_project(
        tmp_path / "p.segdesk", ClassMap.from_names(("background", "nucleus"))
    )
    new = []
    for number in range(4):
        path = tmp_path / f"image{number}.png"
        Image.fromarray(nuclei(number)).save(path)
        split = Split.VALIDATION if number == 3 else Split.TRAIN
        new.append(NewImage(path, split=split))
    return [sample.id for sample in add_images(session, new).samples]


@pytest.fixture
def shown(workbench: Workbench, project: list[str], qtbot: QtBot) -> str:
    """The first sample, on screen."""
    show(workbench, project[0], qtbot)
    return project[0]


def show(workbench: Workbench, sample_id: str, qtbot: QtBot) -> None:
    workbench.show_sample(sample_id)
    qtbot.waitUntil(lambda: workbench.current_correction is not None, timeout=10 * SECONDS)

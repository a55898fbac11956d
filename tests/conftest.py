"""What tests of several layers share: real files, real disks, tiny models."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from PIL import Image
from pytestqt.qtbot import QtBot

from segdesk.core.card import ModelCard
from segdesk.core.classes import ClassMap
from segdesk.jobs.child import share_processor

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"

Pixels = npt.NDArray[np.uint8]

#: Least time to wait for what must happen: it is spent only where something is wrong, and a
#: slow machine with other work may take long over anything.
PATIENCE = 120.0

# napari would read and write the settings of whoever runs the tests, two processes at a time.
os.environ["NAPARI_CONFIG"] = ""

# Tests run beside each other and start workers: idle threads must not spin.
share_processor()

# How long an example takes says more of the machine than of the code.
settings.register_profile("segdesk", deadline=None)
settings.load_profile("segdesk")


@pytest.fixture(scope="module")
def frozen_modules() -> None:
    """Leave what is there out of every garbage collection from now on.

    napari collects everything whenever a layer goes, several times in a test with a window:
    half a second each for modules that stay, and for what other tests have left in caches.
    """
    import napari.qt  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on many threads, and tests share the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def real_data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"the public data sets are not at {DATA}")
    return DATA


@pytest.fixture
def two_classes() -> ClassMap:
    return ClassMap.from_names(["background", "nucleus"])


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount small disks of our own: root ignores permission bits, not a full disk."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root on Linux can mount a small disk")
        point = tmp_path / f"disk{len(mounted)}"
        point.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
        mounted.append(point)
        return point

    yield mount
    for point in mounted:
        subprocess.run(["umount", point], check=True)


class PatientBot(QtBot):
    """Waits at least :data:`PATIENCE` for what must happen."""

    def waitUntil(self, callback: Callable[[], bool | None], *, timeout: int = 0) -> None:
        super().waitUntil(callback, timeout=max(timeout, round(1000 * PATIENCE)))

    def waitExposed(self, widget: Any, *, timeout: int = 0) -> Any:
        return super().waitExposed(widget, timeout=max(timeout, round(1000 * PATIENCE)))


@pytest.fixture
def qtbot(qapp: object, request: pytest.FixtureRequest) -> QtBot:
    return PatientBot(request)


@pytest.fixture(scope="session")
def slowness() -> Callable[[], float]:
    """Tell how many times longer things take now than on a machine with nothing else to do.

    What is promised in seconds is promised for that machine.
    """

    def measure(work: float = 0.1) -> float:
        started, worked = time.monotonic(), time.thread_time()
        while time.thread_time() - worked < work:
            pass
        return (time.monotonic() - started) / work

    return measure


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    def wait(condition: Callable[[], object], seconds: float = 30.0, what: str = "it") -> None:
        seconds = max(seconds, PATIENCE)
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
            pause.wait(0.02)

    return wait


@pytest.fixture(scope="session")
def discs() -> Callable[..., tuple[Pixels, Pixels]]:
    """Bright discs on a dark ground and their mask: what a tiny network learns at once."""

    def draw(seed: int = 0, size: int = 64) -> tuple[Pixels, Pixels]:
        random = np.random.default_rng(seed)
        rows, columns = np.mgrid[:size, :size]
        mask = np.zeros((size, size), np.uint8)
        for _ in range(4):
            y, x = random.integers(8, size - 8, 2)
            mask[(rows - y) ** 2 + (columns - x) ** 2 < random.integers(25, 64)] = 1
        image = 40 + 150 * mask + random.integers(0, 20, mask.shape)
        return image.astype(np.uint8), mask

    return draw


@pytest.fixture
def disc_files(
    tmp_path: Path, discs: Callable[..., tuple[Pixels, Pixels]]
) -> Callable[..., list[Path]]:
    """Write images to ``images/`` and their 0/255 masks to ``masks/``."""

    def write(count: int, size: int = 64) -> list[Path]:
        paths = []
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for seed in range(count):
            image, mask = discs(seed, size)
            paths.append(tmp_path / "images" / f"cell{seed}.png")
            Image.fromarray(image).save(paths[-1])
            Image.fromarray(mask * 255).save(tmp_path / "masks" / f"cell{seed}.png")
        return paths

    return write


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """Write an untrained, tiny U-Net as a model package."""

    def make(
        folder: Path,
        *,
        classes: Sequence[str] = ("background", "nucleus"),
        channels: int = 1,
        seed: int = 0,
        rehearsal: Sequence[tuple[Pixels, Pixels]] = (),
        **options: Any,
    ) -> Path:
        import torch

        from segdesk.nn.registry import build_network
        from segdesk.nn.weights import save_model

        card = ModelCard(
            name=folder.name,
            architecture="unet",
            options={"width": 4, "dropout": 0.0} | options,
            classes=tuple(classes),
            colors=tuple("#000000" for _ in classes),
            channels=channels,
            weights_sha256="",
            parameters=0,
        )
        torch.manual_seed(seed)
        save_model(folder, build_network(card), card)
        for part in ("images", "labels") if rehearsal else ():
            (folder / "rehearsal" / part).mkdir(parents=True)
        for number, (image, labels) in enumerate(rehearsal):
            Image.fromarray(image).save(folder / "rehearsal" / "images" / f"{number}.png")
            Image.fromarray(labels).save(folder / "rehearsal" / "labels" / f"{number}.png")
        return folder

    return make


@pytest.fixture(scope="session")
def on_disk() -> Callable[[Path], dict[str, str]]:
    """List a folder with the hash of every file: equal lists, nothing changed.

    Left out is a project's lock file, which says nothing and may stay.
    """

    def listing(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): (
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            )
            for path in sorted(folder.rglob("*"))
            if path.name != ".lock"
        }

    return listing

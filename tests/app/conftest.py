"""A real window, with the user's folders in a temporary place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtWidgets import QApplication

from segdesk.app.window import DesktopWindow


@pytest.fixture(autouse=True)
def _quick_garbage_collection(frozen_modules: None) -> None:
    pass


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where SegDesk keeps what is the user's."""
    monkeypatch.setenv("SEGDESK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NAPARI_CONFIG", str(tmp_path / "napari.yaml"))
    return tmp_path / "home"


@pytest.fixture
def window(home: Path, qapp: QApplication, qtbot: QtBot) -> Iterator[DesktopWindow]:
    """SegDesk's window on the screen; closed again, with nothing left behind."""
    threads = set(threading.enumerate())
    made = DesktopWindow()
    qtbot.waitUntil(made.main.isVisible, timeout=20_000)
    yield made
    if not made.is_closed:
        made.main.close()
    qtbot.waitUntil(lambda: not left_threads(threads), timeout=20_000)
    qtbot.waitUntil(lambda: not left_workers(), timeout=20_000)


def left_workers() -> list[int]:
    """Return the process ids of SegDesk's workers that are children of this process."""
    return [
        child.pid
        for child in psutil.Process().children(recursive=True)
        if any(part.startswith("segdesk.") for part in child.cmdline())
    ]


def left_threads(before: set[threading.Thread]) -> list[str]:
    """Name SegDesk's threads that were not there before."""
    return [
        t.name
        for t in threading.enumerate()
        if t not in before and t.is_alive() and t.name.startswith("segdesk")
    ]

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segdesk.core.classes import ClassMap
from segdesk.io.store import ProjectStore
from segdesk.session.session import Session


@pytest.fixture
def reopen(tmp_path: Path, two_classes: ClassMap) -> Iterator[Callable[[], Session]]:
    """Open the project as a new window would; the one before is closed."""
    opened: list[Session] = []

    def open_again() -> Session:
        while opened:
            opened.pop().close()
        folder = tmp_path / "p.segdesk"
        store = (
            ProjectStore.open(folder)
            if folder.exists()
            else ProjectStore.create(folder, two_classes)
        )
        opened.append(Session(store))
        return opened[-1]

    yield open_again
    for session in opened:
        session.close()


@pytest.fixture
def session(reopen: Callable[[], Session]) -> Session:
    return reopen()

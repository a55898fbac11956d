from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from segdesk.cli import run


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remember what each architecture costs, but not in the folders of who runs the tests.

    That takes half a minute, so whatever asks for all of them is marked slow; the processes
    that share the tests (pytest-xdist) share it too.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGDESK_HOME", str(folder / "home"))
        yield


@pytest.fixture
def segdesk(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture
def project(
    tmp_path: Path,
    segdesk: Callable[..., Answer],
    disc_files: Callable[..., list[Path]],
    make_model: Callable[..., Path],
) -> Path:
    """Make a project of five labelled images with a tiny model, all by command."""
    folder = tmp_path / "p.segdesk"
    disc_files(5)
    assert segdesk("new", folder, "--classes", "background,nucleus").code == 0
    added = segdesk("add", folder, tmp_path / "images", "--masks", tmp_path / "masks")
    assert added.code == 0, added.err
    make_model(folder / "models" / "tiny")
    assert segdesk("models", "use", "tiny", "--project", folder).code == 0
    return folder

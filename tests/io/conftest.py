from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from segdesk.core.classes import ClassMap
from segdesk.core.sample import Sample, Split
from segdesk.io.store import ProjectStore

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


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


@pytest.fixture
def new_sample(tmp_path: Path) -> Callable[..., Sample]:
    def make(
        sample_id: str = "a", shape: tuple[int, ...] = (12, 16), path: Path | None = None
    ) -> Sample:
        return Sample(
            id=sample_id,
            name=f"{sample_id}.png",
            path=path or tmp_path / f"{sample_id}.png",
            sha256="00",
            shape=shape,
            channels=1,
            dtype="uint8",
            split=Split.TRAIN,
        )

    return make


@pytest.fixture
def store(
    tmp_path: Path, two_classes: ClassMap, new_sample: Callable[..., Sample]
) -> Iterator[ProjectStore]:
    """A project with one sample, ``a``, that has blank labels."""
    with ProjectStore.create(tmp_path / "project", two_classes) as project:
        project.add_samples([new_sample()])
        blank = np.zeros((12, 16), np.uint8)
        project.write_revision("a", blank, blank, origin="test")
        yield project

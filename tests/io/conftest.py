from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from segdesk.core.classes import ClassMap
from segdesk.core.sample import Sample, Split
from segdesk.io.store import ProjectStore


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

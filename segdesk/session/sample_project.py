"""The bundled sample project: CC0 nuclei of two kinds, one of them new to the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from segdesk.core.classes import ClassMap
from segdesk.core.sample import Split
from segdesk.io.store import ProjectStore
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session

CLASSES = ("background", "nucleus")


@dataclass(frozen=True, slots=True)
class SampleImage:
    """An image of the sample project.

    ``kind`` is *fluorescence* (the model knows it) or *stained* (it does not);
    ``role`` is *correct* (the demo takes its true mask) or *judge* (scores are
    taken on it).
    """

    name: str
    kind: str
    role: str
    split: Split


def sample_folder() -> Path:
    """Return where the bundled images lie."""
    return Path(str(files("segdesk_resources"))) / "sample"


def sample_images() -> list[SampleImage]:
    """Return what is in the sample project."""
    entries = json.loads((sample_folder() / "sample.json").read_text("utf-8"))["images"]
    return [SampleImage(e["name"], e["kind"], e["role"], Split(e["split"])) for e in entries]


def make_sample_project(folder: Path) -> Session:
    """Make a new project with copies of the bundled images; no backend yet.

    Raises
    ------
    InputError
        The folder holds something already, or cannot be written.
    """
    source = sample_folder()
    session = Session(ProjectStore.create(folder, ClassMap.from_names(CLASSES)))
    session.store.set("is_sample", True)
    new = [
        NewImage(
            source / "images" / f"{image.name}.png",
            split=image.split,
            reference=source / "masks" / f"{image.name}.png",
        )
        for image in sample_images()
    ]
    add_images(session, new, copy=True)
    return session

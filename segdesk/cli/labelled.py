"""Labelled images that a command judges a model on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from segdesk.core.address import local_path, name_of
from segdesk.core.annotation import Supervision
from segdesk.core.classes import ClassMap
from segdesk.core.errors import InputError
from segdesk.core.manifest import ManifestSample
from segdesk.core.sample import Split
from segdesk.io.images import probe_image
from segdesk.io.labels import write_labels
from segdesk.io.masks import read_mask
from segdesk.io.sources import hash_source
from segdesk.io.store import ProjectStore
from segdesk.session.models import ModelEntry, current_model, find_model
from segdesk.session.projects import find_images, match_masks
from segdesk.session.training import judged_samples


@contextmanager
def labelled(
    project: Path | None,
    model: str | None,
    images: Path | None,
    masks: Path | None,
    *,
    read_only: bool = True,
) -> Iterator[tuple[ModelEntry, list[ManifestSample], Path | None]]:
    """Find the model, the labelled images to judge it on, and their project's folder.

    Without ``read_only`` the project is locked, so that it may be written to.

    Raises
    ------
    InputError
        No model, or no labelled image, or they do not go together.
    """
    if images is not None and masks is not None:
        with tempfile.TemporaryDirectory() as work:
            if project is not None:
                with ProjectStore.open(project, read_only=True) as store:
                    entry = _model_of(store, model)
            else:
                entry = find_model(model or "nuclei-unet")
            yield entry, _from_folders(entry, images, masks, Path(work)), None
        return
    if project is None:
        raise InputError("Name a project, or give --images FOLDER and --masks FOLDER.")
    with ProjectStore.open(project, read_only=read_only) as store:
        entry = _model_of(store, model)
        if entry.card.classes != store.classes.names:
            raise InputError(
                f"The model {entry.name!r} knows {', '.join(entry.card.classes)}, the project has "
                f"{', '.join(store.classes.names)}; they cannot be compared."
            )
        with tempfile.TemporaryDirectory() as work:
            yield entry, judged_samples(store, Path(work)), store.folder


def _model_of(store: ProjectStore, model: str | None) -> ModelEntry:
    entry = find_model(model, store) if model else current_model(store)
    if entry is None:
        raise InputError("No model fits this project; name one with --model.")
    return entry


def _from_folders(entry: ModelEntry, images: Path, masks: Path, work: Path) -> list[ManifestSample]:
    classes = ClassMap.from_names(list(entry.card.classes))
    samples: list[ManifestSample] = []
    for pair in match_masks(find_images([images]), masks):
        if pair.mask is None:
            continue
        shape = probe_image(pair.path).shape
        labels = read_mask(pair.mask, classes, shape).labels
        file = work / f"{len(samples)}.tif"
        write_labels(file, labels, np.full(shape, Supervision.ACCEPTED, np.uint8))
        samples.append(
            ManifestSample(
                id=name_of(pair.path),
                image=local_path(pair.path).absolute(),
                sha256=hash_source(pair.path),
                labels=file,
                revision=1,
                split=Split.VALIDATION,
            )
        )
    return samples

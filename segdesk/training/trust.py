"""How far a model's probabilities and its uncertainty can be trusted, on labelled images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segdesk.config.inference import InferenceConfig
from segdesk.core.card import ModelCard
from segdesk.core.classes import UNLABELLED
from segdesk.core.errors import InputError
from segdesk.core.manifest import ManifestSample
from segdesk.core.prediction import ONE_PASS, UncertaintyKind
from segdesk.inference.findings import Findings, ImageCounts, share_of
from segdesk.inference.normalize import standardize
from segdesk.inference.predictor import Predictor
from segdesk.io.atomic import explain_os_errors
from segdesk.nn.device import pick_device
from segdesk.nn.weights import load_model
from segdesk.training.dataset import load_sample

if TYPE_CHECKING:
    from segdesk.inference.findings import Pixels


def find_out(
    folder: Path,
    samples: Sequence[ManifestSample],
    config: InferenceConfig,
    kinds: Sequence[str] = ONE_PASS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Predict labelled images with a model package and compare.

    Raises
    ------
    InputError
        An image cannot be read or does not fit the model, no pixel is labelled, or
        the model's output is not a number.
    """
    loaded = load_model(folder)
    card = loaded.card
    predictor = Predictor(loaded, pick_device(config.device).device)
    wanted = [UncertaintyKind(kind) for kind in kinds]
    found: list[ImageCounts] = []
    with tempfile.TemporaryDirectory() as work:
        for done, sample in enumerate(samples):
            progress(done, len(samples))
            planes = list(_labelled_pixels(sample, card, predictor, config))
            if planes:
                file = Path(work) / f"{done}.npz"
                _write(file, planes)
                counts = ImageCounts.count(
                    planes,
                    len(card.classes),
                    wanted,
                    share_of(len(samples)),
                    partial(_read, file),
                    has_taught=sample.sha256 in card.trained_ids,
                )
                found.append(counts)
        progress(len(samples), len(samples))
        if not found:
            raise InputError("No pixel of these images is labelled, so there is nothing to judge.")
        return Findings.of(found, card.classes)


def _labelled_pixels(
    sample: ManifestSample, card: ModelCard, predictor: Predictor, config: InferenceConfig
) -> Iterator[Pixels]:
    """Yield the labelled pixels of each plane of an image that has some."""
    for item in load_sample(sample, card, 1.0):
        known = (item.weights > 0) & (item.labels != UNLABELLED)
        if not known.any():
            continue
        plane = standardize(item.image, card.normalization)
        maps = predictor.predict_plane(plane, config)
        yield maps[:, known], item.labels[known]


def _write(file: Path, planes: Sequence[Pixels]) -> None:
    """Keep pixels on disk: a temperature is judged after it is fitted."""
    arrays = [array for plane in planes for array in plane]
    with explain_os_errors(file.parent):
        np.savez(file, *arrays)


def _read(file: Path) -> Iterator[Pixels]:
    with np.load(file) as stored:
        for number in range(0, len(stored.files), 2):
            yield stored[f"arr_{number}"], stored[f"arr_{number + 1}"]

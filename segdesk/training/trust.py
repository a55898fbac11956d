"""How far a model's probabilities and its uncertainty can be trusted, on labelled images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from segdesk.inference.calibration import UncertaintyCounts, count_uncertainty
from segdesk.inference.findings import Findings, ImageCounts, share_of
from segdesk.inference.normalize import standardize
from segdesk.inference.predictor import Plane, Predictor
from segdesk.inference.sampling import Sampler, make_sampler, with_uncertainty
from segdesk.inference.tiling import Box
from segdesk.io.atomic import explain_os_errors
from segdesk.nn.device import pick_device
from segdesk.nn.weights import load_model
from segdesk.training.dataset import load_sample

if TYPE_CHECKING:
    import numpy.typing as npt

    from segdesk.inference.findings import Pixels


def find_out(
    folder: Path,
    samples: Sequence[ManifestSample],
    config: InferenceConfig,
    kinds: Sequence[UncertaintyKind] = ONE_PASS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Predict labelled images with a model package and compare.

    Parameters
    ----------
    kinds
        Uncertainties to judge, of :data:`~segdesk.core.prediction.COMPARABLE`. One that takes
        several passes is judged with the mask that is their mean; all else is said of one pass.

    Raises
    ------
    InputError
        An image cannot be read or does not fit the model, no pixel is labelled, the
        model's output is not a number, or it has no dropout to measure.
    """
    loaded = load_model(folder)
    card = loaded.card
    predictor = Predictor(loaded, pick_device(config.device).device)
    of_one = [kind for kind in kinds if kind in ONE_PASS]
    samplers: dict[UncertaintyKind, Sampler] = {
        kind: make_sampler(kind, [predictor.network], passes=config.passes)
        for kind in kinds
        if kind not in ONE_PASS
    }
    found: list[ImageCounts] = []
    with tempfile.TemporaryDirectory() as work:
        for done, sample in enumerate(samples):
            progress(done, len(samples))
            measured: dict[UncertaintyKind, UncertaintyCounts] = {}
            planes = list(_labelled_pixels(sample, card, predictor, config, samplers, measured))
            if planes:
                file = Path(work) / f"{done}.npz"
                _write(file, planes)
                counts = ImageCounts.count(
                    planes,
                    len(card.classes),
                    of_one,
                    share_of(len(samples)),
                    partial(_read, file),
                    has_taught=sample.sha256 in card.trained_ids,
                    measured=measured,
                )
                found.append(counts)
        progress(len(samples), len(samples))
        if not found:
            raise InputError("No pixel of these images is labelled, so there is nothing to judge.")
        return Findings.of(found, card.classes)


def _labelled_pixels(
    sample: ManifestSample,
    card: ModelCard,
    predictor: Predictor,
    config: InferenceConfig,
    samplers: Mapping[UncertaintyKind, Sampler],
    measured: dict[UncertaintyKind, UncertaintyCounts],
) -> Iterator[Pixels]:
    """Yield the labelled pixels of each plane of an image that has some.

    What several passes say of them is added to ``measured``.
    """
    for item in load_sample(sample, card, 1.0):
        known = (item.weights > 0) & (item.labels != UNLABELLED)
        if not known.any():
            continue
        plane = standardize(item.image, card.normalization)
        maps = predictor.predict_plane(plane, config)
        truth = item.labels[known]
        yield maps[:, known], truth
        for kind, sampler in samplers.items():
            passed = _by_passes(plane, predictor, config, sampler)[:, known]
            counts = count_uncertainty(passed[-1], passed[:-1].argmax(0) != truth)
            measured[kind] = measured[kind] + counts if kind in measured else counts


def _by_passes(
    plane: npt.NDArray[np.float32], predictor: Predictor, config: InferenceConfig, sampler: Sampler
) -> npt.NDArray[np.float32]:
    """Return the mean probabilities of several passes and their uncertainty, (K + 1, Y, X)."""
    result: list[npt.NDArray[np.float32]] = []

    def keep(box: Box, maps: npt.NDArray[np.float32]) -> None:
        if not result:
            result.append(np.empty((len(maps), *plane.shape[:2]), np.float32))
        result[0][:, *box.slices] = maps

    predictor.run(
        Plane.of(plane), config, keep, forward=lambda batch: with_uncertainty(sampler, batch)
    )
    return result[0]


def _write(file: Path, planes: Sequence[Pixels]) -> None:
    """Keep pixels on disk: a temperature is judged after it is fitted."""
    arrays = [array for plane in planes for array in plane]
    with explain_os_errors(file.parent):
        np.savez(file, *arrays)


def _read(file: Path) -> Iterator[Pixels]:
    with np.load(file) as stored:
        for number in range(0, len(stored.files), 2):
            yield stored[f"arr_{number}"], stored[f"arr_{number + 1}"]

"""How far a model's probabilities and its uncertainty can be trusted, on labelled images."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segdesk.config.inference import InferenceConfig
from segdesk.core.card import ModelCard
from segdesk.core.classes import UNLABELLED
from segdesk.core.errors import InputError
from segdesk.core.manifest import ManifestSample
from segdesk.core.prediction import UncertaintyKind
from segdesk.inference.calibration import (
    FIT_PIXELS,
    TEMPERATURES,
    MisclassificationView,
    Reliability,
    Tally,
    UncertaintyCounts,
    calibrated_reliability,
    draw_pixels,
    expected_calibration_error,
    fit_temperature,
)
from segdesk.inference.normalize import standardize
from segdesk.inference.predictor import Predictor
from segdesk.io.atomic import explain_os_errors
from segdesk.nn.device import pick_device
from segdesk.nn.weights import load_model
from segdesk.training.dataset import load_sample

if TYPE_CHECKING:
    import numpy.typing as npt

    #: Probabilities (K, n) and true classes (n,) of the labelled pixels of a plane.
    Pixels = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]

BAND: Final = (0.2, 0.8)
#: The share of pixels that counts as the most uncertain.
MOST_UNCERTAIN: Final = 0.1
_COVERAGES = np.arange(1, 21) / 20


def judge_trust(
    folder: Path,
    samples: Sequence[ManifestSample],
    config: InferenceConfig,
    kinds: Sequence[str] = ("margin", "entropy"),
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    band: tuple[float, float] = BAND,
) -> dict[str, Any]:
    """Judge the probabilities and the uncertainty of a model package.

    Returns
    -------
    dict
        Plain data for JSON; a figure that cannot be had, such as the share of the
        wrong pixels where none is wrong, is None.

        - ``images``, ``pixels``, ``wrong``, ``accuracy``: of all labelled pixels;
          ``learnt``: how many of the images are among those the model learnt from.
        - ``calibration``: ``ece_before`` and ``ece_after`` the temperature, and
          ``bins``, the reliability before and after. The temperature is fitted on
          every other image and judged on the rest, then the other way round: of the
          ``halves`` the errors are averaged, the bins added. ``temperature`` itself
          is fitted on all images; ``is_at_limit``: it is the lowest or highest that
          was tried. ``is_cross_checked`` is False with one image;
          there is no ``after`` then, and ``ece_before`` is of all pixels.
        - ``uncertainty``: per kind ``auroc``, ``aurc``, ``share_of_errors`` in the
          ``most_uncertain`` share of the pixels, ``risk_without`` those pixels, and
          ``risk_coverage``. ``best``: the kind of the highest AUROC to four
          decimals, the first of those that share it.
        - ``band``: the share of the ``wrong`` and the ``right`` pixels within it.
        - ``histograms``: right and wrong pixels by the probability ``of`` a class
          (None: of their true one), for ``all`` and per true class.

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
    tally = Tally(len(card.classes), wanted)
    with tempfile.TemporaryDirectory() as work:
        kept = _Kept(Path(work), len(samples))
        learnt = 0
        for done, sample in enumerate(samples):
            progress(done, len(samples))
            planes = list(_labelled_pixels(sample, card, predictor, config))
            for probabilities, truth in planes:
                tally.add(probabilities, truth)
            if planes:
                kept.add(planes)
                learnt += sample.sha256 in card.trained_ids
        progress(len(samples), len(samples))
        if not kept.images:
            raise InputError("No pixel of these images is labelled, so there is nothing to judge.")
        calibration = _calibration(kept, tally.reliability)
    uncertainty = {str(kind): _describe(counts) for kind, counts in tally.uncertainty.items()}
    return {
        "images": kept.images,
        "learnt": learnt,
        "pixels": tally.pixels,
        "wrong": tally.wrong,
        "accuracy": 1.0 - tally.wrong / tally.pixels,
        "calibration": calibration,
        "uncertainty": uncertainty,
        "most_uncertain": MOST_UNCERTAIN,
        "best": _best(uncertainty),
        "band": {
            "low": band[0],
            "high": band[1],
            "wrong": _plain(tally.view.share_of_errors_within(*band)),
            "right": _plain(tally.view.share_of_right_within(*band)),
        },
        "histograms": _histograms(tally.view, card.classes, band),
    }


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
        if not np.isfinite(maps).all():
            raise InputError(
                f"The model {card.name!r} gives no numbers for {sample.image.name}, so its weights "
                "are damaged; copy the model again, or choose another one."
            )
        yield maps[:, known], item.labels[known]


class _Kept:
    """Labelled pixels of images, on disk: a temperature is judged after it is fitted.

    Parameters
    ----------
    folder
        Where the files go.
    images
        How many there will be at most.
    """

    def __init__(self, folder: Path, images: int) -> None:
        self._folder = folder
        self._share = FIT_PIXELS // max(1, -(-images // 2))
        self._files: list[list[Path]] = []
        self._drawn: list[list[Pixels]] = [[], []]

    @property
    def images(self) -> int:
        """How many there are; image number i belongs to half i % 2."""
        return len(self._files)

    def add(self, planes: Sequence[Pixels]) -> None:
        """Keep the planes of an image, and draw its share of pixels to fit on."""
        half, files = self.images % 2, []
        for number, (probabilities, truth) in enumerate(planes):
            chosen = draw_pixels(len(truth), max(1, self._share // len(planes)))
            self._drawn[half].append((probabilities[:, chosen], truth[chosen]))
            files.append(self._folder / f"{self.images}-{number}.npz")
            with explain_os_errors(self._folder):
                np.savez(files[-1], probabilities=probabilities, truth=truth)
        self._files.append(files)

    def temperature(self, *halves: int) -> float:
        """Fit on the images of one half or both."""
        drawn = [pixels for half in halves for pixels in self._drawn[half]]
        return fit_temperature(
            np.concatenate([p for p, _ in drawn], axis=1), np.concatenate([t for _, t in drawn])
        )

    def reliability(self, half: int, temperature: float) -> Reliability:
        """Count the pixels of a half after a temperature."""
        total = None
        for file in (file for files in self._files[half::2] for file in files):
            with np.load(file) as stored:
                pixels = stored["probabilities"], stored["truth"]
            counted = calibrated_reliability(*pixels, temperature)
            total = counted if total is None else total + counted
        assert total is not None  # a half that is asked for has images
        return total


def _calibration(kept: _Kept, before: Reliability) -> dict[str, Any]:
    temperature = kept.temperature(*range(min(kept.images, 2)))
    fitted = {
        "temperature": temperature,
        "is_at_limit": any(math.isclose(temperature, t, rel_tol=1e-3) for t in TEMPERATURES),
    }
    if kept.images < 2:
        return {
            **fitted,
            "is_cross_checked": False,
            "ece_before": expected_calibration_error(before),
            "ece_after": None,
            "halves": [],
            "bins": {"before": _bins(before), "after": None},
        }
    halves, counted = [], []
    for half in (0, 1):
        others = kept.temperature(1 - half)
        counted.append(kept.reliability(half, others))
        halves.append(
            {
                "images": len(range(half, kept.images, 2)),
                "temperature": others,
                "ece_before": expected_calibration_error(kept.reliability(half, 1.0)),
                "ece_after": expected_calibration_error(counted[-1]),
            }
        )
    return {
        **fitted,
        "is_cross_checked": True,
        **{key: float(np.mean([h[key] for h in halves])) for key in ("ece_before", "ece_after")},
        "halves": halves,
        "bins": {"before": _bins(before), "after": _bins(counted[0] + counted[1])},
    }


def _bins(counted: Reliability) -> dict[str, list[Any]]:
    return {
        "confidence": [_plain(v) for v in counted.confidence],
        "accuracy": [_plain(v) for v in counted.accuracy],
        "count": counted.count.tolist(),
    }


def _describe(counts: UncertaintyCounts) -> dict[str, Any]:
    without = counts.risk_at(np.array([1.0 - MOST_UNCERTAIN]))
    return {
        "auroc": _plain(counts.auroc()),
        "aurc": _plain(counts.aurc()),
        "share_of_errors": _plain(counts.share_of_errors(MOST_UNCERTAIN)),
        "risk_without": float(without[0]),
        "risk_coverage": {
            "coverage": _COVERAGES.tolist(),
            "risk": counts.risk_at(_COVERAGES).tolist(),
        },
    }


def _best(uncertainty: dict[str, dict[str, Any]]) -> str | None:
    known = {k: round(v["auroc"], 4) for k, v in uncertainty.items() if v["auroc"] is not None}
    return max(known, key=lambda kind: known[kind]) if known else None


def _histograms(
    view: MisclassificationView, classes: Sequence[str], band: tuple[float, float]
) -> dict[str, Any]:
    def one(true_class: int | None) -> dict[str, Any]:
        right, wrong = view.histogram(true_class)
        return {
            "right": right.tolist(),
            "wrong": wrong.tolist(),
            "right_within": _plain(view.share_of_right_within(*band, true_class)),
            "wrong_within": _plain(view.share_of_errors_within(*band, true_class)),
        }

    return {
        "of": classes[1] if view.of_target is not None else None,
        "all": one(None),
        "classes": {name: one(number) for number, name in enumerate(classes)},
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

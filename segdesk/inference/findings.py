"""What labelled images say of a model's probabilities and its uncertainty.

No torch: the command line predicts the images, the window reads stored predictions, and
both draw the same conclusions here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segdesk import __version__
from segdesk.core.calibration import Calibration
from segdesk.core.errors import InputError
from segdesk.core.prediction import UncertaintyKind
from segdesk.inference.calibration import (
    FIT_PIXELS,
    TEMPERATURES,
    MisclassificationView,
    PackedCounts,
    Reliability,
    Tally,
    UncertaintyCounts,
    calibrated_reliability,
    draw_pixels,
    expected_calibration_error,
    fit_temperature,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    #: Probabilities (K, n) and true classes (n,) of the labelled pixels of a plane.
    Pixels = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]

BAND: Final = (0.2, 0.8)
#: The share of pixels that counts as the most uncertain.
MOST_UNCERTAIN: Final = 0.1
#: Pixels that are counted in one go.
_PIECE = 1 << 17
_COVERAGES = np.arange(1, 21) / 20


def percent(share: float | None) -> str:
    """Write a share as a percentage, near the ends with a decimal; "none" for None."""
    if share is None:
        return "none"
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    if 0.9995 <= share < 1:
        return "more than 99.9 %"
    return f"{100 * share:.{0 if 0.1 <= share <= 0.9 or share in (0, 1) else 1}f} %"


def share_of(images: int) -> int:
    """Return how many pixels each of ``images`` gives for fitting a temperature.

    A half of them give at most :data:`FIT_PIXELS`. The same for many numbers of images,
    so that one more seldom means that all are drawn from anew.
    """
    half = max(1, -(-images // 2))
    return int(FIT_PIXELS >> (half - 1).bit_length())


@dataclass(eq=False)
class ImageCounts:
    """What is kept in memory of one labelled image.

    Attributes
    ----------
    reliability, view, uncertainty
        Counts of all its labelled pixels.
    drawn
        Some of them, for fitting a temperature.
    read
        Reads all of them again, plane by plane.
    has_taught
        The model learnt from this image.
    """

    reliability: Reliability
    view: MisclassificationView
    uncertainty: dict[UncertaintyKind, PackedCounts]
    drawn: list[Pixels]
    read: Callable[[], Iterable[Pixels]]
    has_taught: bool = False
    _after: tuple[float, Reliability] | None = field(default=None, repr=False)

    @classmethod
    def count(
        cls,
        planes: Sequence[Pixels],
        classes: int,
        kinds: Sequence[UncertaintyKind],
        share: int,
        read: Callable[[], Iterable[Pixels]],
        *,
        has_taught: bool = False,
        measured: Mapping[UncertaintyKind, UncertaintyCounts] | None = None,
    ) -> ImageCounts:
        """Count the labelled pixels of an image's planes and draw ``share`` of them.

        Parameters
        ----------
        kinds
            Uncertainties that the probabilities tell.
        measured
            Others, which were counted already.
        """
        tally, drawn = Tally(classes, kinds), []
        for probabilities, truth in planes:
            for piece in _pieces(probabilities, truth):
                tally.add(*piece)
            chosen = draw_pixels(len(truth), max(1, share // len(planes)))
            drawn.append((probabilities[:, chosen], truth[chosen]))
        counted = {**tally.uncertainty, **(measured or {})}
        packed = {kind: PackedCounts.of(counts) for kind, counts in counted.items()}
        return cls(tally.reliability, tally.view, packed, drawn, read, has_taught)

    def after(self, temperature: float) -> Reliability:
        """Return the reliability after a temperature; the last answer is kept."""
        if self._after is None or self._after[0] != temperature:
            pieces = (piece for plane in self.read() for piece in _pieces(*plane))
            counted = [calibrated_reliability(*piece, temperature) for piece in pieces]
            self._after = temperature, sum(counted[1:], counted[0])
        return self._after[1]


@dataclass(frozen=True, eq=False)
class Half:
    """Every other image, judged with a temperature fitted on the rest."""

    images: int
    temperature: float
    before: Reliability
    after: Reliability


@dataclass(frozen=True)
class Scores:
    """How well a kind of uncertainty finds the wrong pixels; NaN where that cannot be said.

    Attributes
    ----------
    auroc, aurc
        Area under the ROC curve, and under risk against coverage.
    share_of_errors
        Share of the wrong pixels in the most uncertain tenth of all.
    risk_without
        Share of wrong pixels among the others.
    risks
        Share of wrong pixels at each twentieth of coverage.
    """

    auroc: float
    aurc: float
    share_of_errors: float
    risk_without: float
    risks: tuple[float, ...]

    @classmethod
    def of(cls, counts: UncertaintyCounts) -> Scores:
        """Score the counts of a kind."""
        return cls(
            counts.auroc(),
            counts.aurc(),
            counts.share_of_errors(MOST_UNCERTAIN),
            float(counts.risk_at(np.array([1.0 - MOST_UNCERTAIN]))[0]),
            tuple(counts.risk_at(_COVERAGES).tolist()),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "auroc": _plain(self.auroc),
            "aurc": _plain(self.aurc),
            "share_of_errors": _plain(self.share_of_errors),
            "risk_without": self.risk_without,
            "risk_coverage": {"coverage": _COVERAGES.tolist(), "risk": list(self.risks)},
        }


@dataclass(frozen=True, eq=False)
class Findings:
    """What labelled images say of a model.

    Attributes
    ----------
    classes
        Names of the classes.
    images, learnt
        How many images there are, and from how many of them the model learnt.
    reliability, view
        Counts of all labelled pixels.
    scores
        How well each kind of uncertainty finds the wrong ones.
    temperature
        Fitted on all images.
    halves
        Two; none with one image.
    """

    classes: tuple[str, ...]
    images: int
    learnt: int
    reliability: Reliability
    view: MisclassificationView
    scores: dict[UncertaintyKind, Scores]
    temperature: float
    halves: tuple[Half, ...]

    @classmethod
    def of(cls, images: Sequence[ImageCounts], classes: Sequence[str]) -> Findings:
        """Draw the conclusions; there is at least one image, with a labelled pixel."""
        first, *others = images
        kinds = first.uncertainty
        totals = {k: PackedCounts.total(image.uncertainty[k] for image in images) for k in kinds}
        return cls(
            tuple(classes),
            len(images),
            sum(image.has_taught for image in images),
            sum((image.reliability for image in others), first.reliability),
            sum((image.view for image in others), first.view),
            {kind: Scores.of(counts) for kind, counts in totals.items()},
            _fit(images),
            _cross_check(images) if others else (),
        )

    @property
    def pixels(self) -> int:
        """How many labelled pixels there are."""
        return int(self.reliability.count.sum())

    @property
    def wrong(self) -> int:
        """How many of them were given another class than the true one."""
        return self.pixels - int(self.reliability.right.sum())

    @property
    def is_at_limit(self) -> bool:
        """Whether the temperature is the lowest or highest that was tried."""
        return any(math.isclose(self.temperature, t, rel_tol=1e-3) for t in TEMPERATURES)

    @property
    def accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        return 1.0 - self.wrong / self.pixels

    @property
    def after(self) -> Reliability | None:
        """Reliability after the temperature of the other half; None with one image."""
        return self.halves[0].after + self.halves[1].after if self.halves else None

    @property
    def ece_before(self) -> float:
        """Expected calibration error as the model is: mean over the halves, or over all."""
        if not self.halves:
            return expected_calibration_error(self.reliability)
        return float(np.mean([expected_calibration_error(h.before) for h in self.halves]))

    @property
    def ece_after(self) -> float | None:
        """The same after the temperature of the other half; None with one image."""
        if not self.halves:
            return None
        return float(np.mean([expected_calibration_error(h.after) for h in self.halves]))

    @property
    def helps(self) -> tuple[bool, ...]:
        """Per half, whether the temperature of the other made its error smaller."""
        error = expected_calibration_error
        return tuple(error(half.after) < error(half.before) for half in self.halves)

    @property
    def best(self) -> UncertaintyKind | None:
        """Kind of the highest AUROC to four decimals, the first of those that share it."""
        return _best(self.scores)

    def as_dict(self, band: tuple[float, float] = BAND) -> dict[str, Any]:
        """Return the findings for JSON.

        Returns
        -------
        dict
            Plain data; a figure that cannot be had, such as the share of the wrong
            pixels where none is wrong, is None.

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
        """
        view, best = self.view, self.best
        return {
            "images": self.images,
            "learnt": self.learnt,
            "pixels": self.pixels,
            "wrong": self.wrong,
            "accuracy": self.accuracy,
            "calibration": self._calibration(),
            "uncertainty": {str(k): scores.as_dict() for k, scores in self.scores.items()},
            "most_uncertain": MOST_UNCERTAIN,
            "best": None if best is None else str(best),
            "band": {
                "low": band[0],
                "high": band[1],
                "wrong": _plain(view.share_of_errors_within(*band)),
                "right": _plain(view.share_of_right_within(*band)),
            },
            "histograms": _histograms(view, self.classes, band),
        }

    def as_calibration(self, model: str, weights_sha256: str) -> Calibration:
        """Return what is worth keeping for the model's predictions.

        Raises
        ------
        InputError
            No temperature is the best one, so there is none to keep.
        """
        if self.is_at_limit:
            why = "almost no pixel is wrong" if self.temperature < 1 else "too many pixels are"
            raise InputError(
                f"No temperature fits {model}: {why} on {self.images} labelled "
                f"image{'' if self.images == 1 else 's'}; accept more images, then try again."
            )
        return Calibration(
            model=model,
            weights_sha256=weights_sha256,
            temperature=round(self.temperature, 6),
            images=self.images,
            learnt=self.learnt,
            pixels=self.pixels,
            ece_before=self.ece_before,
            ece_after=self.ece_after,
            auroc={str(kind): _plain(s.auroc) for kind, s in self.scores.items()},
            share_of_errors={
                str(kind): _plain(s.share_of_errors) for kind, s in self.scores.items()
            },
            kind=self.best,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            segdesk_version=__version__,
        )

    def _calibration(self) -> dict[str, Any]:
        after = self.after
        return {
            "temperature": self.temperature,
            "is_at_limit": self.is_at_limit,
            "is_cross_checked": bool(self.halves),
            "ece_before": self.ece_before,
            "ece_after": self.ece_after,
            "halves": [
                {
                    "images": half.images,
                    "temperature": half.temperature,
                    "ece_before": expected_calibration_error(half.before),
                    "ece_after": expected_calibration_error(half.after),
                }
                for half in self.halves
            ],
            "bins": {
                "before": _bins(self.reliability),
                "after": None if after is None else _bins(after),
            },
        }


def _pieces(
    probabilities: npt.NDArray[np.float32], truth: npt.NDArray[np.uint8]
) -> Iterator[Pixels]:
    """Cut the pixels of a plane: numpy counts in one go, and the window must not wait for it."""
    for start in range(0, len(truth), _PIECE):
        yield probabilities[:, start : start + _PIECE], truth[start : start + _PIECE]


def _fit(images: Sequence[ImageCounts]) -> float:
    drawn = [pixels for image in images for pixels in image.drawn]
    return fit_temperature(
        np.concatenate([p for p, _ in drawn], axis=1), np.concatenate([t for _, t in drawn])
    )


def _cross_check(images: Sequence[ImageCounts]) -> tuple[Half, ...]:
    """Judge every other image with a temperature fitted on the rest, then the other way."""
    halves = []
    for half in (0, 1):
        judged, temperature = images[half::2], _fit(images[1 - half :: 2])
        before = [image.reliability for image in judged]
        after = [image.after(temperature) for image in judged]
        halves.append(
            Half(len(judged), temperature, sum(before[1:], before[0]), sum(after[1:], after[0]))
        )
    return tuple(halves)


def _best(scores: Mapping[UncertaintyKind, Scores]) -> UncertaintyKind | None:
    known = {k: round(s.auroc, 4) for k, s in scores.items() if not math.isnan(s.auroc)}
    return max(known, key=lambda kind: known[kind]) if known else None


def _bins(counted: Reliability) -> dict[str, list[Any]]:
    return {
        "confidence": [_plain(v) for v in counted.confidence],
        "accuracy": [_plain(v) for v in counted.accuracy],
        "count": counted.count.tolist(),
    }


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

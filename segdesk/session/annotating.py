"""When to stop annotating: what more labelled images would bring, from the rounds so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segdesk.core.round import Round
from segdesk.core.run import RunState
from segdesk.core.sample import Split
from segdesk.io.store import ProjectStore
from segdesk.session.rounds import list_rounds

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

#: Rounds with different numbers of images that are the least for a curve.
FEWEST_ROUNDS: Final = 3

#: How many more images the gain is told for.
MORE: Final = 10

#: A 95 % interval of the gain wider than this (in Dice) says nothing.
WIDEST: Final = 0.1

#: Two strokes on an image further apart than this had a pause between them, in seconds.
PAUSE: Final = 60.0

DRAWS: Final = 1000
SEED: Final = 0

#: Exponents of the power law that are tried: what is usual for learning curves.
EXPONENTS: Final = (0.25, 1.5)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One round on the learning curve: labelled training images and validation Dice."""

    run: str
    images: int
    dice: float


@dataclass(frozen=True)
class LearningCurve:
    """What was learnt over the rounds, and what ten more images would bring.

    Attributes
    ----------
    points
        The rounds it rests on, all judged on the same images with the same labels.
    images, middle, low, high
        The fitted curve, for drawing: numbers of images, the median of the fits, and the
        bounds of their middle 95 %.
    gain, gain_interval
        Expected change of Dice by ``MORE`` more images, and its 95 % interval.
    minutes_per_image
        The user's own time at correcting an image, measured from the strokes; None
        where there are too few.
    """

    points: tuple[CurvePoint, ...]
    images: tuple[float, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    gain: float
    gain_interval: tuple[float, float]
    minutes_per_image: float | None

    @property
    def gain_per_minute(self) -> float | None:
        """Expected change of Dice by a minute of correcting; None where no time is known."""
        if self.minutes_per_image is None:
            return None
        return self.gain / (MORE * self.minutes_per_image)

    @property
    def text(self) -> str:
        """The expected gain for people, in a sentence."""
        low, high = self.gain_interval
        gain = (
            f"{MORE} more labelled images would change Dice by {self.gain:+.3f} "
            f"(95 % interval {low:+.3f} to {high:+.3f})"
        )
        if self.minutes_per_image is None or self.gain_per_minute is None:
            return f"{gain}."
        minutes = MORE * self.minutes_per_image
        return (
            f"{gain}, for about {minutes:.0f} min of your time at the pace so far: "
            f"{self.gain_per_minute:+.4f} a minute."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "points": [{"run": p.run, "images": p.images, "dice": p.dice} for p in self.points],
            "more_images": MORE,
            "gain": self.gain,
            "interval": list(self.gain_interval),
            "minutes_per_image": self.minutes_per_image,
            "gain_per_minute": self.gain_per_minute,
            "text": self.text,
        }


def learning_curve(store: ProjectStore) -> LearningCurve | None:
    """Fit a learning curve to the rounds of a project.

    Dice is taken to follow an inverse power law of the number n of labelled training
    images, a - b * n ** -c. The fit is repeated with the validation images drawn anew, with
    noise as large as the rounds scatter about the curve, and with c drawn from what is usual:
    with few rounds it cannot be found from them. Rounds with other settings than the rest
    count too, and make the interval wider.

    Returns
    -------
    LearningCurve or None
        None while there is too little to say: fewer than three rounds with different numbers
        of images that were judged on what the newest was, or an interval too wide.
    """
    rounds = _comparable(store)
    points = tuple(_point(entry) for entry in rounds)
    if len({point.images for point in points}) < FEWEST_ROUNDS:
        return None
    numbers = np.array([point.images for point in points], np.float64)
    fits = _Fits.of(numbers, _dice_table(rounds))
    now = max(point.images for point in points)
    gains = fits.at(np.array([now + MORE])) - fits.at(np.array([now]))
    low, gain, high = (float(q) for q in np.quantile(gains, (0.025, 0.5, 0.975)))
    if high - low > WIDEST:
        return None
    images = np.linspace(numbers.min(), now + MORE, 50)
    band = np.quantile(fits.at(images), (0.025, 0.5, 0.975), axis=0)
    return LearningCurve(
        points=points,
        images=tuple(images.tolist()),
        low=tuple(band[0].tolist()),
        middle=tuple(band[1].tolist()),
        high=tuple(band[2].tolist()),
        gain=gain,
        gain_interval=(low, high),
        minutes_per_image=minutes_per_image(store),
    )


def minutes_per_image(store: ProjectStore) -> float | None:
    """Return the user's mean time at an image, in minutes; None below three images.

    The time at an image is the sum of the gaps between its strokes, pauses left out. Images
    without two strokes are not counted: they were imported, or accepted as they were.
    """
    times = [correcting_seconds(store.stroke_times(sample.id)) for sample in store.samples()]
    measured = [seconds for seconds in times if seconds > 0]
    if len(measured) < FEWEST_ROUNDS:
        return None
    return float(np.mean(measured)) / 60


def correcting_seconds(times: Sequence[float]) -> float:
    """Return the sum of the gaps between strokes, without those longer than a minute."""
    gaps = (after - before for before, after in pairwise(sorted(times)))
    return sum(gap for gap in gaps if gap <= PAUSE)


def _comparable(store: ProjectStore) -> list[Round]:
    """Return the completed rounds that were judged on the very images and labels of the newest."""
    rounds = [
        entry.round
        for entry in list_rounds(store)
        if entry.round is not None
        and entry.round.state is RunState.COMPLETED
        and entry.round.of_split(Split.TRAIN)
        and (entry.round.after or {}).get("per_image")
    ]
    return [r for r in rounds if _judged_on(r) == _judged_on(rounds[-1])]


def _judged_on(entry: Round) -> tuple[tuple[str, ...], frozenset[tuple[str, str]], frozenset[str]]:
    held = entry.of_split(Split.VALIDATION)
    labels = frozenset((item.image_sha256, item.labels_sha256) for item in held)
    names = frozenset(one["image"] for one in (entry.after or {})["per_image"])
    return entry.classes, labels, names


def _point(entry: Round) -> CurvePoint:
    dice = float(np.mean([one["dice"] for one in (entry.after or {})["per_image"]]))
    return CurvePoint(entry.run, len(entry.of_split(Split.TRAIN)), dice)


def _dice_table(rounds: Sequence[Round]) -> Floats:
    """Return Dice after, by round and image: (rounds, images)."""
    names = sorted(one["image"] for one in (rounds[0].after or {})["per_image"])
    rows = [{one["image"]: one["dice"] for one in (r.after or {})["per_image"]} for r in rounds]
    return np.array([[row[name] for name in names] for row in rows], np.float64)


@dataclass(frozen=True)
class _Fits:
    """Many curves a - b * n ** -c through the same rounds; arrays of shape (draws,)."""

    limit: Floats
    rise: Floats
    exponent: Floats

    @classmethod
    def of(cls, numbers: Floats, dice: Floats) -> _Fits:
        """Fit ``DRAWS`` curves to the numbers of images (rounds,) and Dice (rounds, images)."""
        random = np.random.default_rng(SEED)
        least, most = (float(np.log(exponent)) for exponent in EXPONENTS)
        exponents = np.exp(random.uniform(least, most, DRAWS))
        chosen = random.integers(0, dice.shape[1], (DRAWS, dice.shape[1]))
        means = dice[:, chosen].mean(axis=2)  # (rounds, draws)
        noise = random.standard_normal(means.shape)
        curves = []
        for number, exponent in enumerate(exponents):
            basis = np.stack([np.ones_like(numbers), -(numbers**-exponent)], axis=1)
            first = np.linalg.lstsq(basis, dice.mean(axis=1), rcond=None)[0]
            left = dice.mean(axis=1) - basis @ first
            scatter = np.sqrt((left**2).sum() / max(1, len(numbers) - 2))
            drawn = means[:, number] + scatter * noise[:, number]
            curves.append(np.linalg.lstsq(basis, drawn, rcond=None)[0])
        limit, rise = np.array(curves).T
        return cls(limit, rise, exponents)

    def at(self, numbers: Floats) -> Floats:
        """Return Dice at these numbers of images, (draws, n), at most 1."""
        powers = numbers[None] ** -self.exponent[:, None]
        return np.minimum(self.limit[:, None] - self.rise[:, None] * powers, 1.0)

"""Whether a new model is better than the one it came from, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

#: With fewer images judged both times, nothing but "no evidence" is said: that all of
#: five improve happens by chance once in 32 times, that all of four do once in 16.
FEWEST_IMAGES: Final = 5

#: A loss of Dice on the images a model already knew that is worth a warning.
FORGOTTEN: Final = 0.01

#: A Dice below which a model is of little use.
POOR: Final = 0.3

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 10_000

#: Fixed, so that anybody gets the same interval from the same scores.
SEED: Final = 0


class Judgement(StrEnum):
    """What the images held back say about a new model."""

    BETTER = "better"
    NO_EVIDENCE = "no evidence"
    WORSE = "worse"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement with what it rests on.

    Attributes
    ----------
    difference
        Mean over images of Dice after less Dice before; None if no image was judged
        both times.
    interval
        Its 95 % interval (see :func:`paired_interval`); None below two images.
    images
        How many images were judged both times.
    text
        The verdict for people, with what to do where there is something to do.
    """

    judgement: Judgement
    difference: float | None
    interval: tuple[float, float] | None
    images: int
    text: str


def judge(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Verdict:
    """Compare the scores of a model before and after fine-tuning.

    A pure function of the two, so that a verdict can be recomputed from the files of a run.
    The images that are compared are those of both scores' ``per_image``.

    The weights that were kept are those that did best on the very images that judge them, so
    the difference flatters the new model a little; the interval does not know of that.

    Parameters
    ----------
    before, after
        As :func:`segdesk.training.metrics.summarize` returns, with the scores on images that
        the model knew before under ``remembered``; None where there are none.
    """
    changes = paired_changes(before, after)
    number = len(changes)
    difference = float(changes.mean()) if number else None
    interval = paired_interval(changes) if number > 1 else None
    judgement = _judgement(interval, number)
    sentences = [_main_words(judgement, difference, interval, number, before, after)]
    if number:
        sentences.append(_poor_words(after or {}))
    sentences.append(_memory_words(before or {}, after or {}))
    text = " ".join(sentence for sentence in sentences if sentence)
    return Verdict(judgement, difference, interval, number, text)


def paired_changes(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> npt.NDArray[np.float64]:
    """Return Dice after less Dice before of each image judged both times, float64 (n,)."""
    was, now = _dice_by_image(before), _dice_by_image(after)
    if (before or {}).get("classes") != (after or {}).get("classes"):
        was = {}  # means over other classes
    return np.array([now[image] - was[image] for image in sorted(was.keys() & now.keys())])


def paired_interval(changes: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of ``changes``.

    The percentiles are those of Hesterberg's expanded interval (The American Statistician
    69, 371, 2015, section 5.3), which lie further out the fewer images there are. The plain
    ones are too narrow for so few: with five images and no real difference they exclude zero
    15 times in 100, these 7 times (20 images: 7 and 5).

    Parameters
    ----------
    changes
        (n,), n at least 2.
    """
    number = len(changes)
    chosen = np.random.default_rng(SEED).integers(0, number, (RESAMPLES, number))
    means = changes[chosen].mean(axis=1)
    quantile = _student_quantile((1 + CONFIDENCE) / 2, number - 1)
    tail = NormalDist().cdf(-math.sqrt(number / (number - 1)) * quantile)
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def _student_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t, by Cornish and Fisher's series.

    It is within 0.3 % from 4 degrees of freedom on, and for fewer the images are too few
    for a verdict anyhow. (scipy has the exact one, and is slow to import into a window.)
    """
    z, v = NormalDist().inv_cdf(probability), float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def _dice_by_image(scores: Mapping[str, Any] | None) -> dict[str, float]:
    entries = (scores or {}).get("per_image") or ()
    return {entry["image"]: float(entry["dice"]) for entry in entries}


def _judgement(interval: tuple[float, float] | None, images: int) -> Judgement:
    if interval is None or images < FEWEST_IMAGES:
        return Judgement.NO_EVIDENCE
    low, high = interval
    if low > 0:
        return Judgement.BETTER
    return Judgement.WORSE if high < 0 else Judgement.NO_EVIDENCE


def _main_words(
    judgement: Judgement,
    difference: float | None,
    interval: tuple[float, float] | None,
    images: int,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> str:
    if difference is None:
        return _no_pairs_words(before, after)
    if images < FEWEST_IMAGES:
        return _few_images_words(difference, images)
    assert interval is not None
    on = f"on the {images} images held back: Dice {difference:+.3f} on average"
    surely = f"(95 % interval {interval[0]:+.3f} to {interval[1]:+.3f})"
    if judgement is Judgement.BETTER:
        return f"The new model is better {on} {surely}."
    if judgement is Judgement.WORSE:
        return (
            f"The new model is worse {on} {surely}. Leave it, and look whether the new labels "
            "are right."
        )
    return (
        f"No evidence that the new model is better or worse {on} {surely}. Correct more images, "
        "or label more of those held back for a finer judgement."
    )


def _no_pairs_words(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    if not _dice_by_image(after):
        return (
            "No evidence: no score can be given, since no labelled image is held back to check the "
            "model. Label some that are marked “held back”, five or more, and look at its "
            "predictions before you go on with it."
        )
    dice, number = (after or {}).get("dice"), len(_dice_by_image(after))
    now = f" It now has Dice {dice:.3f} on {_count(number)} held back." if dice is not None else ""
    if _dice_by_image(before):
        return f"No evidence: other images or classes were judged before than after.{now}"
    poor = _poor_words(after or {})
    return (
        "No evidence: there is no score before to compare with, since the model began untrained or "
        f"did not know these classes.{now}" + (f" {poor}" if poor else "")
    )


def _few_images_words(difference: float, images: int) -> str:
    direction = "better" if difference > 0 else "worse"
    if difference == 0:
        measured = f"No evidence: Dice is the same on {_count(images)} held back."
    else:
        measured = f"No evidence: Dice {difference:+.3f} on {_count(images)} held back."
    chance = "every second time" if images == 1 else f"once in {2**images} times"
    said = "it" if images == 1 else f"all {images}"
    return (
        f"{measured} With so few, {said} being {direction if difference else 'better'} happens by "
        f"chance {chance}; label at least {FEWEST_IMAGES} images held back, and the next round "
        "can be judged."
    )


def _poor_words(after: Mapping[str, Any]) -> str:
    dice = after.get("dice")
    if dice is None or dice >= POOR:
        return ""
    return f"Its Dice of {dice:.3f} is still poor: correct more, or train longer."


def _memory_words(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    was, now = remembered(before), remembered(after)
    if was is None or now is None:
        return ""
    if was - now > FORGOTTEN:
        return (
            f"It has forgotten part of what it knew: on images it learnt from before, Dice fell "
            f"from {was:.3f} to {now:.3f}."
        )
    return "It has kept what it knew."


def remembered(scores: Mapping[str, Any] | None) -> float | None:
    """Return the Dice on images the model knew before; None if none of them fits the classes."""
    value: float | None = ((scores or {}).get("remembered") or {}).get("dice")
    return value


def _count(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"

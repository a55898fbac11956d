"""Sentences of the Trust panel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from segdesk.core.calibration import Calibration
from segdesk.inference.findings import MOST_UNCERTAIN, Findings, percent
from segdesk.session.trusting import Scope
from segdesk.ui.words import NONE, count_images

#: A probability whose change shows what a temperature does.
EXAMPLE = 0.95


def image_words(model: str, found: Findings) -> str:
    """Say what was looked at, and how much of it is right."""
    return (
        f"{model} on {count_images(found.images)}, {found.pixels:,} labelled pixels: "
        f"{percent(found.accuracy)} of them are right."
    )


def learnt_words(shown: Sequence[tuple[str, Findings]], scope: Scope) -> str:
    """Warn of images that a model learnt from."""
    learnt = [(model, f.learnt, f.images) for model, f in shown if f.learnt]
    if learnt:
        return " ".join(
            f"{model} learnt from {part} of these {count_images(images)}: they flatter it."
            for model, part, images in learnt
        )
    if scope is Scope.LABELLED:
        return "A model is flattered by images it learnt from; none of these is one."
    return ""


def band_words(
    model: str,
    found: Findings,
    band: tuple[float, float],
    true_class: int | None,
    is_named: bool,
) -> str:
    """Say which share of the wrong pixels, and of the right ones, lies in the band."""
    view = found.view
    wrong = view.share_of_errors_within(*band, true_class)
    right = view.share_of_right_within(*band, true_class)
    truly = "" if true_class is None else f" that are truly {found.classes[true_class]}"
    name = f"{model}: " if is_named else ""
    if math.isnan(wrong):
        return f"{name}No pixel{truly} is wrong."
    low, high = band
    return (
        f"{name}{percent(wrong)} of all wrong pixels{truly} lie between {low:.2f} and {high:.2f}; "
        f"{_percent(right)} of the right ones do."
    )


def calibration_words(found: Findings) -> str:
    """Say what the gap between a probability and the truth is."""
    return (
        f"On average, {100 * found.ece_before:.2f} percentage points lie between a probability "
        "and how often it is right (calibration error). On the dashed line there is no gap; "
        "below it the model is too sure."
    )


def temperature_words(model: str, found: Findings) -> str:
    """Say what the temperature is, what it does, and whether it helps."""
    number = f"temperature {found.temperature:.2f}"
    if found.is_at_limit:
        return f"No temperature fits ({number} is the last one tried)."
    if abs(found.temperature - 1) < 0.05:
        return f"{model} is about as sure as it may be ({number}; 1 changes nothing)."
    odds = (EXAMPLE / (1 - EXAMPLE)) ** (1 / found.temperature)
    what = "surer than it may be" if found.temperature > 1 else "less sure than it may be"
    change = f"{100 * EXAMPLE:.0f} % becomes {100 * odds / (1 + odds):.0f} %"
    return (
        f"{model} is {what}: {number} corrects its probabilities ({change}) and leaves the masks "
        f"as they are. {_verdict(found)}"
    )


def _verdict(found: Findings) -> str:
    if found.ece_after is None:
        return "Whether that helps on other images can be said from two images on."
    after = f"{100 * found.ece_after:.2f} points on images it was not fitted on"
    if all(found.helps):
        return f"It helps: the gap is then {after}."
    if any(found.helps):
        return (
            f"Whether it helps is open: the gap is then {after}, smaller on one half of the "
            "images and larger on the other."
        )
    return f"It does not help: the gap is then {after}."


def kept_words(kept: Calibration) -> str:
    """Say what is kept and what it is used for."""
    kind = f" and, for the uncertainty “auto”, {kept.kind}" if kept.kind is not None else ""
    return (
        f"Kept on {kept.created[:10]} from {count_images(kept.images)}: temperature "
        f"{kept.temperature:.2f}{kind}. New predictions of {kept.model} use it; predict again to "
        "see it in the uncertainty."
    )


def uncertainty_words(found: Findings) -> str:
    """Say how well the uncertainty finds the wrong pixels, and which kind does best."""
    best = found.best
    if best is None:
        return "No pixel is wrong (or none is right), so that cannot be said."
    scores = found.scores[best]
    sentences = [
        f"The most uncertain {percent(MOST_UNCERTAIN)} of the pixels hold "
        f"{percent(scores.share_of_errors)} of the wrong ones. Of a wrong and a "
        f"right pixel, the wrong one is the more uncertain in {percent(scores.auroc)} of all pairs "
        "(AUROC; 50 % is chance)."
    ]
    if scores.auroc < 0.5:
        sentences.append(
            "That is worse than chance: the model is sure of what it gets wrong here, and its "
            "uncertainty misleads."
        )
    if len(found.classes) == 2:
        sentences.append(
            "With two classes, margin and entropy put the pixels in the same order (but for "
            "rounding)."
        )
    else:
        sentences.append(
            f"Of the kinds that cost one pass over the image, {best} finds them best; the "
            "uncertainty “auto” uses it once the temperature is kept."
        )
    return " ".join(sentences)


def figures(models: Sequence[Findings], band: tuple[float, float]) -> list[tuple[str, ...]]:
    """Return rows of a title and a number per model."""
    low, high = band

    def row(title: str, value: Callable[[Findings], str]) -> tuple[str, ...]:
        return (title, *(value(found) for found in models))

    rows = [
        row("Images", lambda f: str(f.images)),
        row("Right pixels", lambda f: percent(f.accuracy)),
        row(
            f"Wrong pixels from {low:.2f} to {high:.2f}",
            lambda f: _percent(f.view.share_of_errors_within(*band)),
        ),
        row("Right pixels there", lambda f: _percent(f.view.share_of_right_within(*band))),
        row("Calibration error, points", lambda f: f"{100 * f.ece_before:.2f}"),
        row(
            "… with the temperature",
            lambda f: NONE if f.ece_after is None else f"{100 * f.ece_after:.2f}",
        ),
        row("Temperature", lambda f: f"{f.temperature:.2f}"),
    ]
    for kind in models[0].scores if models else ():
        scores = [found.scores[kind] for found in models]
        most = percent(MOST_UNCERTAIN)
        rows += [
            (
                f"{kind}: wrong pixels in the most uncertain {most}",
                *(_percent(s.share_of_errors) for s in scores),
            ),
            (f"{kind}: AUROC", *(_number(s.auroc) for s in scores)),
            (f"{kind}: area under risk and coverage", *(_number(s.aurc) for s in scores)),
        ]
    return rows


def _percent(share: float) -> str:
    return NONE if math.isnan(share) else percent(share)


def _number(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.4f}"

"""Sentences of the panels, apart from the widgets that show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segdesk.core.run import Run, RunState
from segdesk.core.sample import Sample, Split, Status
from segdesk.core.verdict import Verdict, remembered
from segdesk.session.models import ModelEntry

NONE = "\N{EN DASH}"
#: Title, before, after and difference.
ScoreRow = tuple[str, str, str, str]
#: Scores over all pixels and classes, as papers call them.
DATASET = {
    "pixel_accuracy": "Pixel accuracy",
    "mean_accuracy": "Mean accuracy",
    "mean_iou": "Mean IoU",
    "frequency_weighted_iou": "Frequency-weighted IoU",
    "mean_dice": "Mean Dice",
}


def count_images(number: int) -> str:
    """Return *1 image*, *2 images* and so on."""
    return f"{number} image{'' if number == 1 else 's'}"


def level_words(levels: Sequence[tuple[int, ...]], number: int) -> str:
    """Say how large a resolution level is: ``2: 512 x 480 pixels, 4 times smaller``."""
    rows, columns = levels[number][-2:]
    size = f"{columns} x {rows} pixels"
    if number == 0:
        return f"Full size: {size}"
    return f"{number}: {size}, {_reduction(levels, number)} times smaller"


def coarse_words(levels: Sequence[tuple[int, ...]], number: int) -> str:
    """Say what becomes of a prediction at a coarser level."""
    times = _reduction(levels, number)
    return (
        f"The mask is brought to full size (nearest neighbour) and corrected there as usual; its "
        f"edges have steps of about {times} pixels. Predict all uses this level for every image, "
        "or the coarsest that an image has: images without levels at full size."
    )


def _reduction(levels: Sequence[tuple[int, ...]], number: int) -> str:
    """Return how many times smaller a level is a side."""
    times = levels[0][-1] / levels[number][-1]
    return f"{times:.0f}" if times > 9.5 else f"{times:.2g}"


def device_words(reason: str) -> str:
    """Turn *the processor: no graphics card was found* into words in brackets."""
    head, sign, tail = reason.partition(": ")
    return f"{head} ({tail})" if sign else head


def model_summary(entry: ModelEntry) -> str:
    """Say in a line what a model knows, how good it is, and the licence of its data."""
    card = entry.card
    parts = ["Knows " + ", ".join(card.classes)]
    dice = model_dice(entry)
    parts.append(f"Dice {dice:.3f} on held-back images" if dice is not None else "not scored")
    licences = dict.fromkeys(data.license for data in card.training_data)
    if licences:
        parts.append("training data: " + " and ".join(licences))
    return " · ".join(parts)


def model_dice(entry: ModelEntry) -> float | None:
    """Return the Dice a model's card gives; None if it was not scored."""
    return next((value for key, value in entry.card.score.items() if "dice" in key), None)


def model_tooltip(entry: ModelEntry) -> str:
    """Say everything about a model that helps in choosing."""
    card = entry.card
    lines = [f"<b>{entry.name}</b>"]
    if card.description:
        lines.append(card.description)
    lines.append(f"{card.architecture}, {card.parameters / 1e6:.1f} million parameters")
    lines += [
        f"Learnt from {count_images(d.images)}: {d.name} ({d.license})" for d in card.training_data
    ]
    lines += [f"{name.replace('_', ' ')}: {value:.3g}" for name, value in card.score.items()]
    if card.base_model:
        lines.append(f"Made from {card.base_model}")
    return "<qt>" + "<br>".join(lines) + "</qt>"


def learning_words(samples: list[Sample]) -> str:
    """Say what a fine-tuning run would learn from."""
    spoken = [s for s in samples if s.status in (Status.CORRECTED, Status.ACCEPTED)]
    held = sum(s.split is Split.VALIDATION for s in spoken)
    learnt = len(spoken) - held
    if not spoken:
        return "Nothing to learn from yet."
    text = f"Learns from {learnt} corrected or accepted image{'' if learnt == 1 else 's'}"
    if held:
        return f"{text}; {held} more held back to check the model."
    return (
        f"{text}; none is held back, so no score can be given. Correct one marked “held back” "
        "in the Project panel to get one."
    )


def why_not_train(samples: list[Sample]) -> str:
    """Say why fine-tuning cannot start; empty when it can."""
    spoken = [s for s in samples if s.status in (Status.CORRECTED, Status.ACCEPTED)]
    if any(s.split is Split.TRAIN for s in spoken):
        return ""
    if spoken:
        return (
            f"The {len(spoken)} image{'' if len(spoken) == 1 else 's'} done so far "
            f"{'is' if len(spoken) == 1 else 'are'} held back to check the model; correct or "
            "accept one that is not marked “held back”."
        )
    return "Correct or accept at least one image in the Correct panel first."


def run_words(run: Run) -> str:
    """Say how a run stands or ended, and what follows from it."""
    unchanged = "The model in use has not changed."
    reason = run.reason.strip()
    if reason and not reason.endswith((".", "!", "?")):
        reason += "."
    path = run.folder / "log.txt"
    log = "" if str(path) in reason else f"The log: {path}"
    words = {
        RunState.QUEUED: "Waiting to start…",
        RunState.RUNNING: f"Fine-tuning {run.base_model} into {run.new_model}… You can go on "
        "painting meanwhile.",
        RunState.COMPLETED: f"Done: the new model {run.new_model} is ready. Compare it below, "
        "then use it or leave it.",
        RunState.CANCELED: f"Stopped. {reason} {unchanged}".replace("  ", " "),
        RunState.FAILED: f"{_after('Fine-tuning failed', reason)} {unchanged} {log}",
        RunState.CRASHED: f"Fine-tuning ended unexpectedly: {reason} {unchanged} {log}",
    }[run.state]
    return words.rstrip()


def time_words(seconds: float) -> str:
    """Say how long something takes."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s left"
    return f"{seconds / 60:.0f} min left"


def about_words(seconds: float, memory_bytes: int) -> str:
    """Say roughly what a run takes: *about 2 min, 1.2 GB*."""
    if seconds < 90:
        length = f"{max(1, round(seconds))} s"
    elif seconds < 5400:
        length = f"{round(seconds / 60)} min"
    else:
        length = f"{seconds / 3600:.1f} h"
    return f"about {length}, {max(0.1, memory_bytes / 1e9):.1f} GB"


def score_rows(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[ScoreRow]:
    """Return means over images, for the score table."""
    if before is None or after is None:
        return []
    rows = [
        _score_row("Images held back: Dice", before.get("dice"), after.get("dice")),
        _score_row("Images held back: IoU", before.get("iou"), after.get("iou")),
    ]
    old = remembered(before), remembered(after)
    return rows if None in old else [*rows, _score_row("Images it knew: Dice", *old)]


def dataset_rows(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[ScoreRow]:
    """Return what papers report: all pixels in one matrix, means over all classes."""
    old, new = ((scores or {}).get("dataset") or {} for scores in (before, after))
    return [_score_row(title, old.get(key), new.get(key)) for key, title in DATASET.items() if new]


def verdict_words(found: Verdict, model: str) -> str:
    """Say whether a new model is better: in a word, then in sentences."""
    return f"<b>{model}: {found.judgement}</b><br>{found.text}"


def _after(prefix: str, reason: str) -> str:
    """Put ``prefix`` before a reason that does not begin with it."""
    return reason if reason.startswith(prefix) else f"{prefix}: {reason}"


def _score_row(title: str, before: float | None, after: float | None) -> ScoreRow:
    old, new = (NONE if value is None else f"{value:.3f}" for value in (before, after))
    change = "" if before is None or after is None else f"{after - before:+.3f}"
    return title, old, new, change

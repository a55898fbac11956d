"""Which class of a model is which of the project, where their names differ."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from segdesk.config.training import TrainingConfig
from segdesk.io.store import ProjectStore
from segdesk.session.models import ModelEntry

#: Names at least so alike (0 to 1) are suggested for each other: a slip of the pen, an ending.
ALIKE: Final = 0.9


@dataclass(frozen=True, slots=True)
class ClassQuestion:
    """Classes of a project that a model lacks, and those of the model that the project lacks.

    Attributes
    ----------
    model
        The model's name.
    unknown, free
        Names of the project and of the model, in their order, the background left out.
    answers
        The model's name by the project's: said already, or else suggested.
    is_answered
        Whether somebody has said something already.
    """

    model: str
    unknown: tuple[str, ...]
    free: tuple[str, ...]
    answers: Mapping[str, str]
    is_answered: bool


def class_question(
    store: ProjectStore, entry: ModelEntry, config: TrainingConfig
) -> ClassQuestion | None:
    """Return what must be asked of the names; None where they leave nothing to ask."""
    ours, theirs = store.classes.names, entry.card.classes
    unknown = tuple(name for name in ours[1:] if name not in theirs)
    free = tuple(name for name in theirs[1:] if name not in ours)
    if not unknown or not free:
        return None
    pairs = config.same_pairs
    said = {name: pairs[name] for name in unknown if pairs.get(name) in free}
    answers = said or suggest(unknown, free)
    return ClassQuestion(entry.name, unknown, free, answers, is_answered=bool(pairs))


def suggest(unknown: Sequence[str], free: Sequence[str]) -> dict[str, str]:
    """Return the classes that probably are the same, each used once.

    Case, separators and a plural make no difference; after those, names that are nearly
    the same are taken for each other.
    """
    found: dict[str, str] = {}
    left = {_plain(name): name for name in reversed(free)}
    for name in unknown:
        if _plain(name) in left:
            found[name] = left.pop(_plain(name))
    for name in unknown:
        near = difflib.get_close_matches(_plain(name), left, 1, ALIKE)
        if name not in found and near:
            found[name] = left.pop(near[0])
    return found


def written(answers: Mapping[str, str]) -> str:
    """Write the answers as the setting *Same classes* takes them."""
    return ", ".join(f"{ours}={theirs}" for ours, theirs in answers.items())


def _plain(name: str) -> str:
    """Return a name without what people write now so and now otherwise."""
    word = "".join(letter for letter in name.casefold() if letter.isalnum())
    for ending, singular in (("nuclei", "nucleus"), ("ies", "y"), ("ses", "s"), ("xes", "x")):
        if word.endswith(ending):
            return word.removesuffix(ending) + singular
    is_plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if is_plural else word

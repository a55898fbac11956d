"""What a look at a project before fine-tuning finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is, the worst first.

    ``stop``: the run would fail, so it is not started; ``warn``: it would run, and its result
    or its score would mislead; ``note``: good to know.
    """

    STOP = "stop"
    WARN = "warn"
    NOTE = "note"


class FindingKind(StrEnum):
    """What a finding is about."""

    NOTHING_TO_LEARN = "nothing to learn"
    MODEL = "model"
    SETTINGS = "settings"
    OTHER_NAMES = "other names"
    CLASSES = "classes"
    CHANNELS = "channels"
    IMAGE = "image"
    LABELS = "labels"
    DISK = "disk"
    MISSING_CLASS = "missing class"
    ONE_CLASS = "one class"
    ONE_IMAGE = "one image"
    EMPTY_MASK = "empty mask"
    ISLANDS = "islands"
    DUPLICATE = "duplicate"
    LEARNT_BEFORE = "learnt before"
    NO_VALIDATION = "no validation"
    FEW_VALIDATION = "few validation"
    SIZES = "sizes"
    SMALL = "small"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: a sentence on what is so and what to do.

    Attributes
    ----------
    sample
        Id of the sample it is about, to go there; None for the project as a whole.
    place
        A pixel in it, (Y, X) or (Z, Y, X); None for the whole image.
    """

    kind: FindingKind
    severity: Severity
    text: str
    sample: str | None = None
    place: tuple[int, ...] | None = None

"""A round: all that was known when a fine-tuning run ended, enough to do it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from segdesk.core.address import AnyAddress
from segdesk.core.errors import InputError, first_fault
from segdesk.core.run import RunState
from segdesk.core.sample import Split

ROUND_VERSION: Final = 1


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RoundInput(_Entry):
    """One image of a round and the labels it had, by hash.

    The hashes are SHA-256, hexadecimal, taken from the files when the run started; empty
    for a file that could not be read. ``labels`` is None for an image without labels.
    """

    id: str
    split: Split
    image: AnyAddress
    image_sha256: str
    labels: Path | None
    labels_sha256: str
    revision: int


class RoundOrigin(_Entry):
    """What a run started from, by hash.

    Attributes
    ----------
    model
        Name of the trained model, or of the untrained architecture.
    folder
        Package of the trained model; None for an untrained one.
    weights_sha256, rehearsal_sha256
        Of its weights and of the images it carries against forgetting; empty for none.
    encoder_sha256
        Of the file with the encoder's weights for an untrained model; empty for none.
    """

    model: str
    folder: Path | None = None
    weights_sha256: str = ""
    rehearsal_sha256: str = ""
    encoder_sha256: str = ""


class RoundPlatform(_Entry):
    """What computed. Floating-point results depend on all of it."""

    segdesk: str
    python: str
    torch: str
    numpy: str
    device: str
    threads: int


class RoundCheck(_Entry):
    """Scores after ``step`` steps; 0 is before. Dice and IoU are means over images."""

    step: int
    dice: float | None
    iou: float | None
    remembered_dice: float | None
    class_dice: dict[str, float | None]
    is_best: bool


class Round(_Entry):
    """The contents of ``round.json`` in a run's folder, written when the run ends.

    Attributes
    ----------
    inputs, origin, config, seed, platform
        What the result follows from.
    started, ended
        Time, ISO 8601 with its offset.
    steps, losses, learning_rates
        The curve, one entry for each step made.
    checks
        Scores on the validation images while it learnt.
    before, after
        Scores with ``per_class`` and ``per_image`` (see
        :func:`segdesk.training.metrics.summarize`); None where it did not come to that.
    difference, interval, verdict, verdict_text
        What :func:`segdesk.core.verdict.judge` makes of ``before`` and ``after``; the verdict
        is None for a run that made no model.
    weights_sha256
        Of the new model's weights; empty where there is none.
    kept
        File in the run's folder with the last weights of a run that made no model; empty
        where there is none.
    """

    format: Literal[1] = ROUND_VERSION
    run: str
    state: RunState
    reason: str = ""
    new_model: str
    classes: tuple[str, ...]
    inputs: tuple[RoundInput, ...]
    origin: RoundOrigin
    config: dict[str, Any]
    seed: int
    platform: RoundPlatform
    started: str
    ended: str
    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    learning_rates: tuple[float, ...] = ()
    checks: tuple[RoundCheck, ...] = ()
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    verdict: str | None = None
    verdict_text: str = ""
    weights_sha256: str = ""
    kept: str = ""

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Read a round; ``where`` names the file in the error.

        Raises
        ------
        InputError
            The text is not a round this version reads.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InputError(
                f"{where} is not a round this SegDesk can read ({first_fault(error)})."
            ) from None

    def of_split(self, split: Split) -> tuple[RoundInput, ...]:
        """Return the labelled images of one split."""
        return tuple(i for i in self.inputs if i.split is split and i.labels is not None)

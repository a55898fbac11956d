"""What was found out about a model's probabilities, and is kept for its predictions."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segdesk.core.errors import InputError, first_fault
from segdesk.core.prediction import UncertaintyKind

CALIBRATION_VERSION: Final = 1


class Calibration(BaseModel):
    """A temperature fitted for a model in a project, and the evidence for it.

    Attributes
    ----------
    model, weights_sha256
        What it was fitted for; it says nothing of other weights.
    temperature
        Logits are divided by it before the softmax; 1 changes nothing.
    images, pixels
        Labelled images and pixels it was fitted on.
    learnt
        How many of the images the model learnt from; they flatter it.
    ece_before, ece_after
        Expected calibration error without and with a temperature, each half of the
        images judged with that of the other; None after, where there was one image.
    auroc, share_of_errors
        How well each kind of uncertainty finds the wrong pixels: area under the ROC
        curve, and the share of them among the most uncertain tenth.
    kind
        The best of the kinds that were compared: those that cost one pass over the image,
        unless others were asked for. None where no pixel was wrong.
    created
        When, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = CALIBRATION_VERSION
    model: str
    weights_sha256: str
    temperature: float = Field(gt=0, allow_inf_nan=False)
    images: int = Field(ge=1)
    learnt: int = Field(0, ge=0)
    pixels: int = Field(ge=1)
    ece_before: float
    ece_after: float | None = None
    auroc: dict[str, float | None] = {}
    share_of_errors: dict[str, float | None] = {}
    kind: UncertaintyKind | None = None
    created: str = ""
    segdesk_version: str = ""

    @classmethod
    def parse(cls, text: str, where: str) -> Calibration:
        """Read a file; ``where`` names it in the error.

        Raises
        ------
        InputError
            The text is not a calibration this version reads.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InputError(
                f"{where} cannot be read ({first_fault(error)}); delete it, or run "
                "'segdesk trust PROJECT --keep' to make it anew."
            ) from None

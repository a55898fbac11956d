"""A model's card: everything known of it beside its weights, readable by people."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segdesk.core.errors import InputError, first_fault

CARD_VERSION: Final = 1

ScalingMethod = Literal["percentile", "minmax", "zscore"]


class Normalization(BaseModel):
    """How pixels become the network's input.

    Each image is scaled by its own values, over all channels together so that
    colour is kept, clipped to 0..1, then shifted by ``mean`` and divided by ``std``.

    Attributes
    ----------
    method
        What becomes 0 and 1: two percentiles, the least and the greatest value, or five
        standard deviations below and above the mean. With ``mean`` 0.5 and ``std`` 0.1 the
        network gets plain z-scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: ScalingMethod = "percentile"
    low_percentile: float = Field(1.0, ge=0, le=100)
    high_percentile: float = Field(99.8, ge=0, le=100)
    mean: float = 0.5
    std: float = Field(0.25, gt=0)


class TrainingData(BaseModel):
    """What a model was trained on and whether that may be passed on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    license: str
    images: int = Field(ge=0)


class ModelCard(BaseModel):
    """The contents of ``card.json``.

    Attributes
    ----------
    classes
        Class names in the order of the output maps.
    colors
        A colour (``#rrggbb``) per class.
    channels
        Input channels of the network.
    has_quick_head
        Its weights hold a quick head (:mod:`segdesk.nn.quick`).
    score
        Scores on held-out images, by name, with the number of images.
    trained_ids
        SHA-256 of every image it learnt from: those never serve as validation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = CARD_VERSION
    name: str
    architecture: str
    options: dict[str, Any] = {}
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    channels: int = Field(ge=1)
    has_quick_head: bool = False
    normalization: Normalization = Normalization()
    weights_sha256: str
    parameters: int = Field(ge=0)
    training_data: tuple[TrainingData, ...] = ()
    trained_ids: tuple[str, ...] = ()
    score: dict[str, float] = {}
    base_model: str = ""
    run: str = ""
    created: str = ""
    code_version: str = ""
    description: str = ""

    @classmethod
    def parse(cls, text: str, where: str) -> ModelCard:
        """Read a card; ``where`` names the file in the error.

        Raises
        ------
        InputError
            The text is not a card this version reads.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InputError(
                f"{where} is not a model card this SegDesk can read ({first_fault(error)})."
            ) from None

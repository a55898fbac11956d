"""Knobs of prediction."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Literal

from pydantic import Field, field_validator

from segdesk.config.knobs import Knobs
from segdesk.core.prediction import UncertaintyKind

Device = Literal["auto", "cpu", "cuda", "mps"]


class Scaling(StrEnum):
    """How an image is scaled before the model sees it."""

    CARD = "card"
    PERCENTILE = "percentile"
    MINMAX = "minmax"
    ZSCORE = "zscore"


SCALING_HELP = {
    Scaling.CARD: "as the model was trained; right unless you know better",
    Scaling.PERCENTILE: "from the darkest to the brightest pixels, a few extreme ones left out",
    Scaling.MINMAX: "from the darkest to the brightest pixel",
    Scaling.ZSCORE: "five standard deviations around the mean",
}


class InferenceConfig(Knobs):
    """How a model is run over an image."""

    device: Device = Field(
        "auto",
        title="Device",
        description="What computes: auto takes the graphics card when there is one.",
        json_schema_extra={"basic": True},
    )
    uncertainty: UncertaintyKind = Field(
        UncertaintyKind.MARGIN,
        title="Uncertainty",
        description="margin: how close the two best classes are; "
        "entropy: how spread the probability is over all classes.",
        json_schema_extra={"basic": True},
    )
    tile_size: int = Field(
        512,
        ge=64,
        le=4096,
        multiple_of=16,
        title="Tile size",
        description="Side of the squares a large image is cut into. Larger is faster until "
        "memory runs out.",
        json_schema_extra={"unit": "px"},
    )
    overlap: int = Field(
        64,
        ge=0,
        le=512,
        multiple_of=2,
        title="Overlap",
        description="How far neighbouring tiles reach into each other; they are blended there.",
        json_schema_extra={"unit": "px"},
    )
    normalization: Scaling = Field(
        Scaling.CARD,
        title="Normalisation",
        description="What range of grey values the model gets to see, for each image its own. "
        + "; ".join(f"{kind}: {text}" for kind, text in SCALING_HELP.items())
        + ".",
        json_schema_extra={"choices": {str(kind): text for kind, text in SCALING_HELP.items()}},
    )
    channels: str = Field(
        "",
        title="Channels",
        description="Numbers of the image's channels that the model gets, in its order and "
        "counted from 0, such as 0,2,1. Empty: all of them as they are, and one grey channel "
        "for every colour.",
        json_schema_extra={"empty": "automatic"},
    )

    @field_validator("channels")
    @classmethod
    def _tidy_channels(cls, text: str) -> str:
        tidy = re.sub(r"\s+", "", text)
        if tidy and not re.fullmatch(r"\d{1,4}(,\d{1,4})*", tidy):
            raise ValueError("write numbers from 0 with commas between them, such as 0,2,1")
        return tidy

    @property
    def chosen_channels(self) -> tuple[int, ...]:
        """The channels as numbers; none where the choice is automatic."""
        return tuple(int(part) for part in self.channels.split(",") if part)

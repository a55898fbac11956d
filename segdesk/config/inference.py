"""Knobs of prediction."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, field_validator

from segdesk.config.knobs import Knobs
from segdesk.core.prediction import ONE_PASS, UncertaintyKind

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
        UncertaintyKind.AUTO,
        title="Uncertainty",
        description="What is measured to find the places where the model may be wrong.",
        json_schema_extra={
            "basic": True,
            "choices": {
                "auto": "The kind that finds this model's errors best, where that was kept (in the "
                "Trust panel, or with 'segdesk trust PROJECT --keep'); else margin. Costs nothing "
                "extra.",
                "margin": "How close the two best classes are: near the border between them the "
                "model is unsure. Costs nothing extra.",
                "entropy": "How spread the probability is over all classes; with two classes "
                "the same order as margin. Costs nothing extra.",
                "dropout": "Asks the model several times, each time with other parts of it left "
                "out, and shows where the answers disagree. As many times as long as there are "
                "passes: 8 by default.",
                "augmentation": "Asks about the image flipped and turned, and shows where the "
                "answers are unsure or disagree; the mask is their mean. 8 times as long; 4 "
                "times, flips only, with fewer than 8 passes.",
                "ensemble": "Asks several models, or rounds of one, and shows where they are "
                "unsure or disagree; the mask is their mean. As many times as long as there are "
                "models.",
            },
        },
    )
    passes: int = Field(
        8,
        ge=2,
        le=64,
        title="Passes",
        description="How often the model is asked for the uncertainty dropout; more is smoother "
        "and slower. For augmentation, fewer than 8 means flips without turns: 4 passes.",
    )
    companions: str = Field(
        "",
        title="Companions",
        description="Further models for the uncertainty ensemble: names with commas between them. "
        "They need the classes and channels of the model in use. Empty: the newest other rounds "
        "of that model, up to four.",
        json_schema_extra={"empty": "other rounds of the model"},
    )
    calibrated: bool = Field(
        True,
        title="Calibrated probabilities",
        description="Corrects the probabilities with the temperature kept for the model, so that "
        "of the pixels given 80 % about 80 are right in 100. The mask stays the same.",
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
    precision: Literal["auto", "single", "half"] = Field(
        "auto",
        title="Precision",
        description="auto: half precision where a short trial shows that it is faster and agrees; "
        "single: always exact; half: wherever it agrees.",
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

    def settled(self, best: UncertaintyKind | None = None) -> Self:
        """Return it with a kind of uncertainty in place of ``auto``: the best one known."""
        if self.uncertainty is not UncertaintyKind.AUTO:
            return self
        return self.model_copy(update={"uncertainty": best or ONE_PASS[0]})

"""Knobs of prediction."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from segdesk.config.knobs import Knobs
from segdesk.core.prediction import ONE_PASS, UncertaintyKind

Device = Literal["auto", "cpu", "cuda", "mps"]


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
        description="auto: the kind that finds this model's errors best, where that was kept (in "
        "the Trust panel, or with 'segdesk trust PROJECT --keep'), else margin; "
        "margin: how close the two best classes are; "
        "entropy: how spread the probability is over all classes.",
        json_schema_extra={"basic": True},
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

    def settled(self, best: UncertaintyKind | None = None) -> Self:
        """Return it with a kind of uncertainty in place of ``auto``: the best one known."""
        if self.uncertainty is not UncertaintyKind.AUTO:
            return self
        return self.model_copy(update={"uncertainty": best or ONE_PASS[0]})

"""Knobs of prediction."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segdesk.config.knobs import Knobs
from segdesk.core.prediction import UncertaintyKind

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
    precision: Literal["auto", "single", "half"] = Field(
        "auto",
        title="Precision",
        description="auto: half precision where a short trial shows that it is faster and agrees; "
        "single: always exact; half: wherever it agrees.",
    )

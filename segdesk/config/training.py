"""Knobs of fine-tuning."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from segdesk.config.inference import Device
from segdesk.config.knobs import Knobs


class Recipe(StrEnum):
    """Which weights learn."""

    ALL = "all"
    DECODER = "decoder"
    HEAD = "head"


class Augmentation(StrEnum):
    """How crops are varied."""

    NONE = "none"
    FLIPS = "flips"
    FULL = "full"


class TrainingConfig(Knobs):
    """How a model is fine-tuned on the corrected images."""

    recipe: Recipe = Field(
        Recipe.ALL,
        title="What learns",
        description="all: every layer, for images of a new kind; decoder: all but the encoder, "
        "for small changes; head: the last layers only, quickest.",
        json_schema_extra={"basic": True},
    )
    steps: int = Field(
        200,
        ge=1,
        le=100_000,
        title="Steps",
        description="How many batches the model learns from. More takes longer in proportion.",
        json_schema_extra={"basic": True},
    )
    learning_rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        title="Learning rate",
        description="How far one step moves the weights. Too high and old knowledge is lost.",
        json_schema_extra={"basic": True, "log": True},
    )
    replay: float = Field(
        0.5,
        ge=0,
        le=0.9,
        title="Replay",
        description="Share of each batch that comes from images the model already knew, so that "
        "it does not forget them.",
    )
    batch_size: int = Field(
        4,
        ge=1,
        le=256,
        title="Batch size",
        description="Crops per step.",
        json_schema_extra={"unit": "crops"},
    )
    crop_size: int = Field(
        224,
        ge=32,
        le=2048,
        multiple_of=16,
        title="Crop size",
        description="Side of the squares cut from the images for learning.",
        json_schema_extra={"unit": "px"},
    )
    freeze_norm: bool = Field(
        True,
        title="Keep normalisation",
        description="Keep the normalisation statistics of the model it starts from. Without "
        "this, a second kind of image makes it forget the first.",
    )
    augment: Augmentation = Field(
        Augmentation.FULL,
        title="Augment",
        description="flips: mirror and turn the crops by 90 degrees; full: also turn and scale "
        "them freely, and vary contrast and colour.",
    )
    corrected_weight: float = Field(
        1.0,
        ge=1,
        le=100,
        title="Weight of corrected pixels",
        description="How much more a pixel counts that you painted than one that you accepted.",
    )
    evaluate_every: int = Field(
        50,
        ge=1,
        le=100_000,
        title="Check every",
        description="Steps between two looks at the validation images; the best is kept.",
        json_schema_extra={"unit": "steps"},
    )
    weight_decay: float = Field(
        1e-4,
        ge=0,
        le=1,
        title="Weight decay",
        description="Pull of the weights towards zero.",
        json_schema_extra={"log": True},
    )
    averaging: float = Field(
        0.98,
        ge=0,
        lt=1,
        title="Averaging",
        description="How much of the running mean of the weights each step keeps; the mean is "
        "what is judged and saved. 0 takes the last weights as they are.",
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, title="Seed", description="Same seed, same data: same result."
    )
    device: Device = Field(
        "auto",
        title="Device",
        description="What computes: auto takes the graphics card when there is one.",
    )

"""Knobs of refining a prediction after the model."""

from __future__ import annotations

from pydantic import Field

from segdesk.config.knobs import Knobs


class CrfConfig(Knobs):
    """How the fully connected CRF moves a prediction's edges to those of the image.

    Names in the paper (Kraehenbuehl & Koltun, NIPS 2011): the appearance kernel has
    weight w1, theta_alpha (px) and theta_beta (grey levels); the smoothness kernel has
    weight w2 and theta_gamma (px).
    """

    appearance_grey: float = Field(
        20.0,
        ge=1.0,
        le=255.0,
        title="Brightness difference",
        description="How different two pixels may look and still be drawn to the same class, of "
        "255 between the image's darkest and brightest. Raise it for noisy images, lower it for "
        "faint edges.",
        json_schema_extra={"basic": True, "unit": "grey levels"},
    )
    appearance_px: float = Field(
        10.0,
        ge=1.0,
        le=300.0,
        title="Reach",
        description="How far apart two alike pixels may lie and still be drawn to the same class. "
        "Less than the size of the objects: about 10 for cells, 60 and more for organs or fields.",
        json_schema_extra={"basic": True, "unit": "px"},
    )
    appearance_weight: float = Field(
        4.0,
        ge=0.0,
        le=50.0,
        title="Strength of the image",
        description="How much pixels that look alike pull against what the model says; 0 leaves "
        "the image out.",
        json_schema_extra={"basic": True},
    )
    smoothness_px: float = Field(
        1.0,
        ge=0.5,
        le=50.0,
        title="Smoothing size",
        description="Specks and notches of about this size are smoothed away, whatever the image "
        "shows there.",
        json_schema_extra={"unit": "px"},
    )
    smoothness_weight: float = Field(
        1.0,
        ge=0.0,
        le=50.0,
        title="Strength of smoothing",
        description="How much neighbours pull against what the model says; 0 smooths nothing.",
    )
    iterations: int = Field(
        10,
        ge=1,
        le=50,
        title="Rounds",
        description="How often all pixels look at each other; after ten little changes.",
    )

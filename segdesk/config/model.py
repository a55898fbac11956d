"""Knobs of a new, untrained model."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from segdesk.config.knobs import Knobs


class HeadKind(StrEnum):
    """Forms of the output layers."""

    A = "A"
    B = "B"
    C = "C"
    D = "D"

    @property
    def has_cbam(self) -> bool:
        """Whether the features go through CBAM first."""
        return self in (HeadKind.C, HeadKind.D)


#: What each head is, one line each.
HEAD_HELP: dict[HeadKind, str] = {
    HeadKind.A: "One output layer for all classes, as in most papers.",
    HeadKind.B: "Output weights of its own for the background and for every class.",
    HeadKind.C: "B with attention (CBAM) on the features in front.",
    HeadKind.D: "C with an attention that may turn a feature's sign.",
}


class Activation(StrEnum):
    """Activations of the class maps, in front of the softmax."""

    NONE = "none"
    TANH = "tanh"
    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    SELU = "selu"
    GELU = "gelu"


class Variant(StrEnum):
    """How large an architecture is built."""

    SMALL = "small"
    PAPER = "paper"


class NewModelConfig(Knobs):
    """How an architecture is built when a model starts from nothing."""

    variant: Variant = Field(
        Variant.SMALL,
        title="Size",
        description="small: learns on a laptop; paper: as published, which wants a graphics card.",
        json_schema_extra={"basic": True},
    )
    head: HeadKind = Field(
        HeadKind.C,
        title="Head",
        description="The last layers. "
        + " ".join(f"{kind}: {text}" for kind, text in HEAD_HELP.items()),
        json_schema_extra={
            "basic": True,
            "choices": {str(kind): text for kind, text in HEAD_HELP.items()},
        },
    )
    activation: Activation = Field(
        Activation.NONE,
        title="Output activation",
        description="What each class map goes through before the softmax, in heads B to D.",
        json_schema_extra={"basic": True},
    )
    encoder_weights: str = Field(
        "",
        title="Encoder weights",
        description="Empty: random. A file of yours (.safetensors, .pth) with weights of this "
        "encoder. Or download: timm's own, which needs the internet once.",
        json_schema_extra={"basic": True, "file": True, "empty": "random"},
    )


def plain(value: Any) -> str:
    """Write the value of an option as it is read on a command line."""
    if isinstance(value, list | tuple):
        return ",".join(map(plain, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)

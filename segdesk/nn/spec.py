"""What SegDesk must know of an architecture to build, check and train it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from inspect import cleandoc
from typing import Any

from torch import nn

_DEVIATIONS = re.compile(r"^Deviations from the paper\n-+\n((?:.+\n?)+)", re.MULTILINE)


class Initialisation(StrEnum):
    """How the weights that are not an encoder's are drawn at first."""

    #: Normal, variance 2 / fan-in (He et al., ICCV 2015).
    HE = "he"
    #: Normal, standard deviation 0.01.
    NORMAL_001 = "normal 0.01"
    #: Truncated normal, standard deviation 0.02, as vision transformers have it.
    TRUNCATED_NORMAL = "truncated normal 0.02"
    #: torch's own: uniform, variance 1 / (3 fan-in).
    TORCH = "torch default"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """An architecture.

    Attributes
    ----------
    name
        Registry name, such as ``unet``.
    build
        ``build(in_channels, classes, **options)`` makes an untrained
        :class:`~segdesk.nn.segmenter.Segmenter`.
    stride
        Height and width of the input are made multiples of this, in pixels. At most so much
        is needed: some architectures take other sizes too, and no check sees a larger number
        than need be.
    options
        Every option ``build`` takes, with the paper's values. ``head`` and
        ``activation`` are always among them.
    small
        Options to set for a variant that learns on a laptop without a graphics card.
    deviations
        Where this differs from the paper, a sentence each; see :func:`deviations_of`.
    min_size
        Height and width of the input are at least this, in pixels; as with the stride, less
        may do.
    initialisation
        How the convolutions of the decoder are drawn; where it has none, those of the head.
    has_dropout
        Training mode is random.
    idle
        Patterns of the names of parameters that no gradient reaches.
    is_exportable
        ``torch.export`` takes it.
    needs_labels
        It learns from labels; otherwise it needs none, and has ``own_loss(image, turn)`` and
        ``assign(order)``, which says which of its maps stands for which class.
    turns
        How many losses of its own it lowers one after the other with each batch, a step of
        the optimizer for each; ``turn`` counts from 0.
    context
        Above 0: its convolutions are not padded, and ``valid(x)`` returns the maps of the
        middle of ``x``, so many pixels less on each side. Tiles are then exact.
    smallest_valid
        Least side of those maps, in pixels; others are a multiple of the stride more.
    license
        Of this implementation.
    """

    name: str
    title: str
    year: int
    reference: str
    build: Callable[..., nn.Module]
    stride: int
    options: dict[str, Any]
    small: dict[str, Any] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    min_size: int = 1
    initialisation: Initialisation = Initialisation.HE
    has_dropout: bool = False
    idle: tuple[str, ...] = ()
    is_exportable: bool = True
    needs_labels: bool = True
    turns: int = 1
    context: int = 0
    smallest_valid: int = 1
    license: str = "BSD-3-Clause"


def deviations_of(network: type[nn.Module]) -> tuple[str, ...]:
    """Read the sentences under "Deviations from the paper" in the docstrings of a class.

    Those of the classes it is derived from come first. ``python -OO`` leaves no docstrings,
    and so none of these.
    """
    sentences: list[str] = []
    for one in reversed(network.__mro__):
        section = _DEVIATIONS.search(cleandoc(vars(one).get("__doc__") or ""))
        if section is not None:
            items = re.split(r"^- ", section[1], flags=re.MULTILINE)[1:]
            sentences += (" ".join(item.split()) for item in items)
    return tuple(sentences)

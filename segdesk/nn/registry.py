"""Architectures by name, found through the entry point group ``segdesk.models``."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import entry_points

from torch import nn

from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.nn.spec import ModelSpec


@cache
def architectures() -> dict[str, ModelSpec]:
    """Return every installed architecture by name."""
    specs = (point.load().SPEC for point in entry_points(group="segdesk.models"))
    return {spec.name: spec for spec in specs}


def find_architecture(name: str) -> ModelSpec:
    """Return the architecture called ``name``.

    Raises
    ------
    InputError
        There is none; the nearest name is suggested.
    """
    known = architectures()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}."
    raise InputError(f"There is no architecture called {name!r}{hint}")


def build_network(card: ModelCard) -> nn.Module:
    """Build the untrained network that a card describes.

    Raises
    ------
    InputError
        The card names an unknown architecture or options it does not take.
    """
    spec = find_architecture(card.architecture)
    unknown = set(card.options) - set(spec.options)
    if unknown:
        raise InputError(
            f"The model {card.name!r} sets {sorted(unknown)}, which {spec.name} does not know; "
            "it was made by another version of SegDesk."
        )
    try:
        return spec.build(card.channels, len(card.classes), **{**spec.options, **card.options})
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The model {card.name!r} cannot be built from the options on its card ({error})."
        ) from None

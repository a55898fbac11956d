"""Architectures by name, found through the entry point group ``segdesk.models``."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from segdesk.config.model import Activation, HeadKind, Variant, plain
from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.nn.quick import add_quick_head
from segdesk.nn.spec import ModelSpec

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
#: Options every architecture takes, and the values there are.
_CHOICES: dict[str, type[StrEnum]] = {"head": HeadKind, "activation": Activation}

#: What torch, timm and the architectures raise at sizes and names that do not fit.
UNBUILDABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@cache
def architectures() -> dict[str, ModelSpec]:
    """Return every installed architecture by name, the oldest first."""
    specs = [spec for point in entry_points(group="segdesk.models") for spec in load_specs(point)]
    return {spec.name: spec for spec in sorted(specs, key=lambda s: (s.year, s.name))}


def load_specs(point: EntryPoint) -> list[ModelSpec]:
    """Return what an entry point names: a module with one ``SPEC`` or, for a family, ``SPECS``."""
    module = point.load()
    return list(module.SPECS) if hasattr(module, "SPECS") else [module.SPEC]


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
    raise InputError(f"There is no architecture called {name!r}{suggest(name, known)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that says ``name`` is unknown: the nearest, or all.

    Names are found however they are written: U-Net, DeepLabV3+, swin.
    """
    names = list(known)
    plain = {_bare(other): other for other in reversed(names)}
    wanted = _bare(name)
    near = [plain[wanted]] if wanted in plain else []
    near = near or [other for bare, other in plain.items() if wanted and bare.startswith(wanted)]
    if len(near) > 1:
        return f"; there are: {', '.join(sorted(near))}."
    near = near or [plain[bare] for bare in difflib.get_close_matches(wanted, plain, n=1)]
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(names)}."


def _bare(name: str) -> str:
    """Return a name without what people write in different ways."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "plus"))


def resolve_options(spec: ModelSpec, variant: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option of an architecture for a variant.

    Parameters
    ----------
    variant
        ``small`` or ``paper``.
    options
        Some options to set. Text, as from a command line, becomes what the option is:
        ``yes`` or ``no``, a number, numbers with commas between; ``none`` where the
        architecture has none by default.

    Raises
    ------
    InputError
        An unknown variant or option, or a value of another type.
    """
    if variant not in set(Variant):
        raise InputError(f"There is no variant called {variant!r}; there are: small, paper.")
    start = {**spec.options, **(spec.small if variant == Variant.SMALL else {})}
    chosen = {}
    for name, value in options.items():
        if name not in spec.options:
            near = difflib.get_close_matches(name, spec.options, n=1)
            hint = f"did you mean {near[0]!r}? There are" if near else "there are"
            raise InputError(
                f"{spec.name} has no option called {name!r}; {hint}: "
                + ", ".join(spec.options)
                + "."
            )
        try:
            chosen[name] = _read(name, value, spec)
        except ValueError as error:
            raise InputError(
                f"The option {name!r} of {spec.name} cannot be {value!r}; write {error}."
            ) from None
    resolved = {**start, **chosen}
    if resolved.get("head") == HeadKind.A and resolved.get("activation") != Activation.NONE:
        raise InputError(
            f"Head A has no output activation, so {resolved['activation']!r} would do nothing; "
            "choose the activation none, or head B, C or D."
        )
    return resolved


def _read(name: str, value: Any, spec: ModelSpec) -> Any:
    """Return the value of an option; a ValueError says what to write instead."""
    if name in _CHOICES:
        return _one_of(_CHOICES[name], value)
    default = spec.options[name]
    is_none = isinstance(value, str) and value.strip().lower() == "none"
    if default is None and (value is None or is_none):
        return None
    # Where the default is none, the small variant shows what else there can be.
    model = spec.small.get(name) if default is None else default
    if isinstance(model, list | tuple):
        return _numbers(value, model)
    if model is None:
        return _guess(value) if isinstance(value, str) else value
    return _scalar(value, model)


def _one_of(choices: type[StrEnum], value: Any) -> str:
    try:
        return str(choices(value))
    except ValueError:
        raise ValueError("one of " + ", ".join(choices)) from None


def _numbers(value: Any, model: list[Any] | tuple[Any, ...]) -> Any:
    """Return several numbers as what ``model`` is, a list or a tuple."""
    # A trailing comma is how Python writes a tuple of one.
    parts = value.strip("()[], ").split(",") if isinstance(value, str) else value
    if parts == [""] and not model:
        return type(model)()
    try:
        if not isinstance(parts, list | tuple):
            raise ValueError
        return type(model)(_scalar(part, model[0] if model else 0) for part in parts)
    except ValueError:
        raise ValueError(f"numbers with commas between, such as {plain(model)}") from None


def _scalar(value: Any, model: Any) -> Any:
    """Return a text or number as the type of ``model``."""
    if isinstance(model, bool):
        text = str(value).strip().lower()
        if text not in _TRUE + _FALSE:
            raise ValueError("yes or no")
        return text in _TRUE
    if isinstance(model, str):
        if not isinstance(value, str) or not (value.strip() or not model):
            raise ValueError(f"a name, such as {model}")
        return value.strip()
    if isinstance(model, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number) and (isinstance(model, float) or number.is_integer()):
            if isinstance(model, int) and model >= 1 > number:
                raise ValueError("a whole number from 1")
            return type(model)(number)
    raise ValueError("a whole number" if isinstance(model, int) else "a number")


def _guess(text: str) -> Any:
    """Return a number if the text is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def build_network(card: ModelCard) -> nn.Module:
    """Build the untrained network that a card describes.

    Raises
    ------
    InputError
        The card names an unknown architecture, options it does not take, or channels and
        classes for which it cannot be built.
    """
    spec = find_architecture(card.architecture)
    unknown = set(card.options) - set(spec.options)
    if unknown:
        raise InputError(
            f"The model {card.name!r} sets {sorted(unknown)}, which {spec.name} does not know: "
            "its card was changed, or written by another version of SegDesk."
        )
    classes = len(card.classes)
    if classes < 2:
        raise InputError(
            f"The model {card.name!r} names {classes} class{'' if classes == 1 else 'es'} on its "
            "card, but a model tells at least two apart: the background and another."
        )
    size = f"{card.channels} channel{'' if card.channels == 1 else 's'} and {classes} classes"
    try:
        network = spec.build(card.channels, classes, **{**spec.options, **card.options})
    except UNBUILDABLE as error:
        raise InputError(
            f"The model {card.name!r} cannot be built from the options on its card, for {size} "
            f"({error})."
        ) from None
    if any(parameter.numel() == 0 for parameter in network.parameters()):
        raise InputError(
            f"The model {card.name!r} cannot be built from the options on its card, for {size} "
            "(a layer would have no weights)."
        )
    if card.has_quick_head:
        add_quick_head(network, card, spec)
    return network

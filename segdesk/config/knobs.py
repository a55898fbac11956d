"""What every config class shares: frozen, strict, and readable as a form."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from segdesk.core.errors import InputError


class Knobs(BaseModel):
    """Base of the config classes.

    A knob is one pydantic field: type, default, bounds, title, description and,
    in ``json_schema_extra``, ``unit``, ``log`` (log scale), ``basic`` (shown without
    unfolding), ``choices`` (a line for each value), ``file`` (a file may be chosen) and
    ``empty`` (what no text means). Form, command line, run file and docs read them there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_user(cls, values: Mapping[str, Any], *, base: Self | None = None) -> Self:
        """Make a config from what a user typed, on top of ``base``.

        Raises
        ------
        InputError
            An unknown name, or a value outside its bounds, named in a sentence.
        """
        known = cls.model_fields
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? The" if near else "the"
                raise InputError(
                    f"There is no setting called {name!r}; {hint} settings are: "
                    + ", ".join(sorted(known))
                    + "."
                )
        start = base.model_dump() if base is not None else {}
        try:
            return cls.model_validate({**start, **values})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            field = known.get(name)
            title = field.title if field is not None and field.title else name
            raise InputError(
                f"{title} ({name}) cannot be {first['input']!r}: {_why(first)}{_nearest(first)}."
            ) from None


def _why(refused: ErrorDetails) -> str:
    """Say what may be given; of names, first the one that is spelled nearly so."""
    if refused["type"] in ("enum", "literal_error"):
        choices = re.findall("'([^']*)'", refused["ctx"]["expected"])
        lower = {choice.lower(): choice for choice in choices}
        # Nearer than usual, or who asks for a gpu is offered the cpu.
        near = difflib.get_close_matches(str(refused["input"]).lower(), lower, n=1, cutoff=0.7)
        if near:
            return f"did you mean {lower[near[0]]!r}? {refused['msg']}"
    return _begin_small(refused["msg"])


def _nearest(refused: ErrorDetails) -> str:
    """Name the nearest multiple where a number is none."""
    if refused["type"] != "multiple_of":
        return ""
    unit = refused["ctx"]["multiple_of"]
    return f"; the nearest is {round(float(refused['input']) / unit) * unit}"


def _begin_small(sentence: str) -> str:
    """Return it without its capital; what it quotes stays as it is."""
    return sentence[:1].lower() + sentence[1:]


def extra(field: FieldInfo) -> dict[str, Any]:
    """Return a field's unit, log and basic marks."""
    marks = field.json_schema_extra
    return dict(marks) if isinstance(marks, dict) else {}


def parse_assignments(pairs: list[str]) -> dict[str, str]:
    """Turn ``["tile_size=512"]`` into ``{"tile_size": "512"}``.

    Raises
    ------
    InputError
        A part without ``=``.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise InputError(f"{pair!r} is not a setting; write it as name=value.")
        values[name.strip()] = value.strip()
    return values

"""Errors that a user reads: one sentence on what happened and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import ValidationError


class SegDeskError(Exception):
    """A failure that SegDesk can explain.

    Parameters
    ----------
    message
        One clear sentence: what happened and what to do about it.
    actions
        Pairs of button text and callback. napari's notification manager shows
        exactly ``message`` and ``actions``.
    """

    def __init__(
        self, message: str, actions: Sequence[tuple[str, Callable[[], object]]] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.actions = tuple(actions)


class InputError(SegDeskError):
    """The user's input cannot be used; nothing has been changed on disk."""


class CanceledError(SegDeskError):
    """The user called the work off; this is an outcome and not a fault."""

    def __init__(self, message: str = "Canceled.") -> None:
        super().__init__(message)


def first_fault(error: ValidationError) -> str:
    """Say which field of a file is wrong first, and how, such as ``images: input should be 1``."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "the file"
    return f"{field}: {first['msg'].lower()}"

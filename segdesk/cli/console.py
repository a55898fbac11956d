"""Talking to a terminal, a pipe, or a program that reads JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_PARTS = 10


def say(text: str) -> None:
    """Write a line for people; to stderr, so that stdout holds results only."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def show(text: str) -> None:
    """Write a line of the result to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_json(data: Any) -> None:
    """Write one JSON document in one line to stdout."""
    show(json.dumps(data, default=str))


class Meter(Protocol):
    """Something that shows how far work has come."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show ``done`` of ``total``."""
        ...


@contextmanager
def meter(title: str) -> Iterator[Meter]:
    """Show progress: a bar on a terminal, ten plain lines in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainMeter(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)

        def update(done: int, total: int, text: str = "") -> None:
            description = f"{title}  {text}" if text else title
            progress.update(task, completed=done, total=total, description=description)

        yield update


class _PlainMeter:
    def __init__(self, title: str) -> None:
        self._title = title
        self._shown = 0  # nothing is said before something is done

    def __call__(self, done: int, total: int, text: str = "") -> None:
        part = done * PLAIN_PARTS // max(1, total)
        if part != self._shown:
            self._shown = part
            say(f"{self._title}: {done} of {total}" + (f", {text}" if text else ""))

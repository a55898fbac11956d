"""A fine-tuning run: its states and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class RunState(StrEnum):
    """States of a run.

    ::

        queued -> running -> completed | canceled | failed | crashed

    Exactly one of the four on the right ends every run; one that was not completed may be
    queued again, to go on from its checkpoint.
    """

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELED = "canceled"
    FAILED = "failed"
    CRASHED = "crashed"

    @property
    def is_terminal(self) -> bool:
        """Whether a run in this state has ended."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True, slots=True)
class Run:
    """One fine-tuning run, replaced when an event comes in.

    Attributes
    ----------
    id
        Folder name under ``runs/``.
    base_model
        Name of the model it starts from.
    new_model
        Name of the model it makes, empty until it has one.
    reason
        Why it failed or crashed, one sentence.
    before, after
        Scores on the fixed validation set (see ``segdesk.training.metrics``).
    """

    id: str
    folder: Path
    base_model: str
    state: RunState
    new_model: str = ""
    reason: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None

"""The rounds of a project, from the ledger in the folders of its runs."""

from __future__ import annotations

from dataclasses import dataclass

from segdesk.core.errors import InputError
from segdesk.core.round import Round
from segdesk.core.run import Run
from segdesk.io.rounds import read_round
from segdesk.io.store import ProjectStore


@dataclass(frozen=True, slots=True)
class RoundEntry:
    """A run and its round, from the ledger.

    Attributes
    ----------
    round
        None while the run is under way, where its process was killed, and where the file
        cannot be read.
    fault
        Why the file cannot be read; empty as a rule.
    """

    run: Run
    round: Round | None
    fault: str = ""


def list_rounds(store: ProjectStore) -> list[RoundEntry]:
    """Return every run of a project with its round, oldest first."""
    return [_entry(run) for run in store.runs()]


def find_round(store: ProjectStore, name: str) -> RoundEntry:
    """Find a round by the id of its run or the name of the model it made.

    Raises
    ------
    InputError
        There is none; those there are, are named.
    """
    entries = list_rounds(store)
    for entry in reversed(entries):
        if name in (entry.run.id, entry.run.new_model):
            return entry
    known = ", ".join(entry.run.id for entry in entries)
    hint = f"there are: {known}." if known else "no model was fine-tuned in this project yet."
    raise InputError(f"There is no run called {name!r}; {hint}")


def _entry(run: Run) -> RoundEntry:
    try:
        return RoundEntry(run, read_round(run.folder))
    except InputError as error:
        return RoundEntry(run, None, error.message)

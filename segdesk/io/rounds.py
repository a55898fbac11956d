"""The ledger: one ``round.json`` in the folder of each run that ended."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from segdesk.core.round import Round
from segdesk.io.atomic import atomic_write_text, explain_os_errors

ROUND: Final = "round.json"


def write_round(folder: Path, entry: Round) -> Path:
    """Write a round into its run's folder, atomically; returns the file.

    Raises
    ------
    InputError
        The disk is full, read-only, or the user may not write there.
    """
    file = folder / ROUND
    atomic_write_text(file, entry.model_dump_json(indent=1) + "\n")
    return file


def read_round(folder: Path) -> Round | None:
    """Read the round of a run; None for a run that has not ended or was killed.

    Raises
    ------
    InputError
        The file is damaged or may not be read.
    """
    file = folder / ROUND
    if not file.is_file():
        return None
    with explain_os_errors(file, reading=True):
        text = file.read_text("utf-8", "replace")
    return Round.parse(text, str(file))

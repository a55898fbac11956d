"""``segdesk rounds``: the ledger of a project."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from segdesk.cli.console import say, show, show_json
from segdesk.core.sample import Split
from segdesk.io.store import ProjectStore
from segdesk.session.rounds import RoundEntry, list_rounds

HEADINGS = ("model", "from", "state", "images", "Dice before", "after", "change", "verdict", "when")
NONE = "-"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rounds")(rounds)


def rounds(
    project: Path = typer.Argument(..., help="The project."),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """Show what each fine-tuning run learnt from, and whether the model became better."""
    with ProjectStore.open(project, read_only=True) as store:
        entries = list_rounds(store)
    if as_json:
        show_json([_plain(entry) for entry in entries])
        return
    if not entries:
        show("No model was fine-tuned in this project yet.")
        return
    _show_table([HEADINGS, *(_row(entry) for entry in entries)])
    for entry in entries:
        if entry.fault:
            say(entry.fault)


def _plain(entry: RoundEntry) -> dict[str, Any]:
    run, found = entry.run, entry.round
    return {
        "run": run.id,
        "folder": str(run.folder),
        "state": str(run.state),
        "reason": run.reason,
        "base_model": run.base_model,
        "model": run.new_model,
        "images": _count(entry, Split.TRAIN),
        "validation": _count(entry, Split.VALIDATION),
        "dice_before": _dice(found.before if found else run.before),
        "dice_after": _dice(found.after if found else run.after),
        "difference": found.difference if found else None,
        "interval": found.interval if found else None,
        "verdict": found.verdict if found else None,
        "verdict_text": found.verdict_text if found else "",
        "ended": found.ended if found else None,
        "weights_sha256": found.weights_sha256 if found else "",
        "is_in_ledger": found is not None,
        "fault": entry.fault,
    }


def _row(entry: RoundEntry) -> tuple[str, ...]:
    run, found = entry.run, entry.round
    learnt, held = _count(entry, Split.TRAIN), _count(entry, Split.VALIDATION)
    return (
        run.new_model or run.id,
        run.base_model,
        str(run.state),
        NONE if learnt is None else f"{learnt}+{held}",
        _figure(_dice(found.before if found else run.before)),
        _figure(_dice(found.after if found else run.after)),
        _change(entry),
        (found.verdict if found else None) or NONE,
        datetime.fromisoformat(found.ended).astimezone().strftime("%Y-%m-%d %H:%M")
        if found
        else NONE,
    )


def _change(entry: RoundEntry) -> str:
    found = entry.round
    if found is None or found.difference is None:
        return NONE
    if found.interval is None:
        return f"{found.difference:+.3f}"
    low, high = found.interval
    return f"{found.difference:+.3f} ({low:+.3f} to {high:+.3f})"


def _count(entry: RoundEntry, split: Split) -> int | None:
    return None if entry.round is None else len(entry.round.of_split(split))


def _dice(scores: dict[str, Any] | None) -> float | None:
    return (scores or {}).get("dice")


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _show_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        show("  ".join(cells).rstrip())

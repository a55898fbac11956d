"""``segdesk train --replay``: a round done again and compared."""

from __future__ import annotations

from pathlib import Path

from segdesk.cli.console import meter, say, show, show_json
from segdesk.cli.interrupt import interrupt_cancels
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.round import Round
from segdesk.io.store import ProjectStore
from segdesk.jobs.control import RunControl
from segdesk.jobs.messages import AnyEvent, Stepped
from segdesk.session.rounds import find_round


def replay_round(project: Path, name: str, *, as_json: bool) -> None:
    """Do a round again and say whether it is the same.

    Raises
    ------
    InputError
        There is no such round, or what it used has changed.
    SegDeskError
        The result is another one.
    """
    from segdesk.training.replay import replay

    folder, entry = _find(project, name)
    control = RunControl()
    with meter("Replaying") as progress, interrupt_cancels(control.cancel):

        def on_event(event: AnyEvent) -> None:
            if isinstance(event, Stepped):
                progress(event.step, event.total, f"loss {event.loss:.3f}")

        found = replay(folder, entry, on_event, control)
    if as_json:
        show_json(
            {
                "run": entry.run,
                "is_same": found.is_same,
                "differences": found.differences,
                "notes": found.notes,
                "weights_sha256": entry.weights_sha256,
            }
        )
    notes = f" ({'; '.join(found.notes)})" if found.notes else ""
    if not found.is_same:
        raise SegDeskError(f"{entry.run} is not the same: {'; '.join(found.differences)}{notes}.")
    words = (
        f"{entry.run} is the same: {len(entry.losses)} losses, all scores and the weights of "
        f"{entry.new_model} (SHA-256 {entry.weights_sha256[:12]}){notes}."
    )
    if as_json:
        say(words)
    else:
        show(words)


def _find(project: Path, name: str) -> tuple[Path, Round]:
    with ProjectStore.open(project, read_only=True) as store:
        found = find_round(store, name)
    if found.fault:
        raise InputError(found.fault)
    if found.round is None:
        raise InputError(
            f"{found.run.id} ({found.run.state}) is not in the ledger, so it cannot be done again; "
            "name another run (see 'segdesk rounds')."
        )
    return found.run.folder, found.round

"""Runs that outlive the program that started them: finding, following, ordering.

A run writes ``process.json`` when it begins and ``events.jsonl`` all along. One that was
left alone (:class:`~segdesk.jobs.messages.LeaveOrder`) reads ``orders.jsonl`` in its
folder, as it has no parent to hear from any more.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from segdesk.core.run import RunState
from segdesk.io.atomic import atomic_write_text
from segdesk.jobs.messages import (
    EVENT,
    ORDER,
    AnyEvent,
    AnyOrder,
    CancelOrder,
    Finished,
    PauseOrder,
)

PROCESS = "process.json"
EVENTS = "events.jsonl"
ORDERS = "orders.jsonl"
POLL_SECONDS = 0.3


def sign_in(folder: Path) -> None:
    """Write which process does the run, so that another program can find it."""
    own = psutil.Process()
    text = json.dumps({"pid": own.pid, "created": own.create_time()})
    with suppress(FileNotFoundError):
        (folder / ORDERS).unlink()  # of an earlier start of the same run
    atomic_write_text(folder / PROCESS, text + "\n")


def process_of(folder: Path) -> psutil.Process | None:
    """Return the living process that does the run in ``folder``, if there is one."""
    try:
        data = json.loads((folder / PROCESS).read_text("utf-8"))
        process = psutil.Process(int(data["pid"]))
        # A process id is used again; the time it began at tells them apart.
        is_same = abs(process.create_time() - float(data["created"])) < 1.0
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def end_of(folder: Path) -> Finished | None:
    """Return the terminal event in a run's journal, if it has come to its end."""
    last = None
    for event in read_events(folder):
        last = event
    return last if isinstance(last, Finished) else None


def read_events(folder: Path) -> Iterator[AnyEvent]:
    """Yield what a run's journal says, in order; nothing where there is none."""
    return _events(new_lines(folder / EVENTS, 0)[1])


def _events(lines: list[str]) -> Iterator[AnyEvent]:
    for line in lines:
        with suppress(ValidationError):  # a line cut short by a full disk
            yield EVENT.validate_json(line)


class FollowedRun:
    """Follows a run that goes on without a parent, from the first of its events.

    Parameters
    ----------
    folder
        Of the run.
    job
        Its id.
    on_event
        Called on a thread of its own with every event; the last is a ``Finished``.
    """

    def __init__(self, folder: Path, job: str, on_event: Callable[[AnyEvent], None]) -> None:
        self._folder = folder
        self._job = job
        self._on_event = on_event
        self._stop = threading.Event()
        self._is_killed = False
        self._thread = threading.Thread(target=self._follow, name="segdesk-follow", daemon=True)
        self._thread.start()

    def cancel(self, job: str) -> None:
        """Ask the run to end at its next step."""
        self._order(CancelOrder(job=job))

    def pause(self, job: str, is_paused: bool) -> None:
        """Ask the run to wait, or to go on."""
        self._order(PauseOrder(job=job, is_paused=is_paused))

    def kill(self) -> None:
        """End the run at once."""
        self._is_killed = True
        process = process_of(self._folder)
        if process is not None:
            kill_tree(process)

    def close(self) -> None:
        """Follow no longer; the run goes on."""
        self._stop.set()
        self._thread.join(5.0)

    def _order(self, order: AnyOrder) -> None:
        with (self._folder / ORDERS).open("a", encoding="utf-8") as out:
            out.write(order.model_dump_json() + "\n")

    def _follow(self) -> None:
        position = 0
        while not self._stop.is_set():
            is_alive = process_of(self._folder) is not None  # before the last look at the lines
            position, lines = new_lines(self._folder / EVENTS, position)
            for event in _events(lines):
                self._on_event(event)
                if isinstance(event, Finished):
                    return
            if not is_alive and not lines:
                self._on_event(ended_without_a_word(self._job, is_killed=self._is_killed))
                return
            self._stop.wait(POLL_SECONDS)


def listen_to_folder(folder: Path, on_order: Callable[[AnyOrder], None]) -> None:
    """Read the orders that come into ``folder``, on a thread of its own."""

    def read() -> None:
        position = 0
        while True:
            position, lines = new_lines(folder / ORDERS, position)
            for line in lines:
                with suppress(ValidationError):
                    on_order(ORDER.validate_json(line))
            wait.wait(POLL_SECONDS)

    wait = threading.Event()
    threading.Thread(target=read, name="segdesk-folder-orders", daemon=True).start()


def new_lines(path: Path, position: int) -> tuple[int, list[str]]:
    """Return the whole lines of a growing file from a byte on, and where they end."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            data = file.read()
    except OSError:
        return position, []
    whole = data[: data.rfind(b"\n") + 1]
    return position + len(whole), whole.decode("utf-8", errors="replace").splitlines()


def ended_without_a_word(job: str, *, is_killed: bool) -> Finished:
    """Return the terminal event of a run whose process is gone and has sent none."""
    if is_killed:
        reason = "Ended at once, as you asked; it can go on from its last checkpoint."
        return Finished(job=job, state=RunState.CANCELED, reason=reason)
    reason = "The training process is gone; it can go on from its last checkpoint."
    return Finished(job=job, state=RunState.CRASHED, reason=reason)


def kill_tree(process: psutil.Process) -> None:
    """End a process and its children at once."""
    with suppress(psutil.NoSuchProcess):
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()

"""The worker's end of the line: orders on stdin, events on stdout.

Libraries print to stdout when they please, so the real stdout is kept aside for
events and file descriptors 1 and 2 are pointed at a log before torch is imported.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
from pydantic import ValidationError

from segdesk.jobs.messages import ORDER, AnyEvent, AnyOrder


class ParentLine:
    """Sends events to the parent and reads its orders.

    Parameters
    ----------
    log
        File that takes what would have gone to stdout and stderr; None leaves
        both where they are (a run started by hand).
    """

    def __init__(self, log: Path | None) -> None:
        self._lock = threading.Lock()
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1, newline="\n")
        if log is not None:
            self.log_to(log)

    def log_to(self, log: Path) -> None:
        """Let a file take what would go to stdout and stderr, from now on."""
        with log.open("ab") as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)

    def send(self, event: AnyEvent) -> None:
        """Write one event; a parent that is gone is not an error here."""
        with self._lock:
            try:
                self._out.write(event.model_dump_json() + "\n")
                self._out.flush()
            except (BrokenPipeError, OSError, ValueError):
                return

    def listen(
        self,
        on_order: Callable[[AnyOrder], None],
        on_parent_gone: Callable[[], None],
    ) -> None:
        """Read orders in a background thread until stdin ends: the parent died."""

        def read() -> None:
            for line in sys.stdin:
                try:
                    order = ORDER.validate_json(line)
                except ValidationError as error:
                    sys.stderr.write(f"An order was not understood: {error}\n")
                    continue
                on_order(order)
            on_parent_gone()

        threading.Thread(target=read, name="segdesk-orders", daemon=True).start()


class Doorkeeper:
    """Keeps orders while a worker loads its libraries; ends it if the parent goes meanwhile.

    Nothing is done yet then that would be lost, and whoever closes a project right
    after opening it need not wait for torch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[AnyOrder] = []
        self._on_order: Callable[[AnyOrder], None] | None = None
        self._on_parent_gone: Callable[[], None] | None = None

    def take(self, order: AnyOrder) -> None:
        """Hand an order on, or keep it."""
        with self._lock:
            if self._on_order is None:
                self._kept.append(order)
                return
        self._on_order(order)

    def parent_gone(self) -> None:
        """Tell of it; while the worker still loads, end it at once."""
        with self._lock:
            if self._on_parent_gone is None:
                os._exit(0)
        self._on_parent_gone()

    def open_to(
        self, on_order: Callable[[AnyOrder], None], on_parent_gone: Callable[[], None]
    ) -> None:
        """Hand over what was kept, and everything from now on."""
        with self._lock:
            for order in self._kept:
                on_order(order)
            self._kept.clear()
            self._on_order, self._on_parent_gone = on_order, on_parent_gone


def is_first_process() -> bool:
    """Whether this is the process of a run that tells and writes.

    The further processes of a run on several devices and machines are told their numbers
    in the environment, as torch's own launchers do it.
    """
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def share_processor() -> None:
    """Make idle OpenMP threads sleep soon; call before torch is imported.

    By default they spin. Two torch processes on two cores then take three times as long
    each, and the window waits too. Asleep at once they are late for the next layer: a
    thousand looks before that, some microseconds, are faster alone and hardly slower
    together (seconds a step, docs/benchmarks.md: 0.83 and 3.4 by default, 1.30 and 1.1
    asleep at once, 0.76 and 1.2 so). GNU's OpenMP, that of Linux, knows the number; others
    do as the policy says.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def lower_priority() -> None:
    """Let the window and everything else go first."""
    process = psutil.Process()
    try:
        if sys.platform == "win32":
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        else:
            process.nice(10)
    except psutil.Error:
        return

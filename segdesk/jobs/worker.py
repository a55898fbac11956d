"""A supervised worker process.

States::

    idle -> running -> (asked to cancel) -> ended
    cancel ladder: ask -> 15 s of silence -> terminate -> 5 s -> kill the tree

Whatever way the process ends, every job given to it gets exactly one
:class:`Finished`: the worker's own, or ``crashed`` written here.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil
from pydantic import ValidationError

from segdesk.core.run import RunState
from segdesk.jobs.following import ended_without_a_word, kill_tree
from segdesk.jobs.messages import (
    EVENT,
    AnyEvent,
    CancelOrder,
    EngineOrder,
    Finished,
    SideOrder,
    TrainingOrder,
)

SILENCE_SECONDS = 15.0
TERMINATE_SECONDS = 5.0


class WorkerProcess:
    """Starts ``python -m MODULE ARGS``, reads its events, outlives its death.

    Parameters
    ----------
    arguments
        What follows the interpreter: ``("-m", "segdesk.inference", ...)``.
    on_event
        Called on the supervising thread for every event.
    on_ended
        Called on the supervising thread once, after the last event.
    log
        The worker's own log, quoted when it crashes.
    first_job
        The job its arguments already give it, if any.
    silence_seconds
        How long a worker asked to cancel may say nothing before it is ended.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        on_event: Callable[[AnyEvent], None],
        on_ended: Callable[[], None] = lambda: None,
        log: Path | None = None,
        first_job: str = "",
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._arguments = [sys.executable, *arguments]
        self._name = name
        self._on_event = on_event
        self._on_ended = on_ended
        self._log = log
        self._silence_seconds = silence_seconds
        self._jobs: set[str] = {first_job} if first_job else set()
        self._has_ended = False
        self._is_killed = False
        self._lock = threading.Lock()
        self._last_heard = 0.0
        self._ladder_stop = threading.Event()
        self._process = self._spawn()
        self._thread = threading.Thread(target=self._supervise, name=f"segdesk-{name}", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def give(self, job: str, order: EngineOrder | TrainingOrder) -> None:
        """Hand a job over; from here on it gets its one ``Finished``."""
        with self._lock:
            has_ended = self._has_ended
            if not has_ended:
                self._jobs.add(job)
        if has_ended:  # it died after the caller looked, and nobody reads its events any more
            reason = crash_reason(self._name, self._process.wait(), self._log)
            self._on_event(Finished(job=job, state=RunState.CRASHED, reason=reason))
            return
        self._send(order.model_dump_json())

    def tell(self, order: SideOrder) -> None:
        """Send what is no job of its own and has no end."""
        self._send(order.model_dump_json())

    def cancel(self, job: str) -> None:
        """Ask the worker to end a job, and climb the ladder if it stays silent."""
        self._send(CancelOrder(job=job).model_dump_json())
        threading.Thread(
            target=self._climb, args=(job,), name=f"segdesk-{self._name}-cancel", daemon=True
        ).start()

    def kill(self) -> None:
        """End the worker at once; its jobs are canceled, not crashed."""
        self._is_killed = True
        self._kill_tree()

    def take_log(self, log: Path) -> None:
        """Quote another log from now on, when the worker crashes."""
        self._log = log

    def leave(self) -> None:
        """Part from a worker that goes on alone: nothing is heard of it any more."""
        with self._lock:
            self._jobs.clear()
            self._on_event = _ignore
        self._ladder_stop.set()
        self.close_input()

    def close_input(self) -> None:
        """End the worker's stdin, which asks it to leave."""
        with suppress(OSError, ValueError):
            self._stdin.close()

    def close(self, timeout: float = 10.0) -> None:
        """Ask the worker to leave and see it gone."""
        self.close_input()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill_tree()
        self._ladder_stop.set()
        self._thread.join(timeout)

    # How ---------------------------------------------------------------------

    def _spawn(self) -> subprocess.Popen[str]:
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NEW_PROCESS_GROUP
        # What it prints before it opens its log itself: an import that fails.
        errors = self._log.open("ab") if self._log is not None else None
        process = subprocess.Popen(
            self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            bufsize=1,
            start_new_session=sys.platform != "win32",
            creationflags=flags,
        )
        if errors is not None:
            errors.close()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("The worker has no pipes.")
        self._stdin: IO[str] = process.stdin
        self._stdout: IO[str] = process.stdout
        return process

    def _send(self, line: str) -> None:
        with suppress(OSError, ValueError):  # dead already: the supervisor reports that
            self._stdin.write(line + "\n")
            self._stdin.flush()

    def _supervise(self) -> None:
        for line in self._stdout:
            self._last_heard = time.monotonic()
            try:
                event = EVENT.validate_json(line)
            except ValidationError:
                continue  # not ours: a library found the real stdout
            if isinstance(event, Finished):
                with self._lock:
                    if event.job not in self._jobs:
                        continue
                    self._jobs.discard(event.job)
            self._on_event(event)
        code = self._process.wait()
        self._ladder_stop.set()
        self._stdout.close()
        self.close_input()
        with self._lock:
            orphans, self._jobs = sorted(self._jobs), set()
            self._has_ended = True
        for job in orphans:
            if self._is_killed:
                self._on_event(ended_without_a_word(job, is_killed=True))
                continue
            reason = crash_reason(self._name, code, self._log)
            self._on_event(Finished(job=job, state=RunState.CRASHED, reason=reason))
        self._on_ended()

    def _climb(self, job: str) -> None:
        self._last_heard = time.monotonic()
        while time.monotonic() - self._last_heard < self._silence_seconds:
            if self._ladder_stop.wait(0.1) or job not in self._jobs:
                return
        self._process.terminate()
        if not self._ladder_stop.wait(TERMINATE_SECONDS):
            self._kill_tree()

    def _kill_tree(self) -> None:
        with suppress(psutil.NoSuchProcess):
            kill_tree(psutil.Process(self._process.pid))


def _ignore(event: AnyEvent) -> None:
    """Take an event of a worker that nobody listens to any more."""


def crash_reason(name: str, code: int, log: Path | None) -> str:
    """Say in a sentence how a worker died."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    where = f" Its log: {log}" if log is not None else ""
    last = _last_line(log)
    return f"The {name} process {how}." + (f" Last words: {last}." if last else "") + where


def _last_line(log: Path | None) -> str:
    if log is None or not log.is_file():
        return ""
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip().rstrip(".")[:200] if lines else ""

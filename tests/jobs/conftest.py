from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segdesk.jobs.messages import AnyEvent, Finished
from segdesk.jobs.worker import WorkerProcess


class Ear:
    """Keeps what a worker says."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self.ended = 0
        self._queue: queue.Queue[AnyEvent] = queue.Queue()

    def hear(self, event: AnyEvent) -> None:
        self.events.append(event)
        self._queue.put(event)

    def end(self) -> None:
        self.ended += 1

    def wait_for(self, wanted: Callable[[AnyEvent], bool], seconds: float = 240) -> AnyEvent:
        while not wanted(event := self._queue.get(timeout=seconds)):
            pass
        return event

    def finished(self, job: str) -> list[Finished]:
        return [e for e in self.events if isinstance(e, Finished) and e.job == job]


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def start(ear: Ear, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start a worker that is gone when the test ends, whatever it did."""
    started: list[WorkerProcess] = []

    def begin(*arguments: str, silence_seconds: float = 15.0, job: str = "j") -> WorkerProcess:
        worker = WorkerProcess(
            arguments,
            name="test",
            on_event=ear.hear,
            on_ended=ear.end,
            log=tmp_path / "log.txt",
            first_job=job,
            silence_seconds=silence_seconds,
        )
        started.append(worker)
        return worker

    yield begin
    for worker in started:
        worker.close(2)
        assert not worker.is_alive

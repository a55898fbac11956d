"""The backend of the window: an engine process, and a process per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segdesk.jobs.messages import AnyEvent, PredictOrder, RefineOrder, View, ViewOrder
from segdesk.jobs.worker import WorkerProcess


class WorkerBackend:
    """Starts, feeds and ends the worker processes.

    Parameters
    ----------
    on_event
        Called with every event on a supervising thread; put it into a queue.
    engine_log
        File the engine's prints go to.
    """

    def __init__(self, on_event: Callable[[AnyEvent], None], engine_log: Path) -> None:
        self._on_event = on_event
        self._engine_log = engine_log
        self._engine: WorkerProcess | None = None
        self._runs: dict[str, WorkerProcess] = {}

    def warm(self) -> None:
        """Start the engine now, so that the first prediction need not wait for it."""
        self._ensure_engine()

    def predict(self, order: PredictOrder) -> None:
        """Hand an order to the engine; a dead one is replaced."""
        self._ensure_engine().give(order.job, order)

    def refine(self, order: RefineOrder) -> None:
        """Hand an order to the engine; a dead one is replaced."""
        self._ensure_engine().give(order.job, order)

    def train(self, run_id: str, folder: Path) -> None:
        """Start a run in a process of its own."""
        run = WorkerProcess(
            ("-m", "segdesk.training", str(folder)),
            name="training",
            on_event=self._on_event,
            log=folder / "log.txt",
            first_job=run_id,
        )
        self._runs[run_id] = run

    def look(self, job: str, view: View) -> None:
        """Tell the engine, if it lives."""
        if self._engine is not None:
            self._engine.tell(ViewOrder(job=job, view=view))

    def cancel(self, job: str) -> None:
        """Ask whoever does ``job`` to end it."""
        worker = self._runs.get(job, self._engine)
        if worker is not None:
            worker.cancel(job)

    def close(self) -> None:
        """End all workers; runs write a checkpoint first."""
        workers = [w for w in (*self._runs.values(), self._engine) if w is not None]
        for worker in workers:
            worker.close_input()
        for worker in workers:
            worker.close()
        self._runs.clear()
        self._engine = None

    def pids(self) -> list[int]:
        """Return the process ids of living workers."""
        workers = (*self._runs.values(), self._engine)
        return [w.pid for w in workers if w is not None and w.is_alive]

    def _ensure_engine(self) -> WorkerProcess:
        if self._engine is None or not self._engine.is_alive:
            self._engine = WorkerProcess(
                ("-m", "segdesk.inference", str(self._engine_log)),
                name="prediction",
                on_event=self._on_event,
                log=self._engine_log,
            )
        return self._engine

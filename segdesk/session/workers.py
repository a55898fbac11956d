"""The backend of the window: an engine process, and a process per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segdesk.jobs.following import FollowedRun
from segdesk.jobs.messages import (
    AnyEvent,
    EstimateOrder,
    GiveWayOrder,
    LeaveOrder,
    PauseOrder,
    PredictOrder,
    RefineOrder,
    RunOrder,
    VaryOrder,
    View,
    ViewOrder,
)
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
        self._runs: dict[str, WorkerProcess | FollowedRun] = {}
        #: A training process that has torch loaded and waits for a run.
        self._waiting: WorkerProcess | None = None

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
        """Start a run in a process of its own: the one that waits, if there is one."""
        waiting, self._waiting = self._waiting, None
        log = folder / "log.txt"
        if waiting is not None and waiting.is_alive:
            waiting.take_log(log)
            waiting.give(run_id, RunOrder(job=run_id, folder=folder))
            self._runs[run_id] = waiting
            return
        self._runs[run_id] = WorkerProcess(
            ("-m", "segdesk.training", str(folder)),
            name="training",
            on_event=self._on_event,
            log=log,
            first_job=run_id,
        )

    def prepare(self, order: EstimateOrder | VaryOrder) -> None:
        """Ask a training process that waits for a run; it starts now if there is none."""
        if self._waiting is None or not self._waiting.is_alive:
            log = self._engine_log.with_name("training.log")
            self._waiting = WorkerProcess(
                ("-m", "segdesk.training", "--wait", str(log)),
                name="training",
                on_event=self._on_event,
                log=log,
            )
        self._waiting.give(order.job, order)

    def pause(self, run_id: str, is_paused: bool) -> None:
        """Let a run wait before its next step, or go on."""
        run = self._runs.get(run_id)
        if isinstance(run, FollowedRun):
            run.pause(run_id, is_paused)
        elif run is not None:
            run.tell(PauseOrder(job=run_id, is_paused=is_paused))

    def kill(self, run_id: str) -> None:
        """End a run's process at once."""
        if run_id in self._runs:
            self._runs[run_id].kill()

    def leave(self, run_id: str) -> None:
        """Let a run go on when the program ends."""
        run = self._runs.pop(run_id, None)
        if isinstance(run, WorkerProcess):
            run.tell(LeaveOrder(job=run_id))
            run.leave()
        elif run is not None:
            run.close()

    def follow(self, run_id: str, folder: Path) -> None:
        """Listen to a run that an earlier start of the program left."""
        self._runs[run_id] = FollowedRun(folder, run_id, self._on_event)

    def look(self, job: str, view: View) -> None:
        """Tell the engine, if it lives."""
        if self._engine is not None:
            self._engine.tell(ViewOrder(job=job, view=view))

    def give_way(self, seconds: float) -> None:
        """Tell the engine, if it lives."""
        if self._engine is not None:
            self._engine.tell(GiveWayOrder(seconds=seconds))

    def cancel(self, job: str) -> None:
        """Ask whoever does ``job`` to end it."""
        worker = self._runs.get(job, self._engine)
        if worker is not None:
            worker.cancel(job)

    def close(self) -> None:
        """End all workers; runs write a checkpoint first."""
        for run_id, run in list(self._runs.items()):
            if isinstance(run, FollowedRun):
                run.cancel(run_id)
                run.close()
        workers = self._workers()
        for worker in workers:
            worker.close_input()
        for worker in workers:
            worker.close()
        self._runs.clear()
        self._engine = self._waiting = None

    def pids(self) -> list[int]:
        """Return the process ids of living workers."""
        return [w.pid for w in self._workers() if w.is_alive]

    def _workers(self) -> list[WorkerProcess]:
        own = (*self._runs.values(), self._engine, self._waiting)
        return [worker for worker in own if isinstance(worker, WorkerProcess)]

    def _ensure_engine(self) -> WorkerProcess:
        if self._engine is None or not self._engine.is_alive:
            self._engine = WorkerProcess(
                ("-m", "segdesk.inference", str(self._engine_log)),
                name="prediction",
                on_event=self._on_event,
                log=self._engine_log,
            )
        return self._engine

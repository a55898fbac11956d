"""Doing a run from the command line: in this process, or in processes that share it."""

from __future__ import annotations

import queue
from collections.abc import Callable

from segdesk.cli.console import meter, say, show
from segdesk.cli.interrupt import interrupt_cancels
from segdesk.core.run import Run
from segdesk.jobs.messages import AnyEvent, Evaluated, Finished, Progressed, Said, Stepped
from segdesk.session.session import Session, engine_log
from segdesk.session.training import find_runs
from segdesk.session.workers import WorkerBackend

Begin = Callable[[], Run]
Hear = Callable[[AnyEvent], None]


def follow_run(
    session: Session, begin: Begin, *, is_shared: bool, as_json: bool
) -> tuple[Run, Finished | None]:
    """Begin a run and show how it goes; returns it as it ended, and what it said last.

    Parameters
    ----------
    session
        Without a backend yet.
    begin
        Starts the run, or lets one go on.
    is_shared
        Several processes share it.
    """
    ends: dict[str, Finished] = {}
    with meter("Training") as progress:

        def on_event(event: AnyEvent) -> None:
            session.handle(event)
            if isinstance(event, Finished):
                ends[event.job] = event
            if as_json:
                show(event.model_dump_json())
            elif isinstance(event, Stepped):
                progress(event.step, event.total, f"loss {event.loss:.3f}")
            elif isinstance(event, Progressed):
                progress(event.done, event.total, event.text)
            elif isinstance(event, Said):
                say(event.text)
            elif isinstance(event, Evaluated) and event.scores["dice"] is not None:
                say(f"after {event.step} steps: validation Dice {event.scores['dice']:.3f}")

        runner = _in_processes if is_shared else _in_this_process
        started = runner(session, begin, on_event)
    run = next(run for run in session.store.runs() if run.id == started.id)
    return run, ends.get(run.id)


def _in_this_process(session: Session, begin: Begin, on_event: Hear) -> Run:
    from segdesk.training.inline import InlineBackend

    backend = InlineBackend(on_event)
    session.attach(backend)
    find_runs(session)
    with interrupt_cancels(lambda: backend.cancel("")):
        return begin()


def _in_processes(session: Session, begin: Begin, on_event: Hear) -> Run:
    """Run where several processes share the work: they are started from one of their own."""
    events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
    backend = WorkerBackend(events.put, engine_log(session.store.folder))
    session.attach(backend)
    find_runs(session)
    run = begin()
    try:
        with interrupt_cancels(lambda: backend.cancel(run.id)):
            while True:
                event = events.get()
                on_event(event)
                if isinstance(event, Finished) and event.job == run.id:
                    return run
    finally:
        backend.close()

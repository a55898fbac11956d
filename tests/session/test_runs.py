"""Runs in processes of their own: they wait their turn, end when told, go on, and are left."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from segdesk.config.training import Recipe, TrainingConfig
from segdesk.core.run import Run, RunState
from segdesk.jobs.following import process_of
from segdesk.jobs.messages import AnyEvent, Estimated, Finished, Paused, Stepped, Varied
from segdesk.session import training
from segdesk.session.models import list_models, use_model
from segdesk.session.projects import add_images, match_masks
from segdesk.session.session import Session, engine_log
from segdesk.session.workers import WorkerBackend

SHORT = TrainingConfig(steps=2, batch_size=2, crop_size=32, evaluate_every=50, device="cpu")
LONG = SHORT.model_copy(update={"steps": 100_000, "evaluate_every": 5})
SECONDS = 120.0


class Window:
    """A session with worker processes, and the loop that hands it their events."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.heard: list[AnyEvent] = []
        self._queue: queue.Queue[AnyEvent] = queue.Queue()
        self.backend = WorkerBackend(self._queue.put, engine_log(session.store.folder))
        session.attach(self.backend)

    def wait(self, wanted: Callable[[AnyEvent], bool]) -> AnyEvent:
        while True:
            event = self._queue.get(timeout=SECONDS)
            self.heard.append(event)
            self.session.handle(event)
            if wanted(event):
                return event

    def step_of(self, run: Run) -> None:
        self.wait(lambda e: isinstance(e, Stepped) and e.job == run.id)

    def end_of(self, run: Run) -> Run:
        self.wait(lambda e: isinstance(e, Finished) and e.job == run.id)
        return self.run(run.id)

    def run(self, run_id: str) -> Run:
        return next(r for r in self.session.store.runs() if r.id == run_id)


@pytest.fixture
def no_process_stays() -> Iterator[None]:
    """Look for processes once all sessions are closed."""
    yield
    children = psutil.Process().children(recursive=True)
    left = [p for p in children if p.status() != psutil.STATUS_ZOMBIE]
    left = [p for p in left if "segdesk.training" in " ".join(p.cmdline())]
    for process in left:
        process.kill()  # or a test that failed would slow down all that follow
    assert left == []


@pytest.fixture
def open_window(
    no_process_stays: None,  # first in, last out
    reopen: Callable[[], Session], make_model: Callable[..., Path],
    disc_files: Callable[..., list[Path]], tmp_path: Path,
) -> Callable[[], Window]:  # fmt: skip
    """Open the project as a new start of the app would; it has a tiny model and labels."""

    def open_it() -> Window:
        window = Window(reopen())
        if not window.session.store.samples():
            make_model(window.session.store.folder / "models" / "tiny")
            add_images(window.session, match_masks(disc_files(4), tmp_path / "masks"))
            use_model(window.session, "tiny")
        return window

    return open_it


@pytest.mark.slow
def test_runs_wait_their_turn_end_when_told_and_go_on(open_window: Callable[[], Window]) -> None:
    window = open_window()
    session = window.session
    first = training.start(session, LONG)
    second = training.start(session, SHORT)
    third = training.start(session, SHORT)
    assert [r.state for r in session.store.runs()] == ["running", "queued", "queued"]
    training.stop(session, third.id)
    assert window.run(third.id).state is RunState.CANCELED  # never began
    window.step_of(first)
    training.pause(session, first.id, True)
    window.wait(lambda e: isinstance(e, Paused) and e.is_paused)
    training.pause(session, first.id, False)
    window.step_of(first)
    training.stop(session, first.id)
    assert window.end_of(first).state is RunState.CANCELED
    assert window.run(second.id).state is RunState.RUNNING  # its turn has come
    assert window.end_of(second).state is RunState.COMPLETED
    assert second.new_model in [entry.name for entry in list_models(session.store)]
    # What was stopped goes on from its checkpoint, and is then ended at once.
    assert training.can_resume(window.run(first.id))
    assert not training.can_resume(window.run(second.id))
    made = max(e.step for e in window.heard if isinstance(e, Stepped) and e.job == first.id)
    training.resume(session, first.id)
    event = window.wait(lambda e: isinstance(e, Stepped))
    assert isinstance(event, Stepped)
    assert event.step > made - 1  # the last step heard may not have been the last made
    training.stop_now(session, first.id)
    ended = window.end_of(first)
    assert ended.state is RunState.CANCELED
    assert "Ended at once, as you asked" in ended.reason


@pytest.mark.skipif(sys.platform == "win32", reason="not tried there")
def test_a_run_that_is_left_goes_on_and_is_found_again(open_window: Callable[[], Window]) -> None:
    window = open_window()
    run = training.start(window.session, LONG)
    window.step_of(run)
    training.leave_running(window.session)
    process = process_of(run.folder)
    assert process is not None  # the program is gone and the run goes on
    again = open_window()
    assert training.find_runs(again.session) == []
    assert again.run(run.id).state is RunState.RUNNING
    first = again.wait(lambda e: isinstance(e, Stepped))
    assert isinstance(first, Stepped)
    assert first.step == 1  # the curve is whole
    training.pause(again.session, run.id, True)
    again.wait(lambda e: isinstance(e, Paused) and e.is_paused)
    training.stop(again.session, run.id)
    assert again.end_of(run).state is RunState.CANCELED
    process.wait(SECONDS)


@pytest.mark.skipif(sys.platform == "win32", reason="not tried there")
def test_the_end_of_a_run_that_was_left_is_taken_in(open_window: Callable[[], Window]) -> None:
    window = open_window()
    run = training.start(window.session, SHORT.model_copy(update={"steps": 4}))
    window.step_of(run)
    process = process_of(run.folder)
    training.leave_running(window.session)
    if process is not None:
        process.wait(60)
    again = open_window()
    training.find_runs(again.session)
    assert again.run(run.id).state is RunState.COMPLETED
    assert run.new_model in [entry.name for entry in list_models(again.session.store)]


def test_what_a_run_takes_and_sees_is_told_before_it_begins(
    open_window: Callable[[], Window],
) -> None:
    window = open_window()
    session = window.session
    config = SHORT.model_copy(update={"elastic": 1.0, "blur": 1.0, "noise": 1.0})
    job = training.estimate(session, config)
    window.wait(lambda e: isinstance(e, Finished) and e.job == job)
    told = {e.recipe: e for e in window.heard if isinstance(e, Estimated)}
    assert set(told) == {Recipe.QUICK, Recipe.STANDARD, Recipe.FULL, Recipe.SCRATCH}
    assert all(e.seconds > 0 and e.memory_bytes > 50 * 2**20 for e in told.values())
    sample = session.store.samples()[0]
    asked: list[Any] = []
    session.events.varied.connect(asked.append)
    vary = training.vary(session, config, sample.id)
    window.wait(lambda e: isinstance(e, Finished) and e.job == vary)
    (varied,) = asked
    assert isinstance(varied, Varied)
    assert len({path.read_bytes() for path in varied.pictures}) == len(varied.pictures) > 4
    # The process that answered does the run.
    (waiting,) = window.backend.pids()
    run = training.start(session, SHORT)
    window.step_of(run)
    assert window.backend.pids() == [waiting]
    assert window.end_of(run).state is RunState.COMPLETED
    assert (run.folder / "log.txt").is_file()

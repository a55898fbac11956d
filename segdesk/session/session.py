"""An open project: its state, what runs for it, and what just happened."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from psygnal import Signal, SignalInstance

from segdesk.core.errors import SegDeskError
from segdesk.core.prediction import Prediction
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Sample, Status
from segdesk.io.packages import install_package
from segdesk.io.store import ProjectStore
from segdesk.jobs.messages import (
    AnyEvent,
    Architecture,
    Estimated,
    Evaluated,
    Finished,
    PartsPredicted,
    Paused,
    PredictionReady,
    Previewed,
    Progressed,
    Ready,
    RefinementReady,
    Said,
    Stepped,
    Varied,
)
from segdesk.session.backend import Backend
from segdesk.session.models import current_model, promote_if_better


class SessionEvents:
    """Facts the faces listen to; all are emitted on the session's own thread."""

    samples_added = Signal(list)  # of Sample
    sample_removed = Signal(str)  # sample id
    sample_changed = Signal(Sample)  # status, score or head revision
    prediction_ready = Signal(Prediction)
    refinement_ready = Signal(RefinementReady)  # a proposal; nothing uses it yet
    parts_predicted = Signal(PartsPredicted)  # of a prediction under way
    job_progressed = Signal(Progressed)
    job_finished = Signal(Finished)  # predictions and runs, any outcome
    run_changed = Signal(Run)  # a run started or ended
    run_stepped = Signal(Stepped)
    run_evaluated = Signal(Evaluated)
    run_previewed = Signal(Previewed)
    run_paused = Signal(Paused)
    estimated = Signal(Estimated)
    varied = Signal(Varied)
    model_changed = Signal(str)  # name of the model now in use
    models_added = Signal(str)  # name of a new model
    engine_ready = Signal(Ready)
    said = Signal(str)  # a sentence for the user


class Session:
    """A project store and a backend, and the one writer of both.

    Parameters
    ----------
    store
        The open project.
    backend
        What computes. Its events must come to :meth:`handle`.
    """

    def __init__(self, store: ProjectStore, backend: Backend | None = None) -> None:
        self.store = store
        self.events = SessionEvents()
        self._backend = backend
        #: What a new model can be built from, once the engine has said so.
        self.architectures: tuple[Architecture, ...] = ()
        #: Whether a new model is used by itself once the verdict on it is *better*.
        self.promotes_better = False
        self._jobs: dict[str, str] = {}
        self._numbers = itertools.count(1)
        events = self.events
        #: Facts that change nothing in the project and are only passed on.
        self._news: dict[type, SignalInstance] = {
            Progressed: events.job_progressed,
            PartsPredicted: events.parts_predicted,
            RefinementReady: events.refinement_ready,
            Stepped: events.run_stepped,
            Evaluated: events.run_evaluated,
            Previewed: events.run_previewed,
            Paused: events.run_paused,
            Estimated: events.estimated,
            Varied: events.varied,
        }

    @property
    def backend(self) -> Backend:
        """What computes."""
        if self._backend is None:
            raise SegDeskError("This session only reads; it cannot predict or train.")
        return self._backend

    def attach(self, backend: Backend) -> None:
        """Give the session what computes for it, once."""
        self._backend = backend

    @property
    def jobs(self) -> dict[str, str]:
        """Jobs under way: id to the id of the sample or run they are for."""
        return dict(self._jobs)

    def new_job(self, subject: str) -> str:
        """Register a job for a sample or run and return its id."""
        job = f"predict-{next(self._numbers)}"
        self._jobs[job] = subject
        return job

    def adopt(self, run: Run) -> None:
        """Count a run that goes on without us among the jobs under way."""
        self._jobs[run.id] = run.id

    def part_from(self, run_id: str) -> None:
        """Let a run go on when the session is closed."""
        self._jobs.pop(run_id, None)
        self.backend.leave(run_id)

    def put_run(self, run: Run) -> None:
        """Record a run's new state and tell of it."""
        self.store.put_run(run)
        if run.state.is_terminal:
            self._jobs.pop(run.id, None)
        else:
            self._jobs[run.id] = run.id
        self.events.run_changed.emit(run)

    def start_next(self) -> None:
        """Start the run that has waited longest, unless one is under way."""
        mine = [run for run in self.store.runs() if run.id in self._jobs]
        waiting = [run for run in mine if run.state is RunState.QUEUED]
        if waiting and not any(run.state is RunState.RUNNING for run in mine):
            self.put_run(replace(waiting[0], state=RunState.RUNNING))
            self.backend.train(waiting[0].id, waiting[0].folder)

    def put_sample(self, sample: Sample) -> None:
        """Record a sample's new state and tell of it."""
        self.store.replace_sample(sample)
        self.events.sample_changed.emit(sample)

    def handle(self, event: AnyEvent) -> None:
        """Take a worker's event into the project and tell of it."""
        if isinstance(event, Ready):
            self.architectures = event.architectures
            self.events.engine_ready.emit(event)
        elif isinstance(event, PredictionReady):
            self._take_prediction(event)
        elif isinstance(event, Finished):
            self._take_end(event)
        elif isinstance(event, Said):
            self.events.said.emit(event.text)
        else:
            self._news[type(event)].emit(event)

    def end_work(self) -> None:
        """End what runs and wait for it; any thread may, once nobody orders anything more."""
        if self._backend is not None:
            self._backend.close()

    def close(self) -> None:
        """End what runs, then close the project."""
        self.end_work()
        for run in self.store.runs():
            if run.id in self._jobs and run.state is RunState.QUEUED:
                reason = "SegDesk was closed before this run's turn came."
                self.store.put_run(replace(run, state=RunState.CANCELED, reason=reason))
            elif run.id in self._jobs and not run.state.is_terminal:
                reason = "SegDesk was closed; the run can go on from its last checkpoint."
                self.store.put_run(replace(run, state=RunState.CANCELED, reason=reason))
        self._jobs.clear()
        self.store.close()

    # How ---------------------------------------------------------------------

    def _take_prediction(self, event: PredictionReady) -> None:
        prediction = Prediction(event.sample, event.model, event.folder, event.score)
        self.store.record_prediction(prediction, event.weights_sha256)
        sample = self.store.sample(event.sample)
        status = Status.PREDICTED if sample.status is Status.NEW else sample.status
        used = current_model(self.store)
        is_current = used is None or used.name == event.model
        score = event.score if is_current else sample.score
        self.put_sample(replace(sample, status=status, score=score))
        self.events.prediction_ready.emit(prediction)

    def _take_end(self, event: Finished) -> None:
        run = next((r for r in self.store.runs() if r.id == event.job), None)
        if run is None:
            self._jobs.pop(event.job, None)
        elif not run.state.is_terminal:
            self._end_run(run, event)
        self.events.job_finished.emit(event)

    def _end_run(self, run: Run, event: Finished) -> None:
        state, reason = event.state, event.reason
        name = run.new_model
        if state is RunState.COMPLETED:
            try:
                install_package(run.folder / "model", self.store.folder / "models" / name)
            except SegDeskError as error:
                state, reason = RunState.FAILED, error.message
        ended = replace(
            run,
            state=state,
            reason=reason,
            before=event.result.get("before"),
            after=event.result.get("after"),
        )
        self.put_run(ended)
        if state is RunState.COMPLETED:
            self.events.models_added.emit(name)
            if self.promotes_better:
                promote_if_better(self, ended)
        self.start_next()


def engine_log(store_folder: Path) -> Path:
    """Return where the engine of a project writes its log."""
    return store_folder / "engine.log"

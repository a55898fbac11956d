"""The Train panel: what is learnt from, how it goes, and whether it helped."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QWidget

from segdesk.config.app import RunHabits
from segdesk.config.training import TrainingConfig
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Sample
from segdesk.core.verdict import Judgement, Verdict, judge
from segdesk.io.store import ProjectStore
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.messages import Evaluated, Paused, Previewed, Progressed, Stepped
from segdesk.session import models, predicting, training
from segdesk.session.annotating import learning_curve
from segdesk.session.session import Session
from segdesk.ui.bridge import Steps, reporting
from segdesk.ui.checks import Checks
from segdesk.ui.estimates import Estimates
from segdesk.ui.examples import ExamplesButton
from segdesk.ui.forms import KnobsForm
from segdesk.ui.model_list import ModelList, model_rows
from segdesk.ui.pace import Pace
from segdesk.ui.panels.start_from import StartFrom
from segdesk.ui.picture import Picture
from segdesk.ui.plots import Curves
from segdesk.ui.queue_list import QueueList
from segdesk.ui.run_control import RunControl
from segdesk.ui.score_table import ScoreTable
from segdesk.ui.starting import RunStarter
from segdesk.ui.widgets import ActionButton, CalmBar, Hint, Panel, heading
from segdesk.ui.words import (
    dataset_rows,
    learning_words,
    run_words,
    score_rows,
    time_words,
    verdict_words,
    why_not_train,
)

if TYPE_CHECKING:
    from segdesk.ui.workbench import Workbench

NO_PROJECT = "Open a project first."
#: Steps suggested for a model that starts from nothing.
NEW_STEPS = 1000
#: The project is looked at again once nothing has changed for so long, in ms.
PATIENCE: Final = 700
STATE_COLORS = {
    RunState.QUEUED: "#6b7280",
    RunState.RUNNING: "#56b4e9",
    RunState.COMPLETED: "#2f9e6b",
    RunState.CANCELED: "#6b7280",
    RunState.FAILED: "#d9483b",
    RunState.CRASHED: "#d9483b",
}
VERDICT_COLORS = {
    Judgement.BETTER: "#2f9e6b",
    Judgement.NO_EVIDENCE: "#6b7280",
    Judgement.WORSE: "#d9483b",
}


class TrainPanel(Panel):
    """Starts fine-tuning runs, follows the one under way and offers its model."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        #: The run on show: the one under way, or else the last that ended.
        self._run: Run | None = None
        #: The run whose model is offered while another one is on show.
        self._done: Run | None = None
        #: By id of the run that it judges; computing one takes a moment.
        self._verdicts: dict[str, Verdict] = {}
        self._is_stale = True
        self._is_outlook_stale = True
        self.source = Hint()
        self.outlook = Hint()
        self.origin = StartFrom()
        self.form: KnobsForm[TrainingConfig] = KnobsForm(TrainingConfig)
        self.examples = ExamplesButton(workbench, self.form.value)
        self.form.add_below("augment", self.examples)
        self.estimates = Estimates(workbench, self.form, self)
        self.checks = Checks(workbench)
        self.starter = RunStarter(workbench, self.form, self.origin, self.checks)
        self.start, self.reason = self.starter.start, self.starter.reason
        self.state = Hint()
        self.control = RunControl(workbench)
        self.stop = self.control.stop
        self.said = Hint()
        self.bar = CalmBar()
        self.progress = Hint()
        self.queue = QueueList()
        self._pace = Pace(self._draw_course, self)
        self._last_step: Stepped | None = None
        self.preview = Picture(
            workbench, "What the model makes of an image while it learns", self._pace.soon
        )
        self.curves = Curves()
        self.scores = ScoreTable()
        self.verdict = Hint()
        self.use = ActionButton("Use the new model", self._use)
        self.back = ActionButton("Go back", self._go_back)
        self.models = ModelList()
        self.habits: KnobsForm[RunHabits] = KnobsForm(RunHabits)
        self._settled = QTimer(self)
        self._settled.setSingleShot(True)
        self._settled.setInterval(PATIENCE)
        self._settled.timeout.connect(self._look)
        self._lay_out()
        self._connect()
        self._show_run(None)
        self._on_models()

    def _lay_out(self) -> None:
        parts: tuple[QWidget, ...] = (
            self.source, self.outlook, self.origin, self.form, self.starter, self.checks,
            self.state, self.control, self.bar, self.progress, self.said, self.queue,
            self.scores, self.verdict, self.use, self.back,
            self.preview, self.curves, self.models, heading("What happens by itself"),
            self.habits,
        )  # fmt: skip
        for part in parts:
            self.column.addWidget(part)
        self.column.addStretch(1)

    def _connect(self) -> None:
        self.origin.changed.connect(self._on_origin)
        for form in (self.form, self.origin.form):
            form.changed.connect(self._ask_later)
        self.checks.changed.connect(self._update)
        self.starter.pressed.connect(self._look_at_once)
        self.queue.unwanted.connect(self._remove)
        self.models.wanted.connect(self._use_model)
        self.habits.changed.connect(self._take_habits)
        self.seen.connect(self._on_seen)
        bench = self._workbench
        bench.habits_changed.connect(self._on_habits)
        bench.session_opened.connect(self._on_opened)
        bench.session_closed.connect(self._on_closed)

    # What comes in -------------------------------------------------------------

    @reporting()
    def _on_opened(self, session: Session) -> None:
        events = session.events
        events.run_changed.connect(self._on_run)
        events.run_evaluated.connect(self._on_evaluated)
        events.run_previewed.connect(self._on_preview)
        events.run_paused.connect(self._on_paused)
        events.job_progressed.connect(self._on_progress)
        events.said.connect(self._on_said)
        for signal in (events.sample_changed, events.samples_added, events.sample_removed):
            signal.connect(self._on_samples)
        events.engine_ready.connect(self._on_models)
        events.model_changed.connect(self._on_models)
        events.models_added.connect(self._on_models)
        if self._workbench.bridge is not None:
            self._workbench.bridge.stepped.connect(self._on_steps)
        self.estimates.listen(session)
        self.examples.listen(session)
        self._verdicts.clear()
        self._forget_course(session)
        self._done = None
        self._is_outlook_stale = True
        self._show_run(_on_show(session.store.runs()))
        self._on_models()
        self._ask_later()

    @reporting()
    def _on_origin(self) -> None:
        """Suggest as many steps as a new model needs, unless the user chose a number."""
        usual = TrainingConfig().steps
        is_new = self.origin.architecture is not None
        shown, suggested = (usual, NEW_STEPS) if is_new else (NEW_STEPS, usual)
        steps = self.form.editors["steps"]
        if steps.read() == shown:
            steps.write(suggested)
        self._update()
        self._ask_later()

    @reporting()
    def _on_models(self, _: object = None) -> None:
        session = self._workbench.session
        if session is None:
            self.origin.offer((), "")
        else:
            current = models.current_model(session.store)
            self.origin.offer(session.architectures, current.name if current is not None else "")
        self._update_models(session)
        self._update()

    @reporting()
    def _on_samples(self, _: object = None) -> None:
        self._update()
        self._ask_later()

    @reporting()
    def _on_closed(self) -> None:
        self._settled.stop()
        self._done = None
        self.starter.drop()
        self.checks.clear()
        self.estimates.clear()
        self._show_run(None)
        self.queue.show_runs([])
        self.preview.clear_picture()
        self.said.say("")
        self.outlook.say("")
        self._on_models()

    @reporting()
    def _on_run(self, run: Run) -> None:
        session = self._workbench.session
        if session is None:
            return
        runs = session.store.runs()
        self.queue.show_runs(runs)
        chosen = run if self._is_mine(run.id) else _on_show(runs)
        if chosen is None or chosen == self._run:  # another run was queued or taken out
            self._update()
            return
        is_new = not self._is_mine(chosen.id)
        if is_new:
            self._forget_course(session)
        if chosen.state is RunState.COMPLETED:
            self._done = chosen
            self._is_outlook_stale = True
        self._show_run(chosen)
        self._update_models(session)
        self._update()
        if chosen.state.is_terminal and not is_new:
            QTimer.singleShot(0, self._scroll_to_result)
            self._ask_later()

    @reporting()
    def _on_progress(self, event: Progressed) -> None:
        if self._is_mine(event.job):
            self.progress.say(f"{event.text or 'Getting ready'}: {event.done} of {event.total}")

    @reporting()
    def _on_steps(self, steps: Steps) -> None:
        if not self._is_mine(steps.job):
            return
        self._last_step = steps.steps[-1]
        self.curves.add_steps(steps.steps)
        self._pace.soon()

    @reporting()
    def _on_evaluated(self, event: Evaluated) -> None:
        if self._is_mine(event.job):
            self.curves.add_evaluation(event.step, event.scores)
            self._pace.soon()

    @reporting()
    def _on_preview(self, event: Previewed) -> None:
        if self._is_mine(event.job):
            self.preview.setToolTip(
                f"{event.sample}, as the model sees it after {event.step} steps"
            )
            self.preview.show_file(event.picture)

    @reporting()
    def _on_paused(self, event: Paused) -> None:
        if self._is_mine(event.job):
            self.control.set_paused(is_paused=event.is_paused)
            self.progress.say("Paused." if event.is_paused else "Going on…")

    @reporting()
    def _on_said(self, text: str) -> None:
        self.said.say(text)

    @reporting()
    def _on_habits(self, habits: RunHabits) -> None:
        if habits != self.habits.value():
            self.habits.set_value(habits)

    def _is_mine(self, job: str) -> bool:
        return self._run is not None and self._run.id == job

    # What goes out -------------------------------------------------------------

    @reporting()
    def _remove(self, run_id: str) -> None:
        session = self._workbench.session
        if session is not None:
            training.stop(session, run_id)

    def _use(self) -> None:
        if self._offered is not None:
            self._use_model(self._offered.new_model)

    @reporting()
    def _use_model(self, name: str) -> None:
        session = self._workbench.session
        if session is not None:
            models.use_model(session, name)
            self._predict_shown(session)

    def _go_back(self) -> None:
        session = self._workbench.session
        if session is not None:
            models.go_back(session)
            self._predict_shown(session)

    @reporting()
    def _take_habits(self) -> None:
        self._workbench.set_habits(self.habits.value())

    def _predict_shown(self, session: Session) -> None:
        """Let the model now in use say what it thinks of the image on screen."""
        shown, entry = self._workbench.current_sample_id, models.current_model(session.store)
        if entry is None or not set(entry.card.classes) <= set(session.store.classes.names):
            return
        if shown is not None and predicting.current_prediction(session, shown) is None:
            self._workbench.predict([shown], level=self._workbench.level)

    # Before a run ----------------------------------------------------------------

    def _ask_later(self) -> None:
        """Look at the project, and ask how long runs take, once things have settled."""
        self._is_stale = True
        if self.is_seen and self._workbench.session is not None:
            self._settled.start()

    def _look_at_once(self) -> None:
        """Begin the look at the project now, if one is due."""
        if self._settled.isActive() and self.is_seen:
            self._settled.stop()
            self._look()

    @reporting()
    def _look(self) -> None:
        session = self._workbench.session
        if session is None or not self._is_stale or not self.is_seen:
            return
        self._is_stale = False
        self._ask_outlook(session)
        if self._why_not(session.store.samples()):
            self.checks.clear()
            self.estimates.clear()
            return
        self.checks.ask(self.form.value(), self.origin.value())
        if self._is_running:
            return  # which would make them wrong, and be slowed down by them
        if self.origin.architecture is None:
            self.estimates.ask_soon()
        else:
            self.estimates.clear()

    def _ask_outlook(self, session: Session) -> None:
        """Ask what more labelled images would bring, after each round anew."""
        if self._is_outlook_stale and self._workbench.slow is not None:
            self._is_outlook_stale = False
            work, then = (
                partial(_outlook, session.store.folder),
                partial(self._tell_outlook, session),
            )
            self._workbench.slow.start(work, then)

    def _tell_outlook(self, session: Session, done: Future[str]) -> None:
        if session is self._workbench.session:
            self.outlook.say(done.result())

    # How -----------------------------------------------------------------------

    def _on_seen(self, _is_seen: bool) -> None:
        self._ask_later()
        self._pace.soon()

    def _draw_course(self) -> None:
        """Show how far the run is: bar, words, curves and preview in one go."""
        if not self.is_seen:
            return
        last = self._last_step
        if last is not None and self._is_running:
            self.bar.show_progress(last.step, last.total)
            if not self.control.is_stopping and not self.control.is_paused:
                is_last = last.step == last.total
                left = "checking the result" if is_last else time_words(last.seconds_left)
                self.progress.say(f"Step {last.step} of {last.total}, {left}")
        self.curves.setVisible(self._is_running or self.curves.has_steps)
        if self.curves.has_steps:
            self.curves.draw()
        self.preview.present()

    @property
    def _is_running(self) -> bool:
        return self._run is not None and not self._run.state.is_terminal

    def _forget_course(self, session: Session) -> None:
        """Another run: its course is another one."""
        self._last_step = None
        self.curves.clear(class_colors(session))
        self.preview.clear_picture()
        self.said.say("")

    def _show_run(self, run: Run | None) -> None:
        self._run = run
        self.control.show_run(run)
        self.state.say(run_words(run) if run is not None else "")
        color = STATE_COLORS[run.state] if run is not None else "transparent"
        self.state.setStyleSheet(f"border-left: 4px solid {color}; padding-left: 6px;")
        self.bar.setVisible(self._is_running)
        if self._is_running:
            self.bar.show_progress(0, 1)  # not a moving one: each of its pictures costs time
            self.progress.say("Starting the training process…")
        else:
            self.progress.say("")
        self.curves.setVisible(self._is_running or self.curves.has_steps)
        self._pace.soon()
        self._show_verdict(self._offered)

    @property
    def _offered(self) -> Run | None:
        """The run whose model is offered; None if there is none."""
        is_done = self._run is not None and self._run.state is RunState.COMPLETED
        return self._run if is_done else self._done

    def _show_verdict(self, run: Run | None) -> None:
        """Say whether the model a run made is better, first in a word."""
        if run is None:
            self.scores.show_scores([], [])
            self.verdict.say("")
            return
        self.scores.show_scores(
            score_rows(run.before, run.after), dataset_rows(run.before, run.after)
        )
        found = self._verdict_of(run)
        color = VERDICT_COLORS[found.judgement]
        self.verdict.say(verdict_words(found, run.new_model))
        self.verdict.setStyleSheet(f"border-left: 4px solid {color}; padding-left: 6px;")

    def _verdict_of(self, run: Run) -> Verdict:
        if run.id not in self._verdicts:
            self._verdicts[run.id] = judge(run.before, run.after)
        return self._verdicts[run.id]

    def _scroll_to_result(self) -> None:
        """Bring how the run ended, and what can be done now, into view."""
        results = (self.back, self.use, self.verdict, self.scores, self.state)  # the last wins
        for widget in results:
            if not widget.isHidden():
                self.ensureWidgetVisible(widget, 0, 6)

    @reporting()
    def _update(self, _: object = None) -> None:
        session = self._workbench.session
        samples = session.store.samples() if session is not None else []
        reason = NO_PROJECT if session is None else self._why_not(samples)
        self.source.say(learning_words(samples) if session is not None else "")
        is_new = self.origin.architecture is not None
        first = "Start training" if is_new else "Start fine-tuning"
        self.starter.show_state("Queue another run" if self._is_running else first, reason)

    def _why_not(self, samples: list[Sample]) -> str:
        """Say why the run cannot start; empty when it can."""
        chosen = self.origin.architecture
        if chosen is not None and not chosen.needs_labels:
            return "" if samples else "Add images in the Project panel first."
        return why_not_train(samples)

    def _update_models(self, session: Session | None) -> None:
        """Offer the new model, the one before it, and all the others."""
        self.use.hide()
        self.back.hide()
        if session is None:
            self.models.show_rows([])
            return
        current = models.current_model(session.store)
        entries, runs = models.list_models(session.store), session.store.runs()
        used = current.name if current is not None else ""
        self.models.show_rows(model_rows(entries, runs, used, self._verdict_of))
        self.queue.show_runs(runs)
        run = self._offered
        if run is not None:
            is_used = current is not None and current.name == run.new_model
            self.use.setText(f"Use the new model {run.new_model}")
            self.use.set_reason(f"{run.new_model} is the model in use." if is_used else "")
            self.use.show()
        before = models.previous_model(session.store)
        if before is not None:
            self.back.setText(f"Go back to {before}")
            self.back.show()


def _outlook(project: Path, _token: CancelToken) -> str:
    """Say what more labelled images would bring; nothing while that is not known."""
    with ProjectStore.open(project, read_only=True) as store:
        curve = learning_curve(store)
    return curve.text if curve is not None else ""


def _on_show(runs: list[Run]) -> Run | None:
    """Return the run under way, or else the last that has ended."""
    running = [run for run in runs if run.state is RunState.RUNNING]
    ended = [run for run in runs if run.state.is_terminal]
    return (running or ended)[-1] if running or ended else None


def class_colors(session: Session) -> dict[str, str]:
    """Return the colours of the project's classes by name."""
    return {known.name: known.color for known in session.store.classes.classes}

"""The Train panel: what is learnt from, how it goes, and whether it helped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QProgressBar, QWidget

from segdesk.config.training import TrainingConfig
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Sample
from segdesk.jobs.messages import Evaluated, Progressed
from segdesk.session import models, predicting, training
from segdesk.session.session import Session
from segdesk.ui.bridge import Steps, reporting
from segdesk.ui.forms import KnobsForm
from segdesk.ui.panels.start_from import StartFrom
from segdesk.ui.plots import Curves
from segdesk.ui.widgets import ActionButton, Hint, Panel, heading
from segdesk.ui.words import (
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
STATE_COLORS = {
    RunState.QUEUED: "#6b7280",
    RunState.RUNNING: "#56b4e9",
    RunState.COMPLETED: "#2f9e6b",
    RunState.CANCELED: "#6b7280",
    RunState.FAILED: "#d9483b",
    RunState.CRASHED: "#d9483b",
}


class TrainPanel(Panel):
    """Starts a fine-tuning run, follows it and offers its model."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self._run: Run | None = None
        self.source = Hint()
        self.origin = StartFrom()
        self.form: KnobsForm[TrainingConfig] = KnobsForm(TrainingConfig)
        self.start = ActionButton(
            "Start fine-tuning", self._start, "Runs in the background; you can go on painting."
        )
        self.stop = ActionButton("Stop", self._stop, "End the run at its next step.")
        self.reason = Hint()
        self.state = Hint()
        self.said = Hint()
        self.bar = QProgressBar()
        self.progress = Hint()
        self.curves = Curves()
        self.scores = ScoreTable()
        self.verdict = Hint()
        self.use = ActionButton("Use the new model", self._use)
        self.back = ActionButton("Go back", self._go_back)
        self._lay_out()
        self.origin.changed.connect(self._on_origin)
        workbench.session_opened.connect(self._on_opened)
        workbench.session_closed.connect(self._on_closed)
        self._show_run(None)
        self._update()

    def _lay_out(self) -> None:
        buttons = QHBoxLayout()
        buttons.addWidget(self.start)
        buttons.addWidget(self.stop)
        self.column.addWidget(self.source)
        self.column.addWidget(self.origin)
        self.column.addWidget(self.form)
        self.column.addLayout(buttons)
        for widget in (self.reason, self.state, self.bar, self.progress, self.said):
            self.column.addWidget(widget)
        for result in (self.scores, self.verdict, self.use, self.back):
            self.column.addWidget(result)
        self.column.addWidget(self.curves)
        self.column.addStretch(1)

    # What comes in -------------------------------------------------------------

    @reporting()
    def _on_opened(self, session: Session) -> None:
        events = session.events
        events.run_changed.connect(self._on_run)
        events.run_evaluated.connect(self._on_evaluated)
        events.job_progressed.connect(self._on_progress)
        events.said.connect(self._on_said)
        for signal in (events.sample_changed, events.samples_added):
            signal.connect(self._update)
        events.engine_ready.connect(self._on_models)
        events.model_changed.connect(self._on_models)
        if self._workbench.bridge is not None:
            self._workbench.bridge.stepped.connect(self._on_steps)
        runs = session.store.runs()
        self.curves.clear()
        self.said.say("")
        self._show_run(runs[-1] if runs else None)
        self._on_models()

    @reporting()
    def _on_origin(self) -> None:
        """Suggest as many steps as a new model needs, unless the user chose a number."""
        usual = TrainingConfig().steps
        is_new = self.origin.architecture is not None
        shown, suggested = (usual, NEW_STEPS) if is_new else (NEW_STEPS, usual)
        steps = self.form.editors["steps"]
        if steps.read() == shown:
            steps.write(suggested)
        self.start.setText("Start training" if is_new else "Start fine-tuning")
        self._update()

    @reporting()
    def _on_models(self, _: object = None) -> None:
        session = self._workbench.session
        if session is None:
            self.origin.offer((), "")
        else:
            current = models.current_model(session.store)
            self.origin.offer(session.architectures, current.name if current is not None else "")
        self._update()

    @reporting()
    def _on_closed(self) -> None:
        self._show_run(None)
        self.said.say("")
        self._on_models()

    @reporting()
    def _on_run(self, run: Run) -> None:
        is_new = self._run is None or self._run.id != run.id
        has_ended = not is_new and run.state.is_terminal
        if is_new:
            self.curves.clear()
            self.said.say("")
        self._show_run(run)
        self._update()
        if has_ended:
            QTimer.singleShot(0, self._scroll_to_result)

    @reporting()
    def _on_progress(self, event: Progressed) -> None:
        if self._is_mine(event.job):
            self.progress.say(f"{event.text or 'Getting ready'}: {event.done} of {event.total}")

    @reporting()
    def _on_steps(self, steps: Steps) -> None:
        if not self._is_mine(steps.job):
            return
        last = steps.steps[-1]
        self.bar.setRange(0, last.total)
        self.bar.setValue(last.step)
        left = time_words(last.seconds_left) if last.step < last.total else "checking the result"
        self.progress.say(f"Step {last.step} of {last.total}, {left}")
        self.curves.add_steps(steps.steps)

    @reporting()
    def _on_evaluated(self, event: Evaluated) -> None:
        if self._is_mine(event.job):
            self.curves.add_evaluation(event.step, event.scores)

    @reporting()
    def _on_said(self, text: str) -> None:
        self.said.say(text)

    def _is_mine(self, job: str) -> bool:
        return self._run is not None and self._run.id == job

    # What goes out -------------------------------------------------------------

    def _start(self) -> None:
        session = self._workbench.session
        if session is not None:
            training.start(session, self.form.value(), new=self.origin.value())

    def _stop(self) -> None:
        session = self._workbench.session
        if session is not None and self._run is not None:
            self.stop.set_reason("The run was asked to end; it does so at its next step.")
            self.progress.say("Stopping…")
            training.stop(session, self._run.id)

    def _use(self) -> None:
        session = self._workbench.session
        if session is not None and self._run is not None:
            models.use_model(session, self._run.new_model)
            self._predict_shown(session)

    def _go_back(self) -> None:
        session = self._workbench.session
        if session is not None:
            models.go_back(session)
            self._predict_shown(session)

    def _predict_shown(self, session: Session) -> None:
        """Let the model now in use say what it thinks of the image on screen."""
        shown, entry = self._workbench.current_sample_id, models.current_model(session.store)
        if entry is None or not set(entry.card.classes) <= set(session.store.classes.names):
            return
        if shown is not None and predicting.current_prediction(session, shown) is None:
            self._workbench.predict([shown])

    # How -----------------------------------------------------------------------

    def _show_run(self, run: Run | None) -> None:
        self._run = run
        is_running = run is not None and not run.state.is_terminal
        self.state.say(run_words(run) if run is not None else "")
        color = STATE_COLORS[run.state] if run is not None else "transparent"
        self.state.setStyleSheet(f"border-left: 4px solid {color}; padding-left: 6px;")
        self.bar.setVisible(is_running)
        if is_running:
            self.bar.setRange(0, 0)
            self.progress.say("Starting the training process…")
        else:
            self.progress.say("")
        self.curves.setVisible(is_running or self.curves.has_steps)
        if run is None:
            self.scores.show_scores([])
            self.verdict.say("")
        else:
            self.scores.show_scores(score_rows(run.before, run.after))
            self.verdict.say(verdict_words(run))

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
        is_running = self._run is not None and not self._run.state.is_terminal
        reason = NO_PROJECT if session is None else self._why_not(samples)
        self.source.say(learning_words(samples) if session is not None else "")
        self.reason.say("" if is_running else reason)
        self.start.set_reason("A run is under way." if is_running else reason)
        self.start.setVisible(not is_running)
        self.stop.setVisible(is_running)
        if is_running and not self.progress.text().startswith("Stopping"):
            self.stop.set_reason("")
        self._update_models(session)

    def _why_not(self, samples: list[Sample]) -> str:
        """Say why the run cannot start; empty when it can."""
        chosen = self.origin.architecture
        if chosen is not None and not chosen.needs_labels:
            return "" if samples else "Add images in the Project panel first."
        return why_not_train(samples)

    def _update_models(self, session: Session | None) -> None:
        self.use.hide()
        self.back.hide()
        if session is None:
            return
        current = models.current_model(session.store)
        run = self._run
        if run is not None and run.state is RunState.COMPLETED:
            is_used = current is not None and current.name == run.new_model
            self.use.setText(f"Use the new model {run.new_model}")
            self.use.set_reason(f"{run.new_model} is the model in use." if is_used else "")
            self.use.show()
        before = models.previous_model(session.store)
        if before is not None:
            self.back.setText(f"Go back to {before}")
            self.back.show()


class ScoreTable(QWidget):
    """Scores before and after a run."""

    def __init__(self) -> None:
        super().__init__()
        self.setToolTip(
            "<qt>Dice and IoU tell how well masks agree, from 0 to 1; they are means over "
            "images. Images held back are those "
            "so marked in the list, which are never learnt from; the images it knew came with the "
            "model."
            "</qt>"
        )
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setColumnStretch(0, 1)

    def show_scores(self, rows: list[tuple[str, str, str, str]]) -> None:
        """Show these rows; nothing for none."""
        while (item := self._grid.takeAt(0)) is not None:
            widget = item.widget()
            if widget is not None:
                widget.deleteLater()
        self.setVisible(bool(rows))
        for column, text in enumerate(("Did it help?", "before", "after", "change")):
            self._grid.addWidget(heading(text), 0, column)
        for number, row in enumerate(rows, start=1):
            for column, text in enumerate(row):
                label = QLabel(text)
                if column:
                    label.setAlignment(Qt.AlignmentFlag.AlignRight)
                self._grid.addWidget(label, number, column)

    @property
    def texts(self) -> list[str]:
        """What stands in the table, row by row."""
        return [label.text() for label in self.findChildren(QLabel)]

"""The Predict panel: which model, on what, how far, and what the colours mean."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QWidget

from segdesk.config.inference import InferenceConfig
from segdesk.core.errors import InputError
from segdesk.core.run import RunState
from segdesk.core.sample import Sample
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.messages import Finished, Progressed, Ready
from segdesk.session import models
from segdesk.session.levels import known_shape_at, learn_levels
from segdesk.session.predicting import cost
from segdesk.session.session import Session
from segdesk.ui.bridge import reporting
from segdesk.ui.forms import KnobsForm
from segdesk.ui.legend import Legend
from segdesk.ui.panels.refine import RefineBox
from segdesk.ui.widgets import ActionButton, ElidingCombo, Hint, Panel, heading
from segdesk.ui.words import (
    coarse_words,
    count_images,
    device_words,
    level_words,
    model_summary,
    model_tooltip,
)

if TYPE_CHECKING:
    from segdesk.ui.workbench import Workbench

NO_PROJECT = "Open a project first."
NO_IMAGES = "Add images in the Project panel first."
FOREIGN = (
    "This model knows other classes ({}). Fine-tune it on some labelled images first, in the "
    "Train panel."
)
LEVEL_TIP = (
    "This image comes in several sizes. A coarser one is predicted faster, and objects look as "
    "small to the model as in images taken at that resolution."
)
LEARNING = "The levels of the images are being looked up."
NO_SAMPLE = "Click an image in the Project panel first, or predict all."


class PredictPanel(Panel):
    """Orders predictions and shows how they get on."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self._jobs: dict[str, str] = {}
        self._total = 0
        self._outcomes: list[Finished] = []
        #: Classes of the model in use that the project lacks.
        self._foreign: list[str] = []
        self.model = ElidingCombo()
        self.model.setAccessibleName("Model")
        self.model.activated.connect(lambda: self._choose_model())
        self.summary = Hint()
        self.device = Hint("The prediction process is started when a project is opened.")
        self.form: KnobsForm[InferenceConfig] = KnobsForm(InferenceConfig)
        self.form.changed.connect(self._take_form)
        self.level_heading = QLabel("Resolution level")
        self.level = ElidingCombo()
        self.level.setAccessibleName("Resolution level")
        self.level.setToolTip(LEVEL_TIP)
        self.level.activated.connect(lambda: self._choose_level())
        self.level_hint = Hint()
        #: What was chosen last, for the next image with levels.
        self._wanted_level = 0
        self._levels: tuple[tuple[int, ...], ...] | None = None
        #: Why nothing can be predicted; else empty.
        self._nothing = ""
        #: Calls off the search for the levels of images that are not on screen.
        self._learning: CancelToken | None = None
        self.one = ActionButton(
            "Predict this image", self._predict_one, "Ask the model about the image on screen."
        )
        self.all = ActionButton(
            "Predict all", self._predict_all, "Ask the model about every image of the project."
        )
        self.cancel = ActionButton("Cancel", self._cancel, "End the predictions that are left.")
        self.cost = Hint()
        self.bar = QProgressBar()
        self.progress = Hint()
        self.reason = Hint()
        self.refine = RefineBox(workbench)
        self.legend = Legend()
        self._lay_out()
        self._fill_levels()
        workbench.session_opened.connect(self._on_opened)
        workbench.session_closed.connect(self._on_closed)
        workbench.sample_opening.connect(self._update)
        workbench.sample_shown.connect(self._fill_levels)
        workbench.jobs_ordered.connect(self._on_ordered)
        self._update()

    def _lay_out(self) -> None:
        buttons = QHBoxLayout()
        buttons.addWidget(self.one)
        buttons.addWidget(self.all)
        above: tuple[QWidget, ...] = (
            heading("Model"),
            self.model,
            self.summary,
            self.device,
            self.form,
            self.level_heading,
            self.level,
            self.level_hint,
        )
        below: tuple[QWidget, ...] = (self.cost, self.reason, self.bar, self.progress, self.cancel)
        for widget in above:
            self.column.addWidget(widget)
        self.column.addLayout(buttons)
        for widget in below:
            self.column.addWidget(widget)
        self.column.addWidget(self.refine)
        self.column.addWidget(self.legend)
        self.column.addStretch(1)
        self.bar.hide()
        self.cancel.hide()
        self.legend.hide()

    # What comes in -------------------------------------------------------------

    @reporting()
    def _on_opened(self, session: Session) -> None:
        events = session.events
        events.engine_ready.connect(self._on_ready)
        events.job_progressed.connect(self._on_progress)
        events.job_finished.connect(self._on_finished)
        events.model_changed.connect(self._fill_models)
        events.models_added.connect(self._fill_models)
        events.samples_added.connect(self._update)
        self.device.say("The prediction process is starting…")
        self.legend.set_classes(session.store.classes)
        self.legend.show()
        self.progress.say("")
        self._fill_models()
        self._update()

    @reporting()
    def _on_closed(self) -> None:
        self._jobs.clear()
        self._total = 0
        self._wanted_level = 0
        self._learning = None
        self._fill_levels()
        self.bar.hide()
        self.cancel.hide()
        self.legend.hide()
        self.model.clear()
        for hint in (self.summary, self.progress, self.device):
            hint.say("")
        self._update()

    @reporting()
    def _on_ready(self, event: Ready) -> None:
        self.device.say(f"Computes on: {device_words(event.reason)}.")

    @reporting()
    def _on_ordered(self, jobs: list[str]) -> None:
        if not self._jobs:
            self._total = 0
            self._outcomes.clear()
            self.bar.setRange(0, 0)
        self._jobs.update(dict.fromkeys(jobs, ""))
        self._total += len(jobs)
        self.bar.show()
        self.cancel.show()
        self._say_progress("")

    @reporting()
    def _on_progress(self, event: Progressed) -> None:
        if event.job not in self._jobs:
            return
        done = self._total - len(self._jobs)
        self.bar.setRange(0, self._total * 100)
        self.bar.setValue(done * 100 + 100 * event.done // max(1, event.total))
        self._say_progress(f", tile {min(event.done + 1, event.total)} of {event.total}")

    @reporting()
    def _on_finished(self, event: Finished) -> None:
        if self._jobs.pop(event.job, None) is None:
            return
        self._outcomes.append(event)
        if self._jobs:
            self._say_progress("")
            return
        self.bar.hide()
        self.cancel.hide()
        self.progress.say(outcome_words(self._outcomes))
        self._update()

    # What goes out -------------------------------------------------------------

    def _predict_one(self) -> None:
        if self._workbench.current_sample_id is not None:
            shown = [self._workbench.current_sample_id]
            self._workbench.predict(shown, level=self._workbench.level)

    def _predict_all(self) -> None:
        session = self._workbench.session
        if session is not None:
            # The image on screen first: that is the one being waited for.
            shown = self._workbench.current_sample_id
            samples = sorted(session.store.samples(), key=lambda sample: sample.id != shown)
            self._workbench.predict([s.id for s in samples], level=self._workbench.level)

    def _cancel(self) -> None:
        session = self._workbench.session
        if session is not None:
            self.progress.say("Stopping…")
            for job in list(self._jobs):
                session.backend.cancel(job)

    def _take_form(self) -> None:
        with reporting():
            self._workbench.inference = self.form.value()
            self._update_cost()

    def _choose_model(self) -> None:
        session = self._workbench.session
        if session is not None:
            with reporting():
                models.use_model(session, str(self.model.currentData()))

    def _choose_level(self) -> None:
        self._wanted_level = self.level.currentIndex()
        self._take_level()

    # How -----------------------------------------------------------------------

    @reporting()
    def _fill_levels(self, _sample: str = "") -> None:
        """Offer the levels of the image on screen; nothing where it has only one."""
        levels = self._workbench.levels
        if levels == self._levels:  # a prediction has come
            return
        self._levels = levels
        has_several = len(levels) > 1
        self.level_heading.setVisible(has_several)
        self.level.setVisible(has_several)
        self.level.clear()
        for number in range(len(levels) if has_several else 0):
            self.level.addItem(level_words(levels, number))
        self.level.setCurrentIndex(min(self._wanted_level, self.level.count() - 1))
        self._take_level()

    def _take_level(self) -> None:
        """Predict at the level that is chosen: the finest where none is to be seen."""
        chosen = self._workbench.level = max(0, self.level.currentIndex())
        self.level_hint.say(coarse_words(self._workbench.levels, chosen) if chosen else "")
        self._update_cost()

    @reporting()
    def _fill_models(self, _name: str = "") -> None:
        session = self._workbench.session
        if session is None:
            return
        current = models.current_model(session.store)
        entries = models.list_models(session.store)
        self.model.blockSignals(True)
        self.model.clear()
        for entry in entries:
            self.model.addItem(entry.name, entry.name)
            tip = model_tooltip(entry)
            self.model.setItemData(self.model.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
        own = session.store.classes.names
        known = current.card.classes if current is not None else ()
        self._foreign = [name for name in known if name not in own]
        names = [entry.name for entry in entries]
        self.model.setCurrentIndex(names.index(current.name) if current is not None else -1)
        self.model.blockSignals(False)
        if current is None:
            self.model.setPlaceholderText("No model knows these classes: choose one to start from")
        self.summary.say(model_summary(current) if current is not None else "")
        self.model.setToolTip(model_tooltip(current) if current is not None else "")
        self._update()

    @reporting()
    def _update(self, _: object = None) -> None:
        session = self._workbench.session
        nothing = NO_PROJECT if session is None else ""
        if session is not None and not session.store.samples():
            nothing = NO_IMAGES
        elif session is not None and self.model.currentIndex() < 0:
            nothing = "Choose a model above first."
        elif session is not None and self._foreign:
            nothing = FOREIGN.format(", ".join(self._foreign))
        one = nothing or ("" if self._workbench.current_sample_id else NO_SAMPLE)
        self._nothing = nothing
        self.one.set_reason(one)
        self.model.setEnabled(session is not None)
        self.form.setEnabled(session is not None)
        self.reason.say(one)
        self._update_cost()

    def _update_cost(self) -> None:
        """Say what predicting takes, or why it cannot be done with these settings."""
        session, shown = self._workbench.session, self._workbench.current_sample_id
        samples = session.store.samples() if session is not None else []
        is_learning = not self._nothing and self._learn_levels(samples)
        self.all.set_reason(self._nothing or (LEARNING if is_learning else ""))
        if session is None or self._nothing:
            self.cost.say("")
            return
        asked = [[sample for sample in samples if sample.id == shown], samples]
        asked = [some for some in asked if some][-1 if len(samples) == 1 else 0 :]
        try:
            level, config = self._workbench.level, self._workbench.inference
            costs = [cost(session, some, config, level=level) for some in asked]
        except InputError as error:
            self.cost.say(error.message)
            return
        known = [each.words for each in costs if each.seconds is not None]
        self.cost.say("<br>".join(known or [costs[0].words]))

    def _learn_levels(self, samples: list[Sample]) -> bool:
        """Have the levels of all images looked up; tell whether that is under way.

        Where a coarser level is chosen, what it costs depends on them, and so does an order.
        """
        level, slow = self._workbench.level, self._workbench.slow
        unknown = [sample for sample in samples if known_shape_at(sample, level) is None]
        if unknown and self._learning is None and slow is not None:
            self._learning = slow.start(partial(learn_levels, unknown), self._on_learned)
        return bool(unknown)

    def _on_learned(self, done: Future[None]) -> None:
        self._learning = None
        done.result()
        self._update_cost()

    def _say_progress(self, tile: str) -> None:
        number = self._total - len(self._jobs) + 1
        text = f"Image {min(number, self._total)} of {self._total}{tile}"
        self.progress.say(text if tile else f"{text}: waiting for the prediction process…")


def outcome_words(outcomes: list[Finished]) -> str:
    """Say how the predictions ended."""
    done = sum(o.state is RunState.COMPLETED for o in outcomes)
    canceled = sum(o.state is RunState.CANCELED for o in outcomes)
    broken = [o for o in outcomes if o.state in (RunState.FAILED, RunState.CRASHED)]
    text = f"Done: {count_images(done)} predicted." if done else ""
    if canceled:
        text = f"Stopped: {done} of {count_images(len(outcomes))} predicted."
    if broken:
        text += f" {len(broken)} could not be predicted: {broken[0].reason}"
    return text.strip()

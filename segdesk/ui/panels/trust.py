"""The Trust panel: whether the model's probabilities and its uncertainty can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QFormLayout, QGridLayout, QLabel, QWidget

from segdesk.core.errors import CanceledError, SegDeskError
from segdesk.inference.findings import BAND, Findings
from segdesk.jobs.cancel import CancelToken
from segdesk.session import trusting
from segdesk.session.session import Session
from segdesk.session.trusting import Answer, Scope, TrustReader
from segdesk.ui.bridge import reporting
from segdesk.ui.trust_plots import BINS, Diagram, Histogram, Pair
from segdesk.ui.trust_words import (
    band_words,
    calibration_words,
    figures,
    image_words,
    kept_words,
    learnt_words,
    temperature_words,
    uncertainty_words,
)
from segdesk.ui.widgets import ActionButton, ElidingCombo, Hint, Panel, heading
from segdesk.ui.words import count_images

if TYPE_CHECKING:
    from pathlib import Path

    from segdesk.ui.workbench import Workbench

NO_PROJECT = "Open a project first."
COUNTING = "Counting pixels…"
#: Predictions may come in fast; so long is waited before they are looked at, in ms.
PATIENCE: Final = 300

#: The model in use, and the one it is compared with, if any.
Answers = tuple[Answer, Answer | None]


class TrustPanel(Panel):
    """Shows what stored predictions say against labels, and keeps a temperature."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self._reader = TrustReader()
        self._answers: Answers = (Answer(), None)
        self._drawn: list[tuple[str, Findings]] = []
        self._is_asking = False
        self._is_stale = True
        self._token: CancelToken | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(PATIENCE)
        self._timer.timeout.connect(self._ask)
        self.scope = ElidingCombo()
        self.scope.addItem("Images held back", Scope.HELD_BACK)
        self.scope.addItem("All labelled images", Scope.LABELLED)
        self.other = ElidingCombo()
        self.true_class = ElidingCombo()
        self.summary = Hint()
        self.warning = Hint()
        self.reason = Hint(NO_PROJECT)
        self.predict = ActionButton("Predict", self._predict)
        self.histograms = (Histogram(), Histogram())
        self.band = Hint()
        self.diagrams = (Diagram(), Diagram())
        self.calibration = Hint()
        self.temperature = Hint()
        self.keep = ActionButton(
            "Keep this temperature for the model",
            self._keep,
            "New predictions of this model in this project use it. The masks stay the same.",
        )
        self.kept = Hint()
        self.uncertainty = Hint()
        self.figures = Figures()
        self._body = self._lay_out()
        self._connect()
        self._show()

    def _lay_out(self) -> QWidget:
        choices = QFormLayout()
        choices.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        choices.addRow("Look at", self.scope)
        choices.addRow("Compare with", self.other)
        self.column.addLayout(choices)
        for hint in (self.summary, self.warning, self.reason, self.predict):
            self.column.addWidget(hint)
        body = Panel()
        column = body.column
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(heading("Where the wrong pixels are"))
        column.addWidget(self.true_class)
        column.addWidget(Pair(*self.histograms))
        column.addWidget(self.band)
        column.addWidget(heading("Whether a probability means what it says"))
        column.addWidget(Pair(*self.diagrams))
        for widget in (self.calibration, self.temperature, self.keep, self.kept):
            column.addWidget(widget)
        column.addWidget(heading("Whether the uncertainty finds the wrong pixels"))
        column.addWidget(self.uncertainty)
        column.addWidget(heading("In numbers"))
        column.addWidget(self.figures)
        inside = body.takeWidget()
        assert inside is not None
        self.column.addWidget(inside)
        self.column.addStretch(1)
        return inside

    def _connect(self) -> None:
        for name, box in (
            ("Images to look at", self.scope),
            ("Model to compare with", self.other),
            ("True class of the pixels", self.true_class),
        ):
            box.setAccessibleName(name)
        self.scope.activated.connect(lambda: self._ask_anew())
        self.other.activated.connect(lambda: self._ask_anew())
        self.true_class.activated.connect(lambda: self._show_band())
        for histogram in self.histograms:
            histogram.band_changed.connect(partial(self._take_band, histogram))
        self._workbench.session_opened.connect(self._on_opened)
        self._workbench.session_closed.connect(self._on_closed)

    # What comes in -------------------------------------------------------------

    @reporting()
    def _on_opened(self, session: Session) -> None:
        events = session.events
        events.prediction_ready.connect(self._on_change)
        events.sample_changed.connect(self._on_change)
        events.samples_added.connect(self._on_change)
        events.sample_removed.connect(self._on_change)
        events.job_finished.connect(self._on_change)
        events.model_changed.connect(self._on_change)
        events.models_added.connect(self._on_change)
        self._workbench.jobs_ordered.connect(self._on_ordered)
        self.true_class.clear()
        self.true_class.addItem("All pixels", None)
        for number, name in enumerate(session.store.classes.names):
            self.true_class.addItem(f"Pixels that are truly {name}", number)
        self._reader = TrustReader()
        self._forget()
        self._on_change()

    @reporting()
    def _on_closed(self) -> None:
        self._workbench.jobs_ordered.disconnect(self._on_ordered)
        self._forget()

    @reporting()
    def _on_change(self, _: object = None) -> None:
        """Something that may count has changed: look again soon, once it can be seen."""
        self._is_stale = True
        if self.isVisible() and not self._timer.isActive():
            self._timer.start()

    @reporting()
    def _on_ordered(self, _jobs: list[str]) -> None:
        self._show_reason()

    def showEvent(self, event: QShowEvent) -> None:
        """Look again if something has changed while this was hidden."""
        super().showEvent(event)
        if self._is_stale:
            self._on_change()

    # Asking --------------------------------------------------------------------

    def _ask_anew(self) -> None:
        """Another question: the answer to the one before is of no use."""
        if self._token is not None:
            self._token.cancel()
        self._is_stale = True
        self.reason.say(COUNTING)
        self._ask()

    def _ask(self) -> None:
        session, slow = self._workbench.session, self._workbench.slow
        if session is None or slow is None or self._is_asking:
            return
        self._is_stale, self._is_asking = False, True
        other = self.other.currentData()
        question = (session.store.folder, self._scope, other)
        self._token = slow.start(
            partial(_ask_both, self._reader, *question), partial(self._take, session)
        )
        if self._answers[0].findings is None:
            self.reason.say(COUNTING)

    def _take(self, session: Session, done: Future[Answers]) -> None:
        if session is not self._workbench.session:
            return
        self._is_asking = False
        if self._is_stale:
            self._timer.start()
        try:
            self._answers = done.result()
        finally:
            self._show()

    # What goes out -------------------------------------------------------------

    def _missing(self) -> Answer | None:
        """Return the answer that lacks predictions."""
        answers = (a for a in self._answers if a is not None and a.missing)
        return next(answers, None)

    def _predict(self) -> None:
        answer = self._missing()
        if answer is not None:
            self._workbench.predict(list(answer.missing), answer.model)

    def _keep(self) -> None:
        session, (answer, other) = self._workbench.session, self._answers
        if session is not None and answer.findings is not None:
            kept = trusting.keep(
                session.store.folder, answer.model, answer.weights_sha256, answer.findings
            )
            self._answers = replace(answer, kept=kept), other
            self._show()

    # How -----------------------------------------------------------------------

    @property
    def _scope(self) -> Scope:
        return Scope(self.scope.currentData())  # Qt makes a plain text of it

    def _forget(self) -> None:
        self._timer.stop()
        self._answers = Answer(), None
        self._is_asking, self._is_stale = False, True
        self.other.clear()
        self._drawn = []
        for histogram in self.histograms:
            histogram.set_band(BAND)
        self._show()

    def _shown(self) -> list[tuple[str, Findings]]:
        """Return what there is to show, by model."""
        answer, other = self._answers
        found = [(a.model, a.findings) for a in (answer, other) if a is not None and a.findings]
        return found if answer.findings is not None else []

    def _show(self) -> None:
        shown = self._shown()
        answer = self._answers[0]
        self._fill_others(answer.others)
        is_open = self._workbench.session is not None
        self.scope.setEnabled(is_open)
        self.other.setEnabled(is_open and self.other.count() > 1)
        is_alone = "There is no other model of these classes yet; fine-tune one to compare."
        self.other.setToolTip("" if self.other.isEnabled() else is_alone)
        self.summary.say(image_words(*shown[0]) if shown else "")
        self.warning.say(learnt_words(shown, self._scope))
        self._show_reason()
        self._body.setVisible(bool(shown))
        for pictures in (self.histograms, self.diagrams):
            for number, picture in enumerate(pictures):
                picture.setVisible(number < len(shown))
        if shown:
            self._show_kept(answer, shown[0][1])
        if shown != self._drawn:  # most of what comes in changes nothing, and drawing takes time
            self._drawn = shown
            self._draw(shown)

    def _draw(self, shown: list[tuple[str, Findings]]) -> None:
        for diagram, (model, found) in zip(self.diagrams, shown, strict=False):
            diagram.show_findings(model, found)
        for model, found in shown[:1]:
            self.calibration.say(calibration_words(found))
            self.temperature.say(temperature_words(model, found))
            self.uncertainty.say(uncertainty_words(found))
            self._show_band()

    def _show_reason(self) -> None:
        session = self._workbench.session
        reasons = [a.reason for a in self._answers if a is not None and a.reason]
        self.reason.say(reasons[0] if reasons else "" if session is not None else NO_PROJECT)
        lacking = self._missing()
        self.predict.setVisible(lacking is not None)
        if lacking is not None and session is not None:
            number = count_images(len(lacking.missing))
            self.predict.setText(f"Predict the missing {number} with {lacking.model}")
            is_under_way = bool(set(lacking.missing) & set(session.jobs.values()))
            self.predict.set_reason("They are being predicted." if is_under_way else "")

    def _show_kept(self, answer: Answer, found: Findings) -> None:
        kept = answer.kept
        self.kept.say(kept_words(kept) if kept is not None else "")
        if found.is_at_limit:
            self.keep.set_reason("No temperature fits; accept more images.")
        elif kept is not None and abs(kept.temperature / found.temperature - 1) < 0.005:
            self.keep.set_reason("This temperature is kept already.")
        else:
            self.keep.set_reason("")

    def _fill_others(self, names: Sequence[str]) -> None:
        chosen = self.other.currentData()
        self.other.clear()
        self.other.addItem("No other model", None)
        for name in names:
            self.other.addItem(name, name)
        self.other.setCurrentIndex(max(0, self.other.findData(chosen)))

    def _take_band(self, moved: Histogram) -> None:
        for histogram in self.histograms:
            if histogram is not moved:
                histogram.set_band(moved.band)
        self._say_band()

    def _show_band(self) -> None:
        """Draw the pixels of the class that is chosen, and say what lies in the band."""
        number = self.true_class.currentData()
        for histogram, (model, found) in zip(self.histograms, self._shown(), strict=False):
            view = found.view
            of = "the true class" if view.of_target is None else found.classes[1]
            histogram.show_counts(model, of, view.histogram(number, BINS))
        self._say_band()

    def _say_band(self) -> None:
        shown, number = self._shown(), self.true_class.currentData()
        band = self.histograms[0].band
        self.band.say("\n".join(band_words(m, f, band, number, len(shown) > 1) for m, f in shown))
        self.figures.show_figures([m for m, _ in shown], figures([f for _, f in shown], band))


class Figures(QWidget):
    """A column of numbers per model."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setColumnStretch(0, 1)
        self._labels: list[list[QLabel]] = []

    def show_figures(self, models: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
        """Show a row of a title and a number per model; several models are named above."""
        table = [("", *models), *rows] if len(models) > 1 else list(rows)
        if [len(row) for row in table] != [len(row) for row in self._labels]:
            self._make(table)
        for labels, texts in zip(self._labels, table, strict=True):
            for label, text in zip(labels, texts, strict=True):
                label.setText(text)

    def _make(self, table: Sequence[tuple[str, ...]]) -> None:
        for label in (label for row in self._labels for label in row):
            self._grid.removeWidget(label)
            label.deleteLater()
        self._labels = [[QLabel() for _ in row] for row in table]
        for number, row in enumerate(self._labels):
            for column, label in enumerate(row):
                label.setWordWrap(True)
                if column:
                    label.setAlignment(Qt.AlignmentFlag.AlignRight)
                self._grid.addWidget(label, number, column)

    @property
    def texts(self) -> list[list[str]]:
        """What stands in the table, row by row."""
        return [[label.text() for label in row] for row in self._labels]


def _ask_both(
    reader: TrustReader, project: Path, scope: Scope, other: str | None, token: CancelToken
) -> Answers:
    """Ask about the model in use and about another; what goes wrong is an answer too."""

    def ask(model: str | None) -> Answer:
        try:
            return reader.ask(project, model, scope, token)
        except CanceledError:
            raise
        except SegDeskError as error:
            return Answer(model or "", reason=error.message)

    return ask(None), ask(other) if other else None

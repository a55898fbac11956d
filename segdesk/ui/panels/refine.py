"""Refining the edges of the prediction on screen: look at it, then use or drop it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from qtpy.QtWidgets import QHBoxLayout, QProgressBar, QVBoxLayout, QWidget
from superqt import QCollapsible

from segdesk.config.refinement import CrfConfig
from segdesk.core.prediction import Prediction
from segdesk.core.run import RunState
from segdesk.io.maps import PredictedMap
from segdesk.jobs.messages import Finished, Progressed, RefinementReady
from segdesk.session import predicting, refining
from segdesk.session.session import Session
from segdesk.ui.bridge import reporting
from segdesk.ui.forms import KnobsForm
from segdesk.ui.widgets import ActionButton, Hint

if TYPE_CHECKING:
    from segdesk.ui.workbench import Workbench

ABOUT = (
    "Moves the edges that the model drew to where the image changes, and removes specks. Of use "
    "where edges are coarse or ragged; where they are good already, it changes little and may "
    "lose thin or faint parts, so look first."
)
NO_PROJECT = "Open a project first."
NO_SAMPLE = "Click an image in the Project panel first."
NOT_PREDICTED = "Predict this image first."


class RefineBox(QWidget):
    """The CRF's knobs, a preview, and what to do with it; folded away at first."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self._job = ""
        self._proposal: RefinementReady | None = None
        self.form: KnobsForm[CrfConfig] = KnobsForm(CrfConfig)
        self.preview = ActionButton(
            "Preview", self._preview, "Show the refined edges as outlines; nothing changes yet."
        )
        self.cancel = ActionButton("Cancel", self._cancel, "End the refinement.")
        self.use = ActionButton(
            "Use it",
            self._use,
            "Put the refined labels in place of the model's; what you painted or accepted stays.",
        )
        self.drop = ActionButton("Drop it", self._drop, "Leave the labels as they are.")
        self.back = ActionButton(
            "Back to the model's edges", self._go_back, "Show what the model itself said again."
        )
        self.bar = QProgressBar()
        self.state = Hint()
        self.reason = Hint()
        self.fold = QCollapsible("Refine edges (CRF)", expandedIcon="▼", collapsedIcon="▶")
        self._lay_out()
        workbench.session_opened.connect(self._on_opened)
        workbench.session_closed.connect(self._leave)
        workbench.sample_opening.connect(self._leave)
        workbench.sample_shown.connect(self._update)
        self._update()

    def _lay_out(self) -> None:
        inside = QWidget()
        rows = QVBoxLayout(inside)
        rows.setContentsMargins(0, 0, 0, 0)
        decide = QHBoxLayout()
        decide.addWidget(self.use)
        decide.addWidget(self.drop)
        above: tuple[QWidget, ...] = (Hint(ABOUT), self.form, self.preview, self.reason)
        below: tuple[QWidget, ...] = (self.bar, self.state, self.cancel, self.back)
        for widget in above:
            rows.addWidget(widget)
        for widget in below:
            rows.addWidget(widget)
        rows.addLayout(decide)
        self.fold.setDuration(0)
        self.fold.addWidget(inside)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.fold)

    # What comes in -------------------------------------------------------------

    @reporting()
    def _on_opened(self, session: Session) -> None:
        events = session.events
        events.refinement_ready.connect(self._on_ready)
        events.job_progressed.connect(self._on_progress)
        events.job_finished.connect(self._on_finished)
        events.prediction_ready.connect(self._on_prediction)
        events.model_changed.connect(self._leave)
        self._update()

    @reporting()
    def _on_ready(self, event: RefinementReady) -> None:
        if event.job != self._job:  # another image is on screen by now
            refining.drop(event)
            return
        self._proposal = event
        prediction = Prediction(event.sample, event.model, event.folder, 0.0)
        session = self._workbench.session
        if session is not None:
            shape = session.store.sample(event.sample).shape
            self._workbench.in_background(
                lambda: PredictedMap(prediction, "labels", shape)[:], partial(self._show, event)
            )

    def _show(self, event: RefinementReady, labels: npt.NDArray[np.uint8]) -> None:
        if event is not self._proposal or self._workbench.layers is None:
            return
        self._workbench.layers.set_refined(labels)
        self.state.say(
            f"{event.changed:.2%} of the pixels would change. The outlines are the layer "
            "Refined (preview)."
        )
        self._update()

    @reporting()
    def _on_progress(self, event: Progressed) -> None:
        if event.job == self._job:
            self.bar.setRange(0, event.total)
            self.bar.setValue(event.done)

    @reporting()
    def _on_finished(self, event: Finished) -> None:
        if event.job != self._job:
            return
        self._job = ""
        if event.state is RunState.CANCELED:
            self.state.say("Stopped.")
        elif event.state is not RunState.COMPLETED:
            self.state.say(f"Refining did not work: {event.reason}")
        self._update()

    @reporting()
    def _on_prediction(self, prediction: Prediction) -> None:
        """Take the preview away: it is of what the model said before."""
        if prediction.sample_id == self._workbench.current_sample_id:
            self._leave()

    @reporting()
    def _leave(self, _: object = None) -> None:
        """Take the preview away and call off the one in the making."""
        self._cancel()
        self._job = ""
        self._take_away()
        self.state.say("")
        self._update()

    # What goes out -------------------------------------------------------------

    def _preview(self) -> None:
        session, sample_id = self._workbench.session, self._workbench.current_sample_id
        if session is None or sample_id is None:
            return
        self._take_away()
        sample = session.store.sample(sample_id)
        (self._job,) = refining.request(session, [sample], self.form.value())
        self.bar.setRange(0, 0)
        self.state.say("Refining…")
        self._update()

    def _cancel(self) -> None:
        session = self._workbench.session
        if session is not None and self._job:
            self.state.say("Stopping…")
            session.backend.cancel(self._job)

    def _use(self) -> None:
        session, proposal = self._workbench.session, self._proposal
        if session is not None and proposal is not None:
            refining.use(session, proposal)
            self.state.say("The refined labels are in use. The model's own are kept.")

    def _drop(self) -> None:
        self._take_away()
        self.state.say("")
        self._update()

    def _go_back(self) -> None:
        session, sample_id = self._workbench.session, self._workbench.current_sample_id
        if session is not None and sample_id is not None:
            refining.go_back(session, session.store.sample(sample_id))

    # How -----------------------------------------------------------------------

    def _take_away(self) -> None:
        proposal, self._proposal = self._proposal, None
        if proposal is not None:
            refining.drop(proposal)
        if self._workbench.layers is not None:
            self._workbench.layers.set_refined(None)

    @reporting()
    def _update(self, _: object = None) -> None:
        session, sample_id = self._workbench.session, self._workbench.current_sample_id
        prediction, reason = None, ""
        if session is None:
            reason = NO_PROJECT
        elif sample_id is None:
            reason = NO_SAMPLE
        else:
            prediction = predicting.current_prediction(session, sample_id)
            reason = "" if prediction is not None else NOT_PREDICTED
        is_running = bool(self._job)
        self.preview.set_reason(reason or ("Wait for the preview." if is_running else ""))
        self.reason.say(reason)
        self.form.setEnabled(session is not None)
        self.bar.setVisible(is_running)
        self.cancel.setVisible(is_running)
        has_proposal = self._proposal is not None and not is_running
        self.use.setVisible(has_proposal)
        self.drop.setVisible(has_proposal)
        is_refined = prediction is not None and refining.is_refined(prediction)
        self.back.setVisible(is_refined and not is_running)

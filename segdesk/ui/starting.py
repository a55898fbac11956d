"""From the click on *Start* to the run: what must be looked at and asked first."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QVBoxLayout, QWidget

from segdesk.core.errors import CanceledError
from segdesk.core.run import Run
from segdesk.io.store import ProjectStore
from segdesk.jobs.cancel import CancelToken
from segdesk.session import models, training
from segdesk.session.class_names import ClassQuestion, class_question
from segdesk.ui.bridge import reporting
from segdesk.ui.checks import LOOKING, Checks
from segdesk.ui.same_classes import SameClassesDialog
from segdesk.ui.widgets import ActionButton, Hint

if TYPE_CHECKING:
    from collections.abc import Callable

    from segdesk.config.training import TrainingConfig
    from segdesk.ui.forms import KnobsForm
    from segdesk.ui.panels.start_from import StartFrom
    from segdesk.ui.workbench import Workbench

PREPARING: Final = "Getting ready…"
READING: Final = "Reading the labels you made…"
START: Final = "Runs in the background; you can go on painting."


class RunStarter(QWidget):
    """The button that starts a run, and why it cannot be used.

    Parameters
    ----------
    form, origin
        Where the user says what is to be learnt, and from what.
    checks
        The look at the project, which a start waits for.

    Attributes
    ----------
    dialog
        Asks which class of the model is which of the project, while it is open.
    """

    pressed = Signal()  # Start was clicked; a look at the project that is due begins now

    def __init__(
        self,
        workbench: Workbench,
        form: KnobsForm[TrainingConfig],
        origin: StartFrom,
        checks: Checks,
    ) -> None:
        super().__init__()
        self._workbench = workbench
        self._form, self._origin, self._checks = form, origin, checks
        self._wants_start = False
        self._token: CancelToken | None = None
        self._title = self._reason = ""
        #: What was asked once; that a class is new leaves nothing in the form to tell.
        self._answered: set[tuple[str, tuple[str, ...], tuple[str, ...]]] = set()
        self.start = ActionButton("Start fine-tuning", self._start, START)
        self.cancel = ActionButton("Cancel", self._cancel, "Start no run after all.")
        self.reason = Hint()
        self.dialog: SameClassesDialog | None = None
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.start, self.cancel, self.reason):
            column.addWidget(widget)
        checks.changed.connect(self._on_checked)
        checks.names_wanted.connect(self._ask_names)

    def show_state(self, title: str, reason: str) -> None:
        """Say what a click does, or why it can do nothing."""
        self._title, self._reason = title, reason
        self._update()

    def drop(self) -> None:
        """Forget a start that was wanted: the project is being closed."""
        self._cancel()
        self._answered.clear()
        if self.dialog is not None:
            self.dialog.reject()

    # How -----------------------------------------------------------------------

    def _update(self) -> None:
        is_busy = self._wants_start or self._token is not None
        self.cancel.setVisible(is_busy)
        if is_busy:
            self.start.setText(PREPARING)
            self.start.set_reason(LOOKING if self._wants_start else READING)
            self.reason.say(LOOKING if self._wants_start else READING)
        else:
            self.start.setText(self._title)
            self.start.set_reason(self._reason or self._checks.stop_reason)
            self.reason.say(self._reason)

    def _start(self) -> None:
        self.pressed.emit()
        if self._checks.is_asking:
            self._wants_start = True
            self._update()
        else:
            self._ask_or_start()

    def _cancel(self) -> None:
        self._wants_start = False
        if self._token is not None:
            self._token.cancel()
            self._token = None
        self._update()

    @reporting()
    def _on_checked(self) -> None:
        """Go on with what waited for the look at the project."""
        if self._wants_start and not self._checks.is_asking:
            self._wants_start = False
            if not self._checks.stop_reason:
                self._ask_or_start()
        self._update()

    def _ask_or_start(self) -> None:
        question = self._question()
        is_open = question is not None and not question.is_answered
        if question is not None and is_open and _key(question) not in self._answered:
            self._ask(question, is_starting=True)
        else:
            self._prepare()

    def _prepare(self) -> None:
        """Write the run's folder on a thread: all labels of the project are read for it."""
        session, prompt, bridge = (
            self._workbench.session,
            self._workbench.prompt,
            self._workbench.bridge,
        )
        if session is None or prompt is None or bridge is None:
            return
        config, new = self._form.value(), self._origin.value()

        def progress(done: int, total: int) -> None:
            bridge.call(lambda: self._say_progress(token, done, total))

        work = partial(_prepare, session.store.folder, config, new, progress)
        token = self._token = prompt.start(work, lambda done: self._take(token, done))
        self._update()

    def _say_progress(self, token: CancelToken, done: int, total: int) -> None:
        if token is self._token:
            self.reason.say(f"{READING} {done} of {total}")

    def _take(self, token: CancelToken, done: Future[Run]) -> None:
        if token is self._token:
            self._token = None
            self._update()
        try:
            run = done.result()
        except CanceledError:
            return
        session = self._workbench.session
        if session is None or token.is_canceled:
            shutil.rmtree(run.folder, ignore_errors=True)
        else:
            training.enqueue(session, run)

    # Classes of other names ------------------------------------------------------

    def _question(self) -> ClassQuestion | None:
        session = self._workbench.session
        if session is None or self._origin.architecture is not None:
            return None
        entry = models.current_model(session.store)
        return class_question(session.store, entry, self._form.value()) if entry else None

    @reporting()
    def _ask_names(self) -> None:
        question = self._question()
        if question is not None:
            self._ask(question, is_starting=False)

    def _ask(self, question: ClassQuestion, *, is_starting: bool) -> None:
        if self.dialog is not None:
            self.dialog.raise_()
            return
        self.dialog = dialog = SameClassesDialog(
            question, "Start" if is_starting else "Use these", self.window()
        )

        @reporting()
        def take() -> None:
            self._answered.add(_key(question))
            self._form.editors["same_classes"].write(dialog.text)
            self._form.changed.emit()
            if is_starting:
                self._prepare()

        def forget() -> None:
            self.dialog = None
            dialog.deleteLater()

        dialog.accepted.connect(take)
        dialog.finished.connect(lambda _: forget())
        dialog.open()


def _key(question: ClassQuestion) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    return question.model, question.unknown, question.free


def _prepare(
    project: Path,
    config: TrainingConfig,
    new: training.NewModel | None,
    progress: Callable[[int, int], None],
    token: CancelToken,
) -> Run:
    def on_progress(done: int, total: int) -> None:
        token.check()
        progress(done, total)

    with ProjectStore.open(project, read_only=True) as store, store.snapshot():
        return training.prepare(store, config, new=new, progress=on_progress)

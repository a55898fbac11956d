"""How long each recipe would take, written into the choice of recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qtpy.QtCore import QObject, QTimer

from segdesk.config.training import TrainingConfig
from segdesk.core.errors import InputError
from segdesk.core.sample import Sample, Status
from segdesk.jobs.messages import Estimated, Finished
from segdesk.session import models, training
from segdesk.ui.bridge import reporting
from segdesk.ui.forms import KnobsForm
from segdesk.ui.words import about_words

if TYPE_CHECKING:
    from segdesk.session.session import Session
    from segdesk.ui.workbench import Workbench

#: So long nothing must change before the question is asked, in ms: it costs some work.
PATIENCE: Final = 1500


class Estimates(QObject):
    """Asks what a run of each recipe would take whenever the answer may have changed.

    The answer comes from a process of its own; nothing waits for it.
    """

    def __init__(
        self, workbench: Workbench, form: KnobsForm[TrainingConfig], parent: QObject
    ) -> None:
        super().__init__(parent)
        self._workbench = workbench
        self._form = form
        self._job = ""
        self._asked: tuple[Any, ...] | None = None
        self._words: dict[Any, str] = {}
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(PATIENCE)
        self._timer.timeout.connect(self._ask)

    @property
    def words(self) -> dict[Any, str]:
        """What is known, by recipe."""
        return dict(self._words)

    def listen(self, session: Session) -> None:
        """Take the answers of a project that was opened."""
        self.clear()
        session.events.estimated.connect(self._on_estimated)
        session.events.job_finished.connect(self._on_finished)

    def ask_soon(self) -> None:
        """Ask once things have settled."""
        self._timer.start()

    def clear(self) -> None:
        """Forget what is known."""
        self._timer.stop()
        self._job, self._asked = "", None
        self._words.clear()
        self._show()

    @reporting()
    def _ask(self) -> None:
        session = self._workbench.session
        if session is None or self._job or training.is_under_way(session):
            return
        try:
            config = self._form.value()
        except InputError:
            return  # said when the run is started
        entry = models.current_model(session.store)
        learnt = [s for s in session.store.samples() if is_learnt_from(s)]
        if entry is None or not learnt:
            self.clear()
            return
        # Which recipe is chosen decides nothing: all are asked about.
        rest = config.model_copy(update={"recipe": TrainingConfig().recipe})
        asked = (entry.name, rest, [(s.id, s.split) for s in learnt])
        if asked != self._asked:
            self._asked = asked
            self._job = training.estimate(session, config)

    @reporting()
    def _on_estimated(self, event: Estimated) -> None:
        if event.job == self._job:
            self._words[event.recipe] = about_words(event.seconds, event.memory_bytes)
            self._show()

    @reporting()
    def _on_finished(self, event: Finished) -> None:
        if event.job == self._job:
            self._job = ""
            self.ask_soon()  # something may have changed meanwhile

    def _show(self) -> None:
        self._form.annotate("recipe", self._words)


def is_learnt_from(sample: Sample) -> bool:
    """Whether a person has said something about an image."""
    return sample.status in (Status.CORRECTED, Status.ACCEPTED)

"""What a look at the project finds before a run is started, each finding a click away."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QPushButton, QVBoxLayout, QWidget

from segdesk.config.training import TrainingConfig
from segdesk.core.errors import CanceledError
from segdesk.core.finding import Finding, FindingKind, Severity
from segdesk.io.store import ProjectStore
from segdesk.jobs.cancel import CancelToken
from segdesk.session.training import NewModel
from segdesk.ui.bridge import reporting
from segdesk.ui.widgets import Hint, heading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from segdesk.ui.workbench import Workbench

#: So many findings are listed before *Show all* is asked for.
SHORT: Final = 5
COLORS: Final = {Severity.STOP: "#d9483b", Severity.WARN: "#e69f00", Severity.NOTE: "#6b7280"}
WORDS: Final = {Severity.STOP: "Cannot start", Severity.WARN: "Careful", Severity.NOTE: "Note"}
LOOKING: Final = "Looking at the images before you start…"


class Checks(QWidget):
    """Examines the project on a thread and lists what it finds.

    ``changed`` tells that an examination has begun or ended; ``names_wanted`` that the user
    wants to say which class of the model is which of the project.
    """

    changed = Signal()
    names_wanted = Signal()

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self._token: CancelToken | None = None
        self._number = 0
        self._findings: list[Finding] = []
        self._shows_all = False
        self.busy = Hint()
        self.hints: list[Hint] = []
        self.more = QPushButton()
        self.more.setFlat(True)
        self.more.clicked.connect(lambda: self._show_all())
        self._title = heading("Before you start")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(self._title)
        column.addWidget(self.busy)
        self._rows = QVBoxLayout()
        column.addLayout(self._rows)
        column.addWidget(self.more)
        self.clear()

    @property
    def is_asking(self) -> bool:
        """Whether an examination is under way."""
        return self._token is not None

    @property
    def stop_reason(self) -> str:
        """Why the run cannot be started, as far as is known; empty when it can."""
        stops = [f.text for f in self._findings if f.severity is Severity.STOP]
        return stops[0] if stops else ""

    def ask(self, config: TrainingConfig, new: NewModel | None) -> None:
        """Examine what a run with these settings would meet; an older question is dropped."""
        session, slow, bridge = (
            self._workbench.session,
            self._workbench.slow,
            self._workbench.bridge,
        )
        if session is None or slow is None or bridge is None:
            return
        self._call_off()
        number = self._number

        def progress(done: int, total: int) -> None:
            bridge.call(lambda: self._say_progress(number, done, total))

        work = partial(_examine, session.store.folder, config, new, progress)
        self._token = slow.start(work, partial(self._take, number))
        self.changed.emit()

    def clear(self) -> None:
        """Forget what was found."""
        self._call_off()
        self._show([])

    def _call_off(self) -> None:
        self._number += 1
        if self._token is not None:
            self._token.cancel()
            self._token = None
        self.busy.say("")

    def _say_progress(self, number: int, done: int, total: int) -> None:
        if number == self._number and self._token is not None:
            self.busy.say(f"{LOOKING} {done} of {total}")
            self.show()

    def _take(self, number: int, done: Future[list[Finding]]) -> None:
        if number != self._number:
            return
        self._token = None
        self.busy.say("")
        try:
            self._show(done.result())
        except CanceledError:
            return
        finally:
            self.changed.emit()

    def _show_all(self) -> None:
        self._shows_all = True
        self._fill()

    def _show(self, findings: list[Finding]) -> None:
        if findings != self._findings:
            self._shows_all = False
        self._findings = findings
        self._fill()

    def _fill(self) -> None:
        for hint in self.hints:
            self._rows.removeWidget(hint)
            hint.deleteLater()
        order = list(Severity)
        found = sorted(self._findings, key=lambda f: order.index(f.severity))
        listed = found if self._shows_all else found[:SHORT]
        self.hints = [self._hint(finding) for finding in listed]
        for hint in self.hints:
            self._rows.addWidget(hint)
        self.more.setText(f"Show {len(found) - len(listed)} more")
        self.more.setVisible(len(found) > len(listed))
        self.setVisible(bool(found))

    def _hint(self, finding: Finding) -> Hint:
        hint = Hint()
        text = f"<b>{WORDS[finding.severity]}:</b> {escape(finding.text)}"
        link = _link(finding)
        if link:
            text += f' <a style="color: #56b4e9" href="go">{link}</a>'
        hint.setTextFormat(Qt.TextFormat.RichText)
        hint.say(text)
        hint.setTextInteractionFlags(Qt.TextInteractionFlag.TextBrowserInteraction)
        hint.setStyleSheet(f"border-left: 3px solid {COLORS[finding.severity]}; padding-left: 5px;")
        hint.linkActivated.connect(lambda _: self._go(finding))
        return hint

    @reporting()
    def _go(self, finding: Finding) -> None:
        if finding.kind is FindingKind.OTHER_NAMES:
            self.names_wanted.emit()
        elif finding.sample is not None:
            self._workbench.go_to(finding.sample, finding.place)


def _link(finding: Finding) -> str:
    """Return what can be done about a finding with a click; nothing where nothing can."""
    if finding.kind is FindingKind.OTHER_NAMES:
        return "Say which is which"
    return "Go there" if finding.sample is not None else ""


def _examine(
    project: Path,
    config: TrainingConfig,
    new: NewModel | None,
    progress: Callable[[int, int], None],
    token: CancelToken,
) -> Sequence[Finding]:
    from segdesk.session.preflight import examine  # slow to import, and the window starts without

    def on_progress(done: int, total: int) -> None:
        token.check()
        progress(done, total)

    with ProjectStore.open(project, read_only=True) as store:
        return examine(store, config, new=new, progress=on_progress)

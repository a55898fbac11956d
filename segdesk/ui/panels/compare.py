"""The Compare panel: two models on the same images, those that got worse first."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qtpy.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt, QTimer
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QProgressBar,
    QSlider,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from segdesk.core.errors import CanceledError, SegDeskError
from segdesk.core.run import RunState
from segdesk.core.sample import Split
from segdesk.io.store import ProjectStore
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.messages import Finished, Progressed
from segdesk.session import comparing, models
from segdesk.session.comparing import Change, ComparedImage, Comparison, Ranking
from segdesk.session.session import Session
from segdesk.ui.bridge import reporting
from segdesk.ui.comparison_layers import ComparisonLayers
from segdesk.ui.legend import CHANGE_COLORS, ChangeLegend
from segdesk.ui.widgets import ActionButton, ElidingCombo, Hint, Panel, heading
from segdesk.ui.words import count_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from segdesk.ui.workbench import Workbench

    Index = QModelIndex | QPersistentModelIndex

NO_PROJECT = "Open a project first."
ONE_MODEL = "There is one model only; fine-tune it, and compare the new one with it."
NO_LABELS = (
    "No labelled image yet, so nothing says which model is right: correct or accept some. "
    "Swipe shows both masks of the image on screen."
)
#: After strokes so long is waited before the changes are drawn anew, in ms.
PATIENCE: Final = 500
#: The swipe follows the slider this often at most, in ms.
FRAME: Final = 33

#: First and second model.
Pair = tuple[str, str]


class Show(StrEnum):
    """What is drawn over the image."""

    CHANGES = "Changes against the corrected labels"
    SWIPE = "Swipe between the two masks"
    NOTHING = "Nothing"


@dataclass(frozen=True)
class Looked:
    """What the stored predictions of a pair say, and what is missing for more."""

    missing: dict[str, tuple[str, ...]]
    ranking: Ranking | None = None
    reason: str = ""


class ComparePanel(Panel):
    """Compares any two models; its layers are there as long as it can be seen."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self._layers: ComparisonLayers | None = None
        self._pair: Pair | None = None
        self._ranking: Ranking | None = None
        self._found: Comparison | None = None
        self._jobs: dict[str, bool] = {}
        self._failures: list[str] = []
        self._token: CancelToken | None = None
        self._asking = self._reading = 0
        self.first, self.second = ElidingCombo(), ElidingCombo()
        self.compare = ActionButton(
            "Compare",
            self._compare,
            "Looks at all labelled images and the one on screen; what a model has not predicted "
            "yet is predicted first.",
        )
        self.cancel = ActionButton("Cancel", self._cancel, "End the comparison.")
        self.bar = QProgressBar()
        self.progress = Hint()
        self.reason = Hint(NO_PROJECT)
        self.summary = Hint()
        self.choice = ElidingCombo()
        self.legend = ChangeLegend()
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.sides = (QLabel(), QLabel())
        self.image = Hint()
        self.table = QTableView()
        self.rows = RankingModel(self)
        self._stale = _timer(self, PATIENCE, self._read_image)
        self._frame = _timer(self, FRAME, self._move_swipe)
        self._lay_out()
        self._connect()
        self._update()

    def _lay_out(self) -> None:
        choices = QFormLayout()
        choices.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        choices.addRow("First model", self.first)
        choices.addRow("Second model", self.second)
        self.column.addLayout(choices)
        above: tuple[QWidget, ...] = (
            self.compare,
            self.reason,
            self.bar,
            self.progress,
            self.cancel,
        )
        for widget in above:
            self.column.addWidget(widget)
        self._result = QWidget()
        result = QVBoxLayout(self._result)
        result.setContentsMargins(0, 0, 0, 0)
        result.setSpacing(6)
        self._swiping = QWidget()
        line = QHBoxLayout(self._swiping)
        line.setContentsMargins(0, 0, 0, 0)
        line.addWidget(self.sides[0])
        line.addWidget(self.slider, 1)
        line.addWidget(self.sides[1])
        for widget in (heading("On the image on screen"), self.choice, self.legend,
                       self._swiping, self.image, heading("Labelled images, worst first"),
                       self.summary, self.table):  # fmt: skip
            result.addWidget(widget)
        self.column.addWidget(self._result)
        self.column.addStretch(1)
        for show in Show:
            self.choice.addItem(show, show)
        self.table.setModel(self.rows)
        self.table.setMinimumHeight(260)
        self.table.verticalHeader().hide()
        self.table.setShowGrid(False)
        self.table.setSelectionBehavior(QTableView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QTableView.SelectionMode.SingleSelection)
        head = self.table.horizontalHeader()
        head.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        head.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        head.setMinimumSectionSize(40)
        for widget in (self.bar, self.cancel, self._result):
            widget.hide()

    def _connect(self) -> None:
        for name, widget in (
            ("First model to compare", self.first),
            ("Second model to compare", self.second),
            ("What is drawn over the image", self.choice),
            ("Where the swipe line is", self.slider),
            ("Labelled images, those that got worse first", self.table),
        ):
            widget.setAccessibleName(name)
        for box in (self.first, self.second):
            box.activated.connect(lambda: self._forget())
        self.choice.activated.connect(lambda: self._draw())
        self.slider.valueChanged.connect(lambda: self._frame.isActive() or self._frame.start())
        self.table.clicked.connect(self._go)
        self.table.activated.connect(self._go)
        self.seen.connect(lambda is_seen: self._on_seen(is_seen=is_seen))
        bench = self._workbench
        bench.session_opened.connect(self._on_opened)
        bench.session_closed.connect(self._on_closed)
        bench.sample_opening.connect(self._on_opening)
        bench.sample_shown.connect(self._on_shown)
        bench.strokes_changed.connect(self._on_labels)

    # What comes in -------------------------------------------------------------

    @reporting()
    def _on_opened(self, session: Session) -> None:
        events = session.events
        events.models_added.connect(self._fill)
        events.model_changed.connect(self._fill)
        events.job_progressed.connect(self._on_progress)
        events.job_finished.connect(self._on_finished)
        events.sample_changed.connect(self._on_labels)
        self._layers = ComparisonLayers(self._workbench.viewer, session.store.classes)
        self.first.clear()
        self.second.clear()
        self._fill()

    @reporting()
    def _on_closed(self) -> None:
        self._forget()
        self._layers = None
        self.first.clear()
        self.second.clear()
        self._update()

    @reporting()
    def _on_opening(self, _sample: str) -> None:
        self._drop_image()

    @reporting()
    def _on_shown(self, _sample: str) -> None:
        self._read_image()

    @reporting()
    def _on_labels(self, _: object = None) -> None:
        """Look again soon: what is right may have changed."""
        if self._pair is not None and self._found is not None:
            self._stale.start()

    @reporting()
    def _on_progress(self, event: Progressed) -> None:
        if event.job in self._jobs:
            self._say_predicting()

    @reporting()
    def _on_finished(self, event: Finished) -> None:
        if event.job not in self._jobs or self._jobs[event.job]:
            return
        self._jobs[event.job] = True
        if event.state in (RunState.FAILED, RunState.CRASHED):
            self._failures.append(event.reason)
        if not all(self._jobs.values()):
            self._say_predicting()
            return
        self._jobs.clear()
        if event.state is RunState.CANCELED:
            self._end("Canceled.")
        else:
            self._look(ask=False)

    @reporting()
    def _on_seen(self, *, is_seen: bool) -> None:
        """Draw over the image again, or give it back: what is painted on must be seen."""
        if is_seen:
            self._read_image()
        else:
            self._drop_image()

    # Comparing -----------------------------------------------------------------

    def _compare(self) -> None:
        self._forget()
        self._pair = (str(self.first.currentData()), str(self.second.currentData()))
        self._failures.clear()
        self._look(ask=True)

    def _look(self, *, ask: bool) -> None:
        """Rank the images; with ``ask``, what is missing is predicted first."""
        session, slow, bridge = (
            self._workbench.session,
            self._workbench.slow,
            self._workbench.bridge,
        )
        if session is None or slow is None or bridge is None or self._pair is None:
            return
        pair, shown = self._pair, self._workbench.current_sample_id

        def progress(done: int, total: int) -> None:
            bridge.call(lambda: self._say_progress("Comparing", done, total))

        self._say_progress("Comparing", 0, 0)
        work = partial(_look, session.store.folder, pair, shown if ask else None, progress, ask)
        self._asking += 1
        self._token = slow.start(work, partial(self._take, self._asking))
        self._update()

    def _take(self, number: int, done: Future[Looked]) -> None:
        if number != self._asking:
            return
        self._token = None
        try:
            looked = done.result()
        except CanceledError:
            self._end("Canceled.")
            return
        if looked.missing and looked.ranking is None and not looked.reason:
            self._predict(looked.missing)
        else:
            self._end(looked.reason)
            if looked.ranking is not None:
                self._show_ranking(looked.ranking)
                self._read_image()

    def _predict(self, missing: dict[str, tuple[str, ...]]) -> None:
        for model, samples in missing.items():
            try:
                jobs = self._workbench.predict(list(samples), model)
            except SegDeskError as error:
                self._cancel()
                self._end(error.message)
                return
            self._jobs |= dict.fromkeys(jobs, False)
        self._say_predicting()
        self._update()

    def _cancel(self) -> None:
        session = self._workbench.session
        self.progress.say("Stopping…")
        if self._token is not None:
            self._token.cancel()
        if session is not None:
            for job, is_done in list(self._jobs.items()):
                if not is_done:
                    session.backend.cancel(job)

    # The image on screen -------------------------------------------------------

    def _read_image(self) -> None:
        """Compare the image on screen anew, once it can be seen."""
        session, shown = self._workbench.session, self._workbench.current_sample_id
        is_ready = self._ranking is not None and self._workbench.current_correction is not None
        if session is None or shown is None or self._pair is None or not is_ready:
            return
        if self.is_seen:
            self._reading += 1
            self._workbench.in_background(
                partial(_read_one, session.store.folder, self._pair, shown),
                partial(self._take_image, self._reading),
            )

    def _take_image(self, number: int, found: Comparison | str) -> None:
        if number != self._reading or not self.is_seen:
            return
        self._found = found if isinstance(found, Comparison) else None
        self.image.say("" if isinstance(found, Comparison) else found)
        if self._found is not None:
            self._take_row(self._found.row)
        self._draw()

    def _take_row(self, row: ComparedImage) -> None:
        """Let the table say what the image on screen says now."""
        ranking = self._ranking
        if ranking is None or row.dice is None or row in ranking.rows:
            return
        rows = [row if old.sample == row.sample else old for old in ranking.rows]
        rows = rows if row in rows else [*rows, row]
        self._show_ranking(replace(ranking, rows=tuple(comparing.worst_first(rows))))

    def _drop_image(self) -> None:
        self._reading += 1
        self._stale.stop()
        self._found = None
        self.image.say("")
        if self._layers is not None:
            self._layers.clear()

    @property
    def _shown(self) -> Show:
        return Show(self.choice.currentData())  # Qt makes a plain text of it

    def _draw(self) -> None:
        found, layers, sample = self._found, self._layers, self._workbench.layers
        self.legend.setVisible(self._shown is Show.CHANGES)
        self._swiping.setVisible(self._shown is Show.SWIPE)
        if layers is None or sample is None:
            return
        if found is None or self._shown is Show.NOTHING:
            layers.clear()
            return
        below = (sample.labels, sample.uncertainty, sample.refined)
        if self._shown is Show.CHANGES:
            layers.show_changes(found, below)
            row = found.row
            counts = {
                Change.FIXED: row.fixed,
                Change.BROKEN: row.broken,
                Change.STILL_WRONG: row.still_wrong,
            }
            self.legend.show_shares(counts, row.labelled)
            self.image.say("" if row.labelled else "Nobody has corrected or accepted this image.")
        else:
            self._set_slider(found.first.shape[-1])
            self.image.say("")
            layers.show_swipe(found, self.slider.value(), below)

    def _set_slider(self, columns: int) -> None:
        """Let the slider go over so many columns, from its middle."""
        if self.slider.maximum() != columns:
            self.slider.blockSignals(True)
            self.slider.setRange(0, columns)
            self.slider.setValue(columns // 2)
            self.slider.blockSignals(False)

    def _move_swipe(self) -> None:
        if self._layers is not None:
            self._layers.move_swipe(self.slider.value())

    # How -----------------------------------------------------------------------

    @reporting()
    def _fill(self, _name: str = "") -> None:
        """Offer the models; what was chosen stays chosen."""
        session = self._workbench.session
        if session is None:
            return
        names = [entry.name for entry in models.list_models(session.store)]
        chosen = self.first.currentData(), self.second.currentData()
        if self._pair is None or not set(chosen) <= set(names):
            chosen = comparing.suggest(session.store) or (None, None)
        for box, name in zip((self.first, self.second), chosen, strict=True):
            box.clear()
            for known in names:
                box.addItem(known, known)
            box.setCurrentIndex(max(0, box.findData(name)))
        self._update()

    def _forget(self) -> None:
        """Another question: the answer to the one before is of no use."""
        self._cancel()
        self._asking += 1
        self._token = None
        self._jobs.clear()
        self._drop_image()
        self._pair = self._ranking = None
        self._result.hide()
        self._end("")

    def _end(self, reason: str) -> None:
        self.progress.say("")
        self.bar.hide()
        self._update()
        if self._failures and not reason:
            reason = f"{len(self._failures)} could not be predicted: {self._failures[0]}"
        if reason:
            self.reason.say(reason)

    def _show_ranking(self, ranking: Ranking) -> None:
        self._ranking = ranking
        for label, name in zip(self.sides, (ranking.first, ranking.second), strict=True):
            label.setText(name)
        self.rows.show_rows(ranking.rows)
        self.table.setVisible(bool(ranking.rows))
        self.summary.say(ranking_words(ranking))
        self._result.show()
        self._draw()

    def _update(self) -> None:
        session = self._workbench.session
        is_busy = self._token is not None or bool(self._jobs)
        reason = NO_PROJECT if session is None else ONE_MODEL if self.first.count() < 2 else ""
        is_same = self.first.currentData() == self.second.currentData()
        reason = reason or ("Choose two different models." if is_same else "")
        self.reason.say(reason)
        self.compare.set_reason("A comparison is under way." if is_busy else reason)
        self.cancel.setVisible(is_busy)
        for box in (self.first, self.second):
            box.setEnabled(session is not None and not is_busy)

    def _say_predicting(self) -> None:
        self._say_progress("Predicting", sum(self._jobs.values()), len(self._jobs))

    def _say_progress(self, what: str, done: int, total: int) -> None:
        if self._token is None and not self._jobs and total:
            return  # it has ended meanwhile
        self.bar.setRange(0, total)
        self.bar.setValue(done)
        self.bar.show()
        self.progress.say(f"{what}: {done} of {total}" if total else f"{what}…")

    def _go(self, index: QModelIndex) -> None:
        sample = self.rows.sample_of(index.row())
        if sample != self._workbench.current_sample_id:
            with reporting():
                self._workbench.show_sample(sample)


class RankingModel(QAbstractTableModel):
    """Rows of a ranking: image, Dice of either model, change, shares fixed and broken."""

    TITLES: Final = ("Image", "first", "second", "change", "fixed", "broken")

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._rows: tuple[ComparedImage, ...] = ()

    def show_rows(self, rows: tuple[ComparedImage, ...]) -> None:
        """Show other rows."""
        self.beginResetModel()
        self._rows = rows
        self.endResetModel()

    def sample_of(self, row: int) -> str:
        """Return the id of the image in a row."""
        return self._rows[row].sample

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008  Qt's
        """Return the number of images."""
        return 0 if parent.isValid() else len(self._rows)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008  Qt's
        """Return the number of columns."""
        return 0 if parent.isValid() else len(self.TITLES)

    def headerData(
        self,
        section: int,
        orientation: Qt.Orientation,
        role: int = Qt.ItemDataRole.DisplayRole,
    ) -> object:
        """Return a column's title."""
        is_title = role == Qt.ItemDataRole.DisplayRole
        return (
            self.TITLES[section] if is_title and orientation is Qt.Orientation.Horizontal else None
        )

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        """Return what Qt asks for."""
        row = self._rows[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return row_texts(row)[index.column()]
        if role == Qt.ItemDataRole.ToolTipRole:
            return row_words(row)
        if role == Qt.ItemDataRole.TextAlignmentRole and index.column():
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        if role == Qt.ItemDataRole.ForegroundRole and self.TITLES[index.column()] == "change":
            change = Change.BROKEN if row.difference < 0 else Change.FIXED
            return QColor(CHANGE_COLORS[change]) if row.difference else None
        return None


def row_texts(row: ComparedImage) -> tuple[str, ...]:
    """Return what stands in the columns of an image's row."""
    first, second = (f"{score:.3f}" for score in row.dice or (0.0, 0.0))
    shares = (f"{count / max(1, row.labelled):.1%}" for count in (row.fixed, row.broken))
    return (row.name, first, second, f"{row.difference:+.3f}", *shares)


def row_words(row: ComparedImage) -> str:
    """Say of an image what the row has no room for."""
    lines = [f"<b>{row.name}</b>", f"{row.labelled:,} labelled pixels"]
    lines.append(f"{row.still_wrong / max(1, row.labelled):.1%} still wrong")
    if row.split is Split.VALIDATION:
        lines.append("Held back: no model of this project learns from it.")
    if row.was_learnt:
        lines.append("A model learnt from it, which flatters that model.")
    return "<qt>" + "<br>".join([*lines, "Click to go there."]) + "</qt>"


def ranking_words(ranking: Ranking) -> str:
    """Say how the second model does against the first."""
    scores = ranking.dice
    if scores is None:
        return NO_LABELS
    worse = sum(row.difference < 0 for row in ranking.rows)
    better = sum(row.difference > 0 for row in ranking.rows)
    text = (
        f"Dice over {count_images(len(ranking.rows))}: {scores[0]:.3f} with the first, "
        f"{scores[1]:.3f} with the second. {better} got better, {worse} got worse."
    )
    learnt = sum(row.was_learnt for row in ranking.rows)
    if learnt:
        text += f" A model learnt from {learnt} of them, which flatters it; look at the others."
    lacking = {sample for samples in ranking.missing.values() for sample in samples}
    if lacking:
        text += f" {count_images(len(lacking))} could not be compared: not predicted."
    return text


def _look(
    project: Path,
    pair: Pair,
    shown: str | None,
    progress: Callable[[int, int], None],
    ask: bool,
    token: CancelToken,
) -> Looked:
    """Say what is missing, or with nothing to wait for, how the images rank."""
    try:
        with ProjectStore.open(project, read_only=True) as store:
            missing = comparing.find_missing(store, *pair, shown)
            if missing and ask:
                return Looked(missing)
            return Looked(missing, comparing.rank(store, *pair, token, progress))
    except CanceledError:
        raise
    except SegDeskError as error:
        return Looked({}, reason=error.message)


def _read_one(project: Path, pair: Pair, sample: str) -> Comparison | str:
    """Compare an image, or say why it cannot be."""
    try:
        with ProjectStore.open(project, read_only=True) as store:
            return comparing.compare(store, *pair, sample)
    except SegDeskError as error:
        return error.message


def _timer(parent: QObject, milliseconds: int, slot: Callable[[], None]) -> QTimer:
    timer = QTimer(parent)
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.timeout.connect(slot)
    return timer

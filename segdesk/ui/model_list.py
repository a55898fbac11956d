"""The models a project can use, each a click away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QGridLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from segdesk.core.run import Run, RunState
from segdesk.core.verdict import Verdict
from segdesk.session.models import ModelEntry
from segdesk.ui.widgets import clear, heading
from segdesk.ui.words import model_dice, model_tooltip

#: So many are listed before *Show all* is asked for, besides the one in use.
SHORT: Final = 5


@dataclass(frozen=True, slots=True)
class ModelRow:
    """What stands in a row: ``score`` in short, ``tip`` everything."""

    name: str
    score: str
    tip: str
    is_used: bool


def model_rows(
    entries: Sequence[ModelEntry],
    runs: Sequence[Run],
    used: str,
    verdict_of: Callable[[Run], Verdict],
) -> list[ModelRow]:
    """Return the models, newest first, with what the run that made each said of it.

    Parameters
    ----------
    entries
        From old to new.
    used
        Name of the model in use, or nothing.
    """
    made = {run.new_model: run for run in runs if run.state is RunState.COMPLETED}
    rows = []
    for entry in reversed(entries):
        run, tip = made.get(entry.name), model_tooltip(entry)
        dice, said = model_dice(entry), "shipped" if entry.is_bundled else ""
        if run is not None:
            verdict = verdict_of(run)
            dice, said = (run.after or {}).get("dice"), str(verdict.judgement)
            tip = tip.replace("</qt>", f"<br>{verdict.text}</qt>")
        if entry.name == used:
            tip = tip.replace("</qt>", "<br>This is the model in use.</qt>")
        score = f"Dice {dice:.3f}" if dice is not None else "not scored"
        text = f"{score}, {said}" if said else score
        rows.append(ModelRow(entry.name, text, tip, entry.name == used))
    return rows


class ModelList(QWidget):
    """Rows of name, score and a *Use* button; the model in use is marked.

    ``wanted`` gives the name of the model whose button was pressed.
    """

    wanted = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[ModelRow] = []
        self._shows_all = False
        self.buttons: dict[str, QPushButton] = {}
        self._grid = QGridLayout()
        self._grid.setColumnStretch(0, 1)
        self._grid.setHorizontalSpacing(8)
        self._grid.setVerticalSpacing(2)
        self.more = QPushButton()
        self.more.setFlat(True)
        self.more.clicked.connect(lambda: self._show_all())
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(heading("Models, newest first"))
        column.addLayout(self._grid)
        column.addWidget(self.more)
        self.hide()

    def show_rows(self, rows: list[ModelRow]) -> None:
        """Show these models; nothing with fewer than two."""
        if rows != self._rows:
            self._rows = rows
            self._fill()
        self.setVisible(len(rows) > 1)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Name and score of each row, as they stand there."""
        cells = [
            [self._grid.itemAtPosition(row, column) for column in (0, 1)]
            for row in range(self._grid.rowCount())
        ]
        widgets = [[c.widget() for c in row if c is not None] for row in cells]
        texts = [[w.text() for w in row if isinstance(w, QLabel)] for row in widgets]
        return [(row[0], row[1]) for row in texts if len(row) == 2]

    def _show_all(self) -> None:
        self._shows_all = True
        self._fill()

    def _fill(self) -> None:
        clear(self._grid)
        self.buttons = {}
        listed = [r for n, r in enumerate(self._rows) if self._shows_all or n < SHORT or r.is_used]
        for number, row in enumerate(listed):
            name = QLabel(f"<b>{row.name}</b>" if row.is_used else row.name)
            button = QPushButton("in use" if row.is_used else "Use")
            button.setEnabled(not row.is_used)
            button.setAccessibleName(f"Use {row.name}")
            button.clicked.connect(partial(self._want, row.name))
            self.buttons[row.name] = button
            for column, widget in enumerate((name, QLabel(row.score), button)):
                widget.setToolTip(row.tip)
                self._grid.addWidget(widget, number, column)
        left = len(self._rows) - len(listed)
        self.more.setText(f"Show {left} more")
        self.more.setVisible(left > 0)

    def _want(self, name: str, _checked: bool = False) -> None:
        self.wanted.emit(name)

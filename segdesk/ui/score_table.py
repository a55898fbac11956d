"""Scores before and after a run, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QLabel, QVBoxLayout, QWidget

from segdesk.ui.widgets import clear, folded, heading
from segdesk.ui.words import ScoreRow


class ScoreTable(QWidget):
    """Scores before and after a run."""

    def __init__(self) -> None:
        super().__init__()
        self._means, self._whole = _Rows(), _Rows()
        self._means.setToolTip(
            "<qt>Dice and IoU tell how well masks agree, from 0 to 1; they are means over "
            "images. Images held back are those "
            "so marked in the list, which are never learnt from; the images it knew came with the "
            "model.</qt>"
        )
        self._whole.setToolTip(
            "<qt>As papers report: the pixels of all images held back are counted together, and "
            "means are over all classes, the background included. Figures of single images and "
            "of objects: segdesk evaluate.</qt>"
        )
        self._fold = folded("All pixels of the images held back", self._whole)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._means)
        column.addWidget(self._fold)

    def show_scores(self, means: Sequence[ScoreRow], whole: Sequence[ScoreRow]) -> None:
        """Show means over images and, folded away, scores over all pixels; nothing for none."""
        self.setVisible(bool(means))
        self._means.show_rows([("Did it help?", "before", "after", "change"), *means])
        self._fold.setVisible(bool(whole))
        self._whole.show_rows([("Over all classes", "before", "after", "change"), *whole])

    def unfold(self) -> None:
        """Show what is folded away."""
        self._fold.expand(animate=False)

    @property
    def texts(self) -> list[str]:
        """What stands in the table of means, row by row."""
        return self._means.texts

    @property
    def whole_texts(self) -> list[str]:
        """What stands in the table over all pixels, row by row."""
        return self._whole.texts


class _Rows(QWidget):
    """Rows of a title and figures; the first holds the headings."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setColumnStretch(0, 1)

    def show_rows(self, rows: Sequence[ScoreRow]) -> None:
        clear(self._grid)
        for number, row in enumerate(rows):
            for column, text in enumerate(row):
                label = QLabel(text) if number else heading(text)
                if column and number:
                    label.setAlignment(Qt.AlignmentFlag.AlignRight)
                self._grid.addWidget(label, number, column)

    @property
    def texts(self) -> list[str]:
        return [label.text() for label in self.findChildren(QLabel)]

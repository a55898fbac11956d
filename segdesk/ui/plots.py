"""Live curves of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyqtgraph as pg
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGraphicsItem, QVBoxLayout, QWidget

from segdesk.jobs.messages import Stepped

BACKGROUND, FOREGROUND = "#262930", "#d1d2d4"
LOSS, SMOOTH, RATE = "#56b4e970", "#56b4e9", "#f0e442"
YOURS, REMEMBERED = "#e69f00", "#cc79a7"

#: Weight of the newest loss in the smoothed curve.
SMOOTHING: Final = 0.1

#: So many points are drawn of a curve; a screen shows no more.
MOST_POINTS: Final = 1000

#: So many classes have a curve; more could not be told apart.
MOST_CLASSES: Final = 6


class Curves(QWidget):
    """Loss, learning rate, and Dice: on held-back and remembered images, and per class.

    What is added is seen after :meth:`draw`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._total = self._drawn_total = 0
        #: What was added and is not drawn yet.
        self._has_new_steps = self._has_new_dice = False
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._smooth: list[float] = []
        self._rates: list[float] = []
        self._dice: dict[str, list[tuple[int, float]]] = {}
        self._colors: Mapping[str, str] = {}
        self._loss_plot = make_plot("Loss", legend_offset=(-4, 4), height=130)
        self._rate_plot = make_plot("Rate", legend_offset=None, height=80)
        self._dice_plot = make_plot("Dice", legend_offset=(-4, -4), height=180)
        self._dice_plot.setYRange(0, 1)
        for plot in (self._rate_plot, self._dice_plot):
            plot.setXLink(self._loss_plot)
        self._raw = self._loss_plot.plot(name="each step", pen=pg.mkPen(LOSS, width=1))
        self._line = self._loss_plot.plot(name="smoothed", pen=pg.mkPen(SMOOTH, width=2))
        self._rate_line = self._rate_plot.plot(pen=pg.mkPen(RATE, width=2))
        self._dice_lines: dict[str, Any] = {}
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for plot in (self._loss_plot, self._rate_plot, self._dice_plot):
            column.addWidget(plot)
        self._dice_plot.setLabel("bottom", "Training step")
        self._dice_plot.getAxis("bottom").setHeight(36)
        self._rate_plot.setToolTip("The learning rate")

    def clear(self, colors: Mapping[str, str] | None = None) -> None:
        """Start anew, with these colours of the classes (``#rrggbb`` by name)."""
        for values in (self._steps, self._losses, self._smooth, self._rates):
            values.clear()
        self._total = 0
        self._has_new_steps = self._has_new_dice = True
        self._dice.clear()
        self._colors = colors or {}
        for line in self._dice_lines.values():
            self._dice_plot.removeItem(line)
        self._dice_lines.clear()
        self.draw()

    def add_steps(self, steps: Sequence[Stepped]) -> None:
        """Add training steps; a step made again after a resume takes the older's place."""
        for step in steps:
            self._forget_from(step.step)
            last = self._smooth[-1] if self._smooth else step.loss
            self._steps.append(step.step)
            self._losses.append(step.loss)
            self._smooth.append(last + SMOOTHING * (step.loss - last))
            self._rates.append(step.learning_rate)
        if steps:
            self._total = steps[-1].total
            self._has_new_steps = True

    def add_evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Add what the validation images came to; None means there are none."""
        self._has_new_dice = True
        found = {"images held back": scores.get("dice")}
        found["images it knew"] = (scores.get("remembered") or {}).get("dice")
        classes = scores.get("per_class") or {}
        shown = [n for n in classes if n.lower() != "background"][:MOST_CLASSES]
        found |= {name: classes[name].get("dice") for name in shown}
        for name, value in found.items():
            if value is not None:
                points = [p for p in self._dice.get(name, ()) if p[0] < step]
                self._dice[name] = [*points, (step, float(value))]

    @property
    def points(self) -> tuple[int, int, int]:
        """Number of points: steps, Dice of held-back images, of remembered ones."""
        yours, remembered = (
            len(self._dice.get(f"images {w}", ())) for w in ("held back", "it knew")
        )
        return len(self._steps), yours, remembered

    @property
    def drawn(self) -> list[str]:
        """Names of the curves of Dice that are drawn."""
        return list(self._dice_lines)

    @property
    def rates(self) -> list[float]:
        """Learning rate of each step."""
        return list(self._rates)

    @property
    def has_steps(self) -> bool:
        """Whether there is a training step to see."""
        return bool(self._steps)

    def draw(self) -> None:
        """Draw all that is known; what is drawn already is left alone."""
        if self._total and self._total != self._drawn_total:
            self._loss_plot.setXRange(0, self._total, padding=0.02)
            self._drawn_total = self._total
        if self._has_new_steps:
            steps = _thinned(self._steps)
            self._raw.setData(steps, _thinned(self._losses))
            self._line.setData(steps, _thinned(self._smooth))
            self._rate_line.setData(steps, _thinned(self._rates))
        if self._has_new_dice:
            for name, points in self._dice.items():
                if name not in self._dice_lines:
                    self._dice_lines[name] = self._add_line(name)
                self._dice_lines[name].setData([p[0] for p in points], [p[1] for p in points])
        self._has_new_steps = self._has_new_dice = False

    def _forget_from(self, step: int) -> None:
        while self._steps and self._steps[-1] >= step:
            for values in (self._steps, self._losses, self._smooth, self._rates):
                values.pop()

    def _add_line(self, name: str) -> Any:
        own = {"images held back": YOURS, "images it knew": REMEMBERED}
        if name in own:
            return _dots(self._dice_plot, name, own[name])
        pen = pg.mkPen(self._colors.get(name, FOREGROUND), width=1.5, style=Qt.PenStyle.DashLine)
        return self._dice_plot.plot(name=name, pen=pen)


def _thinned(values: Sequence[float]) -> Any:
    """Return at most about :data:`MOST_POINTS` of the values, evenly; the last is among them."""
    array = np.asarray(values, np.float64)
    every = -(-len(array) // MOST_POINTS) or 1
    return array[::-1][::every][::-1]


def make_plot(title: str, legend_offset: tuple[int, int] | None, height: int) -> Any:
    """Return a plot in the window's colours that the mouse does not move."""
    plot = pg.PlotWidget(background=BACKGROUND)
    plot.setMenuEnabled(False)
    plot.setMouseEnabled(x=False, y=False)
    plot.hideButtons()
    plot.showGrid(x=True, y=True, alpha=0.2)
    if legend_offset is not None:
        plot.addLegend(offset=legend_offset, labelTextColor=FOREGROUND, labelTextSize="8pt")
    plot.setLabel("left", title)
    plot.setFixedHeight(height)
    for side in ("left", "bottom"):
        axis = plot.getAxis(side)
        axis.enableAutoSIPrefix(False)
        axis.setPen(FOREGROUND)
        axis.setTextPen(FOREGROUND)
        # Ticks, numbers and grid take longer to draw than any curve, and hardly ever change.
        axis.setCacheMode(QGraphicsItem.CacheMode.DeviceCoordinateCache)
    plot.getAxis("left").setWidth(64)
    return plot


def _dots(plot: Any, name: str, color: str) -> Any:
    return plot.plot(
        name=name,
        pen=pg.mkPen(color, width=2),
        symbol="o",
        symbolSize=6,
        symbolBrush=color,
        symbolPen=None,
    )

"""Live curves of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyqtgraph as pg
from qtpy.QtWidgets import QVBoxLayout, QWidget

from segdesk.jobs.messages import Stepped

BACKGROUND, FOREGROUND = "#262930", "#d1d2d4"
LOSS, SMOOTH = "#56b4e970", "#56b4e9"
YOURS, REMEMBERED = "#e69f00", "#cc79a7"

#: Weight of the newest loss in the smoothed curve.
SMOOTHING = 0.1


class Curves(QWidget):
    """Loss above, Dice on held-back and on remembered images below."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._smooth: list[float] = []
        self._yours: list[tuple[int, float]] = []
        self._remembered: list[tuple[int, float]] = []
        self._loss_plot = make_plot("Loss", legend_offset=(-4, 4), height=150)
        self._dice_plot = make_plot("Dice", legend_offset=(-4, -4), height=170)
        self._dice_plot.setYRange(0, 1)
        self._dice_plot.setXLink(self._loss_plot)
        self._raw = self._loss_plot.plot(name="each step", pen=pg.mkPen(LOSS, width=1))
        self._line = self._loss_plot.plot(name="smoothed", pen=pg.mkPen(SMOOTH, width=2))
        self._yours_line = _dots(self._dice_plot, "images held back", YOURS)
        self._remembered_line = _dots(self._dice_plot, "images it knew", REMEMBERED)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._loss_plot)
        column.addWidget(self._dice_plot)
        self._dice_plot.setLabel("bottom", "Training step")
        self._dice_plot.getAxis("bottom").setHeight(36)

    def clear(self) -> None:
        """Start anew."""
        for values in (self._steps, self._losses, self._smooth):
            values.clear()
        self._yours.clear()
        self._remembered.clear()
        self._draw()

    def add_steps(self, steps: Sequence[Stepped]) -> None:
        """Add training steps and repaint once."""
        for step in steps:
            last = self._smooth[-1] if self._smooth else step.loss
            self._steps.append(step.step)
            self._losses.append(step.loss)
            self._smooth.append(last + SMOOTHING * (step.loss - last))
        if steps:
            self._loss_plot.setXRange(0, steps[-1].total, padding=0.02)
        self._draw()

    def add_evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Add what the validation images came to; None means there are none."""
        remembered = scores.get("remembered") or {}
        for points, value in (
            (self._yours, scores.get("dice")),
            (self._remembered, remembered.get("dice")),
        ):
            if value is not None:
                points.append((step, float(value)))
        self._draw()

    @property
    def points(self) -> tuple[int, int, int]:
        """Number of points: steps, Dice of held-back images, of remembered ones."""
        return len(self._steps), len(self._yours), len(self._remembered)

    @property
    def has_steps(self) -> bool:
        """Whether there is a training step to see."""
        return bool(self._steps)

    def _draw(self) -> None:
        self._raw.setData(self._steps, self._losses)
        self._line.setData(self._steps, self._smooth)
        for line, points in (
            (self._yours_line, self._yours),
            (self._remembered_line, self._remembered),
        ):
            line.setData([p[0] for p in points], [p[1] for p in points])


def make_plot(title: str, legend_offset: tuple[int, int], height: int) -> Any:
    """Return a plot in the window's colours that the mouse does not move."""
    plot = pg.PlotWidget(background=BACKGROUND)
    plot.setMenuEnabled(False)
    plot.setMouseEnabled(x=False, y=False)
    plot.hideButtons()
    plot.showGrid(x=True, y=True, alpha=0.2)
    plot.addLegend(offset=legend_offset, labelTextColor=FOREGROUND, labelTextSize="8pt")
    plot.setLabel("left", title)
    plot.setFixedHeight(height)
    for side in ("left", "bottom"):
        axis = plot.getAxis(side)
        axis.enableAutoSIPrefix(False)
        axis.setPen(FOREGROUND)
        axis.setTextPen(FOREGROUND)
    plot.getAxis("left").setWidth(48)
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

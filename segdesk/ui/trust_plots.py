"""Right and wrong pixels by probability, and reliability: the pictures of the Trust panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyqtgraph as pg
from qtpy.QtCore import Signal
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import QBoxLayout, QVBoxLayout, QWidget

from segdesk.inference.findings import BAND, Findings
from segdesk.ui.plots import FOREGROUND, make_plot

if TYPE_CHECKING:
    import numpy.typing as npt

RIGHT, WRONG = "#56b4e9", "#e69f00"
BEFORE, AFTER, DIAGONAL = "#9aa0a6", "#56b4e9", "#6b7280"
BINS: Final = 50
#: Heights that are written at the side of a histogram, as shares of the pixels.
SHARES: Final = (0.01, 0.05, 0.2, 0.5, 1.0)
#: Two pictures stand side by side where each is at least so wide, in pixels.
WIDE_ENOUGH: Final = 300


class Pair(QWidget):
    """A picture, and a second one beside it, or below where there is no room."""

    def __init__(self, first: QWidget, second: QWidget) -> None:
        super().__init__()
        self._box = QBoxLayout(QBoxLayout.Direction.TopToBottom, self)
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.addWidget(first)
        self._box.addWidget(second)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Choose how the two stand."""
        is_wide = self.width() >= 2 * WIDE_ENOUGH
        kinds = QBoxLayout.Direction
        self._box.setDirection(kinds.LeftToRight if is_wide else kinds.TopToBottom)
        super().resizeEvent(event)


class Histogram(QWidget):
    """Right and wrong pixels of a model by a probability, and a band that can be moved."""

    band_changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.plot = make_plot("share of them", legend_offset=(0, 4), height=205)
        self.plot.setXRange(0, 1, padding=0.01)
        self.plot.setYRange(0, 1, padding=0.02)
        # Square roots, because the ends tower over the middle.
        ticks = [(float(np.sqrt(share)), f"{100 * share:g} %") for share in SHARES]
        self.plot.getAxis("left").setTicks([[(0.0, "0"), *ticks]])
        _make_room(self.plot)
        self.right = _steps(self.plot, "right pixels", RIGHT)
        self.wrong = _steps(self.plot, "wrong pixels", WRONG)
        self._centre_legend()
        self.region = pg.LinearRegionItem(
            BAND,
            bounds=(0, 1),
            brush=(255, 255, 255, 36),
            hoverBrush=(255, 255, 255, 60),
            pen=pg.mkPen(FOREGROUND, width=2),
            hoverPen=pg.mkPen("#ffffff", width=3),
        )
        self.region.lines[0].setBounds((0, 0.49))
        self.region.lines[1].setBounds((0.51, 1))
        self.plot.addItem(self.region)
        self.region.sigRegionChanged.connect(lambda: self.band_changed.emit())
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.plot)

    @property
    def band(self) -> tuple[float, float]:
        """The probabilities that count as near 0.5, to a hundredth."""
        low, high = self.region.getRegion()
        return round(float(low), 2), round(float(high), 2)

    def set_band(self, band: tuple[float, float]) -> None:
        """Move the band; says nothing of it."""
        self.region.blockSignals(True)
        self.region.setRegion(band)
        self.region.blockSignals(False)

    def show_counts(self, title: str, of: str, counts: npt.NDArray[np.int64]) -> None:
        """Show right and wrong pixels, int64 (2, bins), by the probability ``of`` something."""
        edges = np.linspace(0, 1, counts.shape[1] + 1)
        for curve, values in zip((self.right, self.wrong), counts, strict=True):
            curve.setData(edges, np.sqrt(values / max(1, int(values.sum()))))
        self.plot.setTitle(title, color=FOREGROUND, size="9pt")
        self.plot.setLabel("bottom", f"probability of {of}")

    def _centre_legend(self) -> None:
        # The pixels pile up at both ends.
        self.plot.getPlotItem().legend.anchor((0.5, 0), (0.5, 0), offset=(0, 2))


class Diagram(QWidget):
    """The share of right pixels against the probability the model gave them."""

    def __init__(self) -> None:
        super().__init__()
        self.plot = make_plot("share that is right", legend_offset=(-4, -4), height=205)
        self.plot.setXRange(0, 1, padding=0.02)
        self.plot.setYRange(0, 1, padding=0.02)
        self.plot.setLabel("bottom", "probability of the class chosen")
        _make_room(self.plot)
        dashes = pg.mkPen(DIAGONAL, width=1, style=pg.QtCore.Qt.PenStyle.DashLine)
        self.plot.plot([0, 1], [0, 1], pen=dashes)
        self.before = _line(self.plot, BEFORE, "t")
        self.after = _line(self.plot, AFTER, "o")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.plot)

    def show_findings(self, title: str, found: Findings) -> None:
        """Show it as the model is and, where it is known, after the temperature."""
        legend = self.plot.getPlotItem().legend
        legend.clear()
        for curve, name, counted, gap in (
            (self.before, "as it is", found.reliability, found.ece_before),
            (self.after, "with the temperature", found.after, found.ece_after),
        ):
            curve.setVisible(counted is not None)
            if counted is None or gap is None:
                continue
            is_filled = counted.count > 0
            curve.setData(counted.confidence[is_filled], counted.accuracy[is_filled])
            legend.addItem(curve, f"{name}: {100 * gap:.2f} points off")
        self.plot.setTitle(title, color=FOREGROUND, size="9pt")


def _make_room(plot: Any) -> None:
    # The title of the axis hangs over its edge.
    plot.getAxis("bottom").setHeight(38)
    plot.getPlotItem().layout.setContentsMargins(1, 1, 1, 7)


def _steps(plot: Any, name: str, color: str) -> Any:
    curve = pg.PlotCurveItem(
        np.array([0.0, 1.0]),
        np.array([0.0]),
        stepMode="center",
        fillLevel=0,
        brush=pg.mkBrush(f"{color}50"),
        pen=pg.mkPen(color, width=1.5),
        name=name,
    )
    plot.addItem(curve)
    return curve


def _line(plot: Any, color: str, symbol: str) -> Any:
    return plot.plot(
        pen=pg.mkPen(color, width=2),
        symbol=symbol,
        symbolSize=6,
        symbolBrush=color,
        symbolPen=None,
    )

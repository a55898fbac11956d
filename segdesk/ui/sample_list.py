"""The list of a project's images: model, order and look of an entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from qtpy.QtCore import (
    QAbstractListModel,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    QRect,
    QSize,
    QSortFilterProxyModel,
    Qt,
)
from qtpy.QtGui import QColor, QImage, QPainter, QPalette, QPixmap
from qtpy.QtWidgets import QListView, QStyle, QStyledItemDelegate, QStyleOptionViewItem

from segdesk.core.sample import Sample, Split, Status

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Index = QModelIndex | QPersistentModelIndex

SAMPLE_ROLE: Final = int(Qt.ItemDataRole.UserRole) + 1
THUMBNAIL: Final = 42
STATUS_COLORS: Final = {
    Status.NEW: "#6b7280",
    Status.PREDICTED: "#2f74b5",
    Status.CORRECTED: "#a8660a",
    Status.ACCEPTED: "#1f7a4f",
}
STATUS_WORDS: Final = {
    Status.NEW: "nothing is known of it yet",
    Status.PREDICTED: "shows what the model thinks",
    Status.CORRECTED: "you painted on it",
    Status.ACCEPTED: "you said that all of it is right",
}


class SampleListModel(QAbstractListModel):
    """Samples in the order they were added, with thumbnails that come when looked at.

    Parameters
    ----------
    ask_thumbnail
        Called once with each sample that comes into view; answered some time
        later by :meth:`set_thumbnail`.
    """

    def __init__(self, ask_thumbnail: Callable[[Sample], None], parent: QObject) -> None:
        super().__init__(parent)
        self._ask = ask_thumbnail
        self._samples: list[Sample] = []
        self._thumbnails: dict[str, QPixmap | None] = {}

    def set_samples(self, samples: list[Sample]) -> None:
        """Show other samples."""
        self.beginResetModel()
        self._samples = list(samples)
        known = {sample.id for sample in samples}
        self._thumbnails = {k: v for k, v in self._thumbnails.items() if k in known}
        self.endResetModel()

    def forget_thumbnails(self) -> None:
        """Start anew, for another project."""
        self._thumbnails.clear()

    def replace(self, sample: Sample) -> None:
        """Show a sample's new state."""
        row = self.row_of(sample.id)
        if row >= 0:
            self._samples[row] = sample
            self.dataChanged.emit(self.index(row), self.index(row))

    def row_of(self, sample_id: str) -> int:
        """Return a sample's row, -1 for one that is not listed."""
        return next((i for i, s in enumerate(self._samples) if s.id == sample_id), -1)

    def set_thumbnail(self, sample_id: str, pixels: npt.NDArray[np.uint8]) -> None:
        """Take a thumbnail, uint8 (h, w, 3)."""
        height, width, _ = pixels.shape
        data = pixels.tobytes()
        image = QImage(data, width, height, 3 * width, QImage.Format.Format_RGB888)
        self._thumbnails[sample_id] = QPixmap.fromImage(image)
        row = self.row_of(sample_id)
        if row >= 0:
            self.dataChanged.emit(self.index(row), self.index(row))

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008  Qt's
        """Return the number of samples."""
        return 0 if parent.isValid() else len(self._samples)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        """Return what Qt asks for."""
        sample = self._samples[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return sample.name
        if role == Qt.ItemDataRole.ToolTipRole:
            return describe(sample)
        if role == Qt.ItemDataRole.DecorationRole:
            return self._thumbnail(sample)
        return sample if role == SAMPLE_ROLE else None

    def _thumbnail(self, sample: Sample) -> QPixmap | None:
        if sample.id not in self._thumbnails:
            self._thumbnails[sample.id] = None
            self._ask(sample)
        return self._thumbnails[sample.id]


class SampleOrder(QSortFilterProxyModel):
    """Filters by name and status, sorts by name or by uncertainty."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._text = ""
        self._status: Status | None = None
        self._by_uncertainty = False
        self.setDynamicSortFilter(True)
        self.sort(0)

    def choose(self, text: str, status: Status | None, *, by_uncertainty: bool) -> None:
        """Filter by part of the name and status, and sort."""
        self._text, self._status = text.strip().lower(), status
        self._by_uncertainty = by_uncertainty
        self.invalidate()

    def filterAcceptsRow(self, row: int, parent: Index) -> bool:
        """Tell whether a row is shown."""
        sample = self._sample(self.sourceModel().index(row, 0, parent))
        return self._text in sample.name.lower() and self._status in (None, sample.status)

    def lessThan(self, left: Index, right: Index) -> bool:
        """Tell which row comes first."""
        return self._key(self._sample(left)) < self._key(self._sample(right))

    def _key(self, sample: Sample) -> tuple[float, str]:
        unsure = -1.0 if sample.score is None else sample.score
        return (-unsure if self._by_uncertainty else 0.0, sample.name.lower())

    def _sample(self, index: Index) -> Sample:
        sample = index.data(SAMPLE_ROLE)
        assert isinstance(sample, Sample)
        return sample


def describe(sample: Sample) -> str:
    """Say in words what an entry shows."""
    size = " x ".join(map(str, reversed(sample.shape)))
    lines = [f"<b>{sample.name}</b>", f"{size} pixels, {sample.channels} channel(s)"]
    lines.append(f"{sample.status}: {STATUS_WORDS[sample.status]}")
    if sample.score is not None:
        lines.append(f"The model is unsure of {sample.score:.1%} of its pixels.")
    if sample.split is Split.VALIDATION:
        lines.append("Held back to check the model: it is never learnt from.")
    return "<qt>" + "<br>".join(lines) + "</qt>"


class SampleListView(QListView):
    """A list that is content with little height."""

    def sizeHint(self) -> QSize:
        """Return a small size; the layout gives it what is left."""
        return QSize(220, 100)


class SampleDelegate(QStyledItemDelegate):
    """Draws thumbnail, name, status chip, *held back* badge and uncertainty."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        """Return the size of an entry."""
        return QSize(220, THUMBNAIL + 8)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Draw an entry."""
        sample = index.data(SAMPLE_ROLE)
        rectangle = option.rect
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if option.state & QStyle.StateFlag.State_Selected:
            painter.fillRect(rectangle, QColor("#34415c"))
        elif option.state & QStyle.StateFlag.State_MouseOver:
            painter.fillRect(rectangle, QColor(128, 128, 128, 60))
        box = QRect(rectangle.left() + 4, rectangle.top() + 4, THUMBNAIL, THUMBNAIL)
        _draw_thumbnail(painter, box, index.data(Qt.ItemDataRole.DecorationRole))
        left, right = box.right() + 8, rectangle.right() - 6
        pen = option.palette.color(QPalette.ColorRole.Text)
        painter.setPen(pen)
        metrics = painter.fontMetrics()
        line = QRect(left, rectangle.top() + 6, right - left, metrics.height())
        name = metrics.elidedText(sample.name, Qt.TextElideMode.ElideMiddle, line.width())
        painter.drawText(line, int(Qt.AlignmentFlag.AlignLeft), name)
        top = rectangle.bottom() - metrics.height() - 9
        x = _draw_chip(painter, left, top, sample.status.value, STATUS_COLORS[sample.status])
        if sample.split is Split.VALIDATION:
            x = _draw_chip(painter, x + 4, top, "held back", "#5b4b8a")
        if sample.score is not None:
            painter.setPen(pen)
            place = QRect(x, top, right - x, metrics.height() + 4)
            side = int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            painter.drawText(place, side, f"{sample.score:.1%} unsure")
        painter.restore()


def _draw_thumbnail(painter: QPainter, box: QRect, picture: object) -> None:
    if not isinstance(picture, QPixmap):
        painter.fillRect(box, QColor(128, 128, 128, 50))
        return
    scaled = picture.scaled(
        box.size(),
        Qt.AspectRatioMode.KeepAspectRatio,
        Qt.TransformationMode.SmoothTransformation,
    )
    x = box.left() + (box.width() - scaled.width()) // 2
    y = box.top() + (box.height() - scaled.height()) // 2
    painter.drawPixmap(x, y, scaled)


def _draw_chip(painter: QPainter, left: int, top: int, text: str, color: str) -> int:
    """Draw a word on a coloured pill; returns its right edge."""
    metrics = painter.fontMetrics()
    box = QRect(left, top, metrics.horizontalAdvance(text) + 12, metrics.height() + 4)
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(QColor(color))
    painter.drawRoundedRect(box, 6, 6)
    painter.setPen(QColor("white"))
    painter.drawText(box, int(Qt.AlignmentFlag.AlignCenter), text)
    return box.right()

"""Pictures that a run or a worker wrote, shown in the window."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QImage, QImageReader, QPixmap, QResizeEvent
from qtpy.QtWidgets import QLabel, QSizePolicy

if TYPE_CHECKING:
    from segdesk.ui.workbench import Workbench

#: Pictures are read no larger than this, in pixels.
LARGEST: Final = 512

#: Nor are they shown higher than this.
HIGHEST: Final = 240


class Picture(QLabel):
    """A picture from a file, as wide as there is room; none takes no room.

    Parameters
    ----------
    workbench
        Reads the file on one of its threads.
    name
        What it shows, for people who cannot see it.
    later
        Called when a picture has been read, to choose when :meth:`present` shows it; by
        default it is shown at once.
    """

    def __init__(
        self, workbench: Workbench, name: str, later: Callable[[], None] | None = None
    ) -> None:
        super().__init__()
        self._workbench = workbench
        self._later = later
        self._read: QImage | None = None
        self._pixmap = QPixmap()
        self._number = 0
        self.setAccessibleName(name)
        self.setAlignment(Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.hide()

    @property
    def shown(self) -> QPixmap:
        """What is shown, in the file's own size or :data:`LARGEST`."""
        return self._pixmap

    def show_file(self, path: Path) -> None:
        """Show a file soon; of several asked for at once, the last."""
        self._number += 1
        self._workbench.in_background(
            partial(read_picture, path), partial(self._take, self._number)
        )

    def clear_picture(self) -> None:
        """Show nothing."""
        self._number += 1
        self._pixmap, self._read = QPixmap(), None
        self.hide()

    def present(self) -> None:
        """Show what was read last."""
        if self._read is not None:
            self._pixmap, self._read = QPixmap.fromImage(self._read), None
            self.show()
            self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Scale the picture to the new width."""
        super().resizeEvent(event)
        if event.size().width() != event.oldSize().width():
            self._fit()

    def _take(self, number: int, image: QImage) -> None:
        if number == self._number and not image.isNull():
            self._read = image
            if self._later is not None:
                self._later()
            else:
                self.present()

    def _fit(self) -> None:
        if self._pixmap.isNull() or self.width() < 2:
            return
        scaled = self._pixmap.scaled(
            QSize(self.width(), HIGHEST),
            Qt.AspectRatioMode.KeepAspectRatio,
            Qt.TransformationMode.SmoothTransformation,
        )
        self.setFixedHeight(scaled.height())
        self.setPixmap(scaled)


def read_picture(path: Path) -> QImage:
    """Read a picture, scaled down to :data:`LARGEST`; a null image if it cannot be read.

    Any thread may; a preview may have been replaced by the next while it is read.
    """
    reader = QImageReader(str(path))
    size = reader.size()
    if max(size.width(), size.height()) > LARGEST:
        reader.setScaledSize(
            size.scaled(QSize(LARGEST, LARGEST), Qt.AspectRatioMode.KeepAspectRatio)
        )
    return reader.read()

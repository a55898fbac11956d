"""The app, painting by itself while it trains: to be killed at any moment.

Prints what is safe by then: ``stroke SAMPLE N`` and ``accepted SAMPLE N``.
Stroke N paints the block that :func:`block` says.
"""

from __future__ import annotations

import sys
from pathlib import Path

from segdesk.config.training import TrainingConfig

BLOCK = 6
PER_ROW = 40


def block(number: int) -> tuple[slice, slice, int]:
    """Return rows, columns and label of stroke ``number``, counted over all starts."""
    y, x = divmod(number % (PER_ROW * PER_ROW), PER_ROW)
    return slice(y * BLOCK, y * BLOCK + BLOCK), slice(x * BLOCK, x * BLOCK + BLOCK), number % 2


def main(project: Path, first: int, sample_id: str) -> None:
    """Open the window on ``project`` and paint until killed."""
    from napari.qt import get_qapp
    from qtpy.QtCore import QTimer

    from segdesk.app.window import DesktopWindow
    from segdesk.session import training

    application = get_qapp()
    window = DesktopWindow()
    window.open_project(project)
    number = first

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def paint() -> None:
        nonlocal number
        correction = window.workbench.current_correction
        session = window.workbench.session
        if correction is None or session is None or window.workbench.current_sample_id != sample_id:
            return
        rows, columns, label = block(number)
        layer = window.viewer.layers["Labels"]
        layer.brush_size = BLOCK
        for y in range(rows.start, rows.stop):
            layer.data[y, columns] = label
        correction.stroke((rows.start, columns.start), layer.data[rows, columns].copy(), "paint")
        layer.refresh()
        say(f"stroke {sample_id} {number}")
        number += 1
        if number % 25 == 0:
            correction.accept()
            say(f"accepted {sample_id} {number}")
        if not session.jobs:
            config = TrainingConfig(steps=1000, batch_size=2, crop_size=64, evaluate_every=5)
            training.start(session, config)

    window.workbench.show_sample(sample_id)
    timer = QTimer()
    timer.timeout.connect(paint)
    timer.start(10)
    application.exec()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

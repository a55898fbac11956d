"""The app, painting by itself while it trains: to be killed at any moment.

Prints what is safe by then: ``stroke SAMPLE N`` and ``accepted SAMPLE N``.
Stroke N paints the block that :func:`block` says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from segdesk.app.window import DesktopWindow
from segdesk.config.training import TrainingConfig
from segdesk.session import training

CONFIG = TrainingConfig(steps=1000, batch_size=2, crop_size=64, evaluate_every=5)
BLOCK = 6
PER_ROW = 40


def block(number: int) -> tuple[slice, slice, int]:
    """Return rows, columns and label of stroke ``number``, counted over all starts."""
    y, x = divmod(number % (PER_ROW * PER_ROW), PER_ROW)
    return slice(y * BLOCK, y * BLOCK + BLOCK), slice(x * BLOCK, x * BLOCK + BLOCK), number % 2


def main(project: Path, first: int, sample_id: str) -> None:
    """Open the window on ``project`` and paint until killed."""
    # Only in the process of its own: the test that starts it looks up what block() says.
    from driven import drive, say

    def begin(window: DesktopWindow) -> Callable[[], bool]:
        number = first

        def paint() -> bool:
            nonlocal number
            correction = window.workbench.current_correction
            session = window.workbench.session
            is_shown = window.workbench.current_sample_id == sample_id
            if correction is None or session is None or not is_shown:
                return False
            rows, columns, label = block(number)
            layer = window.viewer.layers["Labels"]
            layer.brush_size = BLOCK
            for y in range(rows.start, rows.stop):
                layer.data[y, columns] = label
            pixels = layer.data[rows, columns].copy()
            correction.stroke((rows.start, columns.start), pixels, "paint")
            layer.refresh()
            say(f"stroke {sample_id} {number}")
            number += 1
            if number % 25 == 0:
                correction.accept()
                say(f"accepted {sample_id} {number}")
            if not session.jobs:
                training.start(session, CONFIG)
            return False

        window.workbench.show_sample(sample_id)
        return paint

    drive(project, 10, begin)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

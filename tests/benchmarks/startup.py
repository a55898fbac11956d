"""Start of the app against plain napari: process to drawn window, side by side.

    xvfb-run -a -s "-screen 0 1600x1000x24" python tests/benchmarks/startup.py

Starts the two in turn and prints the median of each and of the ratios.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 7

#: Both leave once their window was painted: the timer fires after the first events.
PLAIN = """
import napari
from qtpy.QtCore import QTimer
viewer = napari.Viewer()
QTimer.singleShot(0, viewer.close)
napari.run()
"""
OURS = """
from qtpy.QtCore import QTimer
import segdesk.app.window as module
class Window(module.DesktopWindow):
    def __init__(self):
        super().__init__()
        QTimer.singleShot(0, self.main.close)
module.DesktopWindow = Window
from segdesk.app.main import run_app
run_app()
"""


def seconds(script: str, environment: dict[str, str]) -> float:
    """Return how long a start takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, stderr=-3)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "SEGDESK_HOME": home,
            "NAPARI_CONFIG": os.path.join(home, "napari.yaml"),
        }
        for script in (PLAIN, OURS):
            seconds(script, environment)
        pairs = [(seconds(PLAIN, environment), seconds(OURS, environment)) for _ in range(ROUNDS)]
    plain, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    sys.stdout.write(f"plain napari {plain:.2f} s, SegDesk {ours:.2f} s, ratio {ratio:.2f}\n")


if __name__ == "__main__":
    main()

"""Make the pictures of the guide from the real window, doing the real job.

xvfb-run -a -s "-screen 0 1600x1000x24" python docs/make_screenshots.py
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "images"
POLL_MS = 100
#: The run under way is shown after so many steps.
LOOK_AT = 60


def main() -> None:
    """Drive the window through the main job, grabbing it on the way."""
    from napari.qt import get_qapp
    from PIL import Image
    from qtpy.QtCore import QEventLoop, QTimer

    from segdesk.app.window import DesktopWindow
    from segdesk.core.run import RunState
    from segdesk.core.sample import Split
    from segdesk.io.masks import read_mask
    from segdesk.session.correcting import Correction
    from segdesk.session.sample_project import sample_images
    from segdesk.ui.panels.train import PATIENCE

    application = get_qapp()
    window = DesktopWindow()
    window.main.resize(1500, 940)

    def wait(condition: Callable[[], bool]) -> None:
        loop = QEventLoop()
        timer = QTimer()
        timer.timeout.connect(lambda: loop.quit() if condition() else None)
        timer.start(POLL_MS)
        loop.exec()
        timer.stop()

    def pause(milliseconds: int) -> None:
        loop = QEventLoop()
        QTimer.singleShot(milliseconds, loop.quit)
        loop.exec()

    def grab(name: str) -> None:
        pause(800)
        file = TARGET / f"{name}.png"
        window.main.grab().save(str(file))
        # 256 colours take a third of the space, and the repository keeps every picture for good.
        # Chosen to cover all that occur: by how often, thin lines would lose theirs.
        few = (
            Image.open(file)
            .convert("RGB")
            .quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        )
        few.save(file, optimize=True)

    pause(1500)
    grab("start")
    window.open_sample()
    session = window.workbench.session
    assert session is not None
    wait(lambda: window.workbench.current_correction is not None)
    window.workbench.predict([s.id for s in session.store.samples()])
    wait(lambda: not session.jobs)
    window.workbench.show_sample("fluorescence-04")
    wait(lambda: window.workbench.current_correction is not None)
    window.workbench.raise_panel("Predict")
    grab("predict")

    window.workbench.show_sample("stained-01")
    wait(lambda: window.workbench.current_correction is not None)
    layer = window.viewer.layers["Labels"]
    window.viewer.layers.selection.active = layer
    layer.mode = "paint"
    layer.brush_size = 16
    for y, x in ((60, 60), (90, 140), (150, 220)):
        layer.paint((y, x), 1)
    window.workbench.raise_panel("Correct")
    grab("correct")

    names = {
        image.name
        for image in sample_images()
        if image.role == "correct" or image.split is Split.VALIDATION
    }
    for sample in session.store.samples():
        if sample.path.stem in names and sample.reference is not None:
            truth = read_mask(sample.reference, session.store.classes, sample.shape).labels
            correction = Correction(session, sample)
            correction.replace(truth, "reference")
            correction.accept()
    window.workbench.show_sample("stained-07")
    wait(lambda: window.workbench.current_correction is not None)
    window.workbench.raise_panel("Train")
    wait(lambda: bool(session.architectures))
    train: Any = window.workbench.panels["Train"]
    train.origin.choice.setCurrentIndex(train.origin.choice.findData("deeplab-v3plus"))
    pause(2 * PATIENCE)  # the look at the project begins once nothing has changed for so long
    wait(lambda: not train.checks.is_asking)
    grab("new-model")
    train.origin.choice.setCurrentIndex(0)
    wait(lambda: len(train.estimates.words) > 1 and not session.jobs)
    train.start.click()
    wait(lambda: not train.preview.shown.isNull() and train.curves.points[0] > LOOK_AT)
    train.ensureWidgetVisible(train.curves)
    grab("training")
    wait(lambda: session.store.runs()[-1].state is not RunState.RUNNING)
    train.use.click()
    pause(500)
    wait(lambda: not session.jobs)
    grab("train")
    compare: Any = window.workbench.panels["Compare"]
    window.workbench.raise_panel("Compare")
    pause(500)
    compare.compare.click()
    wait(lambda: bool(compare.rows.rowCount()))
    window.workbench.show_sample("stained-03")
    wait(lambda: "Changes" in window.viewer.layers)
    grab("compare")
    window.workbench.predict([s.id for s in session.store.samples()])
    wait(lambda: not session.jobs)
    trust: Any = window.workbench.panels["Trust"]
    window.workbench.raise_panel("Trust")
    trust.scope.setCurrentIndex(1)
    trust.scope.activated.emit(1)
    wait(lambda: f"{len(names)} images" in trust.summary.text())
    grab("trust")
    window.main.close()
    application.processEvents()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["SEGDESK_HOME"] = home
        os.environ["NAPARI_CONFIG"] = str(Path(home) / "napari.yaml")
        TARGET.mkdir(exist_ok=True)
        main()

"""New models of every architecture, started, used and left from the Train panel."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from pytestqt.qtbot import QtBot

from segdesk.app.window import DesktopWindow
from segdesk.config.training import TrainingConfig
from segdesk.core.run import RunState
from segdesk.core.sample import Split
from segdesk.jobs.messages import Stepped
from segdesk.session.models import current_model
from tests.app.test_window import (
    click,
    open_sample,
    panels_of,
    predict_current,
    run_now,
    show,
    start_run,
)


@pytest.mark.slow
def test_a_new_model_learns_and_predicts_in_the_window(window: DesktopWindow, qtbot: QtBot) -> None:
    session = open_sample(window, qtbot)
    qtbot.waitUntil(lambda: len(session.architectures) >= 19, timeout=60_000)
    train = panels_of(window)[2]
    samples = session.store.samples()
    held = next(s.id for s in samples if s.split is Split.VALIDATION)
    known_kind = [s.id for s in samples if s.id.startswith("fluorescence") and s.id != held][:2]
    for sample_id in (*known_kind, held):
        # What the bundled model says is accepted: labels as a user would have them.
        show(window, qtbot, sample_id)
        predict_current(window, qtbot, session)
        qtbot.waitUntil(lambda: "Uncertainty" in window.viewer.layers, timeout=20_000)
        assert window.workbench.current_correction is not None
        window.workbench.current_correction.accept()
    for name in [a.name for a in session.architectures]:
        steps: list[Stepped] = []
        session.events.run_stepped.connect(steps.append)
        train.origin.choice.setCurrentIndex(train.origin.choice.findData(name))
        side = 224 if name == "deconvnet" else 64
        train.form.set_value(
            TrainingConfig(
                steps=20, batch_size=2, crop_size=side, augment="none", evaluate_every=20
            )
        )
        run = start_run(window, qtbot, session)
        qtbot.waitUntil(lambda: run_now(session, run).state.is_terminal, timeout=240_000)  # noqa: B023
        ended = run_now(session, run)
        assert (ended.state, ended.reason) == (RunState.COMPLETED, ""), name
        losses = [step.loss for step in steps]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]), name
        session.events.run_stepped.disconnect(steps.append)
        click(window, qtbot, "Train", train.use)
        used = current_model(session.store)
        assert used is not None
        assert used.name == ended.new_model == f"{name}-r1"
        assert used.card.architecture == name
        # Using it predicts the image on screen.
        qtbot.waitUntil(
            lambda: session.store.prediction(held, f"{name}-r1") is not None,  # noqa: B023
            timeout=120_000,
        )
        # Saved, loaded again by another process, it says what it said when it was judged.
        made, truth = session.store.prediction(held, used.name), session.store.annotation(held)
        assert made is not None
        assert truth is not None
        found, true = tifffile.imread(made.labels_path) == 1, truth.labels == 1
        dice = 2 * (found & true).sum() / (found.sum() + true.sum())
        assert ended.after is not None
        [judged] = [entry["dice"] for entry in ended.after["per_image"]]
        assert dice == pytest.approx(judged, abs=1e-3), name

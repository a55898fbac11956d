"""Round after round in one window: nothing grows but the project."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from pytestqt.qtbot import QtBot

from segdesk.app.window import DesktopWindow
from segdesk.config.training import TrainingConfig
from segdesk.core.classes import ClassMap
from segdesk.core.round import Round
from segdesk.core.run import RunState
from segdesk.core.sample import Split
from segdesk.core.verdict import judge
from segdesk.io.masks import read_mask
from segdesk.io.rounds import read_round
from segdesk.io.store import ProjectStore
from segdesk.session import training
from segdesk.session.correcting import Correction
from segdesk.session.models import current_model, use_model
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session

ROUNDS = 10
HELD_BACK = 5
CONFIG = TrainingConfig(
    steps=3, batch_size=2, crop_size=32, evaluate_every=3, device="cpu", learning_rate=1e-2
)


@dataclass(frozen=True)
class Use:
    """What the window's process holds on to."""

    threads: int
    files: int
    processes: int
    megabytes: float

    @classmethod
    def now(cls) -> Use:
        gc.collect()
        own = psutil.Process()
        files = own.num_fds() if hasattr(own, "num_fds") else own.num_handles()
        children = [c for c in own.children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE]
        return cls(threading.active_count(), files, len(children), own.memory_info().rss / 2**20)


@pytest.fixture
def project(
    tmp_path: Path, disc_files: Callable[..., list[Path]], make_model: Callable[..., Path]
) -> Path:
    """Fifteen images, five of them held back and labelled, and a tiny model."""
    folder = tmp_path / "rounds.segdesk"
    paths = disc_files(ROUNDS + HELD_BACK)
    with ProjectStore.create(folder, ClassMap.from_names(["background", "nucleus"])) as store:
        session = Session(store)
        splits = [Split.VALIDATION] * HELD_BACK + [Split.TRAIN] * ROUNDS
        masks = [tmp_path / "masks" / path.name for path in paths]
        add_images(
            session,
            [
                NewImage(path, split=split, reference=mask)
                for path, split, mask in zip(paths, splits, masks, strict=True)
            ],
        )
        for sample in store.samples()[:HELD_BACK]:
            correct(session, sample.id)
        make_model(folder / "models" / "tiny")
        use_model(session, "tiny")
    return folder


def correct(session: Session, sample_id: str) -> None:
    sample = session.store.sample(sample_id)
    assert sample.reference is not None
    correction = Correction(session, sample)
    truth = read_mask(sample.reference, session.store.classes, sample.shape).labels
    correction.replace(truth, "reference")
    correction.accept()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_rounds_leave_nothing_behind_and_every_verdict_can_be_recomputed(
    window: DesktopWindow, qtbot: QtBot, project: Path
) -> None:
    window.open_project(project)
    session = window.workbench.session
    assert session is not None
    uses: list[Use] = []
    for number in range(ROUNDS):
        correct(session, session.store.samples()[HELD_BACK + number].id)
        run = training.start(session, CONFIG)

        def ended(run_id: str = run.id) -> bool:
            return next(r for r in session.store.runs() if r.id == run_id).state.is_terminal

        qtbot.waitUntil(ended, timeout=180_000)
        run = session.store.runs()[-1]
        assert run.state is RunState.COMPLETED, run.reason
        use_model(session, run.new_model)
        shown = session.store.samples()[HELD_BACK + number].id
        window.workbench.show_sample(shown)
        window.workbench.predict([shown])

        def predicted(sample: str = shown, model: str = run.new_model) -> bool:
            return session.store.prediction(sample, model) is not None

        qtbot.waitUntil(predicted, timeout=60_000)
        # The run's process is on its way out when its last word is heard.
        qtbot.waitUntil(lambda: Use.now().processes <= 1, timeout=30_000)
        uses.append(Use.now())
    early, late = uses[1], uses[-1]
    assert (late.threads, late.processes) == (early.threads, early.processes)
    assert late.files <= early.files + 2
    assert late.megabytes < early.megabytes * 1.1 + 20
    used = current_model(session.store)
    assert used is not None
    assert used.name == f"tiny-r{ROUNDS}"
    rounds = [read_round(run.folder) for run in session.store.runs()]
    assert [len(trained(r)) for r in rounds] == list(range(1, ROUNDS + 1))
    held_back = {tuple(sorted(held(r))) for r in rounds}
    assert len(held_back) == 1  # validation never moves
    for run, entry in zip(session.store.runs(), rounds, strict=True):
        assert entry is not None
        again = judge(entry.before, entry.after)
        assert (entry.verdict, entry.interval) == (again.judgement, again.interval)
        assert again == judge(run.before, run.after)
        curve = [loss for loss in entry.losses if np.isfinite(loss)]
        assert len(curve) == CONFIG.steps


def trained(entry: Round | None) -> list[str]:
    assert entry is not None
    return [i.id for i in entry.inputs if i.split is Split.TRAIN]


def held(entry: Round | None) -> list[str]:
    assert entry is not None
    return [i.id for i in entry.inputs if i.split is Split.VALIDATION]

"""``kill -9`` of the app while a run goes on, and again while it is resumed."""

from __future__ import annotations

import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from segdesk.core.classes import ClassMap
from segdesk.core.run import RunState
from segdesk.core.sample import Split
from segdesk.core.verdict import judge
from segdesk.io.masks import read_mask
from segdesk.io.rounds import read_round
from segdesk.io.store import ProjectStore
from segdesk.jobs.following import read_events
from segdesk.jobs.messages import Finished, Stepped
from segdesk.session.correcting import Correction
from segdesk.session.models import list_models, use_model
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session

KILLS = 3
STEPS = 300
#: For what a loaded machine may take long over; reached only when something is wrong.
PATIENCE = 240.0
SCRIPT = Path(__file__).with_name("train_and_resume.py")


@pytest.fixture
def project(
    tmp_path: Path, disc_files: Callable[..., list[Path]], make_model: Callable[..., Path]
) -> Path:
    """Four labelled images, two of them held back, and a tiny model."""
    folder = tmp_path / "p.segdesk"
    paths = disc_files(4)
    with ProjectStore.create(folder, ClassMap.from_names(["background", "nucleus"])) as store:
        session = Session(store)
        for number, path in enumerate(paths):
            split = Split.VALIDATION if number < 2 else Split.TRAIN
            mask = tmp_path / "masks" / path.name
            (sample,) = add_images(session, [NewImage(path, mask, split)]).samples
            correction = Correction(session, sample)
            correction.replace(read_mask(mask, store.classes, sample.shape).labels, "reference")
            correction.accept()
        make_model(folder / "models" / "tiny")
        use_model(session, "tiny")
    return folder


def steps_of(project: Path) -> list[int]:
    """Return the steps of the project's run, as its journal has them."""
    runs = list((project / "runs").glob("*"))
    return [e.step for e in read_events(runs[0]) if isinstance(e, Stepped)] if runs else []


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def run_app(project: Path, seconds: float | None, *, with_training: bool = False) -> list[str]:
    """Run the app and kill it ``seconds`` after the run's next step; return what it said.

    Without ``seconds`` it goes on to its end. ``with_training`` kills its processes too, as
    when a machine goes down.
    """
    before = len(steps_of(project))
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(project)], stdout=subprocess.PIPE, text=True
    )
    said: queue.Queue[str] = queue.Queue()
    out = process.stdout
    assert out is not None
    reader = threading.Thread(target=lambda: [said.put(line.strip()) for line in out])
    reader.start()
    family: list[psutil.Process] = []
    try:
        if seconds is None:
            process.wait(PATIENCE)
        else:
            deadline = time.monotonic() + PATIENCE
            while len(steps_of(project)) <= before:
                assert process.poll() is None, "the app ended by itself"
                assert time.monotonic() < deadline, "the run made no step"
                time.sleep(0.05)
            time.sleep(seconds)  # the random moment itself
            family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        for child in family if with_training else ():
            child.kill()
        process.wait()
        reader.join()
        out.close()
    assert gone([child.pid for child in family]), "a worker process outlived the app"
    words = ("began", "found", "resumed", "ended")
    return [line for line in said.queue if line.startswith(words)]  # napari prints warnings too


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_is_found_and_resumed_however_often_the_app_is_killed(project: Path) -> None:
    chance = random.Random(0)
    for number in range(KILLS):
        furthest = max(steps_of(project), default=0)
        said = run_app(project, chance.uniform(0.0, 0.5), with_training=number % 2 == 1)
        if number:
            assert said[0] in ("found canceled", "found crashed")
            assert said[1] == "resumed"
        else:
            assert said == ["began"]
        assert max(steps_of(project)) > furthest
        with ProjectStore.open(project) as store:  # the lock is free, and nothing is lost
            (run,) = store.runs()
            assert all(store.annotation(s.id) is not None for s in store.samples())
            assert not run.state.is_terminal  # nobody was left to write it down
    said = run_app(project, None)
    assert said[-1] == "ended completed"
    with ProjectStore.open(project) as store:
        (run,) = store.runs()
        assert run.state is RunState.COMPLETED
        assert run.new_model in [entry.name for entry in list_models(store)]
    # The round is as if it had been made in one go.
    entry = read_round(run.folder)
    assert entry is not None
    assert entry.state is RunState.COMPLETED
    assert list(entry.steps) == list(range(1, STEPS + 1))
    assert len(entry.losses) == STEPS
    again = judge(run.before, run.after)
    assert (entry.verdict, entry.interval) == (again.judgement, again.interval)
    assert [i.split for i in entry.inputs].count(Split.VALIDATION) == 2
    ends = [e for e in read_events(run.folder) if isinstance(e, Finished)]
    assert [e.state for e in ends] == [RunState.COMPLETED]

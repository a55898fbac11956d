"""``kill -9`` of the app at random moments: nothing accepted or painted is lost."""

from __future__ import annotations

import importlib.util
import queue
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest

from segdesk.core.annotation import Supervision
from segdesk.io.store import ProjectStore
from segdesk.session.correcting import Correction
from segdesk.session.sample_project import make_sample_project

KILLS = 20
#: Every so many, the moment is taken after a model has begun to learn, however slow the machine.
LEARNING = 4
#: For what a loaded machine may take long over; reached only when something is wrong.
PATIENCE = 240.0
SAMPLE = "fluorescence-01"
SCRIPT = Path(__file__).with_name("paint_and_train.py")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paint_and_train", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def has_stepped(run: Path) -> bool:
    journal = run / "events.jsonl"
    return journal.is_file() and '"event":"step"' in journal.read_text("utf-8")


def paint_until_killed(
    folder: Path, first: int, seconds: float, is_learning: bool
) -> tuple[list[str], list[int]]:
    """Run the app and kill it ``seconds`` after its first stroke; return its lines and pids.

    With ``is_learning`` they count from a run's first step, if that comes later.
    """
    runs = folder / "runs"
    earlier = set(runs.glob("*"))
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(first), SAMPLE],
        stdout=subprocess.PIPE,
        text=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    out = process.stdout
    assert out is not None
    reader = threading.Thread(target=lambda: [lines.put(line.strip()) for line in out])
    reader.start()
    family = [process.pid]
    try:
        seen = [lines.get(timeout=PATIENCE)]
        while not seen[-1].startswith("stroke"):
            seen.append(lines.get(timeout=PATIENCE))
        deadline = time.monotonic() + PATIENCE
        while is_learning and not any(map(has_stepped, set(runs.glob("*")) - earlier)):
            assert process.poll() is None, "the app ended by itself"
            assert time.monotonic() < deadline, "no run came to its first step"
            time.sleep(0.05)
        time.sleep(seconds)  # the random moment itself
        family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    finally:
        process.kill()
        process.wait()
        reader.join()
        out.close()
    while not lines.empty():
        seen.append(lines.get())
    return seen, family


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_lose_no_finished_stroke_and_leave_no_process(tmp_path: Path) -> None:
    script = load_script()
    session = make_sample_project(tmp_path / "kill")
    folder = session.store.folder
    correction = Correction(session, session.store.sample("stained-01"))
    correction.replace(np.ones_like(correction.annotation.labels), "reference")
    correction.accept()
    session.close()
    chance = random.Random(0)
    painted = 0
    for number in range(KILLS):
        is_learning = number % LEARNING == 0
        seconds = chance.uniform(0.0, 1.0 if is_learning else 3.0)
        seen, family = paint_until_killed(folder, painted, seconds, is_learning)
        strokes = [int(line.split()[2]) for line in seen if line.startswith("stroke")]
        accepted = [line for line in seen if line.startswith("accepted")]
        # A run has ten seconds to write a checkpoint.
        assert gone(family, 40), "a worker process outlived the app"
        with ProjectStore.open(folder) as store:
            annotation = store.annotation(SAMPLE)
            assert annotation is not None
            for stroke in strokes:
                rows, columns, label = script.block(stroke)
                assert (annotation.labels[rows, columns] == label).all(), stroke
                # A block that held its label already is confirmed by accepting only.
            if accepted:
                last = int(accepted[-1].split()[2])
                assert last <= strokes[-1] + 1
                assert (annotation.supervision != Supervision.UNSEEN).all()
        painted = max(strokes) + 2  # the stroke in hand may be there or not
    assert painted > KILLS
    stepped = [run for run in (folder / "runs").iterdir() if has_stepped(run)]
    assert len(stepped) >= KILLS // LEARNING, "no kill came while a model was learning"

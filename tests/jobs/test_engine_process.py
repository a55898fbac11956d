"""The engine process for real: one is started and asked for everything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile

from segdesk.config.inference import InferenceConfig
from segdesk.core.run import RunState
from segdesk.jobs.messages import (
    Finished,
    PredictionReady,
    PredictOrder,
    Progressed,
    Ready,
)
from segdesk.jobs.worker import WorkerProcess

SMALL = InferenceConfig(tile_size=64, overlap=16, device="cpu")


@pytest.fixture
def order(tmp_path: Path, make_model: Callable[..., Path]) -> Callable[..., PredictOrder]:
    make_model(tmp_path / "m")

    def make(job: str, image: Path, sample: str = "", out: str = "") -> PredictOrder:
        return PredictOrder(
            job=job, sample=sample or job, image=image, image_sha256="", model="m",
            model_folder=tmp_path / "m", classes=("background", "nucleus"),
            out=tmp_path / "out" / (out or job), config=SMALL,
        )  # fmt: skip

    return make


def write_image(path: Path, side: int) -> Path:
    data = np.random.default_rng(0).integers(0, 250, (side, side)).astype(np.uint8)
    tifffile.imwrite(path, data, photometric="minisblack")
    return path


def ended(ear: Any, job: str) -> Finished:
    return ear.wait_for(lambda e: isinstance(e, Finished) and e.job == job)


def test_a_day_in_the_life_of_an_engine(
    start: Callable[..., WorkerProcess], ear: Any, order: Callable[..., PredictOrder],
    tmp_path: Path, wait_until: Callable[..., None],
) -> None:  # fmt: skip
    small = write_image(tmp_path / "small.tif", 60)
    large = write_image(tmp_path / "large.tif", 1200)
    broken = tmp_path / "broken.tif"
    broken.write_bytes(small.read_bytes()[:300])
    engine = start("-m", "segdesk.inference", str(tmp_path / "log.txt"), job="")

    def give(job: str, image: Path, **more: str) -> None:
        engine.give(job, order(job, image, **more))

    ready = ear.wait_for(lambda e: isinstance(e, Ready))
    assert ready.device in ("cpu", "cuda", "mps")

    give("first", small)
    assert ended(ear, "first").state is RunState.COMPLETED
    assert [e.folder for e in ear.events if isinstance(e, PredictionReady)] == [
        tmp_path / "out" / "first"
    ]
    assert tifffile.imread(tmp_path / "out" / "first" / "labels.tif").shape == (60, 60)

    give("broken", broken)
    end = ended(ear, "broken")
    assert end.state is RunState.FAILED
    assert "broken.tif is damaged" in end.reason

    give("long", large)
    ear.wait_for(lambda e: isinstance(e, Progressed) and e.job == "long" and e.done > 2)
    engine.cancel("long")
    assert ended(ear, "long").state is RunState.CANCELED
    assert not (tmp_path / "out" / "long").exists()

    give("older", large, sample="same")
    ear.wait_for(lambda e: isinstance(e, Progressed) and e.job == "older")
    give("another", small)
    give("newer", small, sample="same")
    assert ended(ear, "older").state is RunState.CANCELED
    assert ended(ear, "another").state is RunState.COMPLETED
    assert ended(ear, "newer").state is RunState.COMPLETED

    give("last", large)
    ear.wait_for(lambda e: isinstance(e, Progressed) and e.job == "last")
    engine.close_input()
    wait_until(lambda: ear.ended, 15, "the engine's end")
    assert ear.finished("last")[0].state is RunState.CANCELED
    for job in ("first", "broken", "long", "older", "another", "newer", "last"):
        assert len(ear.finished(job)) == 1, job
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["another", "first", "newer"]


def test_closed_while_it_loads_an_engine_leaves_before_it_is_ready(
    start: Callable[..., WorkerProcess], ear: Any, tmp_path: Path
) -> None:
    """Whoever opens a project and closes it again need not wait for torch."""
    engine = start("-m", "segdesk.inference", str(tmp_path / "log.txt"), job="")
    engine.close(60)
    assert ear.ended == 1
    assert not any(isinstance(event, Ready) for event in ear.events)
    assert (tmp_path / "log.txt").read_text("utf-8") == ""


#: An app in small: starts an engine, and says when it is ready.
PARENT = """
import sys
from segdesk.jobs.messages import Ready
from segdesk.jobs.worker import WorkerProcess
def hear(event):
    if isinstance(event, Ready):
        print(worker.pid, flush=True)
worker = WorkerProcess(("-m", "segdesk.inference", sys.argv[1]), name="prediction", on_event=hear)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_a_killed_parent_leaves_no_engine_behind(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log.txt")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    assert engine.is_running()
    parent.kill()
    parent.communicate()
    wait_until(
        lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE,
        10,
        "the engine's end",
    )

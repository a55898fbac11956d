"""``python -m segdesk.training RUN_DIR`` for real."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from segdesk.core.run import RunState
from segdesk.jobs.messages import EVENT, AnyEvent, CancelOrder, Evaluated, Finished, Stepped
from segdesk.nn.weights import load_model


def child(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "segdesk.training", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def listen(process: subprocess.Popen[str], until: type[AnyEvent] | None = None) -> list[AnyEvent]:
    """Read events up to the first of a kind, or to the end. Every line must be one."""
    assert process.stdout is not None
    heard: list[AnyEvent] = []
    for line in process.stdout:
        heard.append(EVENT.validate_json(line))
        if until is not None and isinstance(heard[-1], until):
            break
    return heard


def test_a_run_says_what_it_does_and_leaves_a_model(
    tmp_path: Path, new_run: Callable[..., Path], make_model: Callable[..., Path]
) -> None:
    folder = new_run("r", make_model(tmp_path / "m"))
    with child(folder) as process:
        events = listen(process)
    assert process.returncode == 0
    kinds = [type(e) for e in events if isinstance(e, Stepped | Evaluated | Finished)]
    assert kinds == [Evaluated, Stepped, Stepped, Stepped, Evaluated, Finished]
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.job, end.state) == ("r", RunState.COMPLETED)
    assert end.result["model"] == "r-model"
    assert load_model(folder / "model").card.base_model == "m"
    assert (folder / "log.txt").is_file()


def test_a_cancel_order_ends_it_with_a_checkpoint(
    tmp_path: Path, new_run: Callable[..., Path], make_model: Callable[..., Path]
) -> None:
    folder = new_run("r", make_model(tmp_path / "m"), steps=100_000)
    with child(folder) as process:
        assert process.stdin is not None
        listen(process, Stepped)
        process.stdin.write(CancelOrder(job="r").model_dump_json() + "\n")
        rest = listen(process)
    ends = [e for e in rest if isinstance(e, Finished)]
    assert [e.state for e in ends] == [RunState.CANCELED]
    load_file(folder / "checkpoints" / "last.safetensors")


#: An app in small that starts a run and says its process id after the first step.
PARENT = """
import sys
from pathlib import Path
from segdesk.jobs.messages import Stepped
from segdesk.session.workers import WorkerBackend
def hear(event):
    if isinstance(event, Stepped) and event.step == 1:
        print(backend.pids()[0], flush=True)
folder = Path(sys.argv[1])
backend = WorkerBackend(hear, folder / "engine.log")
backend.train("r", folder)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_a_killed_app_leaves_a_checkpoint_and_no_process(
    tmp_path: Path, new_run: Callable[..., Path], make_model: Callable[..., Path],
    wait_until: Callable[..., None],
) -> None:  # fmt: skip
    folder = new_run("r", make_model(tmp_path / "m"), steps=100_000)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    run = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    wait_until(lambda: not run.is_running() or run.status() == psutil.STATUS_ZOMBIE, 15, "its end")
    load_file(folder / "checkpoints" / "last.safetensors")
    last = EVENT.validate_json((folder / "events.jsonl").read_text("utf-8").splitlines()[-1])
    assert isinstance(last, Finished)
    assert last.state is RunState.CANCELED


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_killed_run_is_reported_at_once_and_nothing_else_happens(
    tmp_path: Path, new_run: Callable[..., Path], make_model: Callable[..., Path],
    wait_until: Callable[..., None], slowness: Callable[[], float],
) -> None:  # fmt: skip
    from segdesk.session.workers import WorkerBackend

    folder = new_run("r", make_model(tmp_path / "m"), steps=100_000)
    heard: list[AnyEvent] = []
    backend = WorkerBackend(heard.append, tmp_path / "engine.log")
    try:
        backend.train("r", folder)
        wait_until(lambda: any(isinstance(e, Stepped) for e in heard), 60, "the first step")
        before = slowness()
        killed = time.monotonic()
        psutil.Process(backend.pids()[0]).kill()
        wait_until(lambda: isinstance(heard[-1], Finished), what="the news")
        assert time.monotonic() - killed < 2 * max(before, slowness())
        assert [e.state for e in heard if isinstance(e, Finished)] == [RunState.CRASHED]
        assert "signal 9" in heard[-1].reason
        assert backend.pids() == []
    finally:
        backend.close()

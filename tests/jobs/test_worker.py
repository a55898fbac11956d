"""Every job ends once, whatever way its process goes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from segdesk.config.inference import InferenceConfig
from segdesk.core.run import RunState
from segdesk.jobs.messages import Finished, PredictOrder, Progressed
from segdesk.jobs.worker import WorkerProcess

Start = Callable[..., WorkerProcess]

#: Says that it is there, then does what the test wants.
HELLO = """
import json, os, signal, subprocess, sys, time
def say(**message):
    print(json.dumps(message), flush=True)
say(event="progress", job="j", done=0, total=1)
"""
END = "say(event='finished', job='j', state='completed')\n"
WAIT_FOR_CANCEL = """
for line in sys.stdin:
    if json.loads(line)["order"] == "cancel":
        say(event="finished", job="j", state="canceled")
"""
#: Deaf to orders, to the end of stdin and to SIGTERM, with a child of its own.
DEAF = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
say(event="progress", job="j", done=child.pid, total=1)
while True:
    time.sleep(60)
"""
POLITE_BUT_DEAF = "time.sleep(300)\n"


def run(start: Start, ear: Any, wait_until: Callable[..., None], script: str) -> Finished:
    start("-c", HELLO + script)
    wait_until(lambda: ear.ended, what="the end")
    (end,) = ear.finished("j")
    assert ear.events[-1] is end
    assert ear.ended == 1
    return end


@pytest.mark.parametrize(
    ("script", "state", "reason"),
    [
        (END, RunState.COMPLETED, ""),
        (END + END + "os.kill(os.getpid(), signal.SIGKILL)", RunState.COMPLETED, ""),
        ("say(event='finished', job='other', state='completed')", RunState.CRASHED, "with code 0"),
        ("", RunState.CRASHED, "ended with code 0"),
        ("sys.exit(3)", RunState.CRASHED, "ended with code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", RunState.CRASHED, "was killed by signal 9"),
        ("print('{not json'); print('[]'); print('torch says hello')\n" + END, "completed", ""),
        ("say(event='unheard of', job='j')\n" + END, RunState.COMPLETED, ""),
    ],
)
def test_a_job_ends_exactly_once(
    start: Start, ear: Any, wait_until: Callable[..., None], script: str, state: str, reason: str
) -> None:
    end = run(start, ear, wait_until, script)
    assert end.state == state
    assert reason in end.reason


def test_a_crash_quotes_the_last_words(
    start: Start, ear: Any, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_text("fine\nRuntimeError: it broke.\n", "utf-8")
    end = run(start, ear, wait_until, "os.abort()")
    assert "Last words: RuntimeError: it broke." in end.reason
    assert str(tmp_path / "log.txt") in end.reason


def test_a_worker_that_listens_is_canceled_and_not_killed(start: Start, ear: Any) -> None:
    worker = start("-c", HELLO + WAIT_FOR_CANCEL)
    ear.wait_for(lambda e: isinstance(e, Progressed))
    worker.cancel("j")
    end = ear.wait_for(lambda e: isinstance(e, Finished))
    assert end.state is RunState.CANCELED
    assert worker.is_alive


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_silent_worker_is_terminated(
    start: Start, ear: Any, wait_until: Callable[..., None]
) -> None:
    worker = start("-c", HELLO + POLITE_BUT_DEAF, silence_seconds=0.3)
    ear.wait_for(lambda e: isinstance(e, Progressed))
    worker.cancel("j")
    wait_until(lambda: ear.ended, 10)
    (end,) = ear.finished("j")
    assert end.state is RunState.CRASHED
    assert f"signal {signal.SIGTERM.value}" in end.reason


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_one_that_ignores_even_that_is_killed_with_its_children(
    start: Start, ear: Any, wait_until: Callable[..., None]
) -> None:
    worker = start("-c", HELLO + DEAF, silence_seconds=0.3)
    said = ear.wait_for(lambda e: isinstance(e, Progressed) and e.done > 0)
    worker.cancel("j")
    wait_until(lambda: ear.ended, 20)
    (end,) = ear.finished("j")
    assert end.state is RunState.CRASHED
    assert "signal 9" in end.reason
    wait_until(lambda: not psutil.pid_exists(said.done) or is_zombie(said.done), 5)


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_worker_that_goes_on_talking_is_given_time(
    start: Start, ear: Any, wait_until: Callable[..., None]
) -> None:
    """Cancelled, but in a long last step that it reports on: not killed for that."""
    script = """
for n in range(15):
    say(event="progress", job="j", done=n, total=15)
    time.sleep(0.1)
say(event="finished", job="j", state="canceled")
"""
    worker = start("-c", HELLO + script, silence_seconds=0.6)
    ear.wait_for(lambda e: isinstance(e, Progressed))
    worker.cancel("j")
    wait_until(lambda: ear.ended, 10)
    (end,) = ear.finished("j")
    assert end.state is RunState.CANCELED


def test_a_job_given_to_a_dead_worker_ends_too(
    start: Start, ear: Any, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    worker = start("-c", HELLO + END)
    wait_until(lambda: ear.ended)
    order = PredictOrder(
        job="late", sample="s", image=tmp_path / "i.png", image_sha256="", model="m",
        model_folder=tmp_path, classes=("a", "b"), out=tmp_path / "o", config=InferenceConfig(),
    )  # fmt: skip
    worker.give("late", order)
    (end,) = ear.finished("late")
    assert end.state is RunState.CRASHED


def test_closing_ends_a_worker_that_does_not_listen(start: Start, ear: Any) -> None:
    worker = start("-c", HELLO + POLITE_BUT_DEAF)
    ear.wait_for(lambda e: isinstance(e, Progressed))
    worker.close(0.3)
    assert not worker.is_alive
    assert len(ear.finished("j")) == 1

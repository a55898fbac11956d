"""Scripts in a process of their own, which may limit what memory it gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any


def answer_of(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script and return the JSON object in the last line that it prints.

    One thread and one arena of memory: what each takes would depend on their number. Tensors
    are mapped one by one, so that freed ones are given back whatever lies between them. Where
    memory is that short, libraries below torch now and then fall over their own failed
    allocations (a segmentation fault in one of ten runs); such a run says nothing of ours.
    """
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "1",
                "MALLOC_MMAP_THRESHOLD_": str(2**18),
            },
        )
        if done.returncode != -signal.SIGSEGV:
            break
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer

"""Memory that tensors free: kept while a process computes, given back when it rests."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only GNU's C library is told what to keep"
)

SCRIPT = """
import json, resource, sys
import psutil, torch
from segdesk.io.packages import bundled_packages
from segdesk.jobs import heap
from segdesk.nn.weights import load_model

if "keep" in sys.argv:
    heap.keep_freed_memory()
if "short" in sys.argv:
    heap.save_memory()
network = load_model(bundled_packages()["nuclei-unet"]).network.eval()
tile = torch.rand(1, 3, 256, 256)

def compute():
    with torch.inference_mode():
        network(tile)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(5):
    compute()
before = faults()
for _ in range(10):
    compute()
found = {"faults": faults() - before}
found["computing"] = psutil.Process().memory_info().rss
heap.give_back_freed_memory()
found["resting"] = psutil.Process().memory_info().rss
print(json.dumps(found))
"""


def computed(*how: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *how], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def test_freed_memory_serves_the_next_tile_and_goes_back_at_rest() -> None:
    plain, kept = computed(), computed("keep")
    assert kept["faults"] < plain["faults"] / 20
    assert kept["resting"] < kept["computing"] - 20 * 2**20


def test_short_of_memory_nothing_is_kept() -> None:
    kept, short = computed("keep"), computed("keep", "short")
    assert short["computing"] < kept["computing"] - 20 * 2**20

"""``kill -9`` of the training process, twenty times, and where the run comes out."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segdesk.core.manifest import CHECKPOINT
from segdesk.jobs.messages import EVENT, Finished, Stepped

KILLS = 20
SETTINGS: dict[str, Any] = {
    "steps": 400, "evaluate_every": 2, "size": 48, "crop_size": 32, "batch_size": 2,
}  # fmt: skip


def train_until_killed(folder: Path, seconds: float | None) -> list[Any]:
    """Do the run in a process, killed ``seconds`` after its first step; return its events."""
    heard = []
    with subprocess.Popen(
        [sys.executable, "-m", "segdesk.training", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        deadline = None
        for line in process.stdout:
            heard.append(EVENT.validate_json(line))
            if deadline is None and isinstance(heard[-1], Stepped) and seconds is not None:
                deadline = time.monotonic() + seconds
            if deadline is not None and time.monotonic() > deadline:
                process.kill()
                break
    return heard


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_cost_an_epoch_each_and_change_nothing(
    tmp_path: Path, new_run: Callable[..., Path], make_model: Callable[..., Path]
) -> None:
    base = make_model(tmp_path / "m", dropout=0.2)
    whole, cut = (new_run(name, base, **SETTINGS) for name in ("whole", "cut"))
    (end,) = [e for e in train_until_killed(whole, None) if isinstance(e, Finished)]
    chance = random.Random(0)
    furthest = 0
    for _ in range(KILLS):
        heard = train_until_killed(cut, chance.uniform(0.0, 0.3))
        if any(isinstance(e, Finished) for e in heard):
            pytest.fail("the run came to its end before it was killed often enough")
        steps = [e.step for e in heard if isinstance(e, Stepped)]
        # At most what came after the last check, and the check itself, is done again.
        assert steps[0] > furthest - SETTINGS["evaluate_every"] * 2
        furthest = steps[-1]
        assert furthest < SETTINGS["evaluate_every"] * 2 or (cut / CHECKPOINT).is_file()
    (last,) = [e for e in train_until_killed(cut, None) if isinstance(e, Finished)]
    assert last.result["after"] == end.result["after"]
    weights = [load_file(f / "model" / "weights.safetensors") for f in (whole, cut)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    rounds = [json.loads((f / "round.json").read_text("utf-8")) for f in (whole, cut)]
    assert rounds[0]["losses"] == rounds[1]["losses"]
    assert rounds[0]["verdict"] == rounds[1]["verdict"]

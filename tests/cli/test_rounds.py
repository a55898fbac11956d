"""``segdesk rounds``, on rounds that were made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Cli = Callable[..., Any]
TINY = ("--set", "steps=2", "--set", "crop_size=32", "--set", "batch_size=2", "--set", "device=cpu")


def test_rounds_are_listed_with_their_verdicts(project: Path, segdesk: Cli) -> None:
    assert "No model was fine-tuned" in segdesk("rounds", project).out
    last = segdesk("train", project, *TINY, "--json").lines[-1]
    assert last["verdict"] == "no evidence"
    assert last["difference"] == last["after"]["dice"] - last["before"]["dice"]
    made = segdesk("train", project, *TINY)
    assert "No evidence: Dice" in made.out
    rounds = segdesk("rounds", project, "--json").json
    assert [(r["model"], r["state"], r["verdict"]) for r in rounds] == [
        ("tiny-r1", "completed", "no evidence"), ("tiny-r2", "completed", "no evidence"),
    ]  # fmt: skip
    first = rounds[0]
    assert (first["images"], first["validation"], first["base_model"]) == (4, 1, "tiny")
    assert first["dice_after"] == last["after"]["dice"]
    assert first["verdict_text"] == last["verdict_text"]

    # A process that was killed leaves no round, and a file may be damaged.
    (Path(rounds[1]["folder"]) / "round.json").unlink()
    (Path(first["folder"]) / "round.json").write_text("{", "utf-8")
    shown = segdesk("rounds", project)
    assert shown.code == 0
    assert "round.json is not a round" in shown.err
    assert len(shown.out.splitlines()) == 3
    assert shown.out.splitlines()[1].split()[:3] == ["tiny-r1", "tiny", "completed"]
    assert [r["is_in_ledger"] for r in segdesk("rounds", project, "--json").json] == [False, False]


def test_a_round_comes_out_the_same_again(project: Path, segdesk: Cli, tmp_path: Path) -> None:
    last = segdesk("train", project, *TINY, "--json").lines[-1]
    runs = sorted((project / "runs").iterdir())
    again = segdesk("train", project, "--replay", last["run"])
    assert again.code == 0, again.err
    assert (
        f"{last['run']} is the same: 2 losses, all scores and the weights of tiny-r1" in again.out
    )
    assert sorted((project / "runs").iterdir()) == runs
    by_model = segdesk("train", project, "--replay", "tiny-r1", "--json")
    assert by_model.code == 0
    assert by_model.json["is_same"]

    # The ledger says another loss, torch and weights than come out.
    file = runs[0] / "round.json"
    honest = json.loads(file.read_text("utf-8"))
    platform = honest["platform"] | {"torch": "1.0.0"}
    forged = honest | {"losses": [honest["losses"][0], 0.25], "platform": platform}
    file.write_text(json.dumps(forged | {"weights_sha256": "0" * 64}), "utf-8")
    other = segdesk("train", project, "--replay", last["run"], "--json")
    assert other.code == 1
    assert len(other.err.splitlines()[-1:]) == 1
    assert "the loss differs from step 2 on (0.25 then" in other.err
    assert "weights differ" in other.err
    assert "and was 1.0.0" in other.err
    assert not other.json["is_same"]
    file.write_text(json.dumps(honest), "utf-8")


def test_what_changed_since_a_round_is_named(project: Path, segdesk: Cli, tmp_path: Path) -> None:
    run = segdesk("train", project, *TINY, "--json").lines[-1]["run"]
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "images" / "cell1.png")
    (tmp_path / "images" / "cell2.png").unlink()
    labels = project / "labels" / "cell3" / "r0001.tif"
    labels.write_bytes(labels.read_bytes() + b" ")
    weights = project / "models" / "tiny" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    done = segdesk("train", project, "--replay", run)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    for part in (
        "the image cell1.png has changed", "the image cell2.png is gone from",
        "the label file r0001.tif of cell3.png has changed",
        "the model tiny it started from has changed",
    ):  # fmt: skip
        assert part in done.err
    assert "cell0" not in done.err
    assert "There is no run called 'r9'" in segdesk("train", project, "--replay", "r9").err
    alone = segdesk("train", project, "--replay", run, "--recipe", "head")
    assert (alone.code, "give it alone" in alone.err) == (2, True)

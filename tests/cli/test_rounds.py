"""``segdesk rounds``, on rounds that were made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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

"""``segdesk train --check``, and what is refused before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Cli = Callable[..., Any]
#: A device that this system never has.
LACKING = "cuda" if sys.platform == "darwin" else "mps"

TINY = ("--set", "steps=1", "--set", "crop_size=32", "--set", "batch_size=1", "--set", "device=cpu")


def test_a_look_beforehand_names_a_leak_and_trains_nothing(
    project: Path, segdesk: Cli, tmp_path: Path
) -> None:
    held = segdesk("status", project, "--json").json["samples"]
    (name,) = [s["name"] for s in held if s["split"] == "validation"]
    copy = tmp_path / "copy.jpg"
    Image.open(tmp_path / "images" / name).save(copy)
    masks = tmp_path / "more"
    masks.mkdir()
    (masks / "copy.png").write_bytes((tmp_path / "masks" / name).read_bytes())
    assert segdesk("add", project, copy, "--masks", masks).code == 0
    looked = segdesk("train", project, "--check", *TINY)
    assert looked.code == 0, looked.err
    assert f"Look: {name}, which is held back to check the model, shows the same as copy.jpg" in (
        looked.out
    )
    assert "Note: Only 1 image is held back" in looked.out
    found = segdesk("train", project, "--check", "--json", *TINY).json
    assert {(f["kind"], f["severity"]) for f in found} == {
        ("duplicate", "warn"), ("few validation", "note"),
    }  # fmt: skip
    assert not (project / "runs").exists()
    assert segdesk("rounds", project, "--json").json == []
    trained = segdesk("train", project, *TINY)
    assert trained.code == 0
    assert "shows the same as copy.jpg" in trained.err


def test_what_would_fail_leaves_no_run_and_takes_no_name(
    project: Path, segdesk: Cli, tmp_path: Path
) -> None:
    image = tmp_path / "images" / "cell0.png"
    content = image.read_bytes()
    image.write_bytes(b"")
    looked = segdesk("train", project, "--check", *TINY)
    assert looked.code == 2
    assert "Stop: " in looked.out
    assert "cell0.png is empty" in looked.out
    assert "one thing to mend first" in looked.err
    assert segdesk("train", project, *TINY).code == 2
    assert not (project / "runs").exists()
    image.write_bytes(content)
    made = segdesk("train", project, *TINY, "--json")
    assert made.lines[-1]["model"] == "tiny-r1"


def test_many_findings_of_one_kind_are_counted(project: Path, segdesk: Cli, tmp_path: Path) -> None:
    for image in (tmp_path / "images").iterdir():
        image.write_bytes(b"")
    looked = segdesk("train", project, "--check", *TINY)
    assert looked.out.count("is empty") == 3
    assert "Stop: 2 more of this kind (image)." in looked.out
    assert len(segdesk("train", project, "--check", "--json", *TINY).json) >= 5


def test_settings_that_do_not_go_together_leave_no_run(project: Path, segdesk: Cli) -> None:
    for says, *arguments in (
        ("Crops of 48 pixels do not fit SegNet", "--new", "segnet", "--set", "crop_size=48"),
        ("recipe quick keeps what a model has learnt", "--new", "unet", "--recipe", "quick"),
        ("cannot learn in float16", "--set", "precision=float16", "--set", "device=cpu"),
        ("be used here", "--set", f"device={LACKING}"),
    ):
        refused = segdesk("train", project, *arguments)
        assert refused.code == 2
        assert says in refused.err
        assert len(refused.err.splitlines()[-1:]) == 1
    assert not (project / "runs").exists()

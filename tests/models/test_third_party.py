"""An architecture in a package that SegDesk has never heard of."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONTRACT = """
from pathlib import Path
from segdesk.nn import contract
from segdesk.nn.registry import find_architecture
contract.check_everything(find_architecture("tinynet"), Path("."))
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """Install the architecture that CONTRIBUTING shows, as pip would lay it out."""
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    site = tmp_path / "site"
    (site / "my_package").mkdir(parents=True)
    (site / "my_package" / "__init__.py").touch()
    (site / "my_package" / "tinynet.py").write_text(code[1], "utf-8")
    info = site / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[segdesk.models]\ntinynet = my_package.tinynet\n")
    path = [str(site), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def run(arguments: list[str], env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=env, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_passes_the_contract(installed: dict[str, str], tmp_path: Path) -> None:
    run(["-c", CONTRACT], installed, tmp_path)


def test_it_trains_and_predicts_like_any_other(
    installed: dict[str, str], tmp_path: Path, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(4)

    def segdesk(*arguments: str) -> str:
        return run(["-m", "segdesk", *arguments], installed, tmp_path)

    segdesk("new", "p.segdesk", "--classes", "background,nucleus")
    segdesk("add", "p.segdesk", "images", "--masks", "masks")
    settings = ["--set", "steps=20", "--set", "crop_size=64", "--set", "augment=none"]
    lines = segdesk(
        "train", "p.segdesk", "--new", "tinynet", "--option", "head=C", *settings, "--json"
    ).splitlines()
    losses = [e["loss"] for e in map(json.loads, lines) if e.get("event") == "step"]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    model = json.loads(lines[-1])["model"]
    predicted = json.loads(segdesk("predict", "p.segdesk", "--model", model, "--json"))
    assert len(predicted) == 4
    card = json.loads((tmp_path / "p.segdesk" / "models" / model / "card.json").read_text())
    assert (card["architecture"], card["options"]["head"]) == ("tinynet", "C")
    assert card["options"]["width"] == 8

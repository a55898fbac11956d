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

#: Keeps the contract, then does commands and writes what each of them printed.
SCRIPT = """
import io, json, sys
from contextlib import redirect_stdout
from pathlib import Path
from segdesk.cli import run
from segdesk.nn import contract
from segdesk.nn.registry import find_architecture

contract.check_everything(find_architecture("tinynet"), Path("."))
said = []
for command in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()) as out:
        assert run(command) == 0
    said.append(out.getvalue())
print(json.dumps(said))
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


@pytest.mark.slow
def test_it_passes_the_contract_and_trains_and_predicts_like_any_other(
    installed: dict[str, str], tmp_path: Path, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(4)
    settings = ["--set", "steps=20", "--set", "crop_size=64", "--set", "augment=none"]
    commands = [
        ["new", "p.segdesk", "--classes", "background,nucleus"],
        ["add", "p.segdesk", "images", "--masks", "masks"],
        ["train", "p.segdesk", "--new", "tinynet", "--option", "head=C", *settings, "--json"],
        ["predict", "p.segdesk", "--model", "tinynet-r1", "--json"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        env=installed, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, trained, predicted = json.loads(done.stdout.splitlines()[-1])
    lines = [json.loads(line) for line in trained.splitlines()]
    losses = [e["loss"] for e in lines if e.get("event") == "step"]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert lines[-1]["model"] == "tinynet-r1"
    assert len(json.loads(predicted)) == 4
    card = json.loads((tmp_path / "p.segdesk/models/tinynet-r1/card.json").read_text("utf-8"))
    assert (card["architecture"], card["options"]["head"]) == ("tinynet", "C")
    assert card["options"]["width"] == 8

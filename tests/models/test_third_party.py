"""An architecture in a package that SegDesk has never heard of."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from segdesk.nn.contract import CHECKS, build, check_everything

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


def code_shown() -> str:
    """Return the architecture that the documentation shows."""
    page = (ROOT / "docs" / "architectures.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    return code[1]


def write_package(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, code in {"__init__.py": "", **files}.items():
        (folder / name).write_text(code, "utf-8")


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """Install the architecture that the documentation shows, as pip would lay it out."""
    site = tmp_path / "site"
    write_package(site / "my_package", {"tinynet.py": code_shown()})
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


def test_a_package_of_two_files_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, code = "nn.Conv2d(width, width, 3, padding=1)", code_shown()
    assert code.count(layer) == 1
    files = {
        "net.py": "from .blocks import block\n" + code.replace(layer, "block(width)"),
        "blocks.py": f"from torch import nn\n\n\ndef block(width):\n    return {layer}\n",
    }
    write_package(tmp_path / "package_of_two_files", files)
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.import_module("package_of_two_files.net").SPEC
    assert sum(p.numel() for p in build(spec).decoder.parameters()) == 8 * 8 * 9 + 8
    check_everything(spec, tmp_path)


@pytest.mark.parametrize("line", ["import numpy", "from . import more", "from .more import this"])
def test_no_file_of_a_package_imports_what_it_must_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    name = f"package_of_{abs(hash(line))}"
    files = {
        "net.py": "from .blocks import this\n" + code_shown(),
        "blocks.py": f"{line}\nthis = 1\n",
        "more.py": "import numpy\nthis = 1\n",
    }
    write_package(tmp_path / name, files)
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.import_module(f"{name}.net").SPEC
    with pytest.raises(AssertionError, match=r"(blocks|more)\.py imports numpy"):
        CHECKS["imports"](spec, tmp_path)

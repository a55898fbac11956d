"""What architectures cost is computed once, and again when their code has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

ONE_CONVOLUTION = """
from torch import nn
from segdesk.nn.spec import ModelSpec

def build(inputs, classes, width=4, head="A", activation="none"):
    return nn.Conv2d(inputs, classes, WIDTH, padding="same")

SPEC = ModelSpec(name="single", title="One", year=1958, reference="Nowhere", build=build, stride=1,
                 options={"width": 4, "head": "A", "activation": "none"}, small={"width": 2})
"""

#: Runs a command and says whether torch was needed for it.
COMMAND = """
import sys
from segdesk.cli import run
code = run(sys.argv[1:])
print("torch" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


def command(env: dict[str, str], *arguments: str) -> tuple[str, bool]:
    """Return what a command writes in a process of its own, and whether it needed torch."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.splitlines()[-1] == "True"


class Program:
    """The command line in a process of its own, with a package of someone else's."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self._site = folder / "site"
        info = self._site / "single-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: single\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[segdesk.models]\nsingle = single_net\n")
        self.write(1)

    def write(self, kernel: int) -> None:
        text = ONE_CONVOLUTION.replace("WIDTH", str(kernel))
        (self._site / "single_net.py").write_text(text, "utf-8")

    def __call__(self, *arguments: str) -> tuple[str, bool]:
        path = os.pathsep.join([str(self._site), os.environ.get("PYTHONPATH", "")])
        return command({"SEGDESK_HOME": str(self.home), "PYTHONPATH": path}, *arguments)

    def parameters(self) -> tuple[str, bool]:
        shown, is_computed = self("models", "show", "single")
        [line] = [line for line in shown.splitlines() if line.startswith("parameters")]
        return line.split()[1], is_computed


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.mark.slow
def test_the_second_look_needs_no_torch_and_says_the_same(segdesk: Cli) -> None:
    computed = segdesk("models", "list", "--json").out
    assert command({}, "models", "list", "--json") == (computed, False)
    for arguments in (["list"], ["show", "fcn-8s"], ["show", "nuclei-unet"]):
        assert command({}, "models", *arguments) == (segdesk("models", *arguments).out, False)


@pytest.mark.slow
def test_figures_follow_the_code(program: Program) -> None:
    assert program.parameters() == ("8", True)
    assert program.parameters() == ("8", False)
    program.write(3)
    assert program.parameters() == ("56", True)


@pytest.mark.slow
def test_a_damaged_memory_is_made_anew(program: Program) -> None:
    program.parameters()
    [file] = program.home.rglob("architectures.json")
    for damage in ("{", "[]"):
        file.write_text(damage, "utf-8")
        assert program.parameters() == ("8", True)
    assert program.parameters() == ("8", False)


@pytest.mark.slow
def test_without_a_place_to_remember_figures_are_computed(program: Program) -> None:
    program.home.write_text("a file where the folder would be")
    assert program.parameters() == ("8", True)
    assert program.parameters() == ("8", True)

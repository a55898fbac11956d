"""Invariants that no single module shows."""

from __future__ import annotations

import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import segdesk.core
import segdesk.io
import segdesk.jobs
import segdesk.session

ROOT = Path(__file__).resolve().parents[2]

#: Split, so that this file does not hold what it looks for.
MACHINE_PATHS = [r"/wo" r"rk/", r"/tmp/bo" r"ot", r"/ro" r"ot/", r"/ho" r"me/\w", r"/Us" r"ers/\w"]
INDEX_URLS = [r"py" r"pi\.org", r"index[-_]ur" r"l\s*=?\s*http", r"download\.pyt" r"orch\.org",
              r"/simp" r"le/?[\"'\s]"]  # fmt: skip
FORBIDDEN = re.compile("|".join(rf"(?<![\w.-]){p}" if p[0] == "/" else p for p in
                                MACHINE_PATHS + INDEX_URLS))  # fmt: skip


def modules_of(package: object) -> list[str]:
    path, name = package.__path__, package.__name__  # type: ignore[attr-defined]
    return [name, *(m.name for m in pkgutil.walk_packages(path, f"{name}."))]


@pytest.mark.parametrize(
    "names",
    [
        [m for p in (segdesk.core, segdesk.io, segdesk.jobs, segdesk.session)
         for m in modules_of(p)],
        ["segdesk.cli", "segdesk.session.workers", "segdesk.config.training"],
    ],
    ids=["core io jobs session", "cli"],
)  # fmt: skip
def test_what_the_window_imports_leaves_torch_out(names: list[str]) -> None:
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules} "
        "& {'torch', 'torchvision', 'timm', 'napari', 'qtpy', 'PySide6'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_window_starts_without_what_only_later_work_needs() -> None:
    later = {"torch", "zarr", "fsspec", "scipy.ndimage"}
    code = f"import segdesk.app.window, sys\nprint(*({later} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_imports_point_one_way() -> None:
    tool = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert tool, "import-linter belongs to the test extra"
    done = subprocess.run([tool, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def repository_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [p for name in done.stdout.split("\0") if name and (p := ROOT / name).is_file()]


def test_nothing_in_the_repository_knows_this_machine() -> None:
    found = []
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if match := FORBIDDEN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert found == []


def test_nothing_is_unpickled() -> None:
    """Pickle, and torch.load left to itself, run what they are given."""
    unsafe = re.compile(r"^\s*import (pickle|dill|joblib|cloudpickle)\b|"
                        r"^\s*from (dill|joblib|cloudpickle|pickle (?!import UnpicklingError$))|"
                        r"torch\.load\((?![^)]*weights_only=True)|"
                        r"allow_pickle=True|\bpickle\.loads?\(", re.M)  # fmt: skip
    found = [
        str(path.relative_to(ROOT))
        for folder in ("segdesk", "models", "plugins", "resources")
        for path in (ROOT / folder).rglob("*.py")
        if unsafe.search(path.read_text("utf-8"))
    ]
    assert found == []


def test_every_architecture_and_model_that_is_declared_is_there() -> None:
    from segdesk.io.packages import bundled_packages, hash_weights, read_card
    from segdesk.nn.registry import architectures

    assert "unet" in architectures()
    packages = bundled_packages()
    assert "nuclei-unet" in packages
    for name, folder in packages.items():
        card = read_card(folder)
        assert card.name == name
        assert card.weights_sha256 == hash_weights(folder)
        assert all(data.license for data in card.training_data)
        assert (folder / "weights.safetensors").stat().st_size < 10_000_000

"""``segdesk doctor``: what works here, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import typer

from segdesk.cli.console import show, show_json
from segdesk.io.atomic import free_bytes

GIB = 2**30
MIN_FREE_GIB = 2.0

#: Run apart: a broken Qt aborts the process that loads it.
_QT_PROBE = """
import sys
from qtpy.QtGui import QOffscreenSurface, QOpenGLContext
from qtpy.QtWidgets import QApplication
application = QApplication(sys.argv)
context = QOpenGLContext()
surface = QOffscreenSurface()
surface.create()
sys.exit(0 if context.create() and context.makeCurrent(surface) else 3)
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: whether it is fine, what was found, what to do."""

    what: str
    is_fine: bool
    found: str
    advice: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(as_json: bool = typer.Option(False, "--json", help="Report as JSON.")) -> None:
    """Say what works on this machine and what to do about the rest."""
    findings = [_python(), _torch(), _graphics_card(), *_window(), _memory(), _disk()]
    if as_json:
        show_json([asdict(f) for f in findings])
        return
    for finding in findings:
        mark = "ok  " if finding.is_fine else "note"
        show(f"{mark} {finding.what:<14} {finding.found}")
        if finding.advice:
            show(f"     {'':<14} -> {finding.advice}")


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.release()}"
    return Finding("Python", sys.version_info >= (3, 11), found)


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", False, f"cannot be loaded: {error}", "install segdesk again")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Finding("torch", True, f"{torch.__version__} ({build})")


def _graphics_card() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name(0)
        return Finding("Graphics card", True, f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB")
    if torch.backends.mps.is_available():
        return Finding("Graphics card", True, "Apple's graphics processor")
    advice = "SegDesk computes on the processor; with an NVIDIA card it is many times faster."
    if not torch.version.cuda:
        advice += " This torch could not use one: it is a CPU build."
    return Finding("Graphics card", False, "none that torch can use", advice)


def _window() -> list[Finding]:
    missing = [m for m in ("napari", "qtpy", "pyqtgraph") if importlib.util.find_spec(m) is None]
    if missing:
        advice = "for the window, run: pip install 'segdesk[app]'"
        return [Finding("Window", False, f"not installed: {', '.join(missing)}", advice)]
    version = importlib.metadata.version("napari")
    findings = [Finding("napari", True, version)]
    no_display = sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if no_display:
        advice = "run 'segdesk demo' for the same job without a window, or start it under xvfb-run"
        return [*findings, Finding("Display", False, "none", advice)]
    probe = subprocess.run(
        [sys.executable, "-c", _QT_PROBE], capture_output=True, text=True, timeout=60, check=False
    )
    if probe.returncode == 0:
        return [*findings, Finding("Qt and OpenGL", True, "a window can be drawn")]
    advice = "on Debian: apt-get install libegl1 libgl1 libxkbcommon-x11-0 libxcb-cursor0"
    last = (probe.stderr.strip().splitlines() or [f"code {probe.returncode}"])[-1]
    return [*findings, Finding("Qt and OpenGL", False, last, advice)]


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    is_enough = memory.available > MIN_FREE_GIB * GIB
    return Finding("Memory", is_enough, found, "" if is_enough else "close other programs")


def _disk() -> Finding:
    free = free_bytes(Path.home()) / GIB
    return Finding("Disk", free > MIN_FREE_GIB, f"{free:.1f} GiB free in your home folder")

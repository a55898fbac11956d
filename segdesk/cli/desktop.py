"""``segdesk [PROJECT]`` and ``segdesk app``: the window."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from pathlib import Path

import typer

from segdesk.core.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("app")(open_app)


def looks_like_project(argument: str) -> bool:
    """Tell a path from a mistyped command."""
    path = Path(argument)
    return path.exists() or path.suffix == ".segdesk" or len(path.parts) > 1


def unknown_command(argument: str, commands: set[str | None]) -> str:
    """Say that there is no such command or project, and suggest one."""
    near = difflib.get_close_matches(argument, [c for c in commands if c], n=1)
    hint = f"; did you mean 'segdesk {near[0]}'?" if near else "; see segdesk --help."
    return f"There is no project or command {argument!r}{hint}"


def open_app(
    project: Path | None = typer.Argument(None, help="A project folder (.segdesk)."),
    sample: bool = typer.Option(False, "--sample", help="Open the sample project."),
) -> None:
    """Open the desktop app."""
    missing = [m for m in ("napari", "qtpy", "pyqtgraph") if importlib.util.find_spec(m) is None]
    if missing:
        raise InputError(
            "The window needs more packages than are installed; run: pip install 'segdesk[app]'"
        )
    from segdesk.app.main import run_app

    sys.exit(run_app(project, sample=sample))

"""Icons, themes and the sample project."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def icon_path() -> Path:
    """Return the program's icon, an SVG."""
    return Path(str(files("segdesk_resources"))) / "icons" / "segdesk.svg"

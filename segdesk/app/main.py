"""Starting the desktop program."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from segdesk.app.crash import CrashLog
from segdesk.app.settings import config_folder, log_folder
from segdesk.core.errors import InputError
from segdesk.io.store import ProjectStore

APP_ID = "SegDesk.SegDesk"


def check_display() -> None:
    """Refuse to start where no window can be shown; Qt would abort the process.

    Raises
    ------
    InputError
        Linux without an X or Wayland display.
    """
    if sys.platform != "linux":
        return
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise InputError(
            "There is no display to open a window on; run 'segdesk demo' for the same job "
            "without a window, or start SegDesk under xvfb-run."
        )


def run_app(project: Path | None = None, *, sample: bool = False) -> int:
    """Open the window and stay until it is closed; returns the exit code.

    Raises
    ------
    InputError
        There is no display, or ``project`` cannot be opened.
    """
    if project is not None:
        if not project.exists():
            raise InputError(f"There is no project {project}; make one with 'segdesk new'.")
        # What is wrong with it ends the command here, and does not open an empty window.
        ProjectStore.open(project).close()
    check_display()
    # Before napari is imported: SegDesk's layout is not the layout of the user's napari.
    os.environ.setdefault("NAPARI_CONFIG", str(config_folder() / "napari.yaml"))
    config_folder().mkdir(parents=True, exist_ok=True)
    import napari
    from napari.qt import get_qapp

    from segdesk import __version__
    from segdesk_resources import icon_path

    get_qapp(
        app_name="SegDesk",
        app_version=__version__,
        icon=str(icon_path()),
        org_name="SegDesk",
        app_id=APP_ID,
    )
    from segdesk.app.window import DesktopWindow

    log = CrashLog(log_folder() / "segdesk.log")
    window = DesktopWindow()
    log.install()
    try:
        if sample:
            window.open_sample()
        elif project is not None:
            window.open_project(project)
        napari.run()
    finally:
        window.workbench.close()
        log.remove()
    return 0

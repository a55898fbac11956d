"""Where the program keeps what it remembers, and reading and writing it."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_config_path, user_data_path, user_log_path

from segdesk.config.app import AppSettings
from segdesk.io.atomic import atomic_write_text

#: Set to a folder, everything of the user's own is kept there (tests, portable use).
HOME_VARIABLE = "SEGDESK_HOME"


def config_folder() -> Path:
    """Return the folder of settings."""
    home = os.environ.get(HOME_VARIABLE)
    return Path(home) / "config" if home else user_config_path("segdesk", appauthor=False)


def data_folder() -> Path:
    """Return the folder of projects made for the user."""
    home = os.environ.get(HOME_VARIABLE)
    return Path(home) / "data" if home else user_data_path("segdesk", appauthor=False)


def cache_folder() -> Path:
    """Return the folder of what can be computed again."""
    home = os.environ.get(HOME_VARIABLE)
    return Path(home) / "cache" if home else user_cache_path("segdesk", appauthor=False)


def log_folder() -> Path:
    """Return the folder of logs."""
    home = os.environ.get(HOME_VARIABLE)
    return Path(home) / "log" if home else user_log_path("segdesk", appauthor=False)


def load_settings() -> AppSettings:
    """Read the settings; missing or damaged ones give the defaults."""
    path = config_folder() / "settings.json"
    try:
        return AppSettings.parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return AppSettings()


def save_settings(settings: AppSettings) -> None:
    """Write the settings.

    Raises
    ------
    InputError
        The folder cannot be written to.
    """
    atomic_write_text(config_folder() / "settings.json", settings.model_dump_json(indent=2) + "\n")

"""Calibrations of models, kept in the project: bundled models may not be written to."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from segdesk.core.calibration import Calibration
from segdesk.io.atomic import atomic_write_text, explain_os_errors

FOLDER: Final = "calibration"


def calibration_file(project: Path, model: str, weights_sha256: str) -> Path:
    """Return where the calibration of these weights is or will be."""
    return project / FOLDER / f"{model}-{weights_sha256[:8]}.json"


def write_calibration(project: Path, calibration: Calibration) -> Path:
    """Keep a calibration, atomically; an older one of the same weights goes.

    Raises
    ------
    InputError
        The disk is full, read-only, or the user may not write there.
    """
    file = calibration_file(project, calibration.model, calibration.weights_sha256)
    atomic_write_text(file, calibration.model_dump_json(indent=2) + "\n")
    return file


def read_calibration(project: Path, model: str, weights_sha256: str) -> Calibration | None:
    """Return what was kept for these very weights; None where nothing was.

    Raises
    ------
    InputError
        The file is damaged or may not be read.
    """
    file = calibration_file(project, model, weights_sha256)
    if not file.is_file():
        return None
    with explain_os_errors(file, reading=True):
        text = file.read_text("utf-8", "replace")
    found = Calibration.parse(text, str(file))
    return found if found.weights_sha256 == weights_sha256 else None

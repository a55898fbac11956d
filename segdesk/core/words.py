"""Saying figures in words, the same everywhere."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Say how long something takes: ``8 s``, ``3 min``, ``2.5 h``."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

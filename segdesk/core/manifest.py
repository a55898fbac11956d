"""What a fine-tuning run is given: files, revisions and where it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from segdesk.core.sample import Split


class ManifestSample(BaseModel):
    """One labelled image of a run; ``labels`` is the file of ``revision``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    image: Path
    sha256: str
    labels: Path
    revision: int
    split: Split


class RunManifest(BaseModel):
    """The contents of ``manifest.json`` in a run's folder.

    A run starts from ``base_folder`` (a model package), or, when that is None,
    from an untrained ``architecture`` with ``options``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    new_model: str
    base_model: str = ""
    base_folder: Path | None = None
    architecture: str = ""
    options: dict[str, Any] = {}
    channels: int
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    samples: tuple[ManifestSample, ...]
    segdesk_version: str = ""

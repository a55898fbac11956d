"""What a fine-tuning run is given: files, revisions and where it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from segdesk.core.address import AnyAddress
from segdesk.core.sample import Split

#: Where a run's folder keeps all that it needs to go on.
CHECKPOINT = "checkpoints/state.pt"


class ManifestSample(BaseModel):
    """One image of a run; ``labels`` is the file of ``revision``, None if it has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    image: AnyAddress
    sha256: str
    labels: Path | None
    revision: int
    split: Split


class RunManifest(BaseModel):
    """The contents of ``manifest.json`` in a run's folder.

    A run starts from ``base_folder`` (a model package), or, when that is None,
    from an untrained ``architecture``: its ``variant`` (small or paper) with
    ``options`` on top and ``encoder_weights`` from a file, a download or nowhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    new_model: str
    base_model: str = ""
    base_folder: Path | None = None
    architecture: str = ""
    variant: str = "paper"
    options: dict[str, Any] = {}
    encoder_weights: str = ""
    channels: int
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    samples: tuple[ManifestSample, ...]
    segdesk_version: str = ""
    #: Where features are kept from one run to the next; None keeps none.
    features: Path | None = None

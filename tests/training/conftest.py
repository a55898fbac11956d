from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from segdesk.config.training import TrainingConfig
from segdesk.core.manifest import ManifestSample, RunManifest
from segdesk.core.sample import Split
from segdesk.io.images import hash_file
from segdesk.io.labels import write_labels
from segdesk.jobs.control import RunControl
from segdesk.jobs.messages import AnyEvent, Evaluated, Finished, Stepped
from segdesk.training.run import run_folder

TINY: dict[str, Any] = {
    "steps": 3, "batch_size": 2, "crop_size": 32, "evaluate_every": 100, "device": "cpu",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


@dataclass
class Outcome:
    """What a run said and left behind."""

    folder: Path
    events: list[AnyEvent] = field(default_factory=list)

    @property
    def end(self) -> Finished:
        (end,) = [e for e in self.events if isinstance(e, Finished)]
        assert self.events[-1] is end
        return end

    @property
    def losses(self) -> list[float]:
        return [e.loss for e in self.events if isinstance(e, Stepped)]

    @property
    def scores(self) -> list[dict[str, Any]]:
        return [e.scores for e in self.events if isinstance(e, Evaluated)]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model" / "weights.safetensors")


@pytest.fixture
def new_run(tmp_path: Path, discs: Callable[..., Any]) -> Callable[..., Path]:
    """Write a run's folder: two images to learn from and one held back."""

    def make(
        name: str,
        base: Path | None,
        *,
        splits: str = "ttv",
        size: int = 64,
        classes: tuple[str, ...] = ("background", "nucleus"),
        paint: Callable[[np.ndarray, int], np.ndarray] | None = None,
        supervise: Callable[[np.ndarray, int], np.ndarray] | None = None,
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        samples = []
        for number, letter in enumerate(splits):
            image, mask = discs(number, size)
            image = image if paint is None else paint(image, number)
            accepted = np.ones_like(mask)
            supervision = accepted if supervise is None else supervise(mask, number)
            path, labels = folder / f"{number}.png", folder / f"{number}.tif"
            Image.fromarray(image).save(path)
            write_labels(labels, mask, supervision)
            split = Split.VALIDATION if letter == "v" else Split.TRAIN
            samples.append(
                ManifestSample(id=f"s{number}", image=path, sha256=hash_file(path),
                               labels=labels, revision=1, split=split)
            )  # fmt: skip
        manifest = RunManifest(
            run=name, new_model=f"{name}-model", base_model=base.name if base else "",
            base_folder=base, architecture="" if base else "unet",
            options={} if base else {"width": 4}, channels=1, classes=classes,
            colors=tuple("#000000" for _ in classes), samples=tuple(samples),
        )  # fmt: skip
        (folder / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
        text = TrainingConfig(**TINY | config).model_dump_json()
        (folder / "config.json").write_text(text, "utf-8")
        return folder

    return make


@pytest.fixture
def train(new_run: Callable[..., Path]) -> Callable[..., Outcome]:
    """Do a run in this process."""

    def run(
        name: str,
        base: Path | None,
        *,
        token: RunControl | None = None,
        on_event: Callable[[AnyEvent], None] = lambda event: None,
        **settings: Any,
    ) -> Outcome:
        outcome = Outcome(new_run(name, base, **settings))

        def hear(event: AnyEvent) -> None:
            outcome.events.append(event)
            on_event(event)

        run_folder(outcome.folder, hear, token or RunControl())
        return outcome

    return run

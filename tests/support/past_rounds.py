"""Rounds of a project that were never trained: their files, as a run leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segdesk.core.round import Round, RoundInput, RoundOrigin, RoundPlatform
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Split
from segdesk.io.rounds import write_round
from segdesk.io.store import ProjectStore

HELD = 6


def saturating(images: int) -> float:
    """Return a validation Dice that ever more images raise ever less."""
    return 0.9 - 0.4 * images**-0.7


def put_round(store: ProjectStore, images: int, dice: float, held_labels: str = "v1") -> None:
    """Put a completed run with its round into a project.

    Parameters
    ----------
    images
        How many it learnt from.
    dice
        Mean over the images held back.
    held_labels
        Their version: other labels, other images to be judged on.
    """
    run = f"run{len(store.runs()):02d}"
    folder = store.folder / "runs" / run
    folder.mkdir(parents=True)
    sides = [(Split.TRAIN, images, "v1"), (Split.VALIDATION, HELD, held_labels)]
    inputs = tuple(
        RoundInput(id=f"{split}{n}", split=split, image=Path(f"{n}.png"), revision=1,
                   image_sha256=f"{split}{n}", labels=Path(f"{n}.tif"),
                   labels_sha256=f"{labels}{n}")
        for split, count, labels in sides for n in range(count)
    )  # fmt: skip
    per_image = [
        {"image": f"validation{n}", "dice": dice + offset, "iou": dice}
        for n, offset in enumerate(np.linspace(-0.05, 0.05, HELD))
    ]
    entry = Round(
        run=run, state=RunState.COMPLETED, new_model=f"m-{run}", inputs=inputs, seed=0,
        classes=("background", "nucleus"), origin=RoundOrigin(model="m"), config={},
        platform=RoundPlatform(segdesk="0", python="3", torch="2", numpy="2", device="cpu",
                               threads=1),
        started="2026-01-01T00:00:00+00:00", ended="2026-01-01T00:01:00+00:00",
        after={"dice": dice, "per_image": per_image},
    )  # fmt: skip
    write_round(folder, entry)
    store.put_run(Run(run, folder, "m", RunState.COMPLETED, f"m-{run}"))

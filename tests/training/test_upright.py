"""Images with an up and a down are not turned upside down; others are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segdesk.config.training import Augmentation, TrainingConfig
from segdesk.io.labels import write_labels
from segdesk.jobs.control import RunControl
from segdesk.jobs.messages import AnyEvent, Said
from segdesk.training.augment import Augmenter
from segdesk.training.dataset import Batch, Item
from segdesk.training.run import run_folder
from segdesk.training.upright import choose_augmentation

CLASSES = ("background", "sky", "road")


def scene(number: int, *, name: str = "", upside_down: bool = False, known: float = 1.0) -> Item:
    """Sky above a horizon somewhere, road below it, and background on one side."""
    rng = np.random.default_rng(number)
    labels = np.full((40, 30), 2, np.uint8)
    labels[: rng.integers(10, 30)] = 1
    labels[:, : rng.integers(2, 10)] = 0
    if upside_down:
        labels = labels[::-1].copy()
    weights = np.zeros(labels.shape, np.float32)
    weights[:, : round(known * 30)] = 1
    return Item(name or f"s{number}", np.zeros((40, 30, 1), np.float32), labels, weights)


def chosen(items: list[Item]) -> tuple[Augmentation, str]:
    return choose_augmentation(Augmentation.AUTO, items, CLASSES)


def test_scenes_are_known_by_what_lies_above() -> None:
    kind, words = chosen([scene(n) for n in range(12)])
    assert kind is Augmentation.UPRIGHT
    assert words.startswith("In all 12 images that have both, sky lies above road")


@pytest.mark.parametrize(
    "items",
    [
        [scene(n, upside_down=n == 5) for n in range(12)],
        [scene(n) for n in range(6)],
        [scene(n, known=0.3) for n in range(12)],
        [scene(n, name="one stack") for n in range(40)],
        [],
    ],
    ids=["one is upside down", "chance could explain it", "strokes only", "one stack", "none"],
)
def test_others_are_turned_as_ever(items: list[Item]) -> None:
    assert chosen(items) == (Augmentation.FULL, "")


def test_what_the_user_asked_for_stays() -> None:
    scenes = [scene(n) for n in range(12)]
    assert choose_augmentation(Augmentation.FLIPS, scenes, CLASSES) == (Augmentation.FLIPS, "")


def test_upright_crops_stay_upright_and_vary() -> None:
    torch.manual_seed(0)
    image = torch.zeros(20, 3, 32, 32)
    image[:, :, :16, :8] = 0.8
    labels = (image[:, 0] > 0).to(torch.uint8)
    moved = Augmenter(TrainingConfig(augment=Augmentation.UPRIGHT))(
        Batch(image, labels, torch.ones(20, 32, 32))
    )
    above, below = (part.sum((1, 2)) for part in (moved.labels[:, :16], moved.labels[:, 16:]))
    assert (above > 4 * below).all()
    sides = {bool(mask[:, :16].sum() > mask[:, 16:].sum()) for mask in moved.labels}
    assert sides == {True, False}
    assert len(set(moved.image.amax((1, 2, 3)).tolist())) == 20


@pytest.mark.parametrize("is_scene", [True, False])
def test_a_run_says_when_it_keeps_images_upright(
    new_run: Callable[..., Path], is_scene: bool
) -> None:
    folder = new_run("r", None, splits="t" * 9, steps=1)
    for path in folder.glob("*.tif") if is_scene else ():
        labels = np.zeros((64, 64), np.uint8)
        labels[20 + int(path.stem) :] = 1
        write_labels(path, labels, np.ones_like(labels))
    events: list[AnyEvent] = []
    run_folder(folder, events.append, RunControl())
    said = [e.text for e in events if isinstance(e, Said) and "upside down" in e.text]
    assert bool(said) == is_scene

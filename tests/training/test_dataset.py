from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdesk.config.training import Augmentation, TrainingConfig
from segdesk.training.augment import Augmenter
from segdesk.training.dataset import Batch, CropSampler, Item, cut, pixel_weights


def item(value: int, shape: tuple[int, int] = (40, 50), known: float = 1.0) -> Item:
    """An image whose pixels and labels tell where they come from."""
    image = np.full((*shape, 1), value / 255, np.float32)
    weights = np.full(shape, known, np.float32)
    return Item(f"i{value}", image, np.full(shape, value, np.uint8), weights)


def sampler(items: list[Item], old: list[Item], batch_size: int, replay: float) -> CropSampler:
    return CropSampler(
        items, old, batch_size=batch_size, crop_size=32, replay=replay,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("batch_size", "replay", "old"),
    [(4, 0.5, 2), (4, 0, 0), (4, 0.9, 3), (1, 0.5, 0), (10, 0.3, 3)],
)
def test_replay_is_that_share_of_every_batch(batch_size: int, replay: float, old: int) -> None:
    draws = sampler([item(1), item(2)], [item(100), item(101)], batch_size, replay)
    for _ in range(5):
        labels = draws.draw().labels[:, 0, 0]
        assert len(labels) == batch_size
        assert int((labels >= 100).sum()) == old


def test_without_rehearsal_images_all_are_the_users() -> None:
    assert len(sampler([item(1)], [], 4, 0.5).draw().labels) == 4


def test_all_images_are_seen_as_often() -> None:
    draws = sampler([item(n) for n in range(5)], [], 5, 0)
    for _ in range(3):
        assert sorted(draws.draw().labels[:, 0, 0].tolist()) == [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 80), width=st.integers(1, 80), seed=st.integers(0, 999))
def test_every_crop_holds_a_pixel_that_counts(height: int, width: int, seed: int) -> None:
    """A single stroke in a large image is in every crop of it."""
    random = np.random.default_rng(seed)
    one = item(3, (height, width), known=0.0)
    one.weights[random.integers(height), random.integers(width)] = 1
    for _ in range(3):
        batch = sampler([one], [], 1, 0).draw()
        assert batch.image.shape == (1, 1, 32, 32)
        assert int(batch.weights.sum()) == 1


@settings(max_examples=50)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_what_an_image_lacks_is_mirrored_and_counts_nothing(height: int, width: int) -> None:
    crop = cut(item(9, (height, width)), 0, 0, (32, 32))
    assert crop.image.shape == (32, 32, 1)
    assert (crop.image == crop.image[0, 0]).all()
    assert crop.weights.sum() == min(height, 32) * min(width, 32)


def test_weights_of_pixels() -> None:
    labels = np.array([[0, 1, 1, 255, 255]], np.uint8)
    supervision = np.array([[1, 2, 0, 1, 2]], np.uint8)
    assert pixel_weights(labels, supervision, 5.0).tolist() == [[1, 5, 0, 0, 0]]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_augmentation_moves_image_and_labels_together(channels: int) -> None:
    """A bright square labelled 1 stays a bright square labelled 1."""
    torch.manual_seed(0)
    image = torch.full((4, channels, 64, 64), 0.1)
    labels = torch.zeros(4, 64, 64, dtype=torch.uint8)
    image[:, :, 20:44, 10:30] = 0.9
    labels[:, 20:44, 10:30] = 1
    moved = Augmenter(TrainingConfig(augment=Augmentation.FULL))(
        Batch(image, labels, torch.ones(4, 64, 64))
    )
    assert moved.image.shape == image.shape
    assert moved.labels.dtype == torch.uint8
    assert set(moved.weights.unique().tolist()) <= {0.0, 1.0}
    assert moved.image.min() >= 0
    assert moved.image.max() <= 1
    assert not torch.equal(moved.labels, labels)
    for picture, mask, weight in zip(moved.image, moved.labels, moved.weights, strict=True):
        inside, outside = (mask == 1) & (weight > 0), (mask == 0) & (weight > 0)
        bright = picture.mean(0)
        assert bright[inside].median() > bright[outside].median() + 0.2
        threshold = (bright[inside].median() + bright[outside].median()) / 2
        agree = ((bright > threshold) == (mask == 1))[weight > 0].float().mean()
        assert agree > 0.95

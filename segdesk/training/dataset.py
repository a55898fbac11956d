"""Labelled images in memory, and the crops cut from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from segdesk.core.address import name_of, put_back
from segdesk.core.annotation import Supervision
from segdesk.core.card import ModelCard
from segdesk.core.classes import UNLABELLED
from segdesk.core.errors import InputError
from segdesk.core.manifest import ManifestSample
from segdesk.inference.normalize import fit_channels, scale
from segdesk.inference.predictor import planes_of
from segdesk.io.images import hash_file, read_image
from segdesk.io.labels import read_labels

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class Item:
    """One labelled plane.

    Attributes
    ----------
    name
        Where it comes from, for people.
    image
        float32 (Y, X, C), scaled by its own values but not yet standardised.
    labels
        uint8 (Y, X).
    weights
        float32 (Y, X): how much a pixel counts, 0 for those nobody spoke about.
    key
        Names the pixels of ``image`` and nothing else: hash of the file, and plane.
    """

    name: str
    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    weights: npt.NDArray[np.float32]
    key: str = ""

    def centers(self) -> npt.NDArray[np.int64]:
        """Return (n, 2) positions of pixels that count, for placing crops."""
        return np.argwhere(self.weights > 0)


def load_sample(sample: ManifestSample, card: ModelCard, corrected_weight: float) -> list[Item]:
    """Load the planes of a sample on which a person has spoken.

    A sample without labels, for a model that learns from images alone, gives all its
    planes; every pixel counts there and none is labelled.

    Raises
    ------
    InputError
        The image or labels cannot be read or have other sizes.
    """
    image = read_image(sample.image)
    unit = scale(fit_channels(image.data, card.channels, card.name), card.normalization)
    planes = planes_of(unit)
    if sample.labels is None:
        return [_unlabelled(sample, z, plane) for z, plane in enumerate(planes)]
    labels, supervision = read_labels(sample.labels)
    if image.data.shape[: labels.ndim] != labels.shape:
        raise InputError(
            f"{name_of(sample.image)} has changed its size since it was labelled; "
            f"{put_back(sample.image)}, or take the image out of the project with 'segdesk remove'."
        )
    if labels.ndim == 2:
        labels, supervision = labels[None], supervision[None]
    items = []
    for z, plane in enumerate(planes):
        weights = pixel_weights(labels[z], supervision[z], corrected_weight)
        if weights.any():
            items.append(Item(sample.id, plane, labels[z], weights, f"{sample.sha256}-{z}"))
    return items


def _unlabelled(sample: ManifestSample, z: int, plane: npt.NDArray[np.float32]) -> Item:
    shape = plane.shape[:2]
    labels, weights = np.full(shape, UNLABELLED, np.uint8), np.ones(shape, np.float32)
    return Item(sample.id, plane, labels, weights, f"{sample.sha256}-{z}")


def pixel_weights(
    labels: npt.NDArray[np.uint8], supervision: npt.NDArray[np.uint8], corrected_weight: float
) -> npt.NDArray[np.float32]:
    """Return how much each pixel counts: 0 unseen or unlabelled, else 1 or more."""
    weights = np.zeros(labels.shape, np.float32)
    weights[supervision == Supervision.ACCEPTED] = 1.0
    weights[supervision == Supervision.CORRECTED] = corrected_weight
    weights[labels == UNLABELLED] = 0.0
    return weights


def load_rehearsal(folder: Path, card: ModelCard, origin: ModelCard) -> list[Item]:
    """Load the images a model package carries against forgetting.

    Labels are given by class name; a class that ``card`` lacks is unlabelled.
    """
    lookup = np.full(256, UNLABELLED, np.uint8)
    for value, name in enumerate(origin.classes):
        if name in card.classes:
            lookup[value] = card.classes.index(name)
    items = []
    for path in sorted((folder / "images").glob("*.png")):
        data = fit_channels(read_image(path).data, card.channels, card.name)
        raw = read_image(folder / "labels" / path.name).data[..., 0]
        labels = lookup[raw]
        supervision = np.full(labels.shape, Supervision.ACCEPTED, np.uint8)
        weights = pixel_weights(labels, supervision, 1.0)
        if weights.any():
            unit = scale(data, card.normalization)
            name = f"rehearsal/{path.stem}"
            items.append(Item(name, unit, labels, weights, f"{hash_file(path)}-0"))
    return items


@dataclass(frozen=True)
class Batch:
    """Crops: scaled image (N, C, H, W), labels and weights (N, H, W)."""

    image: Tensor
    labels: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Batch:
        """Return some of the crops."""
        rows = slice(start, stop)
        return Batch(self.image[rows], self.labels[rows], self.weights[rows])


class Turns:
    """Takes the members of some pools in shuffled orders, so that all are seen as often.

    Parameters
    ----------
    sizes
        How many members each pool has.
    generator
        Source of all randomness.
    """

    def __init__(self, sizes: Sequence[int], generator: torch.Generator) -> None:
        self._sizes = sizes
        self._generator = generator
        self._orders: list[list[int]] = [[] for _ in sizes]

    def next(self, pool: int) -> int:
        """Return the index of the next member of a pool."""
        order = self._orders[pool]
        if not order:
            order.extend(torch.randperm(self._sizes[pool], generator=self._generator).tolist())
        return order.pop()

    def state(self) -> list[list[int]]:
        """Return what is left of each pool's present order."""
        return [list(order) for order in self._orders]

    def restore(self, state: list[list[int]]) -> None:
        """Go on where :meth:`state` was taken."""
        self._orders = [list(order) for order in state]


def replayed_of(batch_size: int, replay: float, *, has_old: bool) -> int:
    """Return how many crops of a batch come from old images; one at least is new."""
    return min(batch_size - 1, round(batch_size * replay)) if has_old else 0


class CropSampler:
    """Draws crops around pixels that count.

    Every batch takes ``replay`` of its crops from the rehearsal items, and the
    rest from the user's, each in a shuffled order so that all are seen as often.

    Parameters
    ----------
    items, rehearsal
        The user's planes and those against forgetting (may be empty).
    crop_size
        Side of a crop, in pixels; smaller images are mirrored up to it.
    generator
        Source of all randomness.
    """

    def __init__(
        self,
        items: list[Item],
        rehearsal: list[Item],
        *,
        batch_size: int,
        crop_size: int,
        replay: float,
        generator: torch.Generator,
    ) -> None:
        self._generator = generator
        self._crop_size = crop_size
        old = replayed_of(batch_size, replay, has_old=bool(rehearsal))
        self._pools = [(items, batch_size - old), (rehearsal, old)]
        self._centers = {id(item): item.centers() for item in [*items, *rehearsal]}
        self.turns = Turns([len(items), len(rehearsal)], generator)

    def draw(self) -> Batch:
        """Return the next batch."""
        crops = [
            self._crop(pool[self.turns.next(which)])
            for which, (pool, count) in enumerate(self._pools)
            for _ in range(count)
        ]
        return stack(crops)

    def _integer(self, high: int) -> int:
        return int(torch.randint(high, (1,), generator=self._generator))

    def _crop(self, item: Item) -> Item:
        centers = self._centers[id(item)]
        size = self._crop_size
        center = centers[self._integer(len(centers))]
        corner = []
        for middle, length in zip(center.tolist(), item.labels.shape, strict=True):
            # The chosen pixel may lie anywhere in the crop, not just in its middle.
            start = middle - self._integer(size)
            corner.append(min(max(start, 0), max(length - size, 0)))
        return cut(item, corner[0], corner[1], (size, size))


def cut(item: Item, y: int, x: int, size: tuple[int, int]) -> Item:
    """Cut a rectangle of (height, width); what the image lacks is mirrored and counts nothing."""
    height, width = size
    box = (slice(y, y + height), slice(x, x + width))
    image, labels, weights = item.image[box], item.labels[box], item.weights[box]
    missing = [(0, whole - length) for whole, length in zip(size, labels.shape, strict=True)]
    if any(after for _, after in missing):
        image = np.pad(image, [*missing, (0, 0)], mode="reflect")
        labels = np.pad(labels, missing)
        weights = np.pad(weights, missing)
    return Item(item.name, image, labels, weights, item.key)


def stack(items: Iterable[Item]) -> Batch:
    """Make a batch of items of one size."""
    chosen = list(items)
    return Batch(
        torch.from_numpy(np.stack([i.image.transpose(2, 0, 1) for i in chosen])),
        torch.from_numpy(np.stack([i.labels for i in chosen])),
        torch.from_numpy(np.stack([i.weights for i in chosen])),
    )

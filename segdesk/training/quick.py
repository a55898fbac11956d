"""The quick recipe: features computed once and kept on disk, and a head trained on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segdesk.config.training import TrainingConfig
from segdesk.core.errors import SegDeskError
from segdesk.inference.normalize import standardize
from segdesk.io.atomic import atomic_write_bytes
from segdesk.nn.losses import Loss
from segdesk.nn.weights import LoadedModel
from segdesk.training.dataset import Item, Turns, cut, replayed_of
from segdesk.training.start import RunData

#: Side of the largest crop whose features are computed at once, in pixels.
LARGEST = 512
#: So many pixels of the user's images are looked at, spread over them, and so many of old ones.
MOST_PIXELS = 4_000_000
MOST_OLD_PIXELS = 1_000_000
#: What all kept features of a project may take on disk, in bytes; the oldest go first.
MOST_BYTES = 2 * 2**30
#: Side of what a step learns from, in pixels, cut from the features of a crop.
PATCH = 80

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Features:
    """What the frozen network makes of some crops.

    Attributes
    ----------
    levels
        float16 (N, C_i, h_i, w_i), from the first level of the encoder to the last of
        the decoder.
    own
        float32 (N, K, H, W), the network's own maps.
    labels, weights
        (N, H, W), as in :class:`segdesk.training.dataset.Batch`.
    """

    levels: list[Tensor]
    own: Tensor
    labels: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Features:
        """Return some of the crops."""
        rows = slice(start, stop)
        levels = [level[rows] for level in self.levels]
        return Features(levels, self.own[rows], self.labels[rows], self.weights[rows])

    def patch(self, y: int, x: int, size: int, grid: int) -> Features:
        """Cut a square whose corner and side are multiples of ``grid`` pixels."""
        height = self.labels.shape[-2]
        levels = []
        for level in self.levels:
            step = height // level.shape[-2]
            if grid % step:  # a level that is pooled to a few cells stays whole
                levels.append(level)
                continue
            a, b, side = y // step, x // step, size // step
            levels.append(level[..., a : a + side, b : b + side])
        box = (..., slice(y, y + size), slice(x, x + size))
        return Features(levels, self.own[box], self.labels[box], self.weights[box])


class FeatureFeed:
    """Draws squares of features around pixels that count, half of them from old images.

    Parameters
    ----------
    new, old
        Features of one crop each, of the user's images and of those against forgetting.
    """

    is_light = True
    turns = 1

    def __init__(
        self,
        new: list[Features],
        old: list[Features],
        config: TrainingConfig,
        stride: int,
        generator: torch.Generator,
    ) -> None:
        least = min(min(crop.labels.shape[-2:]) for crop in (*new, *old))
        self._grid = stride
        self._size = max(stride, min(least, PATCH) // stride * stride)
        count = replayed_of(config.batch_size, config.replay, has_old=bool(old))
        # As many pixels as a batch of whole crops would be too many for a quick step.
        self._pools = [(new, config.batch_size - count), (old, count)]
        self._generator = generator
        self._turns = Turns([len(new), len(old)], generator)

    def draw(self) -> Features:
        """Return the next batch."""
        drawn = [
            self._patch(pool[self._turns.next(which)])
            for which, (pool, count) in enumerate(self._pools)
            for _ in range(count)
        ]
        levels = [
            torch.cat(level).float() for level in zip(*(d.levels for d in drawn), strict=True)
        ]
        return Features(
            levels,
            torch.cat([d.own for d in drawn]),
            torch.cat([d.labels for d in drawn]),
            torch.cat([d.weights for d in drawn]),
        )

    def loss(self, network: nn.Module, batch: Features, loss: Loss, turn: int) -> Tensor:
        """Return the loss of the quick head's maps on top of the network's own."""
        model: Any = network
        device = next(network.parameters()).device
        own = batch.own.to(device)
        maps = model.refine([level.to(device) for level in batch.levels], own, own)
        value = loss(maps.float(), batch.labels.to(device), batch.weights.to(device))
        return value.reshape(1)

    def state(self) -> list[list[int]]:
        """Return where it is."""
        return self._turns.state()

    def restore(self, state: list[list[int]]) -> None:
        """Go on there."""
        self._turns.restore(state)

    def _patch(self, crop: Features) -> Features:
        """Cut a square that holds a pixel that counts."""
        known = torch.nonzero(crop.weights[0] > 0)
        chosen = known[int(torch.randint(len(known), (1,), generator=self._generator))]
        corner = []
        for middle, length in zip(chosen.tolist(), crop.labels.shape[-2:], strict=True):
            start = middle - int(torch.randint(self._size, (1,), generator=self._generator))
            start = min(max(start, 0), length - self._size)
            # On the grid, and still with the chosen pixel inside.
            start = start // self._grid * self._grid
            corner.append(start)
        return crop.patch(corner[0], corner[1], self._size, self._grid)


def feature_feed(
    model: LoadedModel,
    device: torch.device,
    data: RunData,
    config: TrainingConfig,
    generator: torch.Generator,
    cache: Path,
    progress: Progress,
) -> FeatureFeed:
    """Compute or find the features of a run's images, and feed on them.

    Crops are taken from each image where a person has spoken, whole images if they are small.
    The quick head's standardisation is measured on them, unless it has learnt already.
    """
    head: Any = model.network.get_submodule("quick")
    store = FeatureStore(cache, model, device)
    pools = [
        keep_features(store, items, most, progress)
        for items, most in ((data.train, MOST_PIXELS), (data.rehearsal, MOST_OLD_PIXELS))
    ]
    store.prune()
    if all(bool((norm.running_mean == 0).all()) for norm in head.norms):
        head.measure([crop.levels for pool in pools for crop in pool])
    return FeatureFeed(pools[0], pools[1], config, model.spec.stride, generator)


def keep_features(
    store: FeatureStore, items: Sequence[Item], most: int, progress: Progress
) -> list[Features]:
    """Compute or find the features of images, at most about ``most`` pixels of them."""
    crops = list(_spread(items, store.stride, most))
    found = []
    for done, (crop, name) in enumerate(crops):
        progress(done, len(crops), "Computing features")
        found.append(store.features(crop, name))
    return found


def _spread(items: Sequence[Item], stride: int, most: int) -> Iterator[tuple[Item, str]]:
    """Take crops in turn from each image, those with most known pixels first."""
    rows = [_crops(item, stride) for item in items]
    pixels = 0
    for rank in range(max(map(len, rows), default=0)):
        for row in rows:
            if rank < len(row) and (pixels < most or rank == 0):
                pixels += row[rank][0].labels.size
                yield row[rank]


def _crops(item: Item, stride: int) -> list[tuple[Item, str]]:
    """Return the crops of an image in which a person has spoken, and names for them."""
    found = []
    height, width = (_even(length, stride) for length in item.labels.shape)
    for y in range(0, item.labels.shape[0], height):
        for x in range(0, item.labels.shape[1], width):
            crop = cut(item, y, x, (height, width))
            known = int(np.count_nonzero(crop.weights))
            if known:
                found.append((known, crop, f"{item.key}-{y}-{x}-{height}-{width}"))
    found.sort(key=lambda entry: -entry[0])
    return [(crop, name) for _, crop, name in found]


def _even(length: int, stride: int) -> int:
    """Return the side of equal crops, a multiple of the stride, that cover ``length``."""
    count = -(-length // LARGEST)
    return -(-length // (count * stride)) * stride


class FeatureStore:
    """Features on disk, named by the weights and the pixels they are of.

    Parameters
    ----------
    folder
        May be deleted at any time.
    """

    def __init__(self, folder: Path, model: LoadedModel, device: torch.device) -> None:
        self._folder = folder
        self._network: Any = model.network
        self._how = model.card.normalization
        self._device = device
        self._model = _fingerprint(model)
        #: Sides of crops are multiples of this, in pixels.
        self.stride = model.spec.stride

    def features(self, crop: Item, name: str) -> Features:
        """Return the features of a crop called ``name``, from disk where they are there."""
        path = (
            self._folder / f"{self._model}-{hashlib.sha256(name.encode()).hexdigest()}.safetensors"
        )
        labels, weights = torch.from_numpy(crop.labels)[None], torch.from_numpy(crop.weights)[None]
        with suppress(OSError, SafetensorError, KeyError):
            found = load_file(path)
            levels = [found[f"level{i}"] for i in range(len(found) - 1)]
            path.touch()  # it was of use lately
            return Features(levels, found["own"], labels, weights)
        levels, own = self._compute(crop)
        tensors = {f"level{i}": level for i, level in enumerate(levels)} | {"own": own}
        # Features can be computed again: a full disk is no reason to fail.
        with suppress(OSError, SegDeskError):
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, save(tensors))
        return Features(levels, own, labels, weights)

    def _compute(self, crop: Item) -> tuple[list[Tensor], Tensor]:
        plane = standardize(crop.image, self._how).transpose(2, 0, 1)
        image = torch.from_numpy(np.ascontiguousarray(plane))[None].float().to(self._device)
        self._network.eval()
        with torch.no_grad():
            levels, own = self._network.features(
                image.contiguous(memory_format=torch.channels_last)
            )
        return [level.half().cpu().contiguous() for level in levels], own.float().cpu().contiguous()

    def prune(self) -> None:
        """Delete the features that were of use longest ago, beyond what may be kept."""
        with suppress(OSError):
            files = sorted(
                self._folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime, reverse=True
            )
            kept = 0
            for path in files:
                kept += path.stat().st_size
                if kept > MOST_BYTES:
                    path.unlink()


def _fingerprint(model: LoadedModel) -> str:
    """Hash all weights but the quick head's, which features do not depend on."""
    digest = hashlib.sha256(model.card.normalization.model_dump_json().encode())
    for name, value in model.network.state_dict().items():
        if not name.startswith("quick."):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]

"""What a user wants to know before a run: how long, how much memory, and what it will see."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from segdesk.config.training import Augmentation, Recipe, TrainingConfig
from segdesk.core.annotation import Supervision
from segdesk.core.errors import CanceledError, SegDeskError
from segdesk.core.manifest import RunManifest
from segdesk.core.run import RunState
from segdesk.inference.normalize import fit_channels, scale
from segdesk.inference.predictor import planes_of
from segdesk.io.images import read_image
from segdesk.io.labels import read_labels
from segdesk.io.packages import REHEARSAL, read_card
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.heap import give_back_freed_memory
from segdesk.jobs.messages import AnyEvent, Estimated, EstimateOrder, Finished, Varied, VaryOrder
from segdesk.nn.device import pick_device, place
from segdesk.nn.losses import make_loss
from segdesk.nn.weights import seed_everything
from segdesk.training.augment import Augmenter
from segdesk.training.dataset import CropSampler, Item, pixel_weights, stack
from segdesk.training.feeds import CropFeed, Feed, few_threads
from segdesk.training.optimizing import keeps_norm, make_optimizer, set_training_mode
from segdesk.training.preview import colour_image, with_labels, write_png
from segdesk.training.quick import (
    MOST_OLD_PIXELS,
    MOST_PIXELS,
    FeatureStore,
    feature_feed,
    keep_features,
)
from segdesk.training.start import KEEP_BACK, RunData, Start, load_known, load_start

EXAMPLES = 8
EXAMPLE_SIDE = 320
#: Writing the model and reading the images, in seconds, about.
FIXED_SECONDS = 1.0

Send = Callable[[AnyEvent], None]


def answer(order: EstimateOrder | VaryOrder, send: Send, token: CancelToken) -> None:
    """Answer a question, and say that it is answered."""
    try:
        if isinstance(order, EstimateOrder):
            estimate(order, send, token)
        else:
            vary(order, send, token)
        end = Finished(job=order.job, state=RunState.COMPLETED)
    except CanceledError:
        end = Finished(job=order.job, state=RunState.CANCELED)
    except SegDeskError as error:
        end = Finished(job=order.job, state=RunState.FAILED, reason=error.message, is_input=True)
    except (RuntimeError, MemoryError) as error:  # no memory for a first step, most of all
        reason = f"A first step could not be timed ({error})."
        end = Finished(job=order.job, state=RunState.FAILED, reason=reason)
    send(end)


# How long ------------------------------------------------------------------------


def estimate(order: EstimateOrder, send: Send, token: CancelToken) -> None:
    """Time first steps on this machine and send an ``Estimated`` for each speed.

    Standard, full and scratch have the same steps to within a few hundredths (the
    gradients go through all layers), so one of them is timed for the three.
    """
    images = order.images or ((order.config.crop_size, order.config.crop_size),)
    quick = _time_quick(order, images, token)
    send(Estimated(job=order.job, recipe=Recipe.QUICK, seconds=quick[0], memory_bytes=quick[1]))
    full = _time_full(order, token)
    for recipe in (Recipe.STANDARD, Recipe.FULL, Recipe.SCRATCH):
        send(Estimated(job=order.job, recipe=recipe, seconds=full[0], memory_bytes=full[1]))
    if order.features is not None:
        _prepare_features(order, order.features, token)


def _prepare_features(order: EstimateOrder, cache: Path, token: CancelToken) -> None:
    """Compute what a quick run needs of the images that the model came with."""

    def check(done: int, total: int, text: str) -> None:
        token.check()

    start = _start(order, Recipe.QUICK)
    repeated, _ = load_known(_manifest(order), start, lambda text: None)
    device = pick_device(order.config.device).device
    place(start.model.network, device)
    store = FeatureStore(cache, start.model, device)
    keep_features(store, repeated, MOST_OLD_PIXELS, check)
    store.prune()


def _start(order: EstimateOrder, recipe: Recipe) -> Start:
    config = order.config.model_copy(update={"recipe": recipe})
    return load_start(_manifest(order), config, lambda text: None, lambda *_: None)


def _manifest(order: EstimateOrder) -> RunManifest:
    return RunManifest(
        run="estimate",
        new_model="estimate",
        base_folder=order.model_folder,
        channels=read_card(order.model_folder).channels,
        classes=order.classes,
        colors=order.colors,
        samples=(),
    )


def _noise(side: int, channels: int) -> Item:
    """Return an image to time with: what is on it does not matter."""
    rng = np.random.default_rng(0)
    image = rng.random((side, side, channels), np.float32)
    labels = (image[..., 0] > 0.5).astype(np.uint8)
    return Item("noise", image, labels, np.ones((side, side), np.float32), "noise")


def _time_full(order: EstimateOrder, token: CancelToken) -> tuple[float, int]:
    config = order.config.model_copy(update={"recipe": Recipe.FULL})
    start = _start(order, Recipe.FULL)
    device = pick_device(config.device).device
    network = place(start.model.network, device)
    optimizer, _ = make_optimizer(network, config)
    stride = start.model.spec.stride
    side = max(stride, config.crop_size // stride * stride)
    item = _noise(side, start.model.card.channels)
    generator = seed_everything(0)
    sampler = CropSampler(
        [item], [], batch_size=config.batch_size, crop_size=side, replay=0, generator=generator
    )
    feed = CropFeed.of(start.model, device, sampler, config)
    peak = _Peak(device)
    seconds = _step_seconds(network, optimizer, feed, config, peak, token)
    judging = _judge_seconds(network, item, config, order, token)
    return FIXED_SECONDS + config.steps * seconds + judging, peak.bytes


def _step_seconds(
    network: Any, optimizer: Any, feed: Feed, config: TrainingConfig, peak: _Peak,
    token: CancelToken,
) -> float:  # fmt: skip
    """Return what a step takes; the first of two also allocates, and picks kernels."""
    loss, seconds = make_loss(config), 0.0
    freeze = keeps_norm(config, is_new=False)
    with few_threads(feed.is_light):
        for _ in range(2):
            token.check()
            began = time.perf_counter()
            set_training_mode(network, config.recipe, freeze_norm=freeze)
            batch = feed.draw()
            for turn in range(feed.turns):
                optimizer.zero_grad(set_to_none=True)
                value = feed.loss(network, batch, loss, turn).sum()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                float(value.detach())  # wait for the device
            seconds = time.perf_counter() - began
            peak.look()
    return seconds


def _judge_seconds(
    network: Any, item: Item, config: TrainingConfig, order: EstimateOrder, token: CancelToken
) -> float:
    """Return the seconds that all looks at the images held back take."""
    token.check()
    checks = 1 + sum(config.is_check_due(step + 1) for step in range(config.total_steps))
    network.eval()
    image = stack([item]).image.to(pick_device(config.device).device)
    began = time.perf_counter()
    with torch.inference_mode():
        float(network(image).sum())
    per_pixel = (time.perf_counter() - began) / item.labels.size
    pixels = sum(height * width for height, width in order.judged)
    pixels += -(-_count_known(order) // KEEP_BACK) * item.labels.size
    return float(checks * per_pixel * pixels)


def _count_known(order: EstimateOrder) -> int:
    """Return how many images there are that the model learnt from, as a run would find them."""
    theirs = order.config.named(read_card(order.model_folder).classes)
    if not set(theirs) <= set(order.classes):
        return 0
    folder = order.model_folder / REHEARSAL / "images"
    return len(list(folder.glob("*.png"))) if folder.is_dir() else 0


def _time_quick(
    order: EstimateOrder, images: tuple[tuple[int, int], ...], token: CancelToken
) -> tuple[float, int]:
    config = order.config.model_copy(update={"recipe": Recipe.QUICK})
    start = _start(order, Recipe.QUICK)
    device = pick_device(config.device).device
    network = place(start.model.network, device)
    stride = start.model.spec.stride
    side = max(stride, config.crop_size // stride * stride)
    item = _noise(side, start.model.card.channels)
    data = RunData([item], [], [], [])
    token.check()
    peak = _Peak(device)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        feed = feature_feed(
            start.model, device, data, config, seed_everything(0), Path(folder), lambda *_: None
        )
        per_pixel = (time.perf_counter() - began) / item.labels.size
    optimizer, _ = make_optimizer(network, config)
    seconds = _step_seconds(network, optimizer, feed, config, peak, token)
    pixels = min(MOST_PIXELS, sum(height * width for height, width in images))
    judging = _judge_seconds(network, item, config, order, token)
    total = pixels * per_pixel + config.quick_steps * seconds + judging
    return FIXED_SECONDS + total, peak.bytes


class _Peak:
    """Greatest memory seen, in bytes: of the graphics card, or of the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            give_back_freed_memory()  # what was kept of something else is not this one's

    def look(self) -> None:
        """Take the present use into account."""
        if self._device.type == "cuda":
            now = torch.cuda.max_memory_allocated(self._device)
        else:
            now = psutil.Process().memory_info().rss
        self.bytes = max(self.bytes, now)


# What it will see ------------------------------------------------------------------


def vary(order: VaryOrder, send: Send, token: CancelToken) -> None:
    """Write pictures of an image as augmentation varies it; the first is the image itself."""
    card = read_card(order.model_folder)
    planes = planes_of(scale(fit_channels(read_image(order.image).data, card.channels, card.name),
                             card.normalization))  # fmt: skip
    middle = len(planes) // 2
    image = planes[middle]
    labels = np.zeros(image.shape[:2], np.uint8)
    if order.labels is not None:
        known, supervision = read_labels(order.labels)
        known = known if known.ndim == 2 else known[middle]
        supervision = supervision if supervision.ndim == 2 else supervision[middle]
        labels = np.where(supervision == Supervision.UNSEEN, 0, known).astype(np.uint8)
    weights = pixel_weights(labels, np.full(labels.shape, Supervision.ACCEPTED, np.uint8), 1.0)
    height, width = image.shape[:2]
    side = min(EXAMPLE_SIDE, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    box = (slice(top, top + side), slice(left, left + side))
    batch = stack([Item("", image[box], labels[box], weights[box])])
    if order.config.augment is Augmentation.NONE:
        examples = [batch]
    else:
        seed_everything(order.config.seed)
        augment = Augmenter(order.config)
        examples = [batch, *(augment(batch) for _ in range(EXAMPLES))]
    paths = []
    for number, example in enumerate(examples):
        token.check()
        picture = colour_image(example.image[0].permute(1, 2, 0).numpy())
        path = order.out / f"{number}.png"
        write_png(path, with_labels(picture, example.labels[0].numpy(), order.colors))
        paths.append(path)
    send(Varied(job=order.job, pictures=tuple(paths)))

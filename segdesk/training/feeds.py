"""What a run learns from, step by step: crops of images, or features of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segdesk.config.training import Augmentation, TrainingConfig
from segdesk.core.card import Normalization
from segdesk.nn.losses import Loss
from segdesk.nn.weights import LoadedModel
from segdesk.training.augment import Augmenter
from segdesk.training.dataset import Batch, CropSampler


class Feed(Protocol):
    """Draws batches and knows what the loss of one is.

    ``is_light``: a step computes so little that threads cost more than they gain.
    ``turns``: losses of a batch that are lowered one after the other, a step for each.
    """

    is_light: bool
    turns: int

    def draw(self) -> Any:
        """Return the next batch."""
        ...

    def loss(self, network: nn.Module, batch: Any, loss: Loss, turn: int) -> Tensor:
        """Return what each output adds to the loss of a batch in a turn, shape (outputs,).

        The main output comes first; their sum is ready for a backward pass.
        """
        ...

    def state(self) -> list[list[int]]:
        """Return where it is, to go on there."""
        ...

    def restore(self, state: list[list[int]]) -> None:
        """Go on there."""
        ...


@contextmanager
def few_threads(is_wanted: bool) -> Iterator[None]:
    """Compute on one thread if that is wanted: two took 2.5 times as long for small maps."""
    before = torch.get_num_threads()
    if is_wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if is_wanted:
            torch.set_num_threads(before)


class CropFeed:
    """Crops, varied by augmentation.

    Parameters
    ----------
    sampler
        Cuts the crops.
    augment
        Varies them; None leaves them as they are.
    normalization
        Of the model.
    needs_labels
        False for a network with losses of its own.
    turns
        How many, which are lowered one after the other.
    """

    is_light = False

    def __init__(
        self,
        sampler: CropSampler,
        augment: Augmenter | None,
        normalization: Normalization,
        device: torch.device,
        *,
        needs_labels: bool = True,
        turns: int = 1,
    ) -> None:
        self._sampler = sampler
        self._augment = augment
        self._how = normalization
        self._device = device
        self._needs_labels = needs_labels
        self.turns = turns

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        device: torch.device,
        sampler: CropSampler,
        config: TrainingConfig,
    ) -> CropFeed:
        """Feed a model with crops, varied as ``config`` says."""
        augment = None if config.augment is Augmentation.NONE else Augmenter(config)
        how, spec = model.card.normalization, model.spec
        return cls(sampler, augment, how, device, needs_labels=spec.needs_labels, turns=spec.turns)

    def draw(self) -> Batch:
        """Return the next batch."""
        batch = self._sampler.draw()
        return self._augment(batch) if self._augment is not None else batch

    def loss(self, network: nn.Module, batch: Batch, loss: Loss, turn: int) -> Tensor:
        """Return what each output adds to the loss of a batch, the main output first."""
        model: Any = network
        image = ((batch.image - self._how.mean) / self._how.std).to(
            self._device, memory_format=torch.channels_last
        )
        if not self._needs_labels:
            own: Tensor = model.own_loss(image, turn)
            return own.reshape(1)
        labels, weights = batch.labels.to(self._device), batch.weights.to(self._device)
        # Third parties' networks may know of no auxiliary outputs.
        has_more = hasattr(model, "training_maps")
        outputs = model.training_maps(image) if has_more else [(1.0, model(image))]
        return torch.stack([share * loss(m.float(), labels, weights) for share, m in outputs])

    def state(self) -> list[list[int]]:
        """Return where it is."""
        return self._sampler.turns.state()

    def restore(self, state: list[list[int]]) -> None:
        """Go on there."""
        self._sampler.turns.restore(state)

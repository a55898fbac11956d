"""Which weights learn, how fast, and how the rate changes from step to step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segdesk.config.training import (
    QUICK_RATE,
    STANDARD_ENCODER_RATE,
    Optimizer,
    Recipe,
    Schedule,
    TrainingConfig,
)
from segdesk.training.checkpoint import snapshot

#: Of the poly schedule (Chen et al., DeepLab, section 4.1).
POLY_POWER = 0.9

_PARTS = {
    Recipe.QUICK: ("quick",),
    Recipe.HEAD: ("head", "quick"),
    Recipe.DECODER: ("decoder", "head", "quick"),
    Recipe.STANDARD: ("encoder", "decoder", "head", "quick"),
    Recipe.FULL: ("encoder", "decoder", "head", "quick"),
    Recipe.SCRATCH: ("encoder", "decoder", "head", "quick"),
}


def learning_parts(network: nn.Module, recipe: Recipe) -> dict[str, nn.Module]:
    """Return the parts of a network that learn, by name."""
    own = dict(network.named_children())
    return {name: own[name] for name in _PARTS[recipe] if name in own}


def make_optimizer(
    network: nn.Module, config: TrainingConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Let the recipe's parts learn, each at its own rate, and freeze the rest."""
    network.requires_grad_(False)
    is_standard = config.recipe is Recipe.STANDARD
    encoder = config.encoder_rate * (STANDARD_ENCODER_RATE if is_standard else 1.0)
    rates = {"encoder": encoder, "head": config.head_rate}
    if config.recipe is Recipe.QUICK:
        rates["quick"] = QUICK_RATE
    groups: list[dict[str, Any]] = []
    for name, part in learning_parts(network, config.recipe).items():
        part.requires_grad_(True)
        rate = rates.get(name, 1.0)
        parameters = list(part.parameters())
        if parameters:
            groups.append({"params": parameters, "lr": rate * config.learning_rate, "rate": rate})
    optimizer: torch.optim.Optimizer
    if config.optimizer is Optimizer.SGD:
        optimizer = torch.optim.SGD(
            groups, momentum=config.momentum, weight_decay=config.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, _factor_of(config))


def _factor_of(config: TrainingConfig) -> Any:
    """Return what the learning rate is multiplied by at a step, counted from 0."""
    warm_up = max(1, round(config.warm_up * config.total_steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        part = min(1.0, (step - warm_up) / max(1, config.total_steps - warm_up))
        if config.schedule is Schedule.CONSTANT:
            return 1.0
        if config.schedule is Schedule.POLY:
            return float((1 - part) ** POLY_POWER)
        return 0.5 * (1 + math.cos(math.pi * part))

    return factor


def keeps_norm(config: TrainingConfig, *, is_new: bool) -> bool:
    """Whether normalisation keeps the statistics it starts with.

    Images of another kind have others, and with the old ones nothing may be learnt of them:
    20 polyps from a model of nuclei, Dice 0.00 in 200 steps, and 0.33 with their own. What
    the model knew is kept by repeating it, not by them (docs/benchmarks.md).

    Parameters
    ----------
    is_new
        The model starts from random weights.
    """
    if config.recipe is Recipe.QUICK:
        return True  # its head standardises by what was measured on all that it learns from
    return config.freeze_norm and not is_new


def set_training_mode(network: nn.Module, recipe: Recipe, *, freeze_norm: bool) -> None:
    """Put what learns into training mode, but for normalisation that keeps its statistics."""
    network.eval()
    for part in learning_parts(network, recipe).values():
        part.train()
    if freeze_norm:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def are_finite(weights: Mapping[str, Tensor]) -> bool:
    """Whether no weight is infinite or no number."""
    return all(bool(torch.isfinite(value).all()) for value in weights.values())


class WeightAverage:
    """The running mean of a network's weights (Polyak averaging).

    Parameters
    ----------
    keep
        How much of the mean each step keeps. The first steps keep less of it, or a
        short run would stay where it began.
    """

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self.mean: dict[str, Tensor] = {}

    def take(self, network: nn.Module, step: int) -> None:
        """Take the weights after ``step`` steps into the mean."""
        kept = min(self._keep, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if not value.is_floating_point() or name not in self.mean:
                self.mean[name] = value.detach().clone()
            else:
                self.mean[name].lerp_(value, 1 - kept)

    @contextmanager
    def lent(self, network: nn.Module) -> Iterator[None]:
        """Lend the network the mean."""
        own = snapshot(network)
        network.load_state_dict(self.mean)
        try:
            yield
        finally:
            network.load_state_dict(own)

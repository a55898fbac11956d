"""A head that is trained alone, in seconds, on features that are computed once.

The network's own maps stay, and the quick head's are added to them: it begins near
nothing, so a model is at first what it was. It sees several levels of features,
resampled, because the last decoder map alone is too poor for a new kind of image
(docs/benchmarks.md), as good pixel classifiers do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.nn.heads import HeadConfig, HeadKind
from segdesk.nn.segmenter import Segmenter, resize
from segdesk.nn.spec import ModelSpec

#: Channels that each level is projected to.
CHANNELS = 16
LEAK = 0.1


class QuickHead(nn.Module):
    """Levels of features to class maps: projections, their sum, CBAM, outputs per class.

    Parameters
    ----------
    config
        Classes, kind and activation; kind A and B become C, as the rest has no CBAM.
    widths
        Channels of each level.
    channels
        What they are projected to.

    Notes
    -----
    Projection and bilinear resizing commute, so levels are projected while they are
    small: a whole step on four crops of 224 pixels takes a tenth of a second on a CPU.
    """

    def __init__(self, config: HeadConfig, widths: Sequence[int], channels: int = CHANNELS) -> None:
        super().__init__()
        kind = config.kind if config.kind.has_cbam else HeadKind.C
        config = HeadConfig(config.classes, kind, config.activation)
        #: Standardise each channel by what :meth:`measure` found, and not by the image at
        #: hand: a tile must not depend on what else is in it.
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for width in widths)
        self.levels = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.branch = config.branch(channels)
        self.activation = config.output_activation()
        for layer in self.branch.get_submodule("output").modules():
            if isinstance(layer, nn.Conv2d):
                # Small and not zero: a ReLU behind it would never wake up again.
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def measure(self, pyramids: Sequence[Sequence[Tensor]]) -> None:
        """Take mean and variance of each channel from the features of some images."""
        for index, norm in enumerate(self.norms):
            pixels = torch.cat([p[index].float().flatten(2) for p in pyramids], 2)
            norm.running_mean = pixels.mean((0, 2))
            norm.running_var = pixels.var((0, 2))

    def forward(self, levels: Sequence[Tensor], like: Tensor) -> Tensor:
        """Return maps (N, K, H, W) of the height and width of ``like``."""
        total: Tensor | None = None
        # Level by level towards the finest, so that small maps are enlarged in small steps.
        order = sorted(range(len(levels)), key=lambda i: levels[i].shape[-1])
        for index in order:
            projected = self.levels[index](self.norms[index](levels[index]))
            total = projected if total is None else projected + resize(total, projected)
        assert total is not None
        # Leaky: at the rate that seconds allow for, every other run lost its plain ReLUs
        # for good, and stayed at Dice 0.45 where this one reaches 0.78.
        features = F.leaky_relu(resize(total, like), LEAK)
        maps: Tensor = self.activation(self.branch(features))
        return maps


def require_quick(network: nn.Module, name: str) -> Segmenter:
    """Return a network that takes a quick head.

    Raises
    ------
    InputError
        It, called ``name``, does not put encoder, decoder and head in a row.
    """
    if isinstance(network, Segmenter) and network.takes_quick_head:
        return network
    raise InputError(
        f"The recipe quick does not work with {name}, which does more than encoder, decoder and "
        "head in a row; choose the recipe head."
    )


def add_quick_head(network: nn.Module, card: ModelCard, spec: ModelSpec) -> None:
    """Give a network an untrained quick head, in place, unless it has one.

    Raises
    ------
    InputError
        The architecture does not put encoder, decoder and head in a row.
    """
    network = require_quick(network, card.architecture)
    if network.quick is not None:
        return
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    side = max(2 * spec.stride, spec.min_size, 64)
    side += -side % spec.stride
    with torch.no_grad():
        levels = network.features(torch.zeros(1, card.channels, side, side, device=device))[0]
    options = card.options
    head, activation = str(options.get("head", "A")), str(options.get("activation", "none"))
    config = HeadConfig.of(len(card.classes), head, activation)
    network.quick = QuickHead(config, [level.shape[1] for level in levels]).to(device)
    network.train(was_training)

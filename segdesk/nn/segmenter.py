"""What every architecture is: an encoder, a decoder and a head in a row."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Segmenter(nn.Module):
    """Base of the architectures.

    ``forward`` takes float32 (N, C, H, W), with H and W multiples of the spec's
    stride, and returns class maps (N, K, H, W) that go into a softmax. The three
    parts hold every parameter once, for freezing and learning rates by part.

    Parameters
    ----------
    encoder
        Image to features, of any structure the decoder takes.
    decoder
        Those to what the head takes.
    head
        To class maps, usually :class:`segdesk.nn.heads.Head`.
    align_corners
        How class maps smaller than the image are enlarged bilinearly.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        *,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self._align_corners = align_corners
        #: A head trained alone on several levels of features (:mod:`segdesk.nn.quick`).
        self.quick: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return class maps (N, K, H, W) for images (N, C, H, W)."""
        if self.quick is not None:
            levels, own = self.features(x)
            return self.refine(levels, own, x)
        maps: Tensor = self.head(self.decoder(self.encoder(x)))
        return self.enlarge(maps, x)

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what a quick head sees, levels (N, C_i, h_i, w_i), and the own maps."""
        features = self.encoder(x)
        # A decoder may take maps out of the list it is given, to have room for larger ones,
        decoded = self.decoder(list(features) if isinstance(features, list) else features)
        # or write into what it is given: the maps are looked at after it.
        return maps_in((features, decoded)), self.enlarge(self.head(decoded), x)

    def refine(self, levels: list[Tensor], own: Tensor, like: Tensor) -> Tensor:
        """Add the quick head's maps to the network's own."""
        added: Tensor = self.quick(levels, like) if self.quick is not None else own.new_zeros(())
        return own + added

    @property
    def takes_quick_head(self) -> bool:
        """Whether nothing but encoder, decoder and head makes the maps."""
        return type(self).forward is Segmenter.forward

    def training_maps(self, x: Tensor) -> list[tuple[float, Tensor]]:
        """Return the maps that learn from the labels, and how much each counts.

        More than one where the paper has auxiliary outputs.
        """
        return [(1.0, self(x))]

    def enlarge(self, maps: Tensor, image: Tensor) -> Tensor:
        """Enlarge class maps to the image's height and width, bilinearly."""
        return resize(maps, image, align_corners=self._align_corners)


def maps_in(value: Any) -> list[Tensor]:
    """Return all float maps (N, C, h, w) in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value] if value.ndim == 4 and value.is_floating_point() else []
    if isinstance(value, dict):
        return maps_in(tuple(value.values()))
    if isinstance(value, list | tuple):
        return [found for part in value for found in maps_in(part)]
    return []


def resize(x: Tensor, like: Tensor, *, align_corners: bool = False) -> Tensor:
    """Resize ``x`` bilinearly to the height and width of ``like``."""
    size: Any = like.shape[-2:]
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def init_he(module: nn.Module) -> None:
    """Draw convolutions with variance 2 / fan-in, biases 0 (He et al., ICCV 2015)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)

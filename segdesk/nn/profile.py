"""How large an architecture is and what it costs, computed from the network itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segdesk.nn.encoders import import_timm
from segdesk.nn.outline import Shortcut, build_outline
from segdesk.nn.spec import ModelSpec

#: About the side of the image the costs are computed for, in pixels.
TYPICAL_SIDE = 512
MEGAPIXEL = 1_000_000
FLOAT32 = 4

#: What is never counted and makes something new of its first input's shape. On the meta
#: device torch takes a norm apart into tens of steps.
_SHAPELESS = {F.batch_norm, F.layer_norm, F.group_norm, F.gelu, torch.sigmoid, torch.tanh}


@dataclass(frozen=True, slots=True)
class Profile:
    """Size and cost of a network.

    Attributes
    ----------
    parameters
        Trainable numbers, among them those of outputs that are there for training only.
    multiply_adds
        For a prediction, per megapixel of the image: those of convolutions, linear layers
        and attention. Bilinear enlarging, norms, activations and pooling are left out.
    activation_bytes
        Per megapixel of the image: the float32 outputs of all leaf layers of one forward
        pass in evaluation mode, about what a training step keeps for one image. A layer
        that hands on its input or overwrites it (dropout, an in-place ReLU) adds nothing;
        neither do functions between the layers, weights, gradients and the optimiser.
    side
        Height and width in pixels of the image this was computed for. Attention grows
        with the square of an image's pixels: larger ones cost more than in proportion.
    encoder
        timm's name of the encoder if weights under that name are published, otherwise
        empty. Narrowed or shortened by options, an encoder keeps the name only.
    """

    parameters: int
    multiply_adds: int
    activation_bytes: int
    side: int
    encoder: str = ""


def profile(
    spec: ModelSpec, variant_options: Mapping[str, Any], channels: int = 3, classes: int = 2
) -> Profile:
    """Compute size and cost of an architecture without running it.

    It is built and run on the meta device, which keeps shapes and no numbers. A network
    that needs numbers to be built or run is built and run on the CPU instead.

    Parameters
    ----------
    variant_options
        Options to set beside the spec's own.
    channels
        Of the image.
    classes
        Number of class maps.
    """
    options = {**spec.options, **variant_options}
    try:
        network = build_outline(spec, channels, classes, options)
        with torch.device("meta"), Shortcut(_SHAPELESS, torch.empty_like):
            return _measure(spec, network, channels)
    except (RuntimeError, TypeError, ValueError):
        # Not a network for the meta device; if it is none at all, this says why.
        network = spec.build(channels, classes, **options)
        with _countable_attention():
            return _measure(spec, network, channels)


def typical_side(spec: ModelSpec) -> int:
    """Return the side the architecture takes that is nearest to 512 pixels."""
    least = -(-spec.min_size // spec.stride)
    return max(1, least, round(TYPICAL_SIDE / spec.stride)) * spec.stride


def _measure(spec: ModelSpec, network: nn.Module, channels: int) -> Profile:
    side = typical_side(spec)
    kept = _watch(network.eval())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, channels, side, side))
    return Profile(
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        multiply_adds=_per_megapixel(counter.get_total_flops() / 2, side),
        activation_bytes=_per_megapixel(FLOAT32 * sum(kept), side),
        side=side,
        encoder=_published_encoder(network),
    )


def _per_megapixel(number: float, side: int) -> int:
    return round(number * MEGAPIXEL / side**2)


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Compute attention by matrix products; the counter does not know the CPU's fused kernels."""
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)


def _watch(network: nn.Module) -> list[int]:
    """Return a list that grows by the size of each leaf layer's output as it is made."""
    sizes: list[int] = []

    def note(_layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor) and not any(tensor is given for given in inputs):
                sizes.append(tensor.numel())

    for layer in network.modules():
        if next(layer.children(), None) is None:
            layer.register_forward_hook(note)
    return sizes


def _published_encoder(network: nn.Module) -> str:
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        return ""
    names = (getattr(part, "timm_name", None) for part in encoder.modules())
    for name in filter(None, names):
        config = import_timm().get_pretrained_cfg(name)
        # As for `encoder_weights=download`: without an address there is nothing to fetch.
        if config is not None and config.hf_hub_id:
            return str(name)
    return ""

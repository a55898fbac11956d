"""Networks without numbers: names and shapes of their tensors, in a moment and no memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from segdesk.config.model import HeadKind
from segdesk.core.errors import InputError
from segdesk.nn.registry import UNBUILDABLE, find_architecture, resolve_options
from segdesk.nn.spec import ModelSpec

#: Shape of every tensor of a network, by name.
Shapes = dict[str, tuple[int, ...]]

#: What initial weights are drawn with; on the meta device they do nothing, slowly.
_DRAWING = {
    getattr(torch.Tensor, name)
    for name in ("normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
}


def build_outline(
    spec: ModelSpec, channels: int, classes: int, options: Mapping[str, Any]
) -> nn.Module:
    """Build a network of any size on the meta device, its weights undrawn."""
    with torch.device("meta"), undrawn():
        return spec.build(channels, classes, **options)


def require_buildable(spec: ModelSpec, options: Mapping[str, Any]) -> None:
    """Refuse options from which no network can be made, before any image is read.

    Raises
    ------
    InputError
        Says what is wrong.
    """
    try:
        build_outline(spec, 3, 2, options)
    except UNBUILDABLE as error:
        raise InputError(f"{spec.name} cannot be built with these options: {error}.") from None


@cache
def outline(name: str, variant: str, head: HeadKind, channels: int, classes: int) -> Shapes:
    """Return the shapes of an installed architecture's tensors.

    Parameters
    ----------
    name
        Of the architecture.
    variant
        ``small`` or ``paper``.
    """
    spec = find_architecture(name)
    options = resolve_options(spec, variant, {"head": str(head)})
    return shapes_of(build_outline(spec, channels, classes, options).state_dict())


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """Return the shapes of named tensors."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def without_head(shapes: Shapes) -> Shapes:
    """Return the shapes of the encoder and the decoder."""
    return {name: shape for name, shape in shapes.items() if not name.startswith("head.")}


class Shortcut(TorchFunctionMode):
    """Answer some of torch's functions from their first input, without calling them."""

    def __init__(self, functions: Collection[Any], answer: Callable[[Any], Any]) -> None:
        super().__init__()
        self._functions, self._answer = functions, answer

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in self._functions:
            return self._answer(args[0])
        return func(*args, **(kwargs or {}))


def undrawn() -> Shortcut:
    """Leave tensors as they are made, while it is entered."""
    return Shortcut(_DRAWING, lambda tensor: tensor)

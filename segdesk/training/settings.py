"""Settings that do not go with a model or a machine, known before anything is read."""

from __future__ import annotations

import torch

from segdesk.config.training import Mixed, Recipe, TrainingConfig
from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.nn.device import pick_device
from segdesk.nn.pretrained import require_source
from segdesk.nn.quick import require_quick
from segdesk.nn.registry import build_network, find_architecture
from segdesk.nn.spec import ModelSpec

QUICK_NEEDS_A_MODEL = (
    "The recipe quick keeps what a model has learnt, and a new one has learnt nothing yet; train "
    "it with the recipe full."
)


def require_settings(
    config: TrainingConfig,
    architecture: str,
    card: ModelCard | None,
    encoder_weights: str = "",
) -> None:
    """Refuse what a run would refuse at its start.

    Parameters
    ----------
    card
        Of the trained model it starts from; None for an untrained one.
    encoder_weights
        Where an untrained one takes its encoder's weights from: a file, ``download`` or nowhere.

    Raises
    ------
    InputError
        A device that is not there, crops of a size the architecture does not take, or a
        recipe that does not go with the model.
    """
    require_precision(config.precision, pick_device(config.device).device)
    spec = find_architecture(architecture)
    require_crop(spec, config.crop_size)
    require_source(encoder_weights)
    if config.recipe is not Recipe.QUICK:
        return
    if card is None:
        raise InputError(QUICK_NEEDS_A_MODEL)
    with torch.device("meta"):
        network = build_network(card)
    require_quick(network, spec.title)


def require_precision(wanted: Mixed, device: torch.device) -> None:
    """Refuse what a device cannot learn in, or only in a hundred times the time (InputError)."""
    if wanted is Mixed.FLOAT16 and device.type == "cpu":
        raise InputError(
            "A processor cannot learn in float16 in good time; choose bfloat16, single or auto."
        )


def training_precision(wanted: Mixed, device: torch.device) -> Mixed:
    """Return what a device learns in; ``auto`` is settled."""
    if wanted is Mixed.AUTO:
        return Mixed.FLOAT16 if device.type == "cuda" else Mixed.SINGLE
    return wanted


def require_crop(spec: ModelSpec, size: int) -> None:
    """Refuse crops of a side, in pixels, that the architecture does not take (InputError)."""
    if size % spec.stride == 0 and size >= spec.min_size:
        return
    least = max(spec.stride, spec.min_size)
    nearest = max(round(size / spec.stride), -(-least // spec.stride)) * spec.stride
    raise InputError(
        f"Crops of {size} pixels do not fit {spec.title}: it needs multiples of "
        f"{spec.stride} from {least} on; the nearest is {nearest}."
    )

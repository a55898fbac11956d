"""From pixels as they are on disk to what a network takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from segdesk.core.card import Normalization
from segdesk.core.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

_SAMPLE_PIXELS = 1_000_000


def fit_channels(data: npt.NDArray[Any], channels: int, model: str) -> npt.NDArray[Any]:
    """Give an image, channels last, the channels a model takes.

    A grey image is repeated for a colour model. Nothing else is guessed.

    Raises
    ------
    InputError
        The image has other channels than the model.
    """
    found = data.shape[-1]
    if found == channels:
        return data
    if found == 1:
        return np.repeat(data, channels, axis=-1)
    raise InputError(
        f"The image has {found} channels, but the model {model!r} takes {channels}; choose a "
        "model made for such images, or save the image with the channels it needs."
    )


def scale(data: npt.NDArray[Any], how: Normalization) -> npt.NDArray[np.float32]:
    """Scale an image to 0..1 by its own percentiles, over all its channels.

    A constant image becomes 0 everywhere. Percentiles are taken from at most a
    million values, evenly spread, so that a large image takes no longer.
    """
    flat = data.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE_PIXELS)]
    low, high = np.percentile(sample, (how.low_percentile, how.high_percentile))
    if high <= low:
        low, high = float(sample.min()), float(sample.max())
    if high <= low:
        return np.zeros(data.shape, np.float32)
    scaled = (data.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def standardize(scaled: npt.NDArray[np.float32], how: Normalization) -> npt.NDArray[np.float32]:
    """Shift and scale an image from :func:`scale` as the model was trained."""
    return (scaled - np.float32(how.mean)) / np.float32(how.std)

"""From pixels as they are on disk to what a network takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segdesk.config.inference import Scaling
from segdesk.core.card import Normalization
from segdesk.core.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from segdesk.io.sources import ImageSource

_SAMPLE_PIXELS: Final = 1_000_000
#: A lazy image that is larger than this in memory, in bytes, is judged by some blocks.
WHOLE_BYTES: Final = 64 * 2**20
#: How many blocks of what side, in pixels.
BLOCKS: Final = 64
BLOCK_SIDE: Final = 256
#: Rows of an image that are read at a time where all of it counts.
BAND: Final = 512
#: Standard deviations that become 0..1, each side of the mean.
Z_RANGE: Final = 5.0
#: The one root above 1 of x**4 = x + 1.
_G: Final = 1.2207440846057596


def pick_channels(
    found: int, takes: int, model: str, chosen: Sequence[int] = (), image: str = "The image"
) -> tuple[int, ...]:
    """Say which of an image's channels a model gets, in its order.

    Without a choice an image of as many channels as the model takes is left as it is,
    and a grey image is repeated. Nothing else is guessed. A choice of one channel is
    repeated as well.

    Parameters
    ----------
    found
        Channels of the image, alpha not counted.
    takes
        Channels the model takes.
    chosen
        The user's choice, from 0; see
        :attr:`~segdesk.config.inference.InferenceConfig.chosen_channels`.
    image
        What the errors call it.

    Raises
    ------
    InputError
        The numbers of channels do not fit, or the image lacks a chosen channel.
    """
    if beyond := [c for c in chosen if c >= found]:
        last = f"channels 0 to {found - 1}" if found > 1 else "only channel 0"
        raise InputError(
            f"{image} has {last}, but the setting 'channels' asks for channel {beyond[0]}; "
            "correct it, or leave it empty."
        )
    picked = tuple(chosen) or tuple(range(found))
    if len(picked) == takes:
        return picked
    if len(picked) == 1:
        return picked * takes
    if chosen:
        raise InputError(
            f"The setting 'channels' names {len(chosen)} channels, but the model {model!r} takes "
            f"{takes}; name {takes}, or one to repeat."
        )
    example = ",".join(str(n % found) for n in range(takes))
    raise InputError(
        f"{image} has {found} channels, but the model {model!r} takes {takes}; say which it gets "
        f"with the setting 'channels' (such as channels={example}), or choose a model made for "
        "such images."
    )


def choose_channels(block: npt.NDArray[Any], picked: Sequence[int]) -> npt.NDArray[Any]:
    """Return a block, channels last, with the channels of :func:`pick_channels`."""
    if tuple(picked) == tuple(range(block.shape[-1])):
        return block
    return np.take(block, picked, axis=-1)


def fit_channels(data: npt.NDArray[Any], channels: int, model: str) -> npt.NDArray[Any]:
    """Give an image, channels last, the channels a model takes, where nobody can choose.

    A grey image is repeated for a colour model. Nothing else is guessed.

    Raises
    ------
    InputError
        The image has other channels than the model.
    """
    if data.shape[-1] not in (1, channels):
        raise InputError(
            f"The image has {data.shape[-1]} channels, but the model {model!r} takes {channels}; "
            "choose a model made for such images, or save the image with the channels it needs."
        )
    return choose_channels(data, pick_channels(data.shape[-1], channels, model))


def choose_method(how: Normalization, choice: Scaling) -> Normalization:
    """Return the card's normalisation with the method a user chose."""
    if choice is Scaling.CARD:
        return how
    return Normalization.model_validate({**how.model_dump(), "method": str(choice)})


@dataclass(frozen=True)
class Scaler:
    """Turns pixels of one image into the input of a network, piece by piece.

    Attributes
    ----------
    low, high
        The values that become 0 and 1; where they are equal the image is constant
        and becomes 0.
    mean, std
        What is subtracted and divided by afterwards.
    """

    low: float
    high: float
    mean: float
    std: float

    def __call__(self, block: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Scale and standardise a block, any shape and dtype."""
        return _standard(_unit(block, self.low, self.high), self.mean, self.std)

    def describe(self) -> str:
        """Say what it does, for people."""
        if self.high <= self.low:
            return "the image is constant and becomes 0"
        return f"values {self.low:.6g} to {self.high:.6g} become 0 to 1"


def fit_scaler(
    source: ImageSource, how: Normalization, channels: Sequence[int] | None = None
) -> Scaler:
    """Find the values that an image, all its planes together, is scaled by.

    Of images in memory and lazy ones of up to 64 MiB all pixels count, exactly as in
    :func:`scale`. Of larger ones, 64 blocks of 256 x 256 pixels of the finest level do,
    spread evenly over planes, rows and columns by Roberts' R3 sequence (The Unreasonable
    Effectiveness of Quasirandom Sequences, 2018). Coarser levels would be quicker, but
    averaging has taken the extremes from them. ``minmax`` then knows the blocks' least
    and greatest value only, and what lies beyond is clipped.

    Parameters
    ----------
    channels
        From :func:`pick_channels`; None for all as they are.

    Raises
    ------
    InputError
        Pixels cannot be read.
    """
    picked = tuple(range(source.channels)) if channels is None else tuple(channels)
    if not source.is_lazy:
        values = choose_channels(source.read_level(), picked).reshape(-1)
    elif source.nbytes > WHOLE_BYTES:
        values = np.concatenate(
            [choose_channels(b, picked).reshape(-1) for b in read_blocks(source)]
        )
    else:
        values = _telling_values(source, how, picked)
    return Scaler(*_limits(values, how), how.mean, how.std)


def _telling_values(
    source: ImageSource, how: Normalization, picked: Sequence[int]
) -> npt.NDArray[Any]:
    """Return those values of an image that decide its scale, without it being whole in memory."""
    height, width = source.shape[-2:]
    size = source.planes * height * width * len(picked)
    step = _step(size)
    kept: list[npt.NDArray[Any]] = []
    position = 0
    for z in range(source.planes):
        for y in range(0, height, BAND):
            band = source.read(z, slice(y, min(y + BAND, height)), slice(0, width))
            values = choose_channels(band, picked).reshape(-1)
            if how.method == "minmax":
                kept.append(np.array([values.min(), values.max()]))
            else:
                kept.append(values[-position % step :: step].copy())
            position += values.size
    return np.concatenate(kept)


def read_blocks(source: ImageSource) -> list[npt.NDArray[Any]]:
    """Read the blocks that tell the values of a large image; see :func:`fit_scaler`."""
    height, width = source.shape[-2:]
    high, wide = min(height, BLOCK_SIDE), min(width, BLOCK_SIDE)
    blocks = []
    for number in range(BLOCKS):
        across, down, deep = ((0.5 + number / _G**n) % 1 for n in (1, 2, 3))
        y, x = int(down * (height - high + 1)), int(across * (width - wide + 1))
        box = (slice(y, y + high), slice(x, x + wide))
        blocks.append(source.read(int(deep * source.planes), *box))
    return blocks


def scale(data: npt.NDArray[Any], how: Normalization) -> npt.NDArray[np.float32]:
    """Scale an image to 0..1 by its own values, over all its channels.

    A constant image becomes 0 everywhere. Percentiles, mean and standard deviation are
    taken from at most a million values, evenly spread, so that a large image takes no
    longer.
    """
    return _unit(data, *_limits(data.reshape(-1), how))


def _limits(values: npt.NDArray[Any], how: Normalization) -> tuple[float, float]:
    """Return the values that become 0 and 1; equal ones for a constant image."""
    if how.method == "minmax":
        return float(values.min()), float(values.max())
    sample = values[:: _step(values.size)]
    if how.method == "zscore" and sample.min() < sample.max():
        mean, spread = float(sample.mean(dtype=np.float64)), float(sample.std(dtype=np.float64))
        return mean - Z_RANGE * spread, mean + Z_RANGE * spread
    low, high = np.percentile(sample, (how.low_percentile, how.high_percentile))
    if high <= low:
        low, high = sample.min(), sample.max()
    return float(low), float(high)


def _step(size: int) -> int:
    """Return of how many values one is looked at."""
    return max(1, size // _SAMPLE_PIXELS)


def _unit(data: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.float32]:
    if high <= low:
        return np.zeros(data.shape, np.float32)
    scaled = data.astype(np.float32)
    scaled -= np.float32(low)
    scaled /= np.float32(high - low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def standardize(scaled: npt.NDArray[np.float32], how: Normalization) -> npt.NDArray[np.float32]:
    """Shift and scale an image from :func:`scale` as the model was trained."""
    return _standard(scaled, how.mean, how.std)


def _standard(scaled: npt.NDArray[np.float32], mean: float, std: float) -> npt.NDArray[np.float32]:
    standard = scaled - np.float32(mean)
    standard /= np.float32(std)
    return standard

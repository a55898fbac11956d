"""How unsure a model is of each pixel, from its class probabilities.

For class maps before the softmax, and for several passes, see
:mod:`segdesk.inference.sampling`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import xlog1py, xlogy

from segdesk.core.prediction import UNSURE_MARGIN, UncertaintyKind

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

#: Passes that disagree by less than this do so by rounding.
_ROUNDING: Final = 1e-6


def entropy(probabilities: Floats) -> Floats:
    """Return Shannon entropy over its maximum, 0 (sure) to 1 (guessing).

    Keeps the order of pixels however sure the model is: what is lacking to 1 is taken
    from the other classes, whose probabilities are exact where the largest rounds to 1.

    Parameters
    ----------
    probabilities
        float32 (K, ...), summing to one over K.
    """
    rising = np.sort(probabilities, axis=0)
    others = rising[:-1]
    rest = np.minimum(others.sum(0), 1.0)
    of_best = np.where(rest < 0.5, xlog1py(1.0 - rest, -rest), xlogy(rising[-1], rising[-1]))
    values = -(of_best + xlogy(others, others).sum(0)) / np.log(len(rising))
    clipped: Floats = np.clip(values, 0.0, 1.0).astype(np.float32)
    return clipped


def margin(probabilities: Floats) -> Floats:
    """Return one minus the lead of the best class, 0 (sure) to 1 (a tie).

    Keeps the order of pixels however sure the model is, see :func:`entropy`.

    Parameters
    ----------
    probabilities
        float32 (K, ...), summing to one over K.
    """
    if len(probabilities) == 2:  # without the sorting: this is asked of every tile
        two: Floats = np.minimum(2 * probabilities.min(0), 1.0)
        return two
    rising = np.sort(probabilities, axis=0)
    values: Floats = np.clip(rising[:-1].sum(0) + rising[-2], 0.0, 1.0)
    return values


_KINDS = {
    UncertaintyKind.AUTO: margin,  # the best where nothing is known of the model
    UncertaintyKind.ENTROPY: entropy,
    UncertaintyKind.MARGIN: margin,
}


def uncertainty(kind: UncertaintyKind, probabilities: Floats) -> Floats:
    """Return the uncertainty of the given kind, shape of one probability map.

    Parameters
    ----------
    kind
        Entropy or margin; what several passes tell cannot be had from their mean.
    """
    return _KINDS[kind](probabilities)


def unsure_pixels(probabilities: Floats) -> npt.NDArray[np.bool_]:
    """Say of each pixel whether its two best classes lie close together, (...)."""
    return margin(probabilities) > 1.0 - UNSURE_MARGIN


def unsure_share(probabilities: Floats) -> float:
    """Return the share of pixels whose two best classes lie close together.

    For every kind of uncertainty, so that images, models and kinds can be compared: of
    several passes the mean probabilities are taken, where passes that contradict each
    other come out close together. Mutual information itself has no value that counts as
    unsure everywhere, as it depends on how different the passes are: its largest was
    0.005 for dropout and 0.5 for flips and turns on the same images. Its mean also told
    less of how much of an image is wrong.
    """
    return float(unsure_pixels(probabilities).mean())


def shown_as_guessing(kind: UncertaintyKind, values: Floats, score: float) -> float:
    """Return the uncertainty that is shown in the last colour of the legend.

    Entropy and margin reach 1. The mutual information of dropout may stay far below: there,
    as many pixels are shown as unsure or worse as the image has unsure ones, those where
    the passes disagree most. So a colour means the same for every kind.

    Parameters
    ----------
    values
        float32, 0 to 1, any shape.
    score
        Share of unsure pixels, from :func:`unsure_share`.
    """
    if kind is not UncertaintyKind.DROPOUT or not values.size:
        return 1.0
    rank = min(values.size - 1, int((1.0 - score) * values.size))
    unsure = float(np.partition(values, rank, axis=None)[rank])
    return min(1.0, max(unsure / (1.0 - UNSURE_MARGIN), _ROUNDING))

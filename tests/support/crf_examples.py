"""Small noisy images with unsure probabilities, and mean field without any short cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from segdesk.config.refinement import CrfConfig
from segdesk.inference.crf import LEAST_PROBABILITY

if TYPE_CHECKING:
    import numpy.typing as npt


def example(
    seed: int,
    *,
    height: int = 20,
    width: int = 24,
    classes: int = 4,
    channels: int = 3,
    sure: float = 1.5,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return probabilities (K, Y, X) and grey values (Y, X, C) of a chequered image.

    ``sure`` says how far the true class is ahead: with a small lead, every detail of the
    filter is seen in the labels.
    """
    random = np.random.default_rng(seed)
    truth = (np.arange(width) // 6 + (np.arange(height)[:, None] >= height // 2)) % classes
    # Far apart, and not in the order of the classes, in every channel.
    levels = np.linspace(20, 235, classes)
    colors = np.stack([random.permutation(levels) for _ in range(channels)], -1)
    grey = np.clip(colors[truth] + random.normal(0, 8, (height, width, channels)), 0, 255)
    logs = random.normal(0, 1, (classes, height, width))
    logs += sure * (np.arange(classes)[:, None, None] == truth)
    return _softmax(logs).astype(np.float32), grey.astype(np.float32)


def brute_force(
    probabilities: npt.NDArray[np.float32], grey: npt.NDArray[np.float32], config: CrfConfig
) -> npt.NDArray[np.float64]:
    """Do mean field with all N x N pairs of pixels, in float64."""
    shape = probabilities.shape
    place = np.indices(shape[1:]).reshape(2, -1).astype(float)
    value = grey.reshape(-1, grey.shape[-1]).T.astype(float)
    apart, differ = _squared(place), _squared(value)
    near = np.exp(-apart / (2 * config.smoothness_px**2))
    alike = np.exp(
        -apart / (2 * config.appearance_px**2) - differ / (2 * config.appearance_grey**2)
    )
    kernel = config.smoothness_weight * _normalized(near)
    kernel += config.appearance_weight * _normalized(alike)
    logs = np.log(np.maximum(probabilities, LEAST_PROBABILITY)).reshape(shape[0], -1)
    marginals = _softmax(logs.astype(float))
    for _ in range(config.iterations):
        marginals = _softmax(logs + marginals @ kernel)
    return marginals.reshape(shape)


def _squared(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    squares: npt.NDArray[np.float64] = ((points[:, :, None] - points[:, None]) ** 2).sum(0)
    return squares


def _normalized(kernel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    root = np.sqrt(kernel.sum(0))
    normalized: npt.NDArray[np.float64] = kernel / root / root[:, None]
    return normalized


def _softmax(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    exps = np.exp(logs - logs.max(0))
    softmax: npt.NDArray[np.float64] = exps / exps.sum(0)
    return softmax

"""Running a network over an image, tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segdesk.config.inference import InferenceConfig
from segdesk.core.card import Normalization
from segdesk.core.errors import InputError
from segdesk.inference.normalize import fit_channels, scale, standardize
from segdesk.inference.tiling import Blender, pad, plan
from segdesk.jobs.cancel import CancelToken
from segdesk.nn.device import place
from segdesk.nn.weights import LoadedModel

if TYPE_CHECKING:
    import numpy.typing as npt

Progress = Callable[[int, int], None]


def _ignore(done: int, total: int) -> None:
    del done, total


class Predictor:
    """A loaded model on a device.

    Parameters
    ----------
    model
        The network; it is moved to ``device``.
    device
        Where it computes.
    """

    def __init__(self, model: LoadedModel, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._network = place(model.network, device)

    def prepare(self, data: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Fit channels and standardise an image, (Z,) Y, X, C in any dtype."""
        card = self._model.card
        fitted = fit_channels(data, card.channels, card.name)
        how: Normalization = card.normalization
        return standardize(scale(fitted, how), how)

    def predict_plane(
        self,
        plane: npt.NDArray[np.float32],
        config: InferenceConfig,
        token: CancelToken | None = None,
        progress: Progress = _ignore,
    ) -> npt.NDArray[np.float32]:
        """Return class probabilities, float32 (K, Y, X), of a prepared plane.

        Parameters
        ----------
        plane
            float32 (Y, X, C), from :meth:`prepare`.
        progress
            Called with tiles done and tiles in all.

        Raises
        ------
        CanceledError
            ``token`` was set; looked at before every tile.
        InputError
            The tile size does not fit the model, or memory ran out.
        """
        height, width = plane.shape[:2]
        spec = self._model.spec
        tiling = plan((height, width), config.tile_size, config.overlap, spec.stride, spec.min_size)
        padded = pad(plane, tiling)
        blender = Blender(tiling, len(self._model.card.classes))
        rows, columns = tiling.size
        for done, tile in enumerate(tiling.tiles):
            if token is not None:
                token.check()
            progress(done, len(tiling.tiles))
            crop = padded[tile.y : tile.y + rows, tile.x : tile.x + columns]
            blender.add(tile, self._run(crop, config.tile_size))
        progress(len(tiling.tiles), len(tiling.tiles))
        return blender.result()

    def _run(self, crop: npt.NDArray[np.float32], tile_size: int) -> npt.NDArray[np.float32]:
        batch: Tensor = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))[None]
        batch = batch.to(self._device, memory_format=torch.channels_last)
        try:
            with torch.inference_mode():
                maps: Tensor = torch.softmax(self._network(batch).float(), 1)[0]
                result: npt.NDArray[np.float32] = maps.cpu().numpy()
        except (torch.OutOfMemoryError, MemoryError):
            raise InputError(
                f"Memory ran out on {self._device} with tiles of {tile_size} pixels; choose a "
                "smaller tile size or the device cpu."
            ) from None
        return result


def planes_of(data: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return the planes of an image, (Y, X, C) or (Z, Y, X, C), as views."""
    return list(data) if data.ndim == 4 else [data]

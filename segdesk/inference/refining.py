"""From a prediction's files to those of a refined one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from segdesk import __version__
from segdesk.core.address import name_of
from segdesk.core.card import Normalization
from segdesk.core.errors import InputError
from segdesk.core.prediction import Prediction
from segdesk.inference.crf import refine
from segdesk.inference.normalize import scale
from segdesk.io.atomic import atomic_folder, explain_os_errors
from segdesk.io.images import read_image
from segdesk.io.labels import read_plane, write_plane
from segdesk.io.sources import open_source
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.messages import RefineOrder

if TYPE_CHECKING:
    import numpy.typing as npt

PROVENANCE = "provenance.json"
#: float16 maps sum to one within this; a file with a missing part does not.
SUM_ERROR = 0.05


def refine_to_folder(
    order: RefineOrder, token: CancelToken, progress: Callable[[int, int], None]
) -> float:
    """Refine one prediction, plane by plane, and write it as a prediction of its own.

    Uncertainty is copied: what the CRF adds to the probabilities is no knowledge of the
    model's, and its own are too sure. The folder appears whole or not at all.

    Returns
    -------
    float
        Share of pixels whose label differs from the model's own, 0 to 1.

    Raises
    ------
    InputError
        Image or prediction are gone, damaged or do not fit each other, or the disk is full.
    CanceledError
        ``token`` was set; looked at before every iteration.
    """
    began = time.perf_counter()
    source = Prediction(order.sample, order.model, order.prediction, 0.0)
    image = _read_predicted(order)
    maps = _open_maps(source, name_of(order.image), image.shape[:-1])
    before = read_plane(source.labels_path)
    grey = scale(image, Normalization())  # as for the models: percentiles over all channels
    grey *= np.float32(255)
    planes = grey if grey.ndim == 4 else grey[None]
    labels = np.empty(planes.shape[:-1], np.uint8)
    lookup = np.array(order.values, np.uint8)
    with explain_os_errors(order.out), atomic_folder(order.out) as folder:
        store = _create_like(maps, folder / source.probabilities_path.name)
        for z, plane in enumerate(planes):
            probabilities = _read_maps(maps, z, name_of(order.image))
            part = _part_of(progress, z, len(planes))
            refined = refine(probabilities, plane, order.config, token, part)
            labels[z] = lookup[refined.argmax(0)]
            store[:, z] = refined.astype(np.float16)
        write_plane(folder / source.labels_path.name, labels.reshape(before.shape))
        shutil.copyfile(source.uncertainty_path, folder / source.uncertainty_path.name)
        seconds = round(time.perf_counter() - began, 3)
        text = json.dumps(_describe(order, seconds), indent=2)
        (folder / PROVENANCE).write_text(text + "\n", "utf-8")
    return float((labels.reshape(before.shape) != before).mean())


def _read_predicted(order: RefineOrder) -> npt.NDArray[Any]:
    """Return the image, (Z,) Y, X, C, at the resolution level that was predicted."""
    level = int(_read_provenance(order).get("level", 0))
    if level == 0:
        return read_image(order.image).data
    with open_source(order.image) as source:
        if level >= source.levels:
            raise InputError(
                f"The image {name_of(order.image)} has other levels than when it was predicted; "
                "predict it again."
            )
        return source.read_level(level)


def _open_maps(source: Prediction, name: str, shape: tuple[int, ...]) -> zarr.Array[Any]:
    try:
        maps = zarr.open_array(str(source.probabilities_path), mode="r")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(name) from error
    expected = shape if len(shape) == 3 else (1, *shape)
    if maps.shape[1:] != expected:
        raise InputError(
            f"The image {name} is of another size than when it was predicted; predict it again."
        )
    return maps


def _read_maps(maps: zarr.Array[Any], z: int, name: str) -> npt.NDArray[np.float32]:
    read = np.asarray(maps[:, z]).astype(np.float32)
    if not (np.abs(read.sum(0) - 1) < SUM_ERROR).all():
        raise _unreadable(name)
    return read


def _unreadable(name: str) -> InputError:
    return InputError(
        f"The probabilities that the model predicted for {name} are missing or damaged; predict "
        "it again."
    )


def _create_like(maps: zarr.Array[Any], path: Path) -> zarr.Array[Any]:
    return zarr.create_array(
        store=str(path),
        shape=maps.shape,
        chunks=maps.chunks,
        dtype="float16",
        dimension_names=("class", "z", "y", "x"),
    )


def _part_of(
    progress: Callable[[int, int], None], index: int, count: int
) -> Callable[[int, int], None]:
    """Report the progress of one of ``count`` equal parts as that of the whole."""
    return lambda done, total: progress(index * total + done, count * total)


def _describe(order: RefineOrder, seconds: float) -> dict[str, Any]:
    """Say how the prediction was made, and what was done to it."""
    told = _read_provenance(order)
    told["refinement"] = {
        "method": "fully connected CRF, mean field",
        "of": order.prediction.name,
        "config": order.config.model_dump(mode="json"),
        "segdesk_version": __version__,
        "seconds": seconds,
    }
    return told


def _read_provenance(order: RefineOrder) -> dict[str, Any]:
    source = order.prediction / PROVENANCE
    with explain_os_errors(source, reading=True):
        told: dict[str, Any] = json.loads(source.read_text("utf-8"))
    return told

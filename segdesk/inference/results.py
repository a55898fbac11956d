"""From an image file to the files of a prediction."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from segdesk import __version__
from segdesk.config.inference import InferenceConfig
from segdesk.core.errors import InputError
from segdesk.core.prediction import Prediction, Provenance
from segdesk.inference.predictor import Predictor, planes_of
from segdesk.inference.uncertainty import uncertainty, unsure_share
from segdesk.io.atomic import atomic_folder, explain_os_errors
from segdesk.io.images import read_image
from segdesk.io.labels import write_plane
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.messages import PredictOrder
from segdesk.nn.weights import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

CHUNK = 512


def map_to_classes(
    model_classes: tuple[str, ...], wanted: tuple[str, ...], model: str
) -> npt.NDArray[np.uint8]:
    """Return the project's label value of each of the model's classes.

    Raises
    ------
    InputError
        The model knows a class that the project lacks.
    """
    missing = [name for name in model_classes if name not in wanted]
    if missing:
        raise InputError(
            f"The model {model!r} knows the classes {', '.join(model_classes)}, but this project "
            f"has {', '.join(wanted)}; fine-tune it on some labelled images first, or choose "
            "another model."
        )
    return np.array([wanted.index(name) for name in model_classes], np.uint8)


def predict_to_folder(
    order: PredictOrder,
    model: LoadedModel,
    predictor: Predictor,
    *,
    device: str,
    token: CancelToken,
    progress: Callable[[int, int], None],
) -> Prediction:
    """Predict one image and write labels, uncertainty, probabilities, provenance.

    The folder appears whole or not at all.

    Raises
    ------
    InputError
        The image cannot be read or does not fit the model, or the disk is full.
    CanceledError
        ``token`` was set.
    """
    began = time.perf_counter()
    lookup = map_to_classes(model.card.classes, order.classes, order.model)
    image = read_image(order.image)
    planes = planes_of(predictor.prepare(image.data))
    labels = np.empty((len(planes), *planes[0].shape[:2]), np.uint8)
    unsure = np.empty(labels.shape, np.float32)
    scores = []
    with explain_os_errors(order.out), atomic_folder(order.out) as folder:
        store = _open_probabilities(folder, len(model.card.classes), labels.shape)
        for z, plane in enumerate(planes):
            maps = predictor.predict_plane(
                plane,
                order.config,
                token,
                _part_of(progress, z, len(planes)),
            )
            labels[z] = lookup[maps.argmax(0)]
            unsure[z] = uncertainty(order.config.uncertainty, maps)
            scores.append(unsure_share(maps))
            store[:, z] = maps.astype(np.float16)
        flat = image.data.ndim == 3
        write_plane(folder / "labels.tif", labels[0] if flat else labels)
        write_plane(folder / "uncertainty.tif", unsure[0] if flat else unsure)
        provenance = describe(order, model, device, time.perf_counter() - began)
        text = json.dumps(provenance.as_dict(), indent=2)
        (folder / "provenance.json").write_text(text + "\n", "utf-8")
    return Prediction(order.sample, order.model, order.out, float(np.mean(scores)))


def _part_of(
    progress: Callable[[int, int], None], index: int, count: int
) -> Callable[[int, int], None]:
    """Report the progress of one of ``count`` equal parts as that of the whole."""
    return lambda done, total: progress(index * total + done, count * total)


def describe(order: PredictOrder, model: LoadedModel, device: str, seconds: float) -> Provenance:
    """Say how a prediction was made."""
    return Provenance(
        model=order.model,
        weights_sha256=model.weights_sha256,
        image_sha256=order.image_sha256,
        image=order.image,
        config=InferenceConfig.model_dump(order.config, mode="json"),
        device=device,
        segdesk_version=__version__,
        seconds=round(seconds, 3),
    )


def _open_probabilities(folder: Path, classes: int, shape: tuple[int, ...]) -> zarr.Array[Any]:
    depth, height, width = shape
    return zarr.create_array(
        store=str(folder / "probabilities.zarr"),
        shape=(classes, depth, height, width),
        chunks=(classes, 1, min(CHUNK, height), min(CHUNK, width)),
        dtype="float16",
        dimension_names=("class", "z", "y", "x"),
    )

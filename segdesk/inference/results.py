"""From an image to the files of a prediction."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segdesk import __version__
from segdesk.config.inference import InferenceConfig
from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.prediction import Prediction, Provenance
from segdesk.inference.normalize import choose_channels, choose_method, fit_scaler, pick_channels
from segdesk.inference.predictor import Plane, Predictor
from segdesk.inference.sampling import Sampler
from segdesk.inference.tiling import Box
from segdesk.inference.writer import TIFF_PIXELS, ResultWriter
from segdesk.io.atomic import explain_os_errors, move_into_place
from segdesk.io.packages import hash_weights
from segdesk.io.sources import ImageSource, open_source
from segdesk.jobs.messages import PredictOrder, View
from segdesk.nn.weights import LoadedModel

if TYPE_CHECKING:
    import numpy.typing as npt

    #: Plane, part of it, labels (uint8) and uncertainty (float32) there.
    Show = Callable[[int, Box, npt.NDArray[np.uint8], npt.NDArray[np.float32]], None]


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


@dataclass(frozen=True)
class Watch:
    """Who watches a prediction, and may steer it.

    Attributes
    ----------
    check
        Called between tiles; what it raises ends the work.
    progress
        Called with tiles done and tiles in all.
    view
        Returns what is on screen, or None.
    show
        Called with every part that is finished, on another thread.
    """

    check: Callable[[], None] = lambda: None
    progress: Callable[[int, int], None] = lambda done, total: None
    view: Callable[[], View | None] = lambda: None
    show: Show = lambda z, box, labels, unsure: None


class _Elsewhere(Exception):
    """Another plane came on screen."""


def predict_to_folder(
    order: PredictOrder,
    model: LoadedModel,
    predictor: Predictor,
    sampler: Sampler,
    watch: Watch,
) -> Prediction:
    """Predict one image and write labels, uncertainty, probabilities, provenance.

    The folder appears whole or not at all. What was finished of a large image is kept
    when it ends early, and the same order goes on from there.

    Raises
    ------
    InputError
        The image cannot be read or does not fit the model, or the disk is full.
    CanceledError
        From ``watch.check``.
    """
    began = time.perf_counter()
    lookup = map_to_classes(model.card.classes, order.classes, order.model)
    with ExitStack() as stack:
        source = stack.enter_context(open_source(order.image))
        planes = planes_of(source, order, model.card)
        shape = (len(planes), *planes[0].shape)
        writer = stack.enter_context(_kept(order.out, shape, lookup, _deciding(order, model)))
        _predict_planes(planes, order.config, predictor, sampler, writer, watch)
        as_tiff = order.as_tiff
        if as_tiff is None:
            as_tiff = math.prod(shape) <= TIFF_PIXELS
        writer.finish(is_flat=len(source.shape) == 2, as_tiff=as_tiff)
        provenance = describe(order, model, predictor, time.perf_counter() - began)
        text = json.dumps(provenance.as_dict(), indent=2)
        (writer.folder / "provenance.json").write_text(text + "\n", "utf-8")
    return Prediction(order.sample, order.model, order.out, writer.unsure)


@contextmanager
def _kept(
    out: Path, shape: tuple[int, int, int], lookup: npt.NDArray[np.uint8], order: dict[str, Any]
) -> Iterator[ResultWriter]:
    """Write beside ``out`` and move it there at a good end; else keep what is finished."""
    beside = out.with_name(f".{out.name}.part")
    missing = [folder for folder in out.parents if not folder.exists()]
    writer = None
    with explain_os_errors(out):
        try:
            writer = ResultWriter(beside, shape, lookup, order)
            yield writer
            move_into_place(beside, out)
        except BaseException as error:
            done, total = writer.chunks if writer is not None else (0, 0)
            if done and isinstance(error, SegDeskError | OSError):
                raise _with_what_is_kept(error, out, done, total) from error
            if not done:
                shutil.rmtree(beside, ignore_errors=True)
                for folder in missing:
                    with suppress(OSError):  # it holds something else by now
                        folder.rmdir()
            raise


def _with_what_is_kept(error: BaseException, out: Path, done: int, total: int) -> BaseException:
    if not isinstance(error, InputError | OSError):
        return error
    kept = (
        f" The {done} of {total} parts that are done are kept: the same order goes on from there."
    )
    if isinstance(error, OSError):
        try:
            with explain_os_errors(out):
                raise error
        except InputError as explained:
            error = explained
        except OSError:
            return error
    return InputError(error.message + kept, error.actions)


def planes_of(source: ImageSource, order: PredictOrder, card: ModelCard) -> list[Plane]:
    """Return the planes of an image as the model takes them, read when they are needed.

    Raises
    ------
    InputError
        Pixels cannot be read, the channels do not fit, or there is no such level.
    """
    if order.level >= source.levels:
        raise InputError(
            f"{source.name} has {source.levels} resolution levels, so there is no level "
            f"{order.level}; choose 0 (the finest) to {source.levels - 1}."
        )
    config = order.config
    picked = pick_channels(
        source.channels, card.channels, card.name, config.chosen_channels, source.name
    )
    scaler = fit_scaler(source, choose_method(card.normalization, config.normalization), picked)
    *stack, height, width = source.level_shape(order.level)

    def plane(z: int) -> Plane:
        def read(rows: slice, columns: slice) -> npt.NDArray[np.float32]:
            return scaler(choose_channels(source.read(z, rows, columns, order.level), picked))

        return Plane((height, width), read)

    return [plane(z) for z in range(stack[0] if stack else 1)]


def _predict_planes(
    planes: list[Plane],
    config: InferenceConfig,
    predictor: Predictor,
    sampler: Sampler,
    writer: ResultWriter,
    watch: Watch,
) -> None:
    """Predict all planes, the one on screen first and then its neighbours."""
    waiting = list(range(len(planes)))
    while waiting:
        seen = watch.view()
        z = min(waiting, key=lambda n: abs(n - seen.z)) if seen is not None else waiting[0]
        try:
            _predict_plane(z, planes, waiting, config, predictor, sampler, writer, watch)
            waiting.remove(z)
        except _Elsewhere:
            writer.leave(z)


def _predict_plane(
    z: int,
    planes: list[Plane],
    waiting: list[int],
    config: InferenceConfig,
    predictor: Predictor,
    sampler: Sampler,
    writer: ResultWriter,
    watch: Watch,
) -> None:
    before, count = len(planes) - len(waiting), len(planes)

    def check() -> None:
        watch.check()
        now = watch.view()
        if now is not None and now.z != z and now.z in waiting:
            raise _Elsewhere

    def emit(box: Box, maps: npt.NDArray[np.float32]) -> None:
        watch.show(z, box, *writer.take(z, box, maps))

    def is_done(box: Box) -> bool:
        return writer.is_done(z, box)

    def progress(done: int, total: int) -> None:
        watch.progress(before * total + done, count * total)

    predictor.run(
        planes[z],
        config,
        emit,
        forward=lambda batch: _with_uncertainty(sampler, batch),
        view=lambda: _box_of(watch.view()),
        is_done=is_done,
        check=check,
        progress=progress,
    )


def _with_uncertainty(sampler: Sampler, batch: Tensor) -> Tensor:
    """Return probabilities and, as the last map, the uncertainty: (N, K + 1, h, w)."""
    probabilities, unsure = sampler(batch)
    return torch.cat((probabilities, unsure[:, None]), 1)


def _box_of(view: View | None) -> Box | None:
    return None if view is None else Box(view.top, view.bottom, view.left, view.right)


def _deciding(order: PredictOrder, model: LoadedModel) -> dict[str, Any]:
    """Return what decides the result: a folder made for another one is not gone on with."""
    config = order.config.model_dump(mode="json")
    config.pop("device")
    return {
        "image": order.image_sha256 or str(order.image),
        "weights": model.weights_sha256,
        "classes": order.classes,
        "companions": [hash_weights(folder) for folder in order.companions],
        "temperature": order.temperature,
        "level": order.level,
        "config": config,
        "version": __version__,
    }


def describe(
    order: PredictOrder, model: LoadedModel, predictor: Predictor, seconds: float
) -> Provenance:
    """Say how a prediction was made."""
    return Provenance(
        model=order.model,
        weights_sha256=model.weights_sha256,
        image_sha256=order.image_sha256,
        image=order.image,
        config=InferenceConfig.model_dump(order.config, mode="json"),
        device=str(predictor.device),
        segdesk_version=__version__,
        seconds=round(seconds, 3),
        precision=str(predictor.precision),
        temperature=order.temperature,
    )

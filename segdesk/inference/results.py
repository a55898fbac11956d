"""From an image to the files of a prediction."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdesk import __version__
from segdesk.config.inference import InferenceConfig
from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.prediction import ONE_PASS, Prediction, Provenance
from segdesk.inference.calibration import apply_temperature
from segdesk.inference.normalize import (
    Scaler,
    choose_channels,
    choose_method,
    fit_scaler,
    pick_channels,
)
from segdesk.inference.predictor import Plane, Predictor
from segdesk.inference.sampling import Sampler, with_uncertainty
from segdesk.inference.tiling import Box
from segdesk.inference.uncertainty import uncertainty
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
        if order.view is None and order.level < source.levels:
            # Otherwise tiles come from all sides: what is on screen first.
            tiling = predictor.plan(_sides(source, order.level), order.config)
            source.expect_rows(tiling.input_size[0])
        planes = planes_of(source, order, model.card)
        shape = (len(planes), *planes[0].shape)
        about = what_decides(order, model.weights_sha256)
        writer = stack.enter_context(_kept(order.out, shape, lookup, about))
        _predict_planes(planes, order, predictor, sampler, writer, watch)
        made = Made(str(predictor.device), str(predictor.precision), time.perf_counter() - began)
        finish(writer, order, about, made, is_flat=len(source.shape) == 2)
    return Prediction(order.sample, order.model, order.out, writer.unsure)


@dataclass(frozen=True)
class Made:
    """On what device, in what precision and in how many seconds something was computed."""

    device: str
    precision: str
    seconds: float


def finish(
    writer: ResultWriter, order: PredictOrder, about: dict[str, Any], made: Made, *, is_flat: bool
) -> None:
    """Turn what is written into the files of a prediction, all in ``writer.folder``.

    Parameters
    ----------
    about
        From :func:`what_decides`.
    is_flat
        The image is (Y, X) and not a stack.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    as_tiff = order.as_tiff
    if as_tiff is None:
        as_tiff = math.prod(writer.shape) <= TIFF_PIXELS
    told = _describe(order, about, made)
    provenance = replace(told, shape=writer.shape, unsure=writer.unsure)
    text = json.dumps(provenance.as_dict(), indent=2)
    (writer.folder / "provenance.json").write_text(text + "\n", "utf-8")
    writer.finish(is_flat=is_flat, as_tiff=as_tiff)


def folder_beside(out: Path) -> Path:
    """Return where the results of ``out`` are written until all are there."""
    return out.with_name(f".{out.name}.part")


@contextmanager
def _kept(
    out: Path, shape: tuple[int, int, int], lookup: npt.NDArray[np.uint8], order: dict[str, Any]
) -> Iterator[ResultWriter]:
    """Write beside ``out`` and move it there at a good end; else keep what is finished."""
    beside = folder_beside(out)
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
                raise with_what_is_kept(error, out, done, total) from error
            if not done:
                shutil.rmtree(beside, ignore_errors=True)
                for folder in missing:
                    with suppress(OSError):  # it holds something else by now
                        folder.rmdir()
            raise


def with_what_is_kept(error: BaseException, out: Path, done: int, total: int) -> BaseException:
    """Return the error to raise where a large image was left in the middle."""
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


def _sides(source: ImageSource, level: int) -> tuple[int, int]:
    *_, height, width = source.level_shape(level)
    return height, width


def planes_of(
    source: ImageSource, order: PredictOrder, card: ModelCard, scaler: Scaler | None = None
) -> list[Plane]:
    """Return the planes of an image as the model takes them, read when they are needed.

    Parameters
    ----------
    scaler
        From :func:`scaler_of`, where it is known already.

    Raises
    ------
    InputError
        Pixels cannot be read, the channels do not fit, or there is no such level.
    """
    scaling = scaler or scaler_of(source, order, card)
    picked = _picked(source, order, card)
    *stack, height, width = source.level_shape(order.level)

    def plane(z: int) -> Plane:
        def read(rows: slice, columns: slice) -> npt.NDArray[np.float32]:
            return scaling(choose_channels(source.read(z, rows, columns, order.level), picked))

        return Plane((height, width), read)

    return [plane(z) for z in range(stack[0] if stack else 1)]


def scaler_of(source: ImageSource, order: PredictOrder, card: ModelCard) -> Scaler:
    """Find how an image is scaled for a model.

    Raises
    ------
    InputError
        As :func:`planes_of`.
    """
    if order.level >= source.levels:
        raise InputError(
            f"{source.name} has {source.levels} resolution levels, so there is no level "
            f"{order.level}; choose 0 (the finest) to {source.levels - 1}."
        )
    method = choose_method(card.normalization, order.config.normalization)
    return fit_scaler(source, method, _picked(source, order, card))


def _picked(source: ImageSource, order: PredictOrder, card: ModelCard) -> tuple[int, ...]:
    chosen = order.config.chosen_channels
    return pick_channels(source.channels, card.channels, card.name, chosen, source.name)


def _predict_planes(
    planes: list[Plane],
    order: PredictOrder,
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
            predict_plane(z, planes, waiting, order, predictor, sampler, writer, watch)
            waiting.remove(z)
        except _Elsewhere:
            writer.leave(z)


def predict_plane(
    z: int,
    planes: list[Plane],
    waiting: list[int],
    order: PredictOrder,
    predictor: Predictor,
    sampler: Sampler,
    writer: ResultWriter,
    watch: Watch,
) -> None:
    """Predict what the writer still wants of a plane; ``waiting`` are those to do, it included."""
    before, count = len(planes) - len(waiting), len(planes)

    def check() -> None:
        watch.check()
        now = watch.view()
        if now is not None and now.z != z and now.z in waiting:
            raise _Elsewhere

    def emit(box: Box, maps: npt.NDArray[np.float32]) -> None:
        watch.show(z, box, *writer.take(z, box, calibrated(maps, order)))

    def is_done(box: Box) -> bool:
        return writer.is_done(z, box)

    def progress(done: int, total: int) -> None:
        watch.progress(before * total + done, count * total)

    predictor.run(
        planes[z],
        order.config,
        emit,
        forward=lambda batch: with_uncertainty(sampler, batch),
        view=lambda: _box_of(watch.view()),
        is_done=is_done,
        check=check,
        progress=progress,
    )


def calibrated(maps: npt.NDArray[np.float32], order: PredictOrder) -> npt.NDArray[np.float32]:
    """Apply an order's temperature to blended maps, float32 (K + 1, h, w).

    After blending, and not to each tile: so no pixel changes its class, and the
    temperature can be taken off again. What several passes tell of disagreement stays.
    """
    if order.temperature == 1.0:
        return maps
    probabilities, kind = apply_temperature(maps[:-1], order.temperature), order.config.uncertainty
    unsure = uncertainty(kind, probabilities) if kind in ONE_PASS else maps[-1]
    return np.concatenate((probabilities, unsure[None]))


def _box_of(view: View | None) -> Box | None:
    return None if view is None else Box(view.top, view.bottom, view.left, view.right)


def what_decides(order: PredictOrder, weights_sha256: str) -> dict[str, Any]:
    """Return what decides the result: a folder made for another one is not gone on with."""
    companions = [hash_weights(folder) for folder in order.companions]
    image = order.image_sha256 or str(order.image)
    return {**order.deciding(weights_sha256, companions), "image": image, "version": __version__}


def _describe(order: PredictOrder, about: dict[str, Any], made: Made) -> Provenance:
    return Provenance(
        model=order.model,
        weights_sha256=about["weights_sha256"],
        image_sha256=order.image_sha256,
        image=order.image,
        config=InferenceConfig.model_dump(order.config, mode="json"),
        device=made.device,
        segdesk_version=__version__,
        seconds=round(made.seconds, 3),
        precision=made.precision,
        temperature=order.temperature,
        classes=order.classes,
        level=order.level,
        companions_sha256=tuple(about["companions_sha256"]),
        cluster={"workers": order.workers} if order.workers else None,
    )

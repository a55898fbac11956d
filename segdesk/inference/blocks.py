"""Spreading predictions over a Dask cluster: the side that does the work."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, TypeVar

import numpy as np

from segdesk import __version__
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.run import RunState
from segdesk.inference.cluster import Failed, Predicted, Spread, Task, Written
from segdesk.inference.engine import Engine
from segdesk.inference.results import (
    Made,
    Watch,
    folder_beside,
    map_to_classes,
    planes_of,
    predict_plane,
    scaler_of,
    what_decides,
)
from segdesk.inference.results import finish as finish_results
from segdesk.inference.tiling import Axis, Box, TilePlan
from segdesk.inference.writer import CHUNK, ResultWriter
from segdesk.io.atomic import explain_os_errors, move_into_place
from segdesk.io.packages import hash_weights
from segdesk.io.sources import ImageSource, open_source
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.heap import give_back_freed_memory, keep_freed_memory
from segdesk.jobs.messages import AnyEvent, PredictionReady, PredictOrder
from segdesk.nn.device import Precision

#: Sides a block may have, in chunks: what a lost worker has to be done again is small.
BLOCK_CHUNKS: Final = (1, 2, 4, 8)

Result = TypeVar("Result")

#: One task at a time in a process, whatever threads it has: all share one model.
_turn = threading.Lock()
_events: list[AnyEvent] = []
keep_freed_memory()
#: Keeps the model from task to task.
_engine = Engine(_events.append)
#: The last image that had to be read whole, by its hash and address.
_source: tuple[tuple[str, str], ImageSource] | None = None


def _explained(task: Callable[..., Result]) -> Callable[..., Result | Failed]:
    """Return what a user can mend as an outcome; anything else is worth another try."""

    @functools.wraps(task)
    def wrapper(about: Task, *arguments: object) -> Result | Failed:
        try:
            with _turn:
                order = PredictOrder.model_validate_json(about.order)
                _check(about, order)
                with explain_os_errors(order.out):
                    return task(order, about, *arguments)
        except SegDeskError as error:
            return Failed(error.message, isinstance(error, InputError))
        finally:
            give_back_freed_memory()  # the cluster counts what a worker holds

    return wrapper


def _check(task: Task, order: PredictOrder) -> None:
    if task.version != __version__:
        raise InputError(
            f"A worker runs SegDesk {__version__} and you run {task.version}; install the same on "
            "all."
        )
    if hash_weights(order.model_folder) != task.weights_sha256:
        raise InputError(
            f"A worker has another model in {order.model_folder} than you; all must see the same."
        )


@_explained
def begin(order: PredictOrder, task: Task, whole_below: int) -> Predicted | Spread | Failed:
    """Predict a small image, or see how a large one is to be cut."""
    with ExitStack() as stack:
        source = _opened(order, stack)
        is_there = order.level < source.levels
        if not is_there or math.prod(source.level_shape(order.level)) < whole_below:
            return _whole(order)
        model, predictor, _ = _engine.prepare(order, CancelToken())
        scaler = scaler_of(source, order, model.card)
        depth, height, width = (1, *source.level_shape(order.level))[-3:]
        middle = planes_of(source, order, model.card, scaler)[depth // 2]
        precision = predictor.settle_precision(middle, order.config)
        return Spread(
            shape=(depth, height, width),
            is_flat=len(source.shape) == 2,
            lookup=tuple(map_to_classes(model.card.classes, order.classes, order.model).tolist()),
            scaler=scaler,
            precision=str(precision),
            blocks=cut(predictor.plan((height, width), order.config), depth, order.workers),
        )


@_explained
def block(order: PredictOrder, task: Task, spread: Spread, part: tuple[int, Box]) -> Written:
    """Compute a block of a large image and write its chunks."""
    model, predictor, sampler = _engine.prepare(order, CancelToken())
    with ExitStack() as stack:
        source = _opened(order, stack)
        planes = planes_of(source, order, model.card, spread.scaler)
        writer = _writer(order, task, spread, part)
        z = part[0]
        with predictor.fixed(Precision(spread.precision)):
            predict_plane(z, planes, [z], order, predictor, sampler, writer, Watch())
            return Written(writer.written, str(predictor.device), str(predictor.precision))


@_explained
def finish(
    order: PredictOrder, task: Task, spread: Spread, made: tuple[str, str, float]
) -> Predicted:
    """Turn the chunks of all blocks into the files of a prediction, and put it in its place."""
    writer = _writer(order, task, spread)
    about = what_decides(order, task.weights_sha256)
    finish_results(writer, order, about, Made(*made), is_flat=spread.is_flat)
    move_into_place(writer.folder, order.out)
    return Predicted(writer.unsure)


def cut(tiling: TilePlan, planes: int, workers: int) -> tuple[tuple[int, Box], ...]:
    """Cut planes into blocks of whole chunks, so that the workers together end soonest.

    Small blocks keep all busy to the end; large ones have fewer tiles at their seams
    that both sides compute.
    """

    def cost(sides: tuple[int, int]) -> tuple[int, int]:
        rows, columns = _tiles(tiling.rows, sides[0]), _tiles(tiling.columns, sides[1])
        rounds = -(-len(rows) * len(columns) * planes // max(1, workers))
        return rounds * max(rows) * max(columns), sum(rows) * sum(columns)

    sides = min(((down, across) for down in BLOCK_CHUNKS for across in BLOCK_CHUNKS), key=cost)
    height, width = tiling.shape
    return tuple(
        (z, Box(top, bottom, left, right))
        for z in range(planes)
        for top, bottom in _spans(height, sides[0])
        for left, right in _spans(width, sides[1])
    )


def _spans(length: int, chunks: int) -> list[tuple[int, int]]:
    step = chunks * CHUNK
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _tiles(axis: Axis, chunks: int) -> list[int]:
    """Return how many tiles along an axis each block needs."""
    spans = [axis.span(index) for index in range(len(axis.starts))]
    return [sum(a < stop and start < b for a, b in spans) for start, stop in
            _spans(axis.length, chunks)]  # fmt: skip


def _whole(order: PredictOrder) -> Predicted | Failed:
    _events.clear()
    end = _engine.answer(order)
    ready = [event for event in _events if isinstance(event, PredictionReady)]
    if end.state is RunState.COMPLETED and ready:
        return Predicted(ready[0].score)
    if end.is_input:
        return Failed(end.reason, is_input=True)
    raise SomethingElse(end.reason)


class SomethingElse(RuntimeError):
    """A task failed for no reason that a user could mend."""


def _writer(
    order: PredictOrder, task: Task, spread: Spread, part: tuple[int, Box] | None = None
) -> ResultWriter:
    about = what_decides(order, task.weights_sha256)
    lookup = np.array(spread.lookup, np.uint8)
    everything = (-1, Box(0, 0, 0, 0))  # nothing is to be written, only to be there
    return ResultWriter(folder_beside(order.out), spread.shape, lookup, about, part or everything)


def _opened(order: PredictOrder, stack: ExitStack) -> ImageSource:
    """Open an image until ``stack`` ends; one that is read whole stays for the next task."""
    global _source
    key = order.image_sha256, order.image
    if _source is not None and _source[0] == key:
        return _source[1]
    _source = None  # before the next one needs its memory
    source = open_source(order.image)
    if source.is_lazy:
        source.expect_rows(2 * order.config.tile_size)  # with what surrounds a tile
        return stack.enter_context(source)
    _source = key, source
    return source

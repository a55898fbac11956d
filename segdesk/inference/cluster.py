"""Spreading predictions over a Dask cluster: the side that hands out the work.

A small image is one task. A large one is cut into blocks of whole chunks of its result,
and each block is a task that computes the tiles it needs, reads what they show and
writes its chunks; tiles at a seam are computed by both sides. Which chunks are there is
noted by this side alone, once a task has said so, so that nothing is lost with a worker,
and a task that another worker does again writes the same chunks in the same place.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from segdesk import __version__
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.run import RunState
from segdesk.inference.normalize import Scaler
from segdesk.inference.tiling import Box
from segdesk.io.packages import hash_weights
from segdesk.jobs.messages import AnyEvent, Finished, PredictionReady, PredictOrder, Progressed

if TYPE_CHECKING:
    from segdesk.inference.writer import ResultWriter

#: Images of fewer pixels are not cut: each is a task.
WHOLE_PIXELS: Final = 2**22
#: A task is tried so often.
TRIES: Final = 3
#: Tasks handed out at a time, for each worker: one is done, and the others wait.
AHEAD: Final = 3
#: How long to wait for the scheduler, for its first worker, and between two looks.
CONNECT_SECONDS: Final = 10
WORKER_SECONDS: Final = 60
LOOK_SECONDS: Final = 10


@dataclass(frozen=True)
class Task:
    """What every task on an image is told.

    Attributes
    ----------
    order
        The order as JSON.
    weights_sha256
        Of the model as this side has it.
    version
        Of SegDesk, likewise.
    """

    order: str
    weights_sha256: str
    version: str = __version__


@dataclass(frozen=True)
class Failed:
    """An image cannot be predicted, and trying again is of no use."""

    reason: str
    is_input: bool


@dataclass(frozen=True)
class Predicted:
    """The whole prediction is in its folder; the share of unsure pixels, 0 to 1."""

    score: float


@dataclass(frozen=True)
class Spread:
    """A large image, read once to see how it is to be cut.

    Attributes
    ----------
    shape
        (Z, Y, X).
    is_flat
        The image is (Y, X) and not a stack.
    lookup
        The label value of each of the model's classes.
    scaler
        How all blocks are scaled.
    precision
        What all blocks are computed with.
    blocks
        Plane and part of it, in whole chunks.
    """

    shape: tuple[int, int, int]
    is_flat: bool
    lookup: tuple[int, ...]
    scaler: Scaler
    precision: str
    blocks: tuple[tuple[int, Box], ...]


@dataclass(frozen=True)
class Written:
    """The chunks of a block are on disk: place and unsure pixels; and what computed them."""

    chunks: dict[tuple[int, int, int], int]
    device: str
    precision: str


def _distributed() -> Any:
    try:
        return import_module("distributed")  # an extra, and half of it carries no types
    except ImportError:
        raise InputError(
            "--scheduler needs the package distributed; install it with "
            "pip install 'segdesk[cluster]'."
        ) from None


Outcome = Failed | Predicted | Spread | Written


def _work(what: str, *arguments: Any) -> Outcome:
    """Do a task on a worker; the scheduler sees only this, and never loads torch."""
    from segdesk.inference import blocks

    done: Outcome = getattr(blocks, what)(*arguments)
    return done


@dataclass
class _Image:
    """An image under way."""

    order: PredictOrder
    task: Task
    began: float = field(default_factory=time.perf_counter)
    writer: ResultWriter | None = None
    spread: Spread | None = None
    left: int = 0
    devices: set[str] = field(default_factory=set)
    precisions: set[str] = field(default_factory=set)
    is_over: bool = False


@dataclass(frozen=True)
class _Job:
    image: _Image
    what: str
    arguments: tuple[Any, ...] = ()


class Cluster:
    """A connection to a Dask cluster; a context manager.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    address
        What errors call the cluster.
    say
        Called with sentences for the user.
    whole_below
        Images of fewer pixels are not cut.
    """

    def __init__(
        self,
        client: Any,
        address: str,
        say: Callable[[str], None] = lambda sentence: None,
        *,
        whole_below: int = WHOLE_PIXELS,
    ) -> None:
        self._client = client
        self._address = address
        self._say = say
        self._whole_below = whole_below
        self._own: Any = None
        self._waiting: deque[_Job] = deque()
        self._open: dict[Any, _Job] = {}

    @classmethod
    def connect(
        cls,
        address: str,
        say: Callable[[str], None] = lambda sentence: None,
        timeout: float = CONNECT_SECONDS,
    ) -> Cluster:
        """Connect to a scheduler, ``tcp://host:port``, or start processes here, ``local:N``.

        Parameters
        ----------
        timeout
            Seconds to wait for the scheduler.

        Raises
        ------
        InputError
            distributed is not installed, nobody answers, or there are no workers.
        """
        distributed = _distributed()
        local = re.fullmatch(r"local(?::(\d{1,3}))?", address)
        own = None
        if local:
            count = int(local[1] or 2)
            own = distributed.LocalCluster(
                n_workers=max(1, count),
                threads_per_worker=1,
                dashboard_address=":0",
                silence_logs=logging.CRITICAL,  # what a user needs is said in a sentence
            )
        try:
            client = distributed.Client(own or address, timeout=timeout, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"No Dask scheduler answers at {address} ({type(error).__name__}); start one with "
                "'dask scheduler', and give the address it prints."
            ) from None
        cluster = cls(client, address, say)
        cluster._own = own
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError:
            cluster.close()
            raise InputError(
                f"The Dask scheduler at {address} has no workers; start some with "
                f"'dask worker {address}'."
            ) from None
        return cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; processes started here end."""
        self._client.close()
        if self._own is not None:
            self._own.close()

    def run(self, orders: Iterable[PredictOrder], on_event: Callable[[AnyEvent], None]) -> None:
        """Predict images, several at a time, and tell of each when it is done.

        Parameters
        ----------
        orders
            Asked for as workers come free; paths that the workers have too.
        on_event
            Called on this thread with progress, and each image's results and end.

        Raises
        ------
        InputError
            The disk is full or read-only. What is finished of large images is kept.
        SegDeskError
            A task failed three times, or the cluster is gone.
        """
        coming = iter(orders)
        try:
            while self._hand_out(coming):
                for future in self._next_done():
                    job = self._open.pop(future)
                    if not job.image.is_over:
                        self._take(job, self._outcome(future, job), on_event)
        except BaseException:
            self._client.cancel(list(self._open), force=True)
            raise
        finally:
            self._open.clear()
            self._waiting.clear()

    # How ---------------------------------------------------------------------

    def _hand_out(self, coming: Iterator[PredictOrder]) -> bool:
        """Keep the workers busy; returns whether anything is under way."""
        workers = max(1, len(self._client.nthreads()))
        while len(self._open) < AHEAD * workers:
            if not self._waiting:
                order = next(coming, None)
                if order is None:
                    break
                self._begin(order.model_copy(update={"workers": workers}))
            job = self._waiting.popleft()
            if job.image.is_over:
                continue
            future = self._client.submit(
                _work, job.what, job.image.task, *job.arguments, pure=False, retries=TRIES - 1
            )
            self._open[future] = job
        return bool(self._open)

    def _begin(self, order: PredictOrder) -> None:
        task = Task(order.model_dump_json(), hash_weights(order.model_folder))
        self._waiting.append(_Job(_Image(order, task), "begin", (self._whole_below,)))

    def _next_done(self) -> list[Any]:
        """Wait for tasks to end; says so where nobody is left to do them."""
        wait = _distributed().wait
        has_said = False
        while True:
            with suppress(TimeoutError), self._client.as_current():
                return list(
                    wait(list(self._open), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED").done
                )
            if not has_said and not self._client.nthreads():
                has_said = True
                self._say(
                    f"The Dask scheduler at {self._address} has no workers left; this goes on as "
                    "soon as there is one, and Ctrl-C ends it."
                )

    def _outcome(self, future: Any, job: _Job) -> Outcome:
        if future.status == "finished":
            outcome: Outcome = future.result()
            return outcome
        kept = "what is finished is kept, and the same command goes on"
        if future.status == "cancelled":
            raise SegDeskError(
                f"The Dask scheduler at {self._address} is gone; {kept} once it is back."
            )
        error = future.exception()
        raise SegDeskError(
            f"A part of {job.image.order.image} failed {TRIES} times on the cluster, at "
            f"last with {type(error).__name__}: {str(error).strip() or 'no reason given'}; {kept}. "
            "The worker's log says more."
        )

    def _take(self, job: _Job, outcome: Outcome, on_event: Callable[[AnyEvent], None]) -> None:
        image = job.image
        try:
            if isinstance(outcome, Failed):
                self._fail(image, outcome, on_event)
            elif isinstance(outcome, Predicted):
                self._end(image, outcome, on_event)
            elif isinstance(outcome, Spread):
                self._spread(image, outcome)
            else:
                self._note(image, outcome, on_event)
        except OSError as error:
            from segdesk.inference.results import with_what_is_kept

            done, total = image.writer.chunks if image.writer is not None else (0, 0)
            raise with_what_is_kept(error, image.order.out, done, total) from error

    def _spread(self, image: _Image, spread: Spread) -> None:
        import numpy as np

        from segdesk.inference.results import folder_beside, what_decides
        from segdesk.inference.writer import ResultWriter

        about = what_decides(image.order, image.task.weights_sha256)
        lookup = np.array(spread.lookup, np.uint8)
        folder = folder_beside(image.order.out)
        image.spread, image.writer = spread, ResultWriter(folder, spread.shape, lookup, about)
        jobs = [
            _Job(image, "block", (spread, block))
            for block in spread.blocks
            if not image.writer.is_done(*block)
        ]
        image.left = len(jobs)
        self._waiting.extend(jobs)
        self._finish_if_all_is_there(image)

    def _note(self, image: _Image, written: Written, on_event: Callable[[AnyEvent], None]) -> None:
        assert image.writer is not None
        image.writer.record(written.chunks)
        image.devices.add(written.device)
        image.precisions.add(written.precision)
        image.left -= 1
        done, total = image.writer.chunks
        on_event(Progressed(job=image.order.job, done=done, total=total))
        self._finish_if_all_is_there(image)

    def _finish_if_all_is_there(self, image: _Image) -> None:
        if image.left == 0:
            seconds = time.perf_counter() - image.began
            names = (", ".join(sorted(n)) or "unknown" for n in (image.devices, image.precisions))
            made = (*names, seconds)
            self._waiting.appendleft(_Job(image, "finish", (image.spread, made)))

    def _end(
        self, image: _Image, predicted: Predicted, on_event: Callable[[AnyEvent], None]
    ) -> None:
        image.is_over = True
        order = image.order
        on_event(
            PredictionReady(
                job=order.job,
                sample=order.sample,
                model=order.model,
                weights_sha256=image.task.weights_sha256,
                folder=order.out,
                score=predicted.score,
            )
        )
        on_event(Finished(job=order.job, state=RunState.COMPLETED))

    def _fail(self, image: _Image, failed: Failed, on_event: Callable[[AnyEvent], None]) -> None:
        image.is_over = True
        reason = failed.reason
        if image.writer is not None:
            from segdesk.inference.results import with_what_is_kept

            done, total = image.writer.chunks
            if done:
                error = with_what_is_kept(InputError(reason), image.order.out, done, total)
                reason = str(error)
            else:
                shutil.rmtree(image.writer.folder, ignore_errors=True)
        on_event(
            Finished(
                job=image.order.job,
                state=RunState.FAILED,
                reason=reason,
                is_input=failed.is_input,
            )
        )

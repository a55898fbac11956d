"""The engine: keeps the last model loaded and answers prediction orders in turn."""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable

from segdesk.core.errors import CanceledError, InputError, SegDeskError
from segdesk.core.run import RunState
from segdesk.inference.live import LiveView
from segdesk.inference.predictor import Predictor
from segdesk.inference.refining import refine_to_folder
from segdesk.inference.results import Watch, predict_to_folder
from segdesk.inference.sampling import Sampler, in_order, make_sampler
from segdesk.io.packages import hash_weights
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.heap import give_back_freed_memory
from segdesk.jobs.messages import (
    AnyEvent,
    AnyOrder,
    CancelOrder,
    EngineOrder,
    Finished,
    GiveWayOrder,
    PredictionReady,
    PredictOrder,
    Progressed,
    RefinementReady,
    RefineOrder,
    Said,
    View,
    ViewOrder,
)
from segdesk.nn.device import pick_device
from segdesk.nn.fuse import fuse_batch_norm
from segdesk.nn.weights import LoadedModel, load_model

#: However long a user paints, prediction waits so many seconds at most before it goes a step on.
LONGEST_WAIT = 1.0


class Engine:
    """Takes orders from any thread and works them off on the one that runs it.

    A newer order for a sample cancels the older one at its next tile. An order for what
    is on screen goes before all that wait, and calls off the last such order. While the
    user paints, prediction waits between tiles: the hand goes first.

    Parameters
    ----------
    send
        Called with every event.
    """

    def __init__(self, send: Callable[[AnyEvent], None]) -> None:
        self._send = send
        #: Those on screen first, then in the order they came.
        self._orders: queue.PriorityQueue[tuple[int, int, EngineOrder | None]]
        self._orders = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._tokens: dict[str, CancelToken] = {}
        self._newest: dict[str, str] = {}
        self._lock = threading.Lock()
        #: What is on screen of the orders that show it.
        self._views: dict[str, View] = {}
        #: No tile is begun before this, on the monotonic clock.
        self._waits_until = 0.0
        #: Set when that changes, so that nobody sleeps longer than asked.
        self._told = threading.Event()
        self._loaded: tuple[tuple[str, str, str], LoadedModel, Predictor] | None = None
        #: The further models of the last ensemble, and the hashes of their weights.
        self._others: tuple[tuple[str, ...], list[LoadedModel]] = ((), [])

    def take(self, order: AnyOrder) -> None:
        """Accept an order; returns at once."""
        with self._lock:
            if isinstance(order, CancelOrder):
                self._call_off(order.job)
            elif isinstance(order, ViewOrder):
                if order.job in self._views:
                    self._views[order.job] = order.view
            elif isinstance(order, GiveWayOrder):
                self._waits_until = time.monotonic() + order.seconds
                self._told.set()
            elif isinstance(order, EngineOrder):
                self._accept(order)

    def _accept(self, order: EngineOrder) -> None:
        self._call_off(self._newest.get(order.sample, ""))
        self._tokens[order.job] = CancelToken()
        self._newest[order.sample] = order.job
        rank = 1
        if isinstance(order, PredictOrder) and order.view is not None:
            rank = 0
            for older in self._views:  # nobody looks at what it shows any more
                self._call_off(older)
            self._views[order.job] = order.view
        self._orders.put((rank, next(self._numbers), order))

    def _call_off(self, job: str) -> None:
        if job in self._tokens:
            self._tokens[job].cancel()
            self._told.set()

    def stop(self) -> None:
        """Cancel everything and make :meth:`run` return."""
        with self._lock:
            for token in self._tokens.values():
                token.cancel()
            self._told.set()
        self._orders.put((-1, next(self._numbers), None))

    def run(self) -> None:
        """Work orders off until :meth:`stop`."""
        while (order := self._orders.get()[2]) is not None:
            self._send(self.answer(order))
            if self._orders.empty():
                give_back_freed_memory()

    def answer(self, order: EngineOrder) -> Finished:
        """Do one order and return its one terminal event."""
        with self._lock:
            token = self._tokens.setdefault(order.job, CancelToken())
        try:
            token.check()
            if isinstance(order, RefineOrder):
                self._refine(order, token)
            else:
                self._predict(order, token)
            return Finished(job=order.job, state=RunState.COMPLETED)
        except CanceledError:
            return Finished(job=order.job, state=RunState.CANCELED)
        except SegDeskError as error:
            is_input = isinstance(error, InputError)
            return Finished(
                job=order.job, state=RunState.FAILED, reason=error.message, is_input=is_input
            )
        except Exception as error:  # noqa: BLE001  the worker's boundary: it must survive
            traceback.print_exc(file=sys.stderr)
            what = "Refinement" if isinstance(order, RefineOrder) else "Prediction"
            reason = f"{what} failed ({type(error).__name__}: {error}); the log says where."
            return Finished(job=order.job, state=RunState.FAILED, reason=reason)
        finally:
            with self._lock:
                self._tokens.pop(order.job, None)
                self._views.pop(order.job, None)

    def _predict(self, order: PredictOrder, token: CancelToken) -> None:
        model, predictor, sampler = self.prepare(order, token)
        live = LiveView(order, self._send)
        watch = Watch(
            check=lambda: self._give_way(token),
            progress=self._progress(order),
            view=lambda: self._views.get(order.job),
            **({"show": live.show} if order.view is not None else {}),
        )
        prediction = predict_to_folder(order, model, predictor, sampler, watch)
        self._send(
            PredictionReady(
                job=order.job,
                sample=order.sample,
                model=order.model,
                weights_sha256=model.weights_sha256,
                folder=prediction.folder,
                score=prediction.score,
            )
        )

    def _give_way(self, token: CancelToken) -> None:
        """Wait while the user paints, though not for long; raise if the job was called off."""
        longest = time.monotonic() + LONGEST_WAIT
        while True:
            self._told.clear()
            token.check()
            seconds = min(self._waits_until, longest) - time.monotonic()
            if seconds <= 0:
                return
            self._told.wait(seconds)

    def _refine(self, order: RefineOrder, token: CancelToken) -> None:
        changed = refine_to_folder(order, token, self._progress(order))
        self._send(
            RefinementReady(
                job=order.job,
                sample=order.sample,
                model=order.model,
                weights_sha256=order.weights_sha256,
                folder=order.out,
                changed=changed,
            )
        )

    def prepare(
        self, order: PredictOrder, token: CancelToken
    ) -> tuple[LoadedModel, Predictor, Sampler]:
        """Make ready what an order needs; the model is loaded unless it was the last one.

        Raises
        ------
        InputError
            A model cannot be loaded, or it has not what the uncertainty needs.
        CanceledError
            From ``token``.
        """
        model, predictor = self._load(order, token)
        others = self._companions(order)
        predictor.fit([other.spec for other in others])
        companions = [
            in_order(
                Predictor(other, predictor.device).network, other.card.classes, model.card.classes
            )
            for other in others
        ]
        sampler = make_sampler(
            order.config.uncertainty,
            [predictor.network, *companions],
            passes=order.config.passes,
        )
        return model, predictor, sampler

    def _load(self, order: PredictOrder, token: CancelToken) -> tuple[LoadedModel, Predictor]:
        key = (str(order.model_folder), hash_weights(order.model_folder), order.config.device)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # before the next one needs its memory
            choice = pick_device(order.config.device)
            model = load_model(order.model_folder)
            token.check()
            fuse_batch_norm(model.network)
            self._loaded = (key, model, Predictor(model, choice.device, self._say))
        return self._loaded[1:]

    def _companions(self, order: PredictOrder) -> list[LoadedModel]:
        """Load the further models of an ensemble, unless they were those of the last one."""
        key = tuple(hash_weights(folder) for folder in order.companions)
        if self._others[0] != key:
            self._others = ((), [])
            self._others = (key, [load_model(folder) for folder in order.companions])
            for other in self._others[1]:
                fuse_batch_norm(other.network)
        return self._others[1]

    def _progress(self, order: EngineOrder) -> Callable[[int, int], None]:
        """Return what tells how far an order has got."""
        return lambda done, total: self._send(Progressed(job=order.job, done=done, total=total))

    def _say(self, sentence: str) -> None:
        self._send(Said(job="", text=sentence))

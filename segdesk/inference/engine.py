"""The engine: keeps the last model loaded and answers prediction orders in turn."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Callable

from segdesk.core.errors import CanceledError, InputError, SegDeskError
from segdesk.core.run import RunState
from segdesk.inference.predictor import Predictor
from segdesk.inference.refining import refine_to_folder
from segdesk.inference.results import predict_to_folder
from segdesk.io.packages import hash_weights
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.messages import (
    AnyEvent,
    CancelOrder,
    EngineOrder,
    Finished,
    PredictionReady,
    PredictOrder,
    Progressed,
    RefinementReady,
    RefineOrder,
)
from segdesk.nn.device import DeviceChoice, pick_device
from segdesk.nn.weights import LoadedModel, load_model


class Engine:
    """Takes orders from any thread and works them off on the one that runs it.

    A newer order for a sample cancels the older one at its next tile.

    Parameters
    ----------
    send
        Called with every event.
    """

    def __init__(self, send: Callable[[AnyEvent], None]) -> None:
        self._send = send
        self._orders: queue.Queue[EngineOrder | None] = queue.Queue()
        self._tokens: dict[str, CancelToken] = {}
        self._newest: dict[str, str] = {}
        self._lock = threading.Lock()
        self._loaded: tuple[tuple[str, str, str], LoadedModel, Predictor, DeviceChoice] | None = (
            None
        )

    def take(self, order: EngineOrder | CancelOrder) -> None:
        """Accept an order; returns at once."""
        with self._lock:
            if isinstance(order, CancelOrder):
                if order.job in self._tokens:
                    self._tokens[order.job].cancel()
                return
            older = self._newest.get(order.sample)
            if older in self._tokens:
                self._tokens[older].cancel()
            self._tokens[order.job] = CancelToken()
            self._newest[order.sample] = order.job
        self._orders.put(order)

    def stop(self) -> None:
        """Cancel everything and make :meth:`run` return."""
        with self._lock:
            for token in self._tokens.values():
                token.cancel()
        self._orders.put(None)

    def run(self) -> None:
        """Work orders off until :meth:`stop`."""
        while (order := self._orders.get()) is not None:
            self._send(self.answer(order))

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

    def _predict(self, order: PredictOrder, token: CancelToken) -> None:
        model, predictor, choice = self._load(order)

        def progress(done: int, total: int) -> None:
            self._send(Progressed(job=order.job, done=done, total=total))

        prediction = predict_to_folder(
            order, model, predictor, device=str(choice.device), token=token, progress=progress
        )
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

    def _refine(self, order: RefineOrder, token: CancelToken) -> None:
        def progress(done: int, total: int) -> None:
            self._send(Progressed(job=order.job, done=done, total=total))

        changed = refine_to_folder(order, token, progress)
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

    def _load(self, order: PredictOrder) -> tuple[LoadedModel, Predictor, DeviceChoice]:
        key = (str(order.model_folder), hash_weights(order.model_folder), order.config.device)
        if self._loaded is None or self._loaded[0] != key:
            choice = pick_device(order.config.device)
            model = load_model(order.model_folder)
            self._loaded = (key, model, Predictor(model, choice.device), choice)
        return self._loaded[1:]

"""From worker threads to the window: one queue, drained on the main thread.

Everything that happens elsewhere (events of the worker processes, results of
the reading threads) is put into the queue and taken out by a timer, so that
only the main thread ever touches the session and the widgets.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from napari.utils.notifications import (
    ErrorNotification,
    Notification,
    NotificationSeverity,
    notification_manager,
)
from psygnal import Signal
from qtpy.QtCore import QObject, QTimer

from segdesk.core.errors import CanceledError, SegDeskError
from segdesk.jobs.messages import AnyEvent, PartsPredicted, Progressed, Said, Stepped

DRAIN_MILLISECONDS = 33

#: Events that only change what is drawn.
DRAWN: Final = (Progressed, PartsPredicted, Stepped)

Call = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Steps:
    """Training steps of one run that came in since the last look."""

    job: str
    steps: tuple[Stepped, ...]


def notify(message: str, severity: str = "info") -> None:
    """Show a sentence in napari's corner; ``severity`` is info, warning or error."""
    notification_manager.dispatch(Notification(message, NotificationSeverity(severity)))


@contextmanager
def reporting() -> Iterator[None]:
    """Turn a SegDeskError into a notification; also serves as a decorator.

    A cancelled job is an outcome that its panel shows, so it is not reported.
    """
    try:
        yield
    except CanceledError:
        return
    except SegDeskError as error:
        # Not an ErrorNotification: its traceback is of no use here, and fills the console.
        notification_manager.dispatch(
            Notification(error.message, NotificationSeverity.ERROR, error.actions)
        )


def coalesce(items: list[AnyEvent | Call]) -> list[AnyEvent | Steps | Call]:
    """Thin out what would repaint the window needlessly, keeping the order.

    Of the progress of one job only the last is kept, and its training steps are
    handed over together; both before anything else that came after them.
    """
    result: list[AnyEvent | Steps | Call] = []
    progress: dict[str, Progressed] = {}
    steps: dict[str, list[Stepped]] = {}

    def flush() -> None:
        result.extend(progress.values())
        result.extend(Steps(job, tuple(made)) for job, made in steps.items())
        progress.clear()
        steps.clear()

    for item in items:
        if isinstance(item, Progressed):
            progress[item.job] = item
        elif isinstance(item, Stepped):
            steps.setdefault(item.job, []).append(item)
        else:
            flush()
            result.append(item)
    flush()
    return result


def _must_follow(item: AnyEvent | Call) -> bool:
    """Whether what was drawn of a job before must be there when this is handed over."""
    return not isinstance(item, (*DRAWN, Said)) and not callable(item)


class Bridge(QObject):
    """Takes events and calls from any thread and runs them on the main one.

    Parameters
    ----------
    handle
        Called with every event that is left after :func:`coalesce`; of a batch of
        training steps, with the last.
    is_painting
        Whether the user draws a stroke now. What is only drawn waits until it has ended,
        or until a job has: without a graphics card drawing takes up to 50 ms, and the
        stroke would jump.
    """

    stepped = Signal(Steps)

    def __init__(
        self,
        handle: Callable[[AnyEvent], None],
        parent: QObject | None = None,
        is_painting: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(parent)
        self._handle = handle
        self._is_painting = is_painting
        #: What waits for the end of a stroke.
        self._held: list[AnyEvent | Call] = []
        self._queue: queue.SimpleQueue[AnyEvent | Call] = queue.SimpleQueue()
        self._timer = QTimer(self)
        self._timer.setInterval(DRAIN_MILLISECONDS)
        self._timer.timeout.connect(self.drain)
        self._timer.start()

    def put(self, event: AnyEvent) -> None:
        """Hand an event over; any thread may."""
        self._queue.put(event)

    def call(self, function: Call) -> None:
        """Have ``function`` called on the main thread soon; any thread may ask."""
        self._queue.put(function)

    def close(self) -> None:
        """Stop; what is still in the queue is dropped."""
        self._timer.stop()
        self._held.clear()
        while not self._queue.empty():
            self._queue.get_nowait()

    def drain(self) -> None:
        """Take everything out of the queue and work it off, unless it is to wait."""
        items, self._held = self._held, []
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        if self._is_painting() and not any(_must_follow(item) for item in items):
            self._held = [item for item in items if isinstance(item, DRAWN)]
            items = [item for item in items if not isinstance(item, DRAWN)]
        for item in coalesce(items):
            self._work_off(item)

    def _work_off(self, item: AnyEvent | Steps | Call) -> None:
        try:
            with reporting():
                if isinstance(item, Steps):
                    self.stepped.emit(item)
                    self._handle(item.steps[-1])
                elif callable(item):
                    item()
                else:
                    self._handle(item)
        except Exception as error:  # noqa: BLE001  the window's boundary: tell, and go on
            notification_manager.dispatch(ErrorNotification(error))

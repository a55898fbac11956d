"""Work that may take long: on a thread apart from those that read images, or waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qtpy.QtCore import QEventLoop, QTimer

from segdesk.jobs.cancel import CancelToken

if TYPE_CHECKING:
    from segdesk.ui.bridge import Bridge

Result = TypeVar("Result")

#: So often it is looked whether what is waited for has ended, in ms.
POLL: Final = 15


class PatientPool:
    """Threads for work that may wait for a server that never answers.

    Neither closing the pool nor the end of the program waits for what hangs.

    Parameters
    ----------
    threads
        How many pieces of work are under way at once.
    name
        Of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._futures: set[Future[Any]] = set()
        self._threads = [
            threading.Thread(target=self._run, name=name, daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Do ``work`` once a thread is free."""
        future = Future[Result]()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  it is handed on
                future.set_exception(error)

        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        self._waiting.put(do)
        return future

    def close(self, seconds: float) -> None:
        """Begin nothing more, and wait so long at most for what is under way."""
        for future in list(self._futures):
            future.cancel()
        for _ in self._threads:
            self._waiting.put(None)
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while (do := self._waiting.get()) is not None:
            do()
            del do  # it keeps what it worked on


class SlowThread:
    """Does one piece of work after the other.

    Parameters
    ----------
    bridge
        Brings the results to the main thread.
    name
        Of the thread.
    """

    def __init__(self, bridge: Bridge, name: str = "segdesk-slow") -> None:
        self._bridge = bridge
        self._pool = PatientPool(1, name)
        self._tokens: set[CancelToken] = set()

    def start(
        self, work: Callable[[CancelToken], Result], then: Callable[[Future[Result]], None]
    ) -> CancelToken:
        """Do ``work``, then call ``then`` on the main thread, however it ended.

        ``work`` is given what calls it off, which is also returned: several panels share
        the thread, and each calls off its own.
        """
        token = CancelToken()
        self._tokens.add(token)

        def hand_over(done: Future[Result]) -> None:
            self._tokens.discard(token)
            if not done.cancelled():
                self._bridge.call(lambda: then(done))

        self._pool.submit(lambda: work(token)).add_done_callback(hand_over)
        return token

    def close(self, seconds: float) -> None:
        """End what is under way, and the thread; waits so long at most."""
        for token in list(self._tokens):
            token.cancel()
        self._pool.close(seconds)


class LoneThread:
    """Does one piece of work on a thread that the end of the program does not wait for.

    For reading what may be slow to answer: who no longer needs it calls it off and goes on.

    Parameters
    ----------
    work
        Given what calls it off.
    then
        Called on that thread at the end, however it was.
    """

    def __init__(
        self,
        work: Callable[[CancelToken], None],
        then: Callable[[Future[None]], None],
        name: str,
    ) -> None:
        self.token = CancelToken()
        self._work, self._then = work, then
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._thread.is_alive()

    def join(self, seconds: float | None = None) -> None:
        """Wait for its end, so long at most."""
        self._thread.join(seconds)

    def _run(self) -> None:
        done: Future[None] = Future()
        try:
            self._work(self.token)
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001  it is handed on
            done.set_exception(error)
        self._then(done)
        # Who keeps this thread must not keep what it worked on: images of gigabytes.
        del self._work, self._then


def wait_painting(work: Callable[[], None]) -> None:
    """Do ``work`` on a thread and wait for it, while the window goes on painting.

    Keys and clicks are kept for afterwards, so that nothing is asked of what is being ended.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="segdesk-closing") as pool:
        done = pool.submit(work)
        loop, timer = QEventLoop(), QTimer()
        timer.timeout.connect(lambda: loop.quit() if done.done() else None)
        timer.start(POLL)
        if not done.done():
            # Once the program itself is ending this returns at once, and the wait is a plain one.
            loop.exec(QEventLoop.ProcessEventsFlag.ExcludeUserInputEvents)
        timer.stop()
    done.result()

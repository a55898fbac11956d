"""A thread for work that may take long, apart from the ones that read images."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from segdesk.jobs.cancel import CancelToken

if TYPE_CHECKING:
    from segdesk.ui.bridge import Bridge

Result = TypeVar("Result")


class SlowThread:
    """Does one piece of work after the other.

    Parameters
    ----------
    bridge
        Brings the results to the main thread.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="segdesk-slow")
        self._token = CancelToken()

    def start(
        self, work: Callable[[CancelToken], Result], then: Callable[[Future[Result]], None]
    ) -> None:
        """Do ``work``, then call ``then`` on the main thread, however it ended.

        ``work`` is given what calls it off.
        """
        token = self._token

        def hand_over(done: Future[Result]) -> None:
            if not done.cancelled():
                self._bridge.call(lambda: then(done))

        self._pool.submit(lambda: work(token)).add_done_callback(hand_over)

    def cancel(self) -> None:
        """Ask what is under way to end at its next step."""
        self._token.cancel()
        self._token = CancelToken()

    def close(self) -> None:
        """End what is under way, and the thread."""
        self._token.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)

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

    def close(self) -> None:
        """End what is under way, and the thread."""
        for token in list(self._tokens):
            token.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)

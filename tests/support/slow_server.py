"""A folder over HTTP, as slow as asked for, and gone when asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class SlowServer(ThreadingHTTPServer):
    """Serves a folder at ``address``.

    Attributes
    ----------
    delay
        Seconds before each answer about a chunk.
    is_empty
        Whether it knows of no file any more.
    chunks
        Paths of the chunks that were asked for, in order.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        handler = partial(_Handler, directory=str(folder))
        super().__init__(("127.0.0.1", 0), handler)
        self.delay = 0.0
        self.is_empty = False
        self.chunks: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    def vanish(self) -> None:
        """Answer nobody any more, as a server that is switched off."""
        self.shutdown()
        self.server_close()


class _Handler(SimpleHTTPRequestHandler):
    server: SlowServer

    def do_GET(self) -> None:
        """Answer after a while."""
        if not self.path.endswith((".json", ".zgroup", ".zarray", ".zattrs", "/")):
            self.server.chunks.append(self.path)
            time.sleep(self.server.delay)
        if self.server.is_empty:
            self.send_error(404)
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[SlowServer]:
    """Serve a folder while the block lasts."""
    server = SlowServer(folder)
    try:
        yield server
    finally:
        server.vanish()

"""Fetching published weights with ``huggingface_hub``, into its own cache.

It respects that library's settings (``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_OFFLINE``),
but not its patience: behind a firewall that swallows everything, resolving a name, trying
each address of a server and the library's own retries take minutes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Seconds that a server may take to answer a request.
ANSWER_SECONDS = 10
#: Seconds without a byte after which a download is given up: before the first byte (a
#: little more than an answer may take, for its error says more) and after it.
CONNECT_SECONDS = 12.0
STALL_SECONDS = 30.0
#: Seconds between two reports of progress.
REPORT_SECONDS = 0.5

#: ``progress(done, total, text)``, in bytes; what it raises calls the download off.
Progress = Callable[[int, int, str], None]


class TransferError(Exception):
    """A download failed; the message says why, in brackets behind a sentence."""


class Transfer:
    """A download on a thread of its own, which is left behind when it hangs.

    Parameters
    ----------
    repository
        Such as ``timm/resnet101.a1h_in1k``.
    revision
        Branch, tag or commit; None is the main branch.
    file
        Name in the repository.
    """

    def __init__(self, repository: str, revision: str | None, file: str) -> None:
        self._repository = repository
        self._revision = revision
        self._file = file
        self._done = self._total = 0
        self._has_begun = self._is_abandoned = False
        self._heard = time.monotonic()
        self._path: Path | None = None
        self._error: Exception | None = None

    def wait(self, progress: Progress, text: str) -> Path:
        """Download, or find in the cache, and return the file.

        Raises
        ------
        TransferError
            No connection, no such file, no room; whatever ``progress`` raises, too.
        """
        thread = threading.Thread(target=self._work, name="segdesk-download", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(REPORT_SECONDS)
                progress(self._done, self._total, text)
                limit = STALL_SECONDS if self._has_begun else CONNECT_SECONDS
                if time.monotonic() - self._heard > limit:
                    raise TransferError(f"nothing was heard for {limit:.0f} seconds")
        finally:
            self._is_abandoned = True
        if self._error is not None:
            raise TransferError(_reason(self._error))
        assert self._path is not None
        return self._path

    def _work(self) -> None:
        try:
            self._path = self._fetch()
        except Exception as error:  # noqa: BLE001  the HTTP library's own errors vary by version
            self._error = error

    def _fetch(self) -> Path:
        import huggingface_hub
        from huggingface_hub import constants

        # Plain HTTP: the other protocol retries for minutes and hears of no cancelling.
        constants.HF_HUB_DISABLE_XET = True
        # Of 10 MiB by default, which on a slow line would look like a stall.
        constants.DOWNLOAD_CHUNK_SIZE = 2**18
        where: dict[str, Any] = {"repo_id": self._repository, "filename": self._file}
        where["revision"] = self._revision
        cached = huggingface_hub.try_to_load_from_cache(**where)
        if isinstance(cached, str):
            return Path(cached)
        # hf_hub_download retries this for minutes; asked alone, it fails at once.
        url = huggingface_hub.hf_hub_url(**where)
        huggingface_hub.get_hf_file_metadata(url, timeout=ANSWER_SECONDS)
        self._heard = time.monotonic()
        bar: Any = self._make_bar()
        return Path(
            huggingface_hub.hf_hub_download(**where, etag_timeout=ANSWER_SECONDS, tqdm_class=bar)
        )

    def _make_bar(self) -> type:
        """Return a class that takes the place of tqdm's progress bar."""
        transfer = self

        class Bar:
            def __init__(self, *args: Any, **settings: Any) -> None:
                transfer._total = int(settings.get("total") or 0)
                transfer._done = int(settings.get("initial") or 0)
                self.update(0)

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *args: object) -> None:
                pass

            def update(self, count: float | None = 1) -> None:
                if transfer._is_abandoned:
                    raise TransferError("called off")
                transfer._done += int(count or 0)
                transfer._has_begun = True
                transfer._heard = time.monotonic()

        return Bar


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the server answered {status}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"no connection: {type(error).__name__}"

"""Sending what is finished of a prediction to the screen, while the rest is computed."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segdesk.inference.tiling import Box
from segdesk.jobs.messages import AnyEvent, Part, PartsPredicted, PredictOrder

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

#: Parts are sent together so often at most: more than a screen needs is lost work.
SECONDS: Final = 0.05


class LiveView:
    """Packs finished parts of a prediction and sends them on.

    The last parts may stay unsent: the prediction itself follows them.

    Parameters
    ----------
    order
        Whose parts.
    send
        Takes the event.
    """

    def __init__(self, order: PredictOrder, send: Callable[[AnyEvent], None]) -> None:
        self._order = order
        self._send = send
        self._sent = 0.0
        self._z = 0
        self._waiting: list[Part] = []

    def show(self, z: int, box: Box, labels: Bytes, unsure: npt.NDArray[np.float32]) -> None:
        """Take a part: labels uint8 and uncertainty 0 to 1, (h, w)."""
        if z != self._z:
            self._flush()
            self._z = z
        self._waiting.append(
            Part(
                top=box.top,
                left=box.left,
                height=box.bottom - box.top,
                width=box.right - box.left,
                labels=pack(labels),
                uncertainty=pack(np.rint(unsure * 255).astype(np.uint8)),
            )
        )
        if time.monotonic() - self._sent > SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            order, parts = self._order, tuple(self._waiting)
            self._send(PartsPredicted(job=order.job, sample=order.sample, z=self._z, parts=parts))
            self._waiting.clear()
            self._sent = time.monotonic()


def pack(values: npt.NDArray[Any]) -> str:
    """Return the bytes of an array as text."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 1)).decode()


def unpack(part: Part) -> tuple[Bytes, Bytes]:
    """Return labels and uncertainty (0 to 255) of a part, uint8 (h, w)."""
    labels, unsure = (
        np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
        for text in (part.labels, part.uncertainty)
    )
    shape = part.height, part.width
    return labels.reshape(shape), unsure.reshape(shape)

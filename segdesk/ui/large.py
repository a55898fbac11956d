"""A large image on screen: opened without reading it, sharper as it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from qtpy.QtCore import QObject, QTimer

from segdesk.core.errors import SegDeskError
from segdesk.core.sample import Sample
from segdesk.inference.normalize import read_blocks
from segdesk.io.pyramids import Pyramid, open_pyramid
from segdesk.jobs.cancel import CancelToken
from segdesk.ui.background import LoneThread
from segdesk.ui.bridge import notify
from segdesk.ui.layers import limits_of, to_colors
from segdesk.ui.tiles import TileLoader

if TYPE_CHECKING:
    import numpy.typing as npt

    from segdesk.ui.bridge import Bridge
    from segdesk.ui.layers import SampleLayers

#: Images of more pixels than this are never read whole for the screen.
LARGE_PIXELS: Final = 32 * 2**20
#: What was read is drawn so often at most, in milliseconds.
DRAW_MILLISECONDS: Final = 100
#: Who waits for another image's last reads looks so often whether it is called off, in seconds.
JOIN_SECONDS: Final = 0.1
CACHE: Final = Path("cache", "levels")


def is_large(sample: Sample) -> bool:
    """Tell whether an image is shown piece by piece."""
    return math.prod(sample.shape) > LARGE_PIXELS


def open_large(sample: Sample, project: Path) -> tuple[Pyramid, tuple[float, float]]:
    """Open an image, and find what range of values is shown; any thread may call it.

    Raises
    ------
    InputError
        It cannot be read.
    """
    pyramid = open_pyramid(sample.path, sample.sha256, project / CACHE / sample.id)
    source = pyramid.source
    if source.channels == 3 and source.dtype == "uint8":
        return pyramid, (0.0, 255.0)
    try:
        return pyramid, limits_of(np.stack(read_blocks(source)))
    except BaseException:
        pyramid.close()
        raise


class LargeImage(QObject):
    """Brings blocks of an image on screen as they are read, and makes levels it lacks.

    Parameters
    ----------
    name
        What the user calls it.
    pyramid, limits
        From :func:`open_large`.
    layers, bridge
        Where to draw, and what brings calls to the main thread.
    say
        Told how far the levels are, for people; an empty text at the end.
    """

    def __init__(
        self,
        name: str,
        pyramid: Pyramid,
        limits: tuple[float, float],
        layers: SampleLayers,
        bridge: Bridge,
        say: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._name, self._bridge, self._tell = name, bridge, say
        self.limits = limits
        self.is_colored = pyramid.source.channels > 1
        self.loader = TileLoader(pyramid, partial(_look, limits), self._on_news, self._on_trouble)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(DRAW_MILLISECONDS)
        self._timer.timeout.connect(layers.draw_image)
        self._is_told = False
        self._is_closed = False
        self._making: LoneThread | None = None

    def start(self, earlier: Sequence[LoneThread] = ()) -> None:
        """Read the overview, and make it where the image has none.

        Parameters
        ----------
        earlier
            What :meth:`close` returned when this very sample was left: one of them may
            still write the levels that are to be made.
        """

        def tell(done: Future[None]) -> None:
            self._bridge.call(lambda: self._on_made(done))

        make = partial(self._make, earlier)
        self._making = LoneThread(make, tell, "segdesk-levels")

    def close(self) -> LoneThread:
        """Read and make no more, and return at once: a store may be slow to answer.

        What is returned ends when the last read has, and the image is closed.
        """
        self._is_closed = True
        self._timer.stop()
        if self._making is not None:
            self._making.token.cancel()
        self.loader.close()
        return LoneThread(lambda _: self._end(), _require_no_fault, "segdesk-leaving")

    # On other threads ----------------------------------------------------------

    def _end(self) -> None:
        if self._making is not None:
            self._making.join()
        self.loader.wait()
        self.loader.pyramid.close()

    def _make(self, earlier: Sequence[LoneThread], token: CancelToken) -> None:
        loader, pyramid = self.loader, self.loader.pyramid
        loader.fill_overview()
        self._on_news()
        if pyramid.is_whole:
            return

        for left in earlier:
            while left.is_alive:
                token.check()
                left.join(JOIN_SECONDS)
        text = f"{self._name} has no small levels: making some to show it with, once"
        for patch in pyramid.make(token.check):
            self._say(f"{text}… {patch.share:.0%}")
            loader.fill_overview(patch)
            self._on_news()

    def _say(self, text: str) -> None:
        self._bridge.call(lambda: None if self._is_closed else self._tell(text))

    def _on_news(self) -> None:
        if not self._is_told:
            self._is_told = True
            self._bridge.call(self._draw_soon)

    def _on_trouble(self, error: SegDeskError) -> None:
        self._bridge.call(lambda: None if self._is_closed else notify(error.message, "error"))

    # On the main thread ----------------------------------------------------------

    def _draw_soon(self) -> None:
        self._is_told = False
        if not self._timer.isActive() and not self._is_closed:
            self._timer.start()

    def _on_made(self, done: Future[None]) -> None:
        error = done.exception()
        is_left = self._is_closed and isinstance(error, SegDeskError)
        if not self._is_closed:
            self._tell("")
        if error is not None and not is_left:
            raise error


def _look(limits: tuple[float, float], pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what is shown of pixels (h, w, C): grey (h, w) or colours (h, w, 3)."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else to_colors(pixels, limits)


def _require_no_fault(done: Future[None]) -> None:
    """Let a fault of ours be heard of: nobody asks a closing thread for its result."""
    done.result()

"""A prediction on screen while it is being made, first where the user is looking."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np
from qtpy.QtCore import QObject, QTimer

from segdesk.core.annotation import BAND_PIXELS
from segdesk.core.enlarging import span, span_in_level
from segdesk.core.run import RunState
from segdesk.inference.live import unpack
from segdesk.jobs.messages import Finished, Part, PartsPredicted, View
from segdesk.session.session import Session
from segdesk.ui.bridge import reporting

if TYPE_CHECKING:
    import numpy.typing as npt

    from segdesk.ui.workbench import Workbench

    Bytes = npt.NDArray[np.uint8]
    #: First row and column in the image, labels, and uncertainty 0 to 255.
    Found = tuple[tuple[int, int], Bytes, Bytes]

#: The view is told to the engine when it has been still for so long.
STILL_MILLISECONDS: Final = 150
#: New parts are drawn so often at most, in seconds,
DRAW_SECONDS: Final = 0.1
#: and so rarely that drawing takes this share of the window's time: without a graphics
#: card a drawing takes 50 ms, in which nothing else happens.
DRAW_SHARE: Final = 0.02


class LivePrediction(QObject):
    """Follows the one prediction that was ordered for the sample on screen.

    Parts are written into the layers when they come, and drawn when no stroke is under
    way; the engine is told where the user is looking. Another sample on screen calls the
    prediction off; what is finished of it is kept on disk, and the next order for it goes
    on from there.
    """

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self._workbench = workbench
        self._job = ""
        self._told: View | None = None
        #: Shapes of what is predicted and of the image; not the same at a coarser level.
        self._level: tuple[int, ...] = ()
        self._whole: tuple[int, ...] = ()
        #: The same of what was looked at last; it may never be ordered.
        self._asked: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self._may_draw_at = 0.0
        self._still = QTimer(self)
        self._still.setSingleShot(True)
        self._still.setInterval(STILL_MILLISECONDS)
        self._still.timeout.connect(self._tell)
        self._draw_timer = QTimer(self)
        self._draw_timer.setSingleShot(True)
        self._draw_timer.timeout.connect(self._draw)
        viewer = workbench.viewer
        camera = viewer.scene.camera
        for event in (camera.events.center, camera.events.zoom):
            event.connect(self._on_moved)
        viewer.dims.events.current_step.connect(self._on_moved)

    def listen(self, session: Session) -> None:
        """Take the parts that a newly opened session hears of."""
        self._job = ""
        session.events.parts_predicted.connect(self._on_parts)
        session.events.job_finished.connect(self._on_finished)

    def close(self) -> None:
        """Stop the timers."""
        self._job = ""
        self._still.stop()
        self._draw_timer.stop()

    def view(self) -> View | None:
        """Return what is on screen of the sample; None while that is not known."""
        layer = self._workbench.layers.labels if self._workbench.layers is not None else None
        if layer is None or self._workbench.viewer.dims.ndisplay != 2:
            return None
        (top, left), (bottom, right) = layer.corner_pixels[:, -2:].tolist()
        z = int(self._workbench.viewer.dims.current_step[-3]) if layer.ndim == 3 else 0
        window = self._workbench.layers.window if self._workbench.layers is not None else None
        if window is not None:
            (top, left), (bottom, right) = window.seen((top, left, bottom, right))
        return View(z=z, top=top, left=left, bottom=bottom + 1, right=right + 1)

    def look(self, level: tuple[int, ...], whole: tuple[int, ...]) -> View | None:
        """Return :meth:`view` in pixels of what the next job predicts.

        Parameters
        ----------
        level, whole
            Shapes of what it predicts and of the image.
        """
        self._asked = level, whole
        view = self.view()
        if view is None or level[-2:] == whole[-2:]:
            return view
        top, bottom = span_in_level(view.top, view.bottom, level[-2], whole[-2])
        left, right = span_in_level(view.left, view.right, level[-1], whole[-1])
        return View(z=view.z, top=top, left=left, bottom=bottom, right=right)

    def follow(self, job: str, view: View) -> None:
        """Show the parts of this job, ordered with this view, as they come.

        The view is what :meth:`look` returned last.
        """
        self._job = job
        self._told = view
        self._level, self._whole = self._asked
        self._may_draw_at = 0.0

    def leave(self) -> None:
        """Call off what is shown: nobody looks at it any more."""
        job, self._job = self._job, ""
        session = self._workbench.session
        if job and session is not None and job in session.jobs:
            session.backend.cancel(job)

    # What comes in -------------------------------------------------------------

    def _on_moved(self, _: object = None) -> None:
        if self._job:
            self._still.start()

    @reporting()
    def _tell(self) -> None:
        if not self._job:
            return
        view, session = self.look(self._level, self._whole), self._workbench.session
        if view is not None and view != self._told and session is not None:
            self._told = view
            session.backend.look(self._job, view)

    @reporting()
    def _on_parts(self, event: PartsPredicted) -> None:
        if event.job == self._job:
            self._workbench.in_background(
                partial(unpack_parts, event.parts, self._level[-2:], self._whole[-2:]),
                partial(self._take, event.job, event.z),
            )

    @reporting()
    def _on_finished(self, event: Finished) -> None:
        if not self._job or event.job != self._job:
            return
        self._job = ""
        if event.state is not RunState.COMPLETED:
            self._workbench.show_current_prediction()  # what was there before

    def _take(self, job: str, z: int, parts: Iterator[Found]) -> None:
        """Show parts; of many pixels some now and the rest later, so that nothing waits."""
        workbench = self._workbench
        correction, layers = workbench.current_correction, workbench.layers
        if job != self._job or correction is None or layers is None:
            return
        is_stack = correction.annotation.labels.ndim == 3
        shown = 0
        for place, labels, unsure in parts:
            shown += labels.size
            start = (z, *place) if is_stack else place
            shape = (1, *labels.shape) if is_stack else labels.shape
            before, after = correction.take_part(start, labels.reshape(shape))
            layers.put_part(start, before, after, unsure.reshape(shape))
            if shown >= BAND_PIXELS:
                QTimer.singleShot(0, partial(self._take, job, z, parts))
                break
        wait = max(0.0, self._may_draw_at - time.monotonic())
        if not self._draw_timer.isActive():
            self._draw_timer.start(round(wait * 1000))

    # Drawing --------------------------------------------------------------------

    def _draw(self) -> None:
        if self._workbench.is_painting:
            self._draw_timer.start(STILL_MILLISECONDS)
        elif self._workbench.layers is not None:
            began = time.monotonic()
            self._workbench.layers.draw_parts()
            # The drawing itself comes after this, and before the next timer.
            QTimer.singleShot(0, partial(self._note_cost, began))

    def _note_cost(self, began: float) -> None:
        now = time.monotonic()
        self._may_draw_at = now + max(DRAW_SECONDS, (now - began) / DRAW_SHARE)


def unpack_parts(
    parts: tuple[Part, ...], level: tuple[int, ...], whole: tuple[int, ...]
) -> Iterator[Found]:
    """Yield where parts lie in the image, their labels and their uncertainty (0 to 255).

    What is predicted at a coarser level is brought to the image's pixels (nearest
    neighbour) one piece after the other, of :data:`BAND_PIXELS` at most, or of one row:
    all of them may be as large as the image.

    Parameters
    ----------
    level, whole
        (Y, X) of what is predicted and of the image.
    """
    maps = [unpack(part) for part in parts]
    return chain.from_iterable(
        _enlarge(part, both, level, whole) for part, both in zip(parts, maps, strict=True)
    )


def _enlarge(
    part: Part, maps: tuple[Bytes, Bytes], level: tuple[int, ...], whole: tuple[int, ...]
) -> Iterator[Found]:
    if level == whole:
        yield (part.top, part.left), *maps
    else:
        top, bottom = span(part.top, part.top + part.height, level[0], whole[0])
        left, right = span(part.left, part.left + part.width, level[1], whole[1])
        columns = np.arange(left, right) * level[1] // whole[1] - part.left
        step = max(1, BAND_PIXELS // max(1, right - left))
        for row in range(top, bottom, step):
            rows = np.arange(row, min(row + step, bottom)) * level[0] // whole[0] - part.top
            labels, unsure = (values[rows][:, columns] for values in maps)
            yield (row, left), labels, unsure

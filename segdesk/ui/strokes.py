"""From paint strokes on the Labels layer to the project's journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from napari.layers import Labels
from psygnal import Signal
from qtpy.QtCore import QTimer

from segdesk.core.annotation import Edit
from segdesk.core.errors import InputError, SegDeskError
from segdesk.session.correcting import Correction
from segdesk.ui.bridge import reporting
from segdesk.ui.label_window import COARSEST_PAINTED, LabelWindow

if TYPE_CHECKING:
    import numpy.typing as npt

    Box = tuple[slice, ...]

UNDO, REDO = "Control-Z", "Control-Shift-Z"

#: So long after a stroke, in seconds, the next one may follow.
REST: Final = 0.15
#: A button that is down without a move for so long, in seconds, counts as released: a dialog
#: that opens over a stroke takes the release, and results must not wait for it.
STUCK: Final = 3.0
#: So often, in seconds, it is said that a stroke is still being drawn.
SAYING: Final = 0.2


@dataclass
class Drag:
    """A pull of brush or eraser with the mouse, as far as it has got.

    Attributes
    ----------
    correction
        Whose labels are painted on.
    label, size
        What is painted, and the brush's diameter.
    axes
        The two axes on screen.
    path
        Where the mouse was, in pixels, one entry per axis of the labels.
    is_kept
        Whether it went into the journal, or was refused.
    moved
        When the mouse moved last, on the monotonic clock.
    """

    correction: Correction
    label: int
    size: float
    axes: tuple[int, ...]
    path: list[tuple[float, ...]] = field(default_factory=list)
    is_kept: bool = False
    moved: float = field(default_factory=time.monotonic)

    def go_to(self, place: tuple[float, ...]) -> None:
        """Note where the mouse is now, in pixels."""
        self.path.append(place)
        self.moved = time.monotonic()


class StrokeKeeper:
    """Hands every stroke on a layer to the correction, and takes them back.

    Brushing with the mouse over pixels that have the label already confirms them.
    A stroke the project refuses (disk full, label outside the classes) is wiped
    off the screen: what is seen is what is kept.

    Parameters
    ----------
    layer
        What is painted on.
    correction
        Returns the correction of the sample on screen.
    window
        What part of large labels the layer holds; None where it holds all.
    """

    changed = Signal()
    #: A stroke was begun, goes on, or has just ended.
    painting = Signal()

    def __init__(
        self,
        layer: Labels,
        correction: Callable[[], Correction | None],
        window: LabelWindow | None = None,
    ) -> None:
        self._layer = layer
        self._window = window
        self._correction = correction
        self._drag: Drag | None = None
        self._ended = -REST
        layer.mouse_drag_callbacks.append(self._follow_mouse)
        layer.events.paint.connect(self._on_paint)
        layer.bind_key(UNDO, lambda _: self.undo(), overwrite=True)
        layer.bind_key(REDO, lambda _: self.redo(), overwrite=True)

    @property
    def is_under_way(self) -> bool:
        """Whether the user draws with the mouse, or did so a moment ago."""
        now = time.monotonic()
        is_drawn = self._drag is not None and now - self._drag.moved < STUCK
        return is_drawn or now - self._ended < REST

    def close(self) -> None:
        """Listen no more."""
        self._layer.mouse_drag_callbacks.remove(self._follow_mouse)
        self._layer.events.paint.disconnect(self._on_paint)

    @reporting()
    def undo(self) -> None:
        """Take the last stroke back, on screen and on disk."""
        correction = self._correction()
        if correction is not None:
            self._show(correction, correction.undo())

    @reporting()
    def redo(self) -> None:
        """Do the stroke again that was taken back last."""
        correction = self._correction()
        if correction is not None:
            self._show(correction, correction.redo())

    def _follow_mouse(self, layer: Labels, event: Any) -> Iterator[None]:
        """Note the way of the brush from press to release, beside napari's own painting."""
        correction = self._correction()
        mode = str(layer.mode)
        is_brush = mode in ("paint", "erase") and event.button == 1
        # napari resizes the brush, and paints no stroke, while its cursor is frozen.
        is_resizing = str(layer.cursor) == "circle_frozen"
        if correction is None or not is_brush or is_resizing or len(event.dims_displayed) != 2:
            return
        label = int(layer.selected_label) if mode == "paint" else 0
        extra = len(event.position) - layer.ndim
        axes = tuple(axis - extra for axis in event.dims_displayed)
        drag = self._drag = Drag(correction, label, float(layer.brush_size), axes)
        drag.go_to(tuple(layer.world_to_data(event.position)))
        self.painting.emit()
        said = drag.moved
        yield
        while event.type == "mouse_move":
            drag.go_to(tuple(layer.world_to_data(event.position)))
            if drag.moved - said > SAYING:
                self.painting.emit()
                said = drag.moved
            yield
        # napari tells of the stroke on release too, maybe later than this.
        QTimer.singleShot(0, partial(self._end_drag, drag))

    @reporting()
    def _end_drag(self, drag: Drag) -> None:
        """Confirm what was brushed over, if the stroke changed no label."""
        if self._drag is drag:
            self._drag = None
            self._ended = time.monotonic()
        self.painting.emit()
        correction = drag.correction
        if drag.is_kept or self._correction() is not correction:
            return
        drag.is_kept = True
        print_ = footprint(drag.path, drag.size, drag.axes, self._layer.data.shape)
        if print_ is None:
            return
        box, mask = print_
        whole, mask = self._whole(box), self._spread(box, mask)
        mask &= correction.annotation.labels[whole] == drag.label
        if correction.confirm(tuple(side.start for side in whole), mask) is not None:
            self.changed.emit()

    def _on_paint(self, event: Any) -> None:
        correction = self._correction()
        if correction is None:
            return
        data = self._layer.data
        kept = correction.annotation.labels
        kept = kept if self._window is None else kept[self._window.box]
        box = painted_box(event.value, data, kept)
        if box is None:
            return
        drag, brushed = self._drag, None
        if drag is not None and drag.correction is correction and not drag.is_kept:
            drag.is_kept = True
            brushed = footprint(drag.path, drag.size, drag.axes, data.shape)
            if brushed is not None:
                box = joint_box((box, brushed[0]), data.shape)
        start = tuple(int(side.start) for side in box)
        after = data[box].copy()
        write_atoms(event.value, after, start)
        seen = None
        if drag is not None and brushed is not None:
            seen = np.zeros(after.shape, bool)
            seen[_within(brushed[0], start)] = brushed[1]
            seen &= after == drag.label
        whole = self._whole(box)
        if self._window is not None:
            after = self._window.painted(box, after)
            seen = None if seen is None else self._spread(box, seen)
        with reporting():
            try:
                self._require_near()
                correction.stroke(tuple(s.start for s in whole), after, str(self._layer.mode), seen)
                if self._window is not None:
                    self._window.keep(whole)
            except SegDeskError:
                self._restore(correction, whole)
                # napari tells of some edits before it writes them.
                QTimer.singleShot(0, lambda: self._restore(correction, whole))
                raise
            finally:
                self.changed.emit()

    def _require_near(self) -> None:
        step = self._window.step if self._window is not None else 1
        if step > COARSEST_PAINTED:
            raise InputError(
                f"Nothing was painted: at this zoom a pixel on screen stands for {step} x {step} "
                "of the image; zoom in and paint again."
            )

    def _whole(self, box: Box) -> Box:
        """Return a box of the layer as one of the labels."""
        return box if self._window is None else self._window.whole(box)

    def _spread(self, box: Box, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return a mask of a box of the layer as one of the labels."""
        if self._window is None:
            return mask
        return self._window.spread(mask, tuple(s.stop - s.start for s in self._whole(box)))

    def _restore(self, correction: Correction, box: Box) -> None:
        """Show what the project holds, unless another sample is on screen by now."""
        if self._correction() is not correction:
            return
        if self._window is not None:
            self._window.write_back(box)
        else:
            self._layer.data[box] = correction.annotation.labels[box]
            self._layer.refresh()

    def _show(self, correction: Correction, edit: Edit | None) -> None:
        if edit is not None:
            self._restore(correction, edit.box)
        self.changed.emit()


def painted_box(
    atoms: Iterable[Any], shown: npt.NDArray[np.uint8], kept: npt.NDArray[np.uint8]
) -> tuple[slice, ...] | None:
    """Return the smallest box around what a stroke changed; None if nothing.

    Parameters
    ----------
    atoms
        Value of napari's paint event: records with a ``slice_key`` (from 0.9 on)
        or tuples beginning with an index of arrays. Others make the whole array
        be compared.
    shown, kept
        Labels on screen and in the project.
    """
    boxes = [_box_of(atom, shown.ndim) for atom in atoms]
    known = [box for box in boxes if box is not None]
    if known and len(known) == len(boxes):
        joint = joint_box(known, shown.shape)
        return joint if all(side.start < side.stop for side in joint) else None
    places = np.nonzero(shown != kept)
    if not len(places[0]):
        return None
    return tuple(slice(int(p.min()), int(p.max()) + 1) for p in places)


def joint_box(boxes: Iterable[Box], shape: tuple[int, ...]) -> Box:
    """Return the smallest box around some, within an array of ``shape``."""
    return tuple(
        slice(max(0, min(s.start for s in side)), min(size, max(s.stop for s in side)))
        for side, size in zip(zip(*boxes, strict=True), shape, strict=True)
    )


def footprint(
    path: list[tuple[float, ...]], size: float, axes: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[Box, npt.NDArray[np.bool_]] | None:
    """Return what a round brush covers: a box and a mask in it; None if outside.

    Parameters
    ----------
    path
        Where the brush went, in pixels; straight in between.
    size
        Diameter of the brush in pixels.
    axes
        The two axes it extends along; along others it is one pixel thick.
    shape
        Shape of the labels.
    """
    radius = int(size // 2)
    centers = np.unique(np.round(_points_along(np.array(path), size / 4)).astype(int), axis=0)
    reach = np.array([radius if axis in axes else 0 for axis in range(len(shape))])
    near = ((centers + reach >= 0) & (centers - reach < shape)).all(axis=1)
    centers = centers[near]
    if not len(centers):
        return None
    low = centers.min(axis=0) - reach
    mask = np.zeros(centers.max(axis=0) + reach + 1 - low, bool)
    grid = np.indices(tuple(2 * reach + 1)) - reach.reshape(-1, *[1] * len(shape))
    disc = (grid**2).sum(axis=0) <= (radius + 0.5) ** 2  # as napari rounds it
    for first in centers - reach - low:
        mask[tuple(slice(f, f + n) for f, n in zip(first, disc.shape, strict=True))] |= disc
    whole = tuple(slice(int(f), int(f) + n) for f, n in zip(low, mask.shape, strict=True))
    box = joint_box((whole,), shape)
    return box, mask[_within(box, tuple(side.start for side in whole))]


def _points_along(path: npt.NDArray[np.float64], spacing: float) -> npt.NDArray[np.float64]:
    """Return points on a path, at most ``spacing`` apart."""
    parts = [path[:1]]
    for here, there in pairwise(path):
        count = int(np.ceil(np.abs(there - here).max() / spacing))
        parts.append(np.linspace(here, there, count + 1)[1:])
    return np.concatenate(parts)


def _within(box: Box, start: tuple[int, ...]) -> Box:
    """Return a box as an index into a region that begins at ``start``."""
    return tuple(slice(s.start - f, s.stop - f) for s, f in zip(box, start, strict=True))


def write_atoms(
    atoms: Iterable[Any], region: npt.NDArray[np.uint8], start: tuple[int, ...]
) -> None:
    """Write a stroke's values into ``region``, a copy of the labels at ``start``.

    napari tells of a polygon, and of edits by program, before it writes them, and
    of brush strokes after; this makes both the same.
    """
    for atom in atoms:
        key = getattr(atom, "slice_key", None)
        if key is not None:
            sides = _box_of_slices(key, region.ndim)
            if sides is None or not hasattr(atom, "new_value"):
                continue
            place = _within(sides, start)
            mask = getattr(atom, "mask", None)
            region[place][... if mask is None else mask] = atom.new_value
        elif _box_of(atom, region.ndim) is not None and len(atom) == 3:
            index = tuple(np.asarray(p) - first for p, first in zip(atom[0], start, strict=True))
            region[index] = atom[2]


def _box_of(atom: Any, ndim: int) -> tuple[slice, ...] | None:
    key = getattr(atom, "slice_key", None)
    if key is not None:
        return _box_of_slices(key, ndim)
    index = atom[0] if isinstance(atom, tuple) and atom else None
    if not isinstance(index, tuple) or len(index) != ndim:
        return None
    arrays = [np.atleast_1d(np.asarray(part)) for part in index]
    if any(part.dtype.kind not in "iu" or not part.size for part in arrays):
        return None
    return tuple(slice(int(part.min()), int(part.max()) + 1) for part in arrays)


def _box_of_slices(key: Any, ndim: int) -> tuple[slice, ...] | None:
    sides = tuple(slice(k, k + 1) if isinstance(k, int | np.integer) else k for k in key)
    is_plain = len(sides) == ndim and all(
        isinstance(s, slice) and s.start is not None and s.stop is not None for s in sides
    )
    return sides if is_plain else None

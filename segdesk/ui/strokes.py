"""From paint strokes on the Labels layer to the project's journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from psygnal import Signal
from qtpy.QtCore import QTimer

from segdesk.core.annotation import Edit
from segdesk.core.errors import SegDeskError
from segdesk.session.correcting import Correction
from segdesk.ui.bridge import reporting

if TYPE_CHECKING:
    import numpy.typing as npt

UNDO, REDO = "Control-Z", "Control-Shift-Z"


class StrokeKeeper:
    """Hands every stroke on a layer to the correction, and takes them back.

    A stroke the project refuses (disk full, label outside the classes) is wiped
    off the screen: what is seen is what is kept.

    Parameters
    ----------
    layer
        What is painted on.
    correction
        Returns the correction of the sample on screen.
    """

    changed = Signal()

    def __init__(self, layer: Labels, correction: Callable[[], Correction | None]) -> None:
        self._layer = layer
        self._correction = correction
        layer.events.paint.connect(self._on_paint)
        layer.bind_key(UNDO, lambda _: self.undo(), overwrite=True)
        layer.bind_key(REDO, lambda _: self.redo(), overwrite=True)

    def close(self) -> None:
        """Listen no more."""
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

    def _on_paint(self, event: Any) -> None:
        correction = self._correction()
        if correction is None:
            return
        data = self._layer.data
        box = painted_box(event.value, data, correction.annotation.labels)
        if box is None:
            return
        start = tuple(int(side.start) for side in box)
        after = data[box].copy()
        write_atoms(event.value, after, start)
        with reporting():
            try:
                correction.stroke(start, after, str(self._layer.mode))
            except SegDeskError:
                self._restore(correction, box)
                # napari tells of some edits before it writes them.
                QTimer.singleShot(0, lambda: self._restore(correction, box))
                raise
            finally:
                self.changed.emit()

    def _restore(self, correction: Correction, box: tuple[slice, ...]) -> None:
        """Show what the project holds, unless another sample is on screen by now."""
        if self._correction() is correction:
            self._layer.data[box] = correction.annotation.labels[box]
            self._layer.refresh()

    def _show(self, correction: Correction, edit: Edit | None) -> None:
        if edit is not None:
            self._layer.data[edit.box] = correction.annotation.labels[edit.box]
            self._layer.refresh()
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
        sides = zip(*known, strict=True)
        joint = tuple(
            slice(max(0, min(s.start for s in side)), min(size, max(s.stop for s in side)))
            for side, size in zip(sides, shown.shape, strict=True)
        )
        return joint if all(side.start < side.stop for side in joint) else None
    places = np.nonzero(shown != kept)
    if not len(places[0]):
        return None
    return tuple(slice(int(p.min()), int(p.max()) + 1) for p in places)


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
            place = tuple(
                slice(s.start - first, s.stop - first)
                for s, first in zip(sides, start, strict=True)
            )
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

"""Labels of a sample, what is known about each pixel of them, and strokes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    LabelArray = npt.NDArray[np.uint8]


#: So many pixels are looked at together where labels are gone through.
BAND_PIXELS: Final = 4 * 2**20


class Supervision(IntEnum):
    """What a person has said about a pixel's label."""

    UNSEEN = 0
    ACCEPTED = 1
    CORRECTED = 2


class Sliceable(Protocol):
    """Labels in memory, or in a file that is read piece by piece."""

    def __getitem__(self, key: slice, /) -> LabelArray: ...


@dataclass(frozen=True)
class Edit:
    """One stroke: what a box of pixels held before and holds after.

    Attributes
    ----------
    start, stop
        Corners of the box, in pixels, half open, one entry per axis.
    before, after
        uint8 arrays of shape (2, *box): plane 0 labels, plane 1 supervision.
    tool
        ``paint``, ``fill``, ``erase`` or the name of another tool.
    time
        Seconds since the epoch, UTC.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    before: LabelArray
    after: LabelArray
    tool: str
    time: float

    @property
    def box(self) -> tuple[slice, ...]:
        """The box as an index into the label array."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True)
class Annotation:
    """Labels of one sample at one revision.

    Attributes
    ----------
    sample_id
        The sample's id.
    revision
        Counts up from 1; 0 is an annotation that is not on disk yet.
    labels
        uint8 label values, spatial shape of the sample.
    supervision
        uint8 values of :class:`Supervision`, the same shape.
    """

    sample_id: str
    revision: int
    labels: LabelArray
    supervision: LabelArray

    @classmethod
    def unseen(cls, sample_id: str, labels: LabelArray) -> Annotation:
        """Labels no person has looked at yet, such as a model's prediction."""
        return cls(sample_id, 0, labels, np.zeros(labels.shape, np.uint8))

    def copy(self) -> Annotation:
        """Return one whose arrays may be written to."""
        return Annotation(
            self.sample_id, self.revision, self.labels.copy(), self.supervision.copy()
        )

    def apply(self, edit: Edit, *, undo: bool = False) -> None:
        """Write one side of ``edit`` into the arrays, in place."""
        labels, supervision = edit.before if undo else edit.after
        self.labels[edit.box] = labels
        self.supervision[edit.box] = supervision

    def refresh(self, prediction: Sliceable) -> bool:
        """Take ``prediction`` where no person has spoken, keep the rest, in place.

        Returns
        -------
        bool
            Whether no label changed by it.
        """
        is_same = True
        # Row by row or plane by plane of a large image: a mask of all of it is as large again.
        rows = max(1, BAND_PIXELS * len(self.labels) // max(1, self.labels.size))
        for start in range(0, len(self.labels), rows):
            band = slice(start, start + rows)
            changed = self.supervision[band] == Supervision.UNSEEN
            taken = prediction[band]
            changed &= taken != self.labels[band]
            if changed.any():
                is_same = False
                np.copyto(self.labels[band], taken, where=changed)
        return is_same

    def refreshed(self, prediction: Sliceable) -> Annotation:
        """Return :meth:`refresh` done on a copy."""
        annotation = self.copy()
        annotation.refresh(prediction)
        return annotation

    def accept(self) -> None:
        """Mark every pixel not corrected as accepted, in place."""
        rows = max(1, BAND_PIXELS * len(self.labels) // max(1, self.labels.size))
        for start in range(0, len(self.labels), rows):
            band = self.supervision[start : start + rows]
            band[band == Supervision.UNSEEN] = Supervision.ACCEPTED

    def accepted(self) -> Annotation:
        """Mark every pixel not corrected as accepted; the labels are the very same array."""
        supervision = self.supervision.copy()
        supervision[supervision == Supervision.UNSEEN] = Supervision.ACCEPTED
        return Annotation(self.sample_id, self.revision, self.labels, supervision)

"""Labels of a sample, what is known about each pixel of them, and strokes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    LabelArray = npt.NDArray[np.uint8]


class Supervision(IntEnum):
    """What a person has said about a pixel's label."""

    UNSEEN = 0
    ACCEPTED = 1
    CORRECTED = 2


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

    def refreshed(self, prediction: LabelArray) -> Annotation:
        """Take ``prediction`` where no person has spoken, keep the rest."""
        labels = np.where(self.supervision == Supervision.UNSEEN, prediction, self.labels)
        return Annotation(self.sample_id, self.revision, labels, self.supervision.copy())

    def accepted(self) -> Annotation:
        """Mark every pixel not corrected as accepted."""
        supervision = np.where(
            self.supervision == Supervision.UNSEEN, np.uint8(Supervision.ACCEPTED), self.supervision
        )
        return Annotation(self.sample_id, self.revision, self.labels.copy(), supervision)

"""One image of a project and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from segdesk.core.address import Address


class Split(StrEnum):
    """What a sample is for. Chosen once when it is added and never changed."""

    TRAIN = "train"
    VALIDATION = "validation"


class Status(StrEnum):
    """How far the user has come with a sample."""

    NEW = "new"
    PREDICTED = "predicted"
    CORRECTED = "corrected"
    ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and its state; replaced, never changed.

    Attributes
    ----------
    id
        Folder name of its labels and predictions, unique in the project.
    name
        What the user sees: the name of the file, folder or address.
    path
        The image: absolute, or an address if it is not on this computer.
    sha256
        What :func:`~segdesk.io.sources.hash_source` said of it when it was added.
    shape
        Spatial shape: (Y, X), or (Z, Y, X) for a stack.
    channels
        Number of channels; alpha does not count.
    dtype
        numpy name of the pixel type on disk.
    group
        Samples of one group (patient, video) share a split.
    head
        Newest revision of its labels; 0 means none yet.
    score
        Share of pixels the current model is unsure of, 0 to 1; None before
        the first prediction.
    """

    id: str
    name: str
    path: Address
    sha256: str
    shape: tuple[int, ...]
    channels: int
    dtype: str
    split: Split
    status: Status = Status.NEW
    group: str = ""
    head: int = 0
    score: float | None = None
    reference: Path | None = None

    @property
    def is_stack(self) -> bool:
        """Whether the image has several planes."""
        return len(self.shape) == 3

"""What a model said about a sample, and how it came to say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

#: A pixel counts as unsure when the two most probable classes are less than
#: this far apart; with two classes: the probability lies in 0.25 to 0.75. Of
#: several passes, the mean probability counts.
UNSURE_MARGIN = 0.5


class UncertaintyKind(StrEnum):
    """What uncertainty is computed from; all lie in 0..1.

    ``AUTO`` is a wish and no kind: it is settled before a prediction is ordered.
    """

    AUTO = "auto"
    #: Of one pass: how spread the probability is.
    ENTROPY = "entropy"
    #: Of one pass: how close the two best classes are.
    MARGIN = "margin"
    #: Of several: how far they disagree, with parts of the model left out at random,
    DROPOUT = "dropout"
    #: with the image flipped and turned,
    AUGMENTATION = "augmentation"
    #: or with other models.
    ENSEMBLE = "ensemble"


#: Kinds that cost a single pass over the image. Evidence picks among these, unless the user
#: asks for others: they make every prediction many times slower. The first is the default.
ONE_PASS: Final = (UncertaintyKind.MARGIN, UncertaintyKind.ENTROPY)

#: Kinds that can be compared on labelled images: those that take no other model.
COMPARABLE: Final = (*ONE_PASS, UncertaintyKind.DROPOUT, UncertaintyKind.AUGMENTATION)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a prediction comes from: enough to make it again.

    ``temperature`` is what the probabilities were calibrated with; 1 is as the model
    gave them. ``level`` is the resolution level of a multiscale image, and ``shape`` what
    was predicted of it, (Z, Y, X) in pixels. ``cluster`` says on how many ``workers`` it was
    computed; None for a single process.
    ``unsure`` is the share of unsure pixels (see :data:`UNSURE_MARGIN`).
    """

    model: str
    weights_sha256: str
    image_sha256: str
    image: str
    config: dict[str, Any]
    device: str
    segdesk_version: str
    seconds: float
    precision: str = "single"
    temperature: float = 1.0
    classes: tuple[str, ...] = ()
    level: int = 0
    shape: tuple[int, ...] = ()
    companions_sha256: tuple[str, ...] = ()
    cluster: dict[str, int] | None = None
    unsure: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Files of one prediction.

    Attributes
    ----------
    sample_id
        The sample's id.
    model
        Name of the model.
    folder
        Holds ``labels.tif`` (uint8), ``uncertainty.tif`` (float32, 0 to 1),
        ``probabilities.zarr`` (float16, class first) and ``provenance.json``. Of a very
        large image ``labels.zarr`` and ``uncertainty.zarr``, (Z, Y, X), in place of the TIFFs.
    score
        Share of unsure pixels, 0 to 1 (see :data:`UNSURE_MARGIN`).
    """

    sample_id: str
    model: str
    folder: Path
    score: float

    @property
    def labels_path(self) -> Path:
        """TIFF of label values."""
        return self.folder / "labels.tif"

    @property
    def uncertainty_path(self) -> Path:
        """TIFF of the uncertainty, 0 (sure) to 1 (guessing)."""
        return self.folder / "uncertainty.tif"

    @property
    def probabilities_path(self) -> Path:
        """Zarr array of class probabilities."""
        return self.folder / "probabilities.zarr"

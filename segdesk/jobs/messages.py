"""What worker processes and the window say to each other: one JSON object a line.

Events are past-tense facts that a worker reports; orders are what it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    field_validator,
)

from segdesk.config.inference import InferenceConfig
from segdesk.config.refinement import CrfConfig
from segdesk.config.training import Recipe, TrainingConfig
from segdesk.core.address import AnyAddress
from segdesk.core.run import RunState


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# Orders ---------------------------------------------------------------------


class View(_Message):
    """What is on screen of an image, in pixels: a plane and a box of it."""

    z: int = 0
    top: int
    bottom: int
    left: int
    right: int


class PredictOrder(_Message):
    """Predict one image and write the result to ``out``.

    Attributes
    ----------
    config
        With a settled kind of uncertainty: ``auto`` becomes the default kind.
    temperature
        Calibrates the probabilities.
    companions
        Folders of the further models of an ensemble.
    view
        Where a user is looking: tiles there come first, and their results are sent as
        soon as they are there. An older order with a view is called off by a newer one.
    level
        Resolution level of a multiscale image, 0 for the finest.
    as_tiff
        Write labels and uncertainty as TIFF and not as Zarr; None decides by size.
    workers
        How many workers the cluster has that computes it; 0 for a process of its own.
    """

    order: Literal["predict"] = "predict"
    job: str
    sample: str
    #: A path, or an address of a Zarr
    image: Annotated[str, BeforeValidator(str)]
    image_sha256: str
    model: str
    model_folder: Path
    classes: tuple[str, ...]
    out: Path
    config: InferenceConfig
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    companions: tuple[Path, ...] = ()
    view: View | None = None
    level: int = 0
    as_tiff: bool | None = None
    workers: int = Field(0, ge=0)

    @field_validator("config")
    @classmethod
    def _settle(cls, config: InferenceConfig) -> InferenceConfig:
        return config.settled()

    def deciding(self, weights_sha256: str, companions_sha256: Sequence[str]) -> dict[str, Any]:
        """Return what decides the result, as plain data: equal, and the result is the same.

        The names are those of :class:`~segdesk.core.prediction.Provenance`. What
        computes, and where, is not among them.
        """
        return {
            "image_sha256": self.image_sha256,
            "weights_sha256": weights_sha256,
            "companions_sha256": list(companions_sha256),
            "classes": list(self.classes),
            "level": self.level,
            "temperature": self.temperature,
            "config": self.config.model_dump(mode="json", exclude={"device"}),
        }


class ViewOrder(_Message):
    """The user looks elsewhere now; the tiles left of ``job`` come in that order."""

    order: Literal["view"] = "view"
    job: str
    view: View


class GiveWayOrder(_Message):
    """The user is painting: begin no tile for so many seconds, or until told otherwise."""

    order: Literal["give way"] = "give way"
    seconds: float


class RefineOrder(_Message):
    """Refine the edges of a prediction and write the result, a whole prediction, to ``out``.

    ``prediction`` is the folder of the model's own prediction, which is only read;
    ``values`` has the project's label value of each of its probability maps.
    """

    order: Literal["refine"] = "refine"
    job: str
    sample: str
    image: AnyAddress
    model: str
    weights_sha256: str
    prediction: Path
    values: tuple[int, ...]
    out: Path
    config: CrfConfig


class RunOrder(_Message):
    """Do the fine-tuning run in ``folder``, then end: a waiting process does one run."""

    order: Literal["run"] = "run"
    job: str
    folder: Path


class EstimateOrder(_Message):
    """Time a first step of each recipe and tell what a run would take.

    Attributes
    ----------
    model_folder
        The model it would start from.
    classes
        Of the project.
    images
        Sides in pixels, (height, width), of the images to learn from, and of those to judge on.
    features
        Where a quick run would keep features: those of the images that the model came with
        are computed when the question is answered.
    """

    order: Literal["estimate"] = "estimate"
    job: str
    model_folder: Path
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    images: tuple[tuple[int, int], ...]
    judged: tuple[tuple[int, int], ...]
    config: TrainingConfig
    features: Path | None = None


class VaryOrder(_Message):
    """Show how the augmentation of ``config`` varies an image: write pictures to ``out``."""

    order: Literal["vary"] = "vary"
    job: str
    image: AnyAddress
    labels: Path | None
    model_folder: Path
    colors: tuple[str, ...]
    config: TrainingConfig
    out: Path


class PauseOrder(_Message):
    """Wait before the next step, or go on."""

    order: Literal["pause"] = "pause"
    job: str
    is_paused: bool


class LeaveOrder(_Message):
    """The parent is about to go; the run goes on, and listens to its folder from now on."""

    order: Literal["leave"] = "leave"
    job: str


class CancelOrder(_Message):
    """Call a job off; the worker answers with ``finished`` at its next step."""

    order: Literal["cancel"] = "cancel"
    job: str


EngineOrder = PredictOrder | RefineOrder
TrainingOrder = RunOrder | EstimateOrder | VaryOrder
SideOrder = ViewOrder | GiveWayOrder | PauseOrder | LeaveOrder
AnyOrder = EngineOrder | TrainingOrder | SideOrder | CancelOrder
Order = Annotated[AnyOrder, Field(discriminator="order")]

# Events ---------------------------------------------------------------------


class Architecture(_Message):
    """An architecture that a new model can be built from."""

    name: str
    title: str
    year: int
    needs_labels: bool = True


class Ready(_Message):
    """The worker has started and says what it computes with, and what it can build."""

    event: Literal["ready"] = "ready"
    device: str
    reason: str
    architectures: tuple[Architecture, ...] = ()


class Progressed(_Message):
    """``done`` of ``total`` parts of a job are finished."""

    event: Literal["progress"] = "progress"
    job: str
    done: int
    total: int
    text: str = ""


class PredictionReady(_Message):
    """The files of a prediction are in ``folder``."""

    event: Literal["prediction"] = "prediction"
    job: str
    sample: str
    model: str
    weights_sha256: str
    folder: Path
    score: float


class Part(_Message):
    """Part of a plane: its first corner and shape in pixels, and what was found there.

    Attributes
    ----------
    labels, uncertainty
        uint8 of that shape, C order, zlib, base64; uncertainty 0 to 1 as 0 to 255.
    """

    top: int
    left: int
    height: int
    width: int
    labels: str
    uncertainty: str


class PartsPredicted(_Message):
    """Parts of a prediction that is under way, for the screen."""

    event: Literal["parts"] = "parts"
    job: str
    sample: str
    z: int
    parts: tuple[Part, ...]


class RefinementReady(_Message):
    """A refined prediction is in ``folder``; it is not in use yet.

    ``changed`` is the share of pixels whose label differs from the model's own, 0 to 1.
    """

    event: Literal["refinement"] = "refinement"
    job: str
    sample: str
    model: str
    weights_sha256: str
    folder: Path
    changed: float


class Stepped(_Message):
    """One training step was made.

    ``loss`` is the main output's, which makes the predictions; what outputs that are there
    for training only add to it is ``auxiliary_loss``.
    """

    event: Literal["step"] = "step"
    job: str
    step: int
    total: int
    loss: float
    auxiliary_loss: float = 0.0
    learning_rate: float
    seconds_left: float


class Evaluated(_Message):
    """The validation images were judged after ``step`` steps; 0 is before."""

    event: Literal["evaluated"] = "evaluated"
    job: str
    step: int
    scores: dict[str, Any]
    is_best: bool


class Previewed(_Message):
    """What the model makes of an image after ``step`` steps: a PNG, image beside mask."""

    event: Literal["preview"] = "preview"
    job: str
    step: int
    sample: str
    picture: Path


class Paused(_Message):
    """A run waits before its next step, or goes on."""

    event: Literal["paused"] = "paused"
    job: str
    is_paused: bool


class Estimated(_Message):
    """What a run with ``recipe`` would take on this machine.

    Attributes
    ----------
    seconds
        From the first step to the new model.
    memory_bytes
        Of the run's process, or of the graphics card where that computes, at its peak.
    """

    event: Literal["estimated"] = "estimated"
    job: str
    recipe: Recipe
    seconds: float
    memory_bytes: int


class Varied(_Message):
    """Pictures of an image as augmentation varies it; the first is the image itself."""

    event: Literal["varied"] = "varied"
    job: str
    pictures: tuple[Path, ...]


class Said(_Message):
    """Something a user may want to know, in a sentence."""

    event: Literal["said"] = "said"
    job: str
    text: str


class Finished(_Message):
    """A job has ended: the only terminal event, and exactly one per job.

    ``is_input`` says that it failed because of what the user gave it.
    """

    event: Literal["finished"] = "finished"
    job: str
    state: RunState
    reason: str = ""
    is_input: bool = False
    result: dict[str, Any] = {}


AnyEvent = (
    Ready
    | Progressed
    | PartsPredicted
    | PredictionReady
    | RefinementReady
    | Stepped
    | Evaluated
    | Previewed
    | Paused
    | Estimated
    | Varied
    | Said
    | Finished
)
Event = Annotated[AnyEvent, Field(discriminator="event")]

ORDER: TypeAdapter[AnyOrder] = TypeAdapter(Order)
EVENT: TypeAdapter[AnyEvent] = TypeAdapter(Event)

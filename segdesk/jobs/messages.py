"""What worker processes and the window say to each other: one JSON object a line.

Events are past-tense facts that a worker reports; orders are what it is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from segdesk.config.inference import InferenceConfig
from segdesk.core.run import RunState


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# Orders ---------------------------------------------------------------------


class PredictOrder(_Message):
    """Predict one image and write the result to ``out``."""

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


class CancelOrder(_Message):
    """Call a job off; the worker answers with ``finished`` at its next step."""

    order: Literal["cancel"] = "cancel"
    job: str


Order = Annotated[PredictOrder | CancelOrder, Field(discriminator="order")]

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


class Stepped(_Message):
    """One training step was made."""

    event: Literal["step"] = "step"
    job: str
    step: int
    total: int
    loss: float
    learning_rate: float
    seconds_left: float


class Evaluated(_Message):
    """The validation images were judged after ``step`` steps; 0 is before."""

    event: Literal["evaluated"] = "evaluated"
    job: str
    step: int
    scores: dict[str, Any]
    is_best: bool


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


Event = Annotated[
    Ready | Progressed | PredictionReady | Stepped | Evaluated | Said | Finished,
    Field(discriminator="event"),
]

ORDER: TypeAdapter[PredictOrder | CancelOrder] = TypeAdapter(Order)
EVENT: TypeAdapter[Ready | Progressed | PredictionReady | Stepped | Evaluated | Said | Finished] = (
    TypeAdapter(Event)
)
AnyEvent = Ready | Progressed | PredictionReady | Stepped | Evaluated | Said | Finished

"""Asking for predictions, and what they will cost."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segdesk.config.inference import InferenceConfig
from segdesk.core.address import is_gone
from segdesk.core.annotation import BAND_PIXELS, Annotation
from segdesk.core.errors import InputError
from segdesk.core.prediction import Prediction, UncertaintyKind
from segdesk.core.sample import Sample, Status
from segdesk.core.words import duration
from segdesk.inference.normalize import pick_channels
from segdesk.io.calibrations import read_calibration
from segdesk.io.maps import PredictedMap
from segdesk.io.packages import hash_weights
from segdesk.io.store import ProjectStore
from segdesk.jobs.messages import PredictOrder, View
from segdesk.session.levels import known_shape_at, level_at
from segdesk.session.models import ModelEntry, current_model, find_model, rounds_of
from segdesk.session.session import Session

if TYPE_CHECKING:
    import numpy.typing as npt

MAPS: Final = ("labels", "uncertainty")
#: An ensemble of rounds has so many besides the model in use: five in all, after
#: Lakshminarayanan et al., NeurIPS 2017; more gained little there.
MOST_COMPANIONS: Final = 4
#: So many earlier predictions tell how long the next takes.
REMEMBERED: Final = 8


def request(
    session: Session,
    samples: Sequence[Sample],
    config: InferenceConfig,
    model: str | None = None,
    view: View | None = None,
    level: int = 0,
) -> list[str]:
    """Order a prediction of each sample; returns the job ids.

    With a ``view``, what is on screen of the one sample in pixels of the level, its parts
    are sent as they come.

    Raises
    ------
    InputError
        As :func:`make_orders`.
    """
    orders = make_orders(session, samples, config, model, view, level)
    for order in orders:
        session.backend.predict(order)
    return [order.job for order in orders]


def make_orders(
    session: Session,
    samples: Sequence[Sample],
    config: InferenceConfig,
    model: str | None = None,
    view: View | None = None,
    level: int = 0,
    *,
    only_new: bool = False,
) -> list[PredictOrder]:
    """Return the order for a prediction of each sample, their jobs registered.

    Parameters
    ----------
    level
        Resolution level, 0 for the finest; images with fewer are predicted at the
        coarsest that they have.
    only_new
        Leave out samples whose current prediction would come out the same.

    Raises
    ------
    InputError
        No model is chosen or fits the classes, a companion of an ensemble does not go
        with it, or an image is gone.
    """
    store = session.store
    entry = find_model(model, store) if model else current_model(store)
    if entry is None:
        raise InputError(
            "No model knows this project's classes yet; fine-tune one on some labelled images "
            "first: choose it in the Predict panel, or run 'segdesk train PROJECT --model NAME'."
        )
    for sample in samples:
        if is_gone(sample.path):
            raise InputError(
                f"The image {sample.path} is not there any more; put it back, or run "
                f"'segdesk remove {store.folder.name} {sample.name}'."
            )
        check_channels(sample, entry, config.chosen_channels)
    companions = find_companions(config, entry, store)
    if companions:  # the names, so that the provenance says which they were
        config = config.model_copy(update={"companions": ",".join(companions)})
    weights = hash_weights(entry.folder)
    kept = read_calibration(store.folder, entry.name, weights)
    config = config.settled(kept.kind if kept is not None else None)
    temperature = kept.temperature if kept is not None and config.calibrated else 1.0
    hashes = [hash_weights(other.folder) for other in companions.values()]
    orders = []
    for sample in samples:
        order = PredictOrder(
            job="",
            sample=sample.id,
            image=str(sample.path),
            image_sha256=sample.sha256,
            model=entry.name,
            model_folder=entry.folder,
            classes=store.classes.names,
            out=store.folder / "predictions" / sample.id / f"{entry.name}-{weights[:8]}",
            config=config,
            companions=tuple(other.folder for other in companions.values()),
            temperature=temperature,
            view=view,
            level=level_at(sample, level),
        )
        current = store.prediction(sample.id, entry.name, weights) if only_new else None
        made = read_provenance(current) if current is not None else {}
        if not is_same(made, order.deciding(weights, hashes)):
            orders.append(order.model_copy(update={"job": session.new_job(sample.id)}))
    return orders


def is_same(made: dict[str, Any], deciding: dict[str, Any]) -> bool:
    """Tell whether a prediction comes from what another one would be made from.

    Parameters
    ----------
    made
        Its provenance; empty where that is not known.
    deciding
        From :meth:`~segdesk.jobs.messages.PredictOrder.deciding`.
    """
    try:  # settings that did not exist then get their defaults
        then = InferenceConfig.model_validate(made["config"])
    except (KeyError, ValueError):
        return False
    told = {**made, "config": then.model_dump(mode="json", exclude={"device"})}
    is_refined = "refinement" in made
    return not is_refined and all(told.get(key) == value for key, value in deciding.items())


def find_companions(
    config: InferenceConfig, entry: ModelEntry, store: ProjectStore | None = None
) -> dict[str, ModelEntry]:
    """Return the further models of an ensemble by the names they were asked for.

    Those of ``config.companions``, else the newest other rounds of the model. Empty for
    other kinds of uncertainty.

    Raises
    ------
    InputError
        There is no such model or no other round, or it does not go with the model.
    """
    if config.uncertainty is not UncertaintyKind.ENSEMBLE:
        return {}
    names = list(dict.fromkeys(n.strip() for n in config.companions.split(",") if n.strip()))
    found = {name: find_model(name, store) for name in names}
    for other in found.values():
        _require_kin(other, entry)
    if not names:
        rounds = [other for other in rounds_of(entry, store) if not _misfit(other, entry)]
        found = {other.name: other for other in rounds[-MOST_COMPANIONS:]}
    found = {n: other for n, other in found.items() if other.folder != entry.folder}
    if not found:
        raise InputError(
            f"An ensemble needs further models, and {entry.name!r} has no other rounds here; name "
            "some under Companions (companions=NAME,NAME), or choose another uncertainty."
        )
    return found


def _require_kin(other: ModelEntry, entry: ModelEntry) -> None:
    if reason := _misfit(other, entry):
        raise InputError(f"{reason}; name another model under Companions.")


def _misfit(other: ModelEntry, entry: ModelEntry) -> str:
    """Say why a model cannot see the same images and name the same classes; else empty."""
    card, own = other.card, entry.card
    if set(card.classes) != set(own.classes):
        return (
            f"The companion {other.name!r} knows {', '.join(card.classes)}, but {entry.name!r} "
            f"knows {', '.join(own.classes)}"
        )
    if card.channels != own.channels:
        return (
            f"The companion {other.name!r} takes images of {card.channels} channels, but "
            f"{entry.name!r} takes {own.channels}"
        )
    if card.normalization != own.normalization:
        return f"The companion {other.name!r} scales pixels in another way than {entry.name!r}"
    return ""


@dataclass(frozen=True, slots=True)
class Cost:
    """What predicting some images takes.

    ``passes`` of the model for each image, and ``seconds`` for all of them: None until
    this model has predicted an image here, and the images' levels are known.
    """

    images: int
    passes: int
    seconds: float | None

    @property
    def words(self) -> str:
        """Say it in a line."""
        what = "this image" if self.images == 1 else f"{self.images} images"
        passes = f"{self.passes} pass{'' if self.passes == 1 else 'es'}"
        if self.seconds is not None:
            each = "" if self.images == 1 else " each"
            return f"About {duration(self.seconds)} for {what}, {passes}{each}."
        longer = f", {self.passes} times as long as margin" if self.passes > 1 else ""
        return f"{passes} for each image{longer}; how long is known after the first prediction."


def cost(
    session: Session,
    samples: Sequence[Sample],
    config: InferenceConfig,
    model: str | None = None,
    level: int = 0,
) -> Cost:
    """Return what predicting takes, from how long the model took before in this project.

    Opens no image: at a coarser level the seconds are None until the images' levels are
    known (:func:`~segdesk.session.levels.levels_of`).

    Predictions with as many passes count alone where there are some: reading and writing
    an image takes its time however many passes there are.

    Raises
    ------
    InputError
        There is no such model, or no companion for an ensemble.
    """
    store = session.store
    entry = find_model(model, store) if model else current_model(store)
    if entry is None:
        return Cost(len(samples), count_passes(config), None)
    companions = find_companions(config, entry, store)
    if config.uncertainty is UncertaintyKind.AUTO:
        # As the card says: this is asked at every click, and to hash large weights takes a second.
        kept = read_calibration(store.folder, entry.name, entry.card.weights_sha256)
        config = config.settled(kept.kind if kept is not None else None)
    passes = count_passes(config, len(companions))
    told = list(islice(_earlier(session, entry, config), REMEMBERED))
    alike = [speed for count, speed in told if count == passes]
    speeds = alike or [speed for _, speed in told]
    shapes = [shape for s in samples if (shape := known_shape_at(s, level)) is not None]
    if not speeds or len(shapes) < len(samples):
        return Cost(len(samples), passes, None)
    pixels = sum(math.prod(shape) for shape in shapes)
    return Cost(len(samples), passes, statistics.median(speeds) * pixels * passes)


def count_passes(config: InferenceConfig, companions: int = 0) -> int:
    """Return how often the model is asked about each pixel."""
    if config.uncertainty is UncertaintyKind.DROPOUT:
        return config.passes
    if config.uncertainty is UncertaintyKind.AUGMENTATION:
        return 8 if config.passes >= 8 else 4
    if config.uncertainty is UncertaintyKind.ENSEMBLE:
        return 1 + companions
    return 1


def _earlier(
    session: Session, entry: ModelEntry, config: InferenceConfig
) -> Iterator[tuple[int, float]]:
    """Yield passes, and seconds per pixel and pass, of what the model predicted here."""
    asked = (sample for sample in session.store.samples() if sample.status is not Status.NEW)
    for sample in asked:
        prediction = session.store.prediction(sample.id, entry.name)
        made = read_provenance(prediction) if prediction is not None else {}
        try:
            then = InferenceConfig.model_validate(made["config"])
            seconds = float(made["seconds"])
        except (KeyError, ValueError, TypeError):
            continue
        if then.device == config.device:
            names = [name for name in then.companions.split(",") if name.strip()]
            passes = count_passes(then, len(names))
            pixels = math.prod(made.get("shape") or sample.shape)
            yield passes, seconds / (passes * pixels)


def check_channels(sample: Sample, entry: ModelEntry, chosen: Sequence[int] = ()) -> None:
    """Refuse a sample whose channels the model does not take (InputError)."""
    require_channels(sample.name, sample.channels, entry, chosen)


def require_channels(
    image: str, channels: int, entry: ModelEntry, chosen: Sequence[int] = ()
) -> None:
    """Refuse an image whose channels, or those ``chosen`` of them, the model does not take.

    Raises
    ------
    InputError
        As :func:`segdesk.inference.normalize.pick_channels`.
    """
    pick_channels(channels, entry.card.channels, entry.name, chosen, image)


def current_prediction(session: Session, sample_id: str) -> Prediction | None:
    """Return the prediction of the model in use, if there is one."""
    entry = current_model(session.store)
    if entry is None:
        return None
    return session.store.prediction(sample_id, entry.name, hash_weights(entry.folder))


def read_prediction(
    prediction: Prediction, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Read labels (uint8) and uncertainty (float32, 0 to 1) of an image of this shape."""
    labels, unsure = (PredictedMap(prediction, name, shape)[:] for name in MAPS)
    return labels.astype(np.uint8, copy=False), unsure.astype(np.float32, copy=False)


def read_unsure_bytes(prediction: Prediction, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read uncertainty 0 to 1 as 0 to 255: a quarter of the memory, of a large image."""
    found = PredictedMap(prediction, "uncertainty", shape)
    unsure = np.empty(shape, np.uint8)
    rows = max(1, BAND_PIXELS * shape[0] // math.prod(shape))
    for start in range(0, shape[0], rows):
        band = slice(start, start + rows)
        np.rint(found[band] * np.float32(255), out=unsure[band], casting="unsafe")
    return unsure


def read_provenance(prediction: Prediction) -> dict[str, Any]:
    """Return how a prediction was made; empty where its file is missing or damaged."""
    try:
        made = json.loads((prediction.folder / "provenance.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}


def uncertainty_kind(prediction: Prediction) -> UncertaintyKind:
    """Return which uncertainty a prediction holds; margin where that is not known."""
    config = read_provenance(prediction).get("config")
    name = config.get("uncertainty") if isinstance(config, dict) else None
    return UncertaintyKind(name) if name in list(UncertaintyKind) else UncertaintyKind.MARGIN


@dataclass
class Start:
    """The labels that an image is opened with.

    ``prediction`` has the labels of the model in use, if it was asked; ``is_based`` says
    whether ``annotation`` is what the newest revision and the strokes on it give.
    """

    annotation: Annotation
    prediction: PredictedMap | None
    is_based: bool


def find_start(session: Session, sample: Sample) -> Callable[[], Start]:
    """Return what reads the labels to show: the user's where there are any, else the model's.

    A new prediction fills only pixels that nobody has spoken about. What is returned reads
    files only: any thread may call it.
    """
    read = session.store.annotation_reader(sample.id)
    prediction = current_prediction(session, sample.id)

    def start() -> Start:
        annotation = read()
        is_based = annotation is not None
        if annotation is None:
            annotation = Annotation.unseen(sample.id, np.zeros(sample.shape, np.uint8))
        if prediction is None:
            return Start(annotation, None, is_based)
        labels = PredictedMap(prediction, "labels", sample.shape)
        is_same = annotation.refresh(labels)
        return Start(annotation, labels, is_based and is_same)

    return start


def starting_annotation(session: Session, sample: Sample) -> Annotation:
    """Return the labels to show; see :func:`find_start`."""
    return find_start(session, sample)().annotation

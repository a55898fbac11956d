"""Asking for predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from segdesk.config.inference import InferenceConfig
from segdesk.core.annotation import Annotation
from segdesk.core.errors import InputError
from segdesk.core.prediction import Prediction
from segdesk.core.sample import Sample
from segdesk.inference.normalize import pick_channels
from segdesk.io.labels import read_plane
from segdesk.io.packages import hash_weights
from segdesk.jobs.messages import PredictOrder
from segdesk.session.models import ModelEntry, current_model, find_model
from segdesk.session.session import Session

if TYPE_CHECKING:
    import numpy.typing as npt


def request(
    session: Session,
    samples: Sequence[Sample],
    config: InferenceConfig,
    model: str | None = None,
) -> list[str]:
    """Order a prediction of each sample; returns the job ids.

    Raises
    ------
    InputError
        No model is chosen or fits the classes, or an image is gone.
    """
    store = session.store
    entry = find_model(model, store) if model else current_model(store)
    if entry is None:
        raise InputError(
            "No model knows this project's classes yet; fine-tune one on some labelled images "
            "first: choose it in the Predict panel, or run 'segdesk train PROJECT --model NAME'."
        )
    for sample in samples:
        if not sample.path.exists():
            raise InputError(
                f"The image {sample.path} is not there any more; put it back, or run "
                f"'segdesk remove {store.folder.name} {sample.name}'."
            )
        check_channels(sample, entry, config.chosen_channels)
    weights = hash_weights(entry.folder)
    jobs = []
    for sample in samples:
        order = PredictOrder(
            job=session.new_job(sample.id),
            sample=sample.id,
            image=str(sample.path),
            image_sha256=sample.sha256,
            model=entry.name,
            model_folder=entry.folder,
            classes=store.classes.names,
            out=store.folder / "predictions" / sample.id / f"{entry.name}-{weights[:8]}",
            config=config,
        )
        jobs.append(order.job)
        session.backend.predict(order)
    return jobs


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
    prediction: Prediction,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Read labels (uint8) and uncertainty (float32, 0 to 1), spatial shape."""
    labels = read_plane(prediction.labels_path).astype(np.uint8, copy=False)
    return labels, read_plane(prediction.uncertainty_path).astype(np.float32, copy=False)


def starting_annotation(session: Session, sample: Sample) -> Annotation:
    """Return the labels to show: the user's where there are any, else the model's.

    A new prediction fills only pixels that nobody has spoken about.
    """
    annotation = session.store.annotation(sample.id)
    prediction = current_prediction(session, sample.id)
    if prediction is None:
        blank = np.zeros(sample.shape, np.uint8)
        return annotation if annotation is not None else Annotation.unseen(sample.id, blank)
    labels, _ = read_prediction(prediction)
    if annotation is None:
        return Annotation.unseen(sample.id, labels)
    return annotation.refreshed(labels)

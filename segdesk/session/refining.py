"""Refining the edges of predictions: propose, use, drop, and go back.

Beside a prediction's folder ``M`` a proposal is written to ``M-crf-preview``; the one in
use is moved to ``M-crf``. ``M`` itself is never written to, and every refinement starts
from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segdesk.config.refinement import CrfConfig
from segdesk.core.address import is_gone
from segdesk.core.errors import InputError
from segdesk.core.prediction import Prediction
from segdesk.core.sample import Sample
from segdesk.io.atomic import atomic_folder
from segdesk.io.maps import is_zarr
from segdesk.io.packages import hash_weights
from segdesk.jobs.messages import RefinementReady, RefineOrder
from segdesk.session.models import ModelEntry, current_model
from segdesk.session.predicting import current_prediction
from segdesk.session.session import Session

REFINED = "-crf"
PREVIEW = "-crf-preview"


def request(session: Session, samples: Sequence[Sample], config: CrfConfig) -> list[str]:
    """Order a refinement of what the model in use said of each sample; returns the job ids.

    The answers are proposals (``refinement_ready``): nothing changes before :func:`use`.

    Raises
    ------
    InputError
        A sample has no prediction of the model in use, or a file is gone; nothing was
        ordered.
    """
    orders = [_order(session, sample, config) for sample in samples]
    jobs = []
    for order in orders:
        job = session.new_job(order.sample)
        jobs.append(job)
        session.backend.refine(order.model_copy(update={"job": job}))
    return jobs


def use(session: Session, proposal: RefinementReady) -> Prediction:
    """Make a proposal the current prediction of its sample.

    Raises
    ------
    InputError
        The proposal is not there any more, or its files cannot be moved.
    """
    if not proposal.folder.is_dir():
        raise InputError("The refined labels are not there any more; make a new preview.")
    current = session.store.prediction(proposal.sample, proposal.model, proposal.weights_sha256)
    if current is None:
        raise InputError("The prediction that was refined is not there any more; predict again.")
    target = proposal.folder.with_name(proposal.folder.name.removesuffix(PREVIEW) + REFINED)
    with atomic_folder(target) as beside:
        for part in list(proposal.folder.iterdir()):
            os.replace(part, beside / part.name)
    drop(proposal)
    return _record(session, replace(current, folder=target), proposal.weights_sha256)


def drop(proposal: RefinementReady) -> None:
    """Delete a proposal's files."""
    shutil.rmtree(proposal.folder, ignore_errors=True)


def go_back(session: Session, sample: Sample) -> Prediction:
    """Make the model's own prediction the current one again.

    Raises
    ------
    InputError
        There is none, or its files are gone.
    """
    entry, prediction = _current(session, sample)
    folder = _own_folder(prediction, sample)
    return _record(session, replace(prediction, folder=folder), hash_weights(entry.folder))


def is_refined(prediction: Prediction) -> bool:
    """Whether these are refined labels and not the model's own."""
    return prediction.folder.name.endswith(REFINED)


def _record(session: Session, prediction: Prediction, weights_sha256: str) -> Prediction:
    session.store.record_prediction(prediction, weights_sha256)
    session.events.prediction_ready.emit(prediction)
    return prediction


def _order(session: Session, sample: Sample, config: CrfConfig) -> RefineOrder:
    entry, prediction = _current(session, sample)
    if is_gone(sample.path):
        raise InputError(
            f"The image {sample.path} is not there any more; put it back to refine its prediction."
        )
    if is_zarr(prediction):
        raise InputError(
            f"{sample.name} is too large for its edges to be refined; predict it at a coarser "
            "level and refine that, or refine smaller images, such as parts of this one."
        )
    own = _own_folder(prediction, sample)
    names = session.store.classes.names
    return RefineOrder(
        job="",
        sample=sample.id,
        image=sample.path,
        model=entry.name,
        weights_sha256=hash_weights(entry.folder),
        prediction=own,
        values=tuple(names.index(name) for name in entry.card.classes),
        out=own.with_name(own.name + PREVIEW),
        config=config,
    )


def _current(session: Session, sample: Sample) -> tuple[ModelEntry, Prediction]:
    entry = current_model(session.store)
    prediction = current_prediction(session, sample.id)
    if entry is None or prediction is None:
        raise InputError(
            f"The model in use has not predicted {sample.name} yet; predict it first, in the "
            f"Predict panel or with 'segdesk predict {session.store.folder.name}'."
        )
    return entry, prediction


def _own_folder(prediction: Prediction, sample: Sample) -> Path:
    """Return the folder of the model's own prediction."""
    folder = prediction.folder.with_name(prediction.folder.name.removesuffix(REFINED))
    if not folder.is_dir():
        raise InputError(
            f"The files of the model's own prediction of {sample.name} are gone; predict it again."
        )
    return folder

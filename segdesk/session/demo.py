"""The main job on the bundled sample, without a window.

Predict everything, take the true masks of half of the stained images as the
corrections, fine-tune, predict again. Scores are taken on the *other* stained
images and on the fluorescence ones; none of them is learnt from, and none of
them chooses the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segdesk.config.inference import InferenceConfig
from segdesk.config.training import TrainingConfig
from segdesk.core.address import stem_of
from segdesk.core.errors import SegDeskError
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Sample
from segdesk.io.masks import read_mask
from segdesk.jobs.messages import AnyEvent, Finished
from segdesk.session.backend import Backend
from segdesk.session.correcting import Correction
from segdesk.session.models import use_model
from segdesk.session.pictures import Picture, overlay_picture, stack_pictures
from segdesk.session.predicting import current_prediction, read_prediction, request
from segdesk.session.sample_project import SampleImage, make_sample_project, sample_images
from segdesk.session.session import Session
from segdesk.session.training import start
from segdesk.training.metrics import confusion, summarize

#: Chosen on the images that are corrected and on training images of the shipped
#: model, never on those that are judged.
DEMO_CONFIG = TrainingConfig()

Say = Callable[[str], None]


def run_demo(
    out: Path,
    make_backend: Callable[[Callable[[AnyEvent], None]], Backend],
    say: Say,
    on_event: Callable[[AnyEvent], None] = lambda event: None,
) -> dict[str, Any]:
    """Do the main job in a new project under ``out``; returns the report.

    Raises
    ------
    InputError
        ``out`` holds a demo already, or cannot be written.
    SegDeskError
        A prediction or the run failed.
    """
    began = time.perf_counter()
    session = make_sample_project(out / "demo.segdesk")
    failures: list[str] = []

    def handle(event: AnyEvent) -> None:
        session.handle(event)
        on_event(event)
        if isinstance(event, Finished) and event.state is not RunState.COMPLETED:
            failures.append(event.reason or event.state)

    session.attach(make_backend(handle))
    try:
        images = {image.name: image for image in sample_images()}
        say(f"Predicting {len(images)} images with the shipped model.")
        before, pictures_before = _predict_and_judge(session, images, failures, "before")
        taken = _correct(session, images)
        say(f"Took the true masks of {taken} stained images as corrections; fine-tuning.")
        run = _fine_tune(session, failures)
        say(f"Predicting again with {run.new_model}.")
        use_model(session, run.new_model)
        after, pictures_after = _predict_and_judge(session, images, failures, "after")
        written = _write_pictures(out, pictures_before, pictures_after)
    finally:
        session.close()
    return {
        "model_before": run.base_model,
        "model_after": run.new_model,
        "corrected": taken,
        "before": before,
        "after": after,
        "run": run.id,
        "project": str(session.store.folder),
        "pictures": [str(path) for path in written],
        "seconds": round(time.perf_counter() - began, 1),
    }


def _kind(sample: Sample, images: dict[str, SampleImage]) -> SampleImage:
    return images[stem_of(sample.path)]


def _predict_and_judge(
    session: Session, images: dict[str, SampleImage], failures: list[str], when: str
) -> tuple[dict[str, Any], dict[str, Picture]]:
    samples = session.store.samples()
    request(session, samples, InferenceConfig())
    if failures:
        raise SegDeskError(failures[0])
    classes = session.store.classes
    report: dict[str, Any] = {}
    pictures: dict[str, Picture] = {}
    for kind in ("stained", "fluorescence"):
        judged = [
            s for s in samples
            if _kind(s, images).kind == kind and _kind(s, images).role == "judge"
        ]  # fmt: skip
        matrices = []
        for sample in judged:
            prediction = current_prediction(session, sample.id)
            if prediction is None or sample.reference is None:
                raise SegDeskError(f"{sample.name} was not predicted.")
            labels, unsure = read_prediction(prediction, sample.shape)
            truth = read_mask(sample.reference, classes, sample.shape).labels
            matrices.append(confusion(truth, labels, len(classes)))
            captions = tuple(f"{part} ({when})" for part in ("image", "mask", "uncertain", "error"))
            pictures[sample.id] = overlay_picture(
                sample.path, labels, unsure, truth, classes, captions
            )
        report[kind] = summarize(matrices, classes.names, [s.name for s in judged])
    return report, pictures


def _correct(session: Session, images: dict[str, SampleImage]) -> int:
    chosen = [s for s in session.store.samples() if _kind(s, images).role == "correct"]
    for sample in chosen:
        if sample.reference is None:
            raise SegDeskError(f"{sample.name} has no true mask.")
        truth = read_mask(sample.reference, session.store.classes, sample.shape).labels
        correction = Correction(session, sample)
        correction.replace(truth, "reference")
        correction.accept()
    return len(chosen)


def _fine_tune(session: Session, failures: list[str]) -> Run:
    started = start(session, DEMO_CONFIG)
    if failures:
        raise SegDeskError(failures[0])
    return next(run for run in session.store.runs() if run.id == started.id)


def _write_pictures(out: Path, before: dict[str, Picture], after: dict[str, Picture]) -> list[Path]:
    paths = []
    for sample_id, first in before.items():
        sheet = stack_pictures([first, after[sample_id]])
        path = out / f"{sample_id}.png"
        Image.fromarray(np.asarray(sheet)).save(path)
        paths.append(path)
    return paths

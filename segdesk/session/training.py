"""Starting and stopping fine-tuning runs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from segdesk import __version__
from segdesk.config.training import TrainingConfig
from segdesk.core.errors import InputError
from segdesk.core.manifest import ManifestSample, RunManifest
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Split, Status
from segdesk.io.atomic import atomic_folder
from segdesk.io.labels import write_labels
from segdesk.io.store import ProjectStore
from segdesk.session.correcting import consolidate
from segdesk.session.models import current_model, find_model, next_model_name
from segdesk.session.predicting import check_channels
from segdesk.session.session import Session


def labelled_samples(session: Session) -> list[ManifestSample]:
    """Return the samples on which a person has spoken, with their label files."""
    found = []
    for sample in session.store.samples():
        if sample.status not in (Status.CORRECTED, Status.ACCEPTED):
            continue
        annotation = consolidate(session, sample)
        if annotation is None or not annotation.supervision.any():
            continue
        found.append(
            ManifestSample(
                id=sample.id,
                image=sample.path,
                sha256=sample.sha256,
                labels=session.store.revision_file(sample.id, annotation.revision),
                revision=annotation.revision,
                split=sample.split,
            )
        )
    return found


def judged_samples(store: ProjectStore, work: Path) -> list[ManifestSample]:
    """Return the labelled validation samples of a project, without writing to it.

    Parameters
    ----------
    work
        Folder for label files that hold strokes not yet in a revision.

    Raises
    ------
    InputError
        None of the validation images is labelled yet.
    """
    found = []
    for sample in store.samples():
        annotation = store.annotation(sample.id)
        if sample.split is not Split.VALIDATION or annotation is None:
            continue
        file = work / f"{sample.id}.tif"
        write_labels(file, annotation.labels, annotation.supervision)
        listed = ManifestSample(
            id=sample.id,
            image=sample.path,
            sha256=sample.sha256,
            labels=file,
            revision=annotation.revision,
            split=sample.split,
        )
        found += [listed] if annotation.supervision.any() else []
    if not found:
        raise InputError(
            "None of the images held back for validation is labelled yet; accept one of them, or "
            "give --images and --masks."
        )
    return found


def start(session: Session, config: TrainingConfig, model: str | None = None) -> Run:
    """Write a run's folder and start it.

    Raises
    ------
    InputError
        No model, nothing to learn from, or a run is under way already.
    """
    store = session.store
    entry = find_model(model, store) if model else current_model(store)
    if entry is None:
        raise InputError("Choose a model to start from in the Predict panel.")
    if any(not run.state.is_terminal for run in store.runs() if run.id in session.jobs):
        raise InputError("A fine-tuning run is under way; stop it or wait for its end.")
    samples = labelled_samples(session)
    for listed in samples:
        check_channels(store.sample(listed.id), entry)
    if not any(sample.split is Split.TRAIN for sample in samples):
        held = sum(sample.split is Split.VALIDATION for sample in samples)
        extra = f" The {held} labelled so far are held back to check the model." if held else ""
        raise InputError(
            "There is nothing to learn from yet: correct or accept at least one image that is "
            f"not held back for validation.{extra}"
        )
    manifest = RunManifest(
        run=_new_run_id(store.folder, entry.name),
        new_model=next_model_name(store, entry.name),
        base_model=entry.name,
        base_folder=entry.folder,
        channels=entry.card.channels,
        classes=store.classes.names,
        colors=tuple(c.color for c in store.classes.classes),
        samples=tuple(samples),
        segdesk_version=__version__,
    )
    return begin(session, manifest, config)


def begin(session: Session, manifest: RunManifest, config: TrainingConfig) -> Run:
    """Write ``manifest`` and ``config`` into a new run folder and start it."""
    folder = session.store.folder / "runs" / manifest.run
    with atomic_folder(folder) as beside:
        (beside / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
        (beside / "config.json").write_text(config.model_dump_json(indent=2) + "\n", "utf-8")
    run = Run(
        manifest.run, folder, manifest.base_model, RunState.RUNNING, new_model=manifest.new_model
    )
    session.put_run(run)
    session.backend.train(run.id, folder)
    return next(r for r in session.store.runs() if r.id == run.id)


def stop(session: Session, run_id: str) -> None:
    """Ask a run to end at its next step; its checkpoint is kept."""
    session.backend.cancel(run_id)


def close_orphans(session: Session) -> list[Run]:
    """Mark runs that a killed program left behind as crashed; returns them."""
    orphans = [
        run
        for run in session.store.runs()
        if not run.state.is_terminal and run.id not in session.jobs
    ]
    for run in orphans:
        reason = "SegDesk ended while this run was under way; its checkpoint is kept."
        session.put_run(
            Run(run.id, run.folder, run.base_model, RunState.CRASHED, run.new_model, reason)
        )
    return orphans


def _new_run_id(project: Path, model: str) -> str:
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name, number = f"{stamp}-{model}", 1
    while (project / "runs" / name).exists():
        number += 1
        name = f"{stamp}-{model}-{number}"
    return name

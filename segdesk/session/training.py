"""Starting and stopping fine-tuning runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from segdesk import __version__
from segdesk.config.model import NewModelConfig
from segdesk.config.training import TrainingConfig
from segdesk.core.annotation import Annotation
from segdesk.core.errors import InputError
from segdesk.core.manifest import CHECKPOINT, ManifestSample, RunManifest
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Sample, Split, Status
from segdesk.io.atomic import atomic_folder
from segdesk.io.labels import write_labels
from segdesk.io.store import ProjectStore
from segdesk.jobs.following import EVENTS, end_of, process_of
from segdesk.jobs.messages import EstimateOrder, VaryOrder
from segdesk.session.models import ModelEntry, current_model, find_model, next_model_name
from segdesk.session.predicting import check_channels
from segdesk.session.session import Session

#: Called with the number of parts of the work that are done, and of all; may raise.
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class NewModel:
    """An untrained model to start from: what is built, and how.

    ``options`` are the architecture's own, on top of ``config``; ``needs_labels`` is
    False for one that learns from the images alone.
    """

    architecture: str
    config: NewModelConfig = field(default_factory=NewModelConfig)
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_labels: bool = True


@dataclass(frozen=True)
class Labelled:
    """A sample on which a person has spoken; ``has_strokes``: not all are in a revision."""

    sample: Sample
    annotation: Annotation
    has_strokes: bool


def labelled_samples(store: ProjectStore, progress: Progress = _silent) -> list[Labelled]:
    """Return the samples on which a person has spoken."""
    found = []
    samples = store.samples()
    for done, sample in enumerate(samples):
        progress(done, len(samples))
        annotation = store.annotation(sample.id)
        if annotation is not None and annotation.supervision.any():
            found.append(Labelled(sample, annotation, store.edit_counts(sample.id)[0] > 0))
    return found


def list_sample(store: ProjectStore, item: Labelled, folder: Path, name: Path) -> ManifestSample:
    """Describe a labelled sample for a worker.

    Strokes that are in no revision yet stay where they are, so that they can still
    be undone; the labels with them are written into ``folder``, which will be
    called ``name``.
    """
    sample, annotation = item.sample, item.annotation
    labels = store.revision_file(sample.id, annotation.revision)
    if item.has_strokes:
        write_labels(folder / f"{sample.id}.tif", annotation.labels, annotation.supervision)
        labels = name / f"{sample.id}.tif"
    return ManifestSample(
        id=sample.id,
        image=sample.path,
        sha256=sample.sha256,
        labels=labels,
        revision=annotation.revision,
        split=sample.split,
    )


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
    held_back = [i for i in labelled_samples(store) if i.sample.split is Split.VALIDATION]
    if not held_back:
        raise InputError(
            "None of the images held back for validation is labelled yet; accept one of them, or "
            "give --images and --masks."
        )
    return [list_sample(store, item, work, work) for item in held_back]


def start(
    session: Session,
    config: TrainingConfig,
    model: str | None = None,
    new: NewModel | None = None,
) -> Run:
    """Write a run's folder and start it; it waits its turn while another is under way.

    Parameters
    ----------
    model
        Name of the model to start from; by default the one in use.
    new
        Start from this untrained model instead.

    Raises
    ------
    InputError
        No model, or nothing to learn from.
    """
    return enqueue(session, prepare(session.store, config, model, new))


def prepare(
    store: ProjectStore,
    config: TrainingConfig,
    model: str | None = None,
    new: NewModel | None = None,
    progress: Progress = _silent,
) -> Run:
    """Write the folder of a run, as :func:`start` does; :func:`enqueue` starts it.

    Reads the labels of the whole project, which takes its time, and writes nothing else: a
    thread may do it with a store of its own, opened for reading only. Raised by ``progress``,
    an exception ends it and takes the folder away.
    """
    entry = None if new is not None else find_start(store, model)
    labelled = labelled_samples(store, progress)
    unlabelled = [] if new is None or new.needs_labels else _without_labels(store, labelled)
    if not unlabelled:
        require_training_images(labelled)
    if entry is not None:
        for item in labelled:
            check_channels(item.sample, entry)
        base, channels = entry.name, entry.card.channels
    else:
        assert new is not None
        base = new.architecture
        channels = common_channels([*(i.sample for i in labelled), *unlabelled])
    run_id = _new_run_id(store.folder, base)
    folder = store.folder / "runs" / run_id
    with atomic_folder(folder) as beside:
        samples = [list_sample(store, item, beside, folder) for item in labelled]
        manifest = RunManifest(
            run=run_id,
            new_model=next_model_name(store, base),
            base_model=base,
            base_folder=entry.folder if entry is not None else None,
            **(_describe(new) if new is not None else {}),
            channels=channels,
            classes=store.classes.names,
            colors=tuple(c.color for c in store.classes.classes),
            samples=(*samples, *(_list_unlabelled(sample) for sample in unlabelled)),
            segdesk_version=__version__,
            features=_feature_cache(store),
        )
        (beside / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
        (beside / "config.json").write_text(config.model_dump_json(indent=2) + "\n", "utf-8")
    return Run(run_id, folder, base, RunState.QUEUED, manifest.new_model)


def enqueue(session: Session, run: Run) -> Run:
    """Start a run whose folder is written, or let it wait its turn; returns it as it is then."""
    session.put_run(run)
    session.start_next()
    return _find_run(session, run.id)


def _find_run(session: Session, run_id: str) -> Run:
    return next(run for run in session.store.runs() if run.id == run_id)


def find_start(store: ProjectStore, model: str | None) -> ModelEntry:
    """Return the model a run starts from: the one named, or the one in use.

    Raises
    ------
    InputError
        There is none, or it cannot be used.
    """
    entry = find_model(model, store) if model else current_model(store)
    if entry is None:
        raise InputError(
            "No model knows this project's classes yet; say which one to start from, in the "
            "Predict panel or with --model (see 'segdesk models list'), or start a new one."
        )
    return entry


def require_training_images(labelled: Sequence[Labelled]) -> None:
    """Refuse labelled samples of which all are held back, or none at all (InputError)."""
    if any(item.sample.split is Split.TRAIN for item in labelled):
        return
    held = len(labelled)
    extra = f" The {held} labelled so far are held back to check the model." if held else ""
    raise InputError(
        "There is nothing to learn from yet: correct or accept at least one image that is "
        f"not held back for validation.{extra}"
    )


def _without_labels(store: ProjectStore, labelled: Sequence[Labelled]) -> list[Sample]:
    known = {item.sample.id for item in labelled}
    return [s for s in store.samples() if s.id not in known and s.split is Split.TRAIN]


def _list_unlabelled(sample: Sample) -> ManifestSample:
    return ManifestSample(
        id=sample.id,
        image=sample.path,
        sha256=sample.sha256,
        labels=None,
        revision=0,
        split=sample.split,
    )


def _describe(new: NewModel) -> dict[str, Any]:
    """Return the fields of a manifest that say what is built."""
    config = new.config
    weights = config.encoder_weights.strip()
    if weights and weights != "download":
        weights = str(Path(weights).expanduser().absolute())
    return {
        "architecture": new.architecture,
        "variant": str(config.variant),
        "options": {
            "head": str(config.head),
            "activation": str(config.activation),
            **new.options,
        },
        "encoder_weights": weights,
    }


def common_channels(samples: Sequence[Sample]) -> int:
    """Return the channels a new model must take; grey images fit a colour model.

    Raises
    ------
    InputError
        The images have channels that do not go together.
    """
    found = sorted({sample.channels for sample in samples})
    if len(found) > 1 and found[0] == 1:
        found = found[1:]
    if len(found) > 1:
        one, other = (next(s for s in samples if s.channels == c) for c in found[:2])
        raise InputError(
            f"{one.name} has {one.channels} channels and {other.name} has {other.channels}: one "
            "model cannot take both; put them into two projects."
        )
    return found[0]


# Runs under way ------------------------------------------------------------------


def pause(session: Session, run_id: str, is_paused: bool) -> None:
    """Let a run wait before its next step, or go on."""
    session.backend.pause(run_id, is_paused)


def stop(session: Session, run_id: str) -> None:
    """Ask a run to end at its next step, with a checkpoint; one that waits never starts."""
    run = _find_run(session, run_id)
    if run.state is RunState.QUEUED:
        reason = "Taken out of the queue before it began."
        session.put_run(replace(run, state=RunState.CANCELED, reason=reason))
    else:
        session.backend.cancel(run_id)


def stop_now(session: Session, run_id: str) -> None:
    """End a run's process at once; what it learnt since its last checkpoint is lost."""
    session.backend.kill(run_id)


def can_resume(run: Run) -> bool:
    """Whether a run that did not come to its end can go on."""
    is_open = run.state in (RunState.CANCELED, RunState.FAILED, RunState.CRASHED)
    has_begun = (run.folder / EVENTS).is_file()
    has_state = (run.folder / CHECKPOINT).is_file()
    return is_open and (run.folder / "manifest.json").is_file() and (has_state or not has_begun)


def resume(session: Session, run_id: str) -> Run:
    """Let a run go on in its folder, from its last checkpoint.

    Raises
    ------
    InputError
        There is no such run, it came to its end, or it has no checkpoint.
    """
    runs = {run.id: run for run in session.store.runs()}
    if run_id not in runs:
        known = ", ".join(runs) or "none yet"
        raise InputError(f"This project has no run called {run_id!r}; there are: {known}.")
    if not can_resume(runs[run_id]):
        raise InputError(
            f"The run {run_id} cannot go on: it is {runs[run_id].state} and has no checkpoint to "
            "go on from; start a new one."
        )
    return enqueue(session, replace(runs[run_id], state=RunState.QUEUED, reason=""))


def is_under_way(session: Session) -> bool:
    """Whether this session has a run that has not ended."""
    return any(run.id in session.jobs and not run.state.is_terminal for run in session.store.runs())


def leave_running(session: Session) -> None:
    """Let what is under way go on when the session is closed; :func:`find_runs` finds it."""
    for run in session.store.runs():
        if run.id in session.jobs and run.state is RunState.RUNNING:
            session.part_from(run.id)


def find_runs(session: Session) -> list[Run]:
    """Take up the runs of an earlier start of the program.

    One that still goes on is followed; one that came to its end is taken in; what a
    killed program left behind is marked as crashed. Returns the last kind.
    """
    crashed = []
    for run in session.store.runs():
        if run.state.is_terminal or run.id in session.jobs:
            continue
        end = end_of(run.folder)
        if process_of(run.folder) is not None:
            session.adopt(run)
            session.backend.follow(run.id, run.folder)
        elif end is not None:
            session.handle(end)
        elif run.state is RunState.QUEUED:
            reason = "SegDesk was closed before this run's turn came."
            session.put_run(replace(run, state=RunState.CANCELED, reason=reason))
        else:
            reason = "SegDesk ended while this run was under way; it can go on from its last "
            ended = replace(run, state=RunState.CRASHED, reason=reason + "checkpoint.")
            session.put_run(ended)
            crashed.append(ended)
    return crashed


# Before a run --------------------------------------------------------------------


def estimate(session: Session, config: TrainingConfig, model: str | None = None) -> str:
    """Ask what a run of each recipe would take; answered by ``estimated`` events.

    Returns
    -------
    str
        The job's id, which the events carry.

    Raises
    ------
    InputError
        There is no model to start from.
    """
    store = session.store
    entry = find_start(store, model)
    # By status: reading all labels takes too long for a window that asks after every stroke.
    spoken = [s for s in store.samples() if s.status in (Status.CORRECTED, Status.ACCEPTED)]
    sides = {split: [_sides(s) for s in spoken if s.split is split] for split in Split}
    job = session.new_job("estimate")
    session.backend.prepare(
        EstimateOrder(
            job=job,
            model_folder=entry.folder,
            classes=store.classes.names,
            colors=tuple(c.color for c in store.classes.classes),
            images=tuple(sides[Split.TRAIN]),
            judged=tuple(sides[Split.VALIDATION]),
            config=config,
            features=_feature_cache(store),
        )
    )
    return job


def _feature_cache(store: ProjectStore) -> Path:
    return store.folder / "cache" / "features"


def _sides(sample: Sample) -> tuple[int, int]:
    height, width = sample.shape[-2:]
    return height, width


def vary(session: Session, config: TrainingConfig, sample_id: str) -> str:
    """Ask for pictures of an image as augmentation varies it; answered by ``varied``."""
    store = session.store
    sample = store.sample(sample_id)
    annotation = store.annotation(sample_id)
    is_known = annotation is not None and annotation.revision > 0
    job = session.new_job("vary")
    session.backend.prepare(
        VaryOrder(
            job=job,
            image=sample.path,
            labels=store.revision_file(sample_id, annotation.revision)
            if annotation is not None and is_known
            else None,
            model_folder=find_start(store, None).folder,
            colors=tuple(c.color for c in store.classes.classes),
            config=config,
            out=store.folder / "cache" / "examples",
        )
    )
    return job


def _new_run_id(project: Path, model: str) -> str:
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name, number = f"{stamp}-{model}", 1
    while (project / "runs" / name).exists():
        number += 1
        name = f"{stamp}-{model}-{number}"
    return name

"""Doing a round again, to prove that it is what the ledger says."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from segdesk.config.training import TrainingConfig
from segdesk.core.address import Address, is_gone, name_of
from segdesk.core.errors import CanceledError, InputError, SegDeskError, first_fault
from segdesk.core.manifest import RunManifest
from segdesk.core.round import Round, RoundInput, RoundOrigin, RoundPlatform
from segdesk.core.run import RunState
from segdesk.io.rounds import read_round
from segdesk.jobs.control import RunControl
from segdesk.jobs.messages import AnyEvent
from segdesk.training.ledger import take_stock, this_platform
from segdesk.training.run import run_folder


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of doing a round again.

    Attributes
    ----------
    differences
        What is not as it was: losses, scores, weights. Empty: the round is proven.
    notes
        What computes differently now, and may be the reason: versions, threads, device.
    """

    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether losses, scores and weights are those of the round, to the last bit."""
        return not self.differences


def replay(
    folder: Path, entry: Round, send: Callable[[AnyEvent], None], control: RunControl
) -> Replayed:
    """Do a completed round again in a temporary folder and compare.

    Parameters
    ----------
    folder
        The run's folder; nothing is written to it.
    send
        Called with the events of the second run.

    Raises
    ------
    InputError
        The run made no model, or an image, label file or model it used has changed or
        is gone; each is named.
    CanceledError
        The control was set.
    SegDeskError
        The second run failed.
    """
    if entry.state is not RunState.COMPLETED:
        raise InputError(
            f"{entry.run} ended as {entry.state} and made no model, so there is nothing to compare "
            "with; name a completed run (see 'segdesk rounds')."
        )
    manifest = RunManifest.model_validate_json((folder / "manifest.json").read_text("utf-8"))
    if changes := changed_inputs(manifest, entry):
        raise InputError(f"{entry.run} cannot be done again: {'; '.join(changes)}.")
    # Features that another run left in the project are no proof.
    manifest = manifest.model_copy(update={"features": None})
    config = _config(entry)
    with _threads(entry.platform.threads), tempfile.TemporaryDirectory() as place:
        notes = _platform_changes(entry.platform, this_platform(config))
        work = Path(place)
        (work / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
        (work / "config.json").write_text(config.model_dump_json(), "utf-8")
        finished = run_folder(work, send, control)
        if finished.state is RunState.CANCELED:
            raise CanceledError
        again = read_round(work)
        if finished.state is not RunState.COMPLETED or again is None:
            kind = InputError if finished.is_input else SegDeskError
            raise kind(f"{entry.run} cannot be done again: {finished.reason}")
    return Replayed(tuple(_differences(entry, again)), tuple(notes))


def changed_inputs(manifest: RunManifest, entry: Round) -> list[str]:
    """Name every image, label file and model that is not what it was in the round."""
    now = take_stock(manifest)
    was, new = ([(i.id, i.split) for i in inputs] for inputs in (entry.inputs, now.inputs))
    if was != new:
        return ["its manifest.json lists other images than the ledger"]
    changes = [
        change
        for old, new in zip(entry.inputs, now.inputs, strict=True)
        for change in _input_changes(old, new)
    ]
    return [*changes, *_origin_changes(entry.origin, now.origin)]


def _input_changes(old: RoundInput, new: RoundInput) -> Iterator[str]:
    name = name_of(new.image)
    if new.image_sha256 != old.image_sha256:
        yield f"the image {name} {_fate(new.image_sha256, new.image)}"
    if new.labels is not None and new.labels_sha256 != old.labels_sha256:
        fate = _fate(new.labels_sha256, new.labels)
        yield f"the label file {new.labels.name} of {name} {fate}"


def _origin_changes(old: RoundOrigin, new: RoundOrigin) -> Iterator[str]:
    if new.weights_sha256 != old.weights_sha256:
        where = new.folder or Path()
        yield f"the model {old.model} it started from {_fate(new.weights_sha256, where)}"
    if new.rehearsal_sha256 != old.rehearsal_sha256:
        yield f"the images that the model {old.model} carries against forgetting have changed"
    if new.encoder_sha256 != old.encoder_sha256:
        yield "the file with the encoder's first weights has changed or is gone"


def _fate(sha256: str, path: Address) -> str:
    if sha256:
        return "has changed"
    return f"is gone from {Path(path).parent}" if is_gone(path) else "cannot be read any more"


def _config(entry: Round) -> TrainingConfig:
    """Return the round's settings, on the device that ``auto`` was then."""
    try:
        return TrainingConfig.model_validate({**entry.config, "device": entry.platform.device})
    except ValidationError as error:
        raise InputError(
            f"{entry.run} was made by SegDesk {entry.platform.segdesk} with settings this one does "
            f"not have ({first_fault(error)}); do it again with that version."
        ) from None


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute with so many threads: sums in another order round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _platform_changes(old: RoundPlatform, new: RoundPlatform) -> Iterator[str]:
    titles = {"segdesk": "SegDesk", "python": "Python"}
    for field in RoundPlatform.model_fields:
        was, now = getattr(old, field), getattr(new, field)
        if was != now:
            yield f"{titles.get(field, field)} is {now} and was {was}"


def _differences(old: Round, new: Round) -> Iterator[str]:
    now = dict(zip(new.steps, new.losses, strict=True))
    for step, loss in zip(old.steps, old.losses, strict=True):
        if now.get(step) != loss:
            yield f"the loss differs from step {step} on ({loss!r} then, {now.get(step)!r} now)"
            break
    checks = {check.step: check for check in new.checks}
    for check in old.checks:
        if checks.get(check.step) != check:
            yield f"the scores differ from step {check.step} on"
            break
    if old.before != new.before:
        yield "the scores before differ"
    if old.after != new.after:
        yield "the scores after differ"
    if old.weights_sha256 != new.weights_sha256:
        yield "the new model's weights differ"

"""Writing a round down: what a run was given, what came of it, and the verdict."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from segdesk import __version__
from segdesk.config.training import TrainingConfig
from segdesk.core.address import Address
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.manifest import ManifestSample, RunManifest
from segdesk.core.round import Round, RoundCheck, RoundInput, RoundOrigin, RoundPlatform
from segdesk.core.run import RunState
from segdesk.core.verdict import Verdict, judge
from segdesk.io.packages import REHEARSAL, hash_weights
from segdesk.io.rounds import ROUND, write_round
from segdesk.io.sources import hash_source
from segdesk.jobs.child import is_first_process
from segdesk.jobs.following import read_events
from segdesk.jobs.messages import AnyEvent, Evaluated, Finished, Said, Stepped
from segdesk.nn.device import pick_device

#: Where the last weights of a run that made no model may lie, the best first.
KEPT = ("checkpoints/best.safetensors", "checkpoints/last.safetensors")


E = TypeVar("E", Stepped, Evaluated)


class Ledger:
    """Writes the round of one run: made when the run starts, closed when it ends.

    Parameters
    ----------
    folder
        The run's folder. The round of an earlier start of the same run is taken away.
    """

    def __init__(self, folder: Path, manifest: RunManifest, config: TrainingConfig) -> None:
        self._folder = folder
        self._manifest = manifest
        self._config = config
        self._started = _now()
        # Beside the loading of the images, so that the first step does not wait for it.
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="segdesk-hash")
        self._stock: Future[Stock] | None = None
        if is_first_process():
            self._stock = self._hashing.submit(take_stock, manifest)
            with suppress(OSError):
                (folder / ROUND).unlink(missing_ok=True)

    def close(self, finished: Finished, tell: Callable[[AnyEvent], None]) -> Finished:
        """Write the round, and return the run's end with the verdict in its result.

        A ledger that cannot be written, on a full disk, takes nothing from a model that was
        made: it is told, and that is all.
        """
        if self._stock is None:
            return finished
        stock = self._stock.result()
        self._hashing.shutdown()
        is_done = finished.state is RunState.COMPLETED
        before, after = finished.result.get("before"), finished.result.get("after")
        verdict = judge(before, after) if is_done else None
        try:
            write_round(self._folder, self._compile(finished, stock, verdict))
        except (SegDeskError, OSError) as error:
            reason = error.message if isinstance(error, SegDeskError) else str(error)
            tell(Said(job=self._manifest.run, text=f"This round is not in the ledger: {reason}"))
        if verdict is None:
            return finished
        result = {
            **finished.result,
            "verdict": str(verdict.judgement),
            "verdict_text": verdict.text,
            "difference": verdict.difference,
            "interval": verdict.interval,
        }
        return finished.model_copy(update={"result": result})

    def _compile(self, finished: Finished, stock: Stock, verdict: Verdict | None) -> Round:
        folder, manifest, config = self._folder, self._manifest, self._config
        events = list(read_events(folder))
        # Where the journal could not be cut, a run that went on stands there twice from its
        # checkpoint on; what counts is the second time.
        steps = _by_step(event for event in events if isinstance(event, Stepped))
        checks = _by_step(event for event in events if isinstance(event, Evaluated))
        is_done = finished.state is RunState.COMPLETED
        first = next((check.scores for check in checks if check.step == 0), None)
        before = finished.result.get("before") or first
        after = finished.result.get("after") if is_done else None
        return Round(
            run=manifest.run,
            state=finished.state,
            reason=finished.reason,
            new_model=manifest.new_model,
            classes=manifest.classes,
            inputs=stock.inputs,
            origin=stock.origin,
            config=config.model_dump(mode="json"),
            seed=config.seed,
            platform=this_platform(config),
            started=self._started,
            ended=_now(),
            steps=tuple(event.step for event in steps),
            losses=tuple(event.loss for event in steps),
            learning_rates=tuple(event.learning_rate for event in steps),
            checks=tuple(_check(event) for event in checks),
            before=before,
            after=after,
            difference=verdict.difference if verdict else None,
            interval=verdict.interval if verdict else None,
            verdict=str(verdict.judgement) if verdict else None,
            verdict_text=verdict.text if verdict else "",
            weights_sha256=hash_weights(folder / "model") if is_done else "",
            kept="" if is_done else next((k for k in KEPT if (folder / k).is_file()), ""),
        )


@dataclass(frozen=True)
class Stock:
    """What a run is given, by hash, at the moment it starts."""

    inputs: tuple[RoundInput, ...]
    origin: RoundOrigin


def take_stock(manifest: RunManifest) -> Stock:
    """Hash what a run is given. A file that cannot be read has no hash and is no error here."""
    return Stock(tuple(_input(sample) for sample in manifest.samples), _origin(manifest))


def this_platform(config: TrainingConfig) -> RoundPlatform:
    """Say what computes here and now."""
    device = str(config.device)
    with suppress(InputError):  # the run itself says that the device is not there
        device = pick_device(config.device).device.type
    return RoundPlatform(
        segdesk=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        device=device,
        threads=torch.get_num_threads(),
    )


def _input(sample: ManifestSample) -> RoundInput:
    return RoundInput(
        id=sample.id,
        split=sample.split,
        image=sample.image,
        image_sha256=_hash(sample.image),
        labels=sample.labels,
        labels_sha256=_hash(sample.labels),
        revision=sample.revision,
    )


def _origin(manifest: RunManifest) -> RoundOrigin:
    folder = manifest.base_folder
    if folder is not None:
        weights = ""
        with suppress(InputError):
            weights = hash_weights(folder)
        rehearsal = folder / REHEARSAL
        return RoundOrigin(
            model=manifest.base_model,
            folder=folder,
            weights_sha256=weights,
            rehearsal_sha256=_hash(rehearsal if rehearsal.is_dir() else None),
        )
    encoder = manifest.encoder_weights
    is_file = bool(encoder) and encoder != "download"
    return RoundOrigin(
        model=manifest.architecture, encoder_sha256=_hash(Path(encoder) if is_file else None)
    )


def _hash(path: Address | None) -> str:
    if path is not None:
        with suppress(InputError, OSError):
            return hash_source(path)
    return ""


def _by_step(events: Iterable[E]) -> list[E]:
    """Return the last event of each step, in the order of the steps."""
    last = {event.step: event for event in events}
    return [last[step] for step in sorted(last)]


def _check(event: Evaluated) -> RoundCheck:
    scores = event.scores
    return RoundCheck(
        step=event.step,
        dice=scores.get("dice"),
        iou=scores.get("iou"),
        remembered_dice=(scores.get("remembered") or {}).get("dice"),
        class_dice={name: one["dice"] for name, one in scores.get("per_class", {}).items()},
        is_best=event.is_best,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""One run from its folder to its one terminal event."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from segdesk.config.training import TrainingConfig
from segdesk.core.errors import CanceledError, InputError, SegDeskError
from segdesk.core.manifest import CHECKPOINT, RunManifest
from segdesk.core.run import RunState
from segdesk.io.atomic import atomic_write_bytes
from segdesk.jobs.child import is_first_process
from segdesk.jobs.control import RunControl
from segdesk.jobs.following import EVENTS, read_events, sign_in
from segdesk.jobs.messages import AnyEvent, Finished
from segdesk.training.checkpoint import checkpoint_step
from segdesk.training.ledger import Ledger
from segdesk.training.loop import FineTuning


def run_folder(folder: Path, send: Callable[[AnyEvent], None], control: RunControl) -> Finished:
    """Do the run that ``folder`` describes; events also go to ``events.jsonl``.

    A run that left a checkpoint goes on from there, and so does its journal.
    """
    manifest = RunManifest.model_validate_json((folder / "manifest.json").read_text("utf-8"))
    config = TrainingConfig.model_validate_json((folder / "config.json").read_text("utf-8"))
    if not is_first_process():
        return _finish(folder, manifest, config, lambda event: None, control)
    with suppress(SegDeskError, OSError):
        sign_in(folder)
        _cut_journal(folder)
    # Unbuffered, so that on a full disk a line is lost and not the run's end.
    with (folder / EVENTS).open("ab", buffering=0) as journal:

        def tell(event: AnyEvent) -> None:
            with suppress(OSError):
                journal.write(event.model_dump_json().encode() + b"\n")
            send(event)

        ledger = Ledger(folder, manifest, config)
        finished = ledger.close(_finish(folder, manifest, config, tell, control), tell)
        tell(finished)
    return finished


def _cut_journal(folder: Path) -> None:
    """Take back what the journal says of steps after the checkpoint, and of an end."""
    path, state = folder / EVENTS, folder / CHECKPOINT
    if not path.is_file():
        return
    last = checkpoint_step(state) if state.is_file() else -1
    kept = [
        event.model_dump_json()
        for event in read_events(folder)
        if not isinstance(event, Finished) and getattr(event, "step", 0) <= last
    ]
    atomic_write_bytes(path, "".join(f"{line}\n" for line in kept).encode())


def _finish(
    folder: Path,
    manifest: RunManifest,
    config: TrainingConfig,
    tell: Callable[[AnyEvent], None],
    control: RunControl,
) -> Finished:
    job = manifest.run
    try:
        result = FineTuning(folder, manifest, config, tell, control).run()
        return Finished(job=job, state=RunState.COMPLETED, result=result)
    except CanceledError:
        return Finished(job=job, state=RunState.CANCELED)
    except SegDeskError as error:
        is_input = isinstance(error, InputError)
        return Finished(job=job, state=RunState.FAILED, reason=error.message, is_input=is_input)
    except Exception as error:  # noqa: BLE001  the child's boundary: its parent must be told
        traceback.print_exc(file=sys.stderr)
        return Finished(job=job, state=RunState.FAILED, reason=_in_words(error, folder))


def _in_words(error: Exception, folder: Path) -> str:
    kept = ""
    if (folder / CHECKPOINT).is_file():
        kept = " It can go on from its last checkpoint."
    if "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError":
        return (
            "The graphics card stopped answering while the model learnt; choose the device cpu, or "
            f"start the computer again.{kept}"
        )
    return f"Fine-tuning failed ({type(error).__name__}: {error}); the log says where.{kept}"

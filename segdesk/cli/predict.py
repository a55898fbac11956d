"""``segdesk predict``: masks and uncertainty for a project or for image files."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import typer

from segdesk.cli.console import Meter, meter, say, show, show_json
from segdesk.config.inference import InferenceConfig
from segdesk.config.knobs import parse_assignments
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.run import RunState
from segdesk.io.atomic import explain_os_errors
from segdesk.io.sources import Address, hash_source, is_remote, probe_source
from segdesk.io.store import DATABASE_NAME, SUFFIX, ProjectStore
from segdesk.jobs.messages import AnyEvent, Finished, PredictionReady, PredictOrder
from segdesk.session.models import ModelEntry, find_model, list_models
from segdesk.session.predicting import cost, find_companions, request, require_channels
from segdesk.session.projects import find_images
from segdesk.session.session import Session

PARTS = ("labels.tif", "uncertainty.tif", "probabilities.zarr", "provenance.json")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict")(predict)


def predict(
    what: list[str] = typer.Argument(
        ..., help="A project; or image files, OME-Zarr folders or addresses, and folders of them."
    ),
    model: str | None = typer.Option(None, "--model", help="Name or folder of a model."),
    out: Path | None = typer.Option(None, "--out", help="Folder for the results of image files."),
    uncertainty: str | None = typer.Option(
        None,
        "--uncertainty",
        help="auto, margin, entropy, dropout, augmentation or ensemble.",
    ),
    device: str | None = typer.Option(None, "--device", help="auto, cpu, cuda or mps."),
    settings: list[str] = typer.Option([], "--set", help="Any setting, as name=value."),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """Predict masks and uncertainty."""
    values: dict[str, Any] = parse_assignments(settings)
    values |= {k: v for k, v in (("uncertainty", uncertainty), ("device", device)) if v}
    config = InferenceConfig.from_user(values)
    first = Path(what[0])
    is_project = len(what) == 1 and (first.suffix == SUFFIX or _holds_project(first))
    with meter("Predicting") as progress:
        if is_project:
            results = _predict_project(first, model, config, progress)
        else:
            if out is None:
                raise InputError("Say where the results go: --out FOLDER.")
            results = _predict_files(_find(what), model, config, out, progress)
    if as_json:
        show_json(results)
        return
    for result in results:
        show(f"{result['image']}: {result['unsure']:.1%} of the pixels unsure")


def _holds_project(path: Path) -> bool:
    return any((p / DATABASE_NAME).is_file() for p in (path, Path(f"{path}{SUFFIX}")))


def _predict_project(
    project: Path, model: str | None, config: InferenceConfig, progress: Meter
) -> list[dict[str, Any]]:
    from segdesk.training.inline import InlineBackend

    with ProjectStore.open(project) as store:
        session = Session(store)
        done: list[dict[str, Any]] = []
        samples = {sample.id: sample for sample in store.samples()}
        failures: list[Finished] = []

        def on_event(event: AnyEvent) -> None:
            session.handle(event)
            if isinstance(event, PredictionReady):
                done.append(
                    {
                        "image": samples[event.sample].name,
                        "folder": str(event.folder),
                        "unsure": event.score,
                    }
                )
                progress(len(done), len(samples))
            elif isinstance(event, Finished) and event.state is RunState.FAILED:
                failures.append(event)

        price = cost(session, list(samples.values()), config, model)
        if price.passes > 1:
            say(price.words)
        session.attach(InlineBackend(on_event))
        request(session, list(samples.values()), config, model)
        if failures:
            raise _failure(failures[0])
    return done


def _find(what: list[str]) -> list[Address]:
    """Return the images named, in order; addresses as they are."""
    found: list[Address] = []
    for text in what:
        found += [text] if is_remote(text) else find_images([text])
    return found


def _predict_files(
    paths: list[Address], model: str | None, config: InferenceConfig, out: Path, progress: Meter
) -> list[dict[str, Any]]:
    from segdesk.training.inline import InlineBackend

    entry = find_model(model) if model else _default_model()
    find_companions(config, entry)  # an ensemble that cannot be had is told of at once
    _check(paths, entry, config)
    results: list[dict[str, Any]] = []
    last: list[AnyEvent] = []
    backend = InlineBackend(last.append)
    # Beside the results, so that they can be renamed into place on any disk.
    with _folder(out), tempfile.TemporaryDirectory(dir=out, prefix=".part-") as part:
        for done, path in enumerate(paths):
            progress(done, len(paths), _name(path))
            last.clear()
            backend.predict(_order(path, entry, config, Path(part) / _stem(path)))
            results.append({"image": str(path), **_place(last, path, out)})
    progress(len(paths), len(paths))
    return results


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make the folder for the results; away again if it holds none after an error."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with explain_os_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _default_model() -> ModelEntry:
    entries = list_models()
    if not entries:
        raise InputError("No model is installed; name one with --model.")
    return entries[0]


def _name(address: Address) -> str:
    return PurePosixPath(address).name if is_remote(address) else Path(address).name


def _stem(address: Address) -> str:
    return Path(_name(address)).stem


def _check(paths: list[Address], entry: ModelEntry, config: InferenceConfig) -> None:
    """Find everything that can be wrong with the input before anything is written."""
    stems: dict[str, Address] = {}
    for path in paths:
        stem = _stem(path)
        if stem in stems:
            raise InputError(
                f"{stems[stem]} and {path} would get the same result files; predict them "
                "into two folders."
            )
        stems[stem] = path
        info = probe_source(path)
        require_channels(_name(path), info.channels, entry, config.chosen_channels)
        if info.note:
            say(info.note)


def _order(path: Address, entry: ModelEntry, config: InferenceConfig, out: Path) -> PredictOrder:
    return PredictOrder(
        job=_name(path),
        sample=_stem(path),
        image=str(path if is_remote(path) else Path(path).absolute()),
        image_sha256=hash_source(path),
        model=entry.name,
        model_folder=entry.folder,
        classes=entry.card.classes,
        out=out,
        config=config,
        companions=tuple(other.folder for other in find_companions(config, entry).values()),
    )


def _failure(end: Finished) -> SegDeskError:
    return (InputError if end.is_input else SegDeskError)(end.reason or f"{end.job}: {end.state}.")


def _place(events: list[AnyEvent], path: Address, out: Path) -> dict[str, Any]:
    end = next(event for event in events if isinstance(event, Finished))
    if end.state is not RunState.COMPLETED:
        # A user knows the folder they named and not the one beside the results.
        reason = re.sub(rf"{re.escape(str(out))}[^\s:;,]*\.part-[^\s:;,]*", str(out), end.reason)
        raise _failure(end.model_copy(update={"reason": reason}))
    ready = next(event for event in events if isinstance(event, PredictionReady))
    placed: dict[str, Any] = {"unsure": ready.score}
    for part in PARTS:
        target = out / f"{_stem(path)}_{part}"
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(ready.folder / part, target)
        placed[part.split(".")[0]] = str(target)
    return placed

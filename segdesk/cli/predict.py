"""``segdesk predict``: masks and uncertainty for a project or for image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from segdesk.cli.console import Meter, meter, say, show, show_json
from segdesk.config.inference import InferenceConfig
from segdesk.config.knobs import parse_assignments
from segdesk.core.address import Address, is_remote, local_path, name_of
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.run import RunState
from segdesk.io.atomic import explain_os_errors
from segdesk.io.sources import is_zarr
from segdesk.io.store import DATABASE_NAME, SUFFIX, ProjectStore
from segdesk.jobs.messages import AnyEvent, Finished, PredictionReady, PredictOrder, Progressed
from segdesk.session.batches import (
    UNFINISHED,
    find_done,
    find_sources,
    order_for,
    put_in_place,
    require_distinct,
    tidy,
)
from segdesk.session.models import ModelEntry, current_model, find_model, list_models
from segdesk.session.predicting import cost, find_companions, make_orders
from segdesk.session.projects import describe_others
from segdesk.session.session import Session

#: Does all orders before it returns.
Runner = Callable[[Iterable[PredictOrder]], None]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict")(predict)


def predict(
    what: list[str] = typer.Argument(
        ...,
        help="A project; or image files, OME-Zarr folders or addresses, folders of them, and "
        "patterns such as 'scans/*.tif'.",
    ),
    model: str | None = typer.Option(None, "--model", help="Name or folder of a model."),
    out: Path | None = typer.Option(None, "--out", help="Folder for the results of image files."),
    uncertainty: str | None = typer.Option(
        None,
        "--uncertainty",
        help="auto, margin, entropy, dropout, augmentation or ensemble.",
    ),
    level: int = typer.Option(
        0,
        "--level",
        min=0,
        help="Resolution level of multiscale images; 0 is the finest. In a project, images with "
        "fewer levels are predicted at their coarsest, and results are brought to full size.",
    ),
    again: bool = typer.Option(
        False, "--again", help="Also what is done already and would come out the same."
    ),
    scheduler: str | None = typer.Option(
        None,
        "--scheduler",
        help="Spread the work over a Dask cluster: its address, such as tcp://host:8786, or "
        "local:4 for four processes here. The workers need the same SegDesk, and see images "
        "(unless they are addresses), model and results under the same paths as this computer.",
    ),
    device: str | None = typer.Option(None, "--device", help="auto, cpu, cuda or mps."),
    settings: list[str] = typer.Option(
        [], "--set", help="Any setting, as name=value: 'segdesk settings predict' lists them."
    ),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """Predict masks and uncertainty; what is done already is skipped."""
    values: dict[str, Any] = parse_assignments(settings)
    values |= {k: v for k, v in (("uncertainty", uncertainty), ("device", device)) if v}
    config = InferenceConfig.from_user(values)
    first = Path(what[0])
    is_project = len(what) == 1 and (first.suffix == SUFFIX or _holds_project(first))
    with meter("Predicting") as progress:
        tally = _Tally(progress)
        if is_project:
            _predict_project(first, model, config, tally, level, again, scheduler)
        elif out is None:
            raise InputError("Say where the results go: --out FOLDER.")
        else:
            job = _Files(find_sources(what), _entry(model), config, out, level, again)
            for text in describe_others(what):
                say(text)
            _predict_files(job, tally, scheduler)
    if tally.results:
        tally.show(as_json)
    if (error := tally.error) is not None:
        raise error


def _holds_project(path: Path) -> bool:
    return any((p / DATABASE_NAME).is_file() for p in (path, Path(f"{path}{SUFFIX}")))


def _entry(model: str | None) -> ModelEntry:
    if model:
        return find_model(model)
    entries = list_models()
    if not entries:
        raise InputError("No model is installed; name one with --model.")
    return entries[0]


@dataclass
class _Tally:
    """What became of each image."""

    progress: Meter
    #: All images, in the order they are told of.
    images: list[str] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, Finished] = field(default_factory=dict)
    #: What ended the run as a whole.
    end: SegDeskError | None = None

    @property
    def is_hopeless(self) -> bool:
        """A sentence that comes twice running is about something else than an image."""
        last = [end.reason for end in self.failures.values()][-2:]
        return len(last) == 2 and last[0] == last[1]

    @property
    def error(self) -> SegDeskError | None:
        """What to end with, where not all went well."""
        if self.end is not None or not self.failures:
            return self.end
        ends = self.failures.values()
        kind = InputError if all(end.is_input for end in ends) else SegDeskError
        sentences = list(dict.fromkeys(end.reason for end in ends))
        if len(sentences) == 1 and not self.results:
            return kind(sentences[0])
        told = f"{len(self.results)} of {len(self.images)} images are done"
        left = len(self.images) - len(self.results) - len(self.failures)
        told += f", {left} were not tried" if left else ""
        lines = sentences[0] if len(sentences) == 1 else "".join(f"\n  {s}" for s in sentences)
        return kind(f"{told}, and {len(self.failures)} could not be predicted: {lines}")

    def take(self, image: str, result: dict[str, Any]) -> None:
        """Note that an image is done."""
        self.results[image] = result
        self.progress(len(self.results) + len(self.failures), len(self.images), Path(image).name)

    def fail(self, image: str, end: Finished, inner: Path, outer: Path) -> None:
        """Note that an image failed; ``outer`` is the folder that a user knows ``inner`` by."""
        beside = inner.with_name(f".{inner.name}.part")
        reason = end.reason or f"{image}: {end.state}."
        for path in (beside, inner):
            reason = reason.replace(str(path), str(outer))
        self.failures[image] = end.model_copy(update={"reason": reason})

    def follow(self, image: str, event: Progressed) -> None:
        """Show how far an image is."""
        if len(self.images) == 1:
            self.progress(event.done, event.total)
            return
        share = 100 * event.done // max(1, event.total)
        ended = len(self.results) + len(self.failures)
        self.progress(ended, len(self.images), f"{Path(image).name} {share} %")

    def show(self, as_json: bool) -> None:
        """Report to stdout."""
        entries = [
            {"image": image, **self.results[image]}
            if image in self.results
            else {"image": image, "failed": self.failures[image].reason}
            for image in self.images
            if image in self.results or image in self.failures
        ]
        if as_json:
            show_json(entries)
            return
        for entry in entries:
            if "failed" not in entry:
                unsure = entry["unsure"]
                known = "" if unsure is None else f"{unsure:.1%} of the pixels unsure"
                done = "already done" if entry.get("skipped") else ""
                show(f"{entry['image']}: {', '.join(part for part in (done, known) if part)}")


@contextmanager
def _runner(scheduler: str | None, on_event: Callable[[AnyEvent], None]) -> Iterator[Runner]:
    if scheduler is None:
        from segdesk.training.inline import InlineBackend

        backend = InlineBackend(on_event)

        def run(orders: Iterable[PredictOrder]) -> None:
            for order in orders:
                backend.predict(order)

        yield run
        return
    from segdesk.inference.cluster import Cluster

    with Cluster.connect(scheduler, say) as cluster:
        yield lambda orders: cluster.run(orders, on_event)


def _predict_project(
    project: Path,
    model: str | None,
    config: InferenceConfig,
    tally: _Tally,
    level: int,
    again: bool,
    scheduler: str | None,
) -> None:
    with ProjectStore.open(project) as store:
        session = Session(store)
        samples = {sample.id: sample for sample in store.samples()}
        tally.images = [sample.name for sample in samples.values()]
        everything = list(samples.values())
        orders = make_orders(session, everything, config, model, level=level, only_new=not again)
        by_job = {order.job: order for order in orders}
        todo = [samples[order.sample] for order in orders]
        entry = find_model(model, store) if model else current_model(store)
        for sample in samples.values():
            kept = store.prediction(sample.id, entry.name) if entry is not None else None
            if kept is not None and sample not in todo:
                found = {"folder": str(kept.folder), "unsure": kept.score, "skipped": True}
                tally.take(sample.name, found)

        def on_event(event: AnyEvent) -> None:
            session.handle(event)
            if isinstance(event, PredictionReady):
                result = {"folder": str(event.folder), "unsure": event.score}
                tally.take(samples[event.sample].name, result)
            elif isinstance(event, Finished) and event.state is RunState.FAILED:
                order = by_job[event.job]
                tally.fail(samples[order.sample].name, event, order.out, project)
            elif isinstance(event, Progressed):
                tally.follow(samples[by_job[event.job].sample].name, event)

        price = cost(session, todo, config, model, level)
        if price.passes > 1 and todo:
            say(price.words)
        if todo:
            _run(orders, tally, scheduler, on_event)


def _run(
    orders: Iterable[PredictOrder],
    tally: _Tally,
    scheduler: str | None,
    on_event: Callable[[AnyEvent], None],
) -> None:
    """Do the orders until all fail alike; what is done is told of, whatever ends it."""

    def hopeful() -> Iterator[PredictOrder]:
        for order in orders:
            yield order
            if tally.is_hopeless:
                return

    try:
        with _runner(scheduler, on_event) as run:
            run(hopeful())
    except SegDeskError as error:
        tally.end = error


@dataclass(frozen=True)
class _Files:
    """Image files to predict."""

    images: list[Address]
    entry: ModelEntry
    config: InferenceConfig
    out: Path
    level: int
    again: bool


def _predict_files(job: _Files, tally: _Tally, scheduler: str | None) -> None:
    find_companions(job.config, job.entry)  # an ensemble that cannot be had is told of at once
    require_distinct(job.images)
    tally.images = [str(image) for image in job.images]
    under_way: dict[str, tuple[str, PredictOrder]] = {}

    def orders() -> Iterator[PredictOrder]:
        for number, image in enumerate(job.images):
            try:
                _tell_gaps(image)
                order = order_for(image, job.entry, job.config, job.out, job.level)
                order = order.model_copy(update={"job": f"{number}"})
                if not job.again and (found := find_done(order, job.out)) is not None:
                    tally.take(str(image), {**found, "skipped": True})
                    continue
            except InputError as error:
                end = Finished(
                    job=name_of(image), state=RunState.FAILED, reason=error.message, is_input=True
                )
                tally.fail(str(image), end, job.out, job.out)
                continue
            under_way[order.job] = str(image), order
            yield order

    def on_event(event: AnyEvent) -> None:
        if isinstance(event, Progressed):
            tally.follow(under_way[event.job][0], event)
        if isinstance(event, Finished):
            image, order = under_way.pop(event.job)
            if event.state is RunState.COMPLETED:
                tally.take(image, put_in_place(order, job.out))
            else:
                tally.fail(image, event, order.out, job.out)

    with _folder(job.out):
        try:
            _run(orders(), tally, scheduler, on_event)
        finally:
            tidy(job.out)
        if not tally.results and (error := tally.error) is not None:
            raise error


def _tell_gaps(image: Address) -> None:
    if is_zarr(image) and not is_remote(image):
        from segdesk.io.zarrs import describe_gaps

        if note := describe_gaps(local_path(image)):
            say(note)


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make the folder for the results; away again if it holds none after an error."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with explain_os_errors(out):
            (out / UNFINISHED).mkdir(parents=True, exist_ok=True)
            yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise

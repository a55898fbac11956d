"""``segdesk refine``: move the edges of predictions to those of the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from segdesk.cli.console import Meter, meter, show, show_json
from segdesk.config.knobs import parse_assignments
from segdesk.config.refinement import CrfConfig
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.run import RunState
from segdesk.core.sample import Sample
from segdesk.io.store import ProjectStore
from segdesk.jobs.messages import AnyEvent, Finished, Progressed, RefinementReady
from segdesk.session.predicting import current_prediction
from segdesk.session.refining import go_back, request, use
from segdesk.session.session import Session


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("refine")(refine)


def refine(
    project: Path = typer.Argument(..., help="A project whose images were predicted."),
    images: list[str] = typer.Option([], "--image", help="Only this image; may be repeated."),
    settings: list[str] = typer.Option(
        [], "--set", help="Any setting, as name=value: 'segdesk settings refine' lists them."
    ),
    undo: bool = typer.Option(False, "--undo", help="Go back to what the model itself said."),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """Refine the edges of the current predictions with a fully connected CRF."""
    config = CrfConfig.from_user(parse_assignments(settings))
    with ProjectStore.open(project) as store, meter("Refining") as progress:
        session = Session(store)
        samples = _chosen(session, images)
        if undo:
            results = [
                {"image": sample.name, "folder": str(go_back(session, sample).folder)}
                for sample in samples
            ]
        else:
            results = _refine(session, samples, config, progress)
    if as_json:
        show_json(results)
        return
    for result in results:
        what = "as the model said" if undo else f"{result['changed']:.2%} of the pixels changed"
        show(f"{result['image']}: {what}")


def _chosen(session: Session, images: list[str]) -> list[Sample]:
    if images:
        return [session.store.sample(image) for image in images]
    predicted = [s for s in session.store.samples() if current_prediction(session, s.id)]
    if not predicted:
        raise InputError(
            "The model in use has predicted no image of this project yet; run 'segdesk predict "
            f"{session.store.folder.name}' first."
        )
    return predicted


def _refine(
    session: Session, samples: list[Sample], config: CrfConfig, progress: Meter
) -> list[dict[str, Any]]:
    from segdesk.training.inline import InlineBackend

    names = {sample.id: sample.name for sample in samples}
    results: list[dict[str, Any]] = []

    def on_event(event: AnyEvent) -> None:
        session.handle(event)
        if isinstance(event, Progressed):
            done = len(results) * event.total + event.done
            progress(done, len(samples) * event.total)
        elif isinstance(event, RefinementReady):
            folder = use(session, event).folder
            results.append(
                {"image": names[event.sample], "folder": str(folder), "changed": event.changed}
            )
        elif isinstance(event, Finished) and event.state is RunState.FAILED:
            raise (InputError if event.is_input else SegDeskError)(event.reason)

    session.attach(InlineBackend(on_event))
    request(session, samples, config)
    return results

"""``segdesk models list|show|use``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from segdesk.cli.console import show, show_json
from segdesk.io.store import ProjectStore
from segdesk.session.models import ModelEntry, current_model, find_model, list_models, use_model
from segdesk.session.session import Session

PROJECT = typer.Option(None, "--project", help="Also the project's own models.")
JSON = typer.Option(False, "--json", help="Report as JSON.")


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="The models there are.", no_args_is_help=True)
    group.command("list")(list_)
    group.command("show")(show_)
    group.command("use")(use)
    app.add_typer(group, name="models")


@contextmanager
def _maybe(project: Path | None) -> Iterator[ProjectStore | None]:
    if project is None:
        yield None
        return
    with ProjectStore.open(project, read_only=True) as store:
        yield store


def list_(project: Path | None = PROJECT, as_json: bool = JSON) -> None:
    """List trained models and the architectures new ones can be built from."""
    from segdesk.nn.registry import architectures

    with _maybe(project) as store:
        entries = list_models(store)
        used = current_model(store) if store is not None else None
    models: list[dict[str, Any]] = [
        {
            "name": e.name,
            "architecture": e.card.architecture,
            "parameters": e.card.parameters,
            "classes": list(e.card.classes),
            "channels": e.card.channels,
            "score": e.card.score,
            "license": sorted({d.license for d in e.card.training_data}),
            "bundled": e.is_bundled,
            "in_use": used is not None and used.name == e.name,
        }
        for e in entries
    ]
    specs = [
        {
            "name": spec.name,
            "title": spec.title,
            "year": spec.year,
            "reference": spec.reference,
            "stride": spec.stride,
            "options": spec.options,
        }
        for spec in architectures().values()
    ]
    if as_json:
        show_json({"models": models, "architectures": specs})
        return
    for model in models:
        mark = "*" if model["in_use"] else " "
        score = ", ".join(f"{k} {v:g}" for k, v in model["score"].items())
        show(f"{mark} {model['name']:<24} {model['architecture']:<8} {score}")
    show("architectures: " + ", ".join(f"{s['name']} ({s['title']}, {s['year']})" for s in specs))


def show_(
    name: str = typer.Argument(..., help="Name or folder of a model."),
    project: Path | None = PROJECT,
    as_json: bool = JSON,
) -> None:
    """Show a model's card and how its architecture differs from the paper."""
    with _maybe(project) as store:
        report = _describe(find_model(name, store))
    if as_json:
        show_json(report)
        return
    for key, value in report.items():
        if key == "trained_ids":
            value = f"{len(value)} images"
        show(f"{key:<16} {value}")


def _describe(entry: ModelEntry) -> dict[str, Any]:
    from segdesk.nn.registry import find_architecture

    spec = find_architecture(entry.card.architecture)
    return {
        **entry.card.model_dump(mode="json"),
        "folder": str(entry.folder),
        "stride": spec.stride,
        "reference": spec.reference,
        "deviations": list(spec.deviations),
    }


def use(
    name: str = typer.Argument(..., help="Name of a model."),
    project: Path = typer.Option(..., "--project", help="The project."),
) -> None:
    """Make a model the one in use; older ones stay and can be used again."""
    with ProjectStore.open(project) as store:
        show(f"{use_model(Session(store), name).name} is in use.")

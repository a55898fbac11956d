"""``segdesk new``, ``add``, ``status`` and ``review``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import typer

from segdesk.cli.console import meter, say, show, show_json
from segdesk.io.store import ProjectStore
from segdesk.session.annotating import learning_curve
from segdesk.session.models import current_model
from segdesk.session.projects import (
    NewImage,
    add_images,
    describe_others,
    find_images,
    match_masks,
    parse_classes,
    remove_image,
)
from segdesk.session.reviewing import next_samples, region_words, regions
from segdesk.session.session import Session

#: Uncertain places named for each image; ``--json`` has them all.
SHOWN_REGIONS = 3


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("new")(new)
    app.command("add")(add)
    app.command("remove")(remove)
    app.command("status")(status)
    app.command("review")(review)


def new(
    project: Path = typer.Argument(..., help="Folder to make; .segdesk is added."),
    classes: str = typer.Option(
        ..., "--classes", help="Names, the background first: background,nucleus"
    ),
) -> None:
    """Make a project."""
    with ProjectStore.create(project, parse_classes(classes)) as store:
        show(f"Made {store.folder} with the classes {', '.join(store.classes.names)}.")


def add(
    project: Path = typer.Argument(..., help="The project."),
    images: list[str] = typer.Argument(
        ..., help="Image files, OME-Zarr folders or addresses, or folders of them."
    ),
    masks: Path | None = typer.Option(
        None, "--masks", help="Folder of masks named like the images."
    ),
    copy: bool = typer.Option(False, "--copy", help="Copy the images into the project."),
    group_by: str = typer.Option(
        "", "--group-by", help="Regular expression: images with the same match share a split."
    ),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """Add images, and masks for them, to a project."""
    with ProjectStore.open(project) as store, meter("Reading") as progress:
        paths = find_images(images)
        pairs = match_masks(paths, masks) if masks else [NewImage(path) for path in paths]
        added = add_images(Session(store), pairs, copy=copy, group_by=group_by, progress=progress)
        added.notes += describe_others(images)
        held = sum(sample.split == "validation" for sample in added.samples)
        if as_json:
            show_json(
                {
                    "added": [s.id for s in added.samples],
                    "validation": held,
                    "notes": added.notes,
                }
            )
            return
        for note in added.notes:
            say(note)
        show(_tell(len(added.samples), held))
        if not any(sample.split == "validation" for sample in store.samples()):
            say(
                "No image is held back yet, so new models will have no score; that takes at "
                "least three images (or groups)."
            )


def _tell(count: int, held: int) -> str:
    if count == 0:
        return "Added no image."
    if count == 1:
        return f"Added 1 image, {'held' if held else 'not held'} back to check models."
    return f"Added {count} images, {held} of them held back to check models."


def remove(
    project: Path = typer.Argument(..., help="The project."),
    image: str = typer.Argument(..., help="Name or id of the image."),
) -> None:
    """Take an image out of a project; its file is left alone."""
    with ProjectStore.open(project) as store:
        sample = store.sample(image)
        kept = remove_image(Session(store), sample.id)
    where = f"; its labels lie in {kept}" if kept else ""
    show(f"Removed {sample.name}{where}.")


def status(
    project: Path = typer.Argument(..., help="The project."),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """Show what is in a project and how far it has come."""
    with ProjectStore.open(project, read_only=True) as store:
        samples, runs = store.samples(), store.runs()
        entry = current_model(store)
        curve = learning_curve(store)
        counts = Counter(str(sample.status) for sample in samples)
        report = {
            "project": str(store.folder),
            "classes": list(store.classes.names),
            "images": len(samples),
            "statuses": dict(counts),
            "validation": sum(sample.split == "validation" for sample in samples),
            "model": entry.name if entry else None,
            "learning_curve": curve.as_dict() if curve else None,
            "runs": [
                {"id": r.id, "state": str(r.state), "model": r.new_model, "reason": r.reason}
                for r in runs
            ],
            "samples": [
                {
                    "id": s.id,
                    "name": s.name,
                    "status": str(s.status),
                    "split": str(s.split),
                    "score": s.score,
                }
                for s in samples
            ],
        }
    if as_json:
        show_json(report)
        return
    words = ", ".join(f"{number} {name}" for name, number in counts.items()) or "none yet"
    show(f"{report['project']}: {len(samples)} images ({words})")
    show(f"classes {', '.join(store.classes.names)}; model {report['model'] or 'none fits'}")
    for sample in samples:
        unsure = "" if sample.score is None else f"{sample.score:.1%} unsure"
        held = "held back" if sample.split == "validation" else ""
        show(f"  {sample.name:<32} {sample.status:<10} {unsure:<14} {held}".rstrip())
    for run in runs:
        show(f"  run {run.id}: {run.state} {run.reason}".rstrip())
    if curve is not None:
        show(curve.text)


def review(
    project: Path = typer.Argument(..., help="The project."),
    count: int = typer.Option(1, "--next", min=1, help="How many to name."),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """Say which images to look at next, where in them, and why."""
    with ProjectStore.open(project, read_only=True) as store:
        session = Session(store)
        found = [(s, regions(session, s.sample)) for s in next_samples(session, count)]
    if as_json:
        show_json(
            [
                {
                    "image": s.sample.name,
                    "id": s.sample.id,
                    "why": s.reason,
                    "regions": [place.as_dict() for place in places],
                }
                for s, places in found
            ]
        )
        return
    if not found:
        show("Every image is accepted; there is nothing left to look at.")
    for suggestion, places in found:
        show(f"{suggestion.sample.name}: {suggestion.reason}")
        for place in places[:SHOWN_REGIONS]:
            show(f"  {region_words(place, is_stack=suggestion.sample.is_stack)}")

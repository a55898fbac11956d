"""``segdesk models list|show|use|compare``."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from segdesk.cli.architectures import CHANNELS, CLASSES, PUBLISHED, Catalogue, Report
from segdesk.cli.console import meter, say, show, show_json
from segdesk.config.inference import InferenceConfig
from segdesk.config.model import NewModelConfig, Variant, plain
from segdesk.core.calibration import Calibration
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.run import RunState
from segdesk.io.store import ProjectStore
from segdesk.jobs.messages import AnyEvent, Finished
from segdesk.session.comparing import Ranking, find_missing, rank
from segdesk.session.models import (
    ModelEntry,
    current_model,
    find_model,
    kept_calibration,
    list_models,
    use_model,
)
from segdesk.session.predicting import request
from segdesk.session.session import Session

PROJECT = typer.Option(None, "--project", help="Also the project's own models.")
JSON = typer.Option(False, "--json", help="Report as JSON.")


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="The models there are.", no_args_is_help=True)
    group.command("list")(list_)
    group.command("show")(show_)
    group.command("use")(use)
    group.command("compare")(compare)
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
    if not as_json:
        _show_models(models)
    known = Catalogue()
    if not known.is_complete:
        say("Computing what each architecture costs; this takes a while, once.")
    # One by one: each takes a moment to compute.
    reports = (_architecture(known[name], entries) for name in known.names())
    if as_json:
        show_json({"models": models, "architectures": list(reports)})
    else:
        _show_architectures(reports, max(map(len, known.names()), default=0))
    known.keep()


def _show_models(models: Sequence[Mapping[str, Any]]) -> None:
    rows = [("trained model", "architecture", "score")]
    rows += [(m["name"], m["architecture"], _plain(m["score"])) for m in models]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    for row, is_used in zip(rows, [False, *(m["in_use"] for m in models)], strict=True):
        mark = "*" if is_used else " "
        show(f"{mark} {row[0]:<{first}}  {row[1]:<{second}}  {row[2]}".rstrip())


def _show_architectures(reports: Iterator[dict[str, Any]], width: int) -> None:
    width = max(width, len("architecture"))
    show("")
    show(f"  {'':{width}}              parameters       GMAC / MP         GB / MP")
    show(f"  {'architecture':{width}}  year {_pairs([('small', 'paper')] * 3)}")
    for report in reports:
        small, paper = (_numbers(report, form) for form in (Variant.SMALL, PUBLISHED))
        pairs = _pairs(list(zip(small, paper, strict=True)))
        show(f"  {report['name']:{width}}  {report['year']} {pairs}")
    show("")
    show(
        "small: what 'segdesk train --new NAME' makes, with head "
        f"{NewModelConfig().head}. paper: as published,"
    )
    show(f"with the paper's own head. For {CHANNELS} channels and {CLASSES} classes.")
    show("GMAC / MP: thousand million multiply-adds to predict a megapixel of image.")
    show("GB / MP: memory for what a training step keeps of a megapixel.")
    show("More on one of them: segdesk models show NAME")


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f"  {s:>{w}}  {p:>{w}}" for w, (s, p) in zip((7, 6, 6), pairs, strict=True))


def _numbers(report: Mapping[str, Any], variant: str) -> tuple[str, str, str]:
    return (
        _short(report["parameters"][variant]),
        f"{report['multiply_adds_per_megapixel'][variant] / 1e9:.1f}",
        f"{report['activation_bytes_per_megapixel'][variant] / 1e9:.2f}",
    )


def _short(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"


def show_(
    name: str = typer.Argument(..., help="Name of a model or an architecture, or a folder."),
    project: Path | None = PROJECT,
    as_json: bool = JSON,
) -> None:
    """Show a model's card, or what an architecture is and how it differs from the paper."""
    known = Catalogue()
    with _maybe(project) as store:
        entries = list_models(store)
        names = [entry.name for entry in entries]
        own = store.folder / "models" / name if store is not None else None
        is_there = Path(name).exists() or (own is not None and own.exists())
        if name not in names and name in known:
            report = _architecture(known[name], entries)
        elif name in names or is_there:
            entry = find_model(name, store)
            kept = kept_calibration(store, entry) if store is not None else None
            report = _report_model(entry, kept, known)
        else:
            from segdesk.nn.registry import suggest

            hint = suggest(name, [*names, *known.names()])
            raise InputError(f"There is no model or architecture called {name!r}{hint}")
    known.keep()
    if as_json:
        show_json(report)
    elif report["kind"] == "architecture":
        _show_architecture(report)
    else:
        _show_model(report)


def _report_model(entry: ModelEntry, kept: Calibration | None, known: Catalogue) -> Report:
    architecture = entry.card.architecture
    if architecture not in known:
        from segdesk.nn.registry import find_architecture

        find_architecture(architecture)  # says so, and which there are
    return {
        "kind": "model",
        **entry.card.model_dump(mode="json"),
        "folder": str(entry.folder),
        **{key: known[architecture][key] for key in ("stride", "reference", "deviations")},
        "calibration": None if kept is None else kept.model_dump(mode="json"),
    }


def _architecture(known: Report, entries: Sequence[ModelEntry]) -> Report:
    """Add the weights there are, which come and go with a project."""
    report = {key: value for key, value in known.items() if key != "encoder"}
    weights = [e.name for e in entries if e.card.architecture == known["name"]]
    encoder = [f"encoder: timm {known['encoder']}"] if known["encoder"] else []
    return report | {"weights_available": weights + encoder}


def _show_model(report: Mapping[str, Any]) -> None:
    hidden = {"kind", "format", "deviations", "stride", "trained_ids", "training_data"}
    hidden |= {"calibration"}
    for key, value in report.items():
        if key not in hidden and value not in ("", {}, []):
            show(f"{key.replace('_', ' ')}: {_plain(value)}")
    for data in report["training_data"]:
        show(f"training data: {data['name']} ({data['license']}, {data['images']} images)")
    show(f"trained on: {len(report['trained_ids'])} images, by their hash")
    show(f"stride: {_pixels(report['stride'])}")
    if report["calibration"] is not None:
        show(f"calibration: {_tell_calibration(report['calibration'])}")
    _show_deviations(report["deviations"])


def _tell_calibration(kept: Mapping[str, Any]) -> str:
    errors = [f"{100 * e:.2f}" for e in (kept["ece_before"], kept["ece_after"]) if e is not None]
    number = kept["images"]
    return (
        f"temperature {kept['temperature']:.2f}, kept in this project on {kept['created'][:10]} "
        f"from {number} labelled image{'' if number == 1 else 's'}; calibration error "
        f"{' before, '.join(errors)}{' after' if len(errors) > 1 else ''} (percentage points); "
        f"uncertainty: {kept['kind'] or 'no evidence'}"
    )


def _show_architecture(report: Mapping[str, Any]) -> None:
    stride = report["stride"]
    least = -(-report["min_size"] // stride) * stride
    sides = f"any multiple of {stride} pixels" if stride > 1 else "any"
    learns = "from labelled images" if report["needs_labels"] else "without labels"
    for key, value in (
        ("name", report["name"]),
        ("title", report["title"]),
        ("reference", report["reference"]),
        ("year", report["year"]),
        ("licence", report["license"]),
        ("learns", learns),
        ("stride", f"{_pixels(stride)} (height and width of the input: {sides})"),
        ("min size", _pixels(least)),
        ("classes", report["classes"]),
        ("heads", report["heads"]),
        ("activations", report["activations"]),
        ("weights available", report["weights_available"] or "none"),
        ("without gradient", report["without_gradient"] or "none"),
        ("torch.export", "possible" if report["is_exportable"] else "not possible, see below"),
    ):
        show(f"{key}: {_plain(value)}")
    forms = [Variant.SMALL, Variant.PAPER, PUBLISHED]
    numbers = [_numbers(report, form) for form in forms]
    options = [report["options"][form] for form in forms]
    rows = [
        ("", "small", "paper", "as published"),
        ("parameters", *(f"{report['parameters'][form]:,}" for form in forms)),
        ("GMAC per megapixel", *(n[1] for n in numbers)),
        ("GB per megapixel", *(n[2] for n in numbers)),
        *((f"option {name}", *(plain(o[name]) for o in options)) for name in options[-1]),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    show("")
    for row in rows:
        show("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())
    at = report["computed_for"]
    show("")
    _show_long(
        f"small and paper: what 'segdesk train --new {report['name']}' makes, with head "
        f"{at['head'][Variant.SMALL]} unless another is asked for (--option variant=paper, "
        f"--option head=A). as published: with the paper's own head, {at['head'][PUBLISHED]}."
    )
    _show_long(
        "paper builds the network as published, but trains it with SegDesk's own settings "
        "(optimizer, rate, loss), which can be set: segdesk settings."
    )
    _show_long(
        f"Computed for {at['channels']} channels, {at['classes']} classes and an image of "
        f"{at['side']} x {at['side']} pixels. GMAC: thousand million multiply-adds of a "
        "prediction. GB: what a training step keeps."
    )
    _show_deviations(report["deviations"])


def _show_deviations(deviations: Sequence[str]) -> None:
    show("")
    if not deviations:
        show("Nothing is known to differ from the paper.")
        return
    show("Differs from the paper:")
    for sentence in deviations:
        _show_long(sentence, "- ")


def _show_long(text: str, mark: str = "") -> None:
    # A terminal would break lines within words; a program that reads a pipe wants one each.
    width = min(100, shutil.get_terminal_size().columns) if sys.stdout.isatty() else sys.maxsize
    show(textwrap.fill(text, width, initial_indent=mark, subsequent_indent=" " * len(mark)))


def _pixels(number: int) -> str:
    return f"{number} pixel{'' if number == 1 else 's'}"


def _plain(value: Any) -> str:
    """Write a value for people: no quotes, brackets or braces."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool) or value is None:
        return plain(value)
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3g}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def use(
    name: str = typer.Argument(..., help="Name of a model."),
    project: Path = typer.Option(..., "--project", help="The project."),
) -> None:
    """Make a model the one in use; older ones stay and can be used again."""
    with ProjectStore.open(project) as store:
        show(f"{use_model(Session(store), name).name} is in use.")


def compare(
    first: str = typer.Argument(..., help="Name of a model."),
    second: str = typer.Argument(..., help="Name of the model it is compared with."),
    project: Path = typer.Argument(..., help="The project: its labelled images."),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda or mps."),
    as_json: bool = JSON,
) -> None:
    """Compare two models on a project's labelled images, those that got worse first."""
    config = InferenceConfig.from_user({"device": device})
    with ProjectStore.open(project, read_only=True) as store:
        missing = find_missing(store, first, second)
    if missing:
        _predict_missing(project, missing, config)
    with ProjectStore.open(project, read_only=True) as store, meter("Comparing") as progress:
        ranking = rank(store, first, second, progress=progress)
    if not ranking.rows:
        raise InputError(
            "No image of this project is labelled yet, so nothing says which model is right; "
            "correct or accept some first."
        )
    if as_json:
        show_json(_report_ranking(ranking))
    else:
        _show_ranking(ranking)


def _predict_missing(
    project: Path, missing: Mapping[str, Sequence[str]], config: InferenceConfig
) -> None:
    """Have each model predict the images it lacks.

    Raises
    ------
    SegDeskError
        An image could not be predicted.
    """
    from segdesk.training.inline import InlineBackend

    total = sum(map(len, missing.values()))
    ends: list[Finished] = []
    with ProjectStore.open(project) as store, meter("Predicting") as progress:
        session = Session(store)

        def on_event(event: AnyEvent) -> None:
            session.handle(event)
            if isinstance(event, Finished):
                ends.append(event)
                progress(len(ends), total)

        session.attach(InlineBackend(on_event))
        for model, samples in missing.items():
            request(session, [store.sample(sample) for sample in samples], config, model)
    for end in ends:
        if end.state is not RunState.COMPLETED:
            raise (InputError if end.is_input else SegDeskError)(end.reason)


def _report_ranking(ranking: Ranking) -> dict[str, Any]:
    scores = ranking.dice
    return {
        "first": ranking.first,
        "second": ranking.second,
        "n": len(ranking.rows),
        "dice": list(scores) if scores is not None else None,
        "images": [
            {
                "image": row.sample,
                "name": row.name,
                "split": str(row.split),
                "labelled": row.labelled,
                "fixed": row.fixed,
                "broken": row.broken,
                "still_wrong": row.still_wrong,
                "dice": list(row.dice) if row.dice is not None else None,
                "difference": row.difference,
                "was_learnt": row.was_learnt,
            }
            for row in ranking.rows
        ],
    }


def _show_ranking(ranking: Ranking) -> None:
    width = max(len("image"), *(len(row.name) for row in ranking.rows))
    show(f"{'image':{width}}  {'Dice':>13}  change   fixed  broken  still wrong")
    for row in ranking.rows:
        assert row.dice is not None  # only labelled images are in a ranking
        shares = (row.fixed, row.broken, row.still_wrong)
        fixed, broken, wrong = (f"{count / row.labelled:.1%}" for count in shares)
        mark = "  (learnt from)" if row.was_learnt else ""
        show(
            f"{row.name:{width}}  {row.dice[0]:.3f}   {row.dice[1]:.3f}  {row.difference:+.3f}  "
            f"{fixed:>6}  {broken:>6}  {wrong:>11}{mark}"
        )
    scores = ranking.dice
    assert scores is not None
    show(f"Mean Dice {scores[0]:.3f} with {ranking.first}, {scores[1]:.3f} with {ranking.second}.")
    if any(row.was_learnt for row in ranking.rows):
        say("Images that a model learnt from flatter it; those held back tell more.")

"""``segdesk train`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from segdesk.cli.check import check_first, check_only
from segdesk.cli.console import meter, say, show, show_json
from segdesk.cli.estimates import tell_estimates
from segdesk.cli.labelled import labelled
from segdesk.cli.replay import replay_round
from segdesk.cli.running import follow_run
from segdesk.config.inference import InferenceConfig
from segdesk.config.knobs import parse_assignments
from segdesk.config.model import NewModelConfig
from segdesk.config.training import Recipe, TrainingConfig
from segdesk.core.errors import InputError, SegDeskError
from segdesk.core.run import Run, RunState
from segdesk.core.verdict import judge
from segdesk.io.store import ProjectStore
from segdesk.jobs.messages import (
    Finished,
)
from segdesk.session.models import use_model
from segdesk.session.session import Session
from segdesk.session.training import NewModel, start
from segdesk.session.training import resume as go_on


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("train")(train)
    app.command("evaluate")(evaluate)


def train(
    project: Path = typer.Argument(..., help="The project."),
    model: str | None = typer.Option(None, "--model", help="Model to start from."),
    new: str | None = typer.Option(
        None, "--new", help="Start from this untrained architecture (see 'segdesk models list')."
    ),
    options: list[str] = typer.Option(
        [],
        "--option",
        help="Of a new model, as name=value: variant (small, paper), head (A to D), activation, "
        "encoder_weights (a file, or download), or one of the architecture's own.",
    ),
    recipe: str | None = typer.Option(
        None, "--recipe", help="quick, standard, full (or all), scratch, decoder or head."
    ),
    settings: list[str] = typer.Option(
        [], "--set", help="Any setting, as name=value: 'segdesk settings train' lists them."
    ),
    resume: str | None = typer.Option(
        None, "--resume", help="Let this run go on that was stopped or broke off."
    ),
    estimate: bool = typer.Option(
        False, "--estimate", help="Tell what each recipe would take here, and train nothing."
    ),
    devices: int | None = typer.Option(None, "--devices", help="Graphics cards that share it."),
    nodes: int | None = typer.Option(None, "--nodes", help="Machines that share it."),
    use: bool = typer.Option(False, "--use", help="Make the new model the one in use."),
    use_if_better: bool = typer.Option(
        False,
        "--use-if-better",
        help="Make the new model the one in use if the verdict on it is: better.",
    ),
    again: str | None = typer.Option(
        None, "--replay", help="Do this run again and say whether it comes out the same."
    ),
    check: bool = typer.Option(
        False, "--check", help="Only say what would make the run fail or its score mislead."
    ),
    as_json: bool = typer.Option(False, "--json", help="One event a line; last, the outcome."),
) -> None:
    """Train a model on the corrected images of a project: fine-tune one, or a new one."""
    if again is not None:
        if model or new or options or recipe or settings or use:
            raise InputError("--replay takes model and settings from the run; give it alone.")
        replay_round(project, again, as_json=as_json)
        return
    values: dict[str, Any] = parse_assignments(settings)
    chosen = {"recipe": recipe, "devices": devices, "nodes": nodes}
    config = TrainingConfig.from_user(values | {k: v for k, v in chosen.items() if v is not None})
    if config.recipe is Recipe.QUICK and "steps" in values:
        say(f"The recipe quick takes its own number of steps, quick_steps={config.quick_steps}; "
            "steps is for the others.")  # fmt: skip
    untrained = _new_model(new, model, parse_assignments(options))
    if check:
        check_only(project, config, model, untrained, as_json=as_json)
        return
    with ProjectStore.open(project) as store:
        session = Session(store)
        session.promotes_better = use_if_better
        if estimate:
            tell_estimates(session, config, model, as_json=as_json)
            return

        def begin() -> Run:
            if resume is not None:
                return go_on(session, resume)
            return start(session, config, model, untrained)

        if resume is None:
            check_first(store, config, model, untrained, as_json=as_json)
        is_shared = config.devices * config.nodes > 1
        run, end = follow_run(session, begin, is_shared=is_shared, as_json=as_json)
        if use and run.state is RunState.COMPLETED:
            use_model(session, run.new_model)
    _report(run, end, as_json)
    if run.state is not RunState.COMPLETED:
        error = InputError if end is not None and end.is_input else SegDeskError
        raise error(run.reason or "The run was stopped; its checkpoint is kept.")


def _new_model(new: str | None, model: str | None, options: dict[str, str]) -> NewModel | None:
    """Read what untrained model to start from, if that was asked for.

    Raises
    ------
    InputError
        An unknown architecture or option, or a trained model was named too.
    """
    if new is None:
        if options:
            raise InputError("--option describes a new model; name its architecture with --new.")
        return None
    if model is not None:
        raise InputError("Give either --model (a trained model) or --new (an architecture).")
    from segdesk.nn.outline import require_buildable
    from segdesk.nn.registry import find_architecture, resolve_options

    spec = find_architecture(new)
    knobs = {k: v for k, v in options.items() if k in NewModelConfig.model_fields}
    config = NewModelConfig.from_user(knobs)
    own = {k: v for k, v in options.items() if k not in knobs}
    checked = resolve_options(spec, config.variant, own)
    require_buildable(spec, checked)
    return NewModel(spec.name, config, {k: checked[k] for k in own}, spec.needs_labels)


def _report(run: Run, end: Finished | None, as_json: bool) -> None:
    is_made = run.state is RunState.COMPLETED
    result = end.result if end is not None and is_made else {}
    if as_json:
        name = run.new_model if is_made else None
        show_json(
            {
                "run": run.id,
                "state": str(run.state),
                "model": name,
                "reason": run.reason,
                "before": run.before,
                "after": run.after,
                "verdict": result.get("verdict"),
                "verdict_text": result.get("verdict_text", ""),
                "difference": result.get("difference"),
                "interval": result.get("interval"),
            }
        )
    elif is_made:
        show(f"Made {run.new_model}." + _gain(run))
        show(judge(run.before, run.after).text)


def _gain(run: Run) -> str:
    before, after = run.before or {}, run.after or {}
    if after.get("dice") is None:  # the verdict says why
        return ""
    if before.get("dice") is None:  # a new model: there was nothing to judge before
        return f" Validation Dice {after['dice']:.3f} ({after['n']} images)."
    return (
        f" Validation Dice {before['dice']:.3f} before, {after['dice']:.3f} after "
        f"({after['n']} images)."
    )


def evaluate(
    project: Path | None = typer.Argument(None, help="A project: its validation images."),
    model: str | None = typer.Option(None, "--model", help="Name or folder of a model."),
    images: Path | None = typer.Option(None, "--images", help="Folder of images."),
    masks: Path | None = typer.Option(None, "--masks", help="Folder of their true masks."),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda or mps."),
    instances: bool = typer.Option(
        False, "--instances", help="Score objects too: panoptic quality, Rand, warping error."
    ),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """Score a model on labelled images."""
    from segdesk.training.inline import evaluate_model

    config = InferenceConfig.from_user({"device": device})
    here = labelled(project, model, images, masks)
    with here as (entry, samples, _), meter("Judging") as progress:
        scores = evaluate_model(entry.folder, samples, config, progress, instances=instances)
    if not scores["n"]:
        raise InputError("No pixel of these images is labelled, so there is nothing to score.")
    if as_json:
        show_json({"model": entry.name, **scores})
        return
    over = ", ".join(scores["classes"])
    show(f"{entry.name} on {scores['n']} images (means over images, over {over}):")
    show(f"  Dice {scores['dice']:.4f}  IoU {scores['iou']:.4f}")
    whole = scores["dataset"]
    show(f"All pixels of all images together (means over {', '.join(scores['per_class'])}):")
    show(
        f"  pixel accuracy {whole['pixel_accuracy']:.4f}  "
        f"mean accuracy {whole['mean_accuracy']:.4f}  mean IoU {whole['mean_iou']:.4f}\n"
        f"  frequency-weighted IoU {whole['frequency_weighted_iou']:.4f}  "
        f"mean Dice {whole['mean_dice']:.4f}"
    )
    means = [f"{key.replace('_', ' ')} {v:.4f}" for key, v in scores["image_means"].items()]
    figures = ", ".join(means).replace("iou", "IoU").replace("dice", "Dice")
    show(f"The same of each image by itself, then the mean over images: {figures}")
    if instances:
        _show_objects(scores["objects"], over)


def _show_objects(scores: dict[str, Any], over: str) -> None:
    def figure(name: str, decimals: int = 4) -> str:
        value = scores[name]
        return "none" if value is None else f"{value:.{decimals}f}"

    show(f"Objects, the connected pieces of {over}:")
    show(
        f"  panoptic quality {figure('panoptic_quality')}  "
        f"(segmentation {figure('segmentation_quality')}, "
        f"recognition {figure('recognition_quality')}; matched above IoU 0.5)\n"
        f"  Rand error {figure('rand_error')} (mean over images, on the true objects)\n"
        f"  warping error {figure('warping_error', 6)}  pixel error {figure('pixel_error')} "
        "(over all pixels)"
    )

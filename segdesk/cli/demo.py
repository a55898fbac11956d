"""``segdesk demo``: the main job on the bundled sample, without a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from segdesk.cli.console import meter, say, show, show_json
from segdesk.jobs.messages import AnyEvent, Stepped
from segdesk.session.demo import run_demo


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    out: Path = typer.Option(Path("segdesk-demo"), "--out", help="New folder for the results."),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """Predict, correct, fine-tune and predict again on the bundled sample."""
    from segdesk.training.inline import InlineBackend

    with meter("Fine-tuning") as progress:

        def on_event(event: AnyEvent) -> None:
            if isinstance(event, Stepped):
                progress(event.step, event.total, f"loss {event.loss:.3f}")

        report = run_demo(out, InlineBackend, say, on_event)
    if as_json:
        show_json(report)
        return
    show(_table(report))
    show(f"Pictures (image, mask, uncertainty, error; before above after): {out}")
    show(f"The project: segdesk {report['project']}")


def _table(report: dict[str, Any]) -> str:
    lines = [f"{'Dice':<38}{'before':>8}{'after':>8}"]
    titles = {
        "stained": "stained, not learnt from",
        "fluorescence": "fluorescence, known before",
    }
    for kind, title in titles.items():
        before, after = report["before"][kind], report["after"][kind]
        title = f"{title} ({before['n']} images)"
        lines.append(f"{title:<38}{before['dice']:>8.3f}{after['dice']:>8.3f}")
    lines.append(
        f"{report['corrected']} corrected images, {report['seconds']:.0f} s in all; "
        f"the new model is {report['model_after']}."
    )
    return "\n".join(lines)

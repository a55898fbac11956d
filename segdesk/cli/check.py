"""What ``segdesk train`` looks at before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segdesk.cli.console import Meter, meter, say, show, show_json
from segdesk.config.training import TrainingConfig
from segdesk.core.errors import InputError
from segdesk.core.finding import Finding, FindingKind, Severity
from segdesk.io.store import ProjectStore
from segdesk.session.preflight import examine, words
from segdesk.session.training import NewModel, find_start


def check_only(
    project: Path,
    config: TrainingConfig,
    model: str | None,
    new: NewModel | None,
    *,
    as_json: bool,
) -> None:
    """Show what there is to say before a run, and start none.

    Raises
    ------
    InputError
        The run would fail.
    """
    with ProjectStore.open(project, read_only=True) as store, meter("Looking") as progress:
        findings = _examine(store, config, model, new, progress)
    if as_json:
        show_json([_plain(finding) for finding in findings])
    else:
        for line in words(findings):
            show(line)
        if not findings:
            show("Nothing stands in the way of fine-tuning.")
    if stops := _stops(findings):
        things = "one thing" if len(stops) == 1 else f"{len(stops)} things"
        raise InputError(f"Fine-tuning would fail; there is {things} to mend first.")


def check_first(
    store: ProjectStore,
    config: TrainingConfig,
    model: str | None,
    new: NewModel | None,
    *,
    as_json: bool,
) -> None:
    """Warn of what would mislead, and refuse what would fail, before anything is written.

    Raises
    ------
    InputError
        The run would fail; the first reason.
    """
    _require_settings(store, config, model, new)  # known before a file is read
    with meter("Looking") as progress:
        findings = examine(store, config, model, new, progress)
    stops = _stops(findings)
    if not as_json:
        # The first reason is what the command ends with.
        shown = [f for f in findings if f.severity is not Severity.NOTE and f not in stops[:1]]
        for line in words(shown):
            say(line)
    if not stops:
        return
    if as_json:
        show_json(
            {
                "run": None,
                "state": "failed",
                "model": None,
                "reason": stops[0].text,
                "before": None,
                "after": None,
                "verdict": None,
                "findings": [_plain(finding) for finding in findings],
            }
        )
    raise InputError(stops[0].text)


def _examine(
    store: ProjectStore,
    config: TrainingConfig,
    model: str | None,
    new: NewModel | None,
    progress: Meter,
) -> list[Finding]:
    """Look at the project, and at the settings, which takes torch."""
    findings = examine(store, config, model, new, progress)
    try:
        _require_settings(store, config, model, new)
    except InputError as error:
        if not any(finding.text == error.message for finding in findings):
            findings.insert(0, Finding(FindingKind.SETTINGS, Severity.STOP, error.message))
    return findings


def _require_settings(
    store: ProjectStore, config: TrainingConfig, model: str | None, new: NewModel | None
) -> None:
    from segdesk.training.settings import require_settings

    if new is not None:
        require_settings(config, new.architecture, None, new.config.encoder_weights)
    else:
        card = find_start(store, model).card
        require_settings(config, card.architecture, card)


def _stops(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity is Severity.STOP]


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "kind": str(finding.kind),
        "severity": str(finding.severity),
        "text": finding.text,
        "sample": finding.sample,
        "place": finding.place,
    }

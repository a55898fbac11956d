"""``segdesk settings``: every setting that ``--set`` takes, from where it is declared."""

from __future__ import annotations

from enum import Enum
from typing import Any

import annotated_types
import typer
from pydantic.fields import FieldInfo

from segdesk.cli.console import show, show_json
from segdesk.config.inference import InferenceConfig
from segdesk.config.knobs import Knobs, extra
from segdesk.config.model import NewModelConfig
from segdesk.config.refinement import CrfConfig
from segdesk.config.training import TrainingConfig
from segdesk.core.errors import InputError

_SETS: dict[str, type[Knobs]] = {
    "train": TrainingConfig,
    "predict": InferenceConfig,
    "refine": CrfConfig,
    "new-model": NewModelConfig,
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("settings")(settings)


def settings(
    command: str = typer.Argument("train", help="train, predict, refine or new-model."),
    as_json: bool = typer.Option(False, "--json", help="Report as JSON."),
) -> None:
    """List the settings of a command, as --set (and --option for new-model) takes them."""
    if command not in _SETS:
        raise InputError(f"There are no settings of {command!r}; there are: {', '.join(_SETS)}.")
    rows = [_row(name, field) for name, field in _SETS[command].model_fields.items()]
    if as_json:
        show_json(rows)
        return
    for row in rows:
        limits = f"  [{row['limits']}]" if row["limits"] else ""
        show(f"{row['name']}={row['default']}{limits}")
        show(f"    {row['description']}")


def _row(name: str, field: FieldInfo) -> dict[str, Any]:
    default = field.default.value if isinstance(field.default, Enum) else field.default
    unit = extra(field).get("unit", "")
    return {
        "name": name,
        "default": default,
        "limits": " ".join(part for part in (_limits(field), unit) if part),
        "description": field.description or field.title or "",
    }


def _limits(field: FieldInfo) -> str:
    """Say what values it takes: choices, or from where to where."""
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(str(choice.value) for choice in kind)
    said = []
    for mark in field.metadata:
        if isinstance(mark, annotated_types.Ge):
            said.append(f"from {mark.ge}")
        elif isinstance(mark, annotated_types.Gt):
            said.append(f"above {mark.gt}")
        elif isinstance(mark, annotated_types.Le):
            said.append(f"to {mark.le}")
        elif isinstance(mark, annotated_types.Lt):
            said.append(f"below {mark.lt}")
        elif isinstance(mark, annotated_types.MultipleOf):
            said.append(f"in steps of {mark.multiple_of}")
    return " ".join(said)

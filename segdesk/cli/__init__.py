"""The command line: ``segdesk COMMAND ...``; without a command, the desktop app.

Exit codes: 0 done; 2 the user's input cannot be used; 1 a fault of ours.
"""

from __future__ import annotations

import sys
import traceback

import typer

from segdesk import __version__
from segdesk.cli import (
    demo,
    desktop,
    doctor,
    models,
    predict,
    projects,
    refine,
    rounds,
    settings,
    train,
    trust,
)
from segdesk.core.errors import InputError, SegDeskError
from segdesk.jobs.child import share_processor

app = typer.Typer(
    name="segdesk",
    help="Segment images, correct the masks, and fine-tune the model on them.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (
    desktop,
    demo,
    projects,
    predict,
    refine,
    train,
    rounds,
    settings,
    trust,
    models,
    doctor,
):
    module.register(app)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"segdesk {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Segment images, correct the masks, and fine-tune the model on them."""
    del version


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    share_processor()
    commands = {command.name for command in app.registered_commands} | {
        group.name for group in app.registered_groups
    }
    is_bare = not arguments or (not arguments[0].startswith("-") and arguments[0] not in commands)
    if is_bare:
        if arguments and not desktop.looks_like_project(arguments[0]):
            return _complain(desktop.unknown_command(arguments[0], commands))
        arguments = ["app", *arguments]
    try:
        result = app(arguments, standalone_mode=False)
    except InputError as error:
        return _complain(error.message)
    except SegDeskError as error:
        _complain(error.message)
        return 1
    except (typer.Abort, KeyboardInterrupt):
        _complain("Stopped.")
        return 130
    except Exception as error:  # noqa: BLE001  the command line's boundary
        return _fault(error)
    return result if isinstance(result, int) else 0


def _fault(error: Exception) -> int:
    # click's own errors (a missing argument) know how to say what is wrong.
    show = getattr(error, "format_message", None)
    if show is not None:
        return _complain(str(show()))
    traceback.print_exception(error)
    _complain(f"SegDesk failed ({type(error).__name__}: {error}); this is a fault of ours.")
    return 1


def _complain(text: str) -> int:
    sys.stderr.write(text.rstrip() + "\n")
    return 2

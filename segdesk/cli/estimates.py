"""``segdesk train --estimate``: what each recipe would take on this machine."""

from __future__ import annotations

from segdesk.cli.console import show, show_json
from segdesk.config.training import TrainingConfig
from segdesk.core.errors import InputError
from segdesk.core.run import RunState
from segdesk.core.words import duration
from segdesk.jobs.messages import AnyEvent, Estimated, Finished
from segdesk.session.session import Session
from segdesk.session.training import estimate


def tell_estimates(
    session: Session, config: TrainingConfig, model: str | None, *, as_json: bool
) -> None:
    """Time a first step of each recipe and print what a run would take.

    Raises
    ------
    InputError
        There is no model to start from, or no memory for a step.
    """
    from segdesk.training.inline import InlineBackend

    found: dict[str, dict[str, float]] = {}
    failures: list[str] = []

    def on_event(event: AnyEvent) -> None:
        if isinstance(event, Estimated):
            found[str(event.recipe)] = {
                "seconds": round(event.seconds, 1),
                "memory_bytes": event.memory_bytes,
            }
        elif isinstance(event, Finished) and event.state is not RunState.COMPLETED:
            failures.append(event.reason)

    session.attach(InlineBackend(on_event))
    estimate(session, config, model)
    if failures:
        raise InputError(failures[0])
    if as_json:
        show_json(found)
        return
    for recipe, cost in found.items():
        memory = cost["memory_bytes"] / 2**30
        show(f"{recipe:<10} about {duration(cost['seconds'])}, {memory:.1f} GiB of memory")

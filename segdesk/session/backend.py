"""What does the computing: worker processes or this very process."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from segdesk.jobs.messages import EstimateOrder, PredictOrder, RefineOrder, VaryOrder, View


class Backend(Protocol):
    """Takes orders; its events reach :meth:`Session.handle` on the session's thread.

    Two implementations, chosen by whoever starts the session:
    ``segdesk.session.workers.WorkerBackend`` (window, plugin) and
    ``segdesk.training.inline.InlineBackend`` (command line, tests).
    """

    def predict(self, order: PredictOrder) -> None:
        """Predict one image."""
        ...

    def refine(self, order: RefineOrder) -> None:
        """Refine the prediction of one image."""
        ...

    def train(self, run_id: str, folder: Path) -> None:
        """Start the fine-tuning run in ``folder``."""
        ...

    def prepare(self, order: EstimateOrder | VaryOrder) -> None:
        """Answer what a user wants to know before a run."""
        ...

    def pause(self, run_id: str, is_paused: bool) -> None:
        """Let a run wait before its next step, or go on."""
        ...

    def kill(self, run_id: str) -> None:
        """End a run at once; its ``Finished`` follows."""
        ...

    def leave(self, run_id: str) -> None:
        """Let a run go on when the backend is closed."""
        ...

    def follow(self, run_id: str, folder: Path) -> None:
        """Listen again to a run that went on without us; its events come from the first."""
        ...

    def look(self, job: str, view: View) -> None:
        """Say where the user of a prediction's image is looking now."""
        ...

    def give_way(self, seconds: float) -> None:
        """Say that the user paints: no tile is begun for so long, or until this comes again."""
        ...

    def cancel(self, job: str) -> None:
        """Ask for a job's end; its ``Finished`` follows."""
        ...

    def close(self) -> None:
        """End everything that runs."""
        ...

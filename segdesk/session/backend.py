"""What does the computing: worker processes or this very process."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from segdesk.jobs.messages import PredictOrder, RefineOrder, View


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

    def look(self, job: str, view: View) -> None:
        """Say where the user of a prediction's image is looking now."""
        ...

    def cancel(self, job: str) -> None:
        """Ask for a job's end; its ``Finished`` follows."""
        ...

    def close(self) -> None:
        """End everything that runs."""
        ...

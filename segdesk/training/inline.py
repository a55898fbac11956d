"""The backend of the command line: everything in this very process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segdesk.config.inference import InferenceConfig
from segdesk.core.errors import InputError
from segdesk.core.manifest import ManifestSample
from segdesk.inference.engine import Engine
from segdesk.inference.predictor import Predictor
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.control import RunControl
from segdesk.jobs.heap import keep_freed_memory
from segdesk.jobs.messages import (
    AnyEvent,
    EstimateOrder,
    PredictOrder,
    RefineOrder,
    VaryOrder,
    View,
)
from segdesk.nn.device import pick_device
from segdesk.nn.weights import load_model
from segdesk.training.dataset import load_sample
from segdesk.training.evaluate import Judge
from segdesk.training.prepare import answer
from segdesk.training.run import run_folder


class InlineBackend:
    """Answers every order before it returns.

    Parameters
    ----------
    on_event
        Called with every event, on the caller's thread.
    """

    def __init__(self, on_event: Callable[[AnyEvent], None]) -> None:
        keep_freed_memory()
        self._on_event = on_event
        self._engine = Engine(on_event)
        self._control = RunControl()

    def predict(self, order: PredictOrder) -> None:
        """Predict now."""
        self._on_event(self._engine.answer(order))

    def refine(self, order: RefineOrder) -> None:
        """Refine now."""
        self._on_event(self._engine.answer(order))

    def train(self, run_id: str, folder: Path) -> None:
        """Fine-tune now."""
        del run_id
        self._control = RunControl()  # a run that was stopped must not stop the next
        run_folder(folder, self._on_event, self._control)

    def prepare(self, order: EstimateOrder | VaryOrder) -> None:
        """Answer now."""
        answer(order, self._on_event, CancelToken())

    def pause(self, run_id: str, is_paused: bool) -> None:
        """Let a run wait, or go on (from another thread)."""
        del run_id
        self._control.pause(is_paused)

    def kill(self, run_id: str) -> None:
        """End a run at its next step: it is part of this process."""
        self.cancel(run_id)

    def leave(self, run_id: str) -> None:
        """Nothing goes on without this process."""

    def follow(self, run_id: str, folder: Path) -> None:
        """Refuse: a command does not wait for what another program began."""
        raise InputError(
            f"The fine-tuning run {run_id} of this project goes on in the background; wait for its "
            "end, or open the project in the app and stop it there."
        )

    def give_way(self, seconds: float) -> None:
        """Do nothing: nobody paints."""

    def look(self, job: str, view: View) -> None:
        """Nobody is looking."""

    def cancel(self, job: str) -> None:
        """Ask the run to end at its next step (from a signal handler)."""
        del job
        self._control.cancel()

    def close(self) -> None:
        """Nothing is left running."""


def evaluate_model(
    folder: Path,
    samples: Sequence[ManifestSample],
    config: InferenceConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    instances: bool = False,
) -> dict[str, Any]:
    """Score a model package on labelled images.

    Returns
    -------
    dict
        As :meth:`segdesk.training.evaluate.Judge.score`.
    """
    loaded = load_model(folder)
    predictor = Predictor(loaded, pick_device(config.device).device)
    items = [item for sample in samples for item in load_sample(sample, loaded.card, 1.0)]
    judge = Judge(tuple(items), loaded.card.classes, loaded.card.normalization)
    return judge.score(predictor, config, progress=progress, instances=instances)

"""The backend of the command line: everything in this very process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segdesk.config.inference import InferenceConfig
from segdesk.core.manifest import ManifestSample
from segdesk.inference.engine import Engine
from segdesk.inference.predictor import Predictor
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.messages import AnyEvent, PredictOrder, RefineOrder, View
from segdesk.nn.device import pick_device
from segdesk.nn.weights import load_model
from segdesk.training.dataset import load_sample
from segdesk.training.evaluate import Judge
from segdesk.training.run import run_folder


class InlineBackend:
    """Answers every order before it returns.

    Parameters
    ----------
    on_event
        Called with every event, on the caller's thread.
    """

    def __init__(self, on_event: Callable[[AnyEvent], None]) -> None:
        self._on_event = on_event
        self._engine = Engine(on_event)
        self._token = CancelToken()

    def predict(self, order: PredictOrder) -> None:
        """Predict now."""
        self._on_event(self._engine.answer(order))

    def refine(self, order: RefineOrder) -> None:
        """Refine now."""
        self._on_event(self._engine.answer(order))

    def train(self, run_id: str, folder: Path) -> None:
        """Fine-tune now."""
        del run_id
        self._token = CancelToken()  # a run that was stopped must not stop the next
        run_folder(folder, self._on_event, self._token)

    def look(self, job: str, view: View) -> None:
        """Nobody is looking."""

    def cancel(self, job: str) -> None:
        """Ask the run to end at its next step (from a signal handler)."""
        del job
        self._token.cancel()

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

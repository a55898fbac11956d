"""Judging a model on labelled images with the predictor that users see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segdesk.config.inference import InferenceConfig
from segdesk.core.card import Normalization
from segdesk.inference.normalize import standardize
from segdesk.inference.predictor import Predictor
from segdesk.jobs.cancel import CancelToken
from segdesk.training.dataset import Item
from segdesk.training.instances import ObjectScores
from segdesk.training.metrics import confusion, summarize

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class Judge:
    """Labelled planes on which models are compared; the same for all of them.

    Planes of one image (a stack) are judged as one image.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    normalization: Normalization

    def score(
        self,
        predictor: Predictor,
        config: InferenceConfig,
        token: CancelToken | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        *,
        instances: bool = False,
        seen: Callable[[Item, npt.NDArray[np.uint8]], None] = lambda item, labels: None,
    ) -> dict[str, Any]:
        """Return the scores of a model (see :func:`segdesk.training.metrics.summarize`).

        With ``instances``, ``objects`` holds what
        :meth:`segdesk.training.instances.ObjectScores.summary` returns; planes of a
        stack are images of their own there. ``seen`` is called with every plane and the
        labels found in it, uint8 (Y, X).
        """
        matrices: dict[str, npt.NDArray[np.int64]] = {}
        objects = ObjectScores(self.classes)
        for done, item in enumerate(self.items):
            progress(done, len(self.items))
            predicted = predict_item(item, predictor, self.normalization, config, token)
            seen(item, predicted)
            matrix = confusion(item.labels, predicted, len(self.classes), item.weights > 0)
            matrices[item.name] = matrices.get(item.name, 0) + matrix
            if instances:
                objects.add(item.labels, predicted, item.weights > 0)
        progress(len(self.items), len(self.items))
        scores = summarize(list(matrices.values()), self.classes, list(matrices))
        return {**scores, "objects": objects.summary()} if instances else scores


def predict_item(
    item: Item,
    predictor: Predictor,
    normalization: Normalization,
    config: InferenceConfig,
    token: CancelToken | None = None,
) -> npt.NDArray[np.uint8]:
    """Return the labels that a model finds in a plane, uint8 (Y, X)."""
    plane = standardize(item.image, normalization)
    maps = predictor.predict_plane(plane, config, token)
    labels: npt.NDArray[np.uint8] = maps.argmax(0).astype(np.uint8)
    return labels

"""What the kinds of uncertainty ask of a project: further models, time, and places to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segdesk.config.inference import InferenceConfig
from segdesk.core.errors import InputError
from segdesk.core.prediction import UncertaintyKind
from segdesk.core.sample import Sample
from segdesk.io.labels import write_plane
from segdesk.jobs.messages import PredictOrder
from segdesk.session.models import find_model, use_model
from segdesk.session.predicting import (
    cost,
    current_prediction,
    find_companions,
    read_provenance,
    request,
    uncertainty_kind,
)
from segdesk.session.projects import NewImage, add_images
from segdesk.session.reviewing import next_region, regions
from segdesk.session.session import Session
from segdesk.training.inline import InlineBackend

MakeModel = Callable[..., Path]
ENSEMBLE = InferenceConfig(uncertainty=UncertaintyKind.ENSEMBLE)

pytestmark = pytest.mark.usefixtures("one_thread")


class Collector:
    """A backend that never answers: what was ordered is looked at."""

    def __init__(self) -> None:
        self.orders: list[PredictOrder] = []

    def predict(self, order: PredictOrder) -> None:
        self.orders.append(order)

    def train(self, run_id: str, folder: Path) -> None:
        raise AssertionError

    def cancel(self, job: str) -> None:
        raise AssertionError

    def close(self) -> None:
        """Nothing runs."""


@pytest.fixture
def models(session: Session, make_model: MakeModel) -> Path:
    """Use tiny, which has two rounds; returns the folder of the project's models."""
    folder = session.store.folder / "models"
    for seed, name in enumerate(("tiny", "tiny-r1", "tiny-r2")):
        make_model(folder / name, seed=seed)
    use_model(session, "tiny")
    return folder


@pytest.fixture
def samples(session: Session, disc_files: Callable[..., list[Path]]) -> list[Sample]:
    return add_images(session, [NewImage(path) for path in disc_files(3)]).samples


def named(names: str) -> InferenceConfig:
    return ENSEMBLE.model_copy(update={"companions": names})


def test_an_ensemble_takes_the_models_that_are_named_else_the_other_rounds(
    session: Session, models: Path, samples: list[Sample], make_model: MakeModel
) -> None:
    backend = Collector()
    session.attach(backend)
    make_model(models / "other", seed=9)
    request(session, samples[:1], ENSEMBLE)
    request(session, samples[:1], named(" other ,tiny-r1"))
    request(session, samples[:1], InferenceConfig(companions="nonsense"))
    told = [([p.name for p in o.companions], o.config.companions) for o in backend.orders]
    assert told == [
        (["tiny-r1", "tiny-r2"], "tiny-r1,tiny-r2"),
        (["other", "tiny-r1"], "other,tiny-r1"),
        ([], "nonsense"),
    ]


def test_a_companion_that_does_not_go_with_the_model_is_refused(
    session: Session, models: Path, make_model: MakeModel
) -> None:
    make_model(models / "sky", classes=("background", "sky"))
    make_model(models / "colour", channels=3)
    tiny = find_model("tiny", session.store)
    for names, says in (
        ("sky", "companion 'sky' knows background, sky, but 'tiny' knows background, nucleus"),
        ("colour", "companion 'colour' takes images of 3 channels, but 'tiny' takes 1"),
        ("tinny-r1", "no model called 'tinny-r1'; did you mean 'tiny-r1'"),
        ("tiny", "'tiny' has no other rounds here; name some under Companions"),
    ):
        with pytest.raises(InputError, match=says):
            find_companions(named(names), tiny, session.store)


def test_rounds_that_learnt_other_classes_are_left_out(
    session: Session, models: Path, make_model: MakeModel
) -> None:
    make_model(models / "tiny-r3", classes=("background", "nucleus", "debris"))
    tiny = find_model("tiny", session.store)
    assert list(find_companions(ENSEMBLE, tiny, session.store)) == ["tiny-r1", "tiny-r2"]


def test_the_cost_is_not_known_before_the_first_prediction_and_then_by_size_and_passes(
    session: Session, models: Path, samples: list[Sample]
) -> None:
    session.attach(InlineBackend(session.handle))
    dropout = InferenceConfig(uncertainty=UncertaintyKind.DROPOUT, passes=6)
    before = cost(session, samples, dropout)
    assert (before.passes, before.seconds) == (6, None)
    assert "6 times as long as margin" in before.words
    assert "known after the first prediction" in before.words
    request(session, samples[:1], InferenceConfig())
    prediction = current_prediction(session, samples[0].id)
    assert prediction is not None
    took = read_provenance(prediction)["seconds"]
    assert cost(session, samples[1:2], InferenceConfig()).seconds == pytest.approx(took)
    assert cost(session, samples, dropout).seconds == pytest.approx(took * 3 * 6)
    assert cost(session, samples, ENSEMBLE).passes == 3
    assert "3 images, 6 passes each" in cost(session, samples, dropout).words
    # Another device is another speed, and another model too.
    assert cost(session, samples, InferenceConfig(device="cpu")).seconds is None
    assert cost(session, samples, InferenceConfig(), "tiny-r1").seconds is None


def test_a_prediction_with_as_many_passes_tells_best(
    session: Session, models: Path, samples: list[Sample]
) -> None:
    session.attach(InlineBackend(session.handle))
    request(session, samples[:2], InferenceConfig())
    prediction = current_prediction(session, samples[0].id)
    assert prediction is not None
    file = prediction.folder / "provenance.json"
    made = json.loads(file.read_text("utf-8"))
    made["config"] |= {"uncertainty": "augmentation"}
    file.write_text(json.dumps(made | {"seconds": 80.0}), "utf-8")
    turned = InferenceConfig(uncertainty=UncertaintyKind.AUGMENTATION)
    assert cost(session, samples[2:], turned).seconds == pytest.approx(80.0)
    assert cost(session, samples[2:], InferenceConfig()).seconds != pytest.approx(10.0)
    assert uncertainty_kind(prediction) is UncertaintyKind.AUGMENTATION
    file.write_text("{", "utf-8")
    assert uncertainty_kind(prediction) is UncertaintyKind.MARGIN
    assert cost(session, samples[2:], turned).seconds is not None


def test_places_are_gone_through_and_begin_again(
    session: Session, models: Path, samples: list[Sample]
) -> None:
    sample = samples[0]
    assert next_region(session, sample) is None
    session.attach(InlineBackend(session.handle))
    request(session, [sample], InferenceConfig())
    prediction = current_prediction(session, sample.id)
    assert prediction is not None
    plane = np.zeros((256, 256), np.float32)
    plane[20:40, 20:40], plane[200:220, 100:120] = 0.9, 0.5
    write_plane(prediction.uncertainty_path, plane)
    (prediction.folder / "regions.json").unlink()
    first = next_region(session, sample)
    assert first is not None
    assert first.y <= 20 < first.y + first.height
    second = next_region(session, sample, first)
    assert second is not None
    assert second.y <= 200 < second.y + second.height
    assert next_region(session, sample, second) == first
    # What was written beside the prediction is taken as it is.
    entries = [second.as_dict(), first.as_dict()]
    (prediction.folder / "regions.json").write_text(json.dumps(entries), "utf-8")
    assert regions(session, sample) == [second, first]
    (prediction.folder / "regions.json").write_text("[{}]", "utf-8")
    assert regions(session, sample) == [first, second]

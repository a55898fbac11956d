"""Which model is in use, and the runs that make new ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from segdesk.config.inference import InferenceConfig
from segdesk.config.refinement import CrfConfig
from segdesk.config.training import TrainingConfig
from segdesk.core.errors import InputError
from segdesk.core.run import Run, RunState
from segdesk.core.sample import Split, Status
from segdesk.jobs.messages import AnyEvent, Finished
from segdesk.session import refining
from segdesk.session.comparing import compare
from segdesk.session.correcting import Correction
from segdesk.session.models import (
    current_model,
    find_model,
    go_back,
    list_models,
    next_model_name,
    previous_model,
    use_model,
)
from segdesk.session.predicting import (
    current_prediction,
    read_prediction,
    read_unsure_bytes,
    request,
)
from segdesk.session.projects import NewImage, add_images, match_masks
from segdesk.session.reviewing import next_samples
from segdesk.session.session import Session
from segdesk.session.training import find_runs, start
from segdesk.training.inline import InlineBackend

TINY = TrainingConfig(steps=2, batch_size=2, crop_size=32, evaluate_every=50, device="cpu")
MakeModel = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny(session: Session, make_model: MakeModel) -> str:
    """Put a tiny model into the project and use it."""
    make_model(session.store.folder / "models" / "tiny")
    return use_model(session, "tiny").name


@pytest.fixture
def events(session: Session) -> list[AnyEvent]:
    """Let the session compute in this process; returns what the backend says."""
    heard: list[AnyEvent] = []

    def hear(event: AnyEvent) -> None:
        heard.append(event)
        session.handle(event)

    session.attach(InlineBackend(hear))
    return heard


@pytest.fixture
def labelled(session: Session, disc_files: Callable[..., list[Path]], tmp_path: Path) -> Session:
    add_images(session, match_masks(disc_files(4), tmp_path / "masks"))
    return session


def test_the_shipped_model_fits_a_new_project(session: Session) -> None:
    entry = current_model(session.store)
    assert entry is not None
    assert entry.name == "nuclei-unet"
    assert entry.is_bundled


def test_using_and_going_back(session: Session, make_model: MakeModel) -> None:
    for name in ("a", "b"):
        make_model(session.store.folder / "models" / name)
    said: list[str] = []
    session.events.model_changed.connect(said.append)
    assert previous_model(session.store) is None
    for name in ("a", "b", "b"):
        use_model(session, name)
    assert [go_back(session).name for _ in range(2)] == ["a", "nuclei-unet"]
    with pytest.raises(InputError, match="No other model was in use"):
        go_back(session)
    assert said == ["a", "b", "b", "a", "nuclei-unet"]
    current = current_model(session.store)
    assert current is not None
    assert current.name == "nuclei-unet"


def test_a_mistyped_model_is_guessed(session: Session, tiny: str) -> None:
    with pytest.raises(InputError, match="no model called 'tinny'; did you mean 'tiny'"):
        find_model("tinny", session.store)
    folder = session.store.folder / "models"
    with pytest.raises(InputError, match=r"did you mean '.*tiny'\?$"):
        find_model(str(folder / "tinny"), session.store)


def test_one_damaged_model_does_not_lock_the_project(session: Session, tiny: str) -> None:
    folder = session.store.folder / "models" / "broken"
    folder.mkdir()
    (folder / "card.json").write_text("{", "utf-8")
    assert [e.name for e in list_models(session.store)] == ["nuclei-unet", "tiny"]
    with pytest.raises(InputError, match=r"broken/card.json is not a model card"):
        find_model("broken", session.store)


def test_new_names_count_up_and_are_never_given_twice(session: Session, tiny: str) -> None:
    store = session.store
    assert next_model_name(store, "tiny") == "tiny-r1"
    assert next_model_name(store, "tiny-r7") == "tiny-r1"
    store.put_run(Run("r", store.folder / "runs" / "r", "tiny", RunState.FAILED, "tiny-r1"))
    (store.folder / "models" / "tiny-r2").mkdir()
    assert next_model_name(store, "tiny") == "tiny-r3"


def test_predictions_are_kept_per_model_and_score_the_one_in_use(
    session: Session, tiny: str, make_model: MakeModel, events: list[AnyEvent],
    disc_files: Callable[..., list[Path]],
) -> None:  # fmt: skip
    make_model(session.store.folder / "models" / "other", seed=5)
    samples = add_images(session, [NewImage(p) for p in disc_files(2)]).samples
    assert [s.reason for s in next_samples(session, 2)] == ["not predicted yet"] * 2
    request(session, samples, InferenceConfig(device="cpu"))
    first = [s.score for s in session.store.samples()]
    assert None not in first
    assert {s.status for s in session.store.samples()} == {Status.PREDICTED}
    request(session, samples, InferenceConfig(device="cpu"), "other")
    assert [s.score for s in session.store.samples()] == first
    use_model(session, "other")
    second = [s.score for s in session.store.samples()]
    assert second != first
    prediction = current_prediction(session, samples[0].id)
    assert prediction is not None
    assert prediction.model == "other"
    labels, unsure = read_prediction(prediction, samples[0].shape)
    assert labels.shape == unsure.shape == samples[0].shape
    use_model(session, "tiny")
    assert [s.score for s in session.store.samples()] == first
    assert session.jobs == {}
    worst = max(session.store.samples(), key=lambda s: s.score or 0)
    assert next_samples(session)[0].sample == worst


def test_an_image_held_back_comes_first_while_none_of_them_is_labelled(
    session: Session, tiny: str, events: list[AnyEvent], disc_files: Callable[..., list[Path]]
) -> None:
    paths = disc_files(4)
    splits = (Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.VALIDATION)
    new = [NewImage(path, split=split) for path, split in zip(paths, splits, strict=True)]
    samples = add_images(session, new).samples
    request(session, samples, InferenceConfig(device="cpu"))
    by_score = sorted(session.store.samples(), key=lambda s: s.score or 0, reverse=True)
    assert [s.sample for s in next_samples(session, 4)] == by_score
    Correction(session, samples[0]).accept()
    first, second, third = next_samples(session, 4)
    assert {first.sample.id, second.sample.id} == {samples[2].id, samples[3].id}
    assert (first.sample.score or 0) >= (second.sample.score or 0)
    assert "held back" in first.reason
    assert "held back" not in third.reason
    Correction(session, first.sample).accept()
    assert [s.sample.id for s in next_samples(session, 2)] == [
        s.id for s in by_score if s.id not in (samples[0].id, first.sample.id)
    ]


def test_a_missing_image_is_named_before_anything_starts(
    session: Session, tiny: str, events: list[AnyEvent], disc_files: Callable[..., list[Path]]
) -> None:
    paths = disc_files(2)
    samples = add_images(session, [NewImage(p) for p in paths]).samples
    paths[1].unlink()
    with pytest.raises(InputError, match=r"cell1.png is not there any more"):
        request(session, samples, InferenceConfig())
    assert events == []


def test_a_run_makes_a_model_beside_the_old_one(
    labelled: Session, tiny: str, events: list[AnyEvent]
) -> None:
    states: list[RunState] = []
    labelled.events.run_changed.connect(lambda run: states.append(run.state))
    run = start(labelled, TINY)
    assert run.state is RunState.COMPLETED, run.reason
    assert states == [RunState.QUEUED, RunState.RUNNING, RunState.COMPLETED]
    assert run.new_model == "tiny-r1"
    assert run.before is not None
    assert run.after is not None
    assert run.after["n"] == 1
    assert sum(isinstance(e, Finished) for e in events) == 1
    names = [e.name for e in list_models(labelled.store)]
    assert names == ["nuclei-unet", "tiny", "tiny-r1"]
    current = current_model(labelled.store)
    assert current is not None
    assert current.name == "tiny", "only the user switches"
    new = find_model("tiny-r1", labelled.store)
    assert new.card.base_model == "tiny"
    held = {s.sha256 for s in labelled.store.samples() if s.split is Split.VALIDATION}
    assert len(new.card.trained_ids) == 3
    assert not held & set(new.card.trained_ids)
    use_model(labelled, "tiny-r1")
    request(labelled, labelled.store.samples(), InferenceConfig(device="cpu"))
    assert current_prediction(labelled, labelled.store.samples()[0].id) is not None
    assert start(labelled, TINY).new_model == "tiny-r2"


def test_strokes_are_learnt_from_as_they_stand(
    session: Session, tiny: str, events: list[AnyEvent], disc_files: Callable[..., list[Path]]
) -> None:
    from segdesk.core.manifest import RunManifest
    from segdesk.io.labels import read_labels

    (sample,) = add_images(session, [NewImage(p) for p in disc_files(1)]).samples
    correction = Correction(session, sample)
    correction.stroke((2, 3), np.ones((4, 5), np.uint8), "paint")
    run = start(session, TINY)
    assert run.state is RunState.COMPLETED, run.reason
    text = (run.folder / "manifest.json").read_text("utf-8")
    (listed,) = RunManifest.model_validate_json(text).samples
    labels, supervision = read_labels(listed.labels)
    assert labels.sum() == 20
    assert (supervision > 0).sum() == 20
    # And painting goes on where it was.
    correction.stroke((20, 20), np.ones((4, 5), np.uint8), "paint")
    assert Correction(session, sample).annotation.labels.sum() == 40


def test_nothing_labelled_is_said_before_a_run_exists(
    session: Session, tiny: str, events: list[AnyEvent], disc_files: Callable[..., list[Path]]
) -> None:
    add_images(session, [NewImage(p) for p in disc_files(3)])
    with pytest.raises(InputError, match="There is nothing to learn from yet"):
        start(session, TINY)
    assert session.store.runs() == []
    assert not (session.store.folder / "runs").exists()


def test_only_held_back_images_labelled_is_said(
    session: Session, tiny: str, events: list[AnyEvent], disc_files: Callable[..., list[Path]]
) -> None:
    samples = add_images(session, [NewImage(p) for p in disc_files(5)]).samples
    Correction(session, next(s for s in samples if s.split is Split.VALIDATION)).accept()
    with pytest.raises(InputError, match="The 1 labelled so far are held back"):
        start(session, TINY)


def test_a_failed_run_leaves_no_model(labelled: Session, tiny: str, events: list[AnyEvent]) -> None:
    for sample in labelled.store.samples():
        sample.path.write_bytes(b"")
    run = start(labelled, TINY)
    assert run.state is RunState.FAILED
    assert "is empty (0 bytes)" in run.reason
    assert [e.name for e in list_models(labelled.store)] == ["nuclei-unet", "tiny"]
    assert next_model_name(labelled.store, "tiny") == "tiny-r2"


def test_runs_a_killed_program_left_behind_are_closed(
    session: Session, reopen: Callable[[], Session]
) -> None:
    folder = session.store.folder / "runs" / "r1"
    session.store.put_run(Run("r1", folder, "tiny", RunState.RUNNING, "tiny-r1"))
    session.store.put_run(Run("r0", folder, "tiny", RunState.COMPLETED, "tiny-r0"))
    again = reopen()
    said: list[Any] = []
    again.events.run_changed.connect(said.append)
    (closed,) = find_runs(again)
    assert closed.id == "r1"
    assert said == again.store.runs()[:1]
    assert said[0].state is RunState.CRASHED
    assert "go on from its last checkpoint" in said[0].reason
    assert find_runs(again) == []


@pytest.mark.parametrize(("gain", "used"), [(0.3, "tiny-r1"), (0.0, "tiny")])
def test_a_better_model_is_used_by_itself_if_that_was_asked_for(
    session: Session, tiny: str, make_model: MakeModel, gain: float, used: str
) -> None:
    session.promotes_better = True
    run = Run("r", session.store.folder / "runs" / "r", tiny, RunState.RUNNING, "tiny-r1")
    session.put_run(run)
    make_model(run.folder / "model", seed=1)
    before, after = (
        {"dice": dice, "per_image": [{"image": str(n), "dice": dice} for n in range(5)]}
        for dice in (0.5, 0.5 + gain)
    )
    result = {"before": before, "after": after}
    session.handle(Finished(job="r", state=RunState.COMPLETED, result=result))
    current = current_model(session.store)
    assert current is not None
    assert current.name == used
    assert find_model("tiny-r1", session.store).name == "tiny-r1"


def test_a_prediction_that_stayed_zarr_is_shown_and_compared_but_not_refined(
    session: Session,
    tiny: str,
    events: list[AnyEvent],
    disc_files: Callable[..., list[Path]],
) -> None:
    sample = add_images(session, [NewImage(path) for path in disc_files(1)]).samples[0]
    request(session, [sample], InferenceConfig(device="cpu"))
    prediction = current_prediction(session, sample.id)
    assert prediction is not None
    labels, unsure = read_prediction(prediction, sample.shape)
    request(session, [sample], InferenceConfig(device="cpu"), "nuclei-unet")
    before = compare(session.store, tiny, "nuclei-unet", sample.id)
    # As the writer leaves those of more than 64 Mpx: planes first, and no TIFF.
    for name, array in (("labels", labels), ("uncertainty", unsure)):
        zarr.save_array(str(prediction.folder / f"{name}.zarr"), array[None])
        (prediction.folder / f"{name}.tif").unlink()
    again, unsure_again = read_prediction(prediction, sample.shape)
    np.testing.assert_array_equal(again, labels)
    np.testing.assert_array_equal(unsure_again, unsure)
    coarse = np.rint(unsure * 255)
    np.testing.assert_array_equal(read_unsure_bytes(prediction, sample.shape), coarse)
    correction = Correction(session, sample)
    np.testing.assert_array_equal(correction.annotation.labels, labels)
    correction.accept()
    kept = session.store.annotation(sample.id)
    assert kept is not None
    np.testing.assert_array_equal(kept.labels, labels)
    compared = compare(session.store, tiny, "nuclei-unet", sample.id)
    np.testing.assert_array_equal(compared.first, before.first)
    np.testing.assert_array_equal(compared.second, before.second)
    assert compared.row.labelled == labels.size
    assert compared.row.broken == (labels != before.second).sum()
    with pytest.raises(InputError, match="too large for its edges to be refined"):
        refining.request(session, [sample], CrfConfig())

"""What a person paints is there on reopening, stroke by stroke."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segdesk.core.annotation import Supervision
from segdesk.core.classes import ClassMap
from segdesk.core.errors import InputError
from segdesk.core.prediction import Prediction
from segdesk.core.sample import Sample, Status
from segdesk.io.labels import write_plane
from segdesk.io.store import ProjectStore
from segdesk.jobs.messages import PredictionReady
from segdesk.session.correcting import Correction
from segdesk.session.models import find_model, use_model
from segdesk.session.projects import NewImage, add_images, match_masks
from segdesk.session.session import Session

Reopen = Callable[[], Session]
ONE = np.ones((4, 5), np.uint8)


@pytest.fixture
def sample(session: Session, disc_files: Callable[..., list[Path]]) -> Sample:
    return add_images(session, [NewImage(p) for p in disc_files(1)]).samples[0]


def predict(session: Session, sample: Sample, labels: np.ndarray, model: str) -> None:
    """Put a prediction of the model where the engine would, and report it."""
    entry = find_model(model, session.store)
    folder = session.store.folder / "predictions" / sample.id / f"{model}-{labels.sum()}"
    write_plane(folder / "labels.tif", labels)
    write_plane(folder / "uncertainty.tif", np.zeros(labels.shape, np.float32))
    done = Prediction(sample.id, model, folder, 0.25)
    session.handle(
        PredictionReady(job="j", sample=sample.id, model=model, folder=done.folder,
                        weights_sha256=entry.card.weights_sha256, score=done.score)
    )  # fmt: skip


def same(first: Correction, second: Correction) -> None:
    np.testing.assert_array_equal(first.annotation.labels, second.annotation.labels)
    np.testing.assert_array_equal(first.annotation.supervision, second.annotation.supervision)


def test_strokes_undo_and_redo_survive_reopening(
    session: Session, sample: Sample, reopen: Reopen
) -> None:
    correction = Correction(session, sample)
    correction.stroke((2, 3), ONE, "paint")
    correction.stroke((3, 3), 0 * ONE, "erase")
    correction.stroke((20, 20), ONE, "fill")
    assert correction.undo() is not None
    again = Correction(reopen(), sample)
    same(again, correction)
    assert again.annotation.labels.sum() == 5
    assert again.sample.status is Status.CORRECTED
    assert again.redo() is not None
    assert again.redo() is None
    assert again.annotation.labels.sum() == 25
    same(Correction(reopen(), sample), again)


def test_undoing_everything_gives_the_start_and_its_status(
    session: Session, sample: Sample
) -> None:
    correction = Correction(session, sample)
    assert correction.undo() is None
    correction.stroke((2, 3), ONE, "paint")
    assert correction.undo() is not None
    assert correction.undo() is None
    assert not correction.annotation.labels.any()
    assert not correction.annotation.supervision.any()
    assert correction.sample.status is Status.NEW


def test_only_changed_pixels_are_corrected(session: Session, sample: Sample) -> None:
    correction = Correction(session, sample)
    correction.stroke((0, 0), ONE, "paint")
    assert correction.stroke((0, 0), ONE, "paint") is None
    bigger = np.ones((4, 8), np.uint8)
    edit = correction.stroke((0, 0), bigger, "paint")
    assert edit is not None
    assert (correction.annotation.supervision == Supervision.CORRECTED).sum() == 32
    assert correction.undo() is not None
    assert (correction.annotation.supervision == Supervision.CORRECTED).sum() == 20


def test_a_label_outside_the_classes_is_refused_and_nothing_kept(
    session: Session, sample: Sample
) -> None:
    correction = Correction(session, sample)
    with pytest.raises(InputError, match=r"The label 2 is outside this project's classes 0 to 1"):
        correction.stroke((0, 0), 2 * ONE, "paint")
    assert not correction.annotation.labels.any()
    assert session.store.edits(sample.id) == []


def test_acceptance_survives_and_can_be_taken_back(
    session: Session, sample: Sample, reopen: Reopen
) -> None:
    correction = Correction(session, sample)
    correction.stroke((2, 3), ONE, "paint")
    correction.accept()
    again = Correction(reopen(), sample)
    same(again, correction)
    assert again.sample.status is Status.ACCEPTED
    assert again.annotation.supervision.all()
    again.take_back()
    last = Correction(reopen(), sample)
    same(last, again)
    assert last.sample.status is Status.CORRECTED
    assert (last.annotation.supervision > 0).sum() == 20


def test_taking_back_an_imported_mask_says_that_nothing_was_predicted(
    session: Session, disc_files: Callable[..., list[Path]], tmp_path: Path
) -> None:
    paths = disc_files(1)
    (imported,) = add_images(session, match_masks(paths, tmp_path / "masks")).samples
    Correction(session, imported).take_back()
    assert session.store.sample(imported.id).status is Status.NEW


def test_a_new_prediction_keeps_corrected_pixels(
    session: Session, sample: Sample, reopen: Reopen, make_model: Callable[..., Path]
) -> None:
    make_model(session.store.folder / "models" / "first", seed=1)
    use_model(session, "first")
    predict(session, sample, np.zeros(sample.shape, np.uint8), "first")
    correction = Correction(session, sample)
    correction.stroke((2, 3), ONE, "paint")
    correction.stroke((2, 3), 0 * ONE[:2], "erase")
    newer = np.ones(sample.shape, np.uint8)
    predict(session, sample, newer, "first")
    correction.take_prediction(newer)
    assert not correction.annotation.labels[2:4, 3:8].any()
    assert correction.annotation.labels.sum() == newer.size - 10
    same(Correction(reopen(), sample), correction)


def test_a_stroke_older_than_the_prediction_is_undone_to_the_newer_one(
    session: Session, sample: Sample, reopen: Reopen
) -> None:
    """Paint, predict with something better, close; then undo and redo in a new window."""
    predict(session, sample, np.zeros(sample.shape, np.uint8), "nuclei-unet")
    labels = np.zeros((4, 5), np.uint8)
    labels[0] = 1
    Correction(session, sample).stroke((2, 3), labels, "paint")
    predict(session, sample, np.ones(sample.shape, np.uint8), "nuclei-unet")
    again = Correction(reopen(), sample)
    assert again.undo() is not None
    assert again.annotation.labels.all()
    same(Correction(reopen(), sample), again)
    again = Correction(reopen(), sample)
    assert again.redo() is not None
    assert again.annotation.labels.all()
    assert (again.annotation.supervision > 0).sum() == 5
    same(Correction(reopen(), sample), again)


strokes = st.tuples(st.just("stroke"), st.integers(0, 50), st.integers(0, 50), st.integers(0, 1))
steps = st.lists(
    st.one_of(
        strokes, strokes, st.tuples(st.sampled_from(["undo", "redo", "accept", "take_back"])),
        st.tuples(st.just("predict"), st.integers(0, 3)),
    ),
    max_size=8,
)  # fmt: skip


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
def test_reopening_shows_what_was_on_screen_whatever_was_done(
    tmp_path_factory: pytest.TempPathFactory,
    two_classes: ClassMap,
    disc_files: Callable[..., list[Path]],
    steps: list[tuple],
) -> None:
    folder = tmp_path_factory.mktemp("any") / "p"
    session = Session(ProjectStore.create(folder, two_classes))
    try:
        (sample,) = add_images(session, [NewImage(p) for p in disc_files(1)]).samples
        correction = Correction(session, sample)
        for step, *values in steps:
            if step == "stroke":
                y, x, value = values
                correction.stroke((y, x), np.full((9, 11), value, np.uint8), "paint")
            elif step == "predict":
                labels = np.random.default_rng(values[0]).integers(0, 2, sample.shape)
                predict(session, sample, labels.astype(np.uint8), "nuclei-unet")
                correction.take_prediction(labels.astype(np.uint8))
            else:
                getattr(correction, step)()
            session.close()
            session = Session(ProjectStore.open(folder))
            again = Correction(session, sample)
            same(again, correction)
            # Half of the time go on with the one reopened.
            if len(steps) % 2 == 0:
                correction = again
            else:
                correction._session = session  # noqa: SLF001  the same window goes on
    finally:
        session.close()


def test_an_acceptance_whose_revision_is_not_written_yet_is_on_disk(
    session: Session, sample: Sample
) -> None:
    correction = Correction(session, sample)
    stroke = np.ones((4, 4), np.uint8)
    correction.stroke((2, 2), stroke, "paint")
    write = correction.accept_soon()
    # As another process reads it, or this one after it was killed here.
    with ProjectStore.open(session.store.folder, read_only=True) as store:
        assert store.sample(sample.id).status is Status.ACCEPTED
        kept = store.annotation(sample.id)
        assert kept is not None
        assert (kept.supervision != Supervision.UNSEEN).all()
        assert (kept.supervision[2:6, 2:6] == Supervision.CORRECTED).all()
    correction.undo()
    correction.stroke((20, 20), stroke, "paint")
    same(correction, Correction(session, sample))
    assert not write()()  # that is not what was painted since
    same(correction, Correction(session, sample))
    assert correction.accept_soon()()()
    same(correction, Correction(session, sample))
    assert correction.annotation.labels[20, 20] == 1
    correction.take_back()
    again = Correction(session, sample)
    same(correction, again)
    assert again.annotation.supervision[0, 0] == Supervision.UNSEEN


def test_what_is_painted_in_another_correction_meanwhile_is_not_merged_away(
    session: Session, sample: Sample
) -> None:
    first = Correction(session, sample)
    write = first.accept_soon()()
    second = Correction(session, sample)
    second.stroke((2, 2), np.ones((4, 4), np.uint8), "paint")
    assert not write()
    kept = session.store.annotation(sample.id)
    assert kept is not None
    assert kept.labels[2:6, 2:6].all()


def test_the_same_prediction_again_leaves_what_can_be_undone(
    session: Session, sample: Sample
) -> None:
    correction = Correction(session, sample)
    correction.stroke((2, 2), np.ones((4, 4), np.uint8), "paint")
    correction.take_prediction(np.zeros(sample.shape, np.uint8))
    correction.stroke((20, 20), np.ones((4, 4), np.uint8), "paint")
    assert session.store.edit_counts(sample.id) == (2, 0)

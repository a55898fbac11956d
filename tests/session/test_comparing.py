"""Two models on the same images: what was fixed and broken, and the command that lists it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdesk.cli import run
from segdesk.core.errors import CanceledError, InputError
from segdesk.core.prediction import Prediction
from segdesk.core.sample import Split
from segdesk.io.labels import read_plane, write_plane
from segdesk.io.packages import hash_weights
from segdesk.jobs.cancel import CancelToken
from segdesk.session.comparing import compare, find_missing, rank, suggest
from segdesk.session.correcting import Correction
from segdesk.session.models import find_model, use_model
from segdesk.session.projects import NewImage, add_images
from segdesk.session.session import Session

#: Of a row of eight pixels: what is true, and what two models say.
TRUTH = [0, 0, 0, 0, 1, 1, 1, 1]
FIRST = [0, 0, 1, 1, 0, 1, 0, 1]
SECOND = [0, 1, 0, 1, 1, 1, 0, 0]
#: Nothing, broken, fixed, still wrong, fixed, nothing, still wrong, broken.
CHANGES = [0, 2, 1, 3, 1, 0, 3, 2]

Put = Callable[[str, str, Sequence[int]], None]


@pytest.fixture
def put(session: Session, make_model: Callable[..., Path]) -> Put:
    """Two models in the project; stores what one of them says of an image, row by row alike."""
    for seed, name in enumerate(("tiny", "tiny-r1")):
        make_model(session.store.folder / "models" / name, seed=seed)

    def store(model: str, sample: str, row: Sequence[int]) -> None:
        weights = hash_weights(find_model(model, session.store).folder)
        folder = session.store.folder / "predictions" / sample / f"{model}-{weights[:8]}"
        folder.mkdir(parents=True)
        prediction = Prediction(sample, model, folder, 0.1)
        write_plane(prediction.labels_path, np.array([row] * 8, np.uint8))
        session.store.record_prediction(prediction, weights)

    return store


def test_a_large_image_is_compared_as_a_small_one(
    session: Session, put: Put, tmp_path: Path
) -> None:
    """It is gone through band by band; nothing is lost or counted twice between two."""
    side = 3000
    random = np.random.default_rng(0)
    truth, *masks = random.integers(0, 2, (3, side, side), np.uint8)
    Image.fromarray(truth).save(tmp_path / "large.png")
    (sample,) = add_images(session, [NewImage(tmp_path / "large.png", split=Split.TRAIN)]).samples
    correction = Correction(session, sample)
    spoken = random.integers(0, 2, truth.shape).astype(bool)
    correction.stroke((0, 0), np.where(spoken, truth, 0).astype(np.uint8), "truth", spoken)
    for model, mask in zip(("tiny", "tiny-r1"), masks, strict=True):
        put(model, sample.id, [0])
        weights = hash_weights(find_model(model, session.store).folder)
        prediction = session.store.prediction(sample.id, model, weights)
        assert prediction is not None
        write_plane(prediction.labels_path, mask)
    found = compare(session.store, "tiny", "tiny-r1", sample.id)
    for shown, mask in zip((found.first, found.second), masks, strict=True):
        np.testing.assert_array_equal(shown, mask)
    first, second = (mask == truth for mask in masks)
    assert found.row.labelled == spoken.sum()
    assert found.row.fixed == (spoken & ~first & second).sum() == (found.changes == 1).sum()
    assert found.row.broken == (spoken & first & ~second).sum() == (found.changes == 2).sum()
    assert found.row.still_wrong == (spoken & ~first & ~second).sum()
    assert found.row.dice is not None
    for dice, mask in zip(found.row.dice, masks, strict=True):
        both = (mask & truth)[spoken].sum()
        assert dice == pytest.approx(2 * both / (mask[spoken].sum() + truth[spoken].sum()))


def add(session: Session, folder: Path, name: str, truth: Sequence[int] | None) -> str:
    path = folder / f"{name}.png"
    Image.fromarray(np.full((8, 8), sum(name.encode()) % 256, np.uint8)).save(path)
    (sample,) = add_images(session, [NewImage(path, split=Split.TRAIN)]).samples
    if truth is not None:
        correction = Correction(session, sample)
        correction.replace(np.array([truth] * 8, np.uint8), "truth")
        correction.accept()
    return sample.id


def test_each_pixel_is_fixed_broken_or_still_wrong(
    session: Session, put: Put, tmp_path: Path
) -> None:
    sample = add(session, tmp_path, "a", TRUTH)
    put("tiny", sample, FIRST)
    put("tiny-r1", sample, SECOND)
    found = compare(session.store, "tiny", "tiny-r1", sample)
    assert found.changes.dtype == np.uint8
    assert found.changes.tolist() == [CHANGES] * 8
    row = found.row
    assert (row.labelled, row.fixed, row.broken, row.still_wrong) == (64, 16, 16, 16)
    # By hand: 2 hit of 4 true and 4 said, then 2 of 4 and 4.
    assert row.dice == (0.5, 0.5)
    back = compare(session.store, "tiny-r1", "tiny", sample)
    assert back.changes.tolist() == [[0, 1, 2, 3, 2, 0, 3, 1]] * 8


def test_a_prediction_at_a_coarser_level_is_not_set_against_a_finer_one(
    session: Session, put: Put, tmp_path: Path
) -> None:
    sample = add(session, tmp_path, "a", TRUTH)
    put("tiny", sample, FIRST)
    put("tiny-r1", sample, SECOND)
    for model, level in (("tiny", 1), ("tiny-r1", 0)):
        (folder,) = (session.store.folder / "predictions" / sample).glob(f"{model}-????????")
        (folder / "provenance.json").write_text(json.dumps({"level": level}), "utf-8")
    assert find_missing(session.store, "tiny", "tiny-r1") == {"tiny": (sample,)}
    with pytest.raises(InputError, match=r"^tiny has not predicted a.png yet, or at a coarser"):
        compare(session.store, "tiny", "tiny-r1", sample)
    (folder / "provenance.json").write_text(json.dumps({"level": 1}), "utf-8")
    assert find_missing(session.store, "tiny", "tiny-r1") == {}
    assert compare(session.store, "tiny", "tiny-r1", sample).changes.tolist() == [CHANGES] * 8


def test_only_pixels_count_on_which_a_person_has_spoken(
    session: Session, put: Put, tmp_path: Path
) -> None:
    sample = add(session, tmp_path, "a", None)
    put("tiny", sample, FIRST)
    put("tiny-r1", sample, SECOND)
    nothing = compare(session.store, "tiny", "tiny-r1", sample)
    assert not nothing.changes.any()
    assert nothing.row.dice is None
    np.testing.assert_array_equal(nothing.second, [SECOND] * 8)
    correction = Correction(session, session.store.sample(sample))
    correction.stroke((0, 1), np.array([[1, 1]], np.uint8), "paint")
    found = compare(session.store, "tiny", "tiny-r1", sample).changes
    assert found[0, 1:3].tolist() == [1, 2]  # said to be nucleus: first wrong, then right; and back
    assert np.count_nonzero(found) == 2


def test_images_that_got_worse_come_first_and_missing_ones_are_named(
    session: Session, put: Put, tmp_path: Path
) -> None:
    better, worse, unasked = (add(session, tmp_path, name, TRUTH) for name in "abc")
    add(session, tmp_path, "unlabelled", None)
    for sample, first, second in ((better, FIRST, TRUTH), (worse, TRUTH, SECOND)):
        put("tiny", sample, first)
        put("tiny-r1", sample, second)
    put("tiny", unasked, FIRST)
    ranking = rank(session.store, "tiny", "tiny-r1")
    assert [row.sample for row in ranking.rows] == [worse, better]
    assert [row.difference for row in ranking.rows] == [-0.5, 0.5]
    assert ranking.dice == (0.75, 0.75)
    assert ranking.missing == {"tiny-r1": (unasked,)}
    assert find_missing(session.store, "tiny", "tiny-r1", extra="unlabelled") == {
        "tiny": ("unlabelled",),
        "tiny-r1": (unasked, "unlabelled"),
    }
    with pytest.raises(InputError, match=r"tiny-r1 has not predicted c\.png"):
        compare(session.store, "tiny", "tiny-r1", unasked)
    with pytest.raises(InputError, match="compared with itself"):
        rank(session.store, "tiny", "tiny")
    token = CancelToken()
    token.cancel()
    with pytest.raises(CanceledError):
        rank(session.store, "tiny", "tiny-r1", token)


def test_the_model_in_use_before_is_compared_with_the_one_in_use(
    session: Session, put: Put
) -> None:
    assert suggest(session.store) == ("tiny", "tiny-r1")  # the newest, until one is chosen
    use_model(session, "tiny-r1")
    use_model(session, "tiny")
    assert suggest(session.store) == ("tiny-r1", "tiny")


def test_the_command_predicts_what_is_missing_and_lists_the_worst_first(
    session: Session, put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:  # fmt: skip
    for name in "ab":
        add(session, tmp_path, name, TRUTH)
    # Not the project that this process has open.
    folder = Path(shutil.copytree(session.store.folder, tmp_path / "copy.segdesk"))
    assert run(["models", "compare", "tiny", "tiny-r1", str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["first"], said["second"], said["n"]) == ("tiny", "tiny-r1", 2)
    differences = [image["difference"] for image in said["images"]]
    assert differences == sorted(differences)
    for image in said["images"]:
        masks = [
            read_plane(next((folder / "predictions" / image["image"]).glob(f"{m}-????????")) /
                       "labels.tif") == np.array(TRUTH)
            for m in ("tiny", "tiny-r1")
        ]  # fmt: skip
        assert image["broken"] == np.count_nonzero(masks[0] & ~masks[1])
        assert image["fixed"] == np.count_nonzero(~masks[0] & masks[1])
    assert run(["models", "compare", "tiny", "tiny-r1", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [i["name"] for i in said["images"]]
    assert run(["models", "compare", "tiny", "nonsense", str(folder)]) == 2

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdesk.core.annotation import Annotation, Edit, Supervision
from segdesk.core.card import ModelCard
from segdesk.core.classes import ClassDef, ClassMap
from segdesk.core.errors import InputError
from segdesk.core.run import RunState


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["one"], "at least two classes"),
        ([], "at least two classes"),
        (["a", "b", "a"], "a name of its own"),
        (["a", " a "], "a name of its own"),
        (["a", ""], "a name of its own"),
        ([str(i) for i in range(255)], "at most 254"),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(names: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ClassMap.from_names(names)


def test_ids_must_count_up() -> None:
    with pytest.raises(InputError, match="count up from 0"):
        ClassMap((ClassDef(0, "a", "#000000"), ClassDef(2, "b", "#ffffff")))


def test_classes_get_colours_one_can_tell_apart() -> None:
    colors = [c.color for c in ClassMap.from_names([str(i) for i in range(8)]).classes]
    assert len(set(colors)) == 8
    assert len(ClassMap.from_names([str(i) for i in range(254)])) == 254


@given(seed=st.integers(0, 999))
def test_undoing_an_edit_gives_back_what_was_there(seed: int) -> None:
    random = np.random.default_rng(seed)
    before = Annotation("a", 1, *random.integers(0, 3, (2, 6, 7)).astype(np.uint8))
    now = before.copy()
    after = random.integers(0, 3, (2, 2, 3)).astype(np.uint8)
    box = np.stack((before.labels[1:3, 2:5], before.supervision[1:3, 2:5]))
    edit = Edit((1, 2), (3, 5), box, after, "paint", 0.0)
    now.apply(edit)
    np.testing.assert_array_equal(now.labels[edit.box], after[0])
    np.testing.assert_array_equal(now.supervision[edit.box], after[1])
    now.apply(edit, undo=True)
    np.testing.assert_array_equal(now.labels, before.labels)
    np.testing.assert_array_equal(now.supervision, before.supervision)


def test_a_prediction_fills_only_what_nobody_spoke_about() -> None:
    labels = np.array([[1, 1, 1]], np.uint8)
    supervision = np.array([[0, 1, 2]], np.uint8)
    fresh = Annotation("a", 1, labels, supervision).refreshed(np.array([[2, 2, 2]], np.uint8))
    assert fresh.labels.tolist() == [[2, 1, 1]]
    assert fresh.supervision.tolist() == [[0, 1, 2]]


def test_accepting_keeps_corrected_pixels_corrected() -> None:
    supervision = np.array([[0, 1, 2]], np.uint8)
    accepted = Annotation("a", 1, supervision, supervision).accepted().supervision
    assert accepted.tolist() == [
        [Supervision.ACCEPTED, Supervision.ACCEPTED, Supervision.CORRECTED]
    ]


def test_a_run_ends_in_one_of_four_ways() -> None:
    assert {s.value for s in RunState if s.is_terminal} == {
        "completed", "canceled", "failed", "crashed",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}'])
def test_a_card_that_is_none_is_explained_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^x/card.json is not a model card") as caught:
        ModelCard.parse(text, "x/card.json")
    assert "\n" not in caught.value.message

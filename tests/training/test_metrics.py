from __future__ import annotations

import numpy as np
import pytest

from segdesk.training.metrics import confusion, summarize

NAMES = ("background", "a", "b")


def matrix(truth: list[int], predicted: list[int], known: list[bool] | None = None) -> np.ndarray:
    return confusion(
        np.array(truth, np.uint8),
        np.array(predicted, np.uint8),
        3,
        None if known is None else np.array(known),
    )


def test_confusion_by_hand() -> None:
    assert matrix([0, 0, 1, 1, 2], [0, 1, 1, 1, 0]).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_unlabelled_and_unknown_pixels_do_not_count() -> None:
    counted = matrix([255, 0, 1, 2], [1, 0, 2, 2], [True, True, False, True])
    assert counted.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_scores_by_hand() -> None:
    """Image 1: a has Dice 2*2/(2+3), b is missed. Image 2: only a, found half."""
    first = matrix([0, 0, 1, 1, 2], [0, 1, 1, 1, 0])
    second = matrix([0, 0, 1, 1], [0, 0, 1, 0])
    scores = summarize([first, second], NAMES, ["first", "second"])
    dice = [(4 / 5 + 0) / 2, 2 / 3]
    iou = [(2 / 3 + 0) / 2, 1 / 2]
    assert scores["dice"] == pytest.approx(np.mean(dice))
    assert scores["iou"] == pytest.approx(np.mean(iou))
    assert scores["pixel_accuracy"] == pytest.approx(6 / 9)
    assert [e["dice"] for e in scores["per_image"]] == pytest.approx(dice)
    assert [e["image"] for e in scores["per_image"]] == ["first", "second"]
    assert scores["per_class"]["a"] == {
        "dice": pytest.approx(6 / 8), "iou": pytest.approx(3 / 5), "pixels": 4,
    }  # fmt: skip
    assert scores["per_class"]["b"]["dice"] == 0
    assert scores["n"] == 2
    assert scores["classes"] == ["a", "b"]


def test_a_class_that_occurs_nowhere_is_left_out_of_the_mean() -> None:
    scores = summarize([matrix([0, 1, 1], [0, 1, 1])], NAMES, ["i"])
    assert scores["dice"] == 1
    assert scores["per_class"]["b"]["dice"] is None


def test_a_false_alarm_in_an_empty_image_counts() -> None:
    assert summarize([matrix([0, 0, 0], [0, 0, 1])], NAMES, ["i"])["dice"] == 0


def test_an_empty_image_rightly_left_empty_is_perfect() -> None:
    scores = summarize([matrix([0, 0], [0, 0])], NAMES, ["i"])
    assert (scores["dice"], scores["iou"], scores["pixel_accuracy"]) == (1, 1, 1)


def test_without_images_there_is_no_score() -> None:
    scores = summarize([], NAMES, [])
    assert scores["n"] == 0
    assert scores["dice"] is None


def test_without_a_background_every_class_counts() -> None:
    counts = confusion(np.array([0, 1], np.uint8), np.array([1, 1], np.uint8), 2)
    scores = summarize([counts], ("sky", "ground"), ["i"])
    assert scores["classes"] == ["sky", "ground"]
    assert scores["dice"] == pytest.approx((0 + 2 / 3) / 2)

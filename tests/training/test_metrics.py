from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from segdesk.training.instances import (
    Matches,
    ObjectScores,
    find_objects,
    match_objects,
    rand_error,
    warping_mistakes,
)
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


# Over the dataset --------------------------------------------------------------------

#: Over both images [[3, 1, 0], [1, 3, 0], [1, 0, 0]].
FIRST, SECOND = ([0, 0, 1, 1, 2], [0, 1, 1, 1, 0]), ([0, 0, 1, 1], [0, 0, 1, 0])


def test_figures_over_the_dataset_by_hand() -> None:
    scores = summarize([matrix(*FIRST), matrix(*SECOND)], NAMES, ["first", "second"])
    assert scores["dataset"] == pytest.approx(
        {
            "pixel_accuracy": 6 / 9,
            "mean_accuracy": (3 / 4 + 3 / 4 + 0) / 3,
            "mean_iou": (3 / 6 + 3 / 5 + 0) / 3,
            "frequency_weighted_iou": (4 * 3 / 6 + 4 * 3 / 5 + 0) / 9,
            "mean_dice": (6 / 9 + 6 / 8 + 0) / 3,
        }
    )


def test_means_over_images_are_other_figures() -> None:
    """In the second image class b does not occur, so it has two classes."""
    scores = summarize([matrix(*FIRST), matrix(*SECOND)], NAMES, ["first", "second"])
    pairs = {
        "pixel_accuracy": (3 / 5, 3 / 4),
        "mean_accuracy": ((1 / 2 + 1 + 0) / 3, (1 + 1 / 2) / 2),
        "mean_iou": ((1 / 3 + 2 / 3 + 0) / 3, (2 / 3 + 1 / 2) / 2),
        "frequency_weighted_iou": ((2 / 3 + 4 / 3) / 5, (4 / 3 + 1) / 4),
        "mean_dice": ((1 / 2 + 4 / 5 + 0) / 3, (4 / 5 + 2 / 3) / 2),
    }
    assert scores["image_means"] == pytest.approx({k: np.mean(v) for k, v in pairs.items()})


def test_a_class_predicted_by_mistake_only_counts_in_iou_and_not_in_accuracy() -> None:
    scores = summarize([matrix([0, 0, 0, 1], [0, 0, 2, 1])], NAMES, ["i"])["dataset"]
    assert scores["mean_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["mean_iou"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["frequency_weighted_iou"] == pytest.approx((3 * 2 / 3 + 1) / 4)


# Objects -----------------------------------------------------------------------------


def drawn(*rows: str) -> np.ndarray:
    """Read a picture: digits are objects, dots are none."""
    return np.array([[int(c.replace(".", "0")) for c in row] for row in rows])


def test_pieces_connect_by_corners() -> None:
    found = find_objects(drawn("1..1", ".1.1", "....") > 0)
    assert found.tolist() == drawn("1..2", ".1.2", "....").tolist()


def test_panoptic_quality_by_hand() -> None:
    """1 is found as 7 with IoU 4/6; 2 as 8 with 2/4 only, which is neither; 3 is missed."""
    truth = drawn("1111.", ".....", "22222", ".....", "33333")[:, :5]
    truth[2, 3:] = 0
    predicted = drawn("777777"[:5], "7....", "88...", "8....", ".....")
    matches = match_objects(truth, predicted)
    assert matches == Matches(overlap=4 / 6, found=1, false_alarms=1, missed=2)
    assert matches.segmentation_quality() == pytest.approx(2 / 3)
    assert matches.recognition_quality() == pytest.approx(1 / (1 + 1 / 2 + 2 / 2))
    assert matches.panoptic_quality() == pytest.approx(2 / 3 / 2.5)
    twice = matches + matches
    assert twice.panoptic_quality() == matches.panoptic_quality()
    assert twice.missed == 4


def test_without_objects_there_is_no_panoptic_quality() -> None:
    none = np.zeros((3, 3), np.int64)
    assert match_objects(none, none).panoptic_quality() is None
    missed = match_objects(np.ones_like(none), none)
    assert (missed.panoptic_quality(), missed.segmentation_quality()) == (0, None)


def test_objects_where_nobody_looked_are_neither_right_nor_wrong() -> None:
    truth, predicted = drawn("11...", "....."), drawn("11.33", "...33")
    known = np.ones(truth.shape, bool)
    assert match_objects(truth, predicted, known).false_alarms == 1
    known[:, 4] = known[0, 3] = False  # three of four pixels of object 3
    assert match_objects(truth, predicted, known) == Matches(1.0, 1, 0, 0)
    known[:, 1] = False  # half of object 1, which is compared on the other half
    assert match_objects(truth, predicted[:, ::1], known) == Matches(1.0, 1, 0, 0)


def pair_error(truth: np.ndarray, predicted: np.ndarray) -> float:
    """1 - F-score, counted pair by pair."""
    pixels = [(t, p) for t, p in zip(truth.flat, predicted.flat, strict=True) if t > 0]
    pairs = [(a, b) for i, a in enumerate(pixels) for b in pixels[:i]]
    same = np.array([(a[0] == b[0], a[1] == b[1]) for a, b in pairs])
    both = same.all(1).sum()
    precision, recall = both / same[:, 1].sum(), both / same[:, 0].sum()
    return float(1 - 2 * precision * recall / (precision + recall))


def test_rand_error_counts_pairs_of_pixels_of_true_objects() -> None:
    truth = drawn("111.22", "111.22", "......", "333333")
    merged = drawn("111122", "111222", "......", "3333..")
    merged[merged == 2] = 1
    assert rand_error(truth, truth) == 0
    assert rand_error(truth, merged) == pytest.approx(pair_error(truth, merged))
    assert 0 < pair_error(truth, merged) < 1
    # What is predicted where there is no object costs nothing.
    beyond = merged.copy()
    beyond[2] = 9
    assert rand_error(truth, beyond) == rand_error(truth, merged)
    known = np.ones(truth.shape, bool)
    known[:, 4:] = False
    assert rand_error(truth, merged, known) == pytest.approx(
        pair_error(truth[:, :4], merged[:, :4])
    )


def test_rand_error_needs_two_pixels_of_one_object() -> None:
    assert rand_error(drawn("...", "..."), drawn("11.", "...")) is None
    assert rand_error(drawn("1.2", "..."), drawn("11.", "...")) is None
    assert rand_error(drawn("11."), drawn("12.")) == 1


@pytest.mark.parametrize(
    ("truth", "predicted", "mistakes"),
    [
        pytest.param(
            ["......", ".1111.", ".1111.", ".1111.", "......"],
            ["1111..", "1111..", "111...", "......", "......"], 0, id="shifted outline",
        ),
        pytest.param(
            [".......", ".11.11.", ".11.11.", ".11.11.", "......."],
            [".......", ".11.11.", ".11111.", ".11.11.", "......."], 1, id="thin bridge",
        ),
        pytest.param(
            [".........", ".11...11.", ".11...11.", ".11...11.", "........."],
            [".........", ".1111111.", ".1111111.", ".11...11.", "........."], 2, id="thick bridge",
        ),
        pytest.param(
            [".......", ".11111.", ".11111.", ".11111.", "......."],
            [".......", ".11.11.", ".11.11.", ".11.11.", "......."], 1, id="split",
        ),
        pytest.param(
            [".....", ".111.", ".111.", ".111.", "....."],
            [".....", ".....", ".....", ".....", "....."], 1, id="missed",
        ),
        pytest.param(
            [".....", ".....", ".....", ".....", "....."],
            [".....", ".111.", ".111.", ".....", "....."], 6, id="made up",
        ),
        pytest.param(
            [".....", ".111.", ".111.", ".111.", "....."],
            [".....", ".111.", ".1.1.", ".111.", "....."], 1, id="hole",
        ),
        pytest.param(
            [".....", ".111.", ".1.1.", ".111.", "....."],
            [".....", ".111.", ".111.", ".111.", "....."], 1, id="closed hole",
        ),
        pytest.param(
            [".1..", ".1..", ".1..", ".1.."], ["..1.", "..1.", "..1.", "..1."], 0, id="line moved",
        ),
        pytest.param(["1..", ".1.", "..1"], ["1..", "...", "..1"], 1, id="cut at a corner"),
    ],
)  # fmt: skip
def test_warping_mistakes_by_hand(truth: list[str], predicted: list[str], mistakes: int) -> None:
    true, found = drawn(*truth) > 0, drawn(*predicted) > 0
    assert warping_mistakes(true, found) == mistakes
    assert warping_mistakes(true, true) == 0
    # Neither where the picture lies nor its margins matter.
    wide_true, wide_found = (np.pad(m, ((3, 0), (0, 4))) for m in (true, found))
    assert warping_mistakes(wide_true, wide_found) == mistakes


def test_a_simple_point_is_one_whose_flip_keeps_all_pieces_and_holes() -> None:
    """All 256 surroundings, each judged by counting pieces before and after."""
    for code in range(256):
        bits = [bool(code >> i & 1) for i in range(8)]
        before = np.pad(np.array([*bits[:4], False, *bits[4:]]).reshape(3, 3), 2)
        after = before.copy()
        after[3, 3] = True
        counts = []
        for mask in (before, after):
            outside = ndimage.label(~mask)[1]  # by sides
            counts.append((ndimage.label(mask, np.ones((3, 3)))[1], outside))
        keeps = counts[0] == counts[1] and ndimage.label(before, np.ones((3, 3)))[1] > 0
        # Flipped there and back, or not at all.
        flips = warping_mistakes(before, after) == 0
        assert flips == keeps, before[2:5, 2:5]


def fewest_mistakes(truth: np.ndarray, predicted: np.ndarray) -> int:
    """Flip simple points in every possible order, told by counting pieces and holes."""

    def pieces(mask: np.ndarray) -> tuple[int, int]:
        padded = np.pad(mask, 1)
        return ndimage.label(padded, np.ones((3, 3)))[1], ndimage.label(~padded)[1]

    seen, open_ends = {truth.tobytes()}, [truth]
    for mask in open_ends:
        for place in np.argwhere(mask != predicted):
            flipped = mask.copy()
            flipped[tuple(place)] ^= True
            if pieces(flipped) == pieces(mask) and flipped.tobytes() not in seen:
                seen.add(flipped.tobytes())
                open_ends.append(flipped)
    return min(int((mask != predicted).sum()) for mask in open_ends)


def test_warping_finds_the_fewest_mistakes_mostly_and_never_fewer() -> None:
    random = np.random.RandomState(0)
    found = []
    while len(found) < 30:
        smooth = [ndimage.gaussian_filter(random.standard_normal((8, 8)), 1.2) for _ in range(2)]
        truth, predicted = smooth[0] > 0.05, smooth[0] + 0.5 * smooth[1] > 0.05
        if 3 <= (truth != predicted).sum() <= 8:
            found.append((warping_mistakes(truth, predicted), fewest_mistakes(truth, predicted)))
    assert all(greedy >= fewest for greedy, fewest in found)
    assert sum(greedy == fewest for greedy, fewest in found) >= 28
    assert sum(fewest for _, fewest in found) > 10


def test_warping_ignores_what_nobody_looked_at() -> None:
    truth, predicted = drawn("11.11") > 0, drawn("11111") > 0
    assert warping_mistakes(truth, predicted) == 1
    assert warping_mistakes(truth, predicted, drawn("11011") > 0) == 0


def test_scores_of_objects_over_two_images() -> None:
    """Nuclei: one found exactly, one merged pair. Of dirt there is none in truth."""
    first = (drawn("11...", "11..."), drawn("11...", "11..."))
    second = (drawn("11.11", "11.11"), drawn("11111", "11.12"))
    scores = ObjectScores(("background", "nucleus", "dirt"))
    for truth, predicted in (second, first):
        scores.add(truth.astype(np.uint8), predicted.astype(np.uint8))
    found = scores.summary()
    nucleus, dirt = found["per_class"]["nucleus"], found["per_class"]["dirt"]
    # Merged, 8 pixels: 4/8 of either is no match.
    assert nucleus["objects"] == 3
    assert nucleus["panoptic_quality"] == pytest.approx(1 / (1 + 1 / 2 + 2 / 2))
    assert nucleus["segmentation_quality"] == 1
    assert nucleus["rand_error"] == pytest.approx(
        (0 + pair_error(second[0] * drawn("11.22", "11.22"), second[1] == 1)) / 2
    )
    assert nucleus["warping_error"] == 1 / 20
    assert dirt["panoptic_quality"] == 0
    assert dirt["rand_error"] is None
    assert dirt["warping_error"] == 1 / 20
    assert found["panoptic_quality"] == pytest.approx(nucleus["panoptic_quality"] / 2)
    assert found["rand_error"] == nucleus["rand_error"]
    assert found["pixel_error"] == 2 / 20


def test_scores_of_objects_leave_out_what_is_not_labelled() -> None:
    scores = ObjectScores(("background", "nucleus"))
    scores.add(np.array([[255, 1, 1]], np.uint8), np.array([[1, 0, 1]], np.uint8))
    known = np.array([[True, True, False]])
    scores.add(np.array([[0, 1, 0]], np.uint8), np.array([[0, 1, 1]], np.uint8), known)
    assert scores.summary()["pixel_error"] == 1 / 4
    assert ObjectScores(("background", "a")).summary()["pixel_error"] is None

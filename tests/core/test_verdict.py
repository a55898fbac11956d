"""What is said of a new model, and when it is not said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segdesk.core.verdict import Judgement, judge, paired_interval


def scores(dice: list[float], remembered: float | None = None) -> dict[str, Any]:
    return {
        "dice": float(np.mean(dice)) if dice else None,
        "per_image": [{"image": f"s{n}", "dice": d} for n, d in enumerate(dice)],
        "remembered": {"dice": remembered},
    }


LOW = [0.50, 0.55, 0.40, 0.62, 0.51, 0.48]
HIGH = [0.70, 0.72, 0.65, 0.75, 0.69, 0.71]


def test_all_six_better_is_better_and_the_other_way_round_is_worse() -> None:
    up, down = judge(scores(LOW), scores(HIGH)), judge(scores(HIGH), scores(LOW))
    assert (up.judgement, down.judgement) == (Judgement.BETTER, Judgement.WORSE)
    assert up.difference == pytest.approx(np.mean(HIGH) - np.mean(LOW))
    assert up.interval is not None
    assert 0.1 < up.interval[0] < up.difference < up.interval[1] < 0.3
    assert up.text.startswith("The new model is better on the 6 images held back: Dice +0.193")
    assert "look whether the new labels are right" in down.text
    assert judge(scores(LOW), scores(HIGH)) == up


def test_images_are_paired_by_name_and_not_by_place() -> None:
    shuffled = scores(HIGH)
    shuffled["per_image"].reverse()
    assert judge(scores(LOW), shuffled) == judge(scores(LOW), scores(HIGH))


@pytest.mark.parametrize(
    ("number", "chance"), [(1, "every second time"), (2, "once in 4"), (4, "once in 16 times")]
)
def test_below_five_images_there_is_never_evidence(number: int, chance: str) -> None:
    found = judge(scores(LOW[:number]), scores(HIGH[:number]))
    assert found.judgement is Judgement.NO_EVIDENCE
    assert chance in found.text
    assert "label at least 5 images held back" in found.text
    assert judge(scores(LOW[:5]), scores(HIGH[:5])).judgement is Judgement.BETTER


def test_some_better_and_some_worse_is_no_evidence() -> None:
    after = [0.60, 0.50, 0.45, 0.58, 0.55, 0.47]
    found = judge(scores(LOW), scores(after))
    assert found.judgement is Judgement.NO_EVIDENCE
    assert found.interval is not None
    assert found.interval[0] < 0 < found.interval[1]
    same = judge(scores(LOW), scores(LOW))
    assert (same.judgement, same.interval) == (Judgement.NO_EVIDENCE, (0, 0))


def test_without_a_score_before_or_after_it_says_why() -> None:
    new = judge(scores([]), scores(HIGH))
    assert (new.judgement, new.difference, new.interval, new.images) == (
        Judgement.NO_EVIDENCE, None, None, 0,
    )  # fmt: skip
    assert "did not know these classes. It now has Dice 0.703 on 6 images" in new.text
    for nothing in (judge(scores([]), scores([])), judge(None, None), judge(scores(LOW), None)):
        assert nothing.judgement is Judgement.NO_EVIDENCE
        assert "no labelled image is held back" in nothing.text


def test_what_was_forgotten_is_said_whatever_the_judgement() -> None:
    found = judge(scores(LOW, 0.92), scores(HIGH, 0.13))
    assert found.judgement is Judgement.BETTER
    assert "Dice fell from 0.920 to 0.130" in found.text
    assert "kept what it knew" in judge(scores(LOW, 0.92), scores(HIGH, 0.915)).text
    assert "knew" not in judge(scores(LOW), scores(HIGH)).text


def test_a_poor_model_is_called_poor_even_when_it_is_better() -> None:
    poor = [d / 5 for d in HIGH]
    assert "still poor" in judge(scores([d / 5 for d in LOW]), scores(poor)).text


def test_chance_alone_is_seldom_taken_for_a_difference() -> None:
    """The interval of five draws of nothing holds zero about as often as it says."""
    random = np.random.default_rng(7)
    wrong = 0
    for _ in range(60):
        low, high = paired_interval(random.normal(size=5))
        wrong += low > 0 or high < 0
    assert wrong <= 8  # 4 of 60 expected; plain percentiles: 9

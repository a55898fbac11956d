"""Whether probabilities and uncertainty can be trusted, by hand and by brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdesk.core.prediction import UncertaintyKind
from segdesk.inference import calibration
from segdesk.inference.calibration import (
    MisclassificationView,
    Tally,
    apply_temperature,
    aurc,
    auroc,
    calibrated_reliability,
    count_uncertainty,
    draw_pixels,
    expected_calibration_error,
    fit_temperature,
    reliability,
    risk_coverage,
    share_of_errors_in_most_uncertain,
)

Array = npt.NDArray[np.generic]

#: Uncertainties in 64ths, so that there are ties, and whether the pixel is wrong.
TIED = st.lists(st.tuples(st.integers(0, 64), st.booleans()), min_size=1, max_size=60)


def f32(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def softmax(logits: Array) -> npt.NDArray[np.float32]:
    raised = np.exp(logits - logits.max(0))
    result: npt.NDArray[np.float32] = (raised / raised.sum(0)).astype(np.float32)
    return result


def honest_pixels(
    classes: int, count: int, seed: int = 0, sureness: float = 1.0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Probabilities, and truths drawn from them; ``sureness`` multiplies the logits after."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (classes, count))
    levels = softmax(logits).cumsum(0)
    truth = (random.random(count) > levels[:-1]).sum(0).astype(np.uint8)
    return softmax(logits * sureness), truth


def numbers(pairs: list[tuple[int, bool]]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    return (
        np.array([u for u, _ in pairs], np.float32) / np.float32(64),
        np.array([w for _, w in pairs], bool),
    )


# Temperature


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("sureness", [0.5, 1.0, 5.0])
def test_the_temperature_undoes_what_made_a_model_too_sure_or_unsure(
    classes: int, sureness: float
) -> None:
    p, truth = honest_pixels(classes, 40_000, sureness=sureness)
    temperature = fit_temperature(p, truth)
    assert temperature == pytest.approx(sureness, rel=0.05)
    fresh, fresh_truth = honest_pixels(classes, 40_000, seed=1, sureness=sureness)
    after = expected_calibration_error(calibrated_reliability(fresh, fresh_truth, temperature))
    before = expected_calibration_error(calibrated_reliability(fresh, fresh_truth, 1.0))
    assert after < 0.012
    assert before > 0.05 or sureness == 1.0


def test_no_other_temperature_is_more_likely() -> None:
    p, truth = honest_pixels(3, 500, sureness=2.5)
    found = fit_temperature(p, truth)

    def loss(temperature: float) -> float:
        scaled = apply_temperature(p, temperature)[truth, np.arange(len(truth))]
        return float(-np.log(np.maximum(scaled.astype(np.float64), 1e-38)).mean())

    others = np.geomspace(*calibration.TEMPERATURES, 200)
    assert loss(found) <= min(loss(t) for t in others) + 1e-6


def test_a_temperature_comes_from_many_pixels_as_fast_and_always_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p, truth = honest_pixels(2, 60_000, sureness=3)
    whole = fit_temperature(p, truth)
    monkeypatch.setattr(calibration, "FIT_PIXELS", 20_000)
    drawn = fit_temperature(p, truth)
    assert drawn == fit_temperature(p, truth)
    assert drawn != whole
    assert drawn == pytest.approx(whole, rel=0.05)


def test_pixels_are_drawn_once_each() -> None:
    chosen = draw_pixels(1000, 300)
    assert len(set(chosen.tolist())) == 300
    assert chosen.max() > 900
    np.testing.assert_array_equal(chosen, draw_pixels(1000, 300))
    np.testing.assert_array_equal(draw_pixels(5, 300), np.arange(5))


def test_a_temperature_by_hand() -> None:
    p = np.stack((f32(0.8, 0.5, 1.0), f32(0.2, 0.5, 0.0)))
    # The odds of 4 to 1 become their root, 2 to 1.
    np.testing.assert_allclose(apply_temperature(p, 2.0)[:, 0], [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(apply_temperature(p, 2.0)[:, 1], 0.5)
    np.testing.assert_array_equal(apply_temperature(p, 1.0), p)
    assert np.isfinite(apply_temperature(p, 0.05)).all()


@settings(max_examples=100)
@given(
    classes=st.integers(2, 5),
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.05, 20),
    gap=st.sampled_from([0.0, 1e-7, 1e-4, 1.0]),
)
def test_no_temperature_changes_the_most_probable_class(
    classes: int, seed: int, temperature: float, gap: float
) -> None:
    # A small gap makes near ties, which rounding could turn over.
    random = np.random.default_rng(seed)
    p = softmax(gap * random.normal(0, 4, (classes, 6, 7)))
    scaled = apply_temperature(p, temperature)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled.argmax(0), p.argmax(0))
    np.testing.assert_allclose(scaled.sum(0), 1, atol=1e-5)


# Reliability


def test_reliability_by_hand() -> None:
    confidence = f32(0.55, 0.65, 0.95, 0.85, 0.75, 1.0)
    is_right = np.array([True, False, True, True, True, True])
    counted = reliability(confidence, is_right, bins=2)
    assert counted.count.tolist() == [0, 6]
    counted = reliability(confidence, is_right, bins=5)
    assert counted.count.tolist() == [0, 0, 1, 2, 3]
    np.testing.assert_allclose(counted.confidence, [np.nan, np.nan, 0.55, 0.7, 2.8 / 3], rtol=1e-6)
    np.testing.assert_allclose(counted.accuracy, [np.nan, np.nan, 1, 0.5, 1])
    # (1 * 0.45 + 2 * 0.2 + 3 * 0.2 / 3) / 6
    assert expected_calibration_error(counted) == pytest.approx(1.05 / 6)
    assert np.isnan(expected_calibration_error(reliability(f32(), np.zeros(0, bool))))


def test_a_bin_holds_its_upper_edge() -> None:
    counted = reliability(f32(0.5, 0.25, 0.0, 1.0000001), np.ones(4, bool), bins=4)
    assert counted.count.tolist() == [2, 1, 0, 1]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), bins=st.integers(1, 20))
def test_the_calibration_error_is_that_of_its_definition(seed: int, bins: int) -> None:
    random = np.random.default_rng(seed)
    confidence = random.random(200).astype(np.float32)
    is_right = random.random(200) < 0.5
    expected = 0.0
    for m in range(bins):
        inside = [i for i in range(200) if m / bins < confidence[i] <= (m + 1) / bins]
        if inside:
            gap = is_right[inside].mean() - confidence[inside].astype(np.float64).mean()
            expected += len(inside) / 200 * abs(gap)
    found = expected_calibration_error(reliability(confidence, is_right, bins))
    assert found == pytest.approx(expected, abs=1e-9)


# Uncertainty


def test_ranking_by_hand() -> None:
    values, is_wrong = f32(0.1, 0.2, 0.3, 0.4), np.array([False, True, False, True])
    assert auroc(values, is_wrong) == pytest.approx(3 / 4)
    coverage, risk = risk_coverage(values, is_wrong, points=4)
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 2])
    assert aurc(values, is_wrong) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert share_of_errors_in_most_uncertain(values, is_wrong, 0.25) == pytest.approx(1 / 2)
    assert share_of_errors_in_most_uncertain(values, is_wrong, 0.75) == pytest.approx(1)


def test_ties_share_evenly_whatever_their_order() -> None:
    values, is_wrong = f32(0.5, 0.5, 0.5, 0.5, 0.9), np.array([1, 0, 0, 0, 1], bool)
    # One of the two most uncertain is the last pixel; of the ties, one in four is wrong.
    expected = (1 + 1 / 4) / 2
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 4, 0, 2, 3]):
        found = share_of_errors_in_most_uncertain(values[order], is_wrong[order], 0.4)
        assert found == pytest.approx(expected)
    same = np.full(10, 0.3, np.float32)
    assert auroc(same, np.arange(10) < 3) == 0.5
    assert aurc(same, np.arange(10) < 3) == pytest.approx(0.3)


def test_without_wrong_or_right_pixels_there_is_no_answer() -> None:
    values, nothing = f32(0.1, 0.2), np.zeros(2, bool)
    assert np.isnan(auroc(values, nothing))
    assert np.isnan(auroc(values, ~nothing))
    assert np.isnan(share_of_errors_in_most_uncertain(values, nothing))
    assert aurc(values, nothing) == 0
    assert aurc(values, ~nothing) == 1
    assert np.isnan(aurc(f32(), np.zeros(0, bool)))


def test_a_sure_model_is_ranked_too() -> None:
    """Nearly all pixels of a good model are this sure; a thousand even bins see one tie."""
    values = f32(1e-6, 2e-6, 3e-6, 4e-6, 1e-5)
    assert auroc(values, np.array([0, 0, 0, 1, 1], bool)) == 1.0
    assert auroc(f32(0.0, -0.0, 1.0), np.array([0, 0, 1], bool)) == 1.0


@settings(max_examples=60)
@given(pairs=TIED)
def test_auroc_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    values, is_wrong = numbers(pairs)
    wrong, right = values[is_wrong][:, None], values[~is_wrong][None]
    if not wrong.size or not right.size:
        return
    expected = ((wrong > right) + 0.5 * (wrong == right)).mean()
    assert auroc(values, is_wrong) == pytest.approx(expected)


@settings(max_examples=60)
@given(pairs=TIED, fraction=st.floats(0.01, 1))
def test_the_most_uncertain_are_counted_as_one_by_one(
    pairs: list[tuple[int, bool]], fraction: float
) -> None:
    values, is_wrong = numbers(pairs)
    if not is_wrong.any():
        return
    # Every pixel stands for the mean of its ties; then take them from the top.
    means = np.array([is_wrong[values == v].mean() for v in values])[np.argsort(-values)]
    wanted = fraction * len(values)
    whole = int(wanted)
    expected = means[:whole].sum() + (wanted - whole) * (means[whole] if whole < len(means) else 0)
    found = share_of_errors_in_most_uncertain(values, is_wrong, fraction)
    assert found == pytest.approx(expected / is_wrong.sum(), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6),
)
def test_aurc_is_the_mean_over_all_orders_of_ties(pairs: list[tuple[int, bool]]) -> None:
    values, is_wrong = numbers(pairs)
    areas = []
    for order in permutations(range(len(values))):
        if (np.diff(values[list(order)]) >= 0).all():
            errors = np.cumsum(is_wrong[list(order)])
            areas.append((errors / np.arange(1, len(values) + 1)).mean())
    assert aurc(values, is_wrong) == pytest.approx(np.mean(areas))


def test_binned_and_sorted_answers_agree_on_many_pixels() -> None:
    random = np.random.default_rng(0)
    values = random.beta(0.2, 3, 100_000).astype(np.float32)
    is_wrong = random.random(len(values)) < 0.6 * values
    in_order = is_wrong[np.argsort(values, kind="stable")]
    places = np.flatnonzero(in_order)
    below = (places - np.arange(len(places))).sum()
    wrong = len(places)
    assert auroc(values, is_wrong) == pytest.approx(
        below / (wrong * (len(values) - wrong)), abs=1e-5
    )
    risks = np.cumsum(in_order) / np.arange(1, len(values) + 1)
    assert aurc(values, is_wrong) == pytest.approx(risks.mean(), rel=1e-3)
    top = in_order[-10_000:].sum() / wrong
    assert share_of_errors_in_most_uncertain(values, is_wrong) == pytest.approx(top, abs=1e-4)


# Misclassified pixels


def test_misclassified_pixels_by_hand_of_two_classes() -> None:
    target = f32(0.1, 0.3, 0.6, 0.95, 0.9, 0.45)
    truth = np.array([0, 0, 0, 0, 1, 1], np.uint8)
    view = MisclassificationView.of(np.stack((1 - target, target)), truth)
    right, wrong = view.histogram(bins=10)
    assert right.tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0, 1]
    assert wrong.tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0, 1]
    assert view.histogram(1, bins=10).tolist()[1] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert view.share_of_errors_within(0.2, 0.8) == pytest.approx(2 / 3)
    assert view.share_of_right_within(0.2, 0.8) == pytest.approx(1 / 3)
    assert view.share_of_errors_within(0.2, 0.8, true_class=0) == pytest.approx(1 / 2)
    # By the true class, a wrong pixel of two classes lies below a half.
    assert view.of_truth[:, 1].sum(0).nonzero()[0].tolist() == [50, 400, 450]


def test_misclassified_pixels_by_hand_of_three_classes() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.05, 0.05, 0.9]], np.float32).T
    view = MisclassificationView.of(p, np.array([0, 2, 0], np.uint8))
    assert view.of_target is None
    right, wrong = view.histogram(bins=10)
    assert right.nonzero()[0].tolist() == [7]  # though 0.7 in single precision is a little less
    assert wrong.nonzero()[0].tolist() == [0, 3]
    assert view.share_of_errors_within(0.2, 0.8) == pytest.approx(1 / 2)
    assert np.isnan(view.share_of_errors_within(0.2, 0.8, true_class=1))


def test_counts_of_images_add_up_to_those_of_all_at_once() -> None:
    kinds = (UncertaintyKind.MARGIN, UncertaintyKind.ENTROPY)
    for classes in (2, 4):
        p, truth = honest_pixels(classes, 3000)
        whole, parts = Tally(classes, kinds), Tally(classes, kinds)
        whole.add(p, truth)
        for part in np.array_split(np.arange(3000), [0, 10, 1500]):
            parts.add(p[:, part], truth[part])
        assert parts.pixels == whole.pixels == 3000
        assert parts.wrong == whole.wrong == (p.argmax(0) != truth).sum()
        np.testing.assert_array_equal(parts.view.of_truth, whole.view.of_truth)
        np.testing.assert_array_equal(parts.reliability.right, whole.reliability.right)
        for kind in kinds:
            assert parts.uncertainty[kind].auroc() == whole.uncertainty[kind].auroc()
        assert parts.view.share_of_errors_within(0.1, 0.9) == pytest.approx(
            whole.view.share_of_errors_within(0.1, 0.9)
        )


def test_counts_are_as_large_for_one_pixel_as_for_many() -> None:
    one = count_uncertainty(f32(0.5), np.ones(1, bool))
    many = count_uncertainty(np.linspace(0, 1, 5000, dtype=np.float32), np.ones(5000, bool))
    assert one.wrong.nbytes == many.wrong.nbytes < 4_000_000
    assert many.wrong.sum() == 5000

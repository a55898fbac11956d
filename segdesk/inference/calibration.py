"""Whether a model's probabilities and its uncertainty can be trusted.

Three questions, each asked of pixels whose true class is known:

- Does a probability mean what it says? Reliability, the expected calibration error and
  temperature scaling: Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural
  Networks, ICML 2017.
- Does the uncertainty point at the wrong pixels? The area under the ROC curve, and
  risk against coverage: Geifman and El-Yaniv, Selective Classification for Deep Neural
  Networks, NeurIPS 2017.
- How probable were the wrong pixels? :class:`MisclassificationView`.

Everything is counted in bins of a fixed number, so that counts of images add up and
memory does not grow with them (:class:`Tally`). Arrays of pixels are flat: n pixels,
and K classes first. No torch: the window may use this too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segdesk.core.prediction import UncertaintyKind
from segdesk.inference.uncertainty import uncertainty

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Doubles = npt.NDArray[np.float64]
    Counts = npt.NDArray[np.int64]
    Flags = npt.NDArray[np.bool_]
    Labels = npt.NDArray[np.uint8]

#: A temperature is looked for between these.
TEMPERATURES: Final = (0.05, 20.0)
#: So many pixels fix one number well.
FIT_PIXELS: Final = 200_000
SEED: Final = 0
#: Bins of a reliability diagram, as in the paper.
RELIABILITY_BINS: Final = 15
#: Bins of the misclassification view: thousandths.
PROBABILITY_BINS: Final = 1000
_TINY = np.finfo(np.float32).tiny
#: So far below 1 that dividing both by the same number leaves them apart.
_NEXT_TO_ONE = np.float32(1 - 2**-22)
#: So many pixels are worked on at a time, which the processor's cache holds.
_CACHED = 1 << 15


def draw_pixels(count: int, most: int, seed: int = SEED) -> npt.NDArray[np.int64]:
    """Return at most ``most`` of ``count`` positions, in order; the same for the same seed.

    Drawing the same number from every image is how a sample is balanced over them.
    """
    if count <= most:
        return np.arange(count, dtype=np.int64)
    chosen = np.random.default_rng(seed).choice(count, most, replace=False)
    return np.sort(chosen).astype(np.int64)


def fit_temperature(probabilities: Floats, truth: Labels) -> float:
    """Return the temperature T at which softmax(log p / T) is most likely given the truth.

    Above 1: the model is over-confident. Without any wrong pixel the likelihood only
    grows as T falls, and T is at the lower end of :data:`TEMPERATURES`.

    Parameters
    ----------
    probabilities
        float32 (K, n), summing to one over K.
    truth
        uint8 (n,), all below K. Of more than :data:`FIT_PIXELS`, so many are drawn.

    Notes
    -----
    Guo et al. 2017, section 4.2. The logits are taken from the probabilities, which
    tell them but for a constant that softmax does not see.
    """
    chosen = draw_pixels(len(truth), FIT_PIXELS)
    if not len(chosen):
        raise ValueError("a temperature needs pixels to be fitted on")
    logits = _logits(probabilities[:, chosen])
    of_truth = logits[truth[chosen], np.arange(len(chosen))]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((np.log(np.exp(logits * scale).sum(0)) - of_truth * scale).mean())

    from scipy.optimize import minimize_scalar  # slow to import, and the window starts without

    # The loss is convex in 1/T, so it has one minimum over log T too.
    found = minimize_scalar(
        loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-5}
    )
    return float(np.exp(found.x))


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return softmax(log p / T), float32 (K, ...); with T = 1 the very array.

    The most probable class stays the most probable one.
    """
    if temperature == 1.0:
        return probabilities
    flat = probabilities.reshape(len(probabilities), -1)
    result = np.empty(flat.shape, np.float32)
    for start in range(0, flat.shape[1], _CACHED):
        part = slice(start, start + _CACHED)
        result[:, part] = _raise(flat[:, part], 1.0 / temperature)
    return result.reshape(probabilities.shape)


def _raise(probabilities: Floats, power: float) -> Floats:
    """Return p to the power, summing to one: float32 (K, n)."""
    ratio = probabilities / probabilities.max(0)
    raised = np.exp(np.log(np.maximum(ratio, _TINY)) * np.float32(power))
    # Rounding may make a near tie a tie, which argmax gives to the first class.
    np.minimum(raised, _NEXT_TO_ONE, out=raised, where=ratio < 1)
    result: Floats = raised / raised.sum(0)
    return result


def _logits(probabilities: Floats) -> Doubles:
    """Return log p less its largest, float64."""
    values = np.log(np.maximum(probabilities.astype(np.float64), _TINY))
    shifted: Doubles = values - values.max(0)
    return shifted


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: pixels by how probable their class is; these add up.

    Attributes
    ----------
    count, right
        int64 (bins,): pixels, and those whose class is the true one. Bin m of M holds
        probabilities above (m - 1) / M, up to and with m / M.
    total
        float64 (bins,): the sum of the probabilities.
    """

    count: Counts
    right: Counts
    total: Doubles

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.count + other.count, self.right + other.right, self.total + other.total
        )

    @property
    def confidence(self) -> Doubles:
        """Mean probability per bin; NaN where it is empty."""
        return _ratio(self.total, self.count)

    @property
    def accuracy(self) -> Doubles:
        """Share of right pixels per bin; NaN where it is empty."""
        return _ratio(self.right, self.count)


def reliability(confidence: Floats, is_right: Flags, bins: int = RELIABILITY_BINS) -> Reliability:
    """Count pixels by the probability of their class.

    Parameters
    ----------
    confidence
        float32 (n,): the largest probability of each pixel.
    is_right
        bool (n,): the most probable class is the true one.
    """
    values = np.clip(confidence.astype(np.float64), 0.0, 1.0)
    index = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    return Reliability(
        np.bincount(index, minlength=bins),
        np.bincount(index[is_right], minlength=bins),
        np.bincount(index, values, minlength=bins).astype(np.float64),
    )


def expected_calibration_error(counted: Reliability) -> float:
    """Return the mean gap between probability and share of right pixels, over pixels.

    0 is best; NaN without pixels.
    """
    if not counted.count.any():
        return float("nan")
    return float(np.abs(counted.total - counted.right).sum() / counted.count.sum())


# --- what the uncertainty says ---------------------------------------------------------

#: Values of 0..1 are binned by the leading bits of their single-precision form, which
#: lie in the order of the values: bins are 1/2048 of the value wide at any size. Even
#: bins would put most pixels of a sure model into the first one.
_DROPPED_BITS = 12
_UNCERTAINTY_BINS = (int(np.float32(1.0).view(np.uint32)) >> _DROPPED_BITS) + 1


@dataclass(frozen=True, eq=False)
class UncertaintyCounts:
    """Right and wrong pixels by their uncertainty, int64 (bins,), rising; these add up.

    Pixels of one bin are ties. Where an order is needed, every order of them is as
    likely, and what is returned is the mean over those orders: the same at each call.
    """

    right: Counts
    wrong: Counts

    def __add__(self, other: UncertaintyCounts) -> UncertaintyCounts:
        return UncertaintyCounts(self.right + other.right, self.wrong + other.wrong)

    def auroc(self) -> float:
        """Return how often a wrong pixel is more uncertain than a right one.

        Ties count half. 1 is best, 0.5 is chance; NaN where there are no pairs.
        """
        pairs = float(self.wrong.sum()) * float(self.right.sum())
        if not pairs:
            return float("nan")
        below = np.cumsum(self.right) - self.right
        return float((self.wrong * (below + self.right / 2.0)).sum() / pairs)

    def risk_at(self, coverage: Doubles) -> Doubles:
        """Return the share of wrong pixels among the surest ``coverage`` of all.

        Parameters
        ----------
        coverage
            float64 (m,), above 0 and up to 1.
        """
        seen, errors = self._blocks()
        if not seen[-1]:
            return np.full(np.shape(coverage), np.nan)
        wanted = np.asarray(coverage, np.float64) * seen[-1]
        risks: Doubles = np.interp(wanted, seen, errors) / wanted
        return risks

    def aurc(self) -> float:
        """Return the area under risk against coverage: its mean over 1/n, 2/n, ... 1.

        0 is best; it grows with the share of wrong pixels, and where they are among
        the sure ones. NaN without pixels.
        """
        seen, errors = self._blocks()
        if not seen[-1]:
            return float("nan")
        size, wrong = np.diff(seen), np.diff(errors)
        before, errors_before = seen[:-1], errors[:-1]
        from scipy.special import digamma  # slow to import, and the window starts without

        # Of a block of m ties with e errors, after N pixels with E errors, the j-th has
        # risk (E + j e/m) / (N + j). Over j this sums to e + (E - N e/m) (H(N+m) - H(N)),
        # with the harmonic numbers H(x) = digamma(x + 1) + constant.
        harmonic = digamma(before + size + 1) - digamma(before + 1)
        areas = wrong + (errors_before - before * wrong / size) * harmonic
        return float(areas.sum() / seen[-1])

    def share_of_errors(self, fraction: float = 0.1) -> float:
        """Return the share of the wrong pixels in the most uncertain ``fraction`` of all.

        NaN without a wrong pixel.
        """
        seen, errors = self._blocks()
        if not errors[-1]:
            return float("nan")
        kept = float(np.interp((1.0 - fraction) * seen[-1], seen, errors))
        return 1.0 - kept / float(errors[-1])

    def _blocks(self) -> tuple[Doubles, Doubles]:
        """Return pixels and wrong pixels up to the end of each filled bin, from 0."""
        together = self.right + self.wrong
        filled = together > 0
        ends = [np.cumsum(counts[filled]) for counts in (together, self.wrong)]
        seen, errors = (np.concatenate(([0.0], e.astype(np.float64))) for e in ends)
        return seen, errors


@dataclass(frozen=True, eq=False)
class PackedCounts:
    """The filled bins of :class:`UncertaintyCounts`: most are empty in a single image.

    Attributes
    ----------
    index, right, wrong
        uint32 (m,): which bin, and its pixels.
    """

    index: npt.NDArray[np.uint32]
    right: npt.NDArray[np.uint32]
    wrong: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, counts: UncertaintyCounts) -> PackedCounts:
        """Pack the counts of an image."""
        index = np.flatnonzero(counts.right + counts.wrong).astype(np.uint32)
        right, wrong = (c[index].astype(np.uint32) for c in (counts.right, counts.wrong))
        return cls(index, right, wrong)

    @staticmethod
    def total(packed: Iterable[PackedCounts]) -> UncertaintyCounts:
        """Add the counts of images up."""
        sums = np.zeros((2, _UNCERTAINTY_BINS), np.int64)
        for one in packed:
            sums[0, one.index] += one.right
            sums[1, one.index] += one.wrong
        return UncertaintyCounts(*sums)


def count_uncertainty(values: Floats, is_wrong: Flags) -> UncertaintyCounts:
    """Count pixels by their uncertainty, float32 (n,) in 0..1; ``is_wrong`` bool (n,)."""
    # Adding 0 makes a 0 of -0, whose bits are large.
    clipped = np.clip(values.astype(np.float32), 0.0, 1.0) + np.float32(0)
    index = clipped.view(np.uint32) >> _DROPPED_BITS
    wrong = np.bincount(index[is_wrong], minlength=_UNCERTAINTY_BINS)
    return UncertaintyCounts(np.bincount(index, minlength=_UNCERTAINTY_BINS) - wrong, wrong)


def auroc(values: Floats, is_wrong: Flags) -> float:
    """Return :meth:`UncertaintyCounts.auroc` of pixels (n,)."""
    return count_uncertainty(values, is_wrong).auroc()


def risk_coverage(values: Floats, is_wrong: Flags, points: int = 20) -> tuple[Doubles, Doubles]:
    """Return coverage 1/points, 2/points, ... 1 and the risk there, float64 (points,)."""
    coverage: Doubles = np.arange(1, points + 1) / points
    return coverage, count_uncertainty(values, is_wrong).risk_at(coverage)


def aurc(values: Floats, is_wrong: Flags) -> float:
    """Return :meth:`UncertaintyCounts.aurc` of pixels (n,)."""
    return count_uncertainty(values, is_wrong).aurc()


def share_of_errors_in_most_uncertain(
    values: Floats, is_wrong: Flags, fraction: float = 0.1
) -> float:
    """Return :meth:`UncertaintyCounts.share_of_errors` of pixels (n,)."""
    return count_uncertainty(values, is_wrong).share_of_errors(fraction)


@dataclass(frozen=True, eq=False)
class MisclassificationView:
    """Right and wrong pixels of each true class by a predicted probability; these add up.

    Attributes
    ----------
    of_truth
        int64 (K, 2, bins): by the probability of their true class; right pixels, then
        wrong ones. Bin i of B holds i / B up to, but without, (i + 1) / B; the last, 1 too.
    of_target
        The same by the probability of class 1, the target; None unless K is 2.
    """

    of_truth: Counts
    of_target: Counts | None

    @classmethod
    def of(cls, probabilities: Floats, truth: Labels) -> MisclassificationView:
        """Count pixels: float32 (K, n) and uint8 (n,)."""
        classes = len(probabilities)
        is_wrong = probabilities.argmax(0) != truth
        own = np.take_along_axis(probabilities, truth[None].astype(np.intp), 0)[0]
        of_target = None
        if classes == 2:
            of_target = _count_by(probabilities[1], truth, is_wrong, classes)
        return cls(_count_by(own, truth, is_wrong, classes), of_target)

    def __add__(self, other: MisclassificationView) -> MisclassificationView:
        both = self.of_target is not None and other.of_target is not None
        return MisclassificationView(
            self.of_truth + other.of_truth,
            self.of_target + other.of_target if both else None,  # type: ignore[operator]
        )

    @property
    def shown(self) -> Counts:
        """The counts that are shown: by the target for two classes, else by the truth."""
        return self.of_truth if self.of_target is None else self.of_target

    def histogram(self, true_class: int | None = None, bins: int = 50) -> Counts:
        """Return right and wrong pixels, int64 (2, bins), of a class or of all.

        ``bins`` divides :data:`PROBABILITY_BINS`.
        """
        chosen = self.shown.sum(0) if true_class is None else self.shown[true_class]
        pooled: Counts = chosen.reshape(2, bins, -1).sum(2)
        return pooled

    def share_of_errors_within(
        self, low: float, high: float, true_class: int | None = None
    ) -> float:
        """Return the share of the wrong pixels from ``low`` up to ``high``, to a thousandth.

        NaN without a wrong pixel.
        """
        return self._within(1, low, high, true_class)

    def share_of_right_within(
        self, low: float, high: float, true_class: int | None = None
    ) -> float:
        """Return the same share of the right pixels."""
        return self._within(0, low, high, true_class)

    def _within(self, row: int, low: float, high: float, true_class: int | None) -> float:
        counts = self.histogram(true_class, PROBABILITY_BINS)[row]
        inside = counts[round(low * len(counts)) : round(high * len(counts))].sum()
        return float(inside / counts.sum()) if counts.any() else float("nan")


def _count_by(values: Floats, truth: Labels, is_wrong: Flags, classes: int) -> Counts:
    # A millionth more: 0.9 in single precision is a little less, and opens a bin all the same.
    bins = np.floor((values.astype(np.float64) + 1e-6) * PROBABILITY_BINS).astype(np.int64)
    bins = np.clip(bins, 0, PROBABILITY_BINS - 1)
    index = (truth.astype(np.int64) * 2 + is_wrong) * PROBABILITY_BINS + bins
    shape = (classes, 2, PROBABILITY_BINS)
    return np.bincount(index, minlength=int(np.prod(shape))).reshape(shape)


class Tally:
    """Counts over images that are fed one by one; as large for one as for a thousand.

    Parameters
    ----------
    classes
        Number of classes K.
    kinds
        Uncertainties to count.
    """

    def __init__(self, classes: int, kinds: Sequence[UncertaintyKind]) -> None:
        nothing = np.zeros((classes, 0), np.float32), np.zeros(0, np.uint8)
        self.reliability = _reliability_of(*nothing)
        self.view = MisclassificationView.of(*nothing)
        self.uncertainty = {kind: _uncertainty_of(kind, *nothing) for kind in kinds}

    def add(self, probabilities: Floats, truth: Labels) -> None:
        """Count the pixels of an image: float32 (K, n), and uint8 (n,), all below K."""
        self.reliability += _reliability_of(probabilities, truth)
        self.view += MisclassificationView.of(probabilities, truth)
        for kind in self.uncertainty:
            self.uncertainty[kind] += _uncertainty_of(kind, probabilities, truth)

    @property
    def pixels(self) -> int:
        """How many were counted."""
        return int(self.reliability.count.sum())

    @property
    def wrong(self) -> int:
        """How many of them were given another class than the true one."""
        return self.pixels - int(self.reliability.right.sum())


def _reliability_of(probabilities: Floats, truth: Labels) -> Reliability:
    return reliability(probabilities.max(0), probabilities.argmax(0) == truth)


def _uncertainty_of(
    kind: UncertaintyKind, probabilities: Floats, truth: Labels
) -> UncertaintyCounts:
    return count_uncertainty(uncertainty(kind, probabilities), probabilities.argmax(0) != truth)


def calibrated_reliability(probabilities: Floats, truth: Labels, temperature: float) -> Reliability:
    """Return the reliability of pixels, (K, n) and (n,), after a temperature."""
    return _reliability_of(apply_temperature(probabilities, temperature), truth)


def _ratio(part: npt.NDArray[Any], whole: Counts) -> Doubles:
    result: Doubles = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result

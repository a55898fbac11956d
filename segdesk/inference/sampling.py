"""Class probabilities and uncertainty of a batch, by one pass or by several that may disagree.

Where there are several passes, the mean of their probabilities p_t is returned. For dropout
the uncertainty is the mutual information between the class and the pass: entropy(mean of
p_t) - mean of entropy(p_t), over log K. It is 0 where the passes agree, however unsure they
are, and 1 where they contradict each other in all K classes. For augmentation and ensembles
it is entropy(mean of p_t), over log K, alone: views of an image and few models disagree in
too few of the places where all of them are unsure (measured, see docs/benchmarks.md).

- Monte Carlo dropout: Gal and Ghahramani, Dropout as a Bayesian Approximation, ICML 2016;
  the mutual information: Houlsby et al., Bayesian Active Learning for Classification and
  Preference Learning, 2011.
- Test-time augmentation: Wang et al., Aleatoric Uncertainty Estimation with Test-Time
  Augmentation, Neurocomputing 338, 2019.
- Ensembles: Lakshminarayanan, Pritzel and Blundell, Simple and Scalable Predictive
  Uncertainty Estimation Using Deep Ensembles, NeurIPS 2017.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.core.errors import InputError
from segdesk.core.prediction import UncertaintyKind

#: Layers that drop single values, and those that drop whole channels.
DROPOUTS: Final = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
#: Augmentation makes this many passes; with fewer asked for, :data:`FLIPS`.
TURNS_AND_FLIPS: Final = 8
FLIPS: Final = 4

#: From a batch to the class maps of each pass, before the softmax.
Passes = Callable[[Tensor], Iterator[Tensor]]


class Sampler(Protocol):
    """Makes class probabilities and uncertainty of a batch.

    Attributes
    ----------
    passes
        Forward passes for each batch: what it costs.
    """

    passes: int

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean probabilities and uncertainty.

        Parameters
        ----------
        batch
            float32 (N, C, H, W), on the networks' device.

        Returns
        -------
        probabilities, uncertainty
            float32 (N, K, h, w), summing to one over K, and float32 (N, h, w), 0 to 1.
            h and w are those of the networks' maps.
        """
        ...


def make_sampler(
    kind: UncertaintyKind,
    networks: Sequence[nn.Module],
    *,
    passes: int = 8,
    seed: int = 0,
) -> Sampler:
    """Return what makes probabilities and uncertainty of this kind.

    Parameters
    ----------
    networks
        In evaluation mode, on one device, with the same classes in the same order (see
        :func:`in_order`). All of them for an ensemble, else the first.
    passes
        How often dropout is drawn. Augmentation makes 8 passes, flips and turns, or 4,
        flips only, where fewer than 8 are asked for.
    seed
        For the dropped values: the same seed gives the same result.

    Raises
    ------
    InputError
        The network has no dropout.
    """
    network = networks[0]
    if kind is UncertaintyKind.DROPOUT:
        return _Several(_dropout(network, passes, seed), passes, is_mutual=True)
    if kind is UncertaintyKind.AUGMENTATION:
        count = TURNS_AND_FLIPS if passes >= TURNS_AND_FLIPS else FLIPS
        return _Several(_augmentation(network, count), count)
    if kind is UncertaintyKind.ENSEMBLE:
        members = list(networks)
        return _Several(lambda x: (m(x) for m in members), len(members))
    if kind is UncertaintyKind.ENTROPY:
        return _One(network, _with_entropy)
    return _One(network, _with_margin)


def with_uncertainty(sampler: Sampler, batch: Tensor) -> Tensor:
    """Return probabilities and, as the last map, the uncertainty: float32 (N, K + 1, h, w)."""
    probabilities, unsure = sampler(batch)
    return torch.cat((probabilities, unsure[:, None]), 1)


def entropy_of_maps(maps: Tensor) -> Tensor:
    """Return Shannon entropy over its maximum, 0 (sure) to 1 (guessing).

    Exact however sure the model is: every term is positive, and none is a difference of
    two that are nearly equal, as 1 - p is where p rounds to 1.

    Parameters
    ----------
    maps
        Class maps before the softmax, float (N, K, h, w).

    Returns
    -------
    Tensor
        float32 (N, h, w).
    """
    behind, odds = _behind(maps)
    rest = odds.sum(1)
    values = torch.log1p(rest) + (odds * behind).sum(1) / (1 + rest)
    return (values / math.log(maps.shape[1])).clamp(0, 1)


def margin_of_maps(maps: Tensor) -> Tensor:
    """Return one minus the lead of the best class, 0 (sure) to 1 (a tie).

    With two classes this is 1 - tanh(d / 2) for class maps that differ by d. Exact
    however sure the model is, see :func:`entropy_of_maps`; parameters as there.
    """
    _, odds = _behind(maps)
    rest = odds.sum(1)
    return ((rest + odds.amax(1)) / (1 + rest)).clamp(0, 1)


def _behind(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far each class but the best lies behind it, and its odds against it."""
    if maps.shape[1] == 2:  # without the sorting, which takes a tenth of a small model's time
        behind = (maps[:, :1].float() - maps[:, 1:].float()).abs()
    else:
        falling = maps.float().sort(1, descending=True).values
        behind = falling[:, :1] - falling[:, 1:]
    return behind, torch.exp(-behind)


def in_order(network: nn.Module, own: Sequence[str], wanted: Sequence[str]) -> nn.Module:
    """Return a network whose class maps come in the order of ``wanted``.

    Parameters
    ----------
    own
        Its classes, the same names in any order.
    """
    if tuple(own) == tuple(wanted):
        return network
    return _Reordered(network, [list(own).index(name) for name in wanted])


class _Reordered(nn.Module):
    def __init__(self, network: nn.Module, order: list[int]) -> None:
        super().__init__()
        self._network = network
        self._order = order

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self._network(x)
        return maps[:, self._order]


class _One:
    """One pass; ``measure`` makes probabilities and uncertainty of its class maps."""

    passes = 1

    def __init__(
        self, network: nn.Module, measure: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        self._network = network
        self._measure = measure

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return self._measure(self._network(batch).float())


def _with_entropy(maps: Tensor) -> tuple[Tensor, Tensor]:
    return F.softmax(maps, 1), entropy_of_maps(maps)


def _with_margin(maps: Tensor) -> tuple[Tensor, Tensor]:
    if maps.shape[1] != 2:
        return F.softmax(maps, 1), margin_of_maps(maps)
    # Of two classes, the usual case, one difference tells all, in half the time; and as
    # exactly: the smaller probability is computed by itself, not as 1 - p.
    lead = maps[:, 0] - maps[:, 1]
    first, second = torch.sigmoid(lead), torch.sigmoid(-lead)
    return torch.stack((first, second), 1), 2 * torch.minimum(first, second)


class _Several:
    """Several passes; the uncertainty is the entropy of their mean.

    With ``is_mutual`` it is their mutual information with the class.
    """

    def __init__(self, run: Passes, passes: int, *, is_mutual: bool = False) -> None:
        self.passes = passes
        self._run = run
        self._is_mutual = is_mutual

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        # Where a model is sure the two entropies differ in their last places only; Apple's
        # graphics cards compute in single precision alone.
        precise = torch.float32 if batch.device.type == "mps" else torch.float64
        total: Tensor | None = None
        entropies: Tensor | None = None
        for maps in self._run(batch):
            logs = F.log_softmax(maps.to(precise), 1)
            p = logs.exp()
            entropy = -(p * logs).sum(1)
            total = p if total is None else total + p
            entropies = entropy if entropies is None else entropies + entropy
        assert total is not None  # there is at least one pass
        assert entropies is not None
        mean = total / self.passes
        whole = -torch.xlogy(mean, mean).sum(1)
        if self._is_mutual:
            whole = whole - entropies / self.passes
        unsure = whole / math.log(mean.shape[1])
        return mean.float(), unsure.clamp(0, 1).float()


def _augmentation(network: nn.Module, count: int) -> Passes:
    """Run a network on flips, and turns by a quarter, and undo them in its maps."""
    turns = range(4) if count == TURNS_AND_FLIPS else (0, 2)
    frames = list(product((False, True), turns))

    def run(batch: Tensor) -> Iterator[Tensor]:
        for is_flipped, quarter in frames:
            seen = batch.flip(-1) if is_flipped else batch
            maps = torch.rot90(network(torch.rot90(seen, quarter, (-2, -1))), -quarter, (-2, -1))
            yield maps.flip(-1) if is_flipped else maps

    return run


def _dropout(network: nn.Module, passes: int, seed: int) -> Passes:
    """Run a network with its dropout layers active; all else stays in evaluation mode."""
    layers = [m for m in network.modules() if isinstance(m, DROPOUTS) and m.p > 0]
    if not layers:
        others = ", ".join(k for k in UncertaintyKind if k is not UncertaintyKind.DROPOUT)
        raise InputError(
            "This model has no dropout, so it cannot be asked several times with parts of it "
            f"left out; choose another uncertainty: {others}."
        )

    def run(batch: Tensor) -> Iterator[Tensor]:
        # Seeded anew for each batch, so that every tile is seen by the same networks: the
        # result does not depend on the order of tiles, and there are no seams between them.
        generator = torch.Generator().manual_seed(seed)
        for _ in range(passes):
            with _dropping(layers, generator):
                maps: Tensor = network(batch)
            yield maps

    return run


@contextmanager
def _dropping(layers: Sequence[nn.Module], generator: torch.Generator) -> Iterator[None]:
    """Make dropout layers drop while the network stays in evaluation mode.

    Drawn on the processor by a generator of its own: torch's global one is left alone,
    and a seed means the same on every device.
    """
    here = threading.get_ident()

    def drop(layer: nn.Module, _: object, x: Tensor) -> Tensor:
        if threading.get_ident() != here:  # another tile, computed at the same time
            return x
        assert isinstance(layer, DROPOUTS)
        keep = 1.0 - layer.p
        is_by_value = isinstance(layer, nn.Dropout)
        # One draw for the whole batch: images beside each other see the same network.
        shape = x.shape[1:] if is_by_value else (x.shape[1], *(1 for _ in x.shape[2:]))
        kept = torch.empty(shape).bernoulli_(keep, generator=generator)
        return x * (kept / max(keep, 1e-12)).to(x.device, x.dtype)

    handles = [layer.register_forward_hook(drop) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

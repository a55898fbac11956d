"""Several passes over real small networks: what they agree on, and what is left behind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from segdesk.core.errors import InputError
from segdesk.core.prediction import UncertaintyKind
from segdesk.inference.sampling import (
    entropy_of_maps,
    in_order,
    make_sampler,
    margin_of_maps,
)
from segdesk.nn.registry import find_architecture


def network(name: str = "unet", seed: int = 0, classes: int = 2, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    spec = find_architecture(name)
    small = {"width": 4, "dropout": 0.3} if name == "unet" else spec.small
    return spec.build(1, classes, **{**spec.options, **small, **options}).eval()


def image(seed: int = 0, height: int = 48, width: int = 64, count: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(count, 1, height, width)


def ask(kind: UncertaintyKind, *networks: nn.Module, **options: object) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        return make_sampler(kind, networks, **options)(image())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(UncertaintyKind))
def test_probabilities_sum_to_one_and_uncertainty_lies_in_0_to_1(kind: UncertaintyKind) -> None:
    batch = image(count=2)
    with torch.inference_mode():
        sampler = make_sampler(kind, [network(classes=3), network(classes=3, seed=1)])
        p, unsure = sampler(batch)
    assert p.shape == (2, 3, 48, 64)
    assert unsure.shape == (2, 48, 64)
    assert (p.dtype, unsure.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(p.sum(1), torch.ones(2, 48, 64))
    assert 0 <= unsure.min() < unsure.max() <= 1


@pytest.mark.parametrize(
    ("kind", "passes", "made"),
    [
        (UncertaintyKind.MARGIN, 8, 1),
        (UncertaintyKind.DROPOUT, 5, 5),
        (UncertaintyKind.AUGMENTATION, 8, 8),
        (UncertaintyKind.AUGMENTATION, 5, 4),
        (UncertaintyKind.ENSEMBLE, 8, 2),
    ],
)
def test_it_costs_the_passes_it_says(kind: UncertaintyKind, passes: int, made: int) -> None:
    networks, calls = [network(), network(seed=1)], []
    for each in networks:
        each.register_forward_pre_hook(lambda *_: calls.append(1))
    sampler = make_sampler(kind, networks, passes=passes)
    sampler(image())
    assert sampler.passes == len(calls) == made


def test_dropout_is_repeated_whatever_was_asked_before() -> None:
    sampler = make_sampler(UncertaintyKind.DROPOUT, [network()], seed=3)
    one, other = image(1), image(2)
    first = sampler(one)[1]
    sampler(other)
    assert torch.equal(sampler(one)[1], first)
    assert not torch.equal(
        make_sampler(UncertaintyKind.DROPOUT, [network()], seed=4)(one)[1], first
    )


def test_a_tile_is_seen_the_same_alone_and_beside_others() -> None:
    """So that neither the order of tiles nor the size of a batch shows in an image."""
    sampler = make_sampler(UncertaintyKind.DROPOUT, [network()])
    both = sampler(torch.cat((image(1), image(2))))[1]
    for number, seed in enumerate((1, 2)):
        torch.testing.assert_close(both[number], sampler(image(seed))[1][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.Dropout2d(0.4)])
def test_dropout_keeps_the_mean_of_what_it_drops(layer: nn.Module) -> None:
    """Single values and whole channels: many draws come back to the network without it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), layer, nn.Conv2d(32, 2, 1)).eval()
    sampler = make_sampler(UncertaintyKind.DROPOUT, [net], passes=300)
    with torch.inference_mode():
        mean, unsure = sampler(image())
        plain = net(image()).softmax(1)
    assert unsure.min() > 1e-5
    assert (mean - plain).abs().mean() < 0.01


def test_dropout_leaves_the_network_and_torchs_random_numbers_alone() -> None:
    net = network()
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    statistics, plain = norm.running_mean.clone(), net(image())
    state = torch.get_rng_state()
    sampler = make_sampler(UncertaintyKind.DROPOUT, [net])
    sampler(image(0))
    torch.manual_seed(0)
    with pytest.raises(RuntimeError):
        sampler(torch.zeros(1, 7, 48, 64))  # seven channels: the network cannot take it
    assert not any(m.training for m in net.modules())
    assert torch.equal(norm.running_mean, statistics)
    assert torch.equal(net(image()), plain)
    torch.set_rng_state(state)
    before = torch.rand(3)
    torch.set_rng_state(state)
    batch = torch.ones(1, 1, 48, 64)
    sampler(batch)
    assert torch.equal(torch.rand(3), before)


def test_a_network_without_dropout_is_refused() -> None:
    for net in (network(dropout=0.0), network("segnet")):
        with pytest.raises(InputError, match=r"no dropout.*margin.*augmentation, ensemble"):
            make_sampler(UncertaintyKind.DROPOUT, [net])


@pytest.mark.parametrize("passes", [4, 8])
def test_a_flipped_image_gets_the_flipped_answer(passes: int) -> None:
    sampler = make_sampler(UncertaintyKind.AUGMENTATION, [network()], passes=passes)
    batch = image()
    with torch.inference_mode():
        plain = sampler(batch)
        for turned in ([-1], [-2], [-1, -2]):
            for one, other in zip(sampler(batch.flip(turned)), plain, strict=True):
                torch.testing.assert_close(one.flip(turned), other, rtol=0, atol=1e-5)
        if passes == 8:
            quarter = sampler(torch.rot90(batch, 1, (-2, -1)))
            for one, other in zip(quarter, plain, strict=True):
                back = torch.rot90(one, -1, (-2, -1))
                torch.testing.assert_close(back, other, rtol=0, atol=1e-5)
    assert plain[1].max() > 1e-4  # the network itself does not see a flipped image the same


def test_maps_smaller_than_the_image_are_turned_back_too() -> None:
    class Valid(nn.Conv2d):
        """A convolution without padding: its maps lack a border."""

    torch.manual_seed(0)
    sampler = make_sampler(UncertaintyKind.AUGMENTATION, [Valid(1, 2, 5)])
    batch = image(height=20, width=30)
    with torch.inference_mode():
        p, unsure = sampler(batch)
        flipped, _ = sampler(batch.flip(-1))
    assert p.shape == (1, 2, 16, 26)
    assert unsure.shape == (1, 16, 26)
    torch.testing.assert_close(flipped.flip(-1), p, rtol=0, atol=1e-5)


def test_dropout_that_agrees_is_certain_however_unsure_each_draw_is() -> None:
    # Nothing is left to drop where all is 0: every draw says the same, a half.
    blank = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Dropout(0.4), nn.Conv2d(4, 2, 1))
    nn.init.zeros_(blank[0].weight)
    nn.init.zeros_(blank[2].bias)
    one, unsure = ask(UncertaintyKind.DROPOUT, blank)
    torch.testing.assert_close(one, torch.full_like(one, 0.5))
    assert unsure.max() < 1e-6


@pytest.mark.parametrize("kind", [UncertaintyKind.AUGMENTATION, UncertaintyKind.ENSEMBLE])
def test_passes_that_say_the_same_are_as_unsure_as_one(kind: UncertaintyKind) -> None:
    pointwise = nn.Conv2d(1, 2, 1)  # says the same of a pixel however the image is turned
    one, unsure = ask(kind, pointwise, pointwise, pointwise)
    alone, entropy = ask(UncertaintyKind.ENTROPY, pointwise)
    torch.testing.assert_close(one, alone)
    torch.testing.assert_close(unsure, entropy, rtol=0, atol=1e-5)


def test_passes_that_contradict_each_other_surely_are_guessing() -> None:
    class Says(nn.Module):
        def __init__(self, label: int) -> None:
            super().__init__()
            self.label = label

        def forward(self, x: Tensor) -> Tensor:
            maps = torch.zeros(len(x), 2, *x.shape[-2:])
            maps[:, self.label] = 50.0
            return maps

    p, unsure = ask(UncertaintyKind.ENSEMBLE, Says(0), Says(1))
    torch.testing.assert_close(p, torch.full_like(p, 0.5))
    torch.testing.assert_close(unsure, torch.ones_like(unsure))
    # Three of four against one: entropy of (3/4, 1/4) in bits.
    _, unsure = ask(UncertaintyKind.ENSEMBLE, Says(0), Says(0), Says(0), Says(1))
    expected = 2 - 0.75 * math.log2(3)
    torch.testing.assert_close(unsure, torch.full_like(unsure, expected))


def test_classes_in_another_order_are_brought_into_ours() -> None:
    net = network(classes=3)
    turned = in_order(net, ("sky", "road", "tree"), ("tree", "sky", "road"))
    with torch.inference_mode():
        torch.testing.assert_close(turned(image()), net(image())[:, [2, 0, 1]])
    assert in_order(net, ("a", "b"), ("a", "b")) is net


@pytest.mark.parametrize("measure", [margin_of_maps, entropy_of_maps])
@pytest.mark.parametrize("classes", [2, 4])
def test_an_over_confident_model_keeps_its_order(measure: object, classes: int) -> None:
    """Probabilities round to 1 from a lead of 17 on; the uncertainty goes on falling."""
    lead = torch.linspace(0, 80, 401)
    maps = torch.zeros(1, classes, 1, 401)
    maps[0, 0, 0] = lead
    values = measure(maps)[0, 0]  # type: ignore[operator]
    assert values[0] == 1
    assert values[-1] > 0
    assert (values.diff() < 0).all()
    assert maps[0].softmax(0)[0, 0, 200] == 1.0


def test_margin_and_entropy_of_maps_by_hand() -> None:
    maps = torch.tensor([0.7, 0.2, 0.1]).log()[None, :, None, None] + 5.0
    torch.testing.assert_close(margin_of_maps(maps).item(), 0.5)
    expected = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1)) / math.log(3)
    torch.testing.assert_close(entropy_of_maps(maps).item(), expected)
    pair = torch.tensor([1.5, -0.5])[None, :, None, None]
    torch.testing.assert_close(margin_of_maps(pair).item(), 1 - math.tanh(1.0))


@pytest.mark.parametrize("kind", [UncertaintyKind.MARGIN, UncertaintyKind.ENTROPY])
@pytest.mark.parametrize("classes", [2, 3])
def test_one_pass_says_what_the_maps_say_however_sure(kind: UncertaintyKind, classes: int) -> None:
    """Two classes have a way of their own through the sampler."""
    lead = torch.linspace(-80, 80, 201)
    maps = torch.zeros(1, classes, 1, 201)
    maps[0, 0, 0] = lead
    with torch.inference_mode():
        p, unsure = make_sampler(kind, [nn.Identity()])(maps)
    torch.testing.assert_close(p, maps.softmax(1))
    measure = margin_of_maps if kind is UncertaintyKind.MARGIN else entropy_of_maps
    torch.testing.assert_close(unsure, measure(maps))
    assert unsure.min() > 0
    assert (unsure[0, 0, 101:].diff() < 0).all()

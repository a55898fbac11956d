from __future__ import annotations

import pytest
import torch
from torch import nn

from segdesk.nn.unpooling import SwitchedVgg, UnpoolingDecoder
from segdesk.nn.weights import count_parameters
from segdesk_models.segnet import SegNet


def narrow() -> SegNet:
    torch.manual_seed(0)
    return SegNet(1, 2, width=4).eval()


@pytest.mark.parametrize(
    ("classes", "expected"), [(11, 29_449_355), (12, 29_449_932), (21, 29_455_125)]
)
def test_it_has_the_known_number_of_parameters(classes: int, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(SegNet(3, classes)) == expected


def test_unpooling_puts_values_back_where_they_came_from() -> None:
    image = torch.tensor(
        [[[[1.0, 2, 0, 0], [4, 3, 0, 5], [0, 9, 1, 1], [0, 0, 1, 7]]]],
    )
    pool = nn.MaxPool2d(2, return_indices=True)
    once, first = pool(image)
    twice, second = pool(once)
    assert twice.item() == 9
    decoder = UnpoolingDecoder(1, [(1,), (1,)], lambda inputs, outputs: nn.Identity())
    assert decoder(twice, [first, second]).tolist() == [
        [[[0, 0, 0, 0], [0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 0]]]
    ]
    one = UnpoolingDecoder(1, [(1,)], lambda inputs, outputs: nn.Identity())
    assert one(once, [first]).tolist() == [
        [[[0, 0, 0, 0], [4, 0, 0, 5], [0, 9, 0, 0], [0, 0, 0, 7]]]
    ]


def test_switches_are_where_the_maxima_are() -> None:
    encoder = SwitchedVgg(1, 4).eval()
    before: list[torch.Tensor] = []
    pools = [part for part in encoder.features if isinstance(part, nn.MaxPool2d)]
    for pool in pools:
        pool.register_forward_hook(lambda module, inputs, outputs: before.append(inputs[0]))
    with torch.inference_mode():
        _, switches = encoder(torch.randn(2, 1, 64, 96))
    assert [tuple(s.shape[-2:]) for s in switches] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    for unpooled, places in zip(before, switches, strict=True):
        maxima = nn.functional.max_pool2d(unpooled, 2)
        found = unpooled.flatten(2).gather(2, places.flatten(2)).view_as(maxima)
        assert torch.equal(found, maxima)


def test_the_decoder_mirrors_the_encoder() -> None:
    with torch.device("meta"):
        network = SegNet(3, 21)
    down = [(m.in_channels, m.out_channels) for m in network.encoder.modules()
            if isinstance(m, nn.Conv2d)]  # fmt: skip
    up = [(m.out_channels, m.in_channels) for m in (*network.decoder.modules(),
          *network.head.modules()) if isinstance(m, nn.Conv2d)]  # fmt: skip
    assert up[:-1] == down[:0:-1]
    assert down[0] == (3, 64)
    assert up[-1] == (21, 64)


def test_moving_a_maximum_within_its_window_moves_the_mask() -> None:
    """What is left of an edge below one value of the map is in the switches alone."""
    network = narrow()
    with torch.inference_mode():
        features, switches = network.encoder(torch.randn(1, 1, 64, 64))
        row, column = switches[0] // 64, switches[0] % 64
        # The same window, the other one of its two columns.
        moved = row * 64 + (column ^ 1)
        maps = network.decoder(features, switches)
        others = network.decoder(features, [moved, *switches[1:]])
    assert not torch.allclose(maps, others)


def test_the_order_of_pixels_in_memory_does_not_matter() -> None:
    network, x = narrow(), torch.randn(2, 1, 64, 96)
    with torch.inference_mode():
        expected = network(x)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = network(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected)

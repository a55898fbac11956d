from __future__ import annotations

import pytest
import torch

from segdesk.core.errors import InputError
from segdesk.nn.device import pick_device, place


def test_auto_takes_something_that_computes() -> None:
    choice = pick_device("auto")
    assert torch.ones(2, device=choice.device).sum().item() == 2
    assert choice.reason


def test_a_missing_card_is_explained() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA card")
    with pytest.raises(InputError, match=r"No CUDA graphics card .* choose auto or cpu"):
        pick_device("cuda")


def test_placing_keeps_the_answer() -> None:
    network = torch.nn.Conv2d(3, 4, 3).eval()
    x = torch.randn(1, 3, 8, 8)
    before = network(x)
    after = place(network, torch.device("cpu"))(x)
    torch.testing.assert_close(after, before)

"""VGG-16 against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from parity import Case, assert_same, fill, freeze, image, ours
from parity_vgg import CASES, build_plain, in_a_row
from segdesk.nn.torchvision_compat import import_transforms
from segdesk.nn.unpooling import SwitchedVgg
from segdesk_models.fcn import Encoder

import_transforms()
from torchvision.models import vgg16, vgg16_bn  # noqa: E402

PLAIN, NORMED = CASES


def load_trunk(theirs: nn.Module, own: nn.Module) -> None:
    """Copy the convolutions; both name them alike."""
    weights = {
        name.removeprefix("features."): value
        for name, value in own.state_dict().items()
        if name.startswith("features.")
    }
    theirs.load_state_dict(weights, strict=True)


@pytest.mark.parametrize("case", [PLAIN], ids=lambda case: case.name)
def test_poolings_are_those_of_torchvision(case: Case) -> None:
    trunk = vgg16().features.eval()
    load_trunk(trunk, fill(build_plain()))
    x, pooled = image(case.shape), []
    with torch.inference_mode():
        for part in trunk:
            x = part(x)
            if isinstance(part, nn.MaxPool2d):
                pooled.append(x)
    expected = in_a_row(pooled[2:])
    assert_same(ours(case), expected)
    freeze(case, expected)


@pytest.mark.parametrize("case", [NORMED], ids=lambda case: case.name)
def test_switches_are_those_of_torchvision(case: Case) -> None:
    trunk = vgg16_bn().features.eval()
    load_trunk(trunk, fill(SwitchedVgg(3, 64)))
    x, places = image(case.shape), list[Tensor]()
    with torch.inference_mode():
        for part in trunk:
            if isinstance(part, nn.MaxPool2d):
                x, where = nn.functional.max_pool2d(x, 2, return_indices=True)
                places.append(where)
            else:
                x = part(x)
    expected = in_a_row([x, places[3].float() / 100, places[4].float() / 100])
    assert_same(ours(case), expected)
    freeze(case, expected)


def test_fc7_is_that_of_torchvisions_classifier() -> None:
    """In the middle of a 224 pixel image, where fc6 sees the whole map and no padding."""
    own = Encoder(3, width=64, hidden=4096, padding=1, window_padding=3, dropout=0.5, levels=1)
    fill(own)
    theirs = vgg16().eval()
    load_trunk(theirs.features, own)
    fc6, fc7 = theirs.classifier[0], theirs.classifier[3]
    own_fc6, own_fc7 = own.pre_logits.get_submodule("fc1"), own.pre_logits.get_submodule("fc2")
    fc6.load_state_dict({"weight": own_fc6.weight.flatten(1), "bias": own_fc6.bias})
    fc7.load_state_dict({"weight": own_fc7.weight.flatten(1), "bias": own_fc7.bias})
    x = image((1, 3, 224, 224))
    with torch.inference_mode():
        expected = theirs.classifier[:5](theirs.features(x).flatten(1))
        found = own(x)[0][:, :, 3, 3]
    assert_same(found, expected)

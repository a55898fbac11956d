"""Every installed architecture keeps the contract, and the contract sees what is broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from segdesk.nn import contract
from segdesk.nn.heads import Head
from segdesk.nn.registry import architectures
from segdesk.nn.segmenter import Segmenter
from segdesk.nn.spec import Initialisation, ModelSpec

SPECS = [pytest.param(spec, id=name) for name, spec in architectures().items()]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("promise", contract.CHECKS)
def test_it_keeps_its_promise(spec: ModelSpec, promise: str, tmp_path: Path) -> None:
    contract.CHECKS[promise](spec, tmp_path)


UNET = architectures()["unet"]


def unet(*arguments: Any, **options: Any) -> Any:
    """Build what is about to be broken."""
    return UNET.build(*arguments, **options)


def no_decoder(*arguments: Any, **options: Any) -> nn.Module:
    network = unet(*arguments, **options)
    body = nn.Sequential(network.encoder, network.decoder)
    return Segmenter(body, nn.Identity(), network.head)


def nothing_to_see(*arguments: Any, **options: Any) -> nn.Module:
    network = no_decoder(*arguments, **options)
    network.head = nn.Identity()
    return network


def always_plain(*arguments: Any, **options: Any) -> nn.Module:
    return unet(*arguments, **options | {"activation": "none"})


def never_gelu_in_d(*arguments: Any, **options: Any) -> nn.Module:
    network = unet(*arguments, **options)
    if (options["head"], options["activation"]) == ("D", "gelu"):
        assert isinstance(network.head, Head)
        network.head.activation = nn.Identity()
    return network


@pytest.mark.parametrize(
    ("promise", "change"),
    [
        ("initialisation", {"build": nothing_to_see}),
        ("initialisation", {"build": no_decoder, "initialisation": Initialisation.NORMAL_001}),
        ("initialisation", {"initialisation": Initialisation.NORMAL_001}),
        ("heads", {"build": always_plain}),
        ("heads", {"build": never_gelu_in_d}),
        ("modes", {"has_dropout": False}),
        ("gradients", {"idle": ("decoder.*",)}),
        ("export", {"is_exportable": False}),
        ("description", {"deviations": ("No full stop",)}),
        ("imports", {"build": unet}),
    ],
)
def test_a_broken_promise_is_seen(promise: str, change: dict[str, Any], tmp_path: Path) -> None:
    contract.CHECKS[promise](UNET, tmp_path)
    with pytest.raises(AssertionError):
        contract.CHECKS[promise](replace(UNET, **change), tmp_path)

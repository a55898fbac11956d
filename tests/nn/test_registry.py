from __future__ import annotations

from typing import Any

import pytest

from segdesk.config.model import Activation, HeadKind, Variant, plain
from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.nn.registry import (
    architectures,
    build_network,
    find_architecture,
    resolve_options,
    suggest,
)
from segdesk.nn.spec import ModelSpec

SPEC = ModelSpec(
    name="toy",
    title="Toy",
    year=2000,
    reference="",
    build=dict,  # type: ignore[arg-type]
    stride=1,
    options={
        "encoder": "resnet101",
        "width": 64,
        "dropout": 0.5,
        "auxiliary": True,
        "rates": [6, 12, 18],
        "shares": (0.5, 0.25),
        "depth": None,
        "depths": None,
        "anything": None,
        "head": "A",
        "activation": "none",
    },
    small={"encoder": "resnet18", "width": 16, "depth": 4, "depths": [2, 2]},
)


def test_the_variants() -> None:
    assert resolve_options(SPEC, "paper", {}) == SPEC.options
    assert resolve_options(SPEC, Variant.SMALL, {}) == SPEC.options | SPEC.small
    mine = resolve_options(SPEC, "small", {"width": 8, "head": "C"})
    assert mine == SPEC.options | SPEC.small | {"width": 8, "head": "C"}
    assert SPEC.options["width"] == 64
    with pytest.raises(InputError, match="no variant called 'big'; there are: small, paper"):
        resolve_options(SPEC, "big", {})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("encoder", "resnet50", "resnet50"),
        ("width", "32", 32),
        ("width", " 32 ", 32),
        ("width", 32, 32),
        ("dropout", "0.1", 0.1),
        ("dropout", "0", 0.0),
        ("dropout", 0, 0.0),
        ("auxiliary", "no", False),
        ("auxiliary", "False", False),
        ("auxiliary", "1", True),
        ("auxiliary", False, False),
        ("rates", "6,12", [6, 12]),
        ("rates", "[6, 12, 18]", [6, 12, 18]),
        ("rates", "6", [6]),
        ("rates", (6, 12), [6, 12]),
        ("shares", "1,0.5", (1.0, 0.5)),
        ("shares", "(0.5,)", (0.5,)),
        ("depth", "none", None),
        ("depth", None, None),
        ("depth", "12", 12),
        ("depths", "2,2,6,2", [2, 2, 6, 2]),
        ("depths", "None", None),
        ("anything", "3", 3),
        ("anything", "0.5", 0.5),
        ("anything", "word", "word"),
        ("head", "D", "D"),
        ("head", HeadKind.B, "B"),
        ("activation", Activation.GELU, "gelu"),
        ("activation", "none", "none"),
    ],
)
@pytest.mark.parametrize("variant", ["small", "paper"])
def test_text_becomes_what_the_option_is(variant: str, name: str, text: Any, value: Any) -> None:
    head = {"head": "B"} if name == "activation" else {}  # A has none
    found = resolve_options(SPEC, variant, {**head, name: text})[name]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, list | tuple):
        assert [type(part) for part in found] == [type(part) for part in value]


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("width", "wide", "a whole number"),
        ("width", "3.5", "a whole number"),
        ("width", "", "a whole number"),
        ("width", True, "a whole number"),
        ("width", None, "a whole number"),
        ("dropout", "nan", "a number"),
        ("dropout", "inf", "a number"),
        ("dropout", "half", "a number"),
        ("auxiliary", "perhaps", "yes or no"),
        ("auxiliary", 2, "yes or no"),
        ("rates", "6;12", "numbers with commas between, such as 6,12,18"),
        ("rates", "6,half", "numbers with commas between, such as 6,12,18"),
        ("rates", "", "numbers with commas between, such as 6,12,18"),
        ("rates", 6, "numbers with commas between, such as 6,12,18"),
        ("depth", "deep", "a whole number"),
        ("depths", "2,2.5", "numbers with commas between, such as 2,2"),
        ("encoder", 18, "a name, such as resnet101"),
        ("encoder", "", "a name, such as resnet101"),
        ("head", "Z", "one of A, B, C, D"),
        ("activation", "sigmoid", "one of none, tanh, relu, leaky_relu, selu, gelu"),
    ],
)
def test_a_value_that_cannot_be(name: str, value: Any, advice: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_options(SPEC, "paper", {name: value})
    assert caught.value.message == (
        f"The option {name!r} of toy cannot be {value!r}; write {advice}."
    )


def test_an_unknown_option_names_the_nearest_and_all() -> None:
    names = ", ".join(SPEC.options)
    with pytest.raises(InputError) as caught:
        resolve_options(SPEC, "small", {"widht": 3})
    assert caught.value.message == (
        f"toy has no option called 'widht'; did you mean 'width'? There are: {names}."
    )
    with pytest.raises(InputError) as caught:
        resolve_options(SPEC, "small", {"xyzzy": 3})
    assert caught.value.message == f"toy has no option called 'xyzzy'; there are: {names}."


@pytest.mark.parametrize("name", list(architectures()))
@pytest.mark.parametrize("variant", ["small", "paper"])
def test_an_architectures_own_values_can_be_written_as_text(name: str, variant: str) -> None:
    spec = architectures()[name]
    own = resolve_options(spec, variant, {})
    assert set(own) == set(spec.options), "the small variant sets options there are"
    assert resolve_options(spec, variant, {k: plain(v) for k, v in own.items()}) == own


def card(classes: int = 2, channels: int = 3, **options: Any) -> ModelCard:
    names = tuple(f"class{number}" for number in range(classes))
    return ModelCard(
        name="m", architecture="unet", options={"width": 4} | options, classes=names,
        colors=names, channels=channels, weights_sha256="", parameters=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (card(classes=0), "names 0 classes on its card, but a model tells at least two apart"),
        (card(classes=1), "names 1 class on its card, but a model tells at least two apart"),
        (card(width=0), r"for 3 channels and 2 classes \(a layer would have no weights\)"),
        (card(channels=1, width=-4), "options on its card, for 1 channel and 2 classes"),
        (card(dropout=7), "dropout probability has to be between 0 and 1"),
        (card(depth=4), r"sets \['depth'\], which unet does not know"),
    ],
    ids=["no class", "one class", "no width", "negative width", "dropout", "unknown option"],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_network_that_cannot_be(wrong: ModelCard, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        build_network(wrong)
    assert "\n" not in caught.value.message


def test_a_network_that_can_be() -> None:
    network = build_network(card(classes=5, channels=7))
    shapes = [tuple(p.shape) for p in network.parameters()]
    assert shapes[0][:2] == (4, 7)
    assert shapes[-1] == (5,)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("U-Net", "unet"), ("DeepLabV3+", "deeplab-v3plus"), ("FCN8s", "fcn-8s"), ("ViT", "vit"),
     ("swin", "swin-upernet"), ("PSPNet", "pspnet"), ("unte", "unet")],
)  # fmt: skip
def test_a_name_is_found_however_it_is_written(written: str, meant: str) -> None:
    assert suggest(written, architectures()) == f"; did you mean {meant!r}?"


def test_a_name_of_several_lists_them() -> None:
    assert suggest("SETR", architectures()) == "; there are: setr-mla, setr-naive, setr-pup."


def test_an_activation_that_would_do_nothing_is_refused() -> None:
    unet = find_architecture("unet")
    with pytest.raises(InputError, match="Head A has no output activation, so 'tanh' would do"):
        resolve_options(unet, "small", {"head": "A", "activation": "tanh"})
    assert resolve_options(unet, "small", {"head": "B", "activation": "tanh"})["head"] == "B"


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="'width' of unet cannot be '0'; write a whole number fr"):
        resolve_options(find_architecture("unet"), "small", {"width": "0"})

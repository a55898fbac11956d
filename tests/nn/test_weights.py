from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.nn.registry import build_network, find_architecture
from segdesk.nn.weights import LoadedModel, adapt_outputs, load_model, save_model

MakeModel = Callable[..., Path]


def outputs(loaded: LoadedModel, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.network(x)


@pytest.mark.parametrize("head", ["A", "C"])
def test_a_saved_model_answers_the_same_when_loaded(
    tmp_path: Path, make_model: MakeModel, head: str
) -> None:
    first = load_model(make_model(tmp_path / "first", head=head, channels=3))
    save_model(tmp_path / "second", first.network, first.card)
    second = load_model(tmp_path / "second")
    x = torch.randn(2, 3, 32, 48)
    assert torch.equal(outputs(first, x), outputs(second, x))
    assert not second.network.training
    assert first.weights_sha256 == second.weights_sha256 == second.card.weights_sha256


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")


def test_a_missing_tensor_is_named(tmp_path: Path, make_model: MakeModel) -> None:
    folder = make_model(tmp_path / "m")
    change_weights(folder, lambda t: t.__delitem__("head.branches.0.output.bias"))
    missing = r"'m' do not fit .* 1 missing \(first: head.branches.0.output.bias\)\."
    with pytest.raises(InputError, match=missing):
        load_model(folder)


def test_an_extra_tensor_is_named(tmp_path: Path, make_model: MakeModel) -> None:
    folder = make_model(tmp_path / "m")
    change_weights(folder, lambda t: t.__setitem__("odd.one", torch.zeros(1)))
    with pytest.raises(InputError, match=r"1 unknown \(first: odd.one\)"):
        load_model(folder)


def test_weights_of_another_network_are_refused(tmp_path: Path, make_model: MakeModel) -> None:
    narrow, wide = make_model(tmp_path / "narrow"), make_model(tmp_path / "wide", width=6)
    (narrow / "weights.safetensors").write_bytes((wide / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match="of another shape"):
        load_model(narrow)


@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_a_damaged_file_is_said_to_be_damaged(
    tmp_path: Path, make_model: MakeModel, keep: int
) -> None:
    file = make_model(tmp_path / "m") / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"weights of 'm' .* are damaged .* copy the model again"):
        load_model(tmp_path / "m")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_is_refused_and_not_run(
    tmp_path: Path, make_model: MakeModel, protocol: int
) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "weights.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "boom"), protocol))
    with pytest.raises(InputError, match="is a pickle, which can run any program"):
        load_model(folder)
    assert not (tmp_path / "boom").exists()


def test_a_pickle_without_a_magic_number_is_refused_too(
    tmp_path: Path, make_model: MakeModel
) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "weights.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "boom"), 0))
    with pytest.raises(InputError, match="damaged"):
        load_model(folder)
    assert not (tmp_path / "boom").exists()


def test_what_torch_save_writes_is_refused(tmp_path: Path, make_model: MakeModel) -> None:
    folder = make_model(tmp_path / "m")
    torch.save({"head.branches.0.output.bias": torch.zeros(2)}, folder / "weights.safetensors")
    with pytest.raises(InputError, match=r"is a pickle.*safetensors only"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "u-net"}, "no architecture called 'u-net'; did you mean 'unet'"),
        ({"options": {"widht": 4}}, r"sets \['widht'\], which unet does not know"),
        ({"options": {"head": "Z"}}, r"model 'm' cannot be built from the options on its card"),
        ({"options": {"width": "four"}}, r"model 'm' cannot be built from the options on its card"),
        ({"format": 99}, "is not a model card this SegDesk can read"),
        ({"channels": 0}, r"not a model card.*channels"),
    ],
)
def test_a_foreign_card_is_explained(
    tmp_path: Path, make_model: MakeModel, change: dict[str, object], says: str
) -> None:
    folder = make_model(tmp_path / "m")
    card = json.loads((folder / "card.json").read_text("utf-8"))
    (folder / "card.json").write_text(json.dumps(card | change), "utf-8")
    with pytest.raises(InputError, match=says):
        load_model(folder)


def test_an_unknown_architecture_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r"there are: .*unet"):
        find_architecture("zzz")


@pytest.mark.parametrize("head", ["A", "C"])
def test_maps_of_classes_of_the_same_name_are_kept(
    tmp_path: Path, make_model: MakeModel, head: str
) -> None:
    """Two classes of three, in another order, beside a new one."""
    old = load_model(make_model(tmp_path / "old", classes=("background", "a", "b"), head=head))
    card = old.card.model_copy(
        update={"classes": ("background", "b", "new", "a"), "colors": ("#000000",) * 4}
    )
    torch.manual_seed(9)
    adapted = adapt_outputs(old, card).eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        before, after = old.network(x), adapted(x)
    torch.testing.assert_close(after[:, [0, 3, 1]], before, rtol=0, atol=1e-5)
    assert not any(torch.equal(after[:, 2], before[:, k]) for k in range(3))


def test_the_same_classes_change_nothing(tmp_path: Path, make_model: MakeModel) -> None:
    old = load_model(make_model(tmp_path / "old"))
    adapted = adapt_outputs(old, old.card.model_copy(update={"name": "new"})).eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(adapted(x), old.network(x))
    assert adapted is not old.network


def test_build_network_is_what_the_card_says() -> None:
    card = ModelCard(
        name="m", architecture="unet", options={"width": 6}, classes=("a", "b", "c"),
        colors=("#000000",) * 3, channels=2, weights_sha256="", parameters=0,
    )  # fmt: skip
    with torch.inference_mode():
        maps = build_network(card).eval()(torch.zeros(1, 2, 16, 32))
    assert maps.shape == (1, 3, 16, 32)

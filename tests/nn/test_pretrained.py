"""Encoder weights from files as others write them, and from a hub of our own."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segdesk.core.card import ModelCard
from segdesk.core.errors import InputError
from segdesk.nn.encoders import TimmEncoder, import_timm, vgg_trunk
from segdesk.nn.pretrained import fit_channels, load_encoder_weights
from segdesk.nn.registry import build_network
from segdesk.nn.weights import load_model

Weights = dict[str, Tensor]


def timm_network(name: str, **options: Any) -> Any:
    """Build timm's whole network with numbers of its own everywhere, also in batch norm."""
    torch.manual_seed(1)
    network = import_timm().create_model(name, **options)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            spread = 0.1 if value.ndim > 1 else 0.3
            value.copy_(torch.rand_like(value) * spread + (0.5 if "var" in key else 0.01))
    return network.eval()


def encoder_of(
    name: str, channels: int = 3, levels: tuple[int, ...] = (1, 4), **options: Any
) -> Any:
    torch.manual_seed(2)
    return TimmEncoder(name, channels, levels, **options).eval()


def write(path: Path, tensors: Weights) -> str:
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return str(path)


def snapshot(module: nn.Module) -> Weights:
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_same(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


def fail(encoder: nn.Module, source: str) -> str:
    """Return the sentence of a refusal that leaves the encoder as it was."""
    before = snapshot(encoder)
    with pytest.raises(InputError) as caught:
        load_encoder_weights(encoder, source)
    assert_same(before, encoder.state_dict())
    assert "\n" not in caught.value.message
    return caught.value.message


@torch.inference_mode()
def maps_of(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    maps: list[Tensor] = encoder(x)
    return maps


# Files that fit ---------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"output_stride": 8}])
def test_timms_own_file_gives_timms_features(tmp_path: Path, options: dict[str, int]) -> None:
    """With its classifier in the file, and also where later strides became dilations."""
    network = timm_network("resnet18", **options)
    file = write(tmp_path / "w.safetensors", network.state_dict())
    encoder = encoder_of("resnet18", **options)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = network.forward_intermediates(x, indices=[1, 4], intermediates_only=True)
    assert not torch.allclose(maps_of(encoder, x)[1], expected[1])
    sentence = load_encoder_weights(encoder, file)
    assert sentence == f"Took 120 tensors of resnet18 from {file}."
    for ours, theirs in zip(maps_of(encoder, x), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_blocks_that_the_encoder_does_not_use_may_be_in_the_file(tmp_path: Path) -> None:
    network = timm_network("resnet18")
    encoder = encoder_of("resnet18", levels=(1, 2))
    assert not any("layer3" in key for key in encoder.state_dict())
    load_encoder_weights(encoder, write(tmp_path / "w.safetensors", network.state_dict()))
    assert torch.equal(encoder.body.layer2[0].conv1.weight, network.layer2[0].conv1.weight)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder.", "encoder.body."])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
def test_what_training_programs_put_around_the_names_comes_off(
    tmp_path: Path, prefix: str, wrapper: str
) -> None:
    network = timm_network("test_resnet")
    tensors = {prefix + k: v for k, v in network.state_dict().items()}
    content: dict[str, Any] = {**tensors, "decoder.weight": torch.zeros(3)} if "." in prefix else {}
    if wrapper:
        content = {wrapper: content, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "w.pth")
    encoder = encoder_of("test_resnet")
    load_encoder_weights(encoder, str(tmp_path / "w.pth"))
    body = network.state_dict()
    assert_same(encoder.body.state_dict(), {k: body[k] for k in encoder.body.state_dict()})


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    network = timm_network("test_resnet")
    zeros = {k: torch.zeros_like(v) for k, v in network.state_dict().items()}
    torch.save({"state_dict": zeros, "state_dict_ema": network.state_dict()}, tmp_path / "w.bin")
    encoder = encoder_of("test_resnet")
    load_encoder_weights(encoder, str(tmp_path / "w.bin"))
    assert torch.equal(encoder.body.conv1[0].weight, network.conv1[0].weight)


def test_files_from_before_batch_norm_counted_fit(tmp_path: Path) -> None:
    tensors = timm_network("test_resnet").state_dict()
    old = {k: v for k, v in tensors.items() if "num_batches" not in k}
    encoder = encoder_of("test_resnet")
    load_encoder_weights(encoder, write(tmp_path / "w.safetensors", old))
    assert torch.equal(encoder.body.bn1.running_var, tensors["bn1.running_var"])


def test_half_precision_is_widened(tmp_path: Path) -> None:
    network = timm_network("test_resnet")
    half = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    encoder = encoder_of("test_resnet", channels=1)
    load_encoder_weights(encoder, write(tmp_path / "w.safetensors", half))
    assert encoder.body.conv1[0].weight.dtype == torch.float32
    torch.testing.assert_close(
        encoder.body.conv1[0].weight, network.conv1[0].weight.sum(1, keepdim=True),
        rtol=2e-3, atol=2e-3,
    )  # fmt: skip


def test_official_pvt_names_are_understood(tmp_path: Path) -> None:
    network = timm_network("pvt_v2_b0")
    encoder = encoder_of("pvt_v2_b0", levels=(0, 1, 2, 3))
    official = {_official_pvt(k): v for k, v in network.state_dict().items()}
    assert "block1.0.attn.q.weight" in official
    assert "patch_embed2.proj.weight" in official
    load_encoder_weights(encoder, write(tmp_path / "w.safetensors", official))
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = network.forward_intermediates(x, intermediates_only=True)
    assert torch.equal(maps_of(encoder, x)[3], expected[3])


def _official_pvt(key: str) -> str:
    """Turn timm's name into the one in the authors' files."""
    parts = key.replace("mlp.dwconv.", "mlp.dwconv.dwconv.").split(".")
    if parts[0] == "patch_embed":
        return ".".join(["patch_embed1", *parts[1:]])
    if parts[0] == "stages":
        stage = int(parts[1])
        if parts[2] == "blocks":
            return ".".join([f"block{stage + 1}", *parts[3:]])
        if parts[2] == "downsample":
            return ".".join([f"patch_embed{stage + 1}", *parts[3:]])
        return ".".join([f"norm{stage + 1}", *parts[3:]])
    return ".".join(parts)


def test_a_swin_with_other_windows_has_its_tables_interpolated(tmp_path: Path) -> None:
    network = timm_network("swin_tiny_patch4_window7_224")
    nn.init.constant_(network.layers[0].blocks[0].attn.relative_position_bias_table, 3)
    encoder = encoder_of("swin_tiny_patch4_window7_224", levels=(0, 1), img_size=64, window_size=4)
    table = encoder.body.layers[0].blocks[0].attn.relative_position_bias_table
    assert table.shape[0] == 7**2
    file = write(tmp_path / "w.safetensors", network.state_dict())
    sentence = load_encoder_weights(encoder, file)
    assert "4 tensors were interpolated" in sentence
    torch.testing.assert_close(table, torch.full_like(table, 3))
    torch.testing.assert_close(
        encoder.body.patch_embed.proj.weight, network.patch_embed.proj.weight
    )


class TorchvisionVgg(nn.Module):
    """VGG as torchvision names and computes it, of any width."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.features = vgg_trunk(3, depth=11, width=width)
        self.classifier = nn.Sequential(
            nn.Linear(8 * width * 49, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.classifier[:5](self.features(x).flatten(1))
        return hidden


class ConvolutionalVgg(nn.Module):
    """The same with its fully connected layers as convolutions, as FCN has them."""

    def __init__(self, width: int, hidden: int, channels: int = 3) -> None:
        super().__init__()
        self.features = vgg_trunk(channels, depth=11, width=width)
        self.pre_logits = nn.Sequential()
        self.pre_logits.add_module("fc1", nn.Conv2d(8 * width, hidden, 7))
        self.pre_logits.add_module("act1", nn.ReLU())
        self.pre_logits.add_module("fc2", nn.Conv2d(hidden, hidden, 1))
        self.pre_logits.add_module("act2", nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.pre_logits(self.features(x))
        return hidden


def test_fully_connected_layers_become_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(1)
    classifier = TorchvisionVgg(width=4, hidden=24, classes=5).eval()
    torch.manual_seed(2)
    encoder = ConvolutionalVgg(width=4, hidden=24).eval()
    torch.save(classifier.state_dict(), tmp_path / "vgg.pth")
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = classifier(x)
        assert not torch.allclose(encoder(x).flatten(1), expected, atol=1e-3)
        load_encoder_weights(encoder, str(tmp_path / "vgg.pth"))
        torch.testing.assert_close(encoder(x).flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01


def test_a_trunk_alone_takes_no_classifier(tmp_path: Path) -> None:
    """SegNet's encoder, from a file with fully connected layers; timm's names and torchvision's."""
    for source in (TorchvisionVgg(4, 8, 2), ConvolutionalVgg(4, 8)):
        encoder = nn.Module()
        encoder.add_module("features", vgg_trunk(1, depth=11, width=4))
        load_encoder_weights(encoder, write(tmp_path / "w.safetensors", source.state_dict()))
        expected = source.features[3].weight
        assert torch.equal(encoder.get_submodule("features.3").weight, expected)


def test_a_model_package_of_the_same_architecture_fits(
    tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    folder = make_model(tmp_path / "m", channels=3, seed=5)
    base = load_model(folder).network.get_submodule("encoder").state_dict()
    card = ModelCard(
        name="n", architecture="unet", options={"width": 4, "dropout": 0.0},
        classes=("a", "b", "c"), colors=("#000000",) * 3, channels=1, weights_sha256="",
        parameters=0,
    )  # fmt: skip
    for source in (folder, folder / "weights.safetensors"):
        network = build_network(card)
        decoder = snapshot(network.get_submodule("decoder"))
        sentence = load_encoder_weights(network.get_submodule("encoder"), str(source))
        assert "from 3 to 1 channels" in sentence
        got = network.get_submodule("encoder").state_dict()
        first = next(iter(got))
        assert torch.allclose(got.pop(first), base[first].sum(1, keepdim=True))
        assert_same(got, {k: base[k] for k in got})
        assert_same(decoder, network.get_submodule("decoder").state_dict())


def test_layers_that_are_not_timms_are_said_to_be_random(tmp_path: Path) -> None:
    encoder = encoder_of("test_resnet")
    encoder.add_module("norm", nn.LayerNorm(4))
    network = timm_network("test_resnet")
    sentence = load_encoder_weights(
        encoder, write(tmp_path / "w.safetensors", network.state_dict())
    )
    assert "the encoder's 2 other tensors start from random weights" in sentence
    assert torch.equal(encoder.body.conv1[0].weight, network.conv1[0].weight)


# Other channels and sizes -----------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 5, 6])
def test_a_grey_image_gets_the_same_response_with_any_channels(
    tmp_path: Path, channels: int
) -> None:
    network = timm_network("resnet18")
    encoder = encoder_of("resnet18", channels)
    file = write(tmp_path / "w.safetensors", network.state_dict())
    sentence = load_encoder_weights(encoder, file)
    assert f"the first layer was fitted from 3 to {channels} channels" in sentence
    grey = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        expected = network.forward_intermediates(
            grey.expand(1, 3, 64, 64), indices=[1, 4], intermediates_only=True
        )
    for ours, theirs in zip(
        maps_of(encoder, grey.expand(1, channels, 64, 64)), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_one_channel_is_the_sum_and_more_repeat_in_turn() -> None:
    weight = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(fit_channels(weight, 1), weight.sum(1, keepdim=True))
    torch.testing.assert_close(fit_channels(weight, 6), torch.cat((weight, weight), 1) / 2)
    four = fit_channels(weight, 4)
    torch.testing.assert_close(four[:, 1:3], weight[:, 1:3])
    torch.testing.assert_close(four[:, [0, 3]], weight[:, [0, 0]] / 2)


def test_a_position_embedding_is_interpolated_to_another_grid(tmp_path: Path) -> None:
    """A slope from top to bottom stays one; the class token's place is not touched."""
    network = timm_network("vit_tiny_patch16_224", img_size=96)
    slope = torch.linspace(-1, 1, 6)[:, None].expand(6, 6).reshape(1, 36, 1)
    with torch.no_grad():
        network.pos_embed[:, 1:] = slope
    encoder = encoder_of("vit_tiny_patch16_224", levels=(11,), img_size=64)
    sentence = load_encoder_weights(
        encoder, write(tmp_path / "w.safetensors", network.state_dict())
    )
    assert "position embedding was interpolated" in sentence
    fitted = encoder.body.pos_embed
    assert torch.equal(fitted[:, 0], network.pos_embed[:, 0])
    grid = fitted[0, 1:].reshape(4, 4, -1)
    torch.testing.assert_close(grid, grid[:, :1].expand_as(grid))
    assert (grid.diff(dim=0) > 0.3).all()
    torch.testing.assert_close(grid, -grid.flip(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(encoder.body.blocks[3].mlp.fc1.weight, network.blocks[3].mlp.fc1.weight)


# Files that do not fit --------------------------------------------------------


@pytest.mark.parametrize("other", ["resnet34", "resnet50", "pvt_v2_b0"])
def test_weights_of_another_network_are_named(tmp_path: Path, other: str) -> None:
    """Also resnet34's, which hold all of resnet18's tensors and more, and without classifiers."""
    options = {"num_classes": 0} if other == "resnet50" else {}
    file = write(tmp_path / "w.safetensors", timm_network(other, **options).state_dict())
    said = fail(encoder_of("resnet18"), file)
    assert f"these look like the weights of {other}" in said
    assert said.startswith(f"{file} does not fit resnet18: tensors ")


def test_a_model_package_of_another_architecture_is_named(
    tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    folder = make_model(tmp_path / "m", width=64)
    assert "weights of the encoder of U-Net, padded" in fail(encoder_of("resnet18"), str(folder))


def test_missing_and_odd_and_unknown_tensors_are_counted_and_the_first_named(
    tmp_path: Path,
) -> None:
    tensors = dict(timm_network("test_resnet").state_dict())
    del tensors["layer1.0.conv1.weight"], tensors["layer1.0.bn1.weight"]
    tensors["layer2.0.bn1.bias"] = torch.zeros(3)
    tensors["odd.one"] = torch.zeros(1)
    said = fail(encoder_of("test_resnet"), write(tmp_path / "w.safetensors", tensors))
    assert "2 missing (first: layer1.0.conv1.weight)" in said
    assert "1 of another shape (first: layer2.0.bn1.bias, 3 and not" in said
    assert "1 unknown (first: odd.one)" in said
    assert "look like" not in said


def test_a_file_that_lacks_a_part_of_the_same_network_is_not_called_another(
    tmp_path: Path,
) -> None:
    encoder = ConvolutionalVgg(64, 8)
    encoder.timm_name = "vgg11"
    trunk = {k: v for k, v in encoder.state_dict().items() if k.startswith("features.")}
    said = fail(encoder, write(tmp_path / "w.safetensors", trunk))
    assert "does not fit vgg11: tensors 4 missing (first: pre_logits.fc1.weight);" in said
    assert "look like" not in said


def test_an_unknown_tensor_alone_is_refused(tmp_path: Path) -> None:
    tensors = {**timm_network("test_resnet").state_dict(), "layer9.weight": torch.zeros(1)}
    said = fail(encoder_of("test_resnet"), write(tmp_path / "w.safetensors", tensors))
    assert "tensors 1 unknown (first: layer9.weight);" in said


def test_a_narrow_vgg_does_not_take_a_wide_ones_weights(tmp_path: Path) -> None:
    file = write(tmp_path / "w.safetensors", TorchvisionVgg(4, 8, 2).state_dict())
    said = fail(ConvolutionalVgg(2, 8), file)
    assert "features.0.weight, 4x3x3x3 and not 2x3x3x3" in said


@pytest.mark.parametrize("keep", [0, 4, 200, -9])
def test_a_cut_off_safetensors_is_said_to_be_damaged(tmp_path: Path, keep: int) -> None:
    file = Path(write(tmp_path / "w.safetensors", timm_network("test_resnet").state_dict()))
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file} is damaged" in fail(encoder_of("test_resnet"), str(file))


@pytest.mark.parametrize("keep", [0, 3, 4, 5000, -9])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_cut_off_torch_file_is_said_to_be_damaged(
    tmp_path: Path, keep: int, is_zip: bool
) -> None:
    file = tmp_path / "w.pth"
    torch.save(
        timm_network("test_resnet").state_dict(), file, _use_new_zipfile_serialization=is_zip
    )
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file} is damaged" in fail(encoder_of("test_resnet"), str(file))


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"hello, here is text", bytes(99)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_weights_at_all_is_said(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    assert "is damaged or no file of weights" in fail(encoder_of("test_resnet"), str(file))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    said = fail(encoder_of("test_resnet"), str(tmp_path / "none.pth"))
    assert said.startswith(f"There is no file {tmp_path / 'none.pth'}")
    assert "There is no file" in fail(encoder_of("test_resnet"), str(tmp_path))


@pytest.mark.parametrize("content", [{}, [], {"epoch": 3}, {"model": {"name": "x"}}, torch.ones(2)])
def test_a_file_without_names_and_tensors_is_said(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert "holds no weights by name" in fail(encoder_of("test_resnet"), str(tmp_path / "w.pt"))


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5, None])
def test_a_pickle_that_runs_something_is_refused_and_not_run(
    tmp_path: Path, protocol: int | None
) -> None:
    file = tmp_path / "w.pth"
    bomb = {"conv1.weight": torch.ones(1), "x": Bomb(tmp_path / "boom")}
    if protocol is None:
        torch.save(bomb, file)
    else:
        file.write_bytes(pickle.dumps(bomb["x"], protocol))
    said = fail(encoder_of("test_resnet"), str(file))
    assert "could run any program" in said
    assert "safetensors.torch.save_file" in said
    assert not (tmp_path / "boom").exists()


def test_a_whole_saved_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    assert "Python objects" in fail(encoder_of("test_resnet"), str(tmp_path / "w.pth"))


# Downloads --------------------------------------------------------------------


def test_nothing_is_offered_where_nothing_was_published() -> None:
    assert "no weights to download for this encoder; give a file" in fail(
        ConvolutionalVgg(2, 8), "download"
    )


def test_a_narrow_encoder_is_not_filled_by_a_download() -> None:
    encoder = ConvolutionalVgg(2, 8)
    encoder.timm_name = "vgg11"
    said = fail(encoder, "download")
    assert "differs from the published vgg11 (first: features.0.weight, 64x3x3x3 and not" in said


class Hub(ThreadingHTTPServer):
    """A hub with one file, that answers as it is told to."""

    daemon_threads = True
    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.content = content
        self.behaviour = "serve"
        self.paths: list[str] = []
        self.answering = self.sent = 0
        self.pause = 0.05
        self.closing = threading.Event()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, has_body: bool) -> None:
        hub = self.server
        hub.paths.append(self.path)
        if hub.behaviour == "silent":
            self.close_connection = True
            hub.closing.wait(60)
            return
        if hub.behaviour == "drip":
            self.close_connection = True
            with suppress(ConnectionError):
                while not hub.closing.wait(0.5):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n" if has_body else b"H")
            return
        if hub.behaviour == "broken":
            self.send_error(503)
            return
        if self.path != "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("Connection", "close")
        self.send_header("ETag", '"an-etag"')
        self.send_header("Content-Length", str(len(hub.content)))
        self.end_headers()
        if has_body:
            hub.answering, hub.sent = 1, 0
            with suppress(ConnectionError):
                self._send(hub)
            hub.answering = 0

    def _send(self, hub: Hub) -> None:
        half = len(hub.content) // 2
        for start in range(0, len(hub.content), 2**16):
            if hub.behaviour == "stall" and start > half:
                hub.closing.wait(60)
                return
            self.wfile.write(hub.content[start : start + 2**16])
            hub.sent += 2**16
            hub.closing.wait(hub.pause)

    def log_message(self, *args: object) -> None:
        pass


#: Loads on request, one JSON object a line each way: a process that was given HF_ENDPOINT.
CHILD = """
import json, sys, time, torch
from segdesk.core.errors import CanceledError, InputError
from segdesk.nn import download
from segdesk.nn.encoders import TimmEncoder
from segdesk.nn.pretrained import load_encoder_weights

torch.set_num_threads(1)
for line in sys.stdin:
    order = json.loads(line)
    usual = {name: getattr(download, name) for name in order["settings"]}
    vars(download).update(order["settings"])
    encoder = TimmEncoder(order["name"], 3, (1, 4))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    heard = []

    def hear(done, total, text):
        heard.append((done, total, text))
        if len(heard) > order["cancel_after"]:
            raise CanceledError

    began = time.monotonic()
    try:
        answer = {"said": load_encoder_weights(encoder, "download", hear), "kind": "ok"}
    except (InputError, CanceledError) as error:
        answer = {"said": error.message, "kind": type(error).__name__}
    answer["seconds"] = time.monotonic() - began
    vars(download).update(usual)
    answer["heard"] = heard
    after = encoder.state_dict()
    answer["is_unchanged"] = all(torch.equal(before[k], after[k]) for k in before)
    answer["sum"] = float(after["body.conv1.0.weight"].double().sum())
    print(json.dumps(answer), flush=True)
"""


class Child:
    """The process that downloads, and its cache."""

    def __init__(self, port: int, home: Path, **environment: str) -> None:
        self.home = home
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**inherited, **settings, "NO_PROXY": "127.0.0.1", **environment},
        )  # fmt: skip

    def load(self, name: str = "test_resnet", cancel_after: int = 1000, **settings: Any) -> Any:
        """Load into a new encoder; what is cached stays."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"name": name, "cancel_after": cancel_after, "settings": settings}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def forget(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """Return the file on the hub, and the sum of its first layer."""
    network = timm_network("test_resnet")
    file = write(tmp_path_factory.mktemp("hub") / "w.safetensors", network.state_dict())
    return Path(file).read_bytes(), float(network.conv1[0].weight.detach().double().sum())


@pytest.fixture(scope="module")
def running_hub(published: tuple[bytes, float]) -> Iterator[Hub]:
    hub = Hub(published[0])
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    yield hub
    hub.closing.set()
    hub.shutdown()
    hub.server_close()
    thread.join()


@pytest.fixture(scope="module")
def running_child(running_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    child = Child(running_hub.server_address[1], tmp_path_factory.mktemp("home"))
    yield child
    child.close()


@pytest.fixture
def hub(running_hub: Hub) -> Iterator[Hub]:
    running_hub.paths.clear()
    yield running_hub
    # Let what hangs end, before the next test gets an answer.
    running_hub.closing.set()
    running_hub.behaviour = "serve"
    running_hub.pause = 0.05
    running_hub.closing = threading.Event()


@pytest.fixture
def child(running_child: Child) -> Child:
    running_child.forget()
    return running_child


WAYS_OUT = (
    "connect to the internet once and try again, or give a file with them, or nothing to start "
    "from random weights."
)


def test_a_download_is_reported_and_kept(
    hub: Hub, child: Child, published: tuple[bytes, float]
) -> None:
    content, total = published
    answer = child.load(REPORT_SECONDS=0.2)
    assert answer["said"] == "Took 90 tensors of test_resnet from timm/test_resnet.r160_in1k."
    assert answer["sum"] == pytest.approx(total, abs=1e-9)
    dones = [done for done, _, _ in answer["heard"]]
    assert dones == sorted(dones)
    assert len({done for done in dones if 0 < done < len(content)}) >= 2
    assert dones[-1] == len(content)
    assert answer["heard"][-1][1:] == [len(content), "Downloading test_resnet"]
    assert answer["seconds"] / len(dones) > 0.15
    hub.paths.clear()
    hub.behaviour = "broken"
    again = child.load()
    assert (again["said"], again["sum"]) == (answer["said"], answer["sum"])
    assert hub.paths == []


def test_calling_a_download_off_ends_it(
    hub: Hub, child: Child, wait_until: Callable[..., None]
) -> None:
    hub.pause = 0.2
    answer = child.load(cancel_after=2, REPORT_SECONDS=0.1)
    assert answer["kind"] == "CanceledError"
    assert answer["is_unchanged"]
    assert len(answer["heard"]) == 3
    # It stops asking for more, and nothing half is taken for the file.
    wait_until(lambda: hub.answering == 0, what="the end of the connection")
    assert 0 < hub.sent < len(hub.content)
    hub.behaviour = "broken"
    assert child.load()["kind"] == "InputError"


@pytest.mark.parametrize(
    ("behaviour", "why"), [("broken", "the server answered 503"), ("silent", "no connection")]
)
def test_a_server_without_an_answer_leaves_two_ways_out(
    hub: Hub, child: Child, behaviour: str, why: str
) -> None:
    hub.behaviour = behaviour
    answer = child.load()
    assert answer["kind"] == "InputError"
    assert answer["said"].startswith(f"The weights of test_resnet could not be downloaded ({why}")
    assert answer["said"].endswith(WAYS_OUT)
    assert answer["is_unchanged"]
    assert answer["seconds"] < 15


@pytest.mark.parametrize(
    ("behaviour", "limit"), [("drip", "CONNECT_SECONDS"), ("stall", "STALL_SECONDS")]
)
def test_a_server_that_goes_quiet_is_given_up(
    hub: Hub, child: Child, behaviour: str, limit: str
) -> None:
    """Neither sends nothing for ten seconds on end, or is asked again and again."""
    hub.behaviour = behaviour
    answer = child.load(**{limit: 2.0})
    hub.closing.set()
    assert "nothing was heard for 2 seconds" in answer["said"]
    assert answer["said"].endswith(WAYS_OUT)
    assert answer["seconds"] < 9
    assert answer["is_unchanged"]
    hub.behaviour = "serve"
    hub.closing = threading.Event()
    assert child.load()["kind"] == "ok"


def test_weights_that_are_not_on_the_server_are_said(hub: Hub, child: Child) -> None:
    answer = child.load("resnet10t")
    assert "resnet10t could not be downloaded (the server answered 404)" in answer["said"]
    assert answer["said"].endswith(WAYS_OUT)


def test_without_a_connection_the_answer_comes_at_once(tmp_path: Path) -> None:
    """Nobody listens on a port that was just given back."""
    hub = Hub(b"")
    port = hub.server_address[1]
    hub.server_close()
    child = Child(port, tmp_path)
    try:
        answer = child.load()
    finally:
        child.close()
    assert "could not be downloaded (no connection: ConnectError)" in answer["said"]
    assert answer["said"].endswith(WAYS_OUT)
    assert answer["seconds"] < 15
    assert answer["is_unchanged"]


def test_a_full_disk_is_not_called_a_lost_connection(hub: Hub, tmpfs: Callable[..., Path]) -> None:
    child = Child(hub.server_address[1], tmpfs("size=1m"))
    try:
        answer = child.load()
    finally:
        child.close()
    assert "could not be downloaded (No space left on device)" in answer["said"]
    assert answer["is_unchanged"]


def test_offline_mode_is_respected(hub: Hub, tmp_path: Path) -> None:
    child = Child(hub.server_address[1], tmp_path, HF_HUB_OFFLINE="1")
    try:
        answer = child.load()
    finally:
        child.close()
    assert "HF_HUB_OFFLINE is set" in answer["said"]
    assert hub.paths == []

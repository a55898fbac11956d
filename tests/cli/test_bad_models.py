"""Models that cannot be used: one sentence, exit code 2, nothing changed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile
import torch
from safetensors.torch import load_file, save_file

from segdesk.core.card import ModelCard
from segdesk.io.packages import read_card
from segdesk.nn.registry import (
    architectures,
    build_network,
    find_architecture,
    resolve_options,
)
from segdesk.nn.weights import save_model

Segdesk = Callable[..., Any]


def package(  # type: ignore[no-untyped-def]
    folder: Path,
    architecture: str,
    classes: tuple[str, ...] = ("background", "nucleus"),
    **options: Any,
):
    card = ModelCard(
        name=folder.name,
        architecture=architecture,
        options=resolve_options(find_architecture(architecture), "small", options),
        classes=classes,
        colors=("#000000",) * len(classes),
        channels=1,
        weights_sha256="",
        parameters=0,
    )
    torch.manual_seed(0)
    save_model(folder, build_network(card), card)
    return folder


def refused(answer: Any, *parts: str) -> None:
    assert answer.code == 2, answer.err
    assert len(answer.err.strip().splitlines()) == 1, answer.err
    for part in parts:
        assert part in answer.err


def judge(segdesk: Segdesk, tmp_path: Path, model: Path) -> Any:
    return segdesk("evaluate", "--model", model, "--images", tmp_path / "images",
                   "--masks", tmp_path / "masks")  # fmt: skip


def test_weights_of_another_architecture_are_named(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(1)
    model = package(tmp_path / "mine", "segnet")
    other = package(tmp_path / "other", "deeplab-v1")
    shutil.copyfile(other / "weights.safetensors", model / "weights.safetensors")
    refused(judge(segdesk, tmp_path, model), "do not fit the network its card describes",
            "The weights are those of deeplab-v1 (small, head A)")  # fmt: skip


def test_a_card_with_more_classes_than_its_weights_is_told_so(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(1)
    model = package(tmp_path / "mine", "unet", ("background", "one", "two"))
    other = package(tmp_path / "other", "unet")
    shutil.copyfile(other / "weights.safetensors", model / "weights.safetensors")
    refused(judge(segdesk, tmp_path, model), "of another shape",
            "The weights tell 2 classes apart and the card names 3: correct the "
            "card's")  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"width": 12}])
def test_tensors_that_lack_or_are_too_many_are_counted(
    tmp_path: Path,
    segdesk: Segdesk,
    disc_files: Callable[..., list[Path]],
    options: dict[str, Any],
) -> None:
    disc_files(1)
    model = package(tmp_path / "mine", "unet", **options)
    whole = load_file(model / "weights.safetensors")
    names = ["encoder.blocks.0.0.weight", "encoder.blocks.1.0.weight"]

    def says(without: int, *more: str) -> str:
        tensors = {k: v for k, v in whole.items() if k not in names[:without]}
        tensors |= {name: torch.zeros(3) for name in more}
        save_file(tensors, model / "weights.safetensors")
        answer = judge(segdesk, tmp_path, model)
        refused(answer, "do not fit the network its card describes")
        return str(answer.err)

    again = ": copy the model again."
    whose = "The weights are those of unet,"
    assert f"1 missing (first: {names[0]}). {whose} but 1 is missing{again}" in says(1)
    assert f"{whose} but 2 are missing{again}" in says(2)
    for name in ("odd", "head.odd"):
        assert f"{whose} and 1 is too many{again}" in says(0, name)
    both = f"{whose} but 1 is missing and 2 are too many{again}"
    assert both in says(1, "odd", "head.odd")


def test_weights_of_another_size_are_told_so(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(1)
    model = package(tmp_path / "mine", "unet")
    other = package(tmp_path / "other", "unet", width=20)
    shutil.copyfile(other / "weights.safetensors", model / "weights.safetensors")
    refused(judge(segdesk, tmp_path, model),
            "the weights are those of unet, of another size, or not all of them: correct "
            "the")  # fmt: skip


def test_weights_of_another_architecture_are_named_though_some_lack(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(1)
    model = package(tmp_path / "mine", "segnet")
    tensors = load_file(package(tmp_path / "other", "unet") / "weights.safetensors")
    tensors.popitem()
    tensors["encoder.blocks.0.0.weight"] = torch.zeros(24, 3, 3, 3)
    save_file(tensors, model / "weights.safetensors")
    refused(judge(segdesk, tmp_path, model), "By their names the weights are those of unet")
    save_file({"conv.weight": torch.zeros(3)}, model / "weights.safetensors")
    refused(
        judge(segdesk, tmp_path, model), "The weights fit no architecture that is installed here"
    )


def test_half_of_the_weights_are_known_and_so_are_those_of_another_card(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(1)
    model = package(tmp_path / "mine", "attention-unet")
    whole = load_file(model / "weights.safetensors")
    half = dict(sorted(whole.items())[::2])
    save_file(half, model / "weights.safetensors")
    refused(judge(segdesk, tmp_path, model), "The weights are those of attention-unet, but "
            f"{len(whole) - len(half)} are missing: copy the model again.")  # fmt: skip
    swin = package(tmp_path / "other", "swin-upernet")
    card = json.loads((swin / "card.json").read_text("utf-8"))
    card["architecture"] = "setr-mla"
    (swin / "card.json").write_text(json.dumps(card), "utf-8")
    refused(judge(segdesk, tmp_path, swin), "which setr-mla does not know: its card was changed",
            "The weights are those of swin-upernet (small, head A): correct the card")  # fmt: skip


def test_a_truncated_file_is_damaged(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(1)
    model = package(tmp_path / "mine", "unet")
    file = model / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(judge(segdesk, tmp_path, model), "are damaged")


def test_a_byte_that_flipped_is_noticed(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(1)
    model = package(tmp_path / "mine", "unet")
    file = model / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)
    refused(judge(segdesk, tmp_path, model), "damaged or exchanged; copy the model again")


def test_a_model_that_gives_no_numbers_is_not_called_sure(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    (image,) = disc_files(1)
    model = package(tmp_path / "mine", "unet")
    card = read_card(model)
    network = build_network(card)
    torch.nn.init.constant_(next(network.parameters()), torch.nan)
    save_model(model, network, card)
    out = tmp_path / "out"
    answer = segdesk("predict", image, "--out", out, "--model", model)
    assert answer.code == 2
    assert "'mine' gives no numbers (NaN" in answer.err.splitlines()[-1]
    assert not list(out.glob("*.tif"))


def test_another_number_of_classes_does_not_fit(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    disc_files(1)
    model = package(tmp_path / "mine", "unet")
    card = json.loads((model / "card.json").read_text())
    card["classes"].append("more")
    card["colors"].append("#ffffff")
    (model / "card.json").write_text(json.dumps(card))
    refused(judge(segdesk, tmp_path, model), "of another shape", "head")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--new", "fcn-8"], ["'fcn-8s'"]),
        (["--new", "unet", "--option", "widht=8"], ["widht", "width"]),
        (["--new", "unet", "--option", "width=wide"], ["width", "wide"]),
        (["--new", "unet", "--option", "head=E"], ["Head", "E"]),
        (["--new", "deeplab-v1", "--option", "field_of_view=9x9"], ["9x9", "large"]),
        (["--new", "unet", "--model", "tiny"], ["either --model", "--new"]),
        (["--option", "head=A"], ["--new"]),
        (["--new", "deconvnet", "--set", "crop_size=64"], ["Crops of 64 pixels", "224"]),
        (["--new", "swin-upernet", "--set", "crop_size=80"], ["multiples of 32", "is 64"]),
        (["--new", "fcn-8s", "--option", "encoder_weights=no-such-file.pth"],
         ["no-such-file.pth"]),
        (["--new", "fcn-8s", "--option", "encoder_weights=vgg16"],
         ["vgg16 names a network", "'download' takes the published"]),
        (["--new", "deeplab-v3plus", "--option", "encoder=resnet19"],
         ["no encoder 'resnet19'", "did you mean 'resnet1"]),
    ],
)  # fmt: skip
def test_what_a_new_model_cannot_be(
    project: Path, segdesk: Segdesk, arguments: list[str], parts: list[str]
) -> None:
    refused(segdesk("train", project, *arguments, "--set", "steps=1"), *parts)
    assert [f.name for f in (project / "models").iterdir()] == ["tiny"]
    assert not (project / "runs").exists()


def test_encoder_weights_that_could_run_a_program_are_refused_before_a_run_begins(
    project: Path, segdesk: Segdesk, tmp_path: Path
) -> None:
    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps({"weights": Path}))
    refused(segdesk("train", project, "--new", "fcn-8s", "--option", f"encoder_weights={file}",
                    "--set", "steps=1"), "could run any program")  # fmt: skip
    assert not (project / "runs").exists()


@pytest.mark.parametrize("name", [n for n, s in architectures().items() if s.stride > 16])
def test_a_tile_that_does_not_fit_names_the_nearest(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]], name: str
) -> None:
    (image,) = disc_files(1)
    out = tmp_path / "out"
    predict = ["predict", image, "--out", out, "--model", package(tmp_path / name, name)]
    refused(segdesk(*predict, "--set", "tile_size=100"), "(tile_size) cannot be '100'",
            "multiple of 16; the nearest is 96")  # fmt: skip
    refused(segdesk(*predict, "--set", "tile_size=240"), "A tile of 240 pixels",
            "multiples of 32; the nearest is 256")  # fmt: skip
    refused(segdesk(*predict, "--tile", 100), "No such option: --tile")
    assert not out.exists()


def test_a_tile_that_is_too_small_is_told_the_least(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    (image,) = disc_files(1)
    deconv = package(tmp_path / "deconv", "deconvnet")
    predict = ["predict", image, "--out", tmp_path / "out", "--model", deconv]
    refused(segdesk(*predict, "--set", "tile_size=128"), "needs at least 224")
    assert not (tmp_path / "out").exists()


def test_a_network_of_any_size_takes_any_tile(
    tmp_path: Path, segdesk: Segdesk, disc_files: Callable[..., list[Path]]
) -> None:
    (image,) = disc_files(1, size=100)
    model = package(tmp_path / "fcn", "fcn-32s")
    answer = segdesk("predict", image, "--out", tmp_path / "out", "--model", model,
                     "--set", "tile_size=80", "--set", "overlap=16")  # fmt: skip
    assert answer.code == 0, answer.err
    assert tifffile.imread(tmp_path / "out" / "cell0_labels.tif").shape == (100, 100)

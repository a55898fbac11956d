"""The quick recipe: features once, a head on top, and models that stay whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segdesk.config.inference import InferenceConfig
from segdesk.config.training import TrainingConfig
from segdesk.core.manifest import RunManifest
from segdesk.core.run import RunState
from segdesk.inference.normalize import scale, standardize
from segdesk.inference.predictor import Predictor
from segdesk.jobs.messages import Progressed
from segdesk.nn.registry import architectures
from segdesk.nn.weights import load_model
from segdesk.training.start import load_start

Train = Callable[..., Any]
MakeModel = Callable[..., Path]


def test_a_quick_head_learns_and_leaves_all_else_alone(
    tmp_path: Path, train: Train, make_model: MakeModel, discs: Callable[..., Any]
) -> None:
    base = make_model(tmp_path / "m", head="C", width=8)
    done = train(
        "r", base, recipe="quick", quick_steps=80, averaging=0.9, size=80, splits="tttv",
        batch_size=4,
    )  # fmt: skip
    assert done.end.state is RunState.COMPLETED, done.end.reason
    assert done.end.result["before"]["dice"] < 0.4
    assert done.end.result["after"]["dice"] > 0.8
    old, new = load_file(base / "weights.safetensors"), done.weights()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert {name.split(".")[0] for name in new if name not in old} == {"quick"}
    # The model is one like any other: on an image nobody has seen it finds the discs.
    model = load_model(done.folder / "model")
    assert model.card.has_quick_head
    image, mask = discs(17, 80)
    plane = standardize(scale(image[..., None], model.card.normalization), model.card.normalization)
    found = Predictor(model, torch.device("cpu")).predict_plane(plane, InferenceConfig()).argmax(0)
    assert (found == mask).mean() > 0.9


def test_a_quick_head_goes_on_standardising_by_what_was_measured(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    base = make_model(tmp_path / "m", head="C")  # it brings no images to repeat
    short, long = (
        train(name, base, recipe="quick", quick_steps=steps, averaging=0, splits="tt").weights()
        for name, steps in (("short", 1), ("long", 9))
    )
    measured = [name for name in short if name.startswith("quick") and "running" in name]
    assert measured
    assert all(torch.equal(short[name], long[name]) for name in measured)
    assert any(not torch.equal(short[n], long[n]) for n in short if n not in measured)


def test_features_are_computed_once(tmp_path: Path, new_run: Any, make_model: MakeModel) -> None:
    from segdesk.jobs.control import RunControl
    from segdesk.training.run import run_folder

    base, cache = make_model(tmp_path / "m"), tmp_path / "cache"

    def run(name: str) -> dict[str, int]:
        folder = new_run(name, base, recipe="quick", quick_steps=2)
        file = folder / "manifest.json"
        manifest = RunManifest.model_validate_json(file.read_text("utf-8"))
        kept = manifest.model_copy(update={"features": cache})
        file.write_text(kept.model_dump_json(), "utf-8")
        heard: list[Any] = []
        assert run_folder(folder, heard.append, RunControl()).state is RunState.COMPLETED
        assert any(e.text == "Computing features" for e in heard if isinstance(e, Progressed))
        return {p.name: p.stat().st_ino for p in cache.iterdir()}

    first = run("a")
    assert len(first) == 2
    assert run("b") == first  # the same files: none was written again
    next(cache.iterdir()).write_bytes(b"damaged")
    again = run("c")
    assert again.keys() == first.keys()
    assert again != first


def test_a_quick_model_can_be_trained_on_in_every_way(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    quick = train("a", make_model(tmp_path / "m", head="C"), recipe="quick", quick_steps=3)
    base = quick.folder / "model"
    before = quick.weights()
    for recipe, parts in {
        "quick": {"quick"},
        "standard": {"encoder", "decoder", "head", "quick"},
        "head": {"head", "quick"},
    }.items():
        done = train(recipe, base, recipe=recipe, quick_steps=3)
        assert done.end.state is RunState.COMPLETED, done.end.reason
        after = done.weights()
        assert after.keys() == before.keys()
        moved = {n.split(".")[0] for n in after if not torch.equal(after[n], before[n])}
        assert moved == parts, recipe
    other = train("b", base, classes=("background", "dirt", "nucleus"), recipe="quick")
    assert other.end.state is RunState.COMPLETED, other.end.reason


@pytest.mark.parametrize("name", sorted(architectures()))
def test_every_architecture_takes_a_quick_head_or_says_that_it_does_not(
    tmp_path: Path, name: str
) -> None:
    """The whole model says the same as features and head one after the other."""
    from segdesk.core.card import ModelCard
    from segdesk.core.errors import InputError
    from segdesk.nn.quick import add_quick_head
    from segdesk.nn.registry import build_network, resolve_options
    from segdesk.nn.segmenter import Segmenter

    spec = architectures()[name]
    card = ModelCard(
        name="m", architecture=name, options=resolve_options(spec, "small", {}),
        classes=("background", "a", "b"), colors=("#000000",) * 3, channels=2, weights_sha256="",
        parameters=0,
    )  # fmt: skip
    network = build_network(card).eval()
    assert isinstance(network, Segmenter)
    if not network.takes_quick_head:
        with pytest.raises(InputError, match=r"does not work with .*; choose the recipe head"):
            add_quick_head(network, card, spec)
        return
    side = -(-max(64, spec.min_size) // spec.stride) * spec.stride
    image = torch.rand(1, 2, side, side)
    with torch.inference_mode():
        alone = network(image)
        add_quick_head(network, card, spec)
        both = network(image)
        levels, own = network.features(image)
        again = network.refine(levels, own, own)
    assert torch.allclose(own, alone, atol=1e-5)
    assert torch.equal(both, again)
    assert both.shape == (1, 3, side, side)
    assert not torch.equal(both, alone)


def test_from_scratch_begins_at_random_and_forgets_where_it_came_from(
    tmp_path: Path, new_run: Any, make_model: MakeModel
) -> None:
    folder = new_run("r", make_model(tmp_path / "m", head="C"), recipe="scratch")
    manifest = RunManifest.model_validate_json((folder / "manifest.json").read_text("utf-8"))
    config = TrainingConfig(recipe="scratch")
    start = load_start(manifest, config, print, lambda *_: None)
    assert start.base is None
    assert start.model.card.options["head"] == "C"
    old = load_file(tmp_path / "m" / "weights.safetensors")
    drawn = start.model.network.state_dict()
    assert not torch.equal(old["encoder.blocks.0.0.weight"], drawn["encoder.blocks.0.0.weight"])

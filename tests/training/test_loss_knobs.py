"""Which loss a run makes small."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from segdesk.config.training import LossKind
from segdesk.core.run import RunState
from segdesk.jobs.messages import Stepped
from segdesk.nn.weights import LoadedModel, load_model, save_model
from segdesk_models.unet import SPEC, UNet

Train = Callable[..., Any]
MakeModel = Callable[..., Path]


@pytest.mark.parametrize("kind", LossKind)
def test_a_run_can_learn_by_every_loss(train: Train, kind: LossKind) -> None:
    done = train("r", None, loss=kind, steps=30, learning_rate=1e-2, augment="none", splits="t")
    assert done.end.state is RunState.COMPLETED, done.end.reason
    assert np.mean(done.losses[-5:]) < 0.8 * np.mean(done.losses[:3])


def test_class_weights_are_those_of_the_images_to_learn_from(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    """Three quarters background: half of the loss for each class, not three and one quarter."""

    def quarter(mask: np.ndarray, number: int) -> np.ndarray:
        mask[:] = 0
        mask[::2, ::2] = 1
        return np.ones_like(mask)

    # A network that says "nucleus" with logit 2 whatever it sees, so that losses are known.
    base = make_model(tmp_path / "m")
    model = load_model(base)
    output = model.network.get_submodule("head.branches.0.output")
    with torch.no_grad():
        output.get_parameter("weight").zero_()
        output.get_parameter("bias").copy_(torch.tensor([0.0, 2.0]))
    save_model(base, model.network, model.card)
    settings = {"supervise": quarter, "splits": "tv", "size": 32, "augment": "none", "steps": 1}
    plain, balanced = (
        train(kind, base, loss="cross_entropy", class_weights=kind, **settings).losses
        for kind in ("none", "median_frequency")
    )
    wrong, right = math.log(1 + math.exp(2)), math.log(1 + math.exp(-2))
    assert plain == pytest.approx([0.75 * wrong + 0.25 * right])
    assert balanced == pytest.approx([0.5 * wrong + 0.5 * right])


def test_auxiliary_maps_are_learnt_from_and_told_apart(
    tmp_path: Path, train: Train, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curve is that of the maps that predict, so that networks can be compared by it."""
    base = make_model(tmp_path / "m")
    knobs = {"steps": 1, "optimizer": "sgd", "weight_decay": 0.0, "clip": 100.0}
    plain = train("a", base, **knobs)

    def two(network: UNet, x: Tensor) -> list[tuple[float, Tensor]]:
        maps = network(x)
        return [(1.0, maps), (0.4, maps)]

    monkeypatch.setattr(UNet, "training_maps", two)
    both = train("b", base, **knobs)
    assert both.losses == pytest.approx(plain.losses)
    assert auxiliary(plain) == [0.0]
    assert auxiliary(both) == pytest.approx([0.4 * plain.losses[0]])
    before = load_file(base / "weights.safetensors")
    name = "head.branches.0.output.weight"
    moved, further = (run.weights()[name] - before[name] for run in (plain, both))
    torch.testing.assert_close(further, 1.4 * moved, rtol=1e-3, atol=1e-7)


def auxiliary(run: Any) -> list[float]:
    return [e.auxiliary_loss for e in run.events if isinstance(e, Stepped)]


def test_a_model_that_needs_no_labels_learns_by_its_own_loss(
    tmp_path: Path, train: Train, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here: its maps shall be 1 everywhere, whatever has been painted."""

    def own_loss(network: UNet, x: Tensor, turn: int) -> Tensor:
        return (network(x) - 1).square().mean()

    def inverted(mask: np.ndarray, number: int) -> np.ndarray:
        mask[:] = 1 - mask
        return np.ones_like(mask)

    monkeypatch.setattr(UNet, "own_loss", own_loss, raising=False)
    monkeypatch.setattr(UNet, "assign", lambda network, order: None, raising=False)
    spec = replace(SPEC, needs_labels=False)
    monkeypatch.setattr(LoadedModel, "spec", property(lambda model: spec))
    base = make_model(tmp_path / "m")
    settings = {"steps": 20, "learning_rate": 1e-2, "splits": "t"}
    done = train("a", base, **settings)
    other = train("b", base, supervise=inverted, **settings)
    assert done.losses[-1] < 0.5 * done.losses[0]
    first, second = done.weights(), other.weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_losses_of_its_own_are_lowered_one_after_the_other(
    tmp_path: Path, train: Train, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second sees what the first has moved, with the same images."""
    seen: list[tuple[int, float, float]] = []

    def own_loss(network: UNet, x: Tensor, turn: int) -> Tensor:
        moved = network.head.branches[0].output.weight.detach()
        seen.append((turn, float(x.sum()), float(moved.sum())))
        return (network(x) - turn).square().mean()

    monkeypatch.setattr(UNet, "own_loss", own_loss, raising=False)
    monkeypatch.setattr(UNet, "assign", lambda network, order: None, raising=False)
    spec = replace(SPEC, needs_labels=False, turns=2)
    monkeypatch.setattr(LoadedModel, "spec", property(lambda model: spec))
    train("a", make_model(tmp_path / "m"), steps=3, splits="t")
    turns, images, weights = zip(*seen, strict=True)
    assert turns == (0, 1) * 3
    assert images[0::2] == images[1::2]
    assert len(set(weights)) == 6

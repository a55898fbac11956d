"""What a run learns, and what it leaves alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from segdesk.config.training import TrainingConfig
from segdesk.core.run import RunState
from segdesk.jobs.control import RunControl
from segdesk.jobs.messages import AnyEvent, Evaluated, Finished, Progressed, Said, Stepped
from segdesk.nn import contract
from segdesk.nn.outline import build_outline
from segdesk.nn.registry import architectures
from segdesk.nn.weights import load_model, save_model
from segdesk.training.optimizing import make_optimizer
from segdesk.training.run import run_folder

Train = Callable[..., Any]
MakeModel = Callable[..., Path]


def files(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {k for k in before if not torch.equal(before[k], after[k])}


def test_discs_are_learnt(tmp_path: Path, train: Train) -> None:
    """Something trivial, from nothing: the loss falls and unseen discs are found."""
    done = train("r", None, steps=60, learning_rate=1e-2, evaluate_every=20, augment="none")
    assert done.end.state is RunState.COMPLETED, done.end.reason
    assert np.mean(done.losses[-10:]) < 0.5 * np.mean(done.losses[:10])
    assert done.end.result["after"]["dice"] > 0.8
    assert done.end.result["before"]["dice"] is None  # an untrained network has no score
    assert done.end.result["after"]["dice"] > 0.8
    kinds = [type(e) for e in done.events if isinstance(e, Stepped | Evaluated | Finished)]
    assert kinds[:2] == [Evaluated, Stepped]
    assert kinds[-2:] == [Evaluated, Finished]
    assert [e.step for e in done.events if isinstance(e, Stepped)] == list(range(1, 61))
    assert [e.step for e in done.events if isinstance(e, Evaluated)] == [0, 20, 40, 60]
    best = max(s["dice"] for s in done.scores[1:])
    assert done.end.result["after"]["dice"] == best
    model = load_model(done.folder / "model")
    assert model.card.score == {"validation_dice": best}
    assert model.card.name == "r-model"


def test_the_journal_on_disk_says_the_same(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    done = train("r", make_model(tmp_path / "m"))
    lines = (done.folder / "events.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        json.loads(e.model_dump_json()) for e in done.events
    ]


def test_the_same_seed_gives_the_same_weights(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    discs = [(np.full((40, 40), 90, np.uint8), np.ones((40, 40), np.uint8))] * 2
    base = make_model(tmp_path / "m", dropout=0.3, rehearsal=discs)
    first, again, other = (
        train(n, base, seed=s, splits="tt").weights() for n, s in (("a", 4), ("b", 4), ("c", 5))
    )
    assert changed(first, again) == set()
    assert changed(first, other)


@pytest.mark.parametrize(
    ("recipe", "learn"),
    [("all", {"encoder", "decoder", "head"}), ("decoder", {"decoder", "head"}), ("head", {"head"})],
)
@pytest.mark.parametrize("freeze_norm", [True, False])
def test_a_recipe_moves_only_what_it_names(
    tmp_path: Path, train: Train, make_model: MakeModel, recipe: str, learn: set[str],
    freeze_norm: bool,
) -> None:  # fmt: skip
    base = make_model(tmp_path / "m", head="C")
    before, held = load_file(base / "weights.safetensors"), files(base)
    done = train("r", base, recipe=recipe, freeze_norm=freeze_norm, splits="tt")
    moved = changed(before, done.weights())
    assert {name.split(".")[0] for name in moved} == learn
    running = {name for name in moved if "running" in name}
    assert bool(running) is not freeze_norm
    assert files(base) == held


@pytest.mark.parametrize("replay", [0.5, 0.0])
def test_normalisation_follows_what_is_learnt_from_unless_it_is_to_be_kept(
    tmp_path: Path, train: Train, make_model: MakeModel, replay: float
) -> None:
    discs = [(np.full((40, 40), 90, np.uint8), np.ones((40, 40), np.uint8))] * 2
    base = make_model(tmp_path / "m", rehearsal=discs)
    before = load_file(base / "weights.safetensors")
    moved = changed(before, train("r", base, splits="tt", replay=replay).weights())
    assert any("running" in name for name in moved)


def test_every_weight_that_may_learn_does(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    base = make_model(tmp_path / "m")
    before = load_file(base / "weights.safetensors")
    moved = changed(before, train("r", base, splits="tt", freeze_norm=True).weights())
    assert {n for n in before if n not in moved} == {
        n for n in before if "running" in n or "num_batches" in n
    }


def test_what_is_held_back_is_never_learnt_from(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    """Other validation images and other labels on them: the very same weights."""
    base = make_model(tmp_path / "m")

    def darken(image: np.ndarray, number: int) -> np.ndarray:
        return image // 3 if number == 2 else image

    plain = train("a", base, splits="ttv")
    other = train("b", base, splits="ttv", paint=darken)
    assert changed(plain.weights(), other.weights()) == set()
    assert plain.scores != other.scores
    learnt = load_model(plain.folder / "model").card.trained_ids
    manifest = json.loads((plain.folder / "manifest.json").read_text("utf-8"))
    assert set(learnt) == {s["sha256"] for s in manifest["samples"] if s["split"] == "train"}


def test_pixels_nobody_spoke_about_teach_nothing(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    """A few strokes in a corner are enough to learn, and only they count."""
    base = make_model(tmp_path / "m")

    def strokes(mask: np.ndarray, number: int) -> np.ndarray:
        known = np.zeros_like(mask)
        known[4:12, 4:12] = 2
        return known

    def scratch(mask: np.ndarray, number: int) -> np.ndarray:
        mask[20:] = 1 - mask[20:]  # wrong labels where nobody has spoken
        return strokes(mask, number)

    settings = {"splits": "t", "augment": "none"}
    right = train("a", base, supervise=strokes, **settings)
    wrong = train("b", base, supervise=scratch, **settings)
    assert right.end.state is RunState.COMPLETED
    assert changed(load_file(base / "weights.safetensors"), right.weights())
    assert changed(right.weights(), wrong.weights()) == set()


def test_corrected_pixels_weigh_more_when_asked(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    base = make_model(tmp_path / "m")

    def half(mask: np.ndarray, number: int) -> np.ndarray:
        known = np.ones_like(mask)
        known[:32] = 2
        return known

    settings = {"splits": "t", "supervise": half}
    plain = train("a", base, **settings).weights()
    heavy = train("b", base, corrected_weight=20, **settings).weights()
    assert changed(plain, heavy)


def test_replay_keeps_what_was_known(tmp_path: Path, train: Train, make_model: MakeModel) -> None:
    """Taught that all is nucleus, a model that rehearses still knows its background."""
    dark, none = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    dark[::2] = 30
    base = make_model(tmp_path / "m", rehearsal=[(dark, none)] * 8, seed=3)

    def everything(mask: np.ndarray, number: int) -> np.ndarray:
        mask[:] = 1
        return np.ones_like(mask)

    settings = {
        "splits": "t", "supervise": everything, "steps": 25, "batch_size": 4, "augment": "none",
        "learning_rate": 1e-2, "freeze_norm": False,
    }  # fmt: skip
    without = train("a", base, replay=0, **settings)
    replayed = train("b", base, replay=0.5, **settings)
    kept = [r.end.result["after"]["remembered"]["pixel_accuracy"] for r in (without, replayed)]
    assert kept[1] > kept[0] + 0.3
    assert replayed.scores[0]["remembered"]["n"] == 2  # every fourth is kept back to look at
    assert sorted(p.name for p in (replayed.folder / "model" / "rehearsal" / "images").iterdir())


def test_cancelling_leaves_a_checkpoint(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    token = RunControl()

    def hear(event: AnyEvent) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            token.cancel()

    base = make_model(tmp_path / "m")
    done = train("r", base, token=token, on_event=hear, steps=500)
    assert done.end.state is RunState.CANCELED
    assert len(done.losses) == 2
    kept = load_file(done.folder / "checkpoints" / "last.safetensors")
    assert changed(load_file(base / "weights.safetensors"), kept)
    assert not (done.folder / "model").exists()


def test_a_loss_that_is_no_number_ends_the_run_in_a_sentence(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    base = make_model(tmp_path / "m")
    model = load_model(base)
    weight = model.network.get_parameter("head.branches.0.output.weight")
    torch.nn.init.constant_(weight, float("nan"))
    save_model(base, model.network, model.card)
    held = files(base)
    done = train("r", base, splits="ttt")  # with one held back, judging it says so first
    assert done.end.state is RunState.FAILED
    assert "The loss became nan at step 1" in done.end.reason
    assert "try a lower learning rate" in done.end.reason
    assert not done.end.is_input
    assert files(base) == held
    assert not (done.folder / "model").exists()


def test_nothing_to_learn_from_is_said(tmp_path: Path, train: Train, make_model: MakeModel) -> None:
    base = make_model(tmp_path / "m")
    done = train("r", base, supervise=lambda mask, number: np.zeros_like(mask))
    assert done.end.state is RunState.FAILED
    assert "There is nothing to learn from yet" in done.end.reason
    assert done.end.is_input


def test_an_image_that_changed_its_size_is_named(
    tmp_path: Path, new_run: Callable[..., Path], make_model: MakeModel, discs: Callable[..., Any]
) -> None:
    from PIL import Image

    from segdesk.training.run import run_folder

    folder = new_run("r", make_model(tmp_path / "m"))
    Image.fromarray(discs(0, 48)[0]).save(folder / "1.png")
    end = run_folder(folder, lambda event: None, RunControl())
    assert end.state is RunState.FAILED
    assert "1.png has changed its size" in end.reason


def test_without_validation_images_the_last_weights_are_kept_and_it_is_said(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    done = train("r", make_model(tmp_path / "m"), splits="t", evaluate_every=1)
    assert any("no score can be given" in e.text for e in done.events if isinstance(e, Said))
    assert [e.is_best for e in done.events if isinstance(e, Evaluated)] == [False, True, True, True]
    assert load_model(done.folder / "model").card.score == {}


def test_a_new_class_can_be_taught(tmp_path: Path, train: Train, make_model: MakeModel) -> None:
    base = make_model(tmp_path / "m", head="C")
    done = train("r", base, classes=("background", "dirt", "nucleus"))
    assert done.end.state is RunState.COMPLETED, done.end.reason
    model = load_model(done.folder / "model")
    assert model.card.classes == ("background", "dirt", "nucleus")
    with torch.inference_mode():
        assert model.network(torch.zeros(1, 1, 32, 32)).shape[1] == 3


def test_a_class_may_have_another_name_in_the_project(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    """Said so, the model is the same one under other names: judged before, and its maps kept."""
    base = make_model(tmp_path / "m", head="C")
    names = {"classes": ("background", "cell"), "steps": 1, "learning_rate": 1e-12}
    strange = train("a", base, **names)
    assert strange.end.result["before"]["dice"] is None
    said = train("b", base, same_classes="cell = nucleus", **names)
    assert said.end.result["before"]["dice"] is not None
    before, after = load_file(base / "weights.safetensors"), said.weights()
    assert torch.allclose(
        before["head.branches.0.output.maps.1.weight"],
        after["head.branches.0.output.maps.1.weight"],
        atol=1e-6,
    )
    assert load_model(said.folder / "model").card.classes == ("background", "cell")


@pytest.mark.parametrize("size", [17, 33])
def test_images_smaller_than_a_crop_are_fine(
    tmp_path: Path, train: Train, make_model: MakeModel, size: int
) -> None:
    base = make_model(tmp_path / "m")
    done = train("r", base, size=size, crop_size=64, splits="tv")
    assert done.end.state is RunState.COMPLETED, done.end.reason


@pytest.mark.parametrize("recipe", ["all", "decoder", "head"])
def test_each_part_learns_at_its_own_rate(
    tmp_path: Path, train: Train, make_model: MakeModel, recipe: str
) -> None:
    """Adam's first step is as long as the rate says, whatever the gradient."""
    base = make_model(tmp_path / "m")
    before = load_file(base / "weights.safetensors")
    done = train(
        "r", base, recipe=recipe, steps=1, splits="t", learning_rate=1e-3, weight_decay=0,
        encoder_rate=0.01, head_rate=10, averaging=0, freeze_norm=True,
    )  # fmt: skip
    after = done.weights()
    moved = {"encoder": 0.0, "decoder": 0.0, "head": 0.0}
    for name in before:
        part = name.split(".")[0]
        moved[part] = max(moved[part], float((after[name] - before[name]).abs().max()))
    expected = {"encoder": 1e-5, "decoder": 1e-3, "head": 1e-2}
    still = {"all": [], "decoder": ["encoder"], "head": ["encoder", "decoder"]}[recipe]
    expected |= dict.fromkeys(still, 0.0)
    assert moved == pytest.approx(expected, rel=0.02, abs=1e-9)
    assert [e.learning_rate for e in done.events if isinstance(e, Stepped)] == [pytest.approx(1e-3)]


#: How fast each part learns by recipe, times the learning rate; a standard encoder at a tenth.
RATES = {
    "full": {"encoder": 0.5, "decoder": 1.0, "head": 10.0},
    "standard": {"encoder": 0.05, "decoder": 1.0, "head": 10.0},
    "decoder": {"decoder": 1.0, "head": 10.0},
    "head": {"head": 10.0},
}


@pytest.mark.parametrize("name", list(architectures()))
def test_each_part_of_every_architecture_learns_at_its_own_rate_or_not_at_all(name: str) -> None:
    spec = architectures()[name]
    network = build_outline(spec, 3, 2, {**spec.options, **spec.small}).train()
    image = torch.empty(2, 3, contract.side(spec), contract.side(spec), device="meta")
    for recipe, rates in RATES.items():
        config = TrainingConfig(
            recipe=recipe, learning_rate=1e-2, encoder_rate=0.5, head_rate=10, warm_up=0
        )
        optimizer, _ = make_optimizer(network, config)
        found = [(id(p), group["lr"]) for group in optimizer.param_groups for p in group["params"]]
        expected = [
            (id(p), pytest.approx(1e-2 * rate))
            for part, rate in rates.items()
            for p in network.get_submodule(part).parameters()
        ]
        assert found == expected
        assert len(dict(found)) == len(found)
        frozen = RATES["full"].keys() - rates.keys()
        if not frozen:
            assert len(found) == len(list(network.parameters()))
            continue
        network.zero_grad(set_to_none=True)
        maps: Any = network.training_maps(image)
        sum(one.sum() for _, one in maps).backward()
        for part in frozen:
            assert all(p.grad is None for p in network.get_submodule(part).parameters())
        assert any(p.grad is not None for p in network.get_submodule("head").parameters())


def start_from(folder: Path, encoder_weights: str) -> list[AnyEvent]:
    """Do an untrained model's run with encoder weights from ``encoder_weights``."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(manifest | {"encoder_weights": encoder_weights}), "utf-8")
    events: list[AnyEvent] = []
    run_folder(folder, events.append, RunControl())
    return events


def test_an_untrained_model_can_start_from_encoder_weights(
    tmp_path: Path, new_run: Callable[..., Path], make_model: MakeModel
) -> None:
    source = make_model(tmp_path / "m", seed=8)
    folder = new_run("r", None, recipe="head")
    events = start_from(folder, str(source))
    said = [e.text for e in events if isinstance(e, Said)]
    assert any(text.startswith("Took ") and str(source) in text for text in said)
    given = load_file(source / "weights.safetensors")
    differs = changed(given, load_file(folder / "model" / "weights.safetensors"))
    assert [name for name in differs if name.startswith("encoder.")] == []
    assert "decoder.ups.0.weight" in differs


def test_encoder_weights_that_cannot_be_had_end_the_run_in_a_sentence(
    tmp_path: Path, new_run: Callable[..., Path]
) -> None:
    for number, (source, says) in enumerate(
        [("download", "no weights to download"), (str(tmp_path / "x.pth"), "There is no file")]
    ):
        end = start_from(new_run(f"r{number}", None), source)[-1]
        assert isinstance(end, Finished)
        assert end.state is RunState.FAILED
        assert end.is_input
        assert says in end.reason


def test_a_download_is_reported_and_can_be_called_off(
    new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What downloads is tested with a server in tests/nn; here, that the run listens."""
    token = RunControl()
    events: list[AnyEvent] = []

    def load(encoder: torch.nn.Module, source: str, progress: Callable[..., None]) -> str:
        progress(12_000_000, 99_000_000, "Downloading x")
        token.cancel()
        progress(13_000_000, 99_000_000, "Downloading x")
        raise AssertionError

    monkeypatch.setattr("segdesk.training.start.load_encoder_weights", load)
    folder = new_run("r", None)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(
        json.dumps(manifest | {"encoder_weights": "download"}), "utf-8"
    )
    end = run_folder(folder, events.append, token)
    (heard,) = [e for e in events if isinstance(e, Progressed)]
    assert (heard.done, heard.total, heard.text) == (12, 99, "Downloading x (MB)")
    assert end.state is RunState.CANCELED

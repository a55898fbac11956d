"""What a round writes down, and that its verdict follows from the files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segdesk.config.inference import InferenceConfig
from segdesk.core.errors import InputError
from segdesk.core.manifest import RunManifest
from segdesk.core.round import Round
from segdesk.core.run import RunState
from segdesk.core.sample import Split
from segdesk.core.verdict import Judgement, judge
from segdesk.io.rounds import read_round
from segdesk.jobs.control import RunControl
from segdesk.jobs.messages import AnyEvent, Said, Stepped
from segdesk.training.inline import evaluate_model
from segdesk.training.replay import replay
from segdesk.training.run import run_folder

Train = Callable[..., Any]
MakeModel = Callable[..., Path]


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def round_of(folder: Path) -> Round:
    found = read_round(folder)
    assert found is not None
    return found


def test_a_round_holds_what_went_in_and_what_came_out(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    base = make_model(tmp_path / "m")
    done = train("r", base, splits="ttv", seed=5, evaluate_every=2)
    found = round_of(done.folder)
    assert found.state is RunState.COMPLETED
    assert (found.seed, found.config["seed"], found.config["steps"]) == (5, 5, 3)
    assert [i.id for i in found.inputs] == ["s0", "s1", "s2"]
    for entry in found.inputs:
        assert entry.labels is not None
        assert entry.image_sha256 == sha(entry.image)
        assert entry.labels_sha256 == sha(entry.labels)
    assert [i.split for i in found.inputs] == [Split.TRAIN, Split.TRAIN, Split.VALIDATION]
    assert found.origin.weights_sha256 == sha(base / "weights.safetensors")
    assert found.weights_sha256 == sha(done.folder / "model" / "weights.safetensors")
    assert (found.platform.torch, found.platform.threads) == (torch.__version__, 1)
    assert found.steps == (1, 2, 3)
    assert list(found.losses) == done.losses
    assert [c.step for c in found.checks] == [0, 2, 3]
    assert found.before == done.scores[0]
    assert found.after is not None
    assert found.after["per_image"][0].keys() >= {"image", "dice", "iou"}
    assert found.after["per_class"]["nucleus"].keys() >= {"dice", "iou"}
    assert found.verdict == "no evidence"
    assert done.end.result["verdict"] == "no evidence"
    assert "once in" in found.verdict_text or "every second time" in found.verdict_text


def test_the_verdict_follows_from_the_files_alone(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    """Models, images and labels are judged anew, by nothing but the run's files."""
    done = train("r", make_model(tmp_path / "m"), splits="ttvvvvv", steps=30, learning_rate=1e-2,
                 augment="none")  # fmt: skip
    manifest = RunManifest.model_validate_json((done.folder / "manifest.json").read_text("utf-8"))
    held = [s for s in manifest.samples if s.split is Split.VALIDATION]
    assert manifest.base_folder is not None
    before, after = (
        evaluate_model(folder, held, InferenceConfig(device="cpu"))
        for folder in (manifest.base_folder, done.folder / "model")
    )
    found, again = round_of(done.folder), judge(before, after)
    assert (found.verdict, found.interval) == (str(again.judgement), again.interval)
    assert found.difference == again.difference
    assert again.judgement is Judgement.BETTER
    assert done.end.result["interval"] == again.interval


def test_inverted_masks_make_it_worse(tmp_path: Path, train: Train, make_model: MakeModel) -> None:
    """A model that can do it, then taught the opposite: worse, and it is said what to look at."""
    common = {"learning_rate": 1e-2, "augment": "none", "steps": 40}
    good = train("good", make_model(tmp_path / "m"), splits="ttv", **common)

    def invert(mask: Any, number: int) -> Any:
        if number < 2:
            mask[:] = 1 - mask
        return mask * 0 + 1

    bad = train("bad", good.folder / "model", splits="ttvvvvv", supervise=invert, **common)
    found = round_of(bad.folder)
    assert found.verdict == "worse"
    assert bad.end.result["verdict"] == "worse"
    assert found.difference is not None
    assert found.difference < -0.3
    assert "look whether the new labels are right" in found.verdict_text


def test_a_run_that_was_stopped_or_failed_is_a_round_too(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    base, token = make_model(tmp_path / "m"), RunControl()

    def stop(event: AnyEvent) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            token.cancel()

    stopped = round_of(train("a", base, token=token, on_event=stop, steps=500).folder)
    assert (stopped.state, stopped.verdict, stopped.after) == (RunState.CANCELED, None, None)
    assert stopped.steps == (1, 2)
    assert stopped.kept == "checkpoints/last.safetensors"
    assert stopped.before is not None
    failed = round_of(train("b", base, supervise=lambda mask, number: mask * 0).folder)
    assert failed.state is RunState.FAILED
    assert "nothing to learn from" in failed.reason
    assert failed.weights_sha256 == ""


def test_a_ledger_that_cannot_be_written_takes_nothing_from_the_model(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    def block(event: AnyEvent) -> None:
        if isinstance(event, Stepped) and event.step == 1:
            (tmp_path / "r" / "round.json").mkdir()

    done = train("r", make_model(tmp_path / "m"), on_event=block)
    assert done.end.state is RunState.COMPLETED
    assert done.end.result["verdict"] == "no evidence"
    said = [e.text for e in done.events if isinstance(e, Said)]
    assert any("This round is not in the ledger" in text and "round.json" in text for text in said)


def test_a_damaged_round_is_named(tmp_path: Path, train: Train, make_model: MakeModel) -> None:
    done = train("r", make_model(tmp_path / "m"))
    file = done.folder / "round.json"
    content = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(content | {"state": "fine"}), "utf-8")
    with pytest.raises(InputError, match=r"round\.json is not a round .*state"):
        read_round(done.folder)
    file.write_text("{", "utf-8")
    with pytest.raises(InputError, match="is not a round"):
        read_round(done.folder)
    file.unlink()
    assert read_round(done.folder) is None
    shutil.rmtree(done.folder)
    assert read_round(done.folder) is None


def test_a_run_that_diverges_keeps_its_last_good_weights(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    """A planted explosion: far too long steps, without a limit on gradients."""
    base = make_model(tmp_path / "m")
    done = train(
        "r", base, steps=400, optimizer="sgd", momentum=0.99, learning_rate=1.0, clip=1e6,
        loss="focal", focal_gamma=0, augment="none", evaluate_every=1000, schedule="constant",
        warm_up=0.0, foreground_weight=100, freeze_norm=True,
    )  # fmt: skip
    assert done.end.state is RunState.FAILED
    assert not done.end.is_input
    kept = done.folder / "checkpoints" / "last.safetensors"
    assert str(kept) in done.end.reason
    assert "the last good ones" in done.end.reason
    assert "try a lower learning rate" in done.end.reason
    weights = load_file(kept)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert any(
        not torch.equal(tensor, weights[name])
        for name, tensor in load_file(base / "weights.safetensors").items()
    )
    found = round_of(done.folder)
    assert (found.state, found.kept) == (RunState.FAILED, "checkpoints/last.safetensors")
    assert f"after step {found.steps[-1]}," in found.reason
    assert not (done.folder / "model").exists()


def test_a_run_that_was_stopped_and_went_on_is_one_round(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    """Its curve is whole, and done again without the stop it comes out the same."""
    control = RunControl()

    def stop(event: AnyEvent) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            control.cancel()

    folder = train("r", make_model(tmp_path / "m"), token=control, on_event=stop, steps=4).folder
    assert round_of(folder).state is RunState.CANCELED
    run_folder(folder, lambda event: None, RunControl())
    whole = round_of(folder)
    assert (whole.state, whole.steps) == (RunState.COMPLETED, (1, 2, 3, 4))
    found = replay(folder, whole, lambda event: None, RunControl())
    assert (found.differences, found.notes) == ((), ())

"""Runs that are interrupted, wait, run short of memory or come to an early end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from little_memory import answer_of
from segdesk.config.training import TrainingConfig
from segdesk.core.manifest import CHECKPOINT
from segdesk.core.run import RunState
from segdesk.jobs.control import RunControl
from segdesk.jobs.messages import AnyEvent, Finished, Paused, Said, Stepped
from segdesk.training.checkpoint import load_state, save_state
from segdesk.training.devices import Team
from segdesk.training.run import run_folder

Train = Callable[..., Any]
MakeModel = Callable[..., Path]
LONG: dict[str, Any] = {"steps": 9, "evaluate_every": 4, "augment": "full", "noise": 0.5}


class PowerCut(BaseException):
    """Ends a run where it stands, without a word."""


def interrupt(kind: str, control: RunControl) -> Callable[[AnyEvent], None]:
    """Interrupt a run: between steps, while it is judged, or by a power cut after a check."""

    def hear(event: AnyEvent) -> None:
        if not isinstance(event, Stepped):
            return
        if (kind, event.step) in (("between", 6), ("judging", 4)):
            control.cancel()
        if (kind, event.step) == ("power", 7):
            raise PowerCut

    return hear


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [("between", "full"), ("judging", "full"), ("power", "full"), ("between", "quick")],
)
def test_an_interrupted_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    tmp_path: Path, train: Train, make_model: MakeModel, discs: Callable[..., Any], kind: str,
    recipe: str,
) -> None:  # fmt: skip
    base = make_model(tmp_path / "m", dropout=0.3, rehearsal=[discs(s) for s in (7, 8)])
    settings = {**LONG, "recipe": recipe, "quick_steps": 9}
    whole = train("whole", base, **settings)
    control = RunControl()
    folder = tmp_path / "cut"
    try:
        train("cut", base, token=control, on_event=interrupt(kind, control), **settings)
    except PowerCut:
        assert kind == "power"
    assert (folder / CHECKPOINT).is_file()
    rest: list[AnyEvent] = []
    end = run_folder(folder, rest.append, RunControl())
    assert end.state is RunState.COMPLETED
    weights = load_file(folder / "model" / "weights.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in whole.weights().items())
    for part in ("before", "after"):
        assert end.result[part] == whole.end.result[part]
    # The journal reads as if nothing had happened.
    lines = [json.loads(x) for x in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    assert [e["loss"] for e in lines if e["event"] == "step"] == whole.losses
    assert [e["scores"] for e in lines if e["event"] == "evaluated"] == whole.scores
    assert [e["event"] for e in lines].count("finished") == 1
    assert not (folder / CHECKPOINT).exists()
    assert any("Goes on after step" in e.text for e in rest if isinstance(e, Said))


def plant(state: dict[str, Any], *, what: str) -> None:
    """Spoil a checkpoint: features so large that gradients overflow and the loss does not."""
    network = state["network"]
    for name in ("weight", "bias"):
        network[f"decoder.blocks.3.4.{name}"] *= 1e25
    network["head.branches.0.output.weight"] *= 1e-25
    if what == "weights":
        state["average"]["head.branches.0.output.bias"][0] = torch.inf


@pytest.mark.parametrize("what", ["gradients", "weights"])
def test_gradients_without_an_end_are_named_and_the_last_good_weights_kept(
    tmp_path: Path, train: Train, make_model: MakeModel, what: str
) -> None:
    """The loss says nothing of it; nor are weights kept that an earlier step spoilt."""
    control = RunControl()
    done = train(
        "r", make_model(tmp_path / "m"), token=control, on_event=interrupt("between", control),
        **LONG,
    )  # fmt: skip
    state = load_state(done.folder / CHECKPOINT)
    good = {name: value.clone() for name, value in state["average"].items()}
    plant(state, what=what)
    save_state(done.folder / CHECKPOINT, state)
    kept = done.folder / "checkpoints" / "last.safetensors"
    kept.unlink()
    end = run_folder(done.folder, lambda event: None, RunControl())
    assert end.state is RunState.FAILED
    assert "The gradients became infinite or no numbers at step 7" in end.reason
    assert "try a lower learning rate" in end.reason
    assert not (done.folder / "model").exists()
    best = done.folder / "checkpoints" / "best.safetensors"
    assert f"did best so far are in {best}" in end.reason
    if what == "weights":
        assert not kept.exists()
        assert str(kept) not in end.reason
        return
    assert f"The weights after step 6, the last good ones, are kept in {kept}" in end.reason
    weights = load_file(kept)
    assert all(torch.equal(value, weights[name]) for name, value in good.items())


def test_in_half_precision_steps_left_out_now_and_then_are_in_order(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    """The loss scale is looked for from above, here from a height where some steps fail."""
    done = go_on_in_half_precision(tmp_path, train, make_model, scale=2.0**24)
    assert done.state is RunState.COMPLETED
    assert (tmp_path / "r" / "model").is_dir()


def test_in_half_precision_too_many_steps_left_out_end_the_run(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    """The loss scaler leaves them out one by one, and by itself would do so for ever."""
    end = go_on_in_half_precision(tmp_path, train, make_model, scale=2.0**60)
    assert end.state is RunState.FAILED
    assert "The gradients became infinite or no numbers in half precision" in end.reason
    assert "(20 steps in a row were left out" in end.reason
    assert "at step 26, so the run was ended" in end.reason
    kept = tmp_path / "r" / "checkpoints" / "last.safetensors"
    assert f"The weights after step 6, the last good ones, are kept in {kept}" in end.reason
    assert all(torch.isfinite(value).all() for value in load_file(kept).values())
    assert not (tmp_path / "r" / "model").exists()


def go_on_in_half_precision(
    tmp_path: Path, train: Train, make_model: MakeModel, *, scale: float
) -> Finished:
    """Stop a run in float16 after six steps, set the scale of its loss, and let it go on."""
    control = RunControl()
    done = train(
        "r", make_model(tmp_path / "m"), token=control, on_event=interrupt("between", control),
        precision="float16", steps=28, evaluate_every=50,
    )  # fmt: skip
    assert done.end.state is RunState.CANCELED
    state = load_state(done.folder / CHECKPOINT)
    assert state["scaler"]["scale"] <= 65536
    state["scaler"]["scale"] = scale
    save_state(done.folder / CHECKPOINT, state)
    (done.folder / "checkpoints" / "last.safetensors").unlink()
    return run_folder(done.folder, lambda event: None, RunControl())


class EndlessSlope(torch.nn.Module):
    """A network whose loss is a number and whose gradients are none, at any scale."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 2, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.layer(image)
        assert maps.dtype is torch.float16
        return maps + torch.sqrt(maps * 0)

    training_maps = forward


def test_a_loss_scale_that_falls_without_end_is_named() -> None:
    team = Team(TrainingConfig(precision="float16", device="cpu"))
    network = EndlessSlope()
    before = network.layer.weight.detach().clone()
    wrapped, optimizer = team.take(network, torch.optim.SGD(network.parameters(), 0.1))
    said = []
    for _ in range(17):
        optimizer.zero_grad()
        with team.half():
            loss = wrapped.training_maps(torch.ones(1, 1, 8, 8)).float().square().mean()
        assert torch.isfinite(loss)
        team.backward(loss)
        assert team.clip(wrapped, optimizer, 1.0)
        said.append(team.step(optimizer))
    assert said[:-1] == [""] * 16
    assert "17 steps in a row were left out, the loss scale fell to 0.5" in said[-1]
    assert torch.equal(network.layer.weight, before)


def test_gradients_that_are_too_long_together_are_no_step_to_leave_out() -> None:
    """Each is a number, so a loss scaler would take the step."""
    team = Team(TrainingConfig(precision="float16", device="cpu"))
    network = torch.nn.Linear(64, 64)
    wrapped, optimizer = team.take(network, torch.optim.SGD(network.parameters(), 0.1))
    team.backward(wrapped(torch.ones(1, 64)).mean())
    network.weight.grad = torch.full((64, 64), 1e38)
    assert not team.clip(wrapped, optimizer, 1.0)


def test_a_damaged_checkpoint_is_said_and_nothing_is_lost(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    control = RunControl()
    done = train(
        "r", make_model(tmp_path / "m"), token=control, on_event=interrupt("between", control),
        **LONG,
    )  # fmt: skip
    state = done.folder / CHECKPOINT
    state.write_bytes(state.read_bytes()[:1000])
    end = run_folder(done.folder, lambda event: None, RunControl())
    assert end.state is RunState.FAILED
    assert end.is_input
    assert "state.pt is damaged" in end.reason
    assert load_file(done.folder / "checkpoints" / "best.safetensors")


def test_a_paused_run_waits_and_goes_on(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    control = RunControl()
    seen: list[str] = []

    def hear(event: AnyEvent) -> None:
        if isinstance(event, Stepped):
            seen.append(f"step {event.step}")
            if event.step == 2:
                control.pause(True)
        if isinstance(event, Paused):
            seen.append("waits" if event.is_paused else "goes on")
            if event.is_paused:
                threading.Timer(0.3, control.pause, (False,)).start()

    done = train("r", make_model(tmp_path / "m"), token=control, on_event=hear)
    assert done.end.state is RunState.COMPLETED
    assert seen == ["step 1", "step 2", "waits", "goes on", "step 3"]


def test_a_run_that_waits_can_be_called_off(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    control = RunControl()
    control.pause(True)

    def hear(event: AnyEvent) -> None:
        if isinstance(event, Paused) and event.is_paused:
            control.cancel()

    done = train("r", make_model(tmp_path / "m"), token=control, on_event=hear)
    assert done.end.state is RunState.CANCELED
    assert done.losses == []


def test_a_run_that_gets_no_better_ends_early(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    done = train(
        "r", make_model(tmp_path / "m"), steps=50, evaluate_every=1, patience=2,
        learning_rate=1e-9, averaging=0,
    )  # fmt: skip
    assert done.end.state is RunState.COMPLETED
    assert len(done.losses) == 3  # the first check is the best, and two are no better
    assert any("no better for 2 checks" in e.text for e in done.events if isinstance(e, Said))


def test_schedules_and_optimizers_do_as_they_are_called(
    tmp_path: Path, train: Train, make_model: MakeModel
) -> None:
    base = make_model(tmp_path / "m")

    def rates(name: str, **settings: Any) -> list[float]:
        done = train(name, base, steps=4, learning_rate=0.1, warm_up=0, **settings)
        assert done.end.state is RunState.COMPLETED
        return [e.learning_rate for e in done.events if isinstance(e, Stepped)]

    assert rates("a", schedule="constant", optimizer="sgd") == pytest.approx([0.1] * 4)
    poly = rates("b", schedule="poly")
    assert poly == pytest.approx([0.1, 0.1, 0.1 * (2 / 3) ** 0.9, 0.1 * (1 / 3) ** 0.9])


LIMITED = """
import json, resource, sys
import psutil, torch
from pathlib import Path
from segdesk.jobs.control import RunControl
from segdesk.jobs.messages import Stepped
from segdesk.training.checkpoint import load_state, save_state
from segdesk.training.devices import Team
from segdesk.training.run import run_folder

said, losses = [], []
spare = int(sys.argv[2])

def hear(event):
    if event.event == "said":
        said.append(event.text)
    if isinstance(event, Stepped):
        losses.append(event.loss)
    if event.event == "evaluated" and event.step == 0:
        had = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (had + spare * 2**20,) * 2)

end = run_folder(Path(sys.argv[1]), hear, RunControl())
print(json.dumps({"said": said, "losses": losses, "state": end.state, "reason": end.reason}))
"""


def train_in_little(folder: Path, spare: int) -> dict[str, Any]:
    """Do a run that gets ``spare`` MiB more than it has before the first step."""
    return answer_of(LIMITED, folder, spare)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
@pytest.mark.slow
def test_short_of_memory_a_batch_is_computed_in_parts(
    tmp_path: Path, new_run: Callable[..., Path], make_model: MakeModel
) -> None:
    base = make_model(tmp_path / "m")
    settings = {
        "size": 512, "crop_size": 512, "batch_size": 8, "steps": 2, "splits": "t",
        # Statistics that follow the images are of each part, and the same only where they stay.
        "loss": "cross_entropy", "augment": "none", "freeze_norm": True,
    }  # fmt: skip
    ample = train_in_little(new_run("ample", base, **settings), 20_000)
    tight = train_in_little(new_run("tight", base, **settings), 420)
    assert ample["said"] == [s for s in ample["said"] if "Memory" not in s]
    assert any("Memory was short, so each batch of 8" in text for text in tight["said"])
    assert tight["state"] == "completed", tight["reason"]
    assert tight["losses"] == pytest.approx(ample["losses"], rel=1e-4)
    hopeless = train_in_little(new_run("hopeless", base, **settings), 40)
    assert hopeless["state"] == "failed"
    assert "not enough memory for a single crop of 512 pixels" in hopeless["reason"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo's launcher was not tried there")
def test_two_processes_share_a_run(
    tmp_path: Path, new_run: Callable[..., Path], make_model: MakeModel
) -> None:
    folder = new_run("r", make_model(tmp_path / "m"), devices=2, steps=3, batch_size=4)
    with subprocess.Popen(
        [sys.executable, "-m", "segdesk.training", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert [e["step"] for e in events if e["event"] == "step"] == [1, 2, 3]
    assert events[-1]["event"] == "finished"
    assert events[-1]["state"] == "completed", events[-1]
    assert (folder / "model" / "weights.safetensors").is_file()

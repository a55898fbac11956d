"""Predictions on a Dask cluster of two processes here: the same results, whatever dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from segdesk.cli import run
from segdesk.config.inference import InferenceConfig
from segdesk.core.errors import InputError
from segdesk.core.run import RunState
from segdesk.inference.cluster import Cluster
from segdesk.io.packages import hash_weights, read_card
from segdesk.io.sources import hash_source
from segdesk.jobs.messages import AnyEvent, Finished, PredictOrder, Progressed
from segdesk.training.inline import InlineBackend

distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")

SHAPE = (1500, 1200)


@pytest.fixture(scope="module", autouse=True)
def _one_thread_for_all() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    """Start two worker processes; a nanny starts a new one in place of each that dies."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as own,
        distributed.Client(own, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "big.tif"
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    noise = np.random.default_rng(0).integers(0, 60, SHAPE)
    waves = 90 + 70 * np.sin(rows / 31) * np.cos(columns / 47)
    tifffile.imwrite(path, (waves + noise).astype(np.uint8))
    return path


def order(image: Path, model: Path, out: Path, **config: Any) -> PredictOrder:
    settings = {"tile_size": 192, "overlap": 32, "device": "cpu", "precision": "single"} | config
    return PredictOrder(
        job=out.name, sample=out.name, image=str(image), image_sha256=hash_source(image),
        model="tiny", model_folder=model, classes=read_card(model).classes, out=out,
        config=InferenceConfig(**settings),
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(image: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predict the image in this process alone."""
    out = tmp_path_factory.mktemp("alone") / "alone"
    events: list[AnyEvent] = []
    InlineBackend(events.append).predict(order(image, model, out))
    assert isinstance(events[-1], Finished)
    assert events[-1].state is RunState.COMPLETED
    return out


def assert_same(found: Path, expected: Path) -> None:
    assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in expected.iterdir())
    labels, unsure, maps = (
        [
            tifffile.imread(folder / name)
            if name.endswith(".tif")
            else np.asarray(zarr.open_array(folder / name, mode="r"))
            for folder in (found, expected)
        ]
        for name in ("labels.tif", "uncertainty.tif", "probabilities.zarr")
    )
    np.testing.assert_allclose(unsure[0], unsure[1], atol=1e-4)
    np.testing.assert_allclose(maps[0], maps[1], atol=2e-3)
    assert (labels[0] == labels[1]).mean() > 0.9999, "but for a tie or two"


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_and_doubles_nothing(
    local: Any, image: Path, model: Path, expected: Path, tmp_path: Path
) -> None:
    out, killed = tmp_path / "out", []
    record, lines = tmp_path / ".out.part" / "done.txt", []
    events: list[AnyEvent] = []

    def on_event(event: AnyEvent) -> None:
        events.append(event)
        if isinstance(event, Progressed):
            lines[:] = record.read_text("utf-8").splitlines()
            if not killed:
                killed.append(min(local.run(os.getpid).values()))
                os.kill(killed[0], getattr(signal, "SIGKILL", signal.SIGTERM))

    cluster = Cluster(local, "here", whole_below=2**20)
    cluster.run([order(image, model, out)], on_event)
    assert isinstance(events[-1], Finished)
    assert events[-1].state is RunState.COMPLETED, events[-1].reason
    assert killed
    places = [tuple(line.split()[:3]) for line in lines]
    assert sorted(places) == sorted(("0", str(y), str(x)) for y in range(3) for x in range(3))
    assert_same(out, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    alone, spread = (json.loads((p / "provenance.json").read_text()) for p in (expected, out))
    assert spread["cluster"] == {"workers": 2}
    assert spread["unsure"] == pytest.approx(alone["unsure"], abs=1e-4)
    own = ("image_sha256", "weights_sha256", "config", "classes", "device", "precision")
    assert {k: spread[k] for k in own} == {k: alone[k] for k in own}


@pytest.mark.slow
def test_what_was_finished_before_is_not_done_again(
    local: Any, image: Path, model: Path, expected: Path, tmp_path: Path
) -> None:
    """Whoever runs it is stopped after some blocks, and starts it again."""
    out, done = tmp_path / "out", []

    def stop(event: AnyEvent) -> None:
        if isinstance(event, Progressed):
            raise KeyboardInterrupt

    cluster = Cluster(local, "here", whole_below=2**20)
    with pytest.raises(KeyboardInterrupt):
        cluster.run([order(image, model, out)], stop)
    kept = (tmp_path / ".out.part" / "done.txt").read_text("utf-8").splitlines()
    assert 0 < len(kept) < 9
    cluster.run([order(image, model, out)], done.append)
    first = next(event for event in done if isinstance(event, Progressed))
    assert first.done > len(kept)
    assert_same(out, expected)


def test_many_small_images_are_spread_and_a_bad_one_is_told_of(
    local: Any, model: Path, tmp_path: Path
) -> None:
    orders = []
    for number in range(5):
        path = tmp_path / f"{number}.tif"
        tifffile.imwrite(path, np.full((70, 60), number, np.uint8) + np.arange(60, dtype=np.uint8))
        orders.append(order(path, model, tmp_path / "out" / str(number)))
    (tmp_path / "3.tif").write_bytes(b"")
    ends: dict[str, Finished] = {}
    Cluster(local, "here").run(
        orders, lambda event: ends.update({event.job: event} if isinstance(event, Finished) else {})
    )
    assert ends.pop("3").reason.startswith("3.tif is empty")
    assert all(end.state is RunState.COMPLETED for end in ends.values())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0", "1", "2", "4"]


def test_a_worker_that_sees_another_model_says_so(
    local: Any, image: Path, model: Path, tmp_path: Path, make_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other = make_model(tmp_path / "tiny", seed=5)
    monkeypatch.setattr(
        "segdesk.inference.cluster.hash_weights", lambda folder: hash_weights(model)
    )
    ends: list[AnyEvent] = []
    Cluster(local, "here").run([order(image, other, tmp_path / "out")], ends.append)
    assert isinstance(ends[-1], Finished)
    assert "has another model in" in ends[-1].reason


def test_the_command_uses_the_cluster_and_skips_what_is_done(
    local: Any, image: Path, model: Path, expected: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    small = tmp_path / "small.tif"
    tifffile.imwrite(small, tifffile.imread(image)[:90, :80])
    command = ["predict", str(tmp_path / "*.tif"), "--out", str(tmp_path / "out"),
               "--model", str(model), "--scheduler", local.scheduler.address, "--json"]  # fmt: skip
    for is_skipped in (False, True):
        assert run(command) == 0
        (told,) = json.loads(capsys.readouterr().out)
        assert told.get("skipped", False) is is_skipped
        assert tifffile.imread(told["labels"]).shape == (90, 80)
    made = json.loads(Path(told["provenance"]).read_text("utf-8"))
    assert made["cluster"]["workers"] in (1, 2)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_scheduler_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        Cluster.connect("tcp://127.0.0.1:9", timeout=1)

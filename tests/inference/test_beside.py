"""Several tiles computed beside each other on a processor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segdesk.config.inference import InferenceConfig
from segdesk.core.errors import CanceledError
from segdesk.core.prediction import UncertaintyKind
from segdesk.inference.predictor import Plane, Predictor
from segdesk.inference.sampling import make_sampler
from segdesk.inference.tiling import Box
from segdesk.nn.weights import load_model

MakeModel = Callable[..., Path]

TILES = InferenceConfig(tile_size=64, overlap=32, precision="single")


@pytest.fixture(autouse=True)
def _three_threads(one_thread: None) -> Iterator[None]:
    """Let torch use three threads, on however many cores there are."""
    torch.set_num_threads(3)
    yield
    with ThreadPoolExecutor(1) as other:  # torch tells a thread its number when it begins
        found = other.submit(torch.get_num_threads).result()
    assert (found, torch.get_num_threads()) == (3, 3), "others get fewer threads now"


def plane() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random((200, 260, 1), np.float32)


def run(predictor: Predictor, **how: Any) -> np.ndarray[Any, Any]:
    """Return all maps of the plane, (M, Y, X); each pixel must come once."""
    parts: list[tuple[Box, np.ndarray[Any, Any]]] = []
    predictor.run(
        Plane.of(plane()), TILES, lambda box, maps: parts.append((box, maps.copy())), **how
    )
    whole = np.zeros((len(parts[0][1]), 200, 260), np.float32)
    seen = np.zeros((200, 260), int)
    for box, maps in parts:
        whole[:, *box.slices] = maps
        seen[box.slices] += 1
    assert (seen == 1).all()
    return whole


def left() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("segdesk")]


def test_tiles_beside_each_other_give_what_they_give_one_by_one(
    tmp_path: Path, make_model: MakeModel
) -> None:
    predictor = Predictor(load_model(make_model(tmp_path / "m")), torch.device("cpu"))
    threads: set[str] = set()
    shares: set[int] = set()
    at_once: list[int] = []
    now, lock = [0], threading.Lock()

    def forward(batch: Tensor) -> Tensor:
        with lock:
            now[0] += 1
            at_once.append(now[0])
            threads.add(threading.current_thread().name)
        time.sleep(0.02)
        maps = predictor.probabilities(batch)
        if threading.current_thread().name.startswith("segdesk-compute"):
            shares.add(torch.get_num_threads())
        with lock:
            now[0] -= 1
        return maps

    beside = run(predictor, forward=forward)
    again = run(predictor, forward=forward)
    assert max(at_once) == 3
    assert shares == {1}, "threads of their own, and those of all others too"
    assert len([name for name in threads if name.startswith("segdesk-compute")]) == 3
    torch.set_num_threads(1)
    alone = run(predictor)
    torch.set_num_threads(3)
    np.testing.assert_array_equal(beside, again)
    np.testing.assert_allclose(beside, alone, atol=1e-6)
    assert left() == []


def test_dropout_drops_the_same_in_tiles_beside_each_other(
    tmp_path: Path, make_model: MakeModel
) -> None:
    model = load_model(make_model(tmp_path / "m", dropout=0.3))
    predictor = Predictor(model, torch.device("cpu"))
    sampler = make_sampler(UncertaintyKind.DROPOUT, [predictor.network], passes=4)

    def forward(batch: Tensor) -> Tensor:
        probabilities, unsure = sampler(batch)
        return torch.cat((probabilities, unsure[:, None]), 1)

    beside = run(predictor, forward=forward)
    torch.set_num_threads(1)
    alone = run(predictor, forward=forward)
    torch.set_num_threads(3)
    assert alone[-1].max() > 0
    np.testing.assert_allclose(beside, alone, atol=1e-5)


def test_where_memory_holds_one_tile_only_the_rest_is_computed_one_by_one(
    tmp_path: Path, make_model: MakeModel
) -> None:
    said: list[str] = []
    predictor = Predictor(load_model(make_model(tmp_path / "m")), torch.device("cpu"), said.append)
    one = threading.Semaphore(1)

    def forward(batch: Tensor) -> Tensor:
        if not one.acquire(blocking=False):
            raise MemoryError
        try:
            time.sleep(0.02)
            return predictor.probabilities(batch)
        finally:
            one.release()

    short = run(predictor, forward=forward)
    assert said == ["Memory ran out on the processor: one tile at a time from here on."]
    torch.set_num_threads(1)
    np.testing.assert_allclose(short, run(predictor), atol=1e-6)
    torch.set_num_threads(3)


def test_a_cancel_ends_it_within_the_tiles_at_hand(tmp_path: Path, make_model: MakeModel) -> None:
    predictor = Predictor(load_model(make_model(tmp_path / "m")), torch.device("cpu"))
    begun: list[int] = []
    canceled = threading.Event()

    def forward(batch: Tensor) -> Tensor:
        begun.append(1)
        if len(begun) == 8:
            canceled.set()
        time.sleep(0.02)
        return predictor.probabilities(batch)

    def check() -> None:
        if canceled.is_set():
            raise CanceledError

    with pytest.raises(CanceledError):
        run(predictor, forward=forward, check=check)
    assert len(begun) <= 8 + 3
    assert left() == []

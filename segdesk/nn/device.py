"""Which device computes, and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum

import psutil
import torch
from torch import Tensor, nn

from segdesk.core.errors import InputError
from segdesk.jobs.heap import give_back_freed_memory, save_memory

#: How much of the free memory tiles may take, and how many of them at most on a card.
MEMORY_SHARE = 0.5
MOST_TILES = 32
#: A processor's memory is looked at so often, and a tile counted as at least so many bytes.
LOOK_SECONDS = 0.005
LEAST_BYTES = 16 * 2**20
#: Half precision must be so much faster, and its probabilities so near, on average.
FASTER = 1.15
NEAR = 0.005
TRY_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device and the reason for it, in words."""

    device: torch.device
    reason: str


def pick_device(wanted: str) -> DeviceChoice:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``mps`` into a device that works here.

    Raises
    ------
    InputError
        A device was named that this machine or this torch build lacks.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        if has_cuda:
            name = torch.cuda.get_device_name(0)
            return DeviceChoice(torch.device("cuda"), f"the graphics card {name}")
        if has_mps:
            return DeviceChoice(torch.device("mps"), "Apple's graphics processor")
        return DeviceChoice(torch.device("cpu"), "the processor: no graphics card was found")
    if wanted == "cuda" and not has_cuda:
        built = "this torch was built without CUDA" if not torch.version.cuda else "none answers"
        raise InputError(
            f"No CUDA graphics card can be used here ({built}); choose auto or cpu, or run "
            "'segdesk doctor' to see what is missing."
        )
    if wanted == "mps" and not has_mps:
        raise InputError("Apple's graphics processor cannot be used here; choose auto or cpu.")
    return DeviceChoice(torch.device(wanted), "as you chose")


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, in the memory order convolutions are fastest in.

    channels_last is 1.2 to 2 times faster on CPUs, and what tensor cores want.
    """
    placed: nn.Module = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    return placed


def device_words(device: torch.device) -> str:
    """Name a device in a sentence."""
    if device.type == "cuda":
        return f"the graphics card ({torch.cuda.get_device_name(device)})"
    return "Apple's graphics processor" if device.type == "mps" else "the processor"


# Memory ------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    # What torch's CPU and MPS allocators raise is a plain RuntimeError, and so is what
    # oneDNN says when it finds no room for its working memory, or Python for a thread's stack.
    signs = (
        "allocate memory",
        "not enough memory",
        "out of memory",
        "could not create a primitive",
        "can't start new thread",
    )
    return any(sign in text for sign in signs)


def free_spare(device: torch.device) -> None:
    """Let go of what is kept for reuse: memory ran out, there or beside it."""
    save_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@dataclass
class Used:
    """Bytes of the device's memory that a block of code took at its peak; 0 if not known."""

    bytes: int = 0


@contextmanager
def measured(device: torch.device) -> Iterator[Used]:
    """Measure the memory that a block takes on top of what is taken already."""
    used = Used()
    if device.type == "cpu":
        with _watched(used):
            yield used
        return
    if device.type != "cuda":
        yield used
        return
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield used
    used.bytes = torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _watched(used: Used) -> Iterator[None]:
    """Look at this process's memory all the while: processors keep no account of a peak."""
    give_back_freed_memory()  # else what was kept for reuse would hide what is taken now
    process, ended = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            used.bytes = max(used.bytes, process.memory_info().rss - before)

    thread = threading.Thread(target=look, name="segdesk-memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def tiles_at_once(device: torch.device, bytes_per_tile: int) -> int:
    """Return how many tiles to compute at once, so that they take half of the free memory.

    On a graphics card in one batch. On a processor a batch is no faster, but tiles beside
    each other on a thread each are: threads that share one tile wait for each other after
    every layer (two cores: 1.3 to 1.7 times as fast, docs/benchmarks.md).
    """
    if device.type == "cuda" and bytes_per_tile:
        free, _ = torch.cuda.mem_get_info(device)
        return min(MOST_TILES, max(1, int(free * MEMORY_SHARE) // bytes_per_tile))
    if device.type == "cpu":
        free = psutil.virtual_memory().available
        fitting = int(free * MEMORY_SHARE) // max(bytes_per_tile, LEAST_BYTES)
        return min(torch.get_num_threads(), max(1, fitting))
    return 1


# Precision ---------------------------------------------------------------------


class Precision(StrEnum):
    """What the network computes with."""

    SINGLE = "single"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return a context in which networks compute so."""
        if self is Precision.SINGLE:
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, self.value))


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """A precision and the reason for it, in a sentence."""

    precision: Precision
    reason: str


def pick_precision(network: nn.Module, batch: Tensor, *, is_wanted: bool) -> PrecisionChoice:
    """Try half precision on some real tiles, and take it if it is faster and agrees.

    Parameters
    ----------
    network
        Images (N, C, h, w) to class maps (N, K, h, w), on the device of ``batch``.
    is_wanted
        Take it also where it is not faster; it must agree all the same.
    """
    device = batch.device
    half = Precision.BFLOAT16 if device.type == "cpu" else Precision.FLOAT16
    single_maps, single_time = _try(network, batch, Precision.SINGLE)
    half_maps, half_time = _try(network, batch, half)
    apart = float((single_maps - half_maps).abs().mean())
    gain = single_time / half_time
    figures = f"{gain:.1f} times as fast here"
    if not apart <= NEAR:  # NaN is no agreement either
        return PrecisionChoice(
            Precision.SINGLE,
            f"Computes in single precision: half changes the probabilities by {apart:.3f}.",
        )
    if gain < FASTER and not is_wanted:
        return PrecisionChoice(
            Precision.SINGLE, f"Computes in single precision: half precision is {figures}."
        )
    return PrecisionChoice(half, f"Computes in half precision ({half}): {figures}.")


def _try(network: nn.Module, batch: Tensor, precision: Precision) -> tuple[Tensor, float]:
    """Return probabilities and the seconds of the fastest of some runs."""
    fastest, began = float("inf"), time.perf_counter()
    with torch.inference_mode(), precision.autocast(batch.device):
        while True:
            start = time.perf_counter()
            maps = torch.softmax(network(batch).float(), 1)
            if batch.device.type != "cpu":
                float(maps[0, 0, 0, 0])  # wait for the device
            now = time.perf_counter()
            is_first = fastest == float("inf")
            fastest = min(fastest, now - start)
            if now - began > TRY_SECONDS and not is_first:
                return maps, fastest

"""Which device computes, and why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from segdesk.core.errors import InputError

#: How much of the free graphics memory a batch may take, and how many tiles at most.
MEMORY_SHARE = 0.5
MOST_TILES = 32
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
    # oneDNN says when it finds no room for its working memory.
    signs = (
        "allocate memory",
        "not enough memory",
        "out of memory",
        "could not create a primitive",
    )
    return any(sign in text for sign in signs)


@dataclass
class Used:
    """Bytes of graphics memory that a block of code took at its peak; 0 on a processor."""

    bytes: int = 0


@contextmanager
def measured(device: torch.device) -> Iterator[Used]:
    """Measure the graphics memory that a block takes on top of what is taken already."""
    used = Used()
    if device.type != "cuda":
        yield used
        return
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield used
    used.bytes = torch.cuda.max_memory_allocated(device) - before


def tiles_at_once(device: torch.device, bytes_per_tile: int) -> int:
    """Return how many tiles to compute at once.

    One on a processor, where more are no faster and take more memory; as many as take
    half of the free memory of a graphics card.
    """
    if device.type != "cuda" or not bytes_per_tile:
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    fitting = int(free * MEMORY_SHARE) // bytes_per_tile
    return min(MOST_TILES, max(1, fitting))


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

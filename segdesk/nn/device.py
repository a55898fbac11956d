"""Which device computes, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from segdesk.core.errors import InputError


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

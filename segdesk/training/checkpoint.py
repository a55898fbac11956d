"""What a run keeps on disk while it goes on: weights, and all it needs to go on exactly."""

from __future__ import annotations

import io
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from segdesk.core.errors import InputError
from segdesk.io.atomic import atomic_write_bytes
from segdesk.nn.weights import write_weights


def save_checkpoint(path: Path, weights: dict[str, Tensor], step: int) -> None:
    """Write the weights after ``step`` steps; the old file stays until the new is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(path, weights, {"step": str(step)})


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights in memory."""
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and texts; the old file stays until the new is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    # Through bytes, so that a full disk is an OSError we can explain.
    atomic_write_bytes(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; nothing in it is run.

    Raises
    ------
    InputError
        The file is damaged.
    """
    return _load(path)


def checkpoint_step(path: Path) -> int:
    """Return after how many steps a checkpoint was taken, without reading its tensors."""
    return int(_load(path, mmap=True)["step"])


def _load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, ValueError, OSError, EOFError, KeyError, UnpicklingError) as error:
        raise InputError(
            f"The checkpoint {path.name} is damaged ({type(error).__name__}), so the run cannot go "
            "on; start a new one from the same model."
        ) from None
    return state


def random_state(generator: torch.Generator) -> dict[str, Tensor]:
    """Return the state of all randomness of a run."""
    state = {"data": generator.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(generator: torch.Generator, state: dict[str, Tensor]) -> None:
    """Go on drawing where :func:`random_state` was taken."""
    generator.set_state(state["data"])
    torch.set_rng_state(state["torch"])
    cuda = [state[key] for key in sorted(state) if key.startswith("cuda")]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda[: torch.cuda.device_count()])

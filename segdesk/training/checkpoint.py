"""Weights kept while a run goes on, in safetensors like everything else."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from segdesk.nn.weights import write_weights


def save_checkpoint(path: Path, weights: dict[str, Tensor], step: int) -> None:
    """Write the weights after ``step`` steps; the old file stays until the new is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(path, weights, {"step": str(step)})


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights in memory."""
    return {k: v.detach().clone() for k, v in network.state_dict().items()}

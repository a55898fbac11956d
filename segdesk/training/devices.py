"""One loop for processors, graphics cards, several of them and several machines."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from segdesk.config.training import Mixed, TrainingConfig
from segdesk.core.errors import InputError
from segdesk.nn.device import pick_device
from segdesk.training.settings import training_precision

_FABRIC_PRECISION = {
    Mixed.SINGLE: "32-true",
    Mixed.BFLOAT16: "bf16-mixed",
    Mixed.FLOAT16: "16-mixed",
}


class Team:
    """The processes that share a run; most runs have one.

    Every process runs the whole loop on crops of its own, and gradients are averaged;
    the first one alone judges, tells and writes.

    Raises
    ------
    InputError
        A device or a precision that this machine lacks.
    """

    def __init__(self, config: TrainingConfig) -> None:
        device = pick_device(config.device).device
        self._is_many = config.devices * config.nodes > 1
        if device.type == "cuda" and config.devices > torch.cuda.device_count():
            raise InputError(
                f"This machine has {torch.cuda.device_count()} graphics cards and not "
                f"{config.devices}; choose fewer devices."
            )
        strategy: Any = "auto"
        if self._is_many:
            # Not every output of every network is in every loss.
            strategy = DDPStrategy(find_unused_parameters=True)
        precision: Any = _FABRIC_PRECISION[training_precision(config.precision, device)]
        self._fabric = Fabric(
            accelerator=device.type,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=strategy,
            precision=precision,
        )
        self._fabric.launch()
        self.device: torch.device = self._fabric.device

    @property
    def is_first(self) -> bool:
        """Whether this process judges, tells and writes."""
        return bool(self._fabric.global_rank == 0)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self._fabric.global_rank)

    def share_of(self, batch_size: int) -> int:
        """Return how many crops of a batch each process takes."""
        return max(1, batch_size // int(self._fabric.world_size))

    def take(
        self, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap both, so that gradients are shared and precision is kept."""
        wrapped, stepper = self._fabric.setup(network, optimizer)
        for method in ("training_maps", "own_loss", "refine"):
            if hasattr(network, method):
                wrapped.mark_forward_method(method)
        return wrapped, stepper

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        self._fabric.backward(loss)

    def clip(self, network: Any, optimizer: Any, longest: float) -> bool:
        """Shorten the gradients together to a length; False if that is no finite number.

        With a loss scaler, infinite ones now and then are in order: it skips that step.
        """
        length = self._fabric.clip_gradients(
            network, optimizer, max_norm=longest, error_if_nonfinite=False
        )
        return bool(self.state()) or length is None or math.isfinite(float(length))

    def any(self, is_so: bool) -> bool:
        """Whether it is so in any process; all of them must ask."""
        if not self._is_many:
            return is_so
        found = self._fabric.all_reduce(torch.tensor(float(is_so)), reduce_op="sum")
        return float(torch.as_tensor(found)) > 0

    def state(self) -> dict[str, Any]:
        """Return the state of the loss scaler, empty where there is none."""
        return dict(self._fabric.strategy.precision.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with a scaler's state."""
        self._fabric.strategy.precision.load_state_dict(state)

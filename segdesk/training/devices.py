"""One loop for processors, graphics cards, several of them and several machines."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from segdesk.config.training import Mixed, TrainingConfig
from segdesk.core.errors import InputError
from segdesk.nn.device import pick_device
from segdesk.training.settings import training_precision

#: Steps that the loss scaler may skip in a row. In the first ones it looks for a scale.
MOST_SKIPPED = 20

#: The loss scale begins at 65536 and is halved at each skip. Below this, gradients are infinite
#: without it too.
LEAST_SCALE = 1.0


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
        self._precision = _precision(training_precision(config.precision, device), device)
        #: Steps in a row that the loss scaler has skipped.
        self.skipped = 0
        self._fabric = Fabric(
            accelerator=device.type,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=strategy,
            plugins=[self._precision],
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

    def half(self) -> AbstractContextManager[Any]:
        """Compute in half precision inside, where the run was asked to.

        Fabric itself would do so for a network's ``forward`` alone, unless there are several
        devices, and the loop calls other methods.
        """
        return self._precision.forward_context()

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        self._fabric.backward(loss)

    def clip(self, network: Any, optimizer: Any, longest: float) -> bool:
        """Shorten the gradients together to a length; False if that is no finite number.

        With a loss scaler, infinite ones now and then are in order: :meth:`step` skips them.
        """
        length = self._fabric.clip_gradients(
            network, optimizer, max_norm=longest, error_if_nonfinite=False
        )
        if length is None or math.isfinite(float(length)):
            return True
        # The scaler looks at each gradient alone, and these may be finite where their length
        # is not.
        gradients = (p.grad for p in network.parameters() if p.grad is not None)
        return bool(self.state()) and not all(bool(torch.isfinite(g).all()) for g in gradients)

    def step(self, optimizer: Any) -> str:
        """Make the optimizer's step; returns what is wrong with the gradients, or nothing.

        A loss scaler skips steps with infinite gradients and halves its scale. Now and then
        that is in order; too many in a row, or too small a scale, mean that the run diverges.
        """
        before = self._scale
        optimizer.step()
        if self._scale >= before:
            self.skipped = 0
            return ""
        self.skipped += 1
        if self.skipped >= MOST_SKIPPED or self._scale < LEAST_SCALE:
            return (
                "The gradients became infinite or no numbers in half precision "
                f"({self.skipped} steps in a row were left out, the loss scale fell to "
                f"{self._scale:g})"
            )
        return ""

    @property
    def _scale(self) -> float:
        return float(self.state().get("scale", 1.0))

    def any(self, is_so: bool) -> bool:
        """Whether it is so in any process; all of them must ask."""
        if not self._is_many:
            return is_so
        found = self._fabric.all_reduce(torch.tensor(float(is_so)), reduce_op="sum")
        return float(torch.as_tensor(found)) > 0

    def state(self) -> dict[str, Any]:
        """Return the state of the loss scaler, empty where there is none."""
        return dict(self._precision.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with a scaler's state; without one, as in a run that began on another device."""
        if state:
            self._precision.load_state_dict(state)


def _precision(mixed: Mixed, device: torch.device) -> Precision:
    """Return what computes in that precision; by its name, fabric refuses some on processors."""
    if mixed is Mixed.SINGLE:
        return Precision()
    return MixedPrecision("16-mixed" if mixed is Mixed.FLOAT16 else "bf16-mixed", device.type)

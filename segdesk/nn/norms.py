"""Normalisation layers that several architectures share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PooledNorm(nn.BatchNorm2d):
    """Batch norm behind a pooling, which also takes a single value per channel.

    One image pooled to one pixel has no variance, and torch's batch norm refuses to
    learn from it. Then, and only then, the running statistics are used, as in
    evaluation; scale and shift learn.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, shape (N, C, H, W)."""
        if x.shape[0] * x.shape[2] * x.shape[3] > 1:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

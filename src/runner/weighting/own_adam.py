"""Adam for the few numbers that a weighting learns by gradients of its own; its state is in the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BETAS, EPSILON = (0.9, 0.999), 1e-8


class OwnAdam(nn.Module):
    """Kingma and Ba 2015, with a step count for each number: tasks that are absent from a step do not age.

    Args:
        size: how many numbers. lr: learning rate.
    """

    momentum: Tensor
    square: Tensor
    updates: Tensor

    def __init__(self, size: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        for name in ("momentum", "square", "updates"):
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    def change(self, grad: Tensor, chosen: Tensor) -> Tensor:
        """What to add to the numbers at the positions `chosen` (k,), given their gradient (k,)."""
        grad = grad.to(self.momentum)
        self.updates[chosen] += 1
        self.momentum[chosen] = BETAS[0] * self.momentum[chosen] + (1 - BETAS[0]) * grad
        self.square[chosen] = BETAS[1] * self.square[chosen] + (1 - BETAS[1]) * grad.square()
        t = self.updates[chosen]
        root = (self.square[chosen] / (1 - BETAS[1] ** t)).sqrt()
        return -self.lr * self.momentum[chosen] / (1 - BETAS[0] ** t) / (root + EPSILON)

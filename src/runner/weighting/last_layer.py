"""Per-task gradients of the last shared layer only: one weighted backward pass, and K short ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from runner.weighting.base import PerTaskWeighting, rescaled
from runner.weighting.buffer import TaskGradients, gram_matrix
from runner.weighting.engine import Engine
from runner.weighting.passes import WeightedPass


class LastLayerWeighting(PerTaskWeighting):
    """Weights that a step's gradients at the last shared layer move for the next one.

    Args:
        heads, scale, shared: see `PerTaskWeighting`.
    """

    needs: ClassVar[str] = "gradients of the last shared layer"

    def current(self, present: Tensor) -> Tensor:
        """Coefficients (k,) float32 of this step's gradients, before its losses are known.

        Args:
            present: (k,) int64, as in `LossWeighting.combine`.
        """
        raise NotImplementedError

    def update(self, norms: Tensor, losses: Tensor, present: Tensor) -> None:
        """Move the weights, or leave the gradient of own parameters in their `.grad`.

        Args:
            norms: (k,) float32, lengths of the unweighted gradients ∇L_k at the layer, without loss scale.
            losses, present: as in `LossWeighting.combine`, on the same device.
        """
        raise NotImplementedError


class LastLayerPass(WeightedPass):
    """Each loss is followed back to the last shared layer, and no further; then their weighted sum through the model.

    Only P_L of P numbers per task are held. The layer is the last shared parameter of two or more dimensions, and what
    follows it (its bias).
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        assert isinstance(engine.weighting, LastLayerWeighting)
        self.weighting = engine.weighting
        self.grads = TaskGradients(len(engine.tasks), last_layer(engine.shared), engine.device)

    def begin(self) -> None:
        super().begin()
        engine, weighting = self.engine, self.weighting
        engine.weights = rescaled(weighting.current(engine.present_tensor).float(), weighting.scale)
        engine.head_weights = engine.weights if weighting.heads == "weighted" else torch.ones_like(engine.weights)
        self.grads.begin()

    def backward(self, partial: Mapping[int, Tensor]) -> None:
        if self.grads.parameters:
            for k, loss in partial.items():
                if loss.requires_grad:
                    self.grads.backward(k, loss * self.engine.scale, [], retain_graph=True)
        super().backward(partial)

    def finish(self, losses: Tensor) -> Tensor:  # type: ignore[override]
        super().finish(losses)
        engine = self.engine
        present = engine.present_tensor
        gram = gram_matrix(engine.reduce(self.grads.finish())[present]) / engine.scale**2
        if gram.isfinite().all():  # if not, the loss scale overflows: the scaler skips the step, and no weight moves
            began = time.perf_counter()
            self.weighting.update(gram.diagonal().sqrt().to(losses), losses, present)
            engine.solver_s += time.perf_counter() - began
        return gram


def last_layer(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The last one of two or more dimensions, and those after it; all where there is none."""
    matrices = [i for i, parameter in enumerate(parameters) if parameter.dim() > 1]
    return list(parameters[matrices[-1] if matrices else 0 :])

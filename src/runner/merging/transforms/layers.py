"""Whole layers of task vectors set back to the base: LwPTV (Zhang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from runner.config.kinds import Fraction
from runner.merging.blocks import Block, Look
from runner.merging.transforms.base import Transform


@dataclass(kw_only=True)
class LayerMask(Transform):
    """m_t ⊙ τ_t with one bit per layer and task: each task keeps the layers in which its changes say most.

    Zhang et al., "Merging Smarter, Generalizing Better" (LwPTV), 2025, prune task vectors layer by layer by a saliency
    score that measures redundancy, and give the rest to any rule. The score here is ours: the task's part of what all
    tasks changed in the layer, ‖τ_t‖² / Σ_s ‖τ_s‖² ("share"), or the mean square of its changes ("size"). A layer that
    others changed more is redundant for a task, and in their way. Experts of weight 0 do not count.

    Attributes:
        keep: share of the layers that every task keeps, one at least.
        score: by which layers are ranked.
        level: what a layer is: a numbered "block" with all its tensors, or every "tensor".
    """

    keep: Fraction = 0.7
    score: Literal["share", "size"] = "share"
    level: Literal["block", "tensor"] = "block"

    def survey(self, look: Look) -> Any:
        """Layer → 0 or 1 per expert."""
        squares: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def of(block: Block) -> tuple[str, list[float], int]:
            found = [
                float(block.delta(t).square().sum(dtype=torch.float64)) if block.weights[t] else 0.0
                for t in range(len(block))
            ]
            return self.layer(block.name), found, block.models[0].numel()

        for layer, found, count in look.map(of):
            squares[layer] = squares.get(layer, 0) + torch.tensor(found, dtype=torch.float64)
            counts[layer] = counts.get(layer, 0) + count
        layers = list(squares)
        size_LT = torch.stack([squares[layer] / counts[layer] for layer in layers])
        score_LT = size_LT / size_LT.sum(1, keepdim=True).clamp_min(1e-300) if self.score == "share" else size_LT
        kept = max(1, round(self.keep * len(layers)))
        masks = {layer: [0] * len(look.experts) for layer in layers}
        for t in range(len(look.experts)):
            ranked = sorted(range(len(layers)), key=lambda i: (-float(score_LT[i, t]), -float(size_LT[i, t]), i))
            for i in ranked[:kept]:
                masks[layers[i]][t] = 1
        return masks

    def apply(self, tau: Tensor, block: Block, index: int, state: Any) -> Tensor:
        return tau if state[self.layer(block.name)][index] else tau.zero_()

    def layer(self, name: str) -> str:
        """The layer that a tensor belongs to."""
        if self.level == "tensor":
            return name
        parts = name.split(".")
        numbered = [i for i, part in enumerate(parts) if part.isdigit()]
        return ".".join(parts[: numbered[-1] + 1]) if numbered else name.rpartition(".")[0] or name

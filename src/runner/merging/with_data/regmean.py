"""RegMean: linear layers that predict what each expert's predicts, in closed form (Jin et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.kinds import Fraction, NonNegativeFloat, PositiveInt
from runner.errors import UserError
from runner.merging.base import DataMerge, Merged
from runner.merging.data import TaskData
from runner.merging.sources import Models
from runner.merging.with_data.common import experts_of, mean_of
from runner.types import Group


@dataclass(kw_only=True)
class RegMean(DataMerge):
    """W = (Σ_t G_t)⁻¹ Σ_t G_t W_t with G_t = X_tᵀX_t of the inputs of expert t's layer (equation 2).

    Convolutions are linear layers on patches. Everything that is not the weight of such a layer is averaged.

    Attributes:
        shrink: the off-diagonals of every G are multiplied by it.
        ridge: added to the diagonal of every G, relative to its mean: G is singular with fewer rows than inputs.
        batch_size: examples per forward pass.
    """

    shrink: Fraction = 0.9
    ridge: NonNegativeFloat = 1e-6
    batch_size: PositiveInt = 100

    def fit(self, models: Models, data: TaskData) -> Merged:
        experts = experts_of(models)
        layers = dict(linear_layers(data.model, set(next(iter(experts.values())))))
        if not layers:
            raise UserError("merge=regmean: the backbone has no linear layers or convolutions", see="runner ls merge")
        found = {
            task: grams(layers, tensors, data, ((task, group) for group in data.passes(task, self.batch_size)))
            for task, tensors in experts.items()
        }
        merged = {name: mean_of(experts, name) for name in next(iter(experts.values()))}
        for name, layer in layers.items():
            matrices = [as_matrix(layer, experts[task][name]) for task in experts]
            solved = regression_mean([found[task][name] for task in experts], matrices, self.shrink, self.ridge)
            merged[name] = from_matrix(layer, solved, merged[name])
        return Merged(merged, report={"layers": len(layers)})


@torch.no_grad()
def grams(
    layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], data: TaskData, groups: Iterable[tuple[str, Group]]
) -> dict[str, Tensor]:
    """Weight name → Gram matrix (in × in) of the layer's inputs, divided by their number, in float64.

    Args:
        layers: as `linear_layers` gives them.
        tensors: the weights that run.
        data: whose model runs.
        groups: (task whose head is asked, examples).
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def look(name: str, layer: nn.Module, x: Tensor) -> None:
        x_NI = inputs_of(layer, x).double()
        sums[name] = sums.get(name, 0) + x_NI.T @ x_NI
        rows[name] = rows.get(name, 0) + len(x_NI)

    hooks = [
        layer.register_forward_pre_hook(lambda m, a, name=name: look(name, m, a[0])) for name, layer in layers.items()
    ]
    try:
        for task, group in groups:
            data.forward(tensors, group, [task])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / rows[name] for name, total in sums.items()}


def regression_mean(grams: list[Tensor], weights: list[Tensor], shrink: float, ridge: float) -> Tensor:
    """The minimiser over W (in × out) of Σ_t ‖X_t W − X_t W_t‖², with off-diagonals of the Grams × `shrink`."""
    size = grams[0].shape[0]
    total = torch.zeros_like(grams[0])
    right = torch.zeros(size, weights[0].shape[1], dtype=total.dtype, device=total.device)
    for gram, weight in zip(grams, weights, strict=True):
        shrunk = gram * shrink
        shrunk.diagonal().copy_(gram.diagonal() + ridge * gram.diagonal().mean().clamp_min(1e-12))
        total += shrunk
        right += shrunk @ weight.double()
    return torch.linalg.solve(total, right)


def linear_layers(model: nn.Module, names: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """(name of the weight, module) of the layers that are matrices on their inputs."""
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if name not in names:
            continue
        plain_conv = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
        if isinstance(module, nn.Linear) or plain_conv or type(module).__name__ == "Conv1D":
            yield name, module


def inputs_of(layer: nn.Module, x: Tensor) -> Tensor:
    """The rows (N, in) that a layer multiplies with its matrix."""
    if isinstance(layer, nn.Conv2d):
        padding = layer.padding
        if isinstance(padding, str):  # "same"
            left = [(d * (k - 1)) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            right = [d * (k - 1) - p for d, k, p in zip(layer.dilation, layer.kernel_size, left, strict=True)]
            if padding == "same":
                x = F.pad(x, (left[1], right[1], left[0], right[0]))
            padding = (0, 0)
        patches_BIL = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)  # type: ignore[arg-type]
        return patches_BIL.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


def as_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight as (in, out)."""
    if type(layer).__name__ == "Conv1D":  # GPT-2 stores it so
        return weight
    return weight.flatten(1).T


def from_matrix(layer: nn.Module, matrix_IO: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_matrix`."""
    matrix = matrix_IO if type(layer).__name__ == "Conv1D" else matrix_IO.T
    return matrix.reshape(like.shape).to(like.dtype)

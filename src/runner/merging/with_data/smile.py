"""SMILE: every layer a sparse mixture of low-rank experts, without data (Tang et al. 2024); Arrow's router as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.kinds import PositiveInt
from runner.errors import UserError
from runner.merging.base import DataMerge, Merge, Merged
from runner.merging.data import TaskData
from runner.merging.modules import MergedModule, Shapes, frame_of
from runner.merging.sources import Models
from runner.merging.with_data.common import experts_of
from runner.merging.with_data.regmean import linear_layers
from runner.types import Group


class RoutedLayer(nn.Module):
    """y = W x + Σ_{t ∈ top k} g_t(x) · U_t V_t x + b_t, chosen per row (token, or position of a map).

    The router's logits are how much of the input lies in each expert's leading directions, ‖P_t x‖ (SMILE, equation 7;
    with one direction it is Arrow's |v_tᵀ x|).

    Args:
        layer: a Linear, Conv1D or Conv2d layer of the mean model; it stays as it is.
        experts: number of experts. rank: of every one. gates: directions per expert. top: experts per row.
    """

    def __init__(self, layer: nn.Module, experts: int, rank: int, gates: int, top: int) -> None:
        super().__init__()
        self.layer, self.top = layer, min(top, experts)
        rows, columns = matrix_shape(layer)
        rank, gates = min(rank, rows, columns), min(gates, rows, columns)
        self.register_buffer("up", torch.zeros(experts, rows, rank))
        self.register_buffer("down", torch.zeros(experts, rank, columns))
        self.register_buffer("gate", torch.zeros(experts, gates, columns))
        self.register_buffer("shift", torch.zeros(experts, rows))

    @property
    def weight(self) -> Tensor:
        """Of the layer in whose place this one is: models look at its type."""
        return self.layer.weight  # type: ignore[return-value]

    @torch.no_grad()
    def fill(self, deltas: Sequence[Tensor], shifts: Sequence[Tensor | None]) -> None:
        """From the experts' differences to the mean, ΔW (out × in) and Δb."""
        for t, (delta, shift) in enumerate(zip(deltas, shifts, strict=True)):
            u, s, vh = torch.linalg.svd(delta, full_matrices=False)
            rank, gates = self.up.shape[2], self.gate.shape[1]  # type: ignore[union-attr]
            self.up[t] = u[:, :rank] * s[:rank]  # type: ignore[index]
            self.down[t] = vh[:rank]  # type: ignore[index]
            self.gate[t] = vh[:gates]  # type: ignore[index]
            if shift is not None:
                self.shift[t] = shift  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        spatial = isinstance(self.layer, nn.Conv2d)
        logits = self._project(x, self.gate).unflatten(-1, self.gate.shape[:2]).norm(dim=-1)  # (…, T)
        best, chosen = logits.topk(self.top, dim=-1)
        weight = torch.zeros_like(logits).scatter(-1, chosen, best.softmax(-1))
        low = self._project(x, self.down).unflatten(-1, self.down.shape[:2])  # (…, T, r)
        extra = torch.einsum("...tr,tor->...o", low * weight[..., None], self.up) + weight @ self.shift
        return y + (extra.movedim(-1, 1) if spatial else extra)

    def _project(self, x: Tensor, rows_TRI: Tensor) -> Tensor:
        """Products of every row of the input with T × R directions, channels last."""
        flat = rows_TRI.flatten(0, 1)
        if isinstance(self.layer, nn.Conv2d):
            c = self.layer
            kernel = flat.view(len(flat), c.in_channels, *c.kernel_size)
            return F.conv2d(x, kernel, None, c.stride, c.padding, c.dilation).movedim(1, -1)
        return F.linear(x, flat)


def matrix_shape(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a layer as a matrix."""
    weight: Any = layer.weight
    if type(layer).__name__ == "Conv1D":
        return weight.shape[1], weight.shape[0]
    return weight.shape[0], weight[0].numel()


class RoutedModule(MergedModule):
    """A model whose layers are mixtures."""

    def __init__(self, model: nn.Module, experts: int, rank: int, gates: int, top: int) -> None:
        super().__init__()
        self.frame = frame_of(model)
        names = {n for n in self.frame.state_dict() if n.startswith("backbone.")}
        for name, layer in list(linear_layers(self.frame, names)):
            path = name.removesuffix(".weight")
            parent = self.frame.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], RoutedLayer(layer, experts, rank, gates, top))
        self.to(next(model.parameters()).device)

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        return self.frame(group, tasks)

    @classmethod
    def restore(cls, strategy: Merge, model: nn.Module, plain: Mapping[str, Any], shapes: Shapes) -> MergedModule:
        assert isinstance(strategy, Smile)
        return cls(model, len(shapes), strategy.rank, strategy.gates, strategy.top)


@dataclass(kw_only=True)
class Smile(DataMerge):
    """Mean model plus routed low-rank differences in every linear layer and convolution; everything else averaged.

    Tang, Shen, Luo, Xie, Hu, Zhang, Du, Tao, "SMILE", 2024. Needs no data.

    Attributes:
        rank: of every expert in every layer.
        gates: leading directions that the router measures; 1 with a LoRA expert is Arrow's prototype.
        top: experts per row.
        around: differences are taken to the "mean" of the experts or to the "base", which is where layers stay;
            "general" takes them to the mean but leaves layers at the base: what all experts know is subtracted
            (GenKnowSub with the average of experts as the general one, Bagherifard et al. 2025).
    """

    returns: ClassVar[Any] = "module"
    module_type: ClassVar[type[MergedModule]] = RoutedModule

    rank: PositiveInt = 16
    gates: PositiveInt = 4
    top: PositiveInt = 1
    around: Literal["mean", "base", "general"] = "base"

    def fit(self, models: Models, data: TaskData) -> Merged:
        experts = experts_of(models)
        names = list(next(iter(experts.values())))
        mean = {n: torch.stack([t[n] for t in experts.values()]).mean(0) for n in names}
        layers = dict(linear_layers(data.model, set(names)))
        if not layers:
            raise UserError("merge: the backbone has no linear layers or convolutions", see="runner ls merge")
        assert models.base is not None
        base = {n: models.base.whole(n).float() for n in names}
        center = base if self.around == "base" else mean
        stays = mean if self.around == "mean" else base
        module = RoutedModule(data.model, len(experts), self.rank, self.gates, self.top)
        routed = {n: m for n, m in module.frame.named_modules() if isinstance(m, RoutedLayer)}
        inside = {n.removesuffix("weight") for n in layers}
        own = module.frame.state_dict()
        for name in names:
            path, _, leaf = name.rpartition(".")
            if f"{path}." in inside and leaf in ("weight", "bias"):
                own[f"{path}.layer.{leaf}"].copy_(stays[name])
            else:
                own[name].copy_(mean[name])
        for path, layer in routed.items():
            weight, bias = f"{path}.weight", f"{path}.bias"
            transposed = type(layer.layer).__name__ == "Conv1D"
            deltas = [t[weight] - center[weight] for t in experts.values()]
            shifts = [t[bias] - center[bias] if bias in t else None for t in experts.values()]
            layer.fill([d.T if transposed else d.flatten(1) for d in deltas], shifts)
        return Merged(module=module, report={"layers": len(routed)})

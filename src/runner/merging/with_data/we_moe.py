"""WEMoE: MLPs whose weights are mixed per example by a router that learns from unlabelled inputs (Tang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.errors import UserError
from runner.merging.base import DataMerge, Merge, Merged
from runner.merging.coefficients import matches
from runner.merging.data import TaskData
from runner.merging.modules import MergedModule, Shapes, frame_of
from runner.merging.sources import Models
from runner.merging.transforms.layers import LayerMask
from runner.merging.with_data.coefficients import Mixed, best_scale, entropy_of
from runner.merging.with_data.common import base_of, generator, vectors_of
from runner.merging.with_data.regmean import linear_layers
from runner.randomness import forked_rng
from runner.types import Group

ATTENTION = ("attn", "attention", "query", "key", "value", "qkv", "q_proj", "k_proj", "v_proj", "out_proj", "c_attn")
"""Parts of names: what contains one belongs to an attention."""


class Router(nn.Module):
    """Input of an MLP (B, …, D) → coefficients of the experts (B, T), the mean over tokens or positions."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, experts)

    def forward(self, x: Tensor, axis: int) -> Tensor:
        x = x.movedim(axis, -1).flatten(1, -2) if x.dim() > 2 else x[:, None]
        return self.up(F.relu(self.down(x))).mean(1)


class GatedLayer(nn.Module):
    """y_b = W₀x_b + Σ_t g_bt ΔW_t x_b (+ biases): the layer with weights θ₀ + Σ_t g_bt τ_t, per example.

    The first layer of an MLP has the router, the others take what it said.
    """

    def __init__(self, layer: nn.Module, experts: int, router: Router | None, leader: GatedLayer | None) -> None:
        super().__init__()
        self.layer, self.router = layer, router
        self._leader = (leader,)  # not a submodule
        self.coefficients: Tensor | None = None
        weight, bias = self.parameters_of(layer)
        self.register_buffer("delta", torch.zeros(experts, *weight.shape))
        self.register_buffer("shift", None if bias is None else torch.zeros(experts, *bias.shape))

    @property
    def weight(self) -> Tensor:
        """Of the layer in whose place this one is: models look at its type."""
        return self.layer.weight  # type: ignore[return-value]

    @staticmethod
    def parameters_of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """(weight, bias)."""
        return layer.weight, layer.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        spatial = isinstance(self.layer, nn.Conv2d)
        if self.router is not None:
            self.coefficients = self.router(x, 1 if spatial else -1)
        gate_BT = self.coefficients if self.router is not None else self._leader[0].coefficients  # type: ignore[union-attr]
        assert gate_BT is not None
        y = self.layer(x)
        delta: Any = self.delta
        if spatial:
            c: Any = self.layer
            extra = F.conv2d(x, delta.flatten(0, 1), None, c.stride, c.padding, c.dilation).unflatten(
                1, delta.shape[:2]
            )
            y = y + torch.einsum("bt,bt...->b...", gate_BT, extra)
        else:
            rows = "tio" if type(self.layer).__name__ == "Conv1D" else "toi"
            y = y + torch.einsum(f"bt,{rows},b...i->b...o", gate_BT, delta, x)
        if self.shift is not None:
            shift = gate_BT @ self.shift  # type: ignore[operator]
            shape = (len(x), -1, *[1] * (y.dim() - 2)) if spatial else (len(x), *[1] * (y.dim() - 2), -1)
            y = y + shift.view(shape)
        return y


class EnsembledModule(MergedModule):
    """A merged model whose MLPs are mixtures of weights."""

    def __init__(self, model: nn.Module, experts: int, strategy: WeMoe) -> None:
        super().__init__()
        self.frame = frame_of(model)
        names = {n for n in self.frame.state_dict() if n.startswith("backbone.")}
        self.gated: list[str] = []
        leaders: dict[str, GatedLayer] = {}
        blocks = LayerMask()
        for name, layer in strategy.chosen(self.frame, names):
            path = name.removesuffix(".weight")
            block = blocks.layer(name)
            leader = leaders.get(block)
            width = layer.weight.shape[0 if type(layer).__name__ == "Conv1D" else 1]  # type: ignore[union-attr,index]
            router = Router(int(width), strategy.hidden or int(width), experts) if leader is None else None
            made = GatedLayer(layer, experts, router, leader)
            leaders.setdefault(block, made)
            parent = self.frame.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], made)
            self.gated.append(path)
        self.to(next(model.parameters()).device)

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        return self.frame(group, tasks)

    def routers(self) -> list[Router]:
        """All routers."""
        return [m for m in self.frame.modules() if isinstance(m, Router)]

    @classmethod
    def restore(cls, strategy: Merge, model: nn.Module, plain: Mapping[str, Any], shapes: Shapes) -> MergedModule:
        assert isinstance(strategy, WeMoe)
        return cls(model, len(shapes), strategy)


@dataclass(kw_only=True)
class WeMoe(DataMerge):
    """Task arithmetic everywhere but in the MLPs: θ_MLP(x) = θ₀ + Σ_t g_t(x) τ_t with a router g per MLP.

    Tang, Shen, Luo, Yin, Zhang, Tao, "Merging Multi-Task Models via Weight-Ensembling Mixture of Experts", ICML 2024,
    equations 5 to 7. Routers are two-layer perceptrons on the MLP's input, averaged over tokens; they learn to make
    predictions on unlabelled inputs certain. They start as task arithmetic: their last weights are 0 here, which the
    paper draws with a deviation of .01.

    Attributes:
        layers_at: patterns of the layers that are mixed; empty: those beside the attention of numbered
            blocks (of all blocks where none has one).
        hidden: width of the routers; None: that of their input.
        scale: λ of everything else and of the routers' start; None takes the best of a few on validation data.
        lr, steps, batch_size: of Adam; examples per task and step.
        seed: of the routers' first weights and the batches.
    """

    returns: ClassVar[Any] = "module"
    ignores: ClassVar[tuple[str, ...]] = ("weights", "normalize", "layers")
    module_type: ClassVar[type[MergedModule]] = EnsembledModule

    layers_at: list[str] = field(default_factory=list)
    hidden: PositiveInt | None = None
    scale: float | None = None
    lr: PositiveFloat = 1e-4
    steps: PositiveInt = 500
    batch_size: PositiveInt = 16
    seed: int = 0

    def chosen(self, model: nn.Module, names: set[str]) -> list[tuple[str, nn.Module]]:
        """(weight, layer) of what is mixed, in the model's order."""
        every = list(linear_layers(model, names))
        if self.layers_at:
            return [(n, m) for n, m in every if any(matches(p, n.removesuffix(".weight")) for p in self.layers_at)]
        plain = [(n, m) for n, m in every if not any(part in n for part in ATTENTION)]
        blocks = LayerMask()
        numbered = {n: blocks.layer(n) for n, _ in every if any(part.isdigit() for part in n.split("."))}
        with_attention = {block for n, block in numbered.items() if any(part in n for part in ATTENTION)}
        inside = [(n, m) for n, m in plain if n in numbered and numbered[n] in (with_attention or numbered.values())]
        return inside or plain

    def fit(self, models: Models, data: TaskData) -> Merged:
        for name, task in data.tasks.items():
            if task.loss_kind != "classification":
                raise UserError(f"merge=we_moe minimises the entropy of predicted classes, task '{name}' has none")
        base, vectors = base_of(models), vectors_of(models, self.pre)
        mixed = Mixed(base, vectors)
        scale = best_scale(mixed, data, len(vectors)) if self.scale is None else self.scale
        with forked_rng():
            torch.manual_seed(self.seed)
            module = EnsembledModule(data.model, len(vectors), self).eval()
        if not module.gated:
            raise UserError("merge=we_moe: no layer fits", "see merge.layers_at", "runner show merge/we_moe")
        self._fill(module, base, [*vectors.values()], scale)
        parameters = [p for router in module.routers() for p in router.parameters()]
        learning = self._learn(module, parameters, data)
        report = {"scale": scale, "layers": len(module.gated), "routers": len(module.routers()), "entropy": learning}
        return Merged(module=module, report=report)

    @torch.no_grad()
    def _fill(
        self, module: EnsembledModule, base: Mapping[str, Tensor], taus: list[dict[str, Tensor]], scale: float
    ) -> None:
        own = module.frame.state_dict()
        for name in base:
            path, _, leaf = name.rpartition(".")
            if path in module.gated and leaf in ("weight", "bias"):
                own[f"{path}.layer.{leaf}"].copy_(base[name])
                own[f"{path}.{'delta' if leaf == 'weight' else 'shift'}"].copy_(torch.stack([t[name] for t in taus]))
            else:
                own[name].copy_(base[name] + scale * torch.stack([t[name] for t in taus]).sum(0))
        for router in module.routers():
            router.up.weight.zero_()
            router.up.bias.fill_(scale)

    def _learn(self, module: EnsembledModule, parameters: list[Tensor], data: TaskData) -> dict[str, float]:
        """Minimise the entropy of predictions; returns it at the first and the last step."""
        draw, adam = generator(self.seed), torch.optim.Adam(parameters, lr=self.lr)
        streams = {task: data.batches(task, self.batch_size, draw) for task in data.tasks}
        found = []
        for _ in range(self.steps):
            data.check_stop()
            loss = torch.zeros((), device=data.device)
            for task, stream in streams.items():
                loss = loss + entropy_of(module(next(stream), [task])[task])
            adam.zero_grad()
            loss.backward(inputs=parameters)
            adam.step()
            found.append(float(loss.detach()) / len(streams))
        for layer in module.modules():
            if isinstance(layer, GatedLayer):
                layer.coefficients = None
        return {"first": round(found[0], 5), "last": round(found[-1], 5)}

"""VTAGML, vision transformer adapters (Bhattacharjee, Süsstrunk and Salzmann 2023, arXiv 2308.12372, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.architectures.side import make_carries, read_stages, resized
from runner.backbones.base import Backbone
from runner.backbones.staged import require_stages
from runner.config.kinds import PositiveInt
from runner.types import Group


class VTAGML(Architecture):
    """Adapters beside a backbone, one set for all tasks, in which the tasks' features attend to one another.

        h_t = W_down TSN_t(x + u_t)                         x a state of the backbone, u_t what task t brought along
        o_t = Σ_s softmax_s(q(h_t)·k(h_s)/√r + (1 + γ_s(z_t)) G_ts + β_s(z_t)) v(h_s)
        u_t = W_up GELU(h_t + o_t)                          task t reads x + u_t

    z_t is a learned embedding of the task, γ and β come from it (FiLM, Perez et al. 2018), and TSN is a LayerNorm whose
    scale comes from it, as in the released code. G (tasks × tasks) are cosines between the gradients of the tasks'
    losses, kept in the model by `wrapper=task_affinity`; without it G stays the identity. Made for a frozen
    backbone (`backbone.frozen=true`): W_up starts at 0, and with it every task at the backbone's own features.

    Ours: the authors add the FiLM of a matrix to the attention between the tokens inside the blocks, which needs a
    pass of the encoder for every task and images of one size; here the attention is among the tasks at every
    position, after every stage, so that the encoder runs once for all of them.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        reduction: of the width inside adapters (r = width / reduction).
        embedding: width of z.
    """

    needs: ClassVar[Literal["features", "stages", "maps"]] = "stages"
    affinity: Tensor

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        reduction: PositiveInt = 3,
        embedding: PositiveInt = 64,
    ) -> None:
        super().__init__()
        self.backbone = make_backbone()
        check_kinds(self.backbone, tasks)
        require_stages(self.backbone, "VTAGML")
        self.backbone.restrict(task.kind for task in tasks.values())
        self.kinds = {name: task.kind for name, task in tasks.items()}
        widths = list(self.backbone.stage_channels)
        self.last = max(index for kind in self.kinds.values() for index in read_stages(self.backbone, kind))
        self.register_buffer("affinity", torch.eye(len(tasks)))
        self.embeddings = nn.Parameter(torch.randn(len(tasks), embedding))
        self.adapters = nn.ModuleList(
            Adapter(width, max(1, width // reduction), embedding, len(tasks)) for width in widths[: self.last + 1]
        )
        self.carries = make_carries(widths[: self.last + 1], self.backbone.stage_strides)
        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        self.heads = nn.ModuleDict(
            {name: make_head(self.backbone.spec, task, defaults) for name, task in tasks.items()}
        )

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        if not tasks:
            return {}
        x, run = self.backbone.begin(group.inputs)
        brought: list[Tensor] | None = None
        states: dict[str, list[Tensor]] = {name: [] for name in tasks}
        names = list(self.kinds)
        for index, adapter in enumerate(self.adapters):
            x = self.backbone.stage(index, x, run)[1]
            if brought is not None and str(index) in self.carries:
                brought = [self.carries[str(index)](resized(u, x)) for u in brought]
            seen = [x] * len(names) if brought is None else [x + u for u in brought]
            brought = adapter(seen, self.embeddings, self.affinity)
            for name in tasks:
                states[name].append(x + brought[names.index(name)])
        predictions = {}
        for name in tasks:
            features = self.backbone.collect(states[name], run, self.kinds[name])
            predictions[name] = self.heads[name](features)
        return predictions

    def all_backbones(self) -> list[Backbone]:
        return [self.backbone]


class Adapter(nn.Module):
    """One level's adapter, the same weights for all tasks.

    Args:
        width: channels of the state. inner: r. embedding: width of z. tasks: their number.
    """

    def __init__(self, width: int, inner: int, embedding: int, tasks: int) -> None:
        super().__init__()
        self.norm = TaskScaledNorm(width, embedding)
        self.down = nn.Linear(width, inner)
        self.qkv = nn.Linear(inner, 3 * inner)
        self.film = nn.Linear(embedding, 2 * tasks)
        self.up = nn.Linear(inner, width)
        for layer in (self.film, self.up):
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.film.weight, std=0.02)
        nn.init.zeros_(self.up.weight)

    def forward(self, states: Sequence[Tensor], embeddings_KE: Tensor, affinity_KK: Tensor) -> list[Tensor]:
        """A state (B, C, …) of every task → u of every task."""
        normed = [self.norm(x.movedim(1, -1), z_E) for x, z_E in zip(states, embeddings_KE, strict=True)]
        h_BNKR = self.down(torch.stack(normed, dim=-2))  # N stands for any number of dimensions
        q, k, v = self.qkv(h_BNKR).chunk(3, dim=-1)
        logits = q @ k.mT / q.shape[-1] ** 0.5 + self.bias(embeddings_KE, affinity_KK)
        u_BNKC = self.up(F.gelu(h_BNKR + logits.softmax(-1) @ v))
        return [u.movedim(-1, 1) for u in u_BNKC.unbind(-2)]

    def bias(self, embeddings_KE: Tensor, affinity_KK: Tensor) -> Tensor:
        """(K, K), row t: (1 + γ(z_t)) G_t + β(z_t)."""
        gamma_KK, beta_KK = self.film(embeddings_KE).chunk(2, dim=-1)
        return (1 + gamma_KK) * affinity_KK + beta_KK


class TaskScaledNorm(nn.Module):
    """LayerNorm with a scale (1 + γ(z)) w + β(z) that depends on the task; w and the shift are shared.

    Args:
        width: of what is normalised, the last dimension. embedding: width of z.
    """

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.film = nn.Linear(embedding, 2 * width)
        nn.init.normal_(self.film.weight, std=0.02)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, z_E: Tensor) -> Tensor:
        gamma, beta = self.film(z_E).chunk(2)
        scale = (1 + gamma) * self.weight + beta
        return F.layer_norm(x, x.shape[-1:]) * scale + self.bias

"""SAK, the Swiss Army Knife (Lu, Cao and Wang 2025, ICLR, arXiv 2410.14633, sections 3.2 and 3.4, figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.architectures.side import OverChannels, make_carries, read_stages, resized
from runner.backbones.base import Backbone
from runner.backbones.plain import PlainTransformer
from runner.backbones.staged import StageRun, require_stages
from runner.config.kinds import PositiveInt
from runner.errors import UserError
from runner.types import Features, Group

States = list[Tensor]
"""A tensor (B, C, …) after every stage of the stem."""


class SAK(Architecture):
    """A shared stem, a light path of adapters per teacher beside it, and routers that mix them for every task.

        r_0 = A_0(x_0),  r_i = A_i(r_{i-1} + x_i)         A(y) = y + s · W_up GELU(W_down y)
        F_t = p_0 x_i + Σ_m p_m LN(r_i^m),  p = softmax(router_t(x_i))       at four depths, for every task t

    x_i is the stem after block i (x_0: after the patch embedding) and m runs over the paths. A router is a perceptron
    on every token whose outputs are averaged over the image; in training it adds noise of a learned size (Shazeer et
    al. 2017) to the logits. `wrapper=sak_distill` is what makes a path resemble its teacher; without it the paths
    learn from the tasks alone.

    As published (and in the released code) on plain transformers: an adapter after the embedding and after every
    block, a router at the four quarters. Ours: on pyramids an adapter after every stage instead of every block, a 1×1
    convolution of the average-pooled path where a stage changes width and resolution; and heads read F_t as they read
    the backbone's own outputs, through its final norm and neck, in place of the authors' four projections.

    Args:
        make_backbone: builds one backbone, the stem.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        paths: names of the teachers, one path for each.
        reduction: of the width inside adapters.
        noise: on the routers' logits in training.
    """

    needs: ClassVar[Literal["features", "stages", "maps"]] = "stages"

    read: list[int]
    """Stages whose states some task reads."""

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        paths: list[str],
        reduction: PositiveInt = 4,
        noise: bool = True,
    ) -> None:
        super().__init__()
        if not paths or len(set(paths)) < len(paths):
            raise UserError(
                f"architecture.paths={paths}: one name per teacher, each once", "such as [dinov2, clip, sam]"
            )
        self.backbone = make_backbone()
        check_kinds(self.backbone, tasks)
        require_stages(self.backbone, "SAK")
        self.backbone.restrict(task.kind for task in tasks.values())
        self.kinds = {name: task.kind for name, task in tasks.items()}
        widths = list(self.backbone.stage_channels)
        plain = isinstance(self.backbone, PlainTransformer)
        blocks = [len(self.backbone.stage_blocks(i)) if plain else 1 for i in range(len(widths))]
        strides = self.backbone.stage_strides
        self.paths = nn.ModuleDict({name: Path(widths, blocks, plain, strides, reduction) for name in paths})
        read = {name: read_stages(self.backbone, kind) for name, kind in self.kinds.items()}
        self.routers = nn.ModuleDict(
            {
                name: nn.ModuleDict({str(i): Router(widths[i], len(paths) + 1, noise) for i in read[name]})
                for name in tasks
            }
        )
        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        self.heads = nn.ModuleDict(
            {name: make_head(self.backbone.spec, task, defaults) for name, task in tasks.items()}
        )
        self.read = sorted({index for indices in read.values() for index in indices})
        for path in self.paths.values():
            path.keep_norms(self.read)
        self._seen: list[dict[str, States]] | None = None

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        if not tasks:
            return {}
        x, run = self.backbone.begin(group.inputs)
        residuals = {name: path.enter(x) for name, path in self.paths.items()}
        states: States = []
        paths: dict[str, States] = {name: [] for name in self.paths}
        for index in range(len(self.backbone.stage_channels)):
            for number, y in enumerate(self._steps(index, x, run)):
                residuals = {name: path.step(index, number, residuals[name], y) for name, path in self.paths.items()}
                x = y
            states.append(x)
            for name, path in self.paths.items():
                paths[name].append(path.norms[index](residuals[name]))
        if self._seen is not None:
            maps = {name: [_as_map(found[index], run) for index in self.read] for name, found in paths.items()}
            self._seen.append(maps)
        return {task: self.heads[task](self._features(task, states, paths, run)) for task in tasks}

    def _steps(self, index: int, x: Tensor, run: StageRun) -> Iterator[Tensor]:
        """The stem after every block of a stage, or after the stage alone where it is no plain transformer."""
        if not isinstance(self.backbone, PlainTransformer):
            yield self.backbone.stage(index, x, run)[1]
            return
        tokens_BTD = x.transpose(1, 2)
        for block in self.backbone.stage_blocks(index):
            tokens_BTD = self.backbone.run_block(block, tokens_BTD)
            yield tokens_BTD.transpose(1, 2)

    def _features(self, task: str, states: States, paths: Mapping[str, States], run: StageRun) -> Features:
        mixed = list(states)
        for at, router in self.routers[task].items():
            index = int(at)
            mixed[index] = router(states[index], [found[index] for found in paths.values()])
        return self.backbone.collect(mixed, run, self.kinds[task])

    @contextmanager
    def watched(self) -> Iterator[list[dict[str, States]]]:
        """Inside, what the paths make of every group: path → LN(r) as maps (B, C, H, W), at every stage in `read`."""
        self._seen = []
        try:
            yield self._seen
        finally:
            self._seen = None

    def all_backbones(self) -> list[Backbone]:
        return [self.backbone]


class Adapter(nn.Module):
    """y + s · W_up GELU(W_down y) over the channels of (B, C, …)."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, width // reduction)
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.ones(1))
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, y: Tensor) -> Tensor:
        inner = self.up(F.gelu(self.down(y.movedim(1, -1))))
        return y + self.scale * inner.movedim(-1, 1)


class Path(nn.Module):
    """The adapters of one teacher.

    Args:
        widths: channels after every stage of the stem.
        blocks: adapters of every stage.
        first: whether there is an adapter on what enters the first stage.
        strides: of the stages; empty where states are no maps.
        reduction: of the width inside adapters.
    """

    def __init__(
        self, widths: Sequence[int], blocks: Sequence[int], first: bool, strides: Sequence[int], reduction: int
    ) -> None:
        super().__init__()
        self.first = Adapter(widths[0], reduction) if first else None
        self.stages = nn.ModuleList(
            nn.ModuleList(Adapter(width, reduction) for _ in range(count))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.carries = make_carries(widths, strides)
        self.norms = nn.ModuleList(OverChannels(width) for width in widths)

    def keep_norms(self, indices: Sequence[int]) -> None:
        """Drop the norms of stages that no task reads."""
        for index in set(range(len(self.norms))).difference(indices):
            self.norms[index] = nn.Identity()

    def enter(self, x: Tensor) -> Tensor | None:
        """What enters the first stage → the path's own state."""
        return self.first(x) if self.first is not None else None

    def step(self, index: int, number: int, residual: Tensor | None, x: Tensor) -> Tensor:
        """The path's state after adapter `number` of a stage, from the one before and the stem."""
        if residual is not None and number == 0 and str(index) in self.carries:
            residual = self.carries[str(index)](resized(residual, x))
        return self.stages[index][number](x if residual is None else residual + x)


class Router(nn.Module):
    """softmax weights of the stem and the paths, one set per image, and what they mix.

    Args:
        width: channels of the state.
        count: of what is mixed.
        noise: whether logits get noise of a learned size in training.
    """

    def __init__(self, width: int, count: int, noise: bool) -> None:
        super().__init__()
        hidden = max(1, width // 2)
        outputs = 2 * count if noise else count
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, outputs)
        )
        self.noise = noise
        for layer in (self.layers[0], self.layers[3]):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def weights(self, x: Tensor) -> Tensor:
        """(B, count)."""
        logits = self.layers(x.movedim(1, -1))
        logits = logits.flatten(1, -2).mean(1) if logits.ndim > 2 else logits
        if self.noise:
            logits, size = logits.chunk(2, dim=1)
            if self.training:
                logits = logits + torch.randn_like(logits) * (F.softplus(size) + 1e-2)
        return logits.softmax(1)

    def forward(self, x: Tensor, paths: Sequence[Tensor]) -> Tensor:
        shares = self.weights(x).to(x.dtype).unflatten(0, (len(x), *[1] * (x.ndim - 1)))
        return sum((shares[..., m + 1] * r for m, r in enumerate(paths)), shares[..., 0] * x)


def _as_map(state: Tensor, run: StageRun) -> Tensor:
    """(B, C, H, W) of any state: patches on their grid, without the [CLS] token; a vector is one cell."""
    if state.ndim == 4:
        return state
    if state.ndim == 3 and run.grid is not None:
        return state[..., -run.grid[0] * run.grid[1] :].unflatten(2, run.grid)
    return state.reshape(*state.shape[:2], -1, 1)

"""Dynamic logit fusion: what small experts learned, added to the predictions of a larger model (Fan et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.errors import UserError
from runner.merging.base import DataMerge, Merge, Merged
from runner.merging.data import TaskData
from runner.merging.modules import Bank, MergedModule, Shapes, empty, frame_of
from runner.merging.sources import Models
from runner.merging.with_data.common import base_of, experts_of
from runner.types import Group


class FusedModule(MergedModule):
    """z = z_large + α · Σ_t w_t (z_expert_t − z_small), α per example (and position) so that divergences match.

    Attributes:
        large: a model of its own size; None: the small base stands in.
        use: "own": the task's expert alone; "all": every expert under the task's head.
        most: the largest α.
    """

    def __init__(
        self,
        model: nn.Module,
        large: nn.Module | None,
        base: Mapping[str, Tensor],
        experts: Mapping[str, Mapping[str, Tensor]],
        strategy: DynamicLogitFusion,
    ) -> None:
        super().__init__()
        self.frame, self.large = frame_of(model), large
        self.base = Bank(base)
        self.experts = nn.ModuleDict({task: Bank(tensors) for task, tensors in experts.items()})
        self.use, self.most, self.halvings = strategy.experts, strategy.most, strategy.halvings

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        small = self.run(dict(self.base.items()), group, tasks)
        large = small if self.large is None else self.large(group, tasks)
        return {task: self.fused(group, task, small[task], large[task]) for task in tasks}

    def fused(self, group: Group, task: str, small: Tensor, large: Tensor) -> Tensor:
        """The predictions of one task."""
        banks: Any = self.experts
        chosen = [banks[task]] if self.use == "own" else list(banks.values())
        outputs = [self.run(dict(bank.items()), group, [task])[task] for bank in chosen]
        return fuse(large, small, outputs, self.most, self.halvings)

    @classmethod
    def restore(cls, strategy: Merge, model: nn.Module, plain: Mapping[str, Any], shapes: Shapes) -> MergedModule:
        assert isinstance(strategy, DynamicLogitFusion)
        large = None if strategy.large is None else load_large(strategy.large)
        first = empty({n: t for n, t in next(iter(shapes.values())).items() if t.is_floating_point()})
        return cls(model, large, first, {task: empty(first) for task in shapes}, strategy)


def fuse(large: Tensor, small: Tensor, experts: Sequence[Tensor], most: float, halvings: int = 30) -> Tensor:
    """Predictions with what experts say beyond their base, as much of it as makes equal divergences.

    Fan et al., "On Giant's Shoulders", NeurIPS 2024, equations 5 to 7: at every step α minimises
    (KL(softmax(z) ‖ softmax(z_large)) − KL(softmax(z_expert) ‖ softmax(z_small)))². The divergence grows with α ≥ 0, so
    bisection finds it. For several experts the divergences to be met are averaged, and δ = Σ_t w_t (z_t − z_small) with
    w_t in proportion to the experts' divergences: the paper's equation leaves the direction open, this choice is ours.

    Args:
        large, small, experts: unactivated predictions with classes at axis 1, or one logit (B, 1).
        most: the largest α.
        halvings: of the interval [0, most].
    """
    if large.shape[1] == 1:
        pairs = [torch.cat([torch.zeros_like(x), x], 1) for x in (large, small, *experts)]
        both = fuse(pairs[0], pairs[1], pairs[2:], most, halvings)
        return both[:, 1:] - both[:, :1]
    big, little, *found = (x.float().movedim(1, -1) for x in (large, small, *experts))
    wanted_T = torch.stack([divergence(x, little) for x in found])
    share_T = wanted_T / wanted_T.sum(0).clamp_min(1e-30)
    delta = sum(w[..., None] * (x - little) for w, x in zip(share_T, found, strict=True))
    assert isinstance(delta, Tensor)
    wanted = wanted_T.mean(0)
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, most)
    for _ in range(halvings):
        middle = (low + high) / 2
        short = divergence(big + middle[..., None] * delta, big) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (big + ((low + high) / 2)[..., None] * delta).movedim(-1, 1).to(large.dtype)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(softmax(first) ‖ softmax(second)) over the last axis."""
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def load_large(path: str) -> nn.Module:
    """The model of a run, with its heads.

    Raises:
        UserError: there is no such run, or no weights in it.
    """
    from runner.launching.rundir import RunDirectory
    from runner.training.assemble import assemble
    from runner.training.checkpoints import load_weights
    from runner.training.start import weights_file

    if not (Path(path) / "run.json").is_file():
        raise UserError(
            f"merge.large={path} is no run directory",
            "train or probe a larger model on the same tasks, and name its run",
        )
    config = RunDirectory.open(Path(path)).config()
    if config["trainer"]["ema"] or config.get("adapter", {}).get("_target_"):
        raise UserError(f"merge.large={path} has an adapter or averaged weights", "take a run without")
    model = assemble(config, must_have_data=False).model
    load_weights(model, weights_file(Path(path))[0])
    return model.eval().requires_grad_(False)


@dataclass(kw_only=True)
class DynamicLogitFusion(DataMerge):
    """Tunes nothing: a large model plus the change that small experts made to a small base, in logits.

    Attributes:
        large: the run of a larger model with heads of the same tasks, such as one with fitted heads only; None takes
            the small base, which gives every expert back.
        experts: "own" expert of the task, or "all".
        most: the largest α.
        halvings: bisection steps for α.
    """

    returns: ClassVar[Any] = "ensemble"
    ignores: ClassVar[tuple[str, ...]] = ("pre", "weights", "normalize", "layers")
    module_type: ClassVar[type[MergedModule]] = FusedModule

    large: str | None = None
    experts: Literal["own", "all"] = "own"
    most: PositiveFloat = 4.0
    halvings: PositiveInt = 20

    def fit(self, models: Models, data: TaskData) -> Merged:
        for name, task in data.tasks.items():
            if task.loss_kind != "classification":
                raise UserError(
                    f"merge=dynamic_logit_fusion compares predicted classes, task '{name}' has none",
                    see="runner ls merge",
                )
        large = None if self.large is None else load_large(self.large).to(data.device)
        if large is not None:
            lacking = [t for t in data.tasks if t not in large.heads]  # type: ignore[operator]
            if lacking:
                raise UserError(f"merge.large={self.large} has no head for {', '.join(lacking)}")
        module = FusedModule(data.model, large, base_of(models), experts_of(models), self).eval()
        report = {"large_parameters": 0 if large is None else sum(p.numel() for p in large.parameters())}
        return Merged(module=module, report=report)

"""Twin-Merging: shared weights, compressed exclusive weights per task, a router on the input (Lu et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.kinds import Fraction, PositiveFloat, PositiveInt
from runner.errors import Problem
from runner.merging.base import DataMerge, Merge, Merged
from runner.merging.data import TaskData, take
from runner.merging.modules import Bank, MergedModule, Shapes, empty, frame_of
from runner.merging.sources import Models
from runner.merging.with_data.common import experts_of, generator, inner_rule, merged_by
from runner.randomness import forked_rng
from runner.types import Group


class TwinModule(MergedModule):
    """θ(x) = θ_shared + Σ_t w_t(x) · U_t V_t, w the router's softmax on the shared model's features.

    Attributes:
        mixing: "top": every example runs with the weights of its likeliest expert, which depends on nothing else;
            "batch": all with the mean of the batch's router outputs, as in the paper's fastest form.
    """

    outside: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        shared: Mapping[str, Tensor],
        exclusive: Mapping[str, Mapping[str, Tensor]],
        dim: int,
        hidden: int,
        mixing: str,
    ) -> None:
        super().__init__()
        self.frame, self.mixing = frame_of(model), mixing
        self.shared = Bank(shared)
        self.exclusive = nn.ModuleDict({t: Bank(parts) for t, parts in exclusive.items()})
        self.router = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, len(exclusive)))

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        weight_BT = self.router(self.features(group, tasks)).softmax(1)
        if self.mixing == "batch":
            return self.run(self.mixed(weight_BT.mean(0)), group, tasks)
        found: dict[str, Tensor] = {}
        chosen_B = weight_BT.argmax(1)
        for t in chosen_B.unique().tolist():
            rows = chosen_B == t
            outputs = self.run(
                self.mixed(F.one_hot(torch.tensor(t), weight_BT.shape[1]).float()), take(group, rows), tasks
            )
            for task, output in outputs.items():
                if task not in found:
                    found[task] = output.new_empty((len(group), *output.shape[1:]))
                found[task][rows] = output
        return found

    def features(self, group: Group, tasks: Sequence[str]) -> Tensor:
        """The shared model's pooled features, which the router reads."""
        seen: list[Tensor] = []
        heads: Any = self.frame.heads
        hook = heads[tasks[0]].register_forward_pre_hook(lambda _, a: seen.append(pooled(a[0])))
        self.run(dict(self.shared.items()), group, list(tasks)[:1])
        hook.remove()
        return seen[0]

    def mixed(self, weight_T: Tensor) -> dict[str, Tensor]:
        """The weights for one mixture of experts."""
        found = dict(self.shared.items())
        for weight, bank in zip(weight_T.tolist(), self.exclusive.values(), strict=True):
            if not weight:
                continue
            for name in found:
                found[name] = found[name] + weight * restored(bank, name, found[name])  # type: ignore[arg-type]
        return found

    def plain(self) -> dict[str, Any]:
        first, last = self.router[0], self.router[2]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        return {"dim": first.in_features, "hidden": first.out_features}

    @classmethod
    def restore(cls, strategy: Merge, model: nn.Module, plain: Mapping[str, Any], shapes: Shapes) -> MergedModule:
        assert isinstance(strategy, TwinMerging)
        shared = {n: t for n, t in empty(next(iter(shapes.values()))).items() if t.is_floating_point()}
        exclusive = {
            t: {k: v for n in shared for k, v in compressed(n, shared[n], strategy.rank).items()} for t in shapes
        }
        return cls(model, shared, exclusive, plain["dim"], plain["hidden"], strategy.mixing)


def pooled(features: Any) -> Tensor:
    """One vector per example from what a head reads."""
    if features.pooled is not None:
        return features.pooled
    if features.tokens is not None:
        return features.tokens.mean(1)
    return features.pyramid[-1].mean((-2, -1))


def compressed(name: str, tau: Tensor, rank: float) -> dict[str, Tensor]:
    """The leading part of a matrix' singular values as two factors; other tensors whole.

    Args:
        rank: share of the singular values that is kept.
    """
    if tau.dim() < 2:
        return {f"{name}|whole": tau}
    matrix = tau.flatten(1)
    keep = max(1, round(rank * min(matrix.shape)))
    if keep * sum(matrix.shape) >= matrix.numel():
        return {f"{name}|whole": tau}
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return {f"{name}|u": u[:, :keep] * s[:keep], f"{name}|v": vh[:keep]}


def restored(bank: Bank, name: str, like: Tensor) -> Tensor:
    """The inverse of `compressed`."""
    if f"{name}|whole" in bank.names:
        return bank[f"{name}|whole"]
    return (bank[f"{name}|u"] @ bank[f"{name}|v"]).view(like.shape)


@dataclass(kw_only=True)
class TwinMerging(DataMerge):
    """Shared = a merge; exclusive_t = θ_t − shared, singular values cut; weights by a router at inference.

    Lu, Fan, Wei, Qu, Chen, Cheng, "Twin-Merging", 2024. The router learns which task an unlabelled input is of.

    Attributes:
        rule: gives the shared weights, a config with a `_target_`; null is task arithmetic.
        rank: share of each matrix' singular values that an exclusive part keeps.
        mixing: see `TwinModule`.
        hidden, lr, steps, batch_size: of the router.
        seed: of its first weights and batches.
    """

    returns: ClassVar[Any] = "module"
    module_type: ClassVar[type[MergedModule]] = TwinModule

    rule: dict[str, Any] | None = None
    rank: Fraction = 0.1
    mixing: Literal["top", "batch"] = "top"
    hidden: PositiveInt = 64
    lr: PositiveFloat = 1e-3
    steps: PositiveInt = 500
    batch_size: PositiveInt = 64
    seed: int = 0

    def check(self, experts: tuple[str, ...], has_base: bool) -> list[Problem]:
        return [*super().check(experts, has_base), *inner_rule(self.rule).check(experts, has_base)]

    def fit(self, models: Models, data: TaskData) -> Merged:
        shared = merged_by(inner_rule(self.rule), models, data)
        exclusive = {
            task: {k: v for n in shared for k, v in compressed(n, tensors[n] - shared[n], self.rank).items()}
            for task, tensors in experts_of(models).items()
        }
        with torch.no_grad():
            known = {
                task: torch.cat([data.features(shared, g, task).flatten(1) for g in data.passes(task, 200)])
                for task in models.names
            }
        dim = next(iter(known.values())).shape[1]
        with forked_rng():
            torch.manual_seed(self.seed)
            module = TwinModule(data.model, shared, exclusive, dim, self.hidden, self.mixing).to(data.device)
        accuracy = self._train(module.router, list(known.values()))
        return Merged(module=module, report={"router_accuracy": round(accuracy, 4)})

    def _train(self, router: nn.Module, known: list[Tensor]) -> float:
        """Fit the router to tell tasks apart; returns its accuracy on what it saw."""
        z_ND = torch.cat(known)
        task_N = torch.cat([torch.full((len(z),), t, device=z.device) for t, z in enumerate(known)])
        mean, scale = z_ND.mean(0), z_ND.std().clamp_min(1e-12)
        draw, adam = generator(self.seed), torch.optim.Adam(router.parameters(), lr=self.lr)
        sizes = [len(z) for z in known]
        offsets = [sum(sizes[:t]) for t in range(len(sizes))]
        each = max(1, self.batch_size // len(known))
        for _ in range(self.steps):  # as many of every task
            rows = torch.cat(
                [o + torch.randint(s, (each,), generator=draw) for o, s in zip(offsets, sizes, strict=True)]
            )
            rows = rows.to(z_ND.device)
            loss = F.cross_entropy(router((z_ND[rows] - mean) / scale), task_N[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
        with torch.no_grad():  # the scaling becomes part of the first layer
            first = router[0]  # type: ignore[index]
            first.bias.sub_(first.weight @ (mean / scale))  # type: ignore[union-attr]
            first.weight.div_(scale)  # type: ignore[union-attr]
            return float((router(z_ND).argmax(1) == task_N).float().mean())

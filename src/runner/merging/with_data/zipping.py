"""Matching units of several models by their activations: by permutations, or greedily within models as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from runner.merging.data import TaskData, take
from runner.merging.units import HEADS, UnitGroup, feature_rows, rows

POSITIONS = 4096
"""Rows of one layer and batch that are looked at, at most: maps have many that say the same."""


@torch.no_grad()
def correlations(
    experts: Mapping[str, Mapping[str, Tensor]],
    groups: Sequence[UnitGroup],
    data: TaskData,
    examples: int,
    batch_size: int,
) -> list[Tensor]:
    """Per group the correlations of all models' units (T·n, T·n), float64, over inputs of all tasks.

    Units are looked at where they are read: after activations and residual sums.

    Args:
        experts: weights, run one after the other on the same inputs.
        examples: per task.
    """
    paths = {path for group in groups for path in group.readers}
    modules = {path: data.model.get_submodule(path) for path in paths}
    totals: list[Tensor] = [torch.zeros(()) for _ in groups]
    squares: list[Tensor] = [torch.zeros(()) for _ in groups]
    counts = [0] * len(groups)
    for task in data.tasks:
        few = take(data.unlabelled[task], slice(0, examples))
        for begin in range(0, len(few), batch_size):
            batch = take(few, slice(begin, begin + batch_size))
            seen = [activations(modules, tensors, data, batch, task) for tensors in experts.values()]
            for number, group in enumerate(groups):
                for reader in [*group.readers, *([HEADS] if group.headed else [])]:
                    x_NU = torch.cat([own[reader] for own in seen], 1)
                    totals[number] = totals[number] + x_NU.sum(0)
                    squares[number] = squares[number] + x_NU.T @ x_NU
                    counts[number] += len(x_NU)
    return [correlation(*sums) for sums in zip(totals, squares, counts, strict=True)]


def activations(
    modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], data: TaskData, batch: object, task: str
) -> dict[str, Tensor]:
    """Reader → its inputs (N, units), float64."""
    found: dict[str, Tensor] = {}

    def keep(path: str, x_NU: Tensor) -> None:
        found[path] = x_NU[:: -(-len(x_NU) // POSITIONS)].double()

    handles = [
        m.register_forward_pre_hook(lambda m, a, path=path: keep(path, rows(m, a[0]))) for path, m in modules.items()
    ]
    head: nn.Module = data.model.heads[task]  # type: ignore[index,operator,assignment]
    handles.append(head.register_forward_pre_hook(lambda _, a: keep(HEADS, feature_rows(a[0]))))
    try:
        data.forward(tensors, batch, [task])  # type: ignore[arg-type]
    finally:
        for handle in handles:
            handle.remove()
    return found


def correlation(total_U: Tensor, squares_UU: Tensor, count: int) -> Tensor:
    """From sums; units that never move are uncorrelated with everything."""
    mean = total_U / count
    covariance = squares_UU / count - torch.outer(mean, mean)
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    still = deviation < 1e-9 * float(deviation.max()) + 1e-12
    inverse = torch.where(still, 0.0, 1 / deviation.masked_fill(still, 1.0))
    return covariance * inverse[:, None] * inverse


def permutations(correlation_UU: Tensor, count: int) -> Tensor:
    """Cluster of every unit, shape (T·n,): each model's units one by one to those of the first (Hungarian method)."""
    size = len(correlation_UU) // count
    correlation_UU = correlation_UU.cpu()
    found = [torch.arange(size)]
    for t in range(1, count):
        gain = correlation_UU[:size, t * size : (t + 1) * size] + 1e-4 * torch.eye(size, dtype=correlation_UU.dtype)
        partner = torch.from_numpy(linear_sum_assignment(gain.cpu().numpy(), maximize=True)[1])
        cluster = torch.empty(size, dtype=torch.long)
        cluster[partner] = torch.arange(size)
        found.append(cluster)
    return torch.cat(found)


def zipped(correlation_UU: Tensor, count: int, repeat: float, within: float) -> Tensor:
    """Cluster of every unit, shape (T·n,): T·n units become n by joining the most correlated pair again and again.

    Stoica et al. 2023, section 4.3. Units of one index are joined first where nothing else tells: experts of one base.

    Args:
        repeat: α: a joined unit is as like another as the less like of its parts, times this.
        within: β: share of the joins that may happen inside one model.
    """
    total = len(correlation_UU)
    size = total // count
    sims = correlation_UU.clone().cpu()
    sims += 1e-4 * torch.eye(size, dtype=sims.dtype).repeat(count, count)
    sims.fill_diagonal_(-torch.inf)
    model = torch.arange(count).repeat_interleave(size)  # count: of several
    budget = torch.tensor([int(within * (total - size) / count + 1e-9)] * count + [total])
    members: list[list[int]] = [[u] for u in range(total)]

    def nearest(which: Tensor) -> tuple[Tensor, Tensor]:
        """The most similar partner of some units that they may be joined with."""
        inside = (model[which][:, None] == model) & (budget[model] <= 0)
        found = sims[which].masked_fill(inside, -torch.inf).max(1)
        return found.values, found.indices

    best, partner = nearest(torch.ones(total, dtype=torch.bool))
    for _ in range(total - size):
        i = int(best.argmax())
        i, j = sorted((i, int(partner[i])))
        stale = (partner == i) | (partner == j)
        if int(model[i]) != int(model[j]):
            model[i] = count
        elif int(model[i]) != count:
            budget[model[i]] -= 1
            stale |= (model == model[i]) & (budget[model[i]] <= 0)
        members[i] += members[j]
        fresh = repeat * torch.minimum(sims[i], sims[j])
        sims[i], sims[:, i] = fresh, fresh
        sims[j], sims[:, j], sims[i, i] = -torch.inf, -torch.inf, -torch.inf
        members[j] = []
        stale[i] = True
        best[stale], partner[stale] = nearest(stale)
        best[j] = -torch.inf
        better = (sims[:, i] > best) & ~((model == model[i]) & (budget[model] <= 0))
        best[better], partner[better] = sims[better, i], i
    clusters = torch.empty(total, dtype=torch.long)
    for number, own in enumerate(filter(None, members)):
        clusters[own] = number
    return clusters


def matrices(clusters_U: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """M (T, n, n), which averages the units of every cluster, and U (T, n, n), which gives them back."""
    size = len(clusters_U) // count
    unmerge = torch.zeros(len(clusters_U), size)
    unmerge[torch.arange(len(clusters_U)), clusters_U] = 1.0
    merge = (unmerge / unmerge.sum(0)).T
    return merge.view(size, count, size).transpose(0, 1).contiguous(), unmerge.view(count, size, size)

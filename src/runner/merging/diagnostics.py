"""What task vectors look like beside one another: tables for result.json, pictures for the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.config.schema import MergingConfig
from runner.merging.data import TaskData, slices
from runner.merging.loading import Inputs
from runner.merging.plots import curves, heat_map
from runner.merging.sources import Models

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def diagnose(
    folder: Path,
    settings: MergingConfig,
    data: TaskData,
    inputs: Inputs,
    merged: Mapping[str, Tensor] | None,
    report: Mapping[str, Any],
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The diagnostics that `merging.diagnostics` names; their pictures go to `folder`/diagnostics."""
    pictures = folder / "diagnostics"
    found: dict[str, Any] = {}
    models = Models.in_memory(inputs.experts, inputs.base)
    experts = list(models.names)
    vectors = task_vectors(models)
    if "vectors" in settings.diagnostics:
        found["vectors"] = vector_table(vectors, models, merged)
        heat_map(pictures / "cosines.png", found["vectors"]["cosines"], experts, experts, "cosine of task vectors")
    if "layers" in settings.diagnostics:
        found["layers"] = layer_table(vectors)
        rows = list(found["layers"])
        table = [[found["layers"][r][k] for k in ("mean_cosine", "conflict")] for r in rows]
        heat_map(pictures / "layers.png", table, rows, ["cosine", "conflict"], "by layer, mean over pairs")
    check_stop()
    if "barrier" in settings.diagnostics:
        found["barrier"] = barriers(data, models, inputs.tasks, check_stop)
        lines = {pair: list(zip(ALPHAS, entry["loss"], strict=True)) for pair, entry in found["barrier"].items()}
        curves(pictures / "barrier.png", lines, "alpha", "loss between two experts")
    if "disentanglement" in settings.diagnostics:
        found["disentanglement"] = disentanglement(data, models, inputs.tasks, check_stop)
        grid = found["disentanglement"]
        labels = [f"{a:g}" for a in grid["alphas"]]
        for pair, table in grid["pairs"].items():
            name = "disentanglement-" + pair.replace("~", "-") + ".png"
            first, _, second = pair.partition("~")
            axes = (f"coefficient of {second}", f"coefficient of {first}")
            heat_map(pictures / name, table, labels, labels, "disentanglement error", *axes)
    if report.get("curve"):
        chosen = {t: [(p["scale"], p["tasks"][t]) for p in report["curve"]] for t in data.tasks}
        curves(pictures / "scale.png", chosen, "scale", "headline metric on validation data")
    return found


def task_vectors(models: Models) -> dict[str, dict[str, Tensor]]:
    """Expert → tensor → τ, of floating-point tensors."""
    assert models.base is not None
    names = [n for n, info in models.base.tensors().items() if info.dtype.is_floating_point]
    return {
        expert: {n: source.whole(n).float() - models.base.whole(n).float() for n in names}
        for expert, source in models.experts.items()
    }


def vector_table(
    vectors: Mapping[str, Mapping[str, Tensor]], models: Models, merged: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """Cosines, sign conflicts and norms of whole task vectors.

    Returns:
        `cosines` (T × T), `conflict` (share of weights where two of the experts disagree in sign), `norms` and
        `relative` (‖τ‖ / ‖θ₀‖) by expert, and for a merged state dict its `merged_cosine` to every task vector.
    """
    assert models.base is not None
    flat = {t: torch.cat([v.reshape(-1) for v in tensors.values()]) for t, tensors in vectors.items()}
    stacked_TP = torch.stack(list(flat.values()))
    norm_T = stacked_TP.norm(dim=1)
    names = list(next(iter(vectors.values())))
    base_norm = torch.cat([models.base.whole(n).float().reshape(-1) for n in names]).norm()
    unit_TP = stacked_TP / norm_T.clamp_min(1e-30)[:, None]
    table: dict[str, Any] = {
        "cosines": _rounded(unit_TP @ unit_TP.T),
        "conflict": round(conflict(stacked_TP), 4),
        "norms": {t: round(float(n), 6) for t, n in zip(flat, norm_T, strict=True)},
        "relative": {t: round(float(n / base_norm), 6) for t, n in zip(flat, norm_T, strict=True)},
    }
    if merged is not None:
        tau = torch.cat([(merged[n].float() - models.base.whole(n).float()).reshape(-1) for n in names])
        cosines = unit_TP @ tau / tau.norm().clamp_min(1e-30)
        table["merged_cosine"] = {t: round(float(c), 4) for t, c in zip(flat, cosines, strict=True)}
        table["merged_relative"] = round(float(tau.norm() / base_norm), 6)
    return table


def conflict(stacked_TP: Tensor) -> float:
    """Share of the weights that move in at least one expert where some go up and some go down."""
    up, down = (stacked_TP > 0).any(0), (stacked_TP < 0).any(0)
    moved = up | down
    return float((up & down).sum() / moved.sum().clamp_min(1))


def layer_table(vectors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """Layer (a tensor's name without its last part) → mean cosine over pairs, conflict, and norm by expert."""
    layers: dict[str, list[str]] = {}
    for name in next(iter(vectors.values())):
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    table = {}
    for layer, names in layers.items():
        stacked_TP = torch.stack([torch.cat([v[n].reshape(-1) for n in names]) for v in vectors.values()])
        unit_TP = stacked_TP / stacked_TP.norm(dim=1).clamp_min(1e-30)[:, None]
        cosines = unit_TP @ unit_TP.T
        off = ~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
        table[layer] = {
            "mean_cosine": round(float(cosines[off].mean()), 4) if off.any() else 1.0,
            "conflict": round(conflict(stacked_TP), 4),
            "norms": {t: round(float(n), 6) for t, n in zip(vectors, stacked_TP.norm(dim=1), strict=True)},
            "cosines": _rounded(cosines),
        }
    return table


@torch.no_grad()
def barriers(
    data: TaskData, models: Models, tasks: Mapping[str, Sequence[str]], check_stop: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Linear mode connectivity: the mean validation loss of both experts' tasks along the line between them.

    Args:
        tasks: expert → its tasks.

    Returns:
        pair "a~b" → `loss` at each of `ALPHAS` (0 is a), and `barrier`: the most by which it exceeds the chord.
    """
    names = list(models.names)
    found = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            check_stop()
            losses = []
            for alpha in ALPHAS:
                tensors = _mix(models, a, b, alpha)
                losses.append(sum(_loss(data, tensors, t) / len(tasks[e]) for e in (a, b) for t in tasks[e]) / 2)
            chord = [losses[0] + alpha * (losses[-1] - losses[0]) for alpha in ALPHAS]
            rise = max(loss - line for loss, line in zip(losses, chord, strict=True))
            found[f"{a}~{b}"] = {"loss": [round(v, 6) for v in losses], "barrier": round(rise, 6)}
    return found


def _mix(models: Models, a: str, b: str, alpha: float) -> dict[str, Tensor]:
    first, second = models.experts[a], models.experts[b]
    return {
        name: torch.lerp(first.whole(name).float(), second.whole(name).float(), alpha)
        for name, info in first.tensors().items()
        if info.dtype.is_floating_point
    }


def _loss(data: TaskData, tensors: Mapping[str, Tensor], task: str) -> float:
    total, count = 0.0, 0.0
    for part in slices(data.validation[task], 200):
        prediction = data.forward(tensors, part, [task])[task]
        total += float(data.tasks[task].loss_sum(prediction, part.targets[task]))
        count += float(data.tasks[task].loss_count(part.targets[task]))
    return total / count


@torch.no_grad()
def disentanglement(
    data: TaskData,
    models: Models,
    tasks: Mapping[str, Sequence[str]],
    check_stop: Callable[[], None],
    alphas: tuple[float, ...] = (-1, 0, 0.5, 1, 1.5),
) -> dict[str, Any]:
    """ξ(α₁, α₂) of neighbouring pairs of experts: how often adding the other task vector changes a prediction.

    Ortiz-Jimenez et al. 2023, equation 4, with the share of changed classes as distance (of pooled classification
    tasks; others are left out), mean over the pair.
    """
    vectors = task_vectors(models)
    assert models.base is not None
    base = {n: models.base.whole(n).float() for n in next(iter(vectors.values()))}
    usable = {e: [t for t in tasks[e] if data.validation[t].targets[t].dim() == 1] for e in models.names}
    pairs = {}
    for a, b in pairwise(expert for expert, own in usable.items() if own):
        alone = {
            (task, alpha): _classes(data, {n: base[n] + alpha * vectors[expert][n] for n in base}, task)
            for expert in (a, b)
            for task in usable[expert]
            for alpha in alphas
        }
        table = []
        for first in alphas:
            check_stop()
            row = []
            for second in alphas:
                both = {n: base[n] + first * vectors[a][n] + second * vectors[b][n] for n in base}
                errors = [
                    float((_classes(data, both, task) != alone[task, alpha]).float().mean()) / len(usable[expert])
                    for expert, alpha in ((a, first), (b, second))
                    for task in usable[expert]
                ]
                row.append(round(sum(errors) / 2, 4))
            table.append(row)
        pairs[f"{a}~{b}"] = table
    return {"alphas": list(alphas), "pairs": pairs}


def _classes(data: TaskData, tensors: Mapping[str, Tensor], task: str) -> Tensor:
    parts = [data.forward(tensors, part, [task])[task] for part in slices(data.validation[task], 200)]
    joined = torch.cat(parts)
    return joined.argmax(1) if joined.shape[1] > 1 else joined.squeeze(1) > 0


def _rounded(table: Tensor) -> list[list[float]]:
    return [[round(float(v), 4) for v in row] for row in table]

"""CAT merging: what of each task vector disturbs the other tasks' features is trimmed (Sun et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runner.config.kinds import NonNegativeFloat, NonNegativeInt, PositiveInt
from runner.merging.base import DataMerge, Merged
from runner.merging.data import TaskData, take
from runner.merging.sources import Models
from runner.merging.with_data.coefficients import Mixed, best_scale
from runner.merging.with_data.common import Vectors, base_of, experts_of, vectors_of
from runner.merging.with_data.regmean import as_matrix, from_matrix, grams, linear_layers


@dataclass(kw_only=True)
class Cat(DataMerge):
    """θ = θ₀ + scale · Σ_t trimmed(τ_t), trimmed layer by layer with a few unlabelled inputs per task.

    Sun, Li, Geng, Li, "CAT Merging", ICML 2025. What task i's change of a layer does to task k's features is a
    conflict, what it does to its own is knowledge; for every kind of parameter the trim of a given size that removes
    most of Σ_{k≠i} conflict_k − balance · knowledge_i has a closed form:

    * matrices (y = xT, T = τᵢᵀ; convolutions on patches): T ← T − T B Bᵀ, B the leading eigenvectors of
      Σ_{k≠i} TᵀG_kT − balance · TᵀG_iT, G_k = E[xᵀx] of expert k's inputs;
    * scales of norms (y = x̂ ∘ g): the entries with the largest Σ_{k≠i} E_k[x̂²] τᵢ² − balance · E_i[x̂²] τᵢ² become 0;
    * shifts (biases), which act on every input alike: likewise with 1 for E[x̂²].

    Only what the criterion says does more harm than good is trimmed (eigenvalues and entries above 0): ours, as are the
    defaults. Everything else (embeddings, tokens) is kept whole.

    Attributes:
        directions: removed per matrix, and entries per vector, at most.
        balance: λ, weight of the task's own features.
        examples: inputs per task that are looked at.
        scale: of the sum; None takes the best of a few on validation data.
        batch_size: examples per forward pass.
    """

    directions: NonNegativeInt = 3
    balance: NonNegativeFloat = 5.0
    examples: PositiveInt = 16
    scale: float | None = None
    batch_size: PositiveInt = 16

    def fit(self, models: Models, data: TaskData) -> Merged:
        base, whole = base_of(models), vectors_of(models, self.pre)
        vectors = self.trim(whole, experts_of(models), data)
        mixed = Mixed(base, vectors)
        scale = best_scale(mixed, data, len(vectors)) if self.scale is None else self.scale
        lam_TN = torch.full((len(vectors), 1), scale, device=data.device)
        total, kept = (
            sum(float(t.double().square().sum()) for v in x.values() for t in v.values()) for x in (whole, vectors)
        )
        share = round(1 - kept / total, 5) if total else 0.0
        return Merged(mixed(lam_TN), report={"scale": scale, "trimmed": share})

    def trim(self, vectors: Vectors, experts: Vectors, data: TaskData) -> Vectors:
        """Task vectors without what disturbs other tasks."""
        names = set(next(iter(vectors.values())))
        layers, norms = dict(linear_layers(data.model, names)), dict(norm_scales(data.model, names))
        seen = {task: self.features(layers, norms, tensors, data, task) for task, tensors in experts.items()}
        found: Vectors = {task: dict(v) for task, v in vectors.items()}
        for name in next(iter(vectors.values())):
            taus = [v[name] for v in vectors.values()]
            if name in layers:
                matrices = [as_matrix(layers[name], tau) for tau in taus]
                grams_TII = [seen[task][name] for task in vectors]
                trimmed = trim_matrices(matrices, grams_TII, self.directions, self.balance)
                trimmed = [from_matrix(layers[name], m, tau) for m, tau in zip(trimmed, taus, strict=True)]
            elif taus[0].dim() == 1 and (name in norms or is_shift(name, data.model)):
                ones = torch.ones_like(taus[0], dtype=torch.float64)
                squares = [seen[task].get(name, ones) for task in vectors]
                trimmed = trim_vectors(taus, squares, self.directions, self.balance)
            else:
                continue
            for own, tensor in zip(found.values(), trimmed, strict=True):
                own[name] = tensor
        return found

    @torch.no_grad()
    def features(
        self,
        layers: Mapping[str, nn.Module],
        norms: Mapping[str, nn.Module],
        tensors: Mapping[str, Tensor],
        data: TaskData,
        task: str,
    ) -> dict[str, Tensor]:
        """What one expert sees of its own task: Gram matrices of layers, mean squares of what norms scale."""
        squares: dict[str, Tensor] = {}
        rows: dict[str, int] = {}

        def look(name: str, norm: nn.Module, y: Tensor) -> None:
            gain = tensors[name]
            bias = tensors.get(f"{name.removesuffix('weight')}bias")
            y_NC = (y.movedim(1, -1) if channels_first(norm, y) else y).flatten(0, -2)
            x_NC = (y_NC if bias is None else y_NC - bias) / torch.where(gain.abs() > 1e-12, gain, torch.inf)
            squares[name] = squares.get(name, 0) + x_NC.double().square().sum(0)
            rows[name] = rows.get(name, 0) + len(x_NC)

        hooks = [
            norm.register_forward_hook(lambda m, _, y, name=name: look(name, m, y)) for name, norm in norms.items()
        ]
        few = take(data.unlabelled[task], slice(0, self.examples))
        groups = [(task, take(few, slice(i, i + self.batch_size))) for i in range(0, len(few), self.batch_size)]
        try:
            found = grams(layers, tensors, data, groups)
        finally:
            for hook in hooks:
                hook.remove()
        return found | {name: total / rows[name] for name, total in squares.items()}


def trim_matrices(taus: list[Tensor], grams_TII: list[Tensor], directions: int, balance: float) -> list[Tensor]:
    """Every T (in, out) without the output directions in which it disturbs others most."""
    found = []
    for i, tau in enumerate(taus):
        wide = tau.double()
        harm = sum((g for k, g in enumerate(grams_TII) if k != i), torch.zeros_like(grams_TII[i]))
        values, vectors = torch.linalg.eigh(wide.T @ (harm - balance * grams_TII[i]) @ wide)  # ascending
        low = float(values.abs().max()) * 1e-9
        basis = vectors[:, max(0, len(values) - directions) :] if directions else vectors[:, :0]
        basis = basis[:, values[len(values) - basis.shape[1] :] > low]
        found.append((wide - wide @ basis @ basis.T).to(tau.dtype))
    return found


def trim_vectors(taus: list[Tensor], squares: list[Tensor], entries: int, balance: float) -> list[Tensor]:
    """Every τ (C,) without the entries that disturb others most."""
    found = []
    for i, tau in enumerate(taus):
        harm = sum((s for k, s in enumerate(squares) if k != i), torch.zeros_like(squares[i]))
        worth = (harm - balance * squares[i]) * tau.double().square()
        most, at = worth.topk(min(entries, len(tau)))
        found.append(tau.index_fill(0, at[most > 0], 0.0))
    return found


def norm_scales(model: nn.Module, names: set[str]) -> list[tuple[str, nn.Module]]:
    """(name of the scale, module) of the normalisation layers."""
    found = []
    for path, module in model.named_modules():
        name, weight = f"{path}.weight", getattr(module, "weight", None)
        if name in names and isinstance(weight, Tensor) and weight.dim() == 1 and "Norm" in type(module).__name__:
            found.append((name, module))
    return found


def is_shift(name: str, model: nn.Module) -> bool:
    """Whether a vector is added to its layer's output."""
    return name.endswith(".bias") and isinstance(getattr(model.get_submodule(name[:-5]), "bias", None), Tensor)


def channels_first(norm: nn.Module, y: Tensor) -> bool:
    """Whether a norm's channels are axis 1: batch and group norms on maps."""
    return y.dim() > 2 and isinstance(norm, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.InstanceNorm2d)

"""The search of ATRC (Brüggemann et al. 2021, arXiv 2104.13874, section 3.3) for the context of each pair of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.atrc import ATRC, Refine
from runner.architectures.decoder import Maps
from runner.architectures.heads.layers import Norm
from runner.architectures.relations import Context, make_context
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from runner.errors import UserError
from runner.types import Features

CERTAIN = 0.3
"""A pair whose likeliest context is ahead of the second by so much keeps it, as in the released code."""


class ATRCSearch(ATRC):
    """ATRC with all contexts at once for every pair of tasks, weighted by a choice that is learned with the network.

    Of target and source, the context is Σ_k w_k context_k with w the Gumbel-softmax of learned logits (equation 5;
    "none" has a weight and no output; a task has no labels of its own to offer as a source's). The temperature falls
    linearly from `temperature` to `final_temperature` over `passes`, and the mean entropy of the choices is added to
    the losses with a weight that goes linearly from `entropy` to `final_entropy`: negative at first, so that all
    contexts are tried, positive later, so that one wins. A choice that has become certain is fixed for the rest of
    training. Evaluation takes the likeliest context of each pair, and computes no other.

    The found contexts stand under `contexts` in result.json and at the end of the terminal's output, in the form that
    `architecture=atrc` takes.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        channels, kernel, bins, dropout, norm, auxiliary_weight: as in ATRC.
        passes: forward passes that the schedules take, those of the whole training.
        temperature, final_temperature, entropy, final_entropy: see above.
    """

    steps: Tensor

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        channels: PositiveInt | None = None,
        kernel: PositiveInt = 9,
        bins: PositiveInt = 40,
        dropout: Fraction = 0.0,
        norm: Literal["batch", "group"] = "batch",
        auxiliary_weight: NonNegativeFloat = 1.0,
        passes: PositiveInt,
        temperature: PositiveFloat = 1.0,
        final_temperature: PositiveFloat = 0.05,
        entropy: float = -0.02,
        final_entropy: float = 0.06,
    ) -> None:
        if final_temperature > temperature:
            raise UserError(
                f"architecture.final_temperature={final_temperature} is above architecture.temperature={temperature}",
                "the temperature falls, so that choices become one-hot",
            )
        super().__init__(
            make_backbone,
            tasks,
            dense_head=dense_head,
            pooled_head=pooled_head,
            token_head=token_head,
            channels=channels,
            kernel=kernel,
            bins=bins,
            dropout=dropout,
            norm=norm,
            auxiliary_weight=auxiliary_weight,
        )
        self.passes = passes
        self.temperatures, self.entropies = (temperature, final_temperature), (entropy, final_entropy)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def make_refine(
        self, target: str, width: int, inner: int, kernel: int, dropout: float, norm: Norm
    ) -> SearchedRefine:
        return SearchedRefine(target, self.dense, width, inner, kernel, dropout, norm)

    def choices(self) -> dict[tuple[str, str], Choice]:
        """(target, source) → its choice."""
        if not self.dense:
            return {}
        return {
            (t, s): choice
            for t, block in self.refine.items()
            for s, choice in block.attend.items()  # type: ignore[union-attr,operator]
        }

    def decode(self, features: Features, tasks: Sequence[str]) -> tuple[Maps, Maps]:
        drawn = self.training and torch.is_grad_enabled()
        if self.training:
            temperature = self._between(self.temperatures, passed=int(self.steps) - (0 if drawn else 1))
            for choice in self.choices().values():
                choice.temperature = temperature
        made = super().decode(features, tasks)
        if drawn:  # a second look without gradients repeats the pass before it
            self.steps += 1
        return made

    def _between(self, ends: tuple[float, float], passed: int) -> float:
        share = min(max(passed, 0) / self.passes, 1.0)
        return (1 - share) * ends[0] + share * ends[1]

    def penalty(self) -> Tensor | None:
        """The weighted mean entropy of the choices."""
        choices = self.choices()
        if not choices:
            return None
        entropies = [-(c.logits.softmax(0) * c.logits.log_softmax(0)).sum() for c in choices.values()]
        return self._between(self.entropies, passed=int(self.steps) - 1) * torch.stack(entropies).mean()

    def found(self) -> dict[str, dict[str, str]]:
        """Target → source → its likeliest context: a value of `architecture.contexts`."""
        contexts: dict[str, dict[str, str]] = {target: {} for target in self.dense}
        for (target, source), choice in self.choices().items():
            contexts[target][source] = choice.kinds[int(choice.logits.argmax())]
        return contexts

    def study(
        self, measure: Callable[[], Mapping[str, Mapping[str, float]]], cost: Callable[[Sequence[str]], int]
    ) -> dict[str, Any]:
        """The contexts, and how likely every one of them is."""
        if not self.dense:
            return {}
        found = self.found()
        likely: dict[str, dict[str, dict[str, float]]] = {target: {} for target in found}
        for (target, source), choice in self.choices().items():
            shares = choice.logits.detach().softmax(0).tolist()
            likely[target][source] = {k: round(p, 4) for k, p in zip(choice.kinds, shares, strict=True)}
        hint = f"these contexts: architecture=atrc '{override(found)}'"
        return {"contexts": found, "context_probabilities": likely, "hint": hint}


def override(contexts: Mapping[str, Mapping[str, str]]) -> str:
    """The contexts as one word of a command line."""
    inner = (f"{t}:{{{','.join(f'{s}:{kind}' for s, kind in by.items())}}}" for t, by in contexts.items())
    return f"architecture.contexts={{{','.join(inner)}}}"


class Choice(nn.Module):
    """All contexts between one target and one source, and what is known about which of them helps.

    The values have no learned scale, so that the weights of the choice alone say how much of a context passes.
    """

    fixed: Tensor

    def __init__(self, kinds: Sequence[Context], channels: int, inner: int, norm: Norm, kernel: int) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.contexts = nn.ModuleList(make_context(k, channels, inner, norm, kernel) for k in self.kinds if k != "none")
        for block in self.contexts:
            block.value[1] = _without_scale(block.value[1])  # type: ignore[index,operator]
        self.logits = nn.Parameter(torch.zeros(len(self.kinds)))
        self.temperature = 1.0
        self.register_buffer("fixed", torch.zeros((), dtype=torch.bool))

    def weights(self) -> Tensor:
        """One weight per kind of context."""
        logits = self.logits.float()
        soft = logits.softmax(0)
        if self.training:
            first, second = soft.detach().topk(2).values
            if torch.where(self.fixed, torch.inf, first - second) < CERTAIN:  # one look at the device
                return F.gumbel_softmax(logits, tau=self.temperature)
            if torch.is_grad_enabled():
                self.fixed.fill_(True)
        hard = F.one_hot(logits.argmax(), len(self.kinds)).to(soft)
        if self.training:
            return hard + 0.0 * soft
        # Exactly `hard`; the softmax is in the graph because whoever asks what a loss reaches asks in this mode.
        return hard + (soft - soft.detach())

    def forward(self, target: Tensor, source: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Task features (B, C, H, W) and the label maps of either side → (B, inner, H, W)."""
        weights = self.weights()
        at = [i for i, kind in enumerate(self.kinds) if kind != "none"]
        if not torch.is_grad_enabled() and not self.training:
            at = [i for i in at if weights[i]]
        blocks = dict(zip((i for i, kind in enumerate(self.kinds) if kind != "none"), self.contexts, strict=True))
        parts = [weights[i].to(target.dtype) * blocks[i](target, source, labels.get(self.kinds[i])) for i in at]
        if not parts:
            inner = self.contexts[0].value[0].out_channels  # type: ignore[index,union-attr]
            return target.new_zeros(len(target), inner, *target.shape[-2:])
        return sum(parts[1:], parts[0])


def _without_scale(norm: nn.Module) -> nn.Module:
    if isinstance(norm, nn.BatchNorm2d):
        return nn.BatchNorm2d(norm.num_features, affine=False)
    assert isinstance(norm, nn.GroupNorm)
    return nn.GroupNorm(norm.num_groups, norm.num_channels, affine=False)


class SearchedRefine(Refine):
    """One target's choices, joined and mixed with its features."""

    def __init__(
        self, target: str, sources: Sequence[str], channels: int, inner: int, kernel: int, dropout: float, norm: Norm
    ) -> None:
        super().__init__(dict.fromkeys(sources, "none"), channels, inner, kernel, dropout, norm)
        kinds: tuple[Context, ...] = get_args(Context)
        own = tuple(kind for kind in kinds if kind != "source_label")
        self.attend = nn.ModuleDict(
            {s: Choice(own if s == target else kinds, channels, inner, norm, kernel) for s in sources}
        )
        self.join = self.make_join(len(sources), channels, inner, norm)
        self.mix = self.make_mix(2 * channels, channels, dropout, norm)

    def attended(self, target: str, features: Mapping[str, Tensor], regions: Mapping[str, Tensor]) -> list[Tensor]:
        return [
            choice(features[target], features[s], {"target_label": regions[target], "source_label": regions[s]})
            for s, choice in self.attend.items()
        ]

"""Optimizers, and which learning rate and weight decay each parameter gets.

    build(config["optimizer"], model) -> torch.optim.Optimizer

Every trainable parameter is in exactly one group, groups are in the order of their first parameter in the model, and
frozen parameters are in none. More groups may follow (`optimizer.add_param_group`, for learnable weightings).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from runner.config.kinds import Fraction, NonNegativeFloat, PositiveFloat
from runner.errors import Problem, UserError, suggest

Kernel = Literal["auto", "fused", "foreach", "loop"]
"""How a step runs: one kernel for the whole update, one per operation, or operation by operation for each parameter.
"auto" is "fused" where torch has such kernels: for Adam on one CPU core it takes a third of the time of "loop"."""

WITHOUT_DECAY = ("bias", "norm", "embedding")
RULE_KEYS = ("lr", "lr_scale", "weight_decay")


@dataclass(frozen=True)
class Setting:
    """What one parameter is trained with."""

    name: str
    parameter: nn.Parameter
    lr: float
    weight_decay: float


def adamw(
    model: nn.Module,
    *,
    lr: PositiveFloat = 1e-4,
    weight_decay: NonNegativeFloat = 0.01,
    betas: list[Fraction] | None = None,
    eps: PositiveFloat = 1e-8,
    no_decay: list[Literal["bias", "norm", "embedding"]] | None = None,
    layer_decay: Fraction | None = None,
    rules: dict[str, dict[str, NonNegativeFloat]] | None = None,
    kernel: Literal["auto", "fused", "foreach", "loop"] = "auto",
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); other arguments: `parameter_groups`."""
    groups = parameter_groups(model, lr, weight_decay, no_decay, layer_decay, rules)
    return torch.optim.AdamW(groups, lr=lr, betas=checked_betas(betas), eps=eps, **_kernel(kernel, groups))


def adam(
    model: nn.Module,
    *,
    lr: PositiveFloat = 1e-4,
    weight_decay: NonNegativeFloat = 0.0,
    betas: list[Fraction] | None = None,
    eps: PositiveFloat = 1e-8,
    no_decay: list[Literal["bias", "norm", "embedding"]] | None = None,
    layer_decay: Fraction | None = None,
    rules: dict[str, dict[str, NonNegativeFloat]] | None = None,
    kernel: Literal["auto", "fused", "foreach", "loop"] = "auto",
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), weight decay added to the gradient; other arguments: `parameter_groups`."""
    groups = parameter_groups(model, lr, weight_decay, no_decay, layer_decay, rules)
    return torch.optim.Adam(groups, lr=lr, betas=checked_betas(betas), eps=eps, **_kernel(kernel, groups))


def sgd(
    model: nn.Module,
    *,
    lr: PositiveFloat = 0.01,
    weight_decay: NonNegativeFloat = 0.0,
    momentum: Fraction = 0.9,
    nesterov: bool = False,
    no_decay: list[Literal["bias", "norm", "embedding"]] | None = None,
    layer_decay: Fraction | None = None,
    rules: dict[str, dict[str, NonNegativeFloat]] | None = None,
    kernel: Literal["auto", "fused", "foreach", "loop"] = "auto",
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum; other arguments: `parameter_groups`."""
    if nesterov and momentum == 0:
        raise UserError("'optimizer.nesterov' needs a momentum above 0", "set optimizer.momentum=0.9")
    groups = parameter_groups(model, lr, weight_decay, no_decay, layer_decay, rules)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, **_kernel(kernel, groups))


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    no_decay: Iterable[str] | None = None,
    layer_decay: float | None = None,
    rules: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: parameters that share learning rate and weight decay, see `settings`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for setting in settings(model, lr, weight_decay, no_decay, layer_decay, rules):
        groups.setdefault((setting.lr, setting.weight_decay), []).append(setting.parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def settings(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    no_decay: Iterable[str] | None = None,
    layer_decay: float | None = None,
    rules: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Setting]:
    """What each trainable parameter is trained with, in the model's order.

    Args:
        model: `model.backbone`, or each of `model.backbones`, may have `layer_groups()`, its parameters from input to
            output.
        lr, weight_decay: of everything that nothing below changes.
        no_decay: kinds of parameters without weight decay. "bias": names that end in bias; "norm": normalisation
            layers and other vectors and scalars (layer scale); "embedding": embedding tables, position embeddings
            and bias tables, class and register tokens.
        layer_decay: layer-wise decay d of the learning rate (Clark et al. 2020; Bao et al. 2022): layer i of the n
            of a backbone gets lr·d^(n-i), i = 0…n-1; what belongs to no layer (heads, adapters) gets lr.
        rules: glob on parameter names → {lr: x} or {lr_scale: x}, and weight_decay. Later rules win over earlier
            ones and over everything above; lr_scale multiplies the learning rate found so far.

    Raises:
        UserError: nothing is trainable, a rule fits no trainable parameter or has an unknown key, or there are no
            layers to decay over. All problems at once.
    """
    no_decay, rules = list(no_decay or ()), dict(rules or {})
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    problems = _problems(model, trainable, no_decay, rules)
    scales: dict[int, float] = {}
    if layer_decay is not None:
        layers = [groups for backbone in _backbones(model) if (groups := _layers(backbone))]
        if not layers:
            problems.append(Problem("'optimizer.layer_decay': the backbone has no layers", "set it to null"))
        scales = {id(p): layer_decay ** (len(ls) - i) for ls in layers for i, layer in enumerate(ls) for p in layer}
    if problems:
        raise UserError(problems)
    kinds = {name: kind for name, _, kind in _kinds(model)}
    found = []
    for name, parameter in trainable.items():
        setting = Setting(
            name,
            parameter,
            lr * scales.get(id(parameter), 1.0),
            0.0 if kinds[name] in no_decay else weight_decay,
        )
        for pattern, rule in rules.items():
            if fnmatchcase(name, pattern):
                rate = rule.get("lr", setting.lr * rule.get("lr_scale", 1.0))
                setting = replace(setting, lr=rate, weight_decay=rule.get("weight_decay", setting.weight_decay))
        found.append(setting)
    return found


def _problems(
    model: nn.Module, trainable: Mapping[str, nn.Parameter], no_decay: list[str], rules: Mapping[str, Any]
) -> list[Problem]:
    """Everything that is wrong with the user's settings."""
    problems = (
        [] if trainable else [Problem("nothing to train: every parameter is frozen", "set backbone.frozen=false")]
    )
    problems += [
        Problem(f"unknown kind 'optimizer.no_decay.{kind}'", suggest(kind, WITHOUT_DECAY))
        for kind in no_decay
        if kind not in WITHOUT_DECAY
    ]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    for pattern, rule in rules.items():
        where = f"optimizer.rules.'{pattern}'"
        problems += [
            Problem(f"unknown key '{key}' in {where}", suggest(key, RULE_KEYS)) for key in rule if key not in RULE_KEYS
        ]
        if "lr" in rule and "lr_scale" in rule:
            problems.append(
                Problem(f"{where} has both 'lr' and 'lr_scale'", "lr replaces, lr_scale multiplies: keep one")
            )
        if trainable and not any(fnmatchcase(name, pattern) for name in trainable):
            if any(fnmatchcase(name, pattern) for name in frozen):
                problems.append(
                    Problem(f"{where} matches frozen parameters only", "leave the rule out, or unfreeze them")
                )
            else:
                problems.append(Problem(f"{where} matches no parameter", _nearest(pattern, trainable)))
    return problems


def _nearest(pattern: str, names: Iterable[str]) -> str:
    """A hint at the parts of the model that look most like a pattern without a match."""
    prefixes = {".".join(name.split(".")[:depth]) + ".*" for name in names for depth in (1, 2)}
    return suggest(pattern, prefixes)


def _backbones(model: nn.Module) -> Iterator[nn.Module]:
    """The backbones of an architecture: `backbone`, or the modules in `backbones`."""
    if isinstance(backbone := getattr(model, "backbone", None), nn.Module):
        yield backbone
    if isinstance(backbones := getattr(model, "backbones", None), nn.Module):
        yield from backbones.children()


def _layers(backbone: nn.Module) -> list[list[nn.Parameter]]:
    layer_groups: Callable[[], list[list[nn.Parameter]]] | None = getattr(backbone, "layer_groups", None)
    return [] if layer_groups is None else layer_groups()


def _kinds(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, str]]:
    """(name, parameter, "bias" | "norm" | "embedding" | "weight") of every parameter."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        yield name, parameter, _kind(modules[owner], leaf, parameter)


def _kind(owner: nn.Module, leaf: str, parameter: nn.Parameter) -> str:
    if leaf == "bias" or leaf.endswith("_bias"):
        return "bias"
    tables = ("*_token", "*_tokens", "*pos_embed*", "*position_embedding*", "*position_bias_table")
    if isinstance(owner, nn.Embedding) or any(fnmatchcase(leaf, table) for table in tables):
        return "embedding"
    return "norm" if parameter.ndim <= 1 or "norm" in type(owner).__name__.lower() else "weight"


def checked_betas(betas: list[float] | None) -> tuple[float, float]:
    """Adam's two decay rates; None gives the usual ones."""
    if betas is None:
        return 0.9, 0.999
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(
            f"'optimizer.betas' must be two numbers from 0 to below 1, not {betas}", "the usual: [0.9, 0.999]"
        )
    return betas[0], betas[1]


def _kernel(kernel: Kernel, groups: list[dict[str, Any]]) -> dict[str, bool]:
    """The torch arguments for a kernel."""
    if kernel == "auto":
        parameters = [p for group in groups for p in group["params"]]
        fits = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
        return {"fused": True} if fits else {}
    return {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False, "fused": False}}[kernel]

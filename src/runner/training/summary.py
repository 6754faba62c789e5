"""`runner train --dry-run`: the model and the work, without data, steps or a run directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from runner.backbones.hub import hub_is_off, is_local, may_be_on_hub
from runner.config.build import build, locate
from runner.config.schema import TrainerConfig
from runner.errors import UserError, suggest
from runner.mixtures.stream import steps_per_epoch
from runner.training.assemble import Parts, assemble, counted_as_shared, probe_group, trainable
from runner.training.cost import Cost, forward_cost, in_shapes_only, in_words, measure
from runner.weighting.base import MODES, PerTaskWeighting, Weighting
from runner.weighting.last_layer import LastLayerWeighting


def print_summary(config: dict[str, Any]) -> None:
    """Build what the frozen configuration describes and print parameters per part and task, steps and memory.

    Data that is missing is said so and does not end the dry run; weights that are not on this machine are not fetched.
    """
    console = Console(highlight=False, soft_wrap=True)
    settings = TrainerConfig(**config["trainer"])
    missing: set[str] = set()
    given = config["backbone"]
    config = without_weights(config, missing)
    when = "it is downloaded when the run starts"
    if hub_is_off():
        when = "the run cannot start, for the hub may not be asked (HF_HUB_OFFLINE)"
    for name in sorted(missing):
        console.print(f"weights   '{name}' is not on this machine: {when}{near(name)}")
    if given.get("pretrained") in missing and given.get("size", "") is None:
        raise UserError(
            f"backbone.size=null takes the size of '{given['pretrained']}', which is not on this machine",
            f"check the path, download it (hf download {given['pretrained']}), or set backbone.size",
        )
    try:
        parts = assemble(config, must_have_data=False)
    except UserError:
        problems = build(config["mixture"], config["data_root"], where="mixture").check()
        if not problems or locate(config["mixture"]["_target_"]).input_kind == "image":
            raise
        for problem in problems:
            console.print(f"data      missing: {problem.what}\n          {problem.hint}")
        console.print("model     not described: a vocabulary (or columns) must come from the data first")
        return
    weighting: Weighting = build(config["weighting"], parts.tasks, where="weighting")
    reach = in_shapes_only(lambda: counted_as_shared(parts, weighting))

    console.print()
    console.print(_parameter_table(parts))
    shared = sum(trainable(parts.model)[i].numel() for i in reach.shared)
    specific = {task: sum(trainable(parts.model)[i].numel() for i in own) for task, own in reach.specific.items()}
    console.print(f"shared    {shared:,} parameters are reached by more than one task: {_names(parts, reach.shared)}")
    if reach.rest:
        rest = sum(trainable(parts.model)[i].numel() for i in reach.rest)
        console.print(f"          {rest:,} more are not counted as shared: {_names(parts, reach.rest)}")
    if weighting.mode != "parameters":
        console.print(f"weighting {MODES[weighting.mode]}")
    console.print("specific  " + ", ".join(f"{task} {count:,}" for task, count in specific.items()))
    cost = in_shapes_only(lambda: forward_cost(parts.model, probe_group(parts.inputs), list(parts.tasks)))
    console.print(_compute(parts, cost))
    console.print(_work(parts, settings, config))
    console.print(_memory(parts, settings, weighting, shared, cost, config))
    for problem in parts.mixture.check():
        console.print(f"data      missing: {problem.what}\n          {problem.hint}")


def without_weights(config: Mapping[str, Any], missing: set[str], key: str = "") -> Any:
    """A configuration in which checkpoints that are not on this machine are null; they are added to `missing`."""
    if isinstance(config, Mapping):
        return {k: without_weights(v, missing, str(k)) for k, v in config.items()}
    if isinstance(config, list):
        return [without_weights(v, missing) for v in config]
    wanted = key in ("pretrained", "checkpoint") and isinstance(config, str)
    if wanted and may_be_on_hub(config) and not is_local(config):  # what is wrong with a path is said on loading
        missing.add(config)
        return None
    return config


def near(name: str) -> str:
    """What a checkpoint that is not there may have been meant to be: a folder beside it."""
    path = Path(name).expanduser()
    if path.is_absolute() or not path.parent.name or not path.parent.is_dir():
        return ""
    beside = [str(path.parent / place.name) for place in path.parent.iterdir() if place.is_dir()]
    return f"; or is it a folder of yours? {suggest(name, beside)}" if beside else ""


def _parameter_table(parts: Parts) -> Table:
    table = Table("part", "parameters", "trainable", "dtype", title=type(parts.model).__name__, title_justify="left")
    for column in (1, 2):
        table.columns[column].justify = "right"
    for name, module in _parts(parts.model):
        parameters = list(module.parameters())
        count, free = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
        table.add_row(
            name, f"{count:,}", f"{free:,}", str(parameters[0].dtype).removeprefix("torch.") if parameters else ""
        )
    total = list(parts.model.parameters())
    table.add_section()
    table.add_row(
        "all", f"{sum(p.numel() for p in total):,}", f"{sum(p.numel() for p in total if p.requires_grad):,}", ""
    )
    return table


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children, and for containers such as `heads` their children: one row per task."""
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleDict):
            yield from ((f"{name}.{key}", module) for key, module in child.items())
        else:
            yield name, child


def _names(parts: Parts, indices: Sequence[int]) -> str:
    """The modules that the parameters lie in: whole ones by one name, and below those that are split."""
    names = [name for name, p in parts.model.named_parameters() if p.requires_grad]
    chosen, others = {names[i] for i in indices}, set(names) - {names[i] for i in indices}

    def shortest(name: str) -> str:
        parents = name.split(".")
        heads = (".".join(parents[: n + 1]) for n in range(len(parents)))
        return next(h for h in heads if h == name or not any(o.startswith(h + ".") for o in others))

    found = list(dict.fromkeys(shortest(name) for name in names if name in chosen))
    return (", ".join(found[:8]) + (f", … ({len(found)} in all)" if len(found) > 8 else "")) or "none"


def _work(parts: Parts, settings: TrainerConfig, config: Mapping[str, Any]) -> str:
    size = settings.batch_size
    split = f"{size} examples per drawn data set and step"
    if settings.accumulation > 1 or config["launch"]["num_processes"] > 1:
        split += f" ({settings.accumulation} micro-batches x {config['launch']['num_processes']} processes)"
    if settings.max_steps:
        return f"work      {settings.max_steps:,} steps, {split}"
    try:
        sizes = {name: len(d) for name, d in parts.mixture.datasets("train").items()}
    except UserError:
        return f"work      {settings.epochs} epochs (the data is not there to be counted), {split}"
    sampler = build(config["sampler"], sizes, where="sampler")
    steps = steps_per_epoch(sizes, sampler, size) * int(settings.epochs or 1)
    return f"work      {steps:,} steps in {settings.epochs} epochs, {split}"


def _compute(parts: Parts, cost: Cost) -> str:
    """FLOPs of one example, and how many passes of one backbone that is: what the architecture adds."""
    group = probe_group(parts.inputs)
    backbone: Any = parts.model.all_backbones()[0]  # type: ignore[operator]
    alone = in_shapes_only(lambda: measure(parts.model, lambda: backbone(group.inputs)))
    example = "one example"
    if parts.inputs.kind == "image":
        height, width = group.inputs["pixels"].shape[-2:]
        example = f"an image of {height} x {width}"
    elif parts.inputs.kind == "text":
        example = f"a text of {group.inputs['input_ids'].shape[1]} tokens"
    elif parts.inputs.kind == "graph":
        example = f"a molecule of {group.inputs['atoms'].shape[1]} atoms"
    times = f", {cost.flops / alone.flops:.2f} x one pass of the backbone" if alone.flops else ""
    return (
        f"compute   {in_words(cost.flops)} forward for {example}{times}; "
        f"{cost.saved_bytes / 2**20:,.1f} MiB of activations in fp32"
    )


def _memory(
    parts: Parts, settings: TrainerConfig, weighting: Weighting, shared: int, cost: Cost, config: Mapping[str, Any]
) -> str:
    """Weights, gradients, two moments, the K×P buffer, and the tensors that one example keeps for its backward pass."""
    parameters = sum(p.numel() for p in parts.model.parameters())
    free = sum(p.numel() for p in trainable(parts.model))
    short = not isinstance(weighting, PerTaskWeighting) or isinstance(weighting, LastLayerWeighting)
    holds = not short and weighting.mode == "parameters"
    per_task = len(parts.tasks) * shared if holds else 0
    ema = parameters if settings.ema else 0
    micro = settings.batch_size // (settings.accumulation * config["launch"]["num_processes"])
    activations = cost.saved_bytes * micro
    if settings.precision != "fp32":
        activations //= 2
    state = 4 * (parameters + 3 * free + per_task + ema)
    total, kept, made = (f"{size / 2**20:,.0f}" for size in (state + activations, state, activations))
    return (
        f"memory    about {total} MiB a process: {kept} for weights, gradients and two moments, "
        f"{made} for the activations of {micro} examples in {settings.precision}"
    )
